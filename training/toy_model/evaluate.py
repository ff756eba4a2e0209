"""`python -m training.toy_model.evaluate`: the soak. Prompts go through the exported model, a judge looks at the frames.

Three tables: prompts of training subjects and of held-out subjects (colour, shape, motion, with Wilson's 95% lower bounds),
steadiness at 8, 16 and 24 frames, and pictures that are continued (frame 0 held).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.toy_model.captions import phrasings
from training.toy_model.clips import DIRECTIONS, Subject, render, split_subjects
from training.toy_model.judge import Verdict, judge, look, wilson_lower
from training.toy_model.sampling import GUIDANCE, SHIFT, STEPS, Request, Toy, sample_clips
from training.toy_model.train_vae import decode_clip, encode_clips

MODEL = Path(__file__).parents[2] / "invokeai_video_nodes" / "toy_model" / "model"
SHAPES = ((8, 2), (8, 4), (16, 2), (16, 4), (24, 2), (24, 4))  # (frames, f_patch_size), in turn
TARGETS = {"training": 0.97, "held-out": 0.95}
HELD_OUT_ALL_RIGHT = 0.92
FIRST_FRAME_TARGET = 0.90


@dataclass(frozen=True)
class Trial:
    """One prompt to judge, and what it asks for."""

    subject: Subject
    request: Request


def prompt_trials(subjects: list[Subject], count: int, *, seed: int) -> list[Trial]:
    """`count` trials: every subject in a shuffled turn, each time with another phrasing, seed and clip shape."""
    draw = np.random.default_rng(seed)
    trials: list[Trial] = []
    while len(trials) < count:
        for index in draw.permutation(len(subjects))[: count - len(trials)]:
            subject = subjects[int(index)]
            choices = phrasings(subject)
            frames, f = SHAPES[len(trials) % len(SHAPES)]
            prompt = choices[int(draw.integers(len(choices)))]
            trials.append(Trial(subject, Request(prompt, int(draw.integers(2**31)), frames, f)))
    return trials


def judge_trials(toy: Toy, trials: list[Trial], **settings) -> list[Verdict]:
    """Sample and judge every trial."""
    clips = sample_clips(toy, [trial.request for trial in trials], **settings)
    return [judge(clip, trial.subject) for clip, trial in zip(clips, trials, strict=True)]


def share_rows(name: str, verdicts: list[Verdict]) -> dict[str, dict]:
    """`{"colour": {...}, ...}`: how many were right, and the lower bound."""
    rows = {}
    for what in ("colour", "shape", "motion", "all_right"):
        right, total = sum(getattr(v, what) for v in verdicts), len(verdicts)
        rows[what] = {"right": right, "total": total, "lower_bound": wilson_lower(right, total)}
    for what, row in rows.items():
        print(f"{name:10} {what:10} {row['right']}/{row['total']}  95% lower bound {row['lower_bound']:.3f}")
    return rows


def steadiness_rows(trials: list[Trial], verdicts: list[Verdict]) -> dict[str, dict]:
    """Per clip length: how many clips keep shape, colour and pace."""
    rows = {}
    for frames in sorted({trial.request.frames for trial in trials}):
        chosen = [(t, v) for t, v in zip(trials, verdicts, strict=True) if t.request.frames == frames]
        moving = [v for t, v in chosen if t.subject.motion in DIRECTIONS]
        rows[str(frames)] = {
            "clips": len(chosen),
            "shape_unchanged": sum(v.shape_steady for _, v in chosen),
            "colour_drift_within_5_percent": sum(v.colour_drift <= 0.05 for _, v in chosen),
            "track_r2_at_least_0.95": sum(v.track_r2 >= 0.95 for _, v in chosen),
            "moving_clips": len(moving),
            "no_jump_over_twice_the_median": sum(v.jump <= 2.0 for v in moving),
        }
        print(f"{frames} frames: " + ", ".join(f"{k} {v}" for k, v in rows[str(frames)].items()))
    return rows


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * float(np.log10(np.square(a.astype(float) - b).mean() / 255**2 + 1e-12))


def first_frame_rows(toy: Toy, count: int, *, seed: int) -> dict[str, float]:
    """Pictures the model never saw, held as frame 0 while the prompt names their subject: what is kept, what moves."""
    trials = prompt_trials([s for half in split_subjects() for s in half], count, seed=seed)
    kept = []
    requests, pictures = [], []
    for index, trial in enumerate(trials):
        picture = render(trial.subject, seed=900_000 + index, frames=1)
        start = encode_clips(toy.vae, picture[None])[0, :, 0]
        r = trial.request
        requests.append(Request(r.prompt, r.seed, r.frames, r.f_patch_size, start=start))
        pictures.append(picture[0])
    clips = sample_clips(toy, requests)
    for trial, request, picture, clip in zip(trials, requests, pictures, clips, strict=True):
        verdict = judge(clip, trial.subject)
        round_trip = decode_clip(toy.vae, request.start[:, None])[0]
        kept.append(
            {
                "frame_0": abs(_psnr(clip[0], picture) - _psnr(round_trip, picture)) <= 0.1,
                "colour": verdict.colour,
                "shape": verdict.shape,
                "place": _same_place(clip[:1], picture[None], trial.subject.shape),
                "motion": verdict.motion,
            }
        )
    rows = {name: sum(row[name] for row in kept) for name in kept[0]}
    rows["all"] = sum(all(row.values()) for row in kept)
    print("frame 0 held: " + ", ".join(f"{name} {value}/{count}" for name, value in rows.items()))
    return {**rows, "total": count}


def _same_place(clip: np.ndarray, picture: np.ndarray, shape: str) -> bool:
    """Whether the shape's centre is within a pixel of the picture's."""
    seen, wanted = look(clip, shape=shape), look(picture, shape=shape)
    return seen is not None and wanted is not None and bool(np.hypot(*(seen.centres - wanted.centres)[0]) <= 1.0)


def shortfalls(report: dict) -> list[str]:
    """The targets that the report misses, in words; empty when all are met."""
    missed = []
    for name, target in TARGETS.items():
        for what in ("colour", "shape", "motion"):
            bound = report[name][what]["lower_bound"]
            if bound < target:
                missed.append(f"{name} {what}: expected a lower bound of at least {target}, got {bound:.3f}")
    if (bound := report["held-out"]["all_right"]["lower_bound"]) < HELD_OUT_ALL_RIGHT:
        missed.append(f"held-out all right: expected a lower bound of at least {HELD_OUT_ALL_RIGHT}, got {bound:.3f}")
    held = report["first_frame"]
    if held["all"] < FIRST_FRAME_TARGET * held["total"]:
        missed.append(f"frame 0 held: expected {FIRST_FRAME_TARGET:.0%} right, got {held['all']}/{held['total']}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--in-training", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--first-frame", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="write the report here")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    begin = time.time()
    settings = {"steps": a.steps, "guidance": a.guidance, "shift": a.shift}
    toy = Toy.load(a.model)
    report: dict = {"settings": settings}
    trials, verdicts = [], []
    for name, subjects, count in zip(TARGETS, split_subjects(), (a.in_training, a.held_out), strict=True):
        chosen = prompt_trials(subjects, count, seed=a.seed)
        seen = judge_trials(toy, chosen, **settings)
        report[name] = share_rows(name, seen)
        for trial, verdict in zip(chosen, seen, strict=True):
            if not verdict.all_right:
                print(f"  wrong: {trial.request.prompt!r} seed {trial.request.seed} {trial.request.frames} frames {verdict}")
        trials, verdicts = trials + chosen, verdicts + seen
    report["steadiness"] = steadiness_rows(trials, verdicts)
    report["first_frame"] = first_frame_rows(toy, a.first_frame, seed=a.seed)
    report["shortfalls"] = shortfalls(report)
    print(f"{time.time() - begin:.0f} s;", "; ".join(report["shortfalls"]) or "every target is met")
    if a.json:
        a.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["shortfalls"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
