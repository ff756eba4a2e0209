"""Which files and folders are AnimateDiff's: judged by headers and JSON, without InvokeAI."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_animatediff_files import (
    RELEASES,
    TINY_WIDTHS,
    motion_lora,
    original_layout,
    public_shapes,
    save_checkpoint,
    save_original,
    save_weights,
    tiny_adapter,
    tiny_sparse_control,
)
from tiny_hunyuan_files import write_hollow

from invokeai_video_patches import identify_animatediff as identify
from invokeai_video_patches.identify import NotVideo, Unusable
from invokeai_video_patches.identify_animatediff import MotionFacts


def facts(version, widths=(320, 640, 1280, 1280)):
    frames, mid_block, _ = RELEASES[version]
    return MotionFacts(version, frames, "linear", widths, mid_block)


@pytest.mark.parametrize("version", list(RELEASES))
def test_a_public_safetensors_file_is_known_by_its_header(tmp_path, version):
    path = write_hollow(tmp_path / "module.safetensors", public_shapes(version))

    assert identify.identify_file(path) == facts(version)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("version", list(RELEASES))
def test_a_public_torch_checkpoint_is_known_wrapped_and_plain(tmp_path, version, nested):
    path = save_checkpoint(tmp_path / "module.ckpt", public_shapes(version), nested=nested)

    assert identify.identify_file(path) == facts(version)


@pytest.mark.parametrize("version", list(RELEASES))
def test_a_file_with_its_config_may_have_other_widths(tmp_path, version):
    path = save_original(tmp_path / "module.safetensors", version)

    assert identify.identify_file(path) == facts(version, TINY_WIDTHS)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_a_folder_is_known_by_its_config(tmp_path, version):
    tiny_adapter(version).save_pretrained(tmp_path / "adapter")

    assert identify.identify_folder(tmp_path / "adapter") == facts(version, TINY_WIDTHS)


def test_animatelcms_folder_is_known_by_what_it_is_called(tmp_path):
    for name in ("AnimateLCM", "adapter"):
        tiny_adapter("v2").save_pretrained(tmp_path / name)

    assert identify.identify_folder(tmp_path / "AnimateLCM") == facts("animatelcm", TINY_WIDTHS)
    assert identify.identify_folder(tmp_path / "adapter", names=("wangfuyun/AnimateLCM",)).version == "animatelcm"
    assert identify.identify_folder(tmp_path / "adapter").version == "v2"


def test_sdxl_modules_are_refused_as_file_and_as_folder(tmp_path):
    path = write_hollow(tmp_path / "sdxl.safetensors", public_shapes("v3", block_out_channels=(320, 640, 1280)))
    tiny_adapter("v3", block_out_channels=(32, 32, 64)).save_pretrained(tmp_path / "adapter")

    with pytest.raises(Unusable, match=r"sdxl\.safetensors: motion module: expected .*Stable Diffusion 1\.5.*, got one for SDXL"):
        identify.identify_file(path)
    with pytest.raises(Unusable, match="adapter: motion module: .* got one for SDXL"):
        identify.identify_folder(tmp_path / "adapter")


def test_widths_of_no_public_release_are_refused_without_a_config(tmp_path):
    path = save_original(tmp_path / "tiny.safetensors", "v2", with_config=False)

    with pytest.raises(Unusable, match=r"tiny\.safetensors: motion module: .* got \(32, 32, 64, 64\)"):
        identify.identify_file(path)


@pytest.mark.parametrize("cut", ["header", "data"])
def test_a_safetensors_file_that_is_cut_off_is_refused(tmp_path, cut):
    path = save_original(tmp_path / "module.safetensors", "v2")
    whole = path.read_bytes()
    path.write_bytes(whole[: int.from_bytes(whole[:8], "little") - 10] if cut == "header" else whole[:-1000])

    with pytest.raises(Unusable, match=r"module\.safetensors is truncated"):
        identify.identify_file(path)


def test_a_torch_checkpoint_that_is_cut_off_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "module.ckpt", public_shapes("v2"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])

    with pytest.raises(Unusable, match=r"module\.ckpt cannot be read as plain tensors: it is truncated"):
        identify.identify_file(path)


def test_an_incomplete_file_is_refused_with_what_it_lacks(tmp_path):
    shapes = {name: shape for name, shape in public_shapes("v3").items() if not name.endswith("proj_out.bias")}

    with pytest.raises(Unusable, match=r"got 20 fewer \(first down_blocks\.0\.motion_modules\.0\.proj_out\.bias"):
        identify.identify_file(write_hollow(tmp_path / "lacking.safetensors", shapes))


def test_a_folder_without_whole_weights_is_refused(tmp_path):
    tiny_adapter("v2").save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(Unusable, match="truncated"):
        identify.identify_folder(tmp_path)
    state = tiny_adapter("v2").state_dict()
    save_weights(weights, {name: value for name, value in state.items() if not name.startswith("mid_block.")})
    with pytest.raises(Unusable, match="fewer .* the file is incomplete"):
        identify.identify_folder(tmp_path)
    weights.unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"no torch file")
    with pytest.raises(Unusable, match=r"diffusion_pytorch_model\.bin cannot be read"):
        identify.identify_folder(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(Unusable, match="expected weights beside config.json"):
        identify.identify_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("layout", ["original", "diffusers", "diffusers processor", "peft"])
def test_a_motion_lora_is_known_in_every_layout(tmp_path, layout, suffix):
    path = tmp_path / f"lora.{suffix}"
    weights = motion_lora(layout)
    if suffix == "ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        save_weights(path, weights)

    identify.identify_lora(path)
    with pytest.raises(NotVideo):
        identify.identify_file(path)


def test_a_broken_motion_lora_is_refused(tmp_path):
    weights = motion_lora()
    weights.popitem()
    path = save_weights(tmp_path / "lora.safetensors", weights)
    with pytest.raises(Unusable, match="expected down and up"):
        identify.identify_lora(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Unusable, match="truncated"):
        identify.identify_lora(path)


STRANGERS = {
    "lora": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.zeros(4, 320)},
    "controlnet": {"controlnet_cond_embedding.conv_in.weight": torch.zeros(16, 3, 3, 3), "mid_block.resnets.0.norm1.bias": torch.zeros(4)},
    "sparse control": {
        **original_layout({"down_blocks.0.motion_modules.0.norm.weight": torch.zeros(320)}),
        "controlnet_cond_embedding.weight": torch.zeros(320, 5, 3, 3),
    },
    "vae": {"decoder.conv_in.weight": torch.zeros(4)},
}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("name", list(STRANGERS))
@pytest.mark.parametrize("cut", [0, 8])
def test_other_models_are_left_to_invokeai_whole_and_cut_off(tmp_path, name, suffix, cut):
    path = tmp_path / f"model.{suffix}"
    if suffix == "ckpt":
        torch.save(STRANGERS[name], path)
    else:
        save_weights(path, STRANGERS[name])
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(NotVideo):
        identify.identify_file(path)
    with pytest.raises(NotVideo):
        identify.identify_lora(path)


def test_other_folders_are_left_to_invokeai(tmp_path):
    for config in ({"_class_name": "ControlNetModel"}, {}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(NotVideo):
            identify.identify_folder(tmp_path)
        with pytest.raises(NotVideo):
            identify.identify_sparse_control(tmp_path)
    with pytest.raises(NotVideo):
        identify.identify_folder(tmp_path / "nothing")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(NotVideo):
        identify.identify_file(tmp_path / "model.gguf")


def test_a_sparse_control_folder_says_how_it_reads_its_keyframes(tmp_path):
    save_weights(tmp_path / "diffusion_pytorch_model.safetensors", {"weight": torch.zeros(1)})
    config = {"_class_name": "SparseControlNetModel", "cross_attention_dim": 768, "use_simplified_condition_embedding": False}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert not identify.identify_sparse_control(tmp_path).reads_latents
    (tmp_path / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 2048}))
    with pytest.raises(Unusable, match=r"Stable Diffusion 1\.5 \(768 text features\), got 2048"):
        identify.identify_sparse_control(tmp_path)


@pytest.mark.parametrize("reads_latents", [True, False])
def test_an_original_sparse_control_file_is_known_and_refused_where_it_is_cut_off(tmp_path, reads_latents):
    model = tiny_sparse_control(reads_latents=reads_latents)
    path = save_weights(tmp_path / "sparse.safetensors", original_layout(model.state_dict()), config=model.config)

    assert identify.identify_sparse_control(path).reads_latents is reads_latents
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Unusable, match=r"sparse\.safetensors is truncated"):
        identify.identify_sparse_control(path)


def test_the_weights_of_a_torch_checkpoint_are_those_that_were_saved(tmp_path):
    torch.save({"state_dict": motion_lora(), "epoch": 3}, tmp_path / "lora.ckpt")
    opened = identify.weights_of(tmp_path / "lora.ckpt")

    assert opened.keys() == motion_lora().keys()
    assert all(torch.equal(value, opened[name]) for name, value in motion_lora().items())
