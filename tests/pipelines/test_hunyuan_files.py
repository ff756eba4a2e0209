"""What lies in single files of HunyuanVideo: names there and back, sizes by shape or config, fp8 with scales."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from tiny_hunyuan import tiny_image_to_video, tiny_text_to_video_15, tiny_transformer, tiny_vae
from tiny_hunyuan_files import LAYOUTS, config_of, original_layout, original_vae_15, repackaged_layout

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video import keys, scaled_fp8, sizes, vae_keys

TINY = {
    "text": tiny_transformer,
    "latent_concat": lambda: tiny_transformer(condition="latent_concat", guidance_embeds=False),
    "token_replace": lambda: tiny_transformer(condition="token_replace"),
    "1.5": lambda: tiny_text_to_video_15().transformer,
}
PUBLIC = {
    "text": ("1.0", {}),
    "latent_concat": ("1.0", {"in_channels": 33, "guidance_embeds": False, "image_condition_type": "latent_concat"}),
    "1.5": ("1.5", {"task_type": "t2v"}),
    "1.5 in few steps": ("1.5", {"task_type": "t2v", "use_meanflow": True}),
}


@pytest.fixture(scope="module", params=list(PUBLIC))
def public(request):
    """A public transformer on the meta device: names and shapes, no memory."""
    generation, options = PUBLIC[request.param]
    with torch.device("meta"):
        return sizes.TRANSFORMERS[generation](**options)


def shapes_of(weights):
    return {name: tuple(value.shape) for name, value in weights.items()}


@pytest.mark.parametrize("layout", ["original", "repackaged"])
@pytest.mark.parametrize("kind", list(TINY))
def test_every_value_of_a_tiny_transformer_comes_back_from_each_layout(kind, layout):
    weights = TINY[kind]().state_dict()
    written = LAYOUTS[layout](weights)

    back = sizes.transformer_names(written, generation=keys.generation_of(written))

    assert not written.keys() & back.keys()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("layout", ["original", "repackaged"])
def test_every_name_and_shape_of_a_public_transformer_comes_back_from_each_layout(public, layout):
    weights = public.state_dict()

    written = LAYOUTS[layout](weights)

    assert shapes_of(sizes.transformer_names(written, generation=keys.generation_of(written))) == shapes_of(weights)


def test_a_public_transformer_is_told_by_its_shapes_alone(public):
    described = sizes.describe_transformer(shapes_of(original_layout(public.state_dict())), None)

    assert not described.given
    assert described.config == {name: public.config[name] for name in described.config}
    assert shapes_of(described.empty_model().state_dict()) == shapes_of(public.state_dict())


@pytest.mark.parametrize("size", ["tiny", "public"])
@pytest.mark.parametrize("generation", ["1.0", "1.5"])
def test_every_name_of_a_vae_comes_back_from_its_original_layout(generation, size):
    if size == "tiny":
        vae = tiny_vae() if generation == "1.0" else tiny_text_to_video_15().vae
    else:
        with torch.device("meta"):
            vae = sizes.VAES[generation]()
    weights = vae.state_dict()
    written = original_vae_15(weights) if generation == "1.5" else weights

    own = vae_keys.own_weights({f"vae.{name}": value for name, value in written.items()} | {"text.weight": torch.zeros(1)})
    described = sizes.describe_vae(shapes_of(own), config_of(vae) if size == "tiny" else None)

    assert vae_keys.generation_of(own) == described.generation == generation
    assert shapes_of(vae_keys.to_diffusers_keys(own)) == shapes_of(weights)
    assert described.config == {name: vae.config[name] for name in described.config}
    if size == "tiny":
        assert all(torch.equal(vae_keys.to_diffusers_keys(own)[name], value) for name, value in weights.items())


def test_the_second_vae_s_original_names_differ_from_diffusers_names():
    with torch.device("meta"):
        weights = sizes.VAES["1.5"]().state_dict()

    written = original_vae_15(weights)

    # The first and last convolutions and the last norms are named alike.
    assert len(written.keys() & weights.keys()) == 10
    assert "decoder.up.0.upsample.conv.conv.weight" in written and "encoder.mid.attn_1.proj_out.bias" in written


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model.", "transformer."])
def test_a_bundled_file_gives_up_its_transformer_without_the_prefix_and_the_rest(prefix):
    weights = original_layout(tiny_transformer().state_dict())
    bundled = {prefix + name: value for name, value in weights.items()}
    if prefix:
        bundled["vae.decoder.conv_in.conv.weight"] = torch.zeros(1)

    assert keys.own_weights(bundled).keys() == weights.keys()


@pytest.mark.parametrize(
    "names",
    [
        ["double_blocks.0.img_attn.qkv.weight", "txt_in.weight"],
        ["txt_in.individual_token_refiner.blocks.0.mlp.fc1.lora_A.weight"],
        [],
    ],
    ids=["flux", "lora", "empty"],
)
def test_other_files_hold_no_such_transformer(names):
    assert keys.own_weights(dict.fromkeys(names)) is None


def test_unknown_sizes_without_a_config_are_refused_with_what_would_help():
    shapes = shapes_of(original_layout(tiny_transformer().state_dict()))

    with pytest.raises(BadInput, match=r"sizes of a single file: expected those of the public HunyuanVideo 1\.0, or the model's config"):
        sizes.describe_transformer(shapes, None)


def test_a_missing_layer_is_named(public):
    shapes = shapes_of(public.state_dict())
    del shapes["transformer_blocks.3.attn.to_q.weight"]

    with pytest.raises(BadInput, match=r"got 1 fewer \(first transformer_blocks\.3\.attn\.to_q\.weight\): the file is incomplete"):
        sizes.describe_transformer(shapes, None)


def test_a_layer_of_a_derived_model_is_named():
    transformer = tiny_transformer()
    shapes = {**shapes_of(transformer.state_dict()), "clean_x_embedder.proj.weight": (20, 4, 1, 2, 2)}

    with pytest.raises(BadInput, match=r"1 others \(first clean_x_embedder\.proj\.weight\): a model of another kind"):
        sizes.describe_transformer(shapes, config_of(transformer))


def test_a_config_of_other_sizes_or_of_another_class_is_refused():
    transformer = tiny_transformer()
    shapes = shapes_of(transformer.state_dict())

    with pytest.raises(BadInput, match=r"x_embedder\.proj\.weight: expected \[20, 5, 1, 2, 2\] as the config says, got \[20, 4, 1, 2, 2\]"):
        sizes.describe_transformer(shapes, {**config_of(transformer), "in_channels": 5})
    with pytest.raises(BadInput, match="config: expected one of HunyuanVideoTransformer3DModel, as the file's layers say, got Other"):
        sizes.describe_transformer(shapes, {**config_of(transformer), "_class_name": "Other"})


def test_a_config_of_another_tool_counts_as_none(public):
    described = sizes.describe_transformer(shapes_of(public.state_dict()), {"transformer": {"name": "of another tool"}})

    assert not described.given and described.config["in_channels"] == public.config.in_channels


def test_a_vae_of_unknown_sizes_needs_its_config():
    shapes = shapes_of(tiny_vae().state_dict())

    with pytest.raises(BadInput, match="sizes of a single file: expected those of the public HunyuanVideo 1.0"):
        sizes.describe_vae(shapes, None)


def test_the_record_s_condition_decides_where_shapes_do_not():
    transformer = tiny_image_to_video("token_replace").transformer
    described = sizes.describe_transformer(shapes_of(transformer.state_dict()), {**config_of(transformer), "image_condition_type": None})
    later = tiny_text_to_video_15().transformer
    described_15 = sizes.describe_transformer(shapes_of(later.state_dict()), config_of(later))

    assert sizes.with_condition(described, "token_replace").empty_model().config.image_condition_type == "token_replace"
    assert sizes.with_condition(described_15, "latent_concat").config["task_type"] == "i2v"
    assert sizes.with_condition(described_15, None).config["task_type"] == "t2v"


class Quantized(torch.Tensor):
    """What InvokeAI's GGUF tensors offer to those who cut them: rows of blocks, and the shape of what they stand for."""

    @staticmethod
    def __new__(cls, data, kind, shape, compute_dtype):
        return torch.Tensor._make_subclass(cls, torch.empty(shape, device="meta"))

    def __init__(self, data, kind, shape, compute_dtype):
        self.quantized_data, self._ggml_quantization_type, self.compute_dtype = data, kind, compute_dtype

    def get_dequantized_tensor(self):
        return torch.from_numpy(gguf.quants.dequantize(self.quantized_data.numpy(), self._ggml_quantization_type))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_rows_cut_from_a_quantized_weight_are_the_rows_of_the_whole_and_copy_nothing(kind):
    values = np.random.default_rng(0).normal(size=(12, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[kind]
    whole = Quantized(torch.from_numpy(gguf.quants.quantize(values, kind)), kind, (12, 64), torch.float32)

    part = keys.cut_rows(whole, slice(4, 8))

    assert part.shape == (4, 64)
    assert torch.equal(part.get_dequantized_tensor(), whole.get_dequantized_tensor()[4:8])
    assert part.quantized_data.untyped_storage().data_ptr() == whole.quantized_data.untyped_storage().data_ptr()


@pytest.mark.parametrize("scale", ["weight_scale", "scale_weight"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1)], ids=str)
def test_fp8_weights_are_opened_with_their_scales(scale, shape):
    stored = torch.tensor([[1.0, -2.0], [0.5, 448.0], [3.5, 0.0]]).to(torch.float8_e4m3fn)
    factors = torch.tensor([0.25, 2.0, 3.0])[: max(1, int(np.prod(shape)))].reshape(shape)
    weights = {
        "a.weight": stored,
        f"a.{scale}": factors,
        "a.scale_input": torch.ones(()),
        "b.bias": torch.ones(3),
        "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
    }

    opened, fp8 = scaled_fp8.opened(weights, dtype=torch.bfloat16)

    assert opened.keys() == {"a.weight", "b.bias"} and fp8 == 1
    assert torch.equal(opened["a.weight"], (stored.float() * factors.reshape(-1, 1)).to(torch.bfloat16))
    assert {value.dtype for value in opened.values()} == {torch.bfloat16}


def test_fp8_weights_without_scales_are_just_opened():
    stored = torch.tensor([[1.0, 448.0]]).to(torch.float8_e4m3fn)

    opened, fp8 = scaled_fp8.opened({"a.weight": stored}, dtype=torch.float32)

    assert torch.equal(opened["a.weight"], torch.tensor([[1.0, 448.0]])) and fp8 == 1


def test_a_scale_without_a_weight_or_of_blocks_is_refused():
    with pytest.raises(BadInput, match=r"a\.weight_scale: expected a weight a\.weight that it scales, got none"):
        scaled_fp8.check_scales({"a.weight_scale": ()})
    with pytest.raises(BadInput, match=r"expected one number, or one for each of the 4 rows \(scales of blocks are not supported\)"):
        scaled_fp8.check_scales({"a.weight": (4, 64), "a.weight_scale": (4, 2)})


def test_flux_s_names_in_repackaged_files_cover_every_layer_that_differs():
    original, repackaged = (layout(tiny_transformer().state_dict()) for layout in (original_layout, repackaged_layout))

    renamed = {key: keys.original_name(key) for key in repackaged}

    assert sorted(renamed.values()) == sorted(original)
    assert sum(key != name for key, name in renamed.items()) > len(renamed) / 2
