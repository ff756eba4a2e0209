"""Claim: SVD-XT's denoise takes at most 2% longer than diffusers' pipeline, and gives the same latents.

Bit for bit in float32. In float16 diffusers rounds the latents to half precision after every step and we do not, so that the mean
difference is reported instead, in standard deviations. Both run in this process on the same random weights, conditioning and noise,
first theirs, then ours; a step's time is the median without the first one, which loads kernels. Seconds of a clip and peak memory are
reported for the denoise and for the decode (at `--chunk` frames; ours streams, theirs keeps the clip). `--config full`, the default on
a GPU, is the real SVD-XT in float16 at 25 frames of 1024x576; `tiny` shows on a CPU that the script works, and its ratio means
nothing. No download, no InvokeAI.

    python benchmarks/svd.py [--config full|tiny] [--clip 1024x576x25] [--steps 25] [--chunk 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

BOUND = 1.02
CLIPS = {"full": "1024x576x25", "tiny": "64x48x5"}
Note = Callable[[], None]


def main() -> int:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.config = arguments.config or ("full" if device.type == "cuda" else "tiny")
    if arguments.config == "full" and device.type == "cpu":
        print("--config full: expected a GPU, got none; nearest: --config tiny")
        return 2
    arguments.clip = arguments.clip or CLIPS[arguments.config]
    width, height, frames = (int(part) for part in arguments.clip.split("x"))
    size = {"width": width, "height": height, "num_frames": frames}
    pipeline = _pipeline(arguments.config, device)
    given = _conditioning(pipeline, size)
    with torch.no_grad():
        rows = {
            "denoise, diffusers": _measured(device, lambda note: _theirs(pipeline, given, size, arguments.steps, device, note)),
            "denoise, ours": _measured(device, lambda note: _ours(pipeline, given, size, arguments.steps, device, note)),
        }
        latents = rows["denoise, ours"]["result"]
        theirs = rows["denoise, diffusers"]["result"].transpose(1, 2)
        difference = 0.0 if torch.equal(theirs, latents) else float((theirs.float() - latents).abs().mean() / latents.std())
        rows["decode, diffusers"] = _measured(device, lambda note: _their_decode(pipeline, latents, arguments.chunk))
        rows["decode, ours"] = _measured(device, lambda note: _our_decode(pipeline.vae, latents, arguments.chunk))
    return _report(rows, arguments, device, difference=difference)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=tuple(CLIPS), help="default: full on a GPU, else tiny")
    parser.add_argument("--clip", help=f"width x height x frames; default {CLIPS['full']}, with tiny {CLIPS['tiny']}")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--chunk", type=int, default=2, help="frames that are decoded at once")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _pipeline(config: str, device: torch.device) -> Any:
    """SVD without its image encoder, whose answer `_conditioning` makes up; random weights, made on the device."""
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from tiny_svd import tiny_temporal_vae, tiny_unet

    from invokeai_video_nodes.pipelines.svd.schedule import PUBLIC_SVD
    from invokeai_video_nodes.pipelines.svd.sizes import PUBLIC, empty_model

    dtype = torch.float32 if device.type == "cpu" else torch.float16
    torch.manual_seed(0)
    if config == "tiny":
        unet, vae = tiny_unet(num_frames=25), tiny_temporal_vae()
    else:
        unet, vae = empty_model("unet", {**PUBLIC["unet"], "num_frames": 25}), empty_model("vae", PUBLIC["vae"])
        for module in (unet, vae):
            module.to(dtype).to_empty(device=device)
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
    unet, vae = (module.eval().requires_grad_(False).to(device=device, dtype=dtype) for module in (unet, vae))
    pipeline = StableVideoDiffusionPipeline(
        vae=vae, image_encoder=None, unet=unet, scheduler=EulerDiscreteScheduler(**PUBLIC_SVD), feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _conditioning(pipeline: Any, size: dict[str, int]) -> Any:
    from invokeai_video_nodes.pipelines.svd.conditioning import Conditioning, Motion

    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 1, pipeline.unet.config.cross_attention_dim, generator=generator)
    start = torch.randn(1, 4, 1, size["height"] // 8, size["width"] // 8, generator=generator)
    return Conditioning(embedding=embedding, start=start, time_ids=Motion().time_ids())


def _noise(size: dict[str, int]) -> torch.Tensor:
    """[1, C, F, h, w]"""
    from invokeai_video_nodes.pipelines.shapes import ClipShape
    from invokeai_video_nodes.pipelines.svd.conditioning import LATENT_CHANNELS, draw_noise

    return draw_noise(ClipShape("svd", latent_channels=LATENT_CHANNELS, **size), 0).latents


def _theirs(pipeline: Any, given: Any, size: dict[str, int], steps: int, device: torch.device, note: Note) -> torch.Tensor:
    """The pipeline's own call; its encoders are replaced by what `given` says, for the time of the run."""

    def guided(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(device=device, dtype=pipeline.unet.dtype)
        return torch.cat([torch.zeros_like(tensor), tensor])

    def at_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        note()
        return values

    pipeline._encode_image = lambda *_: guided(given.embedding)
    pipeline._encode_vae_image = lambda *_, **__: guided(given.start[:, :, 0])
    made: torch.Tensor = pipeline(
        torch.zeros(1, 3, size["height"], size["width"]),
        num_inference_steps=steps,
        # In the dtype in which the pipeline would draw its own.
        latents=_noise(size).transpose(1, 2).to(device=device, dtype=pipeline.unet.dtype),
        output_type="latent",
        callback_on_step_end=at_step,
        **size,
    ).frames
    return made


def _ours(pipeline: Any, given: Any, size: dict[str, int], steps: int, device: torch.device, note: Note) -> torch.Tensor:
    from invokeai_video_nodes.pipelines.svd.denoise import denoise
    from invokeai_video_nodes.pipelines.svd.schedule import svd_scheduler

    scheduler = svd_scheduler(steps=steps, config=pipeline.scheduler.config)
    return denoise(
        pipeline.unet, noise=_noise(size).to(device), conditioning=given, scheduler=scheduler, on_step=lambda *_: note()
    )


def _their_decode(pipeline: Any, latents: torch.Tensor, chunk: int) -> None:
    # As after their denoise: the VAE's dtype.
    frames = latents.transpose(1, 2).to(pipeline.vae.dtype)
    pipeline.video_processor.postprocess_video(pipeline.decode_latents(frames, frames.shape[1], chunk), output_type="pil")


def _our_decode(vae: Any, latents: torch.Tensor, chunk: int) -> None:
    from invokeai_video_nodes.pipelines.svd.decode import decode_chunks

    for _ in decode_chunks(vae, latents, chunk_size=chunk):
        pass


def _measured(device: torch.device, run: Callable[[Note], Any]) -> dict[str, Any]:
    """Seconds in all and per step (where there are steps), peak GiB, and what the run gave."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    times = [time.perf_counter()]

    def note() -> None:
        if is_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    result = run(note)
    note()
    steps = [end - begin for begin, end in zip(times[1:-2], times[2:-1], strict=True)]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if is_gpu else None
    step_seconds = statistics.median(steps) if steps else None
    return {"seconds": times[-1] - times[0], "step_seconds": step_seconds, "peak_gib": peak, "result": result}


def _report(rows: dict[str, dict[str, Any]], arguments: argparse.Namespace, device: torch.device, *, difference: float) -> int:
    ratio = rows["denoise, ours"]["step_seconds"] / rows["denoise, diffusers"]["step_seconds"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures = {what: {key: value for key, value in row.items() if key != "result"} for what, row in rows.items()}
    if arguments.json:
        print(json.dumps({"device": name, "clip": arguments.clip, "ratio": ratio, "difference": difference, "rows": figures}))
    else:
        print(f"{name}, {arguments.config}, {arguments.clip}, {arguments.steps} steps, latents differ by {difference:.2g} (0: bit for bit)")
        for what, row in figures.items():
            per_step = "" if row["step_seconds"] is None else f", {row['step_seconds']:.3f} s/step"
            peak = "" if row["peak_gib"] is None else f", peak {row['peak_gib']:.1f} GiB"
            print(f"  {what}: {row['seconds']:.2f} s{per_step}{peak}")
        print(f"  ours / theirs per step: {ratio:.3f} (bound {BOUND})")
    return 0 if (difference == 0.0 if device.type == "cpu" else ratio <= BOUND) else 1


if __name__ == "__main__":
    raise SystemExit(main())
