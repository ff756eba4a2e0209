"""Shortcuts for tests that run graphs: latents out, images in, probes of what lies in the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from graphs import Graph, without_decode
from PIL import Image

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1.5 in diffusers' layout."""
    from tiny_sd1 import tiny_sd1

    folder = tmp_path_factory.mktemp("sd1") / "tiny-sd1"
    tiny_sd1().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion module of its UNet, with v2's structure, as diffusers' MotionAdapter."""
    from tiny_sd1 import save_motion_module

    return save_motion_module(tmp_path_factory.mktemp("motion") / "tiny-motion")


@pytest.fixture(scope="session")
def sd1(engine: Engine, sd1_folder: Path) -> dict[str, Any]:
    """The tiny Stable Diffusion 1.5 as the value of a model field."""
    return engine.model(engine.install(sd1_folder))


@pytest.fixture(scope="session")
def motion(engine: Engine, motion_folder: Path) -> dict[str, Any]:
    """The tiny motion module as the value of a model field."""
    return engine.model(engine.install(motion_folder))


@pytest.fixture
def conditioning(engine: Engine) -> Callable[[torch.Tensor], dict[str, str]]:
    """Store embeddings [1, tokens, 768] as InvokeAI's prompt node does; the value of a conditioning field."""

    def put(embeddings: torch.Tensor) -> dict[str, str]:
        from invokeai.backend.stable_diffusion.diffusion.conditioning_data import BasicConditioningInfo, ConditioningFieldData

        stored = ConditioningFieldData(conditionings=[BasicConditioningInfo(embeds=embeddings)])
        return {"conditioning_name": engine.services.conditioning.save(stored)}

    return put


@pytest.fixture
def latents_of(engine: Engine) -> Callable[[Graph], torch.Tensor]:
    """Run a graph up to its denoise node and return the latents [1, C, F, h, w]."""

    def run(graph: Graph) -> torch.Tensor:
        result = engine.run(without_decode(graph))
        name = result.outputs["denoise"]["latents"]["latents_name"]
        return engine.services.tensors.load(name).as_subclass(torch.Tensor)

    return run


@pytest.fixture
def conditioning_of(engine: Engine) -> Callable[[str, dict[str, Any]], torch.Tensor]:
    """Encode a prompt with InvokeAI's own prompt node and return its features [n, d]."""

    def encode(prompt: str, model: dict[str, Any]) -> torch.Tensor:
        from graphs import text_to_video

        graph = without_decode(text_to_video(model, prompt=prompt))
        graph["nodes"].pop("denoise")
        graph["edges"] = [e for e in graph["edges"] if e["destination"]["node_id"] != "denoise"]
        name = engine.run(graph).outputs["prompt"]["conditioning"]["conditioning_name"]
        return engine.services.conditioning.load(name).conditionings[0].prompt_embeds

    return encode


@pytest.fixture
def upload(engine: Engine) -> Callable[..., dict[str, str]]:
    """Put a picture into the gallery and return the value of an image field; arrays are uint8 [H, W, 3]."""

    def put(picture: np.ndarray | Image.Image) -> dict[str, str]:
        from invokeai.app.services.image_records.image_records_common import ImageCategory, ResourceOrigin

        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        record = engine.services.images.create(image=image, image_origin=ResourceOrigin.EXTERNAL, image_category=ImageCategory.USER)
        return {"image_name": record.image_name}

    return put


@pytest.fixture
def leftovers(engine: Engine) -> Callable[[], list[Path]]:
    """What a clean gallery must not hold: unfinished files, and video files without a record."""

    def look() -> list[Path]:
        outputs = engine.root / "outputs"
        unfinished = [path for path in (outputs / "unfinished-videos").glob("*") if path.is_file()]
        known = set(engine.services.video_records.get_video_names().video_names)
        unknown = [path for path in (outputs / "videos").glob("*.mp4") if path.name not in known]
        return unfinished + [path for path in unknown if not path.name.endswith(".h265.mp4")]

    return look


@pytest.fixture
def video_count(engine: Engine) -> Callable[[], int]:
    """How many videos the gallery lists."""
    return lambda: len(engine.services.video_records.get_video_names().video_names)


@pytest.fixture
def refusal(engine: Engine, leftovers: Callable[[], list[Path]], video_count: Callable[[], int]) -> Callable[[Graph], str]:
    """Run a graph that must fail in a node, check that gallery and cache are as before, and return the node's message."""

    def run(graph: Graph) -> str:
        from invokeai_video_nodes.headless import NodeError

        before = video_count()
        with pytest.raises(NodeError) as caught:
            engine.run(graph)
        assert video_count() == before and not leftovers()
        cache = engine.services.model_manager.load.ram_cache._cached_models
        assert not [key for key, entry in cache.items() if entry.is_locked]
        return caught.value.message

    return run
