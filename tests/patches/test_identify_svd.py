"""Which diffusers folders and single files are Stable Video Diffusion: judged by headers and JSON, without InvokeAI."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tiny_animatediff_files import save_svd_folder
from tiny_svd import tiny_svd
from tiny_svd_files import save_original

from invokeai_video_patches.identify import NotVideo, Unusable
from invokeai_video_patches.identify_svd import SVDFacts, asked_frames, identify_file, identify_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_svd_folder(tmp_path_factory.mktemp("svd"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "svd")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(("num_frames", "release"), [(14, "svd"), (25, "svd-xt")])
def test_the_frames_of_the_unet_tell_the_release(folder, num_frames, release):
    change(folder / "unet" / "config.json", num_frames=num_frames)

    assert identify_folder(folder) == SVDFacts(release, num_frames)


def test_another_number_of_frames_is_refused(folder):
    change(folder / "unet" / "config.json", num_frames=21)

    with pytest.raises(Unusable, match=r"expected num_frames 14 \(svd\) or 25 \(svd-xt\), got 21"):
        identify_folder(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "feature_extractor", "scheduler"])
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(folder, part):
    shutil.rmtree(folder / part)

    with pytest.raises(Unusable, match=f"missing: {part}/"):
        identify_folder(folder)


def test_weights_that_are_cut_off_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])

    with pytest.raises(Unusable, match=r"unet/diffusion_pytorch_model\.safetensors is truncated"):
        identify_folder(folder)


def test_a_part_of_another_class_is_refused(folder):
    change(folder / "vae" / "config.json", _class_name="AutoencoderKL")

    with pytest.raises(Unusable, match=r"vae/config\.json: expected AutoencoderKLTemporalDecoder, got AutoencoderKL"):
        identify_folder(folder)


def test_other_pipelines_and_folders_are_left_to_others(folder, tmp_path):
    change(folder / "model_index.json", _class_name="StableDiffusionPipeline")

    with pytest.raises(NotVideo, match="StableDiffusionPipeline"):
        identify_folder(folder)
    with pytest.raises(NotVideo):
        identify_folder(tmp_path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A single file whose metadata says nothing of the frames."""
    return save_original(tmp_path_factory.mktemp("file") / "model.safetensors", tiny_svd(), with_frames=False)


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [
        ("svd.safetensors", 14),
        ("svd-fp16.safetensors", 14),
        ("stable-video-diffusion-img2vid.safetensors", 14),
        ("svd_xt.safetensors", 25),
        ("svd_xt_1_1.safetensors", 25),
        ("SVDXT.safetensors", 25),
        ("stable-video-diffusion-img2vid-xt.safetensors", 25),
    ],
)
def test_the_name_of_a_file_tells_the_release(original, tmp_path, name, num_frames):
    path = shutil.copy(original, tmp_path / name)

    assert identify_file(path) == SVDFacts({14: "svd", 25: "svd-xt"}[num_frames], num_frames)


def test_a_file_whose_name_says_nothing_is_refused_with_what_to_do(original):
    with pytest.raises(Unusable, match=r"expected svd \(14 frames\) or svd_xt \(25 frames\) in the file's name.* got neither; rename"):
        identify_file(original)


def test_a_record_s_name_and_what_it_asks_for_tell_the_release_of_a_nameless_file(original):
    assert identify_file(original, names=["My SVD XT"]).num_frames == 25
    assert identify_file(original, asked=asked_frames({"release": "svd-xt"}), names=["svd"]).num_frames == 25
    assert identify_file(original, asked=asked_frames({"num_frames": 14}), names=["xt"]).num_frames == 14
    assert asked_frames({"name": "svd"}) is None


def test_the_config_in_the_file_goes_before_its_name(tmp_path):
    path = save_original(tmp_path / "svd.safetensors", tiny_svd(num_frames=25))

    assert identify_file(path) == SVDFacts("svd-xt", 25)


def test_strange_frames_and_releases_are_refused(original):
    with pytest.raises(Unusable, match=r"expected num_frames 14 \(svd\) or 25 \(svd-xt\), got 21"):
        identify_file(original, asked=21)
    with pytest.raises(Unusable, match="release: expected svd or svd-xt, got svd-2"):
        asked_frames({"release": "svd-2"})


@pytest.mark.parametrize("kept", [60_000, -1000], ids=["in its header", "in its tensors"])
def test_a_file_that_is_cut_off_is_refused(original, tmp_path, kept):
    path = tmp_path / "svd.safetensors"
    path.write_bytes(original.read_bytes()[:kept])

    with pytest.raises(Unusable, match=r"svd\.safetensors is truncated"):
        identify_file(path)


def test_files_of_other_models_are_left_to_others(tmp_path):
    other = tmp_path / "svd_xt.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, other)
    (tmp_path / "svd.ckpt").write_bytes(b"")

    for path in (other, tmp_path / "svd.ckpt"):
        with pytest.raises(NotVideo):
            identify_file(path)


def test_sizes_that_nobody_can_know_are_refused(tmp_path):
    from tiny_svd_files import original_file

    save_file(original_file(tiny_svd()), tmp_path / "svd.safetensors")

    with pytest.raises(Unusable, match="any other size needs its config in the file's metadata"):
        identify_file(tmp_path / "svd.safetensors")
