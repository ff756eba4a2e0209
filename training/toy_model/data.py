"""The training clips on disk: rendered once with fixed seeds, then read through a memory map.

`build/toy_model/clips.npy` holds `[subjects * CLIPS_PER_SUBJECT, 24, 64, 64, 3]` uint8, subject by subject.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from training.toy_model.clips import Subject, render, split_subjects

CLIPS_PER_SUBJECT = 12  # played backwards most of them count twice


def _render_subject(subject: Subject) -> np.ndarray:
    return np.stack([render(subject, seed=seed) for seed in range(CLIPS_PER_SUBJECT)])


def training_clips(work: Path, *, workers: int = 2) -> np.ndarray:
    """The clips of the 206 training subjects, rendered into `work` on the first call (about a minute)."""
    path = work / "clips.npy"
    if not path.exists():
        subjects, _ = split_subjects()
        with ProcessPoolExecutor(workers) as pool:
            clips = np.concatenate(list(pool.map(_render_subject, subjects, chunksize=4)))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, clips)
        partial.rename(path)
    return np.load(path, mmap_mode="r")
