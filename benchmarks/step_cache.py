"""Claim: the step cache skips model calls at a loss that is measured, and more of both from safe to fast.

A HunyuanVideo transformer of two million random values, made smooth by a weak time embedding (a trained model changes little
from step to step, random weights change much), denoises a clip of 33 frames without the cache and with each preset. Yardsticks: half
the steps, and diffusers' TaylorSeer (lite), which predicts all but every 2nd or 6th call whatever they are. PSNR is that of the
latents against the run without the cache, over their range.

    python benchmarks/step_cache.py [--steps 30]
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402  the thread count is read at import

SMOOTHING = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    from invokeai_video_nodes.pipelines.step_cache import THRESHOLDS, StepCache

    transformer, features = _smooth_transformer()
    rows = {name: (steps, StepCache(threshold)) for name, threshold in THRESHOLDS.items()}
    rows["half the steps"] = (steps // 2, StepCache())
    exact, baseline, shares, losses = None, 0.0, [], []
    for name, (count, cache) in rows.items():
        begin = time.perf_counter()
        clip = _denoised(transformer, features, steps=count, cache=cache)
        seconds = time.perf_counter() - begin
        exact, baseline = (clip, seconds) if exact is None else (exact, baseline)
        psnr = _psnr(clip, exact)
        share = cache.skipped / cache.calls
        _say(name, share, psnr, baseline / seconds)
        if name in THRESHOLDS:
            shares.append(share)
            losses.append(-psnr)
    for interval in (2, 6):
        begin = time.perf_counter()
        clip, share = _taylorseer(transformer, features, steps=steps, interval=interval)
        _say(f"TaylorSeer {interval}", share, _psnr(clip, exact), baseline / (time.perf_counter() - begin))
    return 0 if shares[0] == 0 < shares[1] <= shares[2] and losses == sorted(losses) else 1


def _say(name: str, share: float, psnr: float, speed: float) -> None:
    print(f"{name:>15}: {share:4.0%} of the calls skipped, {psnr:5.1f} dB, {speed:.2f}x as fast")


def _smooth_transformer() -> tuple[Any, Any]:
    from diffusers import HunyuanVideoTransformer3DModel

    from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import PromptFeatures

    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=24,
        num_layers=4,
        num_single_layers=8,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 10, 10),
    ).eval()
    transformer.time_text_embed.timestep_embedder.linear_2.weight.data.mul_(SMOOTHING)
    return transformer, PromptFeatures(torch.randn(1, 24, 16), torch.ones(1, 24), torch.randn(1, 8))


def _denoised(transformer: Any, features: Any, *, steps: int, cache: Any) -> torch.Tensor:
    from invokeai_video_nodes.pipelines.hunyuan_video.denoise import denoise
    from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
    from invokeai_video_nodes.pipelines.shapes import seeded_noise

    config = {"num_train_timesteps": 1000, "shift": 7.0}
    scheduler = flow_match_scheduler("euler", config=config, steps=steps, image_tokens=0)
    return denoise(transformer, latents=seeded_noise((1, 4, 9, 8, 8), 1), positive=features, scheduler=scheduler, cache=cache)


def _taylorseer(transformer: Any, features: Any, *, steps: int, interval: int) -> tuple[torch.Tensor, float]:
    """The clip, and the share of steps in which the first block was not computed."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache

    hooked, computed = copy.deepcopy(transformer), []
    hooked.transformer_blocks[0].attn.register_forward_hook(lambda *_: computed.append(True))
    config = TaylorSeerCacheConfig(cache_interval=interval, taylor_factors_dtype=torch.float32, use_lite_mode=True)
    apply_taylorseer_cache(hooked, config)
    HookRegistry.check_if_exists_or_initialize(hooked)._set_context("positive")
    clip = _denoised(hooked, features, steps=steps, cache=None)
    return clip, 1 - len(computed) / steps


def _psnr(clip: torch.Tensor, exact: torch.Tensor) -> float:
    error = float((clip - exact).square().mean())
    peak = float(exact.max() - exact.min())
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


if __name__ == "__main__":
    raise SystemExit(main())
