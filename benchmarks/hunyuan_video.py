"""Claim: HunyuanVideo's denoise takes at most 2% longer than diffusers' pipeline, and gives the same latents bit for bit.

Both run in this process on the same random weights and prompt features, first theirs, then ours. A step's time is the median
without the first one, which loads kernels. Time and peak memory of the decode are reported beside those of diffusers' tiling, ours in
the tiles that a card with `--card` GiB to spare would get. `--config full`, the default on a GPU, is the real 13 billion values in
bfloat16 and needs one of 80 GB; `tiny` shows on a CPU that the script works, and its ratio means nothing. No download, no InvokeAI.

    python benchmarks/hunyuan_video.py [--config full|tiny] [--clip 960x544x129] [--steps 4] [--card 24] [--fp8] [--compile] [--json]
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
CLIPS = {"full": "960x544x129", "tiny": "32x32x9"}
TOKENS = 256


def main() -> int:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = arguments.config or ("full" if device.type == "cuda" else "tiny")
    if config == "full" and device.type == "cpu":
        print("--config full: expected a GPU of 80 GB, got none; nearest: --config tiny")
        return 2
    arguments.config, arguments.clip = config, arguments.clip or CLIPS[config]
    width, height, frames = (int(part) for part in arguments.clip.split("x"))
    pipeline = _pipeline(arguments.config, device, fp8=arguments.fp8, compiled=arguments.compile)
    features = _features(pipeline, device)
    size = {"width": width, "height": height, "num_frames": frames}
    with torch.no_grad():
        rows = {
            "denoise, diffusers": _measured(device, lambda note: _theirs(pipeline, features, size, arguments.steps, note)),
            "denoise, ours": _measured(device, lambda note: _ours(pipeline, features, size, arguments.steps, device, note)),
        }
        same = torch.equal(rows["denoise, diffusers"]["result"], rows["denoise, ours"]["result"])
        latents = rows["denoise, ours"]["result"]
        rows["decode, diffusers tiling"] = _measured(device, lambda note: _their_decode(pipeline.vae, latents))
        rows["decode, ours"] = _measured(device, lambda note: _our_decode(pipeline.vae, latents, device, card=arguments.card))
    return _report(rows, arguments, device, same=same)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=tuple(CLIPS), help="default: full on a GPU, else tiny")
    parser.add_argument("--clip", help=f"width x height x frames; default {CLIPS['full']}, with tiny {CLIPS['tiny']}")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--card", type=float, default=24, help="GiB that our decode finds free")
    parser.add_argument("--fp8", action="store_true", help="weights stored in fp8, computed in bfloat16 (layerwise casting)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _pipeline(config: str, device: torch.device, *, fp8: bool, compiled: bool) -> Any:
    """HunyuanVideo without its text encoders; random weights, made on the device."""
    from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
    from tiny_hunyuan import tiny_transformer, tiny_vae

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    if config == "tiny":
        transformer, vae = tiny_transformer(), tiny_vae()
    else:
        with torch.device("meta"):
            transformer, vae = HunyuanVideoTransformer3DModel(), AutoencoderKLHunyuanVideo()
    for module in (transformer, vae):
        module.eval().requires_grad_(False)
        if config == "full":
            module.to(dtype).to_empty(device=device)
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
    parts = [module.to(device=device, dtype=dtype) for module in (transformer, vae)]
    if fp8:
        parts[0].enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    if compiled:
        parts[0].compile()
    pipeline = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=parts[0],
        vae=parts[1],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _features(pipeline: Any, device: torch.device) -> Any:
    from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import PromptFeatures

    config, dtype = pipeline.transformer.config, pipeline.transformer.dtype
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, TOKENS, config.text_embed_dim, generator=generator).to(device=device, dtype=dtype)
    pooled = torch.randn(1, config.pooled_projection_dim, generator=generator).to(device=device, dtype=dtype)
    return PromptFeatures(tokens, torch.ones(1, TOKENS, device=device, dtype=dtype), pooled)


def _theirs(pipeline: Any, features: Any, size: dict[str, int], steps: int, note: Callable[[], None]) -> torch.Tensor:
    def at_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        note()
        return values

    made: torch.Tensor = pipeline(
        prompt_embeds=features.tokens,
        prompt_attention_mask=features.mask,
        pooled_prompt_embeds=features.pooled,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=at_step,
        **size,
    ).frames
    return made


def _ours(
    pipeline: Any, features: Any, size: dict[str, int], steps: int, device: torch.device, note: Callable[[], None]
) -> torch.Tensor:
    from invokeai_video_nodes.pipelines.hunyuan_video.denoise import denoise
    from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
    from invokeai_video_nodes.pipelines.shapes import ClipShape, seeded_noise

    shape = ClipShape("hunyuan-video", latent_channels=pipeline.transformer.config.in_channels, **size)
    return denoise(
        pipeline.transformer,
        latents=seeded_noise(shape.latent_shape, 0).to(device),
        positive=features,
        scheduler=flow_match_scheduler("euler", config=pipeline.scheduler.config, steps=steps, image_tokens=shape.image_tokens),
        on_step=lambda *_: note(),
    )


def _their_decode(vae: Any, latents: torch.Tensor) -> None:
    vae.enable_tiling()
    try:
        vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)
    finally:
        vae.disable_tiling()


def _our_decode(vae: Any, latents: torch.Tensor, device: torch.device, *, card: float) -> None:
    from invokeai_video_nodes.pipelines.vae3d import decode_video, plan_for

    plan = plan_for(vae, tuple(latents.shape), free_bytes=int(card * 2**30))
    for _ in decode_video(vae, latents, plan=plan, device=device):
        pass


def _measured(device: torch.device, run: Callable[[Callable[[], None]], Any]) -> dict[str, Any]:
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


def _report(rows: dict[str, dict[str, Any]], arguments: argparse.Namespace, device: torch.device, *, same: bool) -> int:
    ratio = rows["denoise, ours"]["step_seconds"] / rows["denoise, diffusers"]["step_seconds"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures = {what: {key: value for key, value in row.items() if key != "result"} for what, row in rows.items()}
    if arguments.json:
        print(json.dumps({"device": name, "clip": arguments.clip, "ratio": ratio, "same_latents": same, "rows": figures}))
    else:
        print(f"{name}, {arguments.config}, {arguments.clip}, {arguments.steps} steps, latents equal bit for bit: {same}")
        for what, row in figures.items():
            per_step = "" if row["step_seconds"] is None else f", {row['step_seconds']:.3f} s/step"
            peak = "" if row["peak_gib"] is None else f", peak {row['peak_gib']:.1f} GiB"
            print(f"  {what}: {row['seconds']:.2f} s{per_step}{peak}")
        print(f"  ours / theirs per step: {ratio:.3f} (bound {BOUND})")
    return 0 if same and (device.type == "cpu" or ratio <= BOUND) else 1


if __name__ == "__main__":
    raise SystemExit(main())
