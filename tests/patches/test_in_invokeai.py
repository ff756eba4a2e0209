"""What the patches do to the real InvokeAI, asked once in a fresh interpreter (`inside_invokeai.py`)."""

from __future__ import annotations

import pytest

ALL_SIZES = [1, 2, 4]
PARTS = "expected the parts transformer, vae, text_encoder, tokenizer, scheduler"


@pytest.mark.parametrize("value", ["z-image-video", "svd", "motion_module", "image_encoder"])
def test_added_members_pickle_copy_compare_and_validate_as_written_ones(answers, value):
    assert answers["members"][value] == [True] * 7


@pytest.mark.parametrize(
    ("name", "config_class", "model_format", "sizes", "channels"),
    [
        ("folder", "Main_Diffusers_ZImageVideo_Config", "diffusers", ALL_SIZES, 16),
        ("file", "Main_Checkpoint_ZImageVideo_Config", "checkpoint", [1, 2], 16),
        ("original", "Main_Checkpoint_ZImageVideo_Config", "checkpoint", ALL_SIZES, 16),
        ("four channels", "Main_Checkpoint_ZImageVideo_Config", "checkpoint", [2], 4),
        ("gguf", "Main_GGUF_ZImageVideo_Config", "gguf_quantized", ALL_SIZES, 16),
    ],
)
def test_every_format_is_identified_with_the_sizes_that_it_holds(answers, name, config_class, model_format, sizes, channels):
    found = answers["identified"][name]

    assert found["class"] == config_class
    assert found["record"] == {
        "base": "z-image-video",
        "type": "main",
        "format": model_format,
        "f_patch_sizes": sizes,
        "latent_channels": channels,
        "experimental": False,
    }
    assert found["logged"] == []


@pytest.mark.parametrize(
    ("name", "config_class"),
    [
        ("image file", "Main_Checkpoint_ZImage_Config"),
        ("image folder", "Main_Diffusers_ZImage_Config"),
        ("video folder as image", "Main_Diffusers_ZImage_Config"),
    ],
)
def test_image_checkpoints_stay_invokeai_s_own(answers, name, config_class):
    found = answers["identified"][name]

    assert found["class"] == config_class
    assert found["record"]["base"] == "z-image"
    assert found["logged"] == []


@pytest.mark.parametrize("name", ["experimental file", "experimental folder"])
def test_an_image_checkpoint_opens_as_experimental_by_the_explicit_base_and_says_why_that_is_no_video(answers, name):
    found = answers["identified"][name]

    assert (found["record"]["experimental"], found["record"]["f_patch_sizes"]) == (True, ALL_SIZES)
    assert len(found["logged"]) == 1
    assert "is not a meaningful video" in found["logged"][0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lacks vae", f"lacks-vae: {PARTS}; missing: vae/"),
        ("lacks text_encoder", f"lacks-text_encoder: {PARTS}; missing: text_encoder/"),
        ("lacks tokenizer", f"lacks-tokenizer: {PARTS}; missing: tokenizer/"),
        ("lacks scheduler", f"lacks-scheduler: {PARTS}; missing: scheduler/"),
        ("lacks vae weights", f"lacks-weights: {PARTS}; missing: vae/*.safetensors or *.bin"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_with_its_name(answers, name, message):
    assert answers["identified"][name]["record"] is None
    assert answers["identified"][name]["refused"][0] == message


@pytest.mark.parametrize(
    ("name", "file"),
    [("half a file", "half.safetensors"), ("half a folder", "transformer/diffusion_pytorch_model.safetensors")],
)
def test_a_truncated_file_is_refused_with_the_missing_bytes(answers, name, file):
    refused = answers["identified"][name]["refused"][0]

    assert answers["identified"][name]["record"] is None
    assert refused.startswith(f"{file} is truncated: expected ")
    assert refused.endswith("copy or download it again")


def test_a_single_file_of_unknown_sizes_is_refused_with_the_sizes_found(answers):
    assert "dim 64 instead of 3840" in answers["identified"]["unknown sizes"]["refused"][0]


@pytest.mark.parametrize("name", ["folder", "file", "original"])
def test_loaders_return_float32_weights_equal_to_the_saved_ones_on_the_cpu(answers, name):
    assert answers["loaded"][name]["dtypes"] == ["torch.float32"]
    assert answers["loaded"][name]["equal"] is True


@pytest.mark.parametrize("name", ["folder", "file", "original", "gguf", "four channels", "experimental file", "experimental folder"])
def test_every_loaded_transformer_runs_with_each_of_its_frame_patch_sizes(answers, name):
    assert all(answers["loaded"][name]["runs"])
    assert len(answers["loaded"][name]["runs"]) == len(answers["loaded"][name]["sizes"])


def test_gguf_blocks_stay_quantized_in_memory(answers):
    assert answers["loaded"]["gguf"]["dtypes"] == ["torch.float32", "torch.uint8"]


@pytest.mark.parametrize("name", ["experimental file", "experimental folder"])
def test_a_static_clip_embeds_as_a_still_does_in_an_experimental_model(answers, name):
    assert answers["loaded"][name]["static clip embeds like a still"] < 1e-6


def test_the_other_parts_of_a_folder_load_in_float32(answers):
    assert answers["loaded"]["parts"] == {
        "vae": ["AutoencoderKL", "torch.float32"],
        "text_encoder": ["Qwen3Model", "torch.float32"],
        "tokenizer": ["Qwen2Tokenizer", ""],
        "scheduler": ["FlowMatchEulerDiscreteScheduler", ""],
    }


def test_a_part_that_a_single_file_lacks_is_refused_with_the_way_out(answers):
    message = answers["loaded"]["vae of a single file"]

    assert "expected the part transformer, got vae" in message
    assert "model loader node" in message


def test_an_image_lora_fits_our_transformer_through_upstream_s_node_and_leaves_no_trace(answers):
    lora = answers["loaded"]["lora"]

    assert lora["loras"] == 1
    assert lora["largest change"] > 0.1
    assert lora["largest difference to merged weights"] < 1e-5
    assert lora["restored"] is True


def test_the_edit_form_s_extra_fields_are_tolerated(answers):
    assert answers["edited"]["renamed"] == ["Main_Diffusers_ZImageVideo_Config", "renamed", ALL_SIZES, False]


def test_an_image_record_whose_base_is_changed_by_hand_becomes_experimental(answers):
    assert answers["edited"]["image record turned video by hand"] == ["Main_Diffusers_ZImageVideo_Config", ALL_SIZES, True]


def test_records_are_found_by_our_base(answers):
    assert answers["edited"]["found by base"] == ["renamed", "still"]


def test_running_every_hook_again_changes_nothing(answers):
    assert answers["patched twice"]["before"] == answers["patched twice"]["after"]


def test_the_source_of_a_patched_module_can_still_be_read(answers):
    assert answers["source is readable"] is True


def test_the_doctor_finds_a_patched_invokeai_well(answers):
    findings = {name: (ok, detail) for name, ok, detail in answers["doctor"]}

    assert [name for name, (ok, _) in findings.items() if not ok] == []
    assert findings["invokeai"][1].startswith("6.14.")
    assert "z_image_video_denoise" in findings["nodes"][1]
    assert findings["socket.io behind compression"][1].startswith("answers 200")
    assert "places found in the installed bundle" in findings["patch: web interface"][1]
