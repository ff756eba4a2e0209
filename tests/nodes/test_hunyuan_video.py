"""HunyuanVideo through InvokeAI's own graph engine, bit for bit against diffusers' pipelines on the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hunyuan_graphs import NEGATIVE, PROMPT, SMALL, hunyuan_video
from PIL import Image
from tiny_hunyuan import tiny_image_to_video, tiny_image_to_video_15, tiny_text_to_video, tiny_text_to_video_15

from invokeai_video_nodes.pipelines.hunyuan_video.denoise import extra_frames

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

STEPS, SEED, FRAMES = SMALL["steps"], SMALL["seed"], SMALL["num_frames"]
KINDS: dict[str, Callable[[], Any]] = {
    "text": tiny_text_to_video,
    "latent_concat": lambda: tiny_image_to_video("latent_concat"),
    "token_replace": lambda: tiny_image_to_video("token_replace"),
    "text 1.5": lambda: tiny_text_to_video_15(scale=3.0),
    "image 1.5": lambda: tiny_image_to_video_15(scale=3.0),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hunyuan") / kind.replace(" ", "-")
    KINDS[kind]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(engine: Engine, folder: Path) -> dict[str, Any]:
    key = engine.install(folder)
    record = engine.services.model_manager.store.get_model(key)
    return {name: getattr(record, name) for name in ("key", "hash", "name", "base", "type")}


def test_the_graph_equals_diffusers_pipeline_bit_for_bit(
    engine: Engine, kind: str, folder: Path, model: dict[str, Any], upload: Callable[..., dict[str, str]]
) -> None:
    pipeline = type(KINDS[kind]()).from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    side, is_15 = (64, True) if "1.5" in kind else (32, False)
    scale = 3.0 if is_15 else 2.0
    picture = Image.fromarray((np.arange(side * side * 3).reshape(side, side, 3) * 7 % 256).astype(np.uint8))
    image = None if "text" in kind else upload(picture)

    size = {"width": side, "height": side, "true_cfg_scale": scale}
    result = engine.run(hunyuan_video(model, image=image, sees=not is_15, negative=NEGATIVE, denoise=size))
    name = result.outputs["denoise"]["latents"]["latents_name"]
    ours = engine.services.tensors.load(name).as_subclass(torch.Tensor)

    extra = extra_frames(kind if not is_15 else None, generation="1.0")
    options: dict[str, Any] = {} if is_15 else {"true_cfg_scale": scale, "guidance_scale": 5.0}
    if "text" in kind or not is_15:
        options |= {"height": side, "width": side}
    if kind in ("latent_concat", "token_replace"):
        from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import picture_template

        options["prompt_template"] = picture_template(pipeline.text_encoder.config)
    theirs = pipeline(
        *([] if image is None else [picture]),
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=FRAMES + extra,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **options,
    ).frames
    assert torch.equal(ours[:, :, extra // 4 :], theirs)
    assert result.outputs["decode"]["num_frames"] == FRAMES
    assert (result.outputs["decode"]["width"], result.outputs["decode"]["height"]) == (side, side)


def test_the_record_knows_how_a_start_picture_enters(engine: Engine, kind: str, model: dict[str, Any]) -> None:
    record = engine.services.model_manager.store.get_model(model["key"])

    assert record.generation == ("1.5" if "1.5" in kind else "1.0")
    assert record.condition == {"text": None, "text 1.5": None, "image 1.5": "latent_concat"}.get(kind, kind)
    assert record.latent_channels == 4


def test_a_start_image_where_none_belongs_or_none_where_one_does_is_refused(
    engine: Engine, kind: str, model: dict[str, Any], upload: Callable[..., dict[str, str]]
) -> None:
    from invokeai_video_nodes.headless import NodeError

    wrong = upload(np.zeros((64, 64, 3), np.uint8)) if "text" in kind else None
    graph = hunyuan_video(model, image=wrong, denoise={"width": 64, "height": 64})

    with pytest.raises(NodeError, match="start image: expected"):
        engine.run(graph)
