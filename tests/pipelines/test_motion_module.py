"""Names of the original AnimateDiff releases against diffusers' own converter, and weights that come back as they were."""

from __future__ import annotations

import pytest
import torch
from diffusers import MotionAdapter
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from tiny_animatediff_files import RELEASES, motion_lora, original_layout, public_shapes, tiny_adapter, tiny_sparse_control

from invokeai_video_nodes.pipelines.animatediff import motion_module, sparse_control_keys
from invokeai_video_nodes.pipelines.errors import BadInput


def described(weights, config=None):
    own = motion_module.own_weights(weights)
    return motion_module.describe({name: tuple(value.shape) for name, value in own.items()}, config)


def assert_same(opened, original):
    found, expected = opened.state_dict(), original.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(("version", "prefix"), [*((version, "") for version in RELEASES), ("v3", "module.")])
def test_an_original_file_gives_the_weights_of_the_adapter_that_it_was_written_from(version, prefix):
    adapter = tiny_adapter(version)
    original = original_layout(adapter.state_dict(), with_encoding=RELEASES[version][2])
    file = {prefix + name: value for name, value in original.items()}

    module = described(file, dict(adapter.config))
    opened = motion_module.assembled(module, motion_module.own_weights(file), dtype=torch.float32)

    assert (module.version, module.max_frames, module.beta_schedule) == (version, RELEASES[version][0], "linear")
    assert_same(opened, adapter)


def test_the_opened_adapter_animates_like_the_one_it_was_written_from():
    adapter = tiny_adapter("v2")
    original = original_layout(adapter.state_dict())
    opened = motion_module.assembled(described(original, dict(adapter.config)), original, dtype=torch.float32)
    sample = torch.randn(8, 32, 4, 4, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        ours, theirs = (model.down_blocks[0].motion_modules[0](sample, num_frames=8) for model in (opened, adapter))

    assert torch.equal(ours, theirs) and not torch.equal(ours, sample)


@pytest.mark.parametrize("version", list(RELEASES))
def test_names_are_those_of_diffusers_converter(version):
    original = original_layout(tiny_adapter(version).state_dict(), with_encoding=RELEASES[version][2])
    theirs = convert_animatediff_checkpoint_to_diffusers(dict(original))

    assert {motion_module.diffusers_name(name) for name in original if "pos_encoder" not in name} == theirs.keys()


@pytest.mark.parametrize("version", list(RELEASES))
def test_a_public_release_is_known_without_a_config(version):
    module = motion_module.describe(public_shapes(version))

    assert (module.version, module.max_frames, module.widths) == (version, RELEASES[version][0], (320, 640, 1280, 1280))


def test_weights_are_opened_in_the_dtype_that_was_asked_for():
    adapter = tiny_adapter("v3")
    original = original_layout(adapter.state_dict())

    opened = motion_module.assembled(described(original, dict(adapter.config)), original, dtype=torch.float16)

    assert {value.dtype for value in opened.state_dict().values()} == {torch.float16}


def test_a_longer_encoding_is_the_limit_of_its_module():
    assert motion_module.describe(public_shapes("v3", motion_max_seq_length=64)).max_frames == 64


def test_an_sdxl_module_is_refused_as_one():
    shapes = public_shapes("v3", block_out_channels=(320, 640, 1280))

    with pytest.raises(BadInput, match=r"expected a module for a UNet of Stable Diffusion 1.5 .*, got one for SDXL"):
        motion_module.describe(shapes)


def test_other_widths_are_refused_where_no_config_says_so():
    shapes = public_shapes("v3", block_out_channels=(64, 128, 256, 256))

    with pytest.raises(BadInput, match=r"or its config as JSON .*, got \(64, 128, 256, 256\)"):
        motion_module.describe(shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes: {k: v for k, v in shapes.items() if not k.endswith("ff_norm.bias")}, "20 fewer .*the file is incomplete"),
        (lambda shapes: {**shapes, "conv_in.weight": (320, 9, 3, 3)}, r"motion module only, got 1 others \(first conv_in.weight\)"),
        (lambda shapes: {k: v for k, v in shapes.items() if not k.startswith("down_blocks.3.")}, "got 3 blocks of .*incomplete"),
        (lambda shapes: {k: v for k, v in shapes.items() if not k.endswith(".pe")}, "positional encoding: expected one length .* got none"),
        (
            lambda shapes: {k: (1, 16, v[2]) if k.startswith("up_blocks.0.") and k.endswith(".pe") else v for k, v in shapes.items()},
            "got 16, 32",
        ),
    ],
    ids=["a layer lacks", "an input layer of PIA", "a block lacks", "no encoding", "two encodings"],
)
def test_a_file_that_is_no_whole_module_is_refused_in_words(change, message):
    with pytest.raises(BadInput, match=message):
        motion_module.describe(change(public_shapes("v3")))


def test_a_layer_of_another_shape_is_named():
    name = "mid_block.motion_modules.0.temporal_transformer.proj_in.weight"

    with pytest.raises(BadInput, match=r"mid_block\.motion_modules\.0\.proj_in\.weight: expected \[1280, 1280\], got \[1280, 640\]"):
        motion_module.describe({**public_shapes("v2"), name: (1280, 640)})


def test_loras_sparse_controls_and_whole_unets_are_no_motion_modules():
    weights = original_layout(tiny_adapter("v3").state_dict())

    assert motion_module.own_weights(weights) is not None
    assert motion_module.own_weights(motion_lora()) is None
    assert motion_module.own_weights({**weights, "controlnet_cond_embedding.weight": torch.zeros(1)}) is None
    assert motion_module.own_weights({**weights, "down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}) is None
    assert motion_module.own_weights({"conv_in.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("layout", ["original", "diffusers", "diffusers processor", "peft"])
def test_a_motion_lora_names_the_adapters_own_layers_in_every_layout(layout):
    factors = motion_module.read_lora(motion_lora(layout, with_alpha=True)).layers
    adapter = tiny_adapter("v2")

    assert list(factors) == [f"down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.{layer}" for layer in ("to_q", "to_out.0")]
    for layer, found in factors.items():
        change = found["lora_up.weight"] @ found["lora_down.weight"]
        assert change.shape == adapter.get_submodule(layer).weight.shape


def test_a_motion_lora_with_half_a_layer_is_refused():
    weights = motion_lora()
    weights.popitem()

    with pytest.raises(BadInput, match=r"attn1\.to_out\.0: expected down and up, got no lora_up\.weight"):
        motion_module.read_lora(weights)


def test_a_folder_is_told_by_its_config_and_animatelcm_by_its_name():
    adapter = tiny_adapter("v2")
    shapes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}

    assert motion_module.describe_folder(dict(adapter.config), shapes).version == "v2"
    assert motion_module.describe_folder(dict(adapter.config), shapes, named_lcm=True).version == "animatelcm"
    with pytest.raises(BadInput, match=r"conv_in with 9 channels \(PIA\)"):
        motion_module.describe_folder({**adapter.config, "conv_in_channels": 9}, shapes)


def test_meta_adapters_take_no_memory():
    module = motion_module.describe(public_shapes("v2"))

    assert isinstance(module.empty_adapter(), MotionAdapter)
    assert {value.device.type for value in module.empty_adapter().state_dict().values()} == {"meta"}


@pytest.mark.parametrize("reads_latents", [True, False])
def test_a_sparse_control_file_gives_the_weights_of_the_model_that_it_was_written_from(reads_latents):
    model = tiny_sparse_control(reads_latents=reads_latents)
    file = {f"module.{name}": value for name, value in original_layout(model.state_dict()).items()}

    options = sparse_control_keys.describe({name: tuple(value.shape) for name, value in file.items()}, dict(model.config))
    opened = sparse_control_keys.assembled(options, file, dtype=torch.float32)

    assert opened.config.use_simplified_condition_embedding is reads_latents
    assert_same(opened, model)


def test_a_sparse_control_of_unknown_sizes_or_without_its_entrance_is_refused():
    shapes = {name: tuple(value.shape) for name, value in original_layout(tiny_sparse_control().state_dict()).items()}

    with pytest.raises(BadInput, match="SparseCtrl: expected .* fewer"):
        sparse_control_keys.describe(shapes)
    with pytest.raises(BadInput, match="neither: the file is incomplete"):
        sparse_control_keys.describe({name: shape for name, shape in shapes.items() if "cond_embedding" not in name})
