"""LoRA files of every layout against merged weights, and whose LoRA a file is."""

import copy

import pytest
import torch
from hunyuan_lora_files import LAYOUTS, lora_factors, merged, original
from tiny_hunyuan import tiny_transformer

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.lora import check_fit, count_matched, generation_of, read_lora, recognise, sizes_in
from invokeai_video_nodes.pipelines.hunyuan_video.sizes import layer_sizes


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny_transformer().state_dict()


@pytest.fixture(scope="module")
def factors(weights) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return lora_factors(weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_changes_the_weights_as_merging_the_original_would(weights, factors, layout):
    lora = read_lora(LAYOUTS[layout](factors))

    assert lora.layout == layout
    assert (lora.matched, lora.total) == (lora.total, lora.total)
    expected = merged(weights, factors)
    changed = copy.deepcopy(weights)
    for name, values in lora.layers.items():
        scale = float(values["alpha"]) / values["lora_down.weight"].shape[0]
        changed[f"{name}.weight"] += scale * values["lora_up.weight"] @ values["lora_down.weight"]
    assert all(torch.allclose(changed[name], expected[name], atol=1e-5) for name in weights)
    assert sum(not torch.equal(expected[name], weights[name]) for name in weights) == len(lora.layers)


def test_keys_of_other_parts_are_counted_as_not_matched(factors):
    file = original(factors) | {"text_encoder.layers.0.mlp.lora_A.weight": torch.zeros(4, 4)}

    lora = read_lora(file)

    assert (lora.matched, lora.total) == (len(file) - 1, len(file))


def test_a_file_of_another_model_is_refused_with_the_layout_that_was_recognised():
    with pytest.raises(BadInput, match="none in a file of the kohya layout .lora_unet_down_blocks_0"):
        read_lora({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    ("names", "base"),
    [
        (["diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight"], "hunyuan-video"),
        (["double_blocks.0.img_attn.qkv.lora_A.weight"], "flux"),
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], None),
        (["lora_unet_double_blocks_19_img_attn_qkv.lora_down.weight"], "hunyuan-video"),
        (["lora_unet_double_blocks_0_img_mlp_0.lora_down.weight"], "flux"),
        (["lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight"], "hunyuan-video"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], None),
        (["transformer.single_transformer_blocks.38.attn.to_q.lora_A.weight"], "hunyuan-video"),
        ([f"transformer.transformer_blocks.{n}.attn.to_q.lora_A.weight" for n in range(19)], "flux"),
        ([f"transformer.transformer_blocks.{n}.attn.to_q.lora_A.weight" for n in range(20)], "hunyuan-video"),
        (["transformer.context_embedder.token_refiner.refiner_blocks.0.attn.to_q.lora_A.weight"], "hunyuan-video"),
    ],
)
def test_whose_lora_it_is(names, base):
    assert recognise(names) == base


def test_what_the_file_says_of_itself_decides():
    names = ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"]

    assert recognise(names, {"modelspec.architecture": "hunyuan-video/lora"}) == "hunyuan-video"
    assert recognise(names, {"ss_base_model_version": "flux1"}) == "flux"
    with pytest.raises(BadInput, match="a file with LoRA factors"):
        recognise(["double_blocks.0.img_attn_qkv.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_fits_the_model_that_it_is_for_by_its_header_alone(weights, factors, layout):
    shapes = {name: tuple(value.shape) for name, value in LAYOUTS[layout](factors).items()}

    changed = sizes_in(shapes)

    assert len(changed) >= len(factors)
    check_fit(changed, layer_sizes(tiny_transformer()), lora="fits", model="tiny", generation="1.0")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("transformer_blocks.0.attn.to_q", (40, 40), "LoRA 'mine': expected one for a model of the size of 'tiny', 20x20 in .*for 40x40"),
        ("transformer_blocks.0.attn.to_x", (20, 20), "expected layers that 'tiny' has, got transformer_blocks.0.attn.to_x, which it lacks"),
        ("transformer_blocks.20.attn.to_q", (20, 20), "one for HunyuanVideo 1.0, as 'tiny' is, got one for HunyuanVideo 1.5"),
        ("transformer_blocks.0.attn.to_q", (2048, 2048), "one for HunyuanVideo 1.0, as 'tiny' is, got one for HunyuanVideo 1.5"),
        ("image_embedder.linear_1", (20, 20), "one for HunyuanVideo 1.0, as 'tiny' is, got one for HunyuanVideo 1.5"),
        ("transformer_blocks.0.attn.to_q", (3072, 3072), "expected one for a model of the size of 'tiny'"),
    ],
)
def test_a_lora_for_another_model_is_refused_in_plain_words(name, size, message):
    with pytest.raises(BadInput, match=message):
        check_fit({name: size}, layer_sizes(tiny_transformer()), lora="mine", model="tiny", generation="1.0")


@pytest.mark.parametrize(
    ("names", "generation"),
    [
        ({"single_transformer_blocks.0.attn.to_q": (20, 20)}, "1.0"),
        ({"transformer_blocks.3.attn.to_k": (3072, 3072)}, "1.0"),
        ({"transformer_blocks.3.attn.to_k": (20, 20)}, None),
        ({"transformer_blocks.3.ff.net.2": (3072, 2048)}, None),
    ],
)
def test_which_hunyuan_video_a_lora_is_for(names, generation):
    assert generation_of(names) == generation


@pytest.mark.parametrize("key", ["diffusion_model.double_blocks.2.img_attn_q", "lora_unet_double_blocks_2_img_attn_q"])
def test_layers_that_only_the_second_generation_names_are_matched(key):
    shapes = {f"{key}.lora_down.weight": (4, 2048), f"{key}.lora_up.weight": (2048, 4)}

    assert count_matched(shapes) == (2, 2)
    assert sizes_in(shapes) == {"transformer_blocks.2.attn.to_q": (2048, 2048)}
