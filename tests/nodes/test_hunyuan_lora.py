"""LoRAs in every layout through the graph engine: as if merged, several at once, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from graphs import Graph, add, disconnect
from hunyuan_graphs import hunyuan_video, refused_unloaded
from hunyuan_lora_files import LAYOUTS, File, lora_factors, merged
from safetensors.torch import save_file
from tiny_hunyuan import tiny_text_to_video
from tiny_hunyuan_files import save_gguf, save_single_file, wide_text_to_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

BASE = {"base": "hunyuan-video"}


@pytest.fixture(scope="module")
def weights() -> File:
    return tiny_text_to_video().transformer.state_dict()


@pytest.fixture(scope="module")
def install(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Install the tiny model, with other transformer weights where they are given."""

    def put(name: str, changed: File | None = None) -> dict[str, Any]:
        pipeline = tiny_text_to_video()
        if changed is not None:
            pipeline.transformer.load_state_dict(changed)
        folder = tmp_path_factory.mktemp("models") / name
        pipeline.save_pretrained(folder)
        return engine.model(engine.install(folder))

    return put


@pytest.fixture(scope="module")
def model(install: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return install("base")


@pytest.fixture
def lora(engine: Engine, tmp_path: Path) -> Callable[..., str]:
    """Write a LoRA file, install it with its base set by hand, and return its key."""

    def put(name: str, file: File) -> str:
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous().clone() for key, value in file.items()}, path)
        return engine.install(path, BASE)

    return put


@pytest.fixture(scope="module")
def as_merged(engine: Engine, weights: File, install: Callable[..., dict[str, Any]]) -> torch.Tensor:
    """The clip of a model that has the LoRA in its weights, at weight 0.5."""
    model = install("merged", merged(weights, lora_factors(weights), strength=0.5))
    name = engine.run(hunyuan_video(model)).outputs["denoise"]["latents"]["latents_name"]
    return engine.services.tensors.load(name).as_subclass(torch.Tensor)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_clip_of_the_merged_weights(
    model: dict[str, Any], weights: File, lora: Any, as_merged: torch.Tensor, latents_of: Callable[[Graph], torch.Tensor], layout: str
) -> None:
    key = lora(layout, LAYOUTS[layout](lora_factors(weights)))

    clip = latents_of(hunyuan_video(model, loras={key: 0.5}))

    assert float((clip - as_merged).abs().max()) <= 1e-5
    assert float((clip - latents_of(hunyuan_video(model))).abs().max()) > 1e-3


def test_the_loader_says_how_many_keys_matched(engine: Engine, model: dict[str, Any], weights: File, lora: Any) -> None:
    file = LAYOUTS["kohya"](lora_factors(weights))
    key = lora("partly", {**file, "lora_te1_text_model_encoder.lora_down.weight": torch.zeros(4, 4)})

    outputs = engine.run(hunyuan_video(model, loras={key: 0.5})).outputs

    assert outputs["lora0"]["matched"] == [f"partly: matched {len(file)} of {len(file) + 1} keys"]


def test_two_at_once_are_both_merged(
    model: dict[str, Any],
    weights: File,
    lora: Any,
    install: Callable[..., dict[str, Any]],
    latents_of: Callable[[Graph], torch.Tensor],
) -> None:
    first, second = lora_factors(weights), lora_factors(weights, seed=2)
    both = install("both", merged(merged(weights, first, strength=0.5), second, strength=-0.25))
    loras = {lora("first", LAYOUTS["original"](first)): 0.5, lora("second", LAYOUTS["kohya"](second)): -0.25}

    clip = latents_of(hunyuan_video(model, loras=loras))

    assert float((clip - latents_of(hunyuan_video(both))).abs().max()) <= 1e-5


def test_afterwards_the_models_weights_are_bit_identical(
    engine: Engine, model: dict[str, Any], weights: File, lora: Any, latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    without = latents_of(hunyuan_video(model))
    key = lora("passing", LAYOUTS["diffusers"](lora_factors(weights)))
    latents_of(hunyuan_video(model, loras={key: 1.0}))

    cached = engine.services.model_manager.load.ram_cache._cached_models
    (entry,) = [entry for name, entry in cached.items() if model["key"] in name and "transformer" in name]
    now = entry.cached_model.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    assert torch.equal(latents_of(hunyuan_video(model)), without)


def test_a_file_that_flux_could_own_too_is_refused_until_the_base_is_chosen(engine: Engine, weights: File, tmp_path: Path) -> None:
    path = tmp_path / "whose.safetensors"
    factors = {"double_blocks.1.img_attn_qkv": lora_factors(weights)["double_blocks.1.img_attn_qkv"]}
    save_file({key: value.clone() for key, value in LAYOUTS["kohya"](factors).items()}, path)

    with pytest.raises(Exception, match="fits HunyuanVideo and FLUX alike: choose the base by hand"):
        engine.install(path)
    assert engine.install(path, BASE)


def test_a_lora_for_another_model_is_refused_by_its_loader_before_anything_is_loaded(
    engine: Engine, install: Callable[..., dict[str, Any]], lora: Any
) -> None:
    model = install("untouched")
    factors = {"double_blocks.19.img_attn_proj": (torch.zeros(4, 20), torch.zeros(20, 4))}
    wide = {"double_blocks.0.img_attn_proj": (torch.zeros(4, 40), torch.zeros(20, 4))}

    second = {"double_blocks.0.img_attn_q": (torch.zeros(4, 2048), torch.zeros(2048, 4))}

    def refusal_of(name: str, factors: Any) -> str:
        return refused_unloaded(engine, hunyuan_video(model, loras={lora(name, LAYOUTS["original"](factors)): 1.0}))

    missing, misshapen, other = refusal_of("larger", factors), refusal_of("wider", wide), refusal_of("second", second)

    assert "LoRA 'larger': expected layers that 'untouched' has, got transformer_blocks.19.attn.to_out.0, which it lacks" in missing
    assert "LoRA 'wider': expected one for a model of the size of 'untouched', 20x20 in transformer_blocks.0.attn.to_out.0" in misshapen
    assert "LoRA 'second': expected one for HunyuanVideo 1.0, as 'untouched' is, got one for HunyuanVideo 1.5" in other


def test_a_lora_that_is_put_on_without_its_loader_is_refused_under_its_record_s_name(
    model: dict[str, Any], lora: Any, refusal: Callable[[Graph], str]
) -> None:
    key = lora("past the loader", LAYOUTS["original"]({"double_blocks.0.img_attn_proj": (torch.zeros(4, 40), torch.zeros(20, 4))}))
    graph = hunyuan_video(model)
    identity = {"key": key, "hash": "", "name": "lora 0", "base": "hunyuan-video", "type": "lora"}
    transformer = {"transformer": {**model, "submodel_type": "transformer"}, "loras": [{"lora": identity, "weight": 1.0}]}
    disconnect(graph, "denoise.transformer")
    graph["nodes"]["denoise"]["transformer"] = transformer

    assert "LoRA 'past the loader': expected one for a model of the size of 'base'" in refusal(graph)


@pytest.mark.parametrize("save", [save_single_file, save_gguf])
def test_a_single_file_says_by_its_header_which_loras_fit_it(
    engine: Engine, install: Callable[..., dict[str, Any]], lora: Any, tmp_path: Path, save: Callable[..., Path]
) -> None:
    transformer = wide_text_to_video().transformer
    single = engine.model(engine.install(save(tmp_path / f"one{'.gguf' if save is save_gguf else '.safetensors'}", transformer)))
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    right = {"double_blocks.0.img_attn_proj": (torch.zeros(4, width), torch.zeros(width, 4))}
    wrong = {"double_blocks.0.img_attn_proj": (torch.zeros(4, width + 1), torch.zeros(width, 4))}

    def loader(key: str) -> Graph:
        identity = {"key": key, "hash": "", "name": "any", "base": "hunyuan-video", "type": "lora"}
        graph: Graph = {"nodes": {}, "edges": []}
        field = {"transformer": {**single, "submodel_type": "transformer"}, "loras": []}
        add(graph, "lora", "hunyuan_video_lora_loader", lora=identity, transformer=field)
        return graph

    matched = engine.run(loader(lora("right", LAYOUTS["original"](right)))).outputs["lora"]["matched"]
    message = refused_unloaded(engine, loader(lora("wrong", LAYOUTS["original"](wrong))))

    assert matched == ["right: matched 3 of 3 keys"]
    assert f"LoRA 'wrong': expected one for a model of the size of '{single['name']}', {width}x{width} in" in message


def test_a_lora_whose_file_is_gone_is_told_in_plain_words(engine: Engine, model: dict[str, Any], weights: File, lora: Any) -> None:
    key = lora("gone", LAYOUTS["original"](lora_factors(weights)))
    Path(engine.services.configuration.models_path, engine.services.model_manager.store.get_model(key).path).unlink()

    message = refused_unloaded(engine, hunyuan_video(model, loras={key: 1.0}))

    assert "LoRA 'gone': expected the file gone.safetensors, as the model manager notes it, got no such file" in message


def test_a_lora_whose_file_was_cut_off_is_told_in_plain_words(engine: Engine, model: dict[str, Any], weights: File, lora: Any) -> None:
    key = lora("cut", LAYOUTS["original"](lora_factors(weights)))
    path = Path(engine.services.configuration.models_path, engine.services.model_manager.store.get_model(key).path)
    path.write_bytes(path.read_bytes()[:-4])

    message = refused_unloaded(engine, hunyuan_video(model, loras={key: 1.0}))

    assert "LoRA 'cut': expected a whole safetensors file, got cut.safetensors, which is damaged" in message


def test_a_transformer_of_another_family_is_refused_by_the_lora_loader(
    engine: Engine, tiny_model: dict[str, Any], weights: File, lora: Any
) -> None:
    identity = {"key": lora("fine", LAYOUTS["original"](lora_factors(weights))), "hash": "", "name": "", "base": "any", "type": "lora"}
    graph: Graph = {"nodes": {}, "edges": []}
    field = {"transformer": {**tiny_model, "submodel_type": "transformer"}, "loras": []}
    add(graph, "lora", "hunyuan_video_lora_loader", lora=identity, transformer=field)

    assert "transformer: expected a model of base hunyuan-video, got 'tiny-video'" in refused_unloaded(engine, graph)


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), 11.0, -11.0])
def test_a_weight_that_no_queue_could_store_is_refused_before_the_run(engine: Engine, model: dict[str, Any], weight: float) -> None:
    collected: Graph = {"nodes": {}, "edges": []}
    identity = {"key": "any", "hash": "", "name": "mine", "base": "hunyuan-video", "type": "lora"}
    add(collected, "loras", "hunyuan_video_lora_collection_loader", loras=[{"lora": identity, "weight": weight}])

    with pytest.raises(ValueError, match="weight"):
        engine.run(hunyuan_video(model, loras={"any": weight}))
    with pytest.raises(ValueError, match="weight of LoRA 'mine': expected -10 to 10"):
        engine.run(collected)


def test_the_same_lora_twice_is_refused(model: dict[str, Any], weights: File, lora: Any, refusal: Callable[[Graph], str]) -> None:
    key = lora("twice", LAYOUTS["original"](lora_factors(weights)))
    graph = hunyuan_video(model, loras={key: 1.0, "other": 1.0})
    graph["nodes"]["lora1"]["lora"]["key"] = key

    assert "LoRA: expected each LoRA once" in refusal(graph)


def test_a_lora_of_another_family_is_refused(model: dict[str, Any], tiny_model: dict[str, Any], refusal: Callable[[Graph], str]) -> None:
    assert "LoRA: expected a model of base hunyuan-video" in refusal(hunyuan_video(model, loras={tiny_model["key"]: 1.0}))
