"""The workflows of AnimateDiff and Stable Video Diffusion as files, through the engine, on tiny models of the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_sd1 import save_motion_module, tiny_sd1, tiny_sd1_controlnet, tiny_sd1_unet
from tiny_svd import tiny_svd

from invokeai_video_nodes.commands.run import RunRequest, prepare
from invokeai_video_nodes.pipelines.mp4 import write_mp4
from invokeai_video_nodes.workflow_files import workflow_file, workflow_files
from invokeai_video_nodes.workflow_graph import read_workflow, workflow_as_run
from invokeai_video_nodes.workflow_settings import parse_setting

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine, RunResult

STEMS = [path.stem for path in workflow_files() if path.stem.startswith(("animate", "svd_"))]
SIDE = 64
# workflow -> frames of its clip here; more than 32 are made in windows
FRAMES = {
    "animatediff_text_to_video": 8,
    "animatelcm_text_to_video": 8,
    "animatediff_video_to_video": 8,
    "animatediff_prompt_travel": 34,
    "animatediff_seamless_loop": 24,
    "svd_image_to_video": 6,
    "svd_picture_to_video": 6,
}
_TRAVEL = "0: a red circle\n33: a blue square"
Keys = dict[str, str]


@pytest.fixture(scope="module")
def keys(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The installed models: main, v3, animatelcm, lora, controlnet, svd."""
    folder = tmp_path_factory.mktemp("sd1")
    tiny_sd1().save_pretrained(folder / "main")
    save_motion_module(folder / "v3", "v3")
    save_motion_module(folder / "animatelcm", "animatelcm")
    tiny_sd1_controlnet().save_pretrained(folder / "controlnet")
    tiny_svd().save_pretrained(folder / "svd")
    save_file(_lora(), folder / "lora.safetensors")
    return {name: engine.install(folder / name) for name in ("main", "v3", "animatelcm", "controlnet", "svd")} | {
        "lora": engine.install(folder / "lora.safetensors")
    }


def _lora() -> dict[str, torch.Tensor]:
    """A LoRA of the tiny UNet, as the trainers of InvokeAI's users write them."""
    name, generator = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 768), (tiny_sd1_unet().config.block_out_channels[0], 4)))
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture, start.png, and a video of 20 frames, start.mp4; frame n has a white bar at column 3 n."""
    frames = np.zeros((20, SIDE, SIDE, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[16:48, 3 * number : 3 * number + 4] = 255
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / "start.png")
    write_mp4(iter(frames), tmp_path / "start.mp4", width=SIDE, height=SIDE, fps=8)
    return tmp_path


def settings(stem: str, keys: Keys, media: Path) -> list[str]:
    """Small settings of a workflow, as a person types them."""
    frames, size = FRAMES[stem], {"width": SIDE, "height": SIDE}
    sized = {f"denoise.{name}": value for name, value in size.items()}
    animated: dict[str, Any] = {"main.model": keys["main"], "loader.motion_module": keys["v3"]}
    clip = {"denoise.num_frames": frames}
    chosen: dict[str, dict[str, Any]] = {
        "animatediff_text_to_video": {**animated, **sized, **clip},
        "animatelcm_text_to_video": {**animated, **sized, **clip, "loader.motion_module": keys["animatelcm"], "lora.lora": keys["lora"]},
        "animatediff_video_to_video": {
            **animated,
            "frames.video": media / "start.mp4",
            "frames.limit": frames,
            "control.control_model": keys["controlnet"],
            **{f"encode.{name}": value for name, value in size.items()},
        },
        "animatediff_prompt_travel": {**animated, **sized, "num_frames.value": frames, "schedule.prompts": _TRAVEL},
        "animatediff_seamless_loop": {**animated, **sized, **clip},
        "svd_image_to_video": {
            "loader.model": keys["svd"],
            "start.image": media / "start.png",
            "start.size": "own",
            **{f"start.{name}": value for name, value in size.items()},
            **clip,
        },
        "svd_picture_to_video": {
            "main.model": keys["main"],
            "loader.model": keys["svd"],
            "sketch.image": media / "start.png",
            "draw.steps": 2,
            "start.size": "own",
            **{f"{node}.{name}": value for node in ("sketch", "start") for name, value in size.items()},
            **clip,
        },
    }
    return [f"{name}={value}" for name, value in {**chosen[stem], "denoise.steps": 2}.items()]


def run(engine: Engine, stem: str, texts: list[str]) -> RunResult:
    request = RunRequest(draft=read_workflow(workflow_file(stem)), settings=[parse_setting(text) for text in texts])
    return engine.run(prepare(request, engine), workflow=workflow_as_run(request.draft))


def test_every_workflow_of_the_two_families_is_run_here() -> None:
    assert sorted(FRAMES) == STEMS


@pytest.mark.parametrize("stem", FRAMES)
def test_a_file_runs_and_leaves_its_workflow_with_the_video(stem: str, engine: Engine, keys: Keys, media: Path) -> None:
    result = run(engine, stem, settings(stem, keys, media))

    assert len(result.videos) == 1
    assert result.videos[0].stat().st_size > 500
    decoded = result.outputs["decode"]
    assert (decoded["num_frames"], decoded["width"], decoded["height"]) == (FRAMES[stem], SIDE, SIDE)
    stored = json.loads(engine.services.videos.get_workflow(result.videos[0].name))
    shipped = json.loads(workflow_file(stem).read_text(encoding="utf-8"))
    inputs = {node["id"]: node["data"].get("inputs") for node in stored["nodes"]}
    assert (stored["name"], stored["edges"]) == (shipped["name"], shipped["edges"])
    assert inputs["denoise"]["steps"]["value"] == 2


def test_each_frame_s_edges_come_back_in_the_frames_order(engine: Engine, keys: Keys, media: Path) -> None:
    stem = "animatediff_video_to_video"
    result = run(engine, stem, settings(stem, keys, media))

    names = [image["image_name"] for image in result.outputs["all_edges"]["collection"]]
    columns = [np.asarray(engine.services.images.get_pil_image(name).convert("L")).nonzero()[1].mean() for name in names]
    assert len(columns) == FRAMES[stem]
    assert columns == sorted(columns) and columns[-1] - columns[0] == pytest.approx(3 * (FRAMES[stem] - 1), abs=2)


def _latents(engine: Engine, result: RunResult) -> torch.Tensor:
    return engine.services.tensors.load(result.outputs["denoise"]["latents"]["latents_name"]).as_subclass(torch.Tensor)


def test_a_picture_is_drawn_anew_before_it_moves_and_lies_in_the_gallery(engine: Engine, keys: Keys, media: Path) -> None:
    stem = "svd_picture_to_video"
    kept, drawn = (run(engine, stem, [*settings(stem, keys, media), f"draw.denoising_start={start}"]) for start in (0.9, 0.0))

    assert not torch.equal(_latents(engine, kept), _latents(engine, drawn))
    assert [len(result.images) for result in (kept, drawn)] == [1, 1]
