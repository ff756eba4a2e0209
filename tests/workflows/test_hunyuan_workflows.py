"""The HunyuanVideo workflows as files, through the engine, on tiny models of the real classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_hunyuan import tiny_image_to_video, tiny_image_to_video_15, tiny_text_to_video, tiny_text_to_video_15
from tiny_hunyuan_files import save_single_file

from invokeai_video_nodes.commands.run import RunRequest, prepare
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.mp4 import write_mp4
from invokeai_video_nodes.workflow_files import workflow_file, workflow_files
from invokeai_video_nodes.workflow_graph import WorkflowDraft, read_workflow, workflow_as_run
from invokeai_video_nodes.workflow_settings import parse_setting

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine, RunResult

STEMS = [path.stem for path in workflow_files() if path.stem.startswith("hunyuan_")]
FRAMES = 9
# workflow -> its model, and the clip's side in pixels
CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "hunyuan_text_to_video": (tiny_text_to_video, 32),
    "hunyuan_image_to_video": (lambda: tiny_image_to_video("token_replace"), 32),
    "hunyuan_video_to_video": (tiny_text_to_video, 32),
    "hunyuan_15_text_to_video": (tiny_text_to_video_15, 64),
    "hunyuan_15_image_to_video": (tiny_image_to_video_15, 64),
}
LATENTS = "hunyuan_latents_to_video"


@pytest.fixture(scope="module")
def keys(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The installed model of each workflow, made when it is first asked for."""

    class Installed(dict[str, str]):
        def __missing__(self, stem: str) -> str:
            folder = tmp_path_factory.mktemp("hunyuan") / stem
            CASES[stem][0]().save_pretrained(folder)
            self[stem] = engine.install(folder)
            return self[stem]

    return Installed()


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture, start.png, and a video of FRAMES + 3 frames, start.mp4, of 64x64."""
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES + 3, 64, 64, 3), dtype=np.uint8)
    Image.fromarray(frames[0]).save(tmp_path / "start.png")
    write_mp4((frame for frame in frames), tmp_path / "start.mp4", width=64, height=64, fps=8)
    return tmp_path


def settings(stem: str, key: str, media: Path) -> list[str]:
    """Small settings of a workflow, as a person types them."""
    chosen = [f"loader.model={key}", "denoise.steps=2"]
    if "image_to" in stem:
        size, own = "{}.value", [f"image.image={media / 'start.png'}", f"denoise.num_frames={FRAMES}"]
    elif stem == "hunyuan_video_to_video":
        size, own = "encode.{}", [f"encode.video={media / 'start.mp4'}", f"encode.num_frames={FRAMES}"]
    else:
        size, own = "denoise.{}", [f"denoise.num_frames={FRAMES}"]
    return [*chosen, *own, *(f"{size.format(name)}={CASES[stem][1]}" for name in ("width", "height"))]


def run(engine: Engine, draft: WorkflowDraft, texts: list[str]) -> RunResult:
    request = RunRequest(draft=draft, settings=[parse_setting(text) for text in texts])
    return engine.run(prepare(request, engine), workflow=workflow_as_run(draft))


def test_every_hunyuan_workflow_is_run_here() -> None:
    assert set(STEMS) <= {*CASES, LATENTS}


@pytest.mark.parametrize("stem", STEMS)
def test_the_form_has_a_place_for_every_part_that_a_model_in_one_file_lacks(stem: str) -> None:
    elements = json.loads(workflow_file(stem).read_text(encoding="utf-8"))["form"]["elements"].values()
    fields = [element["data"]["fieldIdentifier"] for element in elements if element["type"] == "node-field"]

    assert {field["fieldName"] for field in fields if field["nodeId"] == "loader"} == {"model", "encoder_source", "vae_model"}


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem != LATENTS])
def test_a_file_runs_and_leaves_its_workflow_with_the_video(stem: str, engine: Engine, keys: dict[str, str], media: Path) -> None:
    result = run(engine, read_workflow(workflow_file(stem)), settings(stem, keys[stem], media))

    assert len(result.videos) == 1
    assert result.videos[0].stat().st_size > 500
    assert result.outputs["decode"]["num_frames"] == FRAMES
    assert (result.outputs["decode"]["width"], result.outputs["decode"]["height"]) == (CASES[stem][1],) * 2
    stored = json.loads(engine.services.videos.get_workflow(result.videos[0].name))
    shipped = json.loads(workflow_file(stem).read_text(encoding="utf-8"))
    inputs = {node["id"]: node["data"].get("inputs") for node in stored["nodes"]}
    assert (stored["name"], stored["edges"]) == (shipped["name"], shipped["edges"])
    assert inputs["denoise"]["steps"]["value"] == 2
    assert inputs["loader"]["model"]["value"]["key"] == keys[stem]


@pytest.mark.parametrize(("width", "height", "nearest"), [(100, 60, (96, 64)), (108, 60, (112, 64))])
def test_any_video_becomes_a_clip_of_the_nearest_frames_and_size(
    engine: Engine, keys: dict[str, str], tmp_path: Path, width: int, height: int, nearest: tuple[int, int]
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (12, height, width, 3), dtype=np.uint8)
    write_mp4(iter(frames), tmp_path / "any.mp4", width=width, height=height, fps=8)
    stem = "hunyuan_video_to_video"
    chosen = [f"loader.model={keys[stem]}", "denoise.steps=2", f"encode.video={tmp_path / 'any.mp4'}"]

    decoded = run(engine, read_workflow(workflow_file(stem)), chosen).outputs["decode"]

    assert (decoded["num_frames"], decoded["width"], decoded["height"]) == (9, *nearest)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("decode.tile_size=8", "tile_size: expected 0 or a multiple of 8 pixels from 64 on, got 8 (nearest valid value: 64)"),
        ("decode.tile_frames=7", "tile_frames: expected 0 or a multiple of 4 frames from 8 on, got 7 (nearest valid value: 8)"),
    ],
)
def test_a_tile_that_no_vae_can_take_is_refused_before_the_run(engine: Engine, keys: dict[str, str], setting: str, message: str) -> None:
    stem = "hunyuan_text_to_video"
    request = RunRequest(
        draft=read_workflow(workflow_file(stem)),
        settings=[parse_setting(text) for text in (f"loader.model={keys[stem]}", setting)],
    )

    with pytest.raises(BadInput, match=re.escape(message) + "$"):
        prepare(request, engine)


@pytest.mark.parametrize(("stem", "width"), [("hunyuan_text_to_video", 20), ("hunyuan_15_text_to_video", 16)])
def test_a_lora_chosen_in_the_form_changes_the_clip(
    stem: str, width: int, engine: Engine, keys: dict[str, str], media: Path, tmp_path: Path
) -> None:
    factors = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    name = "transformer.transformer_blocks.0.attn.to_q"
    weights = {f"{name}.lora_A.weight": factors, f"{name}.lora_B.weight": 3 * factors.T.contiguous()}
    save_file(weights, tmp_path / "style.safetensors", metadata={"modelspec.architecture": "hunyuan-video"})
    lora = engine.install(tmp_path / "style.safetensors")

    def latents(loras: str) -> torch.Tensor:
        draft = read_workflow(workflow_file(stem))
        result = run(engine, draft, [*settings(stem, keys[stem], media), f"LoRAs.loras={loras}"])
        stored = engine.services.tensors.load(result.outputs["denoise"]["latents"]["latents_name"])
        return stored.as_subclass(torch.Tensor)

    plain, styled, again = latents("[]"), latents(lora), latents("[]")
    stronger = latents(json.dumps([{"lora": lora, "weight": 1.5}]))

    assert (styled - plain).abs().max() > 1e-3
    assert (stronger - styled).abs().max() > 1e-3
    assert torch.equal(plain, again), "and the weights are back in place afterwards"


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem == LATENTS])
def test_the_clip_of_a_failed_decode_is_made_from_the_name_in_its_message(
    stem: str, engine: Engine, keys: dict[str, str], media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from invokeai_video_nodes.headless import NodeError

    text = "hunyuan_text_to_video"

    def breaks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the card fell off the bus")

    with monkeypatch.context() as patched, pytest.raises(NodeError, match="fell off the bus") as failed:
        patched.setattr("invokeai_video_nodes.nodes.vae.decode_video", breaks)
        run(engine, read_workflow(workflow_file(text)), settings(text, keys[text], media))
    name = re.search(r"clip-[0-9a-f]{32}\.safetensors", str(failed.value))
    assert name, str(failed.value)

    kept = engine.root / "outputs" / "video-latents"
    single = engine.install(save_single_file(tmp_path / "single.safetensors", CASES[text][0]().transformer, layout="original"))
    models = ([f"loader.model={keys[text]}"], [f"loader.model={single}", f"loader.encoder_source={keys[text]}"])
    results = [run(engine, read_workflow(workflow_file(stem)), [*chosen, f"load.name={name[0]}"]) for chosen in models]

    assert [result.outputs["decode"]["num_frames"] for result in results] == [FRAMES, FRAMES]
    assert [len(result.videos) for result in results] == [1, 1]
    assert (kept / name[0]).is_file(), "until somebody deletes it, as the notes say"
    assert max(kept.iterdir(), key=lambda path: path.stat().st_mtime).name == name[0], "the newest one, as the notes say"
