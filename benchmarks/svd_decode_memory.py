"""Claim: SVD's decode to an MP4 needs no more memory than diffusers' decode alone, at the same chunk of two frames.

Decodes the same random latents through a tiny AutoencoderKLTemporalDecoder in two processes of their own: ours streams frames from
the decoder into the MP4; diffusers' pipeline decodes all of them, as float32 and then as pictures, and writes nothing. Compared is how
far the resident memory grew above what it was with the VAE and the latents loaded. `--hoard` keeps every frame of ours, as tensors and
as arrays, until all are decoded: the same bound must then fail, or it measures nothing. `--vae plain` takes a VAE without weights.

    python benchmarks/svd_decode_memory.py [--size 512] [--frames 25] [--vae tiny|plain] [--hoard]
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _peak_memory import PeakMemory, in_own_process

BOUND = 1.0
CHUNK = 2
SIDES = ("ours", "diffusers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--vae", choices=("tiny", "plain"), default="tiny", help="the real class at toy size, or one without weights")
    parser.add_argument("--hoard", action="store_true", help="keep every decoded frame: must exceed the bound")
    parser.add_argument("--case", choices=SIDES, help="measure this side in this process and print the growth")
    arguments = parser.parse_args()
    if arguments.case:
        print(f"grown_mib {_grown_mib(arguments):.2f}")
        return 0
    ours, theirs = (in_own_process(side) for side in SIDES)
    ratio = ours / theirs
    print(
        f"{'hoarding ' if arguments.hoard else ''}SVD decode of {arguments.frames} frames of {arguments.size}x{arguments.size} at chunk"
        f" {CHUNK}: ours, MP4 included, grows by {ours:.1f} MiB, diffusers' by {theirs:.1f}; ratio {ratio:.2f} (bound {BOUND})"
    )
    return 0 if ratio <= BOUND else 1


def _grown_mib(arguments: argparse.Namespace) -> float:
    import torch
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import StableVideoDiffusionPipeline
    from diffusers.video_processor import VideoProcessor
    from tiny_svd import tiny_temporal_vae

    torch.set_num_threads(1)
    vae, cells = _PlainTemporalVae() if arguments.vae == "plain" else tiny_temporal_vae(), arguments.size // 8
    latents = torch.randn(1, 4, arguments.frames, cells, cells, generator=torch.Generator().manual_seed(0))
    processor = VideoProcessor(do_resize=True, vae_scale_factor=8)
    gc.collect()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        if arguments.case == "diffusers":
            # The method alone, as it needs nothing else of the pipeline.
            pixels = StableVideoDiffusionPipeline.decode_latents(
                SimpleNamespace(vae=vae), latents.transpose(1, 2), arguments.frames, CHUNK
            )
            processor.postprocess_video(pixels, output_type="pil")
        else:
            _write(_frames(vae, latents, hoard=arguments.hoard), Path(folder) / "clip.mp4", size=arguments.size)
    return memory.grown_mib


def _frames(vae: Any, latents: Any, *, hoard: bool) -> Iterator[Any]:
    from invokeai_video_nodes.pipelines.svd.decode import decode_chunks

    return _hoarded(vae, latents) if hoard else decode_chunks(vae, latents, chunk_size=CHUNK)


def _hoarded(vae: Any, latents: Any) -> Iterator[Any]:
    import torch

    from invokeai_video_nodes.pipelines.svd.decode import decode_chunk

    chunks = [decode_chunk(vae, chunk) for chunk in latents.split(CHUNK, dim=2)]
    clip = torch.cat(chunks)
    scaled = (clip / 2 + 0.5).clamp(0, 1) * 255
    arrays = scaled.permute(0, 2, 3, 1).contiguous().numpy()
    rounded = arrays.round()
    pictures = [array.astype("uint8") for array in rounded]
    yield from pictures


class _PlainTemporalVae:
    """Shows three of four latent channels, enlarged 8x."""

    config = SimpleNamespace(latent_channels=4, scaling_factor=1.0)

    def __init__(self) -> None:
        self.decoder = SimpleNamespace(mid_block=None, up_blocks=[])

    def parameters(self) -> Iterator[Any]:
        import torch

        return iter([torch.zeros(1)])

    def forward(self, sample: Any, num_frames: int) -> None:
        """diffusers reads its arguments."""

    def decode(self, latents: Any, num_frames: int, return_dict: bool = True) -> Any:
        pixels = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return SimpleNamespace(sample=pixels) if return_dict else (pixels,)


def _write(frames: Iterator[Any], path: Path, *, size: int) -> None:
    from invokeai_video_nodes.pipelines.mp4 import write_mp4

    write_mp4(frames, path, fps=7, width=size, height=size, preset="ultrafast")


if __name__ == "__main__":
    sys.exit(main())
