"""Parts of HunyuanVideo from several models: video VAEs of their own, shared encoders, and every combination that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from graphs import Graph, add, connect, disconnect, picture
from hunyuan_graphs import loader_graph, refused_unloaded
from tiny_hunyuan import tiny_image_to_video, tiny_image_to_video_15, tiny_text_to_video, tiny_text_to_video_15, tiny_vae
from tiny_hunyuan_files import config_of, original_vae_15, save_single_file, save_weights

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

Install = Callable[..., dict[str, Any]]


@pytest.fixture
def install(engine: Engine) -> Install:
    """Install a file or folder and return the value of a model field."""
    return lambda path, **config: engine.model(engine.install(path, config=config or None))


@pytest.fixture(scope="module")
def folders(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Whole folders of each kind, as values of a model field."""
    kinds = {
        "text": tiny_text_to_video,
        "token_replace": lambda: tiny_image_to_video("token_replace"),
        "latent_concat": lambda: tiny_image_to_video("latent_concat"),
        "text 1.5": tiny_text_to_video_15,
        "image 1.5": tiny_image_to_video_15,
    }
    found = {}
    for kind, make in kinds.items():
        path = tmp_path_factory.mktemp("folders") / kind.replace(" ", "-")
        make().save_pretrained(path)
        found[kind] = engine.model(engine.install(path))
    return found


@pytest.fixture(scope="module")
def files(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Transformers in single files, as values of a model field."""
    transformers = {
        "text": tiny_text_to_video().transformer,
        "token_replace": tiny_image_to_video("token_replace").transformer,
        "text 1.5": tiny_text_to_video_15().transformer,
        "image 1.5": tiny_image_to_video_15().transformer,
    }
    folder = tmp_path_factory.mktemp("files")
    return {
        kind: engine.model(engine.install(save_single_file(folder / f"{kind}.safetensors", transformer)))
        for kind, transformer in transformers.items()
    }


def make_vae(path: Path, vae: Any, *, form: str) -> Path:
    """Write a VAE as a folder, or as a file in one of the layouts."""
    if form == "folder":
        vae.save_pretrained(path)
        return path
    weights = vae.state_dict()
    if form == "original" and not isinstance(vae, AutoencoderKLHunyuanVideo):
        weights = original_vae_15(weights)
    prefix = "vae." if form == "original" else ""
    return save_weights(path.with_suffix(".safetensors"), {prefix + name: value for name, value in weights.items()}, config=config_of(vae))


@pytest.mark.parametrize("form", ["folder", "diffusers", "original"])
@pytest.mark.parametrize("generation", ["1.0", "1.5"])
def test_a_vae_of_its_own_decodes_as_that_of_the_folder(
    engine: Engine, install: Install, tmp_path: Path, generation: str, form: str
) -> None:
    vae = tiny_vae() if generation == "1.0" else tiny_text_to_video_15().vae
    field = install(make_vae(tmp_path / "vae", vae, form=form))
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    record = engine.services.model_manager.store.get_model(field["key"])
    loaded = engine.services.model_manager.load.load_model(record).model

    assert (record.type.value, record.generation, record.latent_channels) == ("video_vae", generation, 4)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents).sample, vae.decode(latents).sample)
    assert loaded.config.scaling_factor == vae.config.scaling_factor


def test_a_vae_from_its_own_loader_or_from_the_model_loader_s_field_turns_latents_into_a_video(
    engine: Engine, install: Install, folders: dict[str, dict[str, Any]], files: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    vae = install(make_vae(tmp_path / "vae", tiny_vae(), form="original"))
    graph = loader_graph(files["text"], encoder_source=folders["text"], vae_model=vae)
    add(graph, "vae", "video_vae_loader", model=vae)
    add(graph, "prompt", "hunyuan_video_text_encoder", prompt="a red circle")
    add(graph, "denoise", "hunyuan_video_denoise", num_frames=5, width=32, height=32, steps=1)
    add(graph, "decode", "video_vae_decode")
    connect(graph, "model.encoder", "prompt.encoder")
    connect(graph, "model.transformer", "denoise.transformer")
    connect(graph, "model.shift", "denoise.shift")
    connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
    connect(graph, "denoise.latents", "decode.latents")
    connect(graph, "vae.vae", "decode.vae")

    by_node = engine.run(graph)
    disconnect(graph, "decode.vae")
    connect(graph, "model.vae", "decode.vae")
    by_field = engine.run(graph)

    assert by_node.outputs["vae"]["vae"]["vae"] == {**vae, "submodel_type": "vae"}
    assert by_field.outputs["model"]["vae"]["vae"]["key"] == vae["key"]
    assert by_field.outputs["model"]["shift"] == 7.0
    assert [run.outputs["decode"]["num_frames"] for run in (by_node, by_field)] == [5, 5]


def test_encoders_and_vae_come_from_the_encoder_source(
    engine: Engine, folders: dict[str, dict[str, Any]], files: dict[str, dict[str, Any]]
) -> None:
    output = engine.run(loader_graph(files["image 1.5"], encoder_source=folders["image 1.5"])).outputs["model"]

    condition = output["encoder"].pop("condition")
    keys = {part: field["key"] for part, field in output["encoder"].items()}
    assert condition == "latent_concat"
    assert set(keys.values()) == {folders["image 1.5"]["key"]}
    assert output["vae"]["vae"]["key"] == folders["image 1.5"]["key"]
    assert output["transformer"]["transformer"]["key"] == files["image 1.5"]["key"]


@pytest.mark.parametrize("kind", ["token_replace", "image 1.5"])
def test_an_image_to_video_file_with_shared_encoders_makes_the_folder_s_clip_bit_for_bit(
    latents_of: Callable[[Graph], torch.Tensor],
    upload: Callable[..., dict[str, str]],
    folders: dict[str, dict[str, Any]],
    files: dict[str, dict[str, Any]],
    kind: str,
) -> None:
    image = upload(picture())

    def clip(model: dict[str, Any], **loader: Any) -> torch.Tensor:
        graph = loader_graph(model, **loader)
        add(graph, "prompt", "hunyuan_video_text_encoder", prompt="a square", **({"image": image} if kind == "token_replace" else {}))
        add(graph, "start", "hunyuan_video_image_encoder", image=image, width=64, height=64)
        add(graph, "denoise", "hunyuan_video_denoise", num_frames=9, width=64, height=64, steps=2, seed=3)
        connect(graph, "model.encoder", "prompt.encoder")
        connect(graph, "model.encoder", "start.encoder")
        connect(graph, "model.vae", "start.vae")
        connect(graph, "model.transformer", "denoise.transformer")
        connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
        connect(graph, "start.start_image", "denoise.start_image")
        return latents_of(graph)

    assert torch.equal(clip(files[kind], encoder_source=folders[kind]), clip(folders[kind]))


def test_a_text_to_video_file_of_the_second_generation_takes_the_encoders_of_image_to_video(
    engine: Engine, folders: dict[str, dict[str, Any]], files: dict[str, dict[str, Any]]
) -> None:
    output = engine.run(loader_graph(files["text 1.5"], encoder_source=folders["image 1.5"])).outputs["model"]

    assert output["encoder"]["image_encoder"] is None


def test_a_single_file_without_encoders_is_refused_naming_the_field(engine: Engine, files: dict[str, dict[str, Any]]) -> None:
    message = refused_unloaded(engine, loader_graph(files["text"]))

    assert "Encoder Source: expected text encoders chosen in this node" in message
    assert "holds the transformer only, got none" in message


@pytest.mark.parametrize(
    ("model", "source", "expected"),
    [
        ("text", "text 1.5", "expected encoders of HunyuanVideo 1.0"),
        ("text 1.5", "text", "expected encoders of HunyuanVideo 1.5"),
        ("text", "token_replace", "expected encoders for text to video"),
        ("token_replace", "latent_concat", "expected encoders for image to video by token_replace"),
        ("image 1.5", "text 1.5", "expected encoders for image to video by latent_concat"),
    ],
)
def test_encoders_of_another_kind_are_refused(
    engine: Engine, folders: dict[str, dict[str, Any]], files: dict[str, dict[str, Any]], model: str, source: str, expected: str
) -> None:
    assert f"Encoder Source: {expected}" in refused_unloaded(engine, loader_graph(files[model], encoder_source=folders[source]))


def test_a_single_file_lends_no_encoders(engine: Engine, files: dict[str, dict[str, Any]]) -> None:
    message = refused_unloaded(engine, loader_graph(files["text"], encoder_source=files["text"]))

    assert "Encoder Source: expected text encoders or a complete HunyuanVideo folder, got 'text', a single file" in message


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_text_encoder_of_another_width_is_refused_by_its_config(
    engine: Engine, install: Install, files: dict[str, dict[str, Any]], tmp_path: Path, as_folder: bool
) -> None:
    tiny_text_to_video().save_pretrained(tmp_path / "wide")
    path = tmp_path / "wide" / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 24}))
    source = install(tmp_path / "wide")

    graph = loader_graph(source) if as_folder else loader_graph(files["text"], encoder_source=source)

    assert "text encoder: expected a text encoder of 16 features per token" in refused_unloaded(engine, graph)


@pytest.mark.parametrize("case", ["generation", "channels", "kind"])
def test_a_vae_that_does_not_fit_is_refused(
    engine: Engine, install: Install, folders: dict[str, dict[str, Any]], tmp_path: Path, case: str
) -> None:
    if case == "generation":
        vae = install(make_vae(tmp_path / "vae", tiny_text_to_video_15().vae, form="folder"))
        expected = "VAE: expected HunyuanVideo 1.0 with 4 latent channels"
    elif case == "channels":
        torch.manual_seed(0)
        other = AutoencoderKLHunyuanVideo(latent_channels=8, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
        vae = install(make_vae(tmp_path / "vae", other, form="folder"))
        expected = "of HunyuanVideo 1.0 with 8"
    else:
        vae, expected = folders["token_replace"], "VAE: expected a video VAE, got"

    assert expected in refused_unloaded(engine, loader_graph(folders["text"], vae_model=vae))


def test_the_vae_of_an_encoder_source_that_does_not_fit_is_refused(
    engine: Engine, install: Install, files: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    pipeline = tiny_text_to_video()
    transformer = type(pipeline.transformer)(**{**dict(pipeline.transformer.config), "in_channels": 8, "out_channels": 8})
    pipeline.register_modules(transformer=transformer)
    pipeline.save_pretrained(tmp_path / "eight")

    message = refused_unloaded(engine, loader_graph(files["text"], encoder_source=install(tmp_path / "eight")))

    assert "VAE of the Encoder Source: expected HunyuanVideo 1.0 with 4 latent channels" in message


def test_a_model_that_is_no_vae_is_refused_by_the_vae_loader(engine: Engine, folders: dict[str, dict[str, Any]]) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "vae", "video_vae_loader", model=folders["text"])

    assert "VAE: expected a video VAE, got 'text' of type main" in refused_unloaded(engine, graph)


def test_a_config_path_that_leads_nowhere_is_refused_when_the_model_is_used(
    engine: Engine, folders: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from invokeai.app.services.model_records.model_records_base import ModelRecordChanges

    key = engine.install(save_single_file(tmp_path / "single.safetensors", tiny_text_to_video().transformer))
    engine.services.model_manager.store.update_model(key, ModelRecordChanges(config_path="gone.json"), allow_class_change=True)

    message = refused_unloaded(engine, loader_graph(engine.model(key), encoder_source=folders["text"]))

    assert "config path: expected a config.json of a transformer" in message and "gone.json" in message


def test_latents_of_other_channels_are_refused_by_the_record_before_the_vae_is_loaded(
    engine: Engine, install: Install, tmp_path: Path
) -> None:
    from invokeai.app.invocations.fields import LatentsField

    vae = install(make_vae(tmp_path / "vae", tiny_vae(), form="diffusers"))
    name = engine.services.tensors.save(torch.zeros(1, 16, 2, 4, 4))
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "vae", "video_vae_loader", model=vae)
    add(graph, "decode", "video_vae_decode", latents=LatentsField(latents_name=name).model_dump())
    connect(graph, "vae.vae", "decode.vae")

    assert "VAE: expected 16 latent channels, got 'vae' with 4" in refused_unloaded(engine, graph)


def test_the_pickers_offer_what_fits_and_nothing_else(engine: Engine) -> None:
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    def picker(node: str, field: str) -> tuple[Any, ...]:
        schema = InvocationRegistry.get_invocation_for_type(node).model_json_schema()["properties"][field]
        return tuple(schema.get(f"ui_model_{what}") for what in ("base", "type", "format"))

    base = ["hunyuan-video"]
    assert picker("hunyuan_video_model_loader", "model") == (base, ["main"], None)
    assert picker("hunyuan_video_model_loader", "vae_model") == (base, ["video_vae"], None)
    assert picker("hunyuan_video_model_loader", "encoder_source") == (base, ["main", "video_text_encoders"], ["diffusers"])
    assert picker("video_vae_loader", "model") == (base, ["video_vae"], None)


def test_a_folder_whose_vae_is_broken_is_refused_when_it_is_installed(engine: Engine, tmp_path: Path) -> None:
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    folder = make_vae(tmp_path / "vae", tiny_vae(), form="folder")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    empty = shutil.copytree(folder, tmp_path / "empty")
    (empty / "diffusion_pytorch_model.safetensors").unlink()

    refused = [[str(error) for error in ModelConfigFactory.from_model_on_disk(path).invalid_matches] for path in (folder, empty)]

    assert "truncated" in refused[0][0]
    assert "expected weights beside config.json" in refused[1][0]
