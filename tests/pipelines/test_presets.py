import pytest
import torch
from tiny_models import original_keys, tiny_transformer, transformer_config

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.z_image.presets import (
    PUBLIC_6B,
    TransformerDims,
    build_transformer,
    f_patch_sizes_in,
    tile_embedders,
    to_diffusers_keys,
)

PUBLIC_NUMBERS = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": (32, 48, 48),
    "axes_lens": (1024, 512, 512),
}


def caption():
    return torch.randn(9, 32, generator=torch.Generator().manual_seed(0))


def predict(model, x, f_patch_size):
    with torch.no_grad():
        return model([x], torch.tensor([0.4]), [caption()], f_patch_size=f_patch_size, return_dict=False)[0][0]


def test_the_public_sizes_are_as_specified():
    assert {name: getattr(PUBLIC_6B, name) for name in PUBLIC_NUMBERS} == PUBLIC_NUMBERS


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("f_patch_sizes", [(1,), (2,), (1, 2, 4)])
def test_every_published_layout_becomes_diffusers_own(f_patch_sizes, prefix):
    weights = tiny_transformer(f_patch_sizes=f_patch_sizes).state_dict()
    published = {prefix + key: value for key, value in original_keys(weights).items()}

    assert f_patch_sizes_in(published) == list(f_patch_sizes)
    converted = to_diffusers_keys(published)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[key], weights[key]) for key in weights)


def test_diffusers_keys_stay_and_other_models_weights_are_dropped(transformer):
    weights = transformer.state_dict()
    merged = {**weights, "text_encoders.qwen.weight": torch.zeros(1), "norm_final.weight": torch.zeros(1)}

    assert to_diffusers_keys(merged).keys() == weights.keys()


def test_scaled_fp8_is_refused_instead_of_loaded_wrongly(transformer):
    with pytest.raises(BadInput, match="expected bf16, fp16, fp32 or GGUF, got scaled fp8"):
        to_diffusers_keys({**transformer.state_dict(), "layers.0.attention.to_q.scale_weight": torch.ones(1)})


def test_fused_rows_that_do_not_divide_by_three_are_refused():
    with pytest.raises(BadInput, match="rows of layers.0.attention.qkv.weight: expected a multiple of 3, got 64"):
        to_diffusers_keys({"layers.0.attention.qkv.weight": torch.zeros(64, 64)})


def test_an_embedder_of_odd_width_is_refused():
    with pytest.raises(BadInput, match="x_embedder: expected 64 or 128 or 256 inputs for 16 latent channels, got 192"):
        f_patch_sizes_in({"x_embedder.weight": (64, 192)})


def test_frame_patch_sizes_are_read_from_keys_alone_and_none_is_none():
    assert f_patch_sizes_in(["all_x_embedder.2-4.weight", "all_x_embedder.2-1.weight"]) == [1, 4]
    assert f_patch_sizes_in(["x_embedder.weight", "x_embedder.bias"]) == [1]
    assert f_patch_sizes_in(["unet.conv_in.weight"]) == []


def test_an_empty_model_takes_the_weights_and_predicts_the_same(transformer):
    dims = TransformerDims.from_config(transformer_config(transformer))
    model = build_transformer(dims, (1, 2, 4))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(transformer.state_dict(), assign=True)

    x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(predict(model, x, 2), predict(transformer, x, 2))
    assert not model.training


@pytest.mark.parametrize("layout", [dict, original_keys])
def test_the_public_sizes_are_known_by_shape_alone(layout):
    shapes = {key: value.shape for key, value in build_transformer(PUBLIC_6B, (1,)).state_dict().items()}
    if layout is original_keys:
        shapes = {key.replace("all_x_embedder.2-1.", "x_embedder.").replace(".norm_q.", ".q_norm."): shape for key, shape in shapes.items()}

    assert TransformerDims.from_state_dict_shapes(shapes) == PUBLIC_6B


def test_other_sizes_need_a_config_and_the_error_says_where_to_put_it(transformer):
    shapes = {key: tuple(value.shape) for key, value in transformer.state_dict().items()}

    with pytest.raises(BadInput, match=r'metadata under "config", got dim 64 instead of 3840, n_layers 2 instead of 30'):
        TransformerDims.from_state_dict_shapes(shapes)


def test_what_is_no_z_image_transformer_is_refused():
    with pytest.raises(BadInput, match="expected a Z-Image transformer, got one without caption embedder"):
        TransformerDims.from_state_dict_shapes({"unet.conv_in.weight": (4, 4)})


def test_a_config_whose_positions_do_not_fill_the_heads_is_refused():
    with pytest.raises(BadInput, match="axes_dims that add up to dim / n_heads"):
        TransformerDims.from_config({"dim": 64, "n_heads": 4, "axes_dims": [4, 4, 4]})


@pytest.mark.parametrize("f_patch_size", [2, 4])
def test_a_still_clip_through_tiled_layers_is_the_still_image(f_patch_size):
    image_model = tiny_transformer(f_patch_sizes=(1,))
    weights = tile_embedders(image_model.state_dict(), (1, 2, 4))
    model = build_transformer(TransformerDims.from_config(transformer_config(image_model)), (1, 2, 4))
    model.load_state_dict(weights, assign=True)

    still = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    image = predict(image_model, still, 1)
    clip = predict(model, still.repeat(1, f_patch_size, 1, 1), f_patch_size)
    assert torch.allclose(clip, image.repeat(1, f_patch_size, 1, 1), atol=1e-5)


def test_tiling_keeps_the_layers_that_a_checkpoint_has(transformer):
    weights = transformer.state_dict()

    tiled = tile_embedders(weights, (1, 2, 4))
    assert all(torch.equal(tiled[key], weights[key]) for key in weights)


def test_tiling_needs_layers_to_start_from():
    with pytest.raises(BadInput, match=r"expected layers named 2-1 to make others from, got \[2\]"):
        tile_embedders(tiny_transformer(f_patch_sizes=(2,)).state_dict(), (1, 2))
