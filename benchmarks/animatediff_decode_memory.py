"""Claim: decoding 128 frames of AnimateDiff into an MP4 needs no more memory than decoding 16.

Random latents of Stable Diffusion 1.5 go through a tiny AutoencoderKL, each length in a process of its own; compared is how far the
resident memory grew above what it was with the model and the latents loaded. `--hoard` keeps every decoded frame, as a list would:
the same bound must then fail. `--vae plain` takes a VAE without weights instead, for a quick look.

    python benchmarks/animatediff_decode_memory.py [--size 512] [--vae tiny|plain] [--hoard]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from _peak_memory import compare_lengths

LENGTHS = (16, 128)
BOUND_MIB = 16.0


def main() -> int:
    return compare_lengths(__doc__, _prepare, lengths=LENGTHS, size=512, bound_mib=lambda _: BOUND_MIB, what="decode")


def _prepare(frames: int, arguments: argparse.Namespace) -> Callable[[], Iterator[Any]]:
    import torch
    from colour_patches import PlainVae
    from tiny_animatediff import tiny_image_vae

    from invokeai_video_nodes.pipelines.decode import decode_frames, latent_channels

    vae, cells = PlainVae() if arguments.vae == "plain" else tiny_image_vae(), arguments.size // 8
    latents = torch.randn(1, latent_channels(vae), frames, cells, cells, generator=torch.Generator().manual_seed(0))
    return lambda: decode_frames(vae, latents)


if __name__ == "__main__":
    sys.exit(main())
