"""Names of the original HunyuanVideo release against diffusers' own converter, at the public width."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from tiny_hunyuan import tiny_transformer

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video import keys

WIDTH = 3072  # diffusers' converter knows no other


@pytest.fixture(scope="module")
def public() -> dict[str, torch.Tensor]:
    """Shapes of the public model with one block of each kind, without memory."""
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1)
    return model.state_dict()


def original_layout(weights: dict[str, torch.Tensor], *, width: int) -> dict[str, torch.Tensor]:
    """The original layout of a diffusers state dict: what `keys.split` takes apart, put together."""
    count = len({name.split(".")[1] for name in weights if name.startswith("transformer_blocks.")})
    names = list(keys.TOP_LAYERS)
    for blocks, layers in keys.ORIGINAL_BLOCKS.items():
        names += [f"{blocks}.{index}.{layer}" for index in range(1 if "refiner" in blocks else count) for layer in layers]
    found = {}
    for name in names:
        for ending in (".weight", ".bias"):
            parts = [weights[part + ending] for part in keys.layer_names(name) if part + ending in weights]
            if parts:
                whole = torch.cat(parts)
                found[name + ending] = torch.cat(whole.chunk(2)[::-1]) if name == "final_layer.adaLN_modulation.1" else whole
    return found


def test_every_layer_of_the_public_model_has_an_original_name(public):
    original = original_layout(public, width=WIDTH)

    renamed = keys.to_diffusers_keys(original, width=WIDTH)

    assert {name: value.shape for name, value in renamed.items()} == {name: value.shape for name, value in public.items()}


def test_names_and_shapes_are_those_of_diffusers_converter(public):
    original = original_layout(public, width=WIDTH)
    theirs = convert_hunyuan_video_transformer_to_diffusers(dict(original))

    ours = keys.to_diffusers_keys(original, width=WIDTH)

    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_values_come_back_as_they_were(prefix):
    weights = tiny_transformer().state_dict()
    original = {prefix + name: value for name, value in original_layout(weights, width=20).items()}

    renamed = keys.to_diffusers_keys(original, width=20)

    assert keys.is_original(original) and not keys.is_original(weights)
    assert renamed.keys() == weights.keys()
    assert all(torch.equal(renamed[name], weights[name]) for name in weights)


def test_a_layer_that_no_such_model_has_is_named():
    with pytest.raises(BadInput, match=r"got double_blocks\.0\.img_attn_qkvz\.weight"):
        keys.to_diffusers_keys({"double_blocks.0.img_attn_qkvz.weight": torch.zeros(3, 1)}, width=1)
