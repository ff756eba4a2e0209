"""Claim: AnimateDiff's denoise node takes at most 5% longer than the bare loop over diffusers' classes.

Both run in this process with the same weights and prompts, the models warm, 25 steps, the node with its preview pictures. They take
turns, and each turn gives one ratio; the median of the ratios is judged. The models are random and small, of the real classes: a step
takes a few tenths of a second on one core, far less than a real model's. Wall seconds are judged where the machine is free, processor
seconds where more wants to run than it has processors; both are printed.

    python benchmarks/animatediff_overhead.py [--steps 25] [--repeats 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from denoise_overhead import report, seconds, take_turns

SHAPE = {"num_frames": 16, "width": 128, "height": 128, "seed": 1}
GUIDANCE = 7.5
# Wider than the tests' own, so that a step is work and not bookkeeping.
WIDTHS = (64, 64, 128, 128)


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        return _compare(Path(folder), arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _compare(folder: Path, arguments: argparse.Namespace) -> int:
    from animatediff_graphs import animatediff_video
    from tiny_sd1 import save_motion_module, tiny_sd1, tiny_sd1_unet

    from invokeai_video_nodes.headless import Engine

    main, module = folder / "main", folder / "module"
    tiny_sd1(unet=tiny_sd1_unet(block_out_channels=WIDTHS)).save_pretrained(main)
    save_motion_module(module, "v3", block_out_channels=WIDTHS)
    with Engine(folder / "root", log_level="error", settings={"node_cache_size": 0}) as engine:
        models = [engine.model(engine.install(path)) for path in (main, module)]
        shape = {**SHAPE, "guidance_scale": GUIDANCE, "scheduler": "ddim"}
        first = engine.run(animatediff_video(*models, denoise={**shape, "steps": 1}))
        node = _denoise_node(first.outputs, steps=arguments.steps)
        runs = {"node": lambda: node.invoke(engine.context(node)), "bare": _bare_loop(main, module, engine, first.outputs, arguments.steps)}
        for run in runs.values():
            run()
        times = take_turns(runs, arguments.repeats)
        graph = animatediff_video(*models, denoise={**shape, "steps": arguments.steps})
        whole = seconds(lambda: engine.run(graph))
    return report(times, whole, arguments.steps)


def _denoise_node(outputs: dict[str, Any], *, steps: int) -> Any:
    from invokeai_video_nodes.nodes.denoise_animatediff import AnimateDiffDenoiseInvocation

    return AnimateDiffDenoiseInvocation(
        id="denoise",
        model=outputs["model"]["model"],
        positive_conditioning=outputs["prompt"]["conditioning"],
        negative_conditioning=outputs["negative"]["conditioning"],
        guidance_scale=GUIDANCE,
        scheduler="ddim",
        steps=steps,
        **SHAPE,
    )


def _bare_loop(main: Path, module: Path, engine: Any, outputs: dict[str, Any], steps: int) -> Callable[[], Any]:
    """What somebody would write with diffusers alone, from the same prompts, noise and weights."""
    import torch
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler

    unet = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(main / "unet"), MotionAdapter.from_pretrained(module)).eval()
    names = [outputs[name]["conditioning"]["conditioning_name"] for name in ("negative", "prompt")]
    prompts = torch.cat([engine.services.conditioning.load(name).conditionings[0].embeds.float() for name in names])
    features = prompts.repeat_interleave(SHAPE["num_frames"], dim=0)
    shape = (1, 4, SHAPE["num_frames"], SHAPE["height"] // 8, SHAPE["width"] // 8)

    @torch.no_grad()
    def run() -> torch.Tensor:
        scheduler = make_scheduler("ddim")
        scheduler.set_timesteps(steps)
        latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SHAPE["seed"]))
        for t in scheduler.timesteps:
            negative, positive = unet(torch.cat([latents] * 2), t, encoder_hidden_states=features, return_dict=False)[0].chunk(2)
            latents = scheduler.step(negative + GUIDANCE * (positive - negative), t, latents, return_dict=False)[0]
        return latents

    return run


if __name__ == "__main__":
    sys.exit(main())
