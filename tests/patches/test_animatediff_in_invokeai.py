"""AnimateDiff and SVD in the real InvokeAI: classes, records and loaders (`inside_animatediff.py` asks)."""

from __future__ import annotations

import pytest

WIDTHS = [32, 32, 64, 64]
LIMITS = {"v1": 24, "v2": 32, "v3": 32, "animatelcm": 32}


@pytest.fixture
def asked(answers):
    return answers["animatediff"]


@pytest.mark.parametrize("version", list(LIMITS))
def test_an_original_file_becomes_a_motion_module_of_sd_1(asked, version):
    assert asked["records"][version] == {
        "class": "MotionModule_Checkpoint_SD1_Config",
        "class after reading": "MotionModule_Checkpoint_SD1_Config",
        "base": "sd-1",
        "type": "motion_module",
        "format": "checkpoint",
        "version": version,
        "max_frames": LIMITS[version],
        "beta_schedule": "linear",
        "widths": WIDTHS,
        "mid_block": version in ("v2", "animatelcm"),
    }


@pytest.mark.parametrize("version", list(LIMITS))
def test_a_folder_becomes_the_same_motion_module(asked, version):
    file, folder = asked["records"][version], asked["records"][f"{version} folder"]

    assert folder["class"] == folder["class after reading"] == "MotionModule_Diffusers_SD1_Config"
    assert {**folder, "class": "", "class after reading": "", "format": ""} == {
        **file,
        "class": "",
        "class after reading": "",
        "format": "",
    }


@pytest.mark.parametrize("version", list(LIMITS))
def test_file_and_folder_load_to_the_same_weights_bit_by_bit(asked, version):
    assert asked["same weights"][version] is True


def test_a_torch_checkpoint_of_public_sizes_is_known(asked):
    assert asked["records"]["checkpoint"]["version"] == "v3"
    assert asked["records"]["checkpoint"]["widths"] == [320, 640, 1280, 1280]


@pytest.mark.parametrize(
    ("name", "words"),
    [("half", "half.safetensors is truncated"), ("half checkpoint", "half.ckpt cannot be read"), ("sdxl", "got one for SDXL")],
)
def test_broken_and_sdxl_modules_are_refused_in_words(asked, name, words):
    assert asked["records"][name] is None
    assert any(words in refusal for refusal in asked["refused"][name])


def test_a_motion_lora_is_a_lora_of_sd_1_with_layers_of_the_motion_modules(asked):
    record = asked["records"]["motion lora"]

    assert record["class"] == record["class after reading"] == "MotionLoRA_Checkpoint_SD1_Config"
    assert (record["type"], record["base"]) == ("lora", "sd-1")
    assert asked["lora layers"] == [
        f"down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.{layer}" for layer in ("to_out.0", "to_q")
    ]


@pytest.mark.parametrize("name", ["sparse control", "sparse control file"])
def test_a_sparse_control_is_a_controlnet_of_sd_1_with_a_loader_of_its_own(asked, name):
    record = asked["records"][name]

    assert record["class"] == record["class after reading"] == "SparseCtrl_SD1_Config"
    assert (record["type"], record["base"]) == ("controlnet", "sd-1")
    assert asked["sparse control"] == ["SparseControlNetModel", True]


@pytest.mark.parametrize(
    ("name", "config_class"), [("still lora", "LoRA_LyCORIS_SD1_Config"), ("controlnet", "ControlNet_Diffusers_SD1_Config")]
)
def test_invokeais_own_sd_1_models_stay_its_own(asked, name, config_class):
    record = asked["records"][name]

    assert record["class"] == record["class after reading"] == config_class


def test_an_svd_folder_is_a_main_model_of_base_svd_that_loads_by_parts(asked):
    record = asked["records"]["svd"]

    assert record["class"] == record["class after reading"] == "Main_Diffusers_SVD_Config"
    assert (record["base"], record["type"], record["release"], record["num_frames"]) == ("svd", "main", "svd-xt", 25)
    assert asked["svd unet"][0] == "UNetSpatioTemporalConditionModel"
    assert "expected one of the parts unet, vae, image_encoder, scheduler, got transformer" in asked["svd unet"][1]


def test_a_motion_module_has_no_parts(asked):
    assert "is a motion module: expected no part, got unet" in asked["module with a part"]
