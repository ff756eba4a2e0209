"""A HunyuanVideo transformer in one file, with the encoders of a folder, makes the folder's clip: to the bit, or within its precision."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from graphs import Graph, add, connect, disconnect
from tiny_hunyuan import tiny_image_to_video
from tiny_hunyuan_files import (
    config_of,
    public_shapes,
    save_gguf,
    save_scaled_fp8,
    save_single_file,
    save_weights,
    wide_text_to_video,
    wide_text_to_video_15,
    write_hollow,
)

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

LatentsOf = Callable[[Graph], torch.Tensor]
# The largest relative error of one weight: half of the last place of e4m3's 3 bits, and of the 127 steps of Q8_0's largest.
# Through two blocks and two steps of a random model it must stay of that order in the clip.
FP8_ERROR, Q8_ERROR, Q4_ERROR = 2.0**-4, 0.5 / 127, 0.5 / 7


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return wide_text_to_video()


@pytest.fixture(scope="module")
def folder(engine: Engine, pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole pipeline, as the value of a model field."""
    path = tmp_path_factory.mktemp("hunyuan") / "whole"
    pipeline.save_pretrained(path)
    return engine.model(engine.install(path))


def text_to_video(model: dict[str, Any], **loader: Any) -> Graph:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "model", "hunyuan_video_model_loader", model=model, **loader)
    add(graph, "prompt", "hunyuan_video_text_encoder", prompt="a red circle moves to the right")
    add(graph, "denoise", "hunyuan_video_denoise", num_frames=9, width=64, height=32, steps=2, seed=3, guidance_scale=5.0)
    connect(graph, "model.encoder", "prompt.encoder")
    connect(graph, "model.transformer", "denoise.transformer")
    connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
    return graph


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of that of the expected latents."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("layout", "prefix"), [("diffusers", ""), ("original", "model.diffusion_model."), ("original", ""), ("repackaged", "model.model.")]
)
def test_a_file_of_each_layout_makes_the_folder_s_clip_bit_for_bit(
    engine: Engine, latents_of: LatentsOf, folder: dict[str, Any], pipeline: Any, tmp_path: Path, layout: str, prefix: str
) -> None:
    path = save_single_file(tmp_path / "single.safetensors", pipeline.transformer, layout=layout, prefix=prefix)
    model = engine.model(engine.install(path))

    single = latents_of(text_to_video(model, encoder_source=folder))

    assert torch.equal(single, latents_of(text_to_video(folder)))


def test_a_file_in_half_precision_makes_nearly_that_clip(
    engine: Engine, latents_of: LatentsOf, folder: dict[str, Any], pipeline: Any, tmp_path: Path
) -> None:
    expected = latents_of(text_to_video(folder))
    errors = {}
    for dtype in (torch.float16, torch.bfloat16):
        path = save_single_file(tmp_path / f"{dtype}.safetensors", pipeline.transformer, layout="original", dtype=dtype)
        model = engine.model(engine.install(path))
        errors[dtype] = relative_error(latents_of(text_to_video(model, encoder_source=folder)), expected)
    print("relative error of half precision:", errors)

    assert 0 < errors[torch.float16] <= 2.0**-11
    assert 0 < errors[torch.bfloat16] <= 2.0**-8


@pytest.mark.parametrize(("layout", "scale"), [("original", "scale_weight"), ("diffusers", "weight_scale")])
def test_an_fp8_file_with_scales_makes_that_clip_within_fp8_s_precision_and_says_that_it_was_opened(
    engine: Engine,
    latents_of: LatentsOf,
    folder: dict[str, Any],
    pipeline: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    layout: str,
    scale: str,
) -> None:
    path = save_scaled_fp8(tmp_path / "scaled.safetensors", pipeline.transformer, layout=layout, scale=scale)
    model = engine.model(engine.install(path))
    with heard(caplog):
        found = latents_of(text_to_video(model, encoder_source=folder))
    error = relative_error(found, latents_of(text_to_video(folder)))
    print(f"relative error of fp8: {error:.2e}")

    assert 0 < error <= FP8_ERROR
    assert any("fp8 weights of" in line and "opened as torch.float32" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("layout", "kind", "bound"),
    [
        ("original", "Q8_0", Q8_ERROR),
        ("diffusers", "Q8_0", Q8_ERROR),
        ("original", "Q4_0", Q4_ERROR),
        ("original", "BF16", 2.0**-8),
        ("original", "F16", 2.0**-11),
    ],
)
def test_a_gguf_file_makes_that_clip_within_its_precision(
    engine: Engine,
    latents_of: LatentsOf,
    folder: dict[str, Any],
    pipeline: Any,
    tmp_path: Path,
    layout: str,
    kind: str,
    bound: float,
) -> None:
    model = engine.model(engine.install(save_gguf(tmp_path / "quantized.gguf", pipeline.transformer, kind=kind, layout=layout)))

    error = relative_error(latents_of(text_to_video(model, encoder_source=folder)), latents_of(text_to_video(folder)))
    print(f"relative error of {kind}: {error:.2e}")

    assert 0 < error <= bound


def test_fused_weights_of_a_gguf_stay_quantized_and_share_their_memory(engine: Engine, pipeline: Any, tmp_path: Path) -> None:
    key = engine.install(save_gguf(tmp_path / "quantized.gguf", pipeline.transformer))

    model, loader = load_transformer(engine, key)

    attention = model.transformer_blocks[0].attn
    parts = [attention.to_q.weight.quantized_data, attention.to_k.weight.quantized_data, attention.to_v.weight.quantized_data]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    assert {part.dtype for part in parts} == {torch.uint8}
    matrices = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.in_features % 32 == 0]
    opened = [weight for weight in matrices if not hasattr(weight, "quantized_data")]
    # Only the last modulation, whose halves change places, is opened.
    assert len(opened) == 1 and opened[0] is model.norm_out.linear.weight


def test_a_gguf_file_takes_loras_and_is_as_before_without_them(
    engine: Engine, latents_of: LatentsOf, folder: dict[str, Any], pipeline: Any, tmp_path: Path
) -> None:
    model = engine.model(engine.install(save_gguf(tmp_path / "quantized.gguf", pipeline.transformer)))
    generator = torch.Generator().manual_seed(3)
    factors = {
        f"double_blocks.0.img_attn_qkv.lora_{side}.weight": torch.randn(size, generator=generator)
        for side, size in (("A", (4, 32)), ("B", (96, 4)))
    }
    save_weights(tmp_path / "lora.safetensors", factors, config=None)
    lora = engine.model(engine.install(tmp_path / "lora.safetensors", config={"base": "hunyuan-video", "type": "lora"}))
    graph = text_to_video(model, encoder_source=folder)
    add(graph, "lora", "hunyuan_video_lora_loader", lora=lora, weight=1.0)
    disconnect(graph, "denoise.transformer")
    connect(graph, "model.transformer", "lora.transformer")
    connect(graph, "lora.transformer", "denoise.transformer")

    before = latents_of(text_to_video(model, encoder_source=folder))
    changed = latents_of(graph)

    assert relative_error(changed, before) > 0.001
    assert torch.equal(latents_of(text_to_video(model, encoder_source=folder)), before)


@pytest.mark.parametrize("form", ["diffusers", "original", "gguf"])
def test_a_file_of_the_second_generation_makes_the_folder_s_clip(
    engine: Engine, latents_of: LatentsOf, tmp_path: Path, form: str
) -> None:
    pipeline = wide_text_to_video_15()
    pipeline.save_pretrained(tmp_path / "whole")
    folder = engine.model(engine.install(tmp_path / "whole"))
    if form == "gguf":
        path = save_gguf(tmp_path / "quantized.gguf", pipeline.transformer)
    else:
        path = save_single_file(tmp_path / "single.safetensors", pipeline.transformer, layout=form)
    model = engine.model(engine.install(path))

    def clip(graph: Graph) -> torch.Tensor:
        graph["nodes"]["denoise"].update(width=64, height=64)
        return latents_of(graph)

    found, expected = clip(text_to_video(model, encoder_source=folder)), clip(text_to_video(folder))
    error = relative_error(found, expected)
    print(f"relative error of {form} 1.5: {error:.2e}")

    assert 0 < error <= Q8_ERROR if form == "gguf" else torch.equal(found, expected)


def test_fp8_storage_in_the_record_s_default_settings_is_switched_on_for_a_single_file(
    engine: Engine, pipeline: Any, tmp_path: Path
) -> None:
    from invokeai.app.services.model_records.model_records_base import ModelRecordChanges

    key = engine.install(save_single_file(tmp_path / "single.safetensors", pipeline.transformer, layout="original"))
    plain, _ = load_transformer(engine, key, device="cuda")
    engine.services.model_manager.store.update_model(key, ModelRecordChanges(default_settings={"fp8_storage": True}))

    stored, _ = load_transformer(engine, key, device="cuda")

    assert {value.dtype for value in plain.parameters()} == {torch.float32}
    assert stored.transformer_blocks[0].attn.to_q.weight.dtype is torch.float8_e4m3fn
    assert stored.x_embedder.proj.weight.dtype is torch.float32
    hidden = torch.randn(1, 5, 32)
    assert torch.allclose(stored.transformer_blocks[0].attn.to_q(hidden), plain.transformer_blocks[0].attn.to_q(hidden), atol=0.2)


@pytest.mark.parametrize("by", ["config.json", "the word"])
def test_an_image_to_video_file_of_text_to_video_s_shape_is_told_by_the_config_path_of_its_record(
    engine: Engine, tmp_path: Path, by: str
) -> None:
    from invokeai.app.services.model_records.model_records_base import ModelRecordChanges

    transformer = tiny_image_to_video("token_replace").transformer
    (tmp_path / "config.json").write_text(json.dumps(config_of(transformer)))
    # A config that says nothing of images, as the file of an unnamed public checkpoint would be read.
    text_only = {**config_of(transformer), "image_condition_type": None}
    store = engine.services.model_manager.store
    key = engine.install(save_single_file(tmp_path / "single.safetensors", transformer, config=text_only))

    said = "token_replace" if by == "the word" else str(tmp_path / "config.json")
    before = store.get_model(key).condition
    store.update_model(key, ModelRecordChanges(config_path=said), allow_class_change=True)

    assert (before, store.get_model(key).condition) == (None, "token_replace")
    model, _ = load_transformer(engine, key)
    assert model.config.image_condition_type == "token_replace"


def test_a_word_that_the_file_s_channels_contradict_is_refused_before_weights_are_read(
    engine: Engine, pipeline: Any, tmp_path: Path
) -> None:
    from invokeai.app.services.model_records.model_records_base import ModelRecordChanges

    key = engine.install(save_gguf(tmp_path / "quantized.gguf", pipeline.transformer))
    engine.services.model_manager.store.update_model(key, ModelRecordChanges(config_path="latent_concat"), allow_class_change=True)

    with pytest.raises(ValueError, match="image condition: expected none or token_replace with 4 input channels, got latent_concat"):
        load_transformer(engine, key)


def test_a_public_file_of_equal_shapes_is_taken_for_text_to_video_and_the_log_says_so(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory
    from invokeai.backend.model_manager.model_on_disk import ModelOnDisk

    from invokeai_video_patches.configs_hunyuan_video import Main_Checkpoint_HunyuanVideo_Config

    file = ModelOnDisk(write_hollow(tmp_path / "public.safetensors", public_shapes("1.5")))
    fields = ModelConfigFactory.build_common_fields(file, {"hash": "of 15 GB of nothing"})
    with heard(caplog):
        record = Main_Checkpoint_HunyuanVideo_Config.from_model_on_disk(file, fields)

    assert (record.generation, record.condition, record.latent_channels) == ("1.5", None, 32)
    assert any("public.safetensors: taken for a text-to-video model" in line for line in caplog.messages)


def load_transformer(engine: Engine, key: str, *, device: str = "cpu") -> Any:
    """The transformer straight from its loader, which believes that the models run on `device`, and the loader."""
    from invokeai.backend.model_manager.load import ModelLoaderRegistry
    from invokeai.backend.model_manager.taxonomy import SubModelType

    record = engine.services.model_manager.store.get_model(key)
    implementation, _, _ = ModelLoaderRegistry.get_implementation(record, SubModelType.Transformer)
    services = engine.services
    loader = implementation(services.configuration, logging.getLogger("test"), services.model_manager.load.ram_cache)
    loader._torch_device = torch.device(device)
    return loader._load_model(record, SubModelType.Transformer), loader


def heard(caplog: pytest.LogCaptureFixture) -> Any:
    """InvokeAI's logger writes by itself; let pytest hear it."""
    import contextlib

    @contextlib.contextmanager
    def listening() -> Any:
        logger = logging.getLogger("InvokeAI")
        level = logger.level
        logger.addHandler(caplog.handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(caplog.handler)
            logger.setLevel(level)

    return listening()
