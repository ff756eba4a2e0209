"""Claim: AnimateDiff's denoise takes at most 2% longer than diffusers' pipeline in no more memory, and gives the same latents.

Both run in this process on the same random weights and prompt features, first theirs, then ours; theirs works on the copy of the
weights that its UNetMotionModel makes, ours on the loaded UNet and motion module themselves. A step's time is the median without the
first one, which loads kernels. The decode goes frame by frame in both (`enable_vae_slicing` there). `--config full`, the default on a
GPU, is Stable Diffusion 1.5 with the motion module v3 in float16; `tiny` shows on a CPU that the script works, and its ratio means
nothing. `--windows` adds a clip of `--frames` times eight in context windows, of ours alone. No download, no InvokeAI.

    python benchmarks/animatediff.py [--config full|tiny] [--clip 512x512x16] [--steps 25] [--windows] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

BOUND = 1.02
CLIPS = {"full": "512x512x16", "tiny": "32x32x6"}
GUIDANCE = 7.5
Note = Callable[[], None]
Parts = tuple[Any, Any, Any]
"""UNet, motion module and VAE."""


def main() -> int:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = arguments.config or ("full" if device.type == "cuda" else "tiny")
    if config == "full" and device.type == "cpu":
        print("--config full: expected a GPU, got none; nearest: --config tiny")
        return 2
    arguments.config, arguments.clip = config, arguments.clip or CLIPS[config]
    clip = dict(zip(("width", "height", "num_frames"), (int(part) for part in arguments.clip.split("x")), strict=True))
    parts, prompts = _models(config), _prompts(device, config)
    with torch.no_grad():
        rows = _rows(parts, prompts, clip, device, arguments)
    return _report(rows, arguments, device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=tuple(CLIPS), help="default: full on a GPU, else tiny")
    parser.add_argument("--clip", help=f"width x height x frames; default {CLIPS['full']}, with tiny {CLIPS['tiny']}")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--windows", action="store_true", help="ours also with eight times the frames, in windows")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _models(config: str) -> Parts:
    """On the CPU, in the dtype of the run; random weights."""
    from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
    from tiny_animatediff import tiny_adapter, tiny_image_vae, tiny_unet

    if config == "tiny":
        return tiny_unet(), tiny_adapter(mid_block=False), tiny_image_vae()
    torch.manual_seed(0)
    # The configs of Stable Diffusion 1.5's UNet and VAE; MotionAdapter's defaults are the module v3's but for the middle block.
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    adapter = MotionAdapter(use_motion_mid_block=False, motion_max_seq_length=32)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, down_block_types=down, up_block_types=up
    )
    unet, adapter, vae = (model.eval().requires_grad_(False).to(torch.float16) for model in (unet, adapter, vae))
    return unet, adapter, vae


def _prompts(device: torch.device, config: str) -> list[torch.Tensor]:
    from tiny_animatediff import tiny_prompts

    dtype = torch.float32 if config == "tiny" else torch.float16
    return [prompt.to(device=device, dtype=dtype) for prompt in tiny_prompts()]


def _rows(
    parts: Parts, prompts: list[torch.Tensor], clip: dict[str, int], device: torch.device, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Each side alone on the device, so that its peak holds its own weights and no others."""
    unet, adapter, vae = parts
    rows = {"denoise, diffusers": _their_row(unet, adapter, prompts, clip, device, steps=arguments.steps)}
    gc.collect()
    latents = rows["denoise, diffusers"]["result"]
    unet, adapter = unet.to(device), adapter.to(device)
    ours = partial(_ours, unet, adapter, prompts)
    rows["denoise, ours"] = _measured(device, lambda note: ours(clip, arguments.steps, device, note))
    if arguments.windows:
        long = {**clip, "num_frames": 8 * clip["num_frames"]}
        what = f"denoise, ours, {long['num_frames']} frames in windows of {clip['num_frames']}"
        rows[what] = _measured(device, lambda note: ours(long, arguments.steps, device, note, window=clip["num_frames"]))
    unet.to("cpu"), adapter.to("cpu")
    vae = vae.to(device)
    rows["decode, diffusers"] = _measured(device, lambda _: _their_decode(vae, latents))
    rows["decode, ours"] = _measured(device, lambda _: _our_decode(vae, latents, device))
    return rows


def _scheduler() -> Any:
    from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler

    return make_scheduler("ddim")


def _pipeline(unet: Any, adapter: Any, device: torch.device) -> Any:
    """diffusers' pipeline without text encoder; only its own UNetMotionModel goes to the device."""
    from diffusers import AnimateDiffPipeline
    from tiny_animatediff import tiny_image_vae

    parts = {"vae": tiny_image_vae(), "text_encoder": None, "tokenizer": None, "unet": unet, "motion_adapter": adapter}
    pipeline = AnimateDiffPipeline(**parts, scheduler=_scheduler())
    pipeline.register_modules(motion_adapter=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _their_row(
    unet: Any, adapter: Any, prompts: list[torch.Tensor], clip: dict[str, int], device: torch.device, *, steps: int
) -> dict[str, Any]:
    """Measured; the pipeline is gone afterwards."""
    pipeline = _pipeline(unet, adapter, device)
    return _measured(device, lambda note: _theirs(pipeline, prompts, clip, steps, note))


def _theirs(pipeline: Any, prompts: list[torch.Tensor], clip: dict[str, int], steps: int, note: Note) -> torch.Tensor:
    def at_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        note()
        return values

    made: torch.Tensor = pipeline(
        prompt_embeds=prompts[0],
        negative_prompt_embeds=prompts[1],
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        latents=_noise(clip, pipeline.device, pipeline.unet.dtype),
        output_type="latent",
        callback_on_step_end=at_step,
        **clip,
    ).frames
    return made


def _ours(
    unet: Any,
    adapter: Any,
    prompts: list[torch.Tensor],
    clip: dict[str, int],
    steps: int,
    device: torch.device,
    note: Note,
    *,
    window: int = 0,
) -> torch.Tensor:
    from invokeai_video_nodes.pipelines.animatediff.denoise import denoise
    from invokeai_video_nodes.pipelines.animatediff.unet import motion_unet
    from invokeai_video_nodes.pipelines.windows import ContextWindows, predict_in_windows

    windows = partial(predict_in_windows, settings=ContextWindows(length=window, overlap=window // 2)) if window else None
    with motion_unet(unet, adapter) as model:
        return denoise(
            model,
            noise=_noise(clip, device, torch.float32),
            positive=prompts[0],
            negative=prompts[1],
            guidance_scale=GUIDANCE,
            scheduler=_scheduler(),
            steps=steps,
            windows=windows,
            on_step=lambda *_: note(),
        )


def _noise(clip: dict[str, int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    shape = (1, 4, clip["num_frames"], clip["height"] // 8, clip["width"] // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)


def _their_decode(vae: Any, latents: torch.Tensor) -> None:
    """As their pipeline decodes with `enable_vae_slicing`: frame by frame, all frames kept as float32."""
    frames = latents[0].transpose(0, 1).to(vae.dtype) / vae.config.scaling_factor
    vae.enable_slicing()
    try:
        vae.decode(frames, return_dict=False)[0].float()
    finally:
        vae.disable_slicing()


def _our_decode(vae: Any, latents: torch.Tensor, device: torch.device) -> None:
    from invokeai_video_nodes.pipelines.decode import decode_frames

    for _ in decode_frames(vae, latents.float(), device=device):
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


def _report(rows: dict[str, dict[str, Any]], arguments: argparse.Namespace, device: torch.device) -> int:
    theirs, ours = rows["denoise, diffusers"], rows["denoise, ours"]
    ratio = ours["step_seconds"] / theirs["step_seconds"]
    # In float16 theirs rounds the latents in every step and ours keeps them in float32, so there they are near, not equal.
    furthest = float((ours["result"].float() - theirs["result"].float()).abs().max())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures = {what: {key: value for key, value in row.items() if key != "result"} for what, row in rows.items()}
    if arguments.json:
        print(json.dumps({"device": name, "clip": arguments.clip, "ratio": ratio, "furthest": furthest, "rows": figures}))
    else:
        print(f"{name}, {arguments.config}, {arguments.clip}, {arguments.steps} steps, latents at most {furthest:.2g} apart")
        for what, row in figures.items():
            per_step = "" if row["step_seconds"] is None else f", {row['step_seconds']:.3f} s/step"
            peak = "" if row["peak_gib"] is None else f", peak {row['peak_gib']:.2f} GiB"
            print(f"  {what}: {row['seconds']:.2f} s{per_step}{peak}")
        print(f"  ours / theirs per step: {ratio:.3f} (bound {BOUND})")
    if device.type == "cpu":
        return 0 if furthest == 0 else 1
    return 0 if ratio <= BOUND and ours["peak_gib"] <= theirs["peak_gib"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
