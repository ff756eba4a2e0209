"""Claim: decoding through a video VAE needs no more memory for 129 frames than for 17, but for one tile.

Decodes random latents in tiles of 8 frames through a tiny AutoencoderKLHunyuanVideo and writes the MP4, each length in a process of
its own, and compares how far the resident memory grew above what it was with the model and the latents loaded. `--hoard` keeps
every decoded frame: the same bound must then fail, or it measures nothing. `--vae plain` takes a VAE without weights.

    python benchmarks/vae_memory.py [--size 384] [--vae tiny|plain] [--hoard]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from _peak_memory import compare_lengths

LENGTHS = (17, 129)
TILE_FRAMES = 2  # latent frames: 8 frames beside the one that a tile starts from
SLACK_MIB = 16.0


def main() -> int:
    return compare_lengths(__doc__, _prepare, lengths=LENGTHS, size=384, bound_mib=_bound_mib, what="video decode")


def _bound_mib(size: int) -> float:
    """The slack and one tile's pixels in float32."""
    return SLACK_MIB + (4 * TILE_FRAMES + 1) * size * size * 3 * 4 / 2**20


def _prepare(frames: int, arguments: argparse.Namespace) -> Callable[[], Iterator[Any]]:
    import torch
    from tiny_hunyuan import tiny_vae

    from invokeai_video_nodes.pipelines.vae3d import TilePlan, decode_video

    vae, cells = _PlainVideoVae() if arguments.vae == "plain" else tiny_vae(), arguments.size // 8
    latents = torch.randn(1, 4, (frames - 1) // 4 + 1, cells, cells, generator=torch.Generator().manual_seed(0))
    return lambda: decode_video(vae, latents, plan=TilePlan(frames=TILE_FRAMES, height=cells, width=cells))


class _PlainVideoVae:
    """Shows three of four latent channels, enlarged 8x, each latent frame but the first four times."""

    config = SimpleNamespace(
        latent_channels=4, scaling_factor=1.0, shift_factor=0.0, temporal_compression_ratio=4, spatial_compression_ratio=8
    )

    def parameters(self):
        import torch

        return iter([torch.zeros(1)])

    def decoder(self, z):
        import torch

        frames = torch.cat([z[:, :3, :1], z[:, :3, 1:].repeat_interleave(4, 2)], dim=2)
        return frames.repeat_interleave(8, 3).repeat_interleave(8, 4)


if __name__ == "__main__":
    sys.exit(main())
