"""Claim: the denoise node takes at most 5% longer than the bare loop over diffusers' classes.

Both run in this process with the same weights and prompt, the models warm, 50 steps, the node with its preview
pictures. They take turns, and each turn gives one ratio; the median of the ratios is judged. Without `--model` the
transformer is a random one of about 6 million parameters, twice the toy's: a step then takes a tenth of a second on one
core, far less than a real model's. Wall seconds are judged where the machine is free; where more wants to run than it
has processors, wall seconds tell of the others, so processor seconds are judged then. Both are printed.

    python benchmarks/denoise_overhead.py [--model FOLDER] [--steps 50] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "patches"), str(ROOT / "tests")]

BOUND = 1.05
SHAPE = {"num_frames": 16, "width": 96, "height": 96, "f_patch_size": 2, "seed": 1}


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        return _compare(arguments.model or _random_model(Path(folder) / "model"), Path(folder) / "root", arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="diffusers folder; default: random weights")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _random_model(folder: Path) -> Path:
    from tiny_models import make_tiny_z_image_video, tiny_transformer

    make_tiny_z_image_video(folder)
    tiny_transformer(dim=192, n_layers=6).save_pretrained(folder / "transformer")
    return folder


def _compare(model: Path, root: Path, arguments: argparse.Namespace) -> int:
    from graphs import text_to_video

    from invokeai_video_nodes.headless import Engine

    with Engine(root, log_level="error", settings={"node_cache_size": 0}) as engine:
        field = engine.model(engine.install(model))
        first = engine.run(text_to_video(field, denoise={**SHAPE, "steps": 1}))
        node = _denoise_node(first.outputs, steps=arguments.steps)
        bare = _bare_loop(model, engine, first.outputs, steps=arguments.steps)
        runs = {"node": lambda: node.invoke(engine.context(node)), "bare": bare}
        for run in runs.values():
            run()
        times = take_turns(runs, arguments.repeats)
        graph = text_to_video(field, denoise={**SHAPE, "steps": arguments.steps})
        whole = seconds(lambda: engine.run(graph))
    return report(times, whole, arguments.steps)


def _denoise_node(outputs: dict[str, Any], *, steps: int) -> Any:
    from invokeai_video_nodes.nodes.denoise_z_image import ZImageVideoDenoiseInvocation

    return ZImageVideoDenoiseInvocation(
        id="denoise",
        transformer=outputs["model"]["transformer"],
        positive_conditioning=outputs["prompt"]["conditioning"],
        steps=steps,
        **SHAPE,
    )


def _bare_loop(model: Path, engine: Any, outputs: dict[str, Any], *, steps: int) -> Callable[[], Any]:
    """What somebody would write with diffusers alone, from the same prompt, noise and weights."""
    import numpy as np
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel.from_pretrained(model / "transformer", dtype=torch.float32).eval()
    name = outputs["prompt"]["conditioning"]["conditioning_name"]
    caption = engine.services.conditioning.load(name).conditionings[0].prompt_embeds.float()
    size = (SHAPE["num_frames"], SHAPE["height"] // 8, SHAPE["width"] // 8)
    shape = (1, transformer.config.in_channels, *size)

    @torch.no_grad()
    def run() -> torch.Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model / "scheduler")
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
        latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SHAPE["seed"]))
        for t in scheduler.timesteps:
            time_left = (1000 - t.expand(1)) / 1000
            sizes = {"patch_size": 2, "f_patch_size": SHAPE["f_patch_size"], "return_dict": False}
            prediction = transformer([latents[0]], time_left, [caption], **sizes)[0][0]
            latents = scheduler.step(-prediction[None], t, latents, return_dict=False)[0]
        return latents

    return run


def take_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return times


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds and this process's processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def report(times: dict[str, list[tuple[float, float]]], whole: tuple[float, float], steps: int) -> int:
    wall, processor = (
        statistics.median(node[kind] / bare[kind] for node, bare in zip(times["node"], times["bare"], strict=True)) for kind in (0, 1)
    )
    typical = [statistics.median(column) for column in zip(*times["bare"], strict=True)]
    more = statistics.median((node[1] - bare[1]) for node, bare in zip(times["node"], times["bare"], strict=True))
    is_busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    judged, kind = (processor, "processor") if is_busy else (wall, "wall")
    print(
        f"denoise node against bare loop, {steps} steps: {kind} ratio {judged:.3f} (bound {BOUND}); wall {wall:.3f} of"
        f" {typical[0]:.2f} s, processor {processor:.3f} of {typical[1]:.2f} s ({more / steps * 1000:.1f} ms more per step)"
    )
    print(
        f"whole graph, prompt to MP4 in the gallery: {whole[0]:.2f} s; ratio to bare loop: wall {whole[0] / typical[0]:.3f},"
        f" processor {whole[1] / typical[1]:.3f}"
    )
    return 0 if judged <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
