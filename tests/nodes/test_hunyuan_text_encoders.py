"""HunyuanVideo's text encoders as a model of their own: they make the complete folder's clip, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from graphs import Graph, add, connect, picture
from hunyuan_graphs import loader_graph, refused_unloaded
from tiny_hunyuan import tiny_image_to_video, tiny_image_to_video_15, tiny_text_to_video, tiny_text_to_video_15
from tiny_hunyuan_files import save_encoders, save_gguf, save_single_file, wide_text_to_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

Models = dict[str, dict[str, Any]]
KINDS: dict[str, Callable[[], Any]] = {
    "text": tiny_text_to_video,
    "token_replace": lambda: tiny_image_to_video("token_replace"),
    "latent_concat": lambda: tiny_image_to_video("latent_concat"),
    "text 1.5": tiny_text_to_video_15,
    "image 1.5": tiny_image_to_video_15,
    "gguf": wide_text_to_video,
}


@pytest.fixture(scope="module")
def models(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Models]:
    """Of each kind the complete folder, its transformer in one file, its VAE and its text encoders, as values of model fields."""
    return {kind: parts_of(engine, make(), tmp_path_factory.mktemp("kind"), kind) for kind, make in KINDS.items()}


def parts_of(engine: Engine, pipeline: Any, folder: Path, kind: str) -> Models:
    pipeline.save_pretrained(folder / "whole")
    pipeline.vae.save_pretrained(folder / "vae")
    save = save_gguf if kind == "gguf" else save_single_file
    paths = {
        "whole": folder / "whole",
        "vae": folder / "vae",
        "file": save(folder / ("file.gguf" if kind == "gguf" else "file.safetensors"), pipeline.transformer),
        "encoders": save_encoders(folder / "encoders", pipeline, with_scheduler=kind.endswith("1.5")),
    }
    return {part: engine.model(engine.install(path)) for part, path in paths.items()}


def clip_graph(model: dict[str, Any], *, image: dict[str, str] | None, sees: bool, **loader: Any) -> Graph:
    """A clip of 9 frames in 2 steps; `sees`: the language model looks at the picture too."""
    graph = loader_graph(model, **loader)
    add(graph, "prompt", "hunyuan_video_text_encoder", prompt="a red circle moves to the right", **({"image": image} if sees else {}))
    add(graph, "denoise", "hunyuan_video_denoise", num_frames=9, width=64, height=64, steps=2, seed=3)
    connect(graph, "model.encoder", "prompt.encoder")
    connect(graph, "model.transformer", "denoise.transformer")
    connect(graph, "model.shift", "denoise.shift")
    connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
    if image is not None:
        add(graph, "start", "hunyuan_video_image_encoder", image=image, width=64, height=64)
        connect(graph, "model.encoder", "start.encoder")
        connect(graph, "model.vae", "start.vae")
        connect(graph, "start.start_image", "denoise.start_image")
    return graph


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_file_with_vae_and_encoders_makes_the_clip_that_it_makes_with_the_complete_folder_bit_for_bit(
    latents_of: Callable[[Graph], torch.Tensor], upload: Callable[..., dict[str, str]], models: dict[str, Models], kind: str
) -> None:
    parts = models[kind]
    for_images = kind not in ("text", "text 1.5", "gguf")
    picked = {"image": upload(picture()) if for_images else None, "sees": for_images and kind != "image 1.5"}

    apart = latents_of(clip_graph(parts["file"], encoder_source=parts["encoders"], vae_model=parts["vae"], **picked))
    lent = latents_of(clip_graph(parts["file"], encoder_source=parts["whole"], **picked))

    assert torch.equal(apart, lent)
    assert apart.std() > 0


def test_the_encoders_are_of_the_classes_that_the_complete_folder_names(engine: Engine, models: dict[str, Models]) -> None:
    from invokeai.backend.model_manager.taxonomy import SubModelType

    def classes(kind: str, part: str) -> list[type]:
        record = engine.services.model_manager.store.get_model(models[kind][part]["key"])
        names = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"] + (["image_encoder"] if kind == "image 1.5" else [])
        load = engine.services.model_manager.load.load_model
        return [type(load(record, SubModelType(name)).model) for name in names]

    for kind in ("text", "token_replace", "image 1.5"):
        assert classes(kind, "encoders") == classes(kind, "whole")


def test_a_record_says_what_the_encoders_are_and_hands_out_nothing_else(engine: Engine, models: dict[str, Models]) -> None:
    from invokeai.backend.model_manager.taxonomy import SubModelType

    record = engine.services.model_manager.store.get_model(models["image 1.5"]["encoders"]["key"])

    assert (record.base.value, record.type.value, record.format.value) == ("hunyuan-video", "video_text_encoders", "diffusers")
    assert (record.generation, record.sees_images, record.text_features) == ("1.5", True, 16)
    with pytest.raises(ValueError, match="expected one of the parts text_encoder, .* got transformer"):
        engine.services.model_manager.load.load_model(record, SubModelType.Transformer)


def test_encoders_with_no_schedule_beside_them_give_the_public_shift_and_others_their_own(
    engine: Engine, models: dict[str, Models], tmp_path: Path
) -> None:
    def shift(kind: str, **fields: Any) -> float:
        parts = {**models[kind], **fields}
        graph = loader_graph(parts["file"], encoder_source=parts["encoders"], vae_model=parts["vae"])
        return float(engine.run(graph).outputs["model"]["shift"])

    bare = save_encoders(tmp_path / "bare", tiny_text_to_video_15())

    assert shift("text") == 7.0
    assert shift("text 1.5") == 7.0, "that of the schedule beside them"
    assert shift("text 1.5", encoders=engine.model(engine.install(bare))) == 5.0


def test_a_complete_folder_with_other_encoders_keeps_its_own_vae_and_schedule(engine: Engine, models: dict[str, Models]) -> None:
    parts = models["text"]

    output = engine.run(loader_graph(parts["whole"], encoder_source=parts["encoders"])).outputs["model"]

    assert output["vae"]["vae"]["key"] == parts["whole"]["key"]
    assert output["encoder"]["text_encoder"]["key"] == parts["encoders"]["key"]
    assert output["shift"] == 7.0


def test_a_text_to_video_file_of_the_second_generation_takes_encoders_that_see_images(engine: Engine, models: dict[str, Models]) -> None:
    fields = {"encoder_source": models["image 1.5"]["encoders"], "vae_model": models["text 1.5"]["vae"]}

    assert engine.run(loader_graph(models["text 1.5"]["file"], **fields)).outputs["model"]["encoder"]["image_encoder"] is None


def test_encoders_without_a_vae_are_refused_naming_the_field(engine: Engine, models: dict[str, Models]) -> None:
    message = refused_unloaded(engine, loader_graph(models["text"]["file"], encoder_source=models["text"]["encoders"]))

    assert "VAE: expected a video VAE chosen in this node, because 'encoders' holds text encoders only, got none" in message


@pytest.mark.parametrize(
    ("model", "source", "expected"),
    [
        ("text", "text 1.5", "expected encoders of HunyuanVideo 1.0, as 'file' is, got 'encoders' of HunyuanVideo 1.5"),
        ("text 1.5", "text", "expected encoders of HunyuanVideo 1.5"),
        ("text", "token_replace", "expected encoders for text to video, as 'file' is, got 'encoders' for image to video"),
        ("token_replace", "text", "expected encoders for image to video by token_replace, as 'file' is, got 'encoders' for text to video"),
        ("image 1.5", "text 1.5", "expected encoders for image to video by latent_concat"),
    ],
)
def test_encoders_of_another_kind_are_refused(engine: Engine, models: dict[str, Models], model: str, source: str, expected: str) -> None:
    fields = {"encoder_source": models[source]["encoders"], "vae_model": models[model]["vae"]}

    assert f"Encoder Source: {expected}" in refused_unloaded(engine, loader_graph(models[model]["file"], **fields))


def test_encoders_of_another_width_are_refused_by_their_record(engine: Engine, models: dict[str, Models], tmp_path: Path) -> None:
    wide = save_encoders(tmp_path / "wide", tiny_text_to_video())
    config = wide / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 24}))
    fields = {"encoder_source": engine.model(engine.install(wide)), "vae_model": models["text"]["vae"]}

    message = refused_unloaded(engine, loader_graph(models["text"]["file"], **fields))

    assert "text encoder: expected a text encoder of 16 features per token, as 'file' reads, got 24 in 'wide'" in message


@pytest.mark.parametrize(
    ("field", "part", "expected"),
    [
        ("model", "encoders", "video model: expected a HunyuanVideo model, got 'encoders' of type video_text_encoders"),
        ("vae_model", "encoders", "VAE: expected a video VAE, got 'encoders' of type video_text_encoders"),
        ("encoder_source", "vae", "Encoder Source: expected text encoders or a complete HunyuanVideo folder, got 'vae', of type video_vae"),
    ],
)
def test_a_model_in_a_field_that_is_not_for_it_is_refused(
    engine: Engine, models: dict[str, Models], field: str, part: str, expected: str
) -> None:
    parts = models["text"]
    fields = {"model": parts["file"], "encoder_source": parts["encoders"], "vae_model": parts["vae"], field: parts[part]}

    assert expected in refused_unloaded(engine, loader_graph(**fields))


def test_a_folder_that_lacks_a_part_is_refused_when_it_is_installed(engine: Engine, tmp_path: Path) -> None:
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    folder = save_encoders(tmp_path / "lacking", tiny_text_to_video_15())
    shutil.rmtree(folder / "tokenizer_2")

    result = ModelConfigFactory.from_model_on_disk(folder)

    assert result.config is None
    assert ["missing: tokenizer_2/" in str(error) for error in result.invalid_matches] == [True]


@pytest.mark.parametrize("kind", ["qwen3_encoder", "qwen_vl_encoder", "t5_encoder"])
def test_invokeai_s_own_encoders_stay_its_own(engine: Engine, tmp_path: Path, kind: str) -> None:
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    folder = OTHERS[kind](tmp_path / "other")

    result = ModelConfigFactory.from_model_on_disk(folder)

    assert result.config is not None and result.config.type.value == kind
    assert not result.invalid_matches


def save_qwen3(folder: Path) -> Path:
    """A Qwen3 encoder with its tokenizer, as InvokeAI's starter models leave it; InvokeAI knows it by its width."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 1024, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=32, head_dim=8, **sizes)).save_pretrained(folder / "text_encoder")
    tiny_text_to_video().tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def save_qwen_vl(folder: Path) -> Path:
    """The language model of the second generation as InvokeAI knows it: whole, with its tokenizer, and nothing beside it."""
    pipeline = tiny_text_to_video_15()
    pipeline.text_encoder.save_pretrained(folder / "text_encoder")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["Qwen2_5_VLForConditionalGeneration"]}))
    return folder


def save_t5(folder: Path) -> Path:
    """A T5 encoder in shards with its tokenizer, under the names that FLUX gives them."""
    pipeline = tiny_text_to_video_15()
    pipeline.text_encoder_2.save_pretrained(folder / "text_encoder_2", max_shard_size="5KB")
    pipeline.tokenizer_2.save_pretrained(folder / "tokenizer_2")
    return folder


OTHERS = {"qwen3_encoder": save_qwen3, "qwen_vl_encoder": save_qwen_vl, "t5_encoder": save_t5}
