"""SVD's single file in the real InvokeAI: class, record and loaders (`inside_svd.py` asks)."""

from __future__ import annotations

import pytest

MODULES = ("unet", "vae", "image_encoder")
FILES = pytest.mark.parametrize(("name", "num_frames"), [("svd", 14), ("svd fp16", 14), ("svd_xt", 25), ("svd_xt fp16", 25)])


@pytest.fixture
def asked(answers):
    return answers["svd"]


@FILES
def test_a_single_file_is_a_main_model_of_base_svd(asked, name, num_frames):
    record = asked["records"][name]

    assert record["class"] == record["class after reading"] == "Main_Checkpoint_SVD_Config"
    assert (record["base"], record["type"], record["format"]) == ("svd", "main", "checkpoint")
    assert (record["release"], record["num_frames"]) == ({14: "svd", 25: "svd-xt"}[num_frames], num_frames)


@pytest.mark.parametrize("name", ["svd", "svd_xt"])
@pytest.mark.parametrize("module", MODULES)
def test_file_and_folder_load_to_the_same_weights_bit_by_bit(asked, name, module):
    assert asked["same weights"][name][module] is True


@pytest.mark.parametrize("name", ["svd fp16", "svd_xt fp16"])
@pytest.mark.parametrize("module", MODULES)
def test_a_half_precision_file_loads_to_the_rounded_weights(asked, name, module):
    assert asked["same weights"][name][module] is False
    assert asked["same weights"][name][f"{module} rounded"] is True


def test_the_scheduler_of_a_file_is_that_of_the_public_folder(asked):
    assert asked["scheduler"] == [True, True]


def test_a_part_that_svd_has_not_is_refused(asked):
    assert "expected one of the parts unet, vae, image_encoder, scheduler, got transformer" in asked["other part"]


def test_a_part_whose_folder_is_gone_is_refused_by_its_name(asked):
    assert "svd_xt: expected the folder svd_xt/vae, got none: it was moved or deleted; install the model again" in asked["moved part"]


def test_a_file_whose_name_says_nothing_is_refused_with_what_to_do(asked):
    config_class, *refused = asked["nameless"]

    assert config_class != "Main_Checkpoint_SVD_Config"
    assert any("expected svd (14 frames) or svd_xt (25 frames) in the file's name" in words for words in refused)
