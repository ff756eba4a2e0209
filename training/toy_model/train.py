"""`python -m training.toy_model.train --work build/toy_model`: every stage in turn, from nothing to the exported folder.

Each stage leaves a file or folder in the work folder and is skipped when that is there, so a stopped run goes on where it
was (the transformer from its last checkpoint). Seeds are fixed and every stage counts steps, never seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel

from training.toy_model.data import CLIPS_PER_SUBJECT, training_clips
from training.toy_model.export import export
from training.toy_model.train_transformer import averaged_checkpoint, train_transformer
from training.toy_model.train_vae import encode_clips, train_vae


class Log:
    """Prints each line and appends it to `train.log` in the work folder, with wall and CPU seconds since the start."""

    def __init__(self, work: Path) -> None:
        self.path = work / "train.log"
        self.begin, self.cpu = time.time(), time.process_time()

    def __call__(self, line: str) -> None:
        stamp = f"[{time.time() - self.begin:7.0f} s wall {time.process_time() - self.cpu:7.0f} s cpu]"
        print(stamp, line, flush=True)
        with self.path.open("a") as file:
            file.write(f"{stamp} {line}\n")


def trained_vae(work: Path, log: Log) -> AutoencoderKL:
    """The VAE stage's result, trained on the first call."""
    folder = work / "vae"
    if not (folder / "config.json").exists():
        train_vae(training_clips(work), folder, log=log)
    return AutoencoderKL.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)


def training_latents(work: Path, vae: AutoencoderKL, log: Log) -> torch.Tensor:
    """The training clips as scaled latents [N, 4, 24, 8, 8] fp32, encoded on the first call."""
    path = work / "latents.pt"
    if not path.exists():
        log("encoding the clips")
        latents = encode_clips(vae, training_clips(work))
        log(f"latents {tuple(latents.shape)} mean {latents.mean():.3f} spread {latents.std():.3f}")
        torch.save(latents, path)
    return torch.load(path)


def exported(work: Path, target: Path, vae: AutoencoderKL, transformer: ZImageTransformer2DModel, log: Log) -> None:
    """Write the folder that ships, with preview factors fitted on one clip of every training subject."""
    clips = training_clips(work)[::CLIPS_PER_SUBJECT]
    latents = training_latents(work, vae, log)[::CLIPS_PER_SUBJECT]
    export(target, transformer=transformer, vae=vae, clips=clips[:, ::6], latents=latents[:, :, ::6])
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    log(f"exported {target}: {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/toy_model"))
    parser.add_argument("--out", type=Path, default=None, help="where the folder goes; WORK/model when left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export-checkpoint", action="store_true", help="export the last checkpoint, train nothing")
    arguments = parser.parse_args()
    work, target = arguments.work, arguments.out or arguments.work / "model"
    torch.set_num_threads(arguments.threads)
    work.mkdir(parents=True, exist_ok=True)
    log = Log(work)
    vae = trained_vae(work, log)
    latents = training_latents(work, vae, log)
    if arguments.export_checkpoint:
        transformer = averaged_checkpoint(work)
    else:
        transformer = train_transformer(latents, work, log=log)
    exported(work, target, vae, transformer, log)


if __name__ == "__main__":
    main()
