"""Which checkpoints are ours: judged by headers and JSON, without InvokeAI."""

import json
import shutil

import pytest
import tiny_models

from invokeai_video_patches import identify
from invokeai_video_patches.identify import CheckpointFacts, NotVideo, Unusable


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return tiny_models.make_tiny_z_image_video(tmp_path_factory.mktemp("folders") / "video", f_patch_sizes=(1, 4))


def test_sizes_and_channels_come_from_the_checkpoint(video_folder, tmp_path):
    file = tiny_models.make_tiny_single_file(tmp_path / "a.safetensors", f_patch_sizes=(2, 4), latent_channels=4)

    assert identify.identify_folder(video_folder, asked=False) == CheckpointFacts((1, 4), 16, experimental=False)
    assert identify.identify_file(file, asked=False) == CheckpointFacts((2, 4), 4, experimental=False)


def test_one_unnamed_embedder_of_two_frames_is_video(tmp_path):
    path = tiny_models.make_tiny_single_file(tmp_path / "a.safetensors", f_patch_sizes=(2,), layout="original")

    assert identify.identify_file(path, asked=False).f_patch_sizes == (2,)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_an_image_checkpoint_is_not_ours_unless_asked_for(tmp_path, layout):
    path = tiny_models.make_tiny_image_checkpoint(tmp_path / "a.safetensors", layout=layout)

    with pytest.raises(NotVideo, match="f_patch_size 1 only"):
        identify.identify_file(path, asked=False)
    assert identify.identify_file(path, asked=True) == CheckpointFacts((1, 2, 4), 16, experimental=True)


def test_a_truncated_image_checkpoint_is_left_to_invokeai(tmp_path):
    path = tiny_models.make_tiny_image_checkpoint(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(NotVideo):
        identify.identify_file(path, asked=False)


def test_a_video_checkpoint_cut_inside_its_header_is_still_recognised(tmp_path):
    path = tiny_models.make_tiny_single_file(tmp_path / "a.safetensors")
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[: header_bytes - 10])

    with pytest.raises(Unusable, match="truncated"):
        identify.identify_file(path, asked=False)


def test_every_missing_part_of_a_folder_is_named_at_once(video_folder, tmp_path):
    folder = shutil.copytree(video_folder, tmp_path / "lacking")
    shutil.rmtree(folder / "vae")
    (folder / "text_encoder" / "model.safetensors").unlink()

    with pytest.raises(Unusable) as caught:
        identify.identify_folder(folder, asked=False)

    assert str(caught.value) == (
        "lacking: expected the parts transformer, vae, text_encoder, tokenizer, scheduler; "
        "missing: vae/, text_encoder/*.safetensors or *.bin"
    )


def test_a_folder_without_transformer_is_ours_only_when_asked_for(video_folder, tmp_path):
    folder = shutil.copytree(video_folder, tmp_path / "lacking")
    shutil.rmtree(folder / "transformer")

    with pytest.raises(NotVideo):
        identify.identify_folder(folder, asked=False)
    with pytest.raises(Unusable, match="missing: transformer/"):
        identify.identify_folder(folder, asked=True)


def test_a_strange_frame_patch_size_is_refused_with_the_valid_ones(video_folder, tmp_path):
    folder = shutil.copytree(video_folder, tmp_path / "strange")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "all_f_patch_size": [1, 3]}))

    with pytest.raises(Unusable, match=r"expected values among \(1, 2, 4\), got \(1, 3\)"):
        identify.identify_folder(folder, asked=False)


def test_unknown_sizes_without_a_config_are_refused_before_loading(tmp_path):
    path = tiny_models.make_tiny_single_file(tmp_path / "a.safetensors", with_config=False)

    with pytest.raises(Unusable, match="a.safetensors: sizes of a single-file transformer: expected the public 6B sizes"):
        identify.identify_file(path, asked=False)


def test_a_lora_is_not_a_checkpoint(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"diffusion_model.context_refiner.0.attention.to_q.lora_A.weight": torch.zeros(2, 64)}, tmp_path / "lora.safetensors")

    with pytest.raises(NotVideo, match="no Z-Image transformer"):
        identify.identify_file(tmp_path / "lora.safetensors", asked=True)
