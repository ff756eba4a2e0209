"""SVD's original single file makes the clip that the folder makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from svd_graphs import image_to_video, start_picture, with_diffusers
from tiny_svd import tiny_svd
from tiny_svd_files import save_original

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture
def latents_from(engine: Engine, upload: Callable[..., dict[str, str]]) -> Callable[..., torch.Tensor]:
    """The clip's latents made by the model at a path, decoded as well."""

    def run(path: Path, **settings: Any) -> torch.Tensor:
        model: dict[str, Any] = engine.model(engine.install(path))
        outputs = engine.run(image_to_video(model, upload(start_picture()), denoise=settings)).outputs
        assert outputs["decode"]["num_frames"] == settings.get("num_frames", 14)
        return engine.services.tensors.load(outputs["denoise"]["latents"]["latents_name"]).as_subclass(torch.Tensor)

    return run


@pytest.mark.parametrize("embedder", [True, False], ids=["whole", "stripped of the conditioner's encoder"])
def test_the_file_makes_the_clip_of_diffusers_pipeline_bit_for_bit(latents_from: Any, tmp_path: Path, embedder: bool) -> None:
    pipeline = tiny_svd(seed=5)
    path = save_original(tmp_path / "svd.safetensors", pipeline, embedder=embedder)

    assert torch.equal(latents_from(path), with_diffusers(pipeline).transpose(1, 2))


def test_the_file_makes_the_folder_s_clip(latents_from: Any, tmp_path: Path) -> None:
    """Not to the last bit: diffusers leaves a folder's weights where they lie in the file, and kernels round differently there.

    The first of few steps goes from sigma 700 almost to the end, and multiplies that; ten steps are as a run has them.
    """
    pipeline = tiny_svd(seed=7)
    pipeline.save_pretrained(tmp_path / "folder")
    path = save_original(tmp_path / "svd.safetensors", pipeline)
    short = {"steps": 10, "num_frames": 4}

    assert torch.allclose(latents_from(path, **short), latents_from(tmp_path / "folder", **short), rtol=0, atol=1e-5)


def test_loading_a_part_reads_that_part_s_tensors_alone(engine: Engine, latents_from: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from invokeai_video_patches import loaders_svd

    read: dict[str, set[str]] = {}
    inner = loaders_svd.sizes.load_part

    def watched(part: str, weights: dict[str, torch.Tensor], config: Any) -> Any:
        read[part] = {name.split(".")[0] for name in weights}
        return inner(part, weights, config)

    monkeypatch.setattr(loaders_svd.sizes, "load_part", watched)
    latents_from(save_original(tmp_path / "svd.safetensors", tiny_svd(seed=6)), num_frames=4)

    assert read == {"unet": {"model"}, "vae": {"first_stage_model", "conditioner"}, "image_encoder": {"conditioner"}}
