"""Which single files and VAE folders are HunyuanVideo's: judged by headers and JSON, without InvokeAI."""

import json

import pytest
import torch
from tiny_hunyuan import tiny_image_to_video_15, tiny_text_to_video_15, tiny_transformer, tiny_vae
from tiny_hunyuan_files import (
    LAYOUTS,
    config_of,
    original_layout,
    original_vae_15,
    public_shapes,
    save_gguf,
    save_scaled_fp8,
    save_single_file,
    save_weights,
    wide_text_to_video,
    write_hollow,
)

from invokeai_video_nodes.pipelines.hunyuan_video import sizes
from invokeai_video_patches import identify_hunyuan_video as identify
from invokeai_video_patches.identify import NotVideo, Unusable
from invokeai_video_patches.identify_hunyuan_video import HunyuanFacts, VaeFacts


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model."])
def test_a_file_with_its_config_is_known_in_every_layout_and_under_every_prefix(tmp_path, layout, prefix):
    path = save_single_file(tmp_path / "a.safetensors", tiny_transformer(condition="token_replace"), layout=layout, prefix=prefix)

    assert identify.identify_file(path) == HunyuanFacts("1.0", "token_replace", 4, guidance_embeds=True, text_features=16)


@pytest.mark.parametrize(
    ("generation", "options", "expected"),
    [
        ("1.0", {}, HunyuanFacts("1.0", None, 16, True, 4096)),
        ("1.0", {"guidance_embeds": False}, HunyuanFacts("1.0", None, 16, False, 4096)),
        (
            "1.0",
            {"in_channels": 33, "guidance_embeds": False, "image_condition_type": "latent_concat"},
            HunyuanFacts("1.0", "latent_concat", 16, False, 4096),
        ),
        ("1.5", {}, HunyuanFacts("1.5", None, 32, False, 3584)),
    ],
    ids=["text", "text without embedded guidance", "image, 33 channels", "1.5"],
)
def test_public_sizes_are_known_by_their_shapes(tmp_path, generation, options, expected):
    path = write_hollow(tmp_path / "public.safetensors", public_shapes(generation, **options))

    assert identify.identify_file(path) == expected


def test_a_config_path_tells_how_a_start_picture_enters(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task_type": "i2v", "image_condition_type": "token_replace"}))
    path = str(tmp_path / "config.json")

    assert [identify.condition_in(path, generation) for generation in ("1.0", "1.5")] == ["token_replace", "latent_concat"]
    assert identify.condition_in("token_replace", "1.0") == "token_replace"
    with pytest.raises(Unusable, match="gone.json: expected JSON"):
        identify.condition_in(str(tmp_path / "gone.json"), "1.0")


def test_the_config_in_the_file_tells_image_to_video_of_the_second_generation(tmp_path):
    path = save_single_file(tmp_path / "a.safetensors", tiny_image_to_video_15().transformer, layout="original")

    assert identify.identify_file(path) == HunyuanFacts("1.5", "latent_concat", 4, guidance_embeds=False, text_features=16)
    assert identify.carries_config(path)


def test_fp8_and_gguf_files_are_known_by_the_same_facts(tmp_path):
    transformer = wide_text_to_video().transformer
    expected = HunyuanFacts("1.0", None, 4, guidance_embeds=True, text_features=16)

    assert identify.identify_file(save_scaled_fp8(tmp_path / "a.safetensors", transformer)) == expected
    assert identify.identify_file(save_gguf(tmp_path / "a.gguf", transformer)) == expected


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf"])
def test_unknown_sizes_without_a_config_are_refused(tmp_path, name):
    save = save_single_file if name.endswith("safetensors") else save_gguf
    path = save(tmp_path / name, wide_text_to_video().transformer, with_config=False)

    with pytest.raises(Unusable, match=rf"{name}: sizes of a single file: expected those of the public HunyuanVideo 1.0"):
        identify.identify_file(path)


@pytest.mark.parametrize("cut", ["header", "data"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name, cut):
    save = save_single_file if name.endswith("safetensors") else save_gguf
    path = save(tmp_path / name, wide_text_to_video().transformer)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") if name.endswith("safetensors") else 8000
    path.write_bytes(whole[: header - 10] if cut == "header" else whole[:-1000])

    with pytest.raises(Unusable, match=f"{name} is truncated"):
        identify.identify_file(path)


def test_an_incomplete_public_file_is_refused_with_what_it_lacks(tmp_path):
    shapes = public_shapes("1.0", layout="diffusers")
    lacking = {name: shape for name, shape in shapes.items() if not name.startswith("single_transformer_blocks.39.")}

    with pytest.raises(Unusable, match=r"got 14 fewer \(first single_transformer_blocks\.39\.\S+ .*the file is incomplete"):
        identify.identify_file(write_hollow(tmp_path / "lacking.safetensors", lacking))


def test_a_quantization_that_we_cannot_open_is_refused(tmp_path):
    path = write_hollow(tmp_path / "packed.safetensors", public_shapes("1.0"), dtype="U8")

    with pytest.raises(Unusable, match="expected one of F32, F16, BF16, F8_E4M3, F8_E5M2, got U8: a quantization that is not supported"):
        identify.identify_file(path)


def test_a_broken_scale_is_refused_when_the_file_is_identified(tmp_path):
    weights = {**original_layout(tiny_transformer().state_dict()), "double_blocks.0.img_mod.linear.weight_scale": torch.ones(7)}
    path = save_weights(tmp_path / "a.safetensors", weights, config=config_of(tiny_transformer()))

    with pytest.raises(Unusable, match="expected one number, or one for each of the 120 rows"):
        identify.identify_file(path)


def test_loras_and_other_models_are_left_to_others(tmp_path):
    flux = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1), "txt_in.weight": torch.zeros(1)}
    lora = {"diffusion_model.txt_in.individual_token_refiner.blocks.0.mlp.fc1.lora_A.weight": torch.zeros(1, 1)}
    for name, weights in (("flux", flux), ("lora", lora)):
        path = save_weights(tmp_path / f"{name}.safetensors", weights, config=None)
        with pytest.raises(NotVideo):
            identify.identify_file(path)
        with pytest.raises(NotVideo):
            identify.identify_vae_file(path)


@pytest.mark.parametrize("form", ["folder", "file", "original file"])
@pytest.mark.parametrize("generation", ["1.0", "1.5"])
def test_a_vae_is_known_as_folder_and_as_file(tmp_path, generation, form):
    vae = tiny_vae() if generation == "1.0" else tiny_text_to_video_15().vae
    if form == "folder":
        vae.save_pretrained(tmp_path)
        found = identify.identify_vae_folder(tmp_path)
    else:
        weights = vae.state_dict()
        if form == "original file":
            named = original_vae_15(weights) if generation == "1.5" else weights
            weights = {f"vae.{name}": value for name, value in named.items()}
        found = identify.identify_vae_file(save_weights(tmp_path / "vae.safetensors", weights, config=config_of(vae)))

    assert found == VaeFacts(generation, latent_channels=4)


@pytest.mark.parametrize(("generation", "channels"), [("1.0", 16), ("1.5", 32)])
def test_a_public_vae_file_is_known_by_its_shapes(tmp_path, generation, channels):
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in sizes.VAES[generation]().state_dict().items()}

    assert identify.identify_vae_file(write_hollow(tmp_path / "vae.safetensors", shapes)) == VaeFacts(generation, channels)


def test_a_vae_file_that_is_cut_off_or_of_unknown_sizes_is_refused(tmp_path):
    path = save_weights(tmp_path / "vae.safetensors", tiny_vae().state_dict(), config=None)
    with pytest.raises(Unusable, match="sizes of a single file"):
        identify.identify_vae_file(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Unusable, match="truncated"):
        identify.identify_vae_file(path)


def test_a_folder_of_another_vae_is_left_to_others(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))

    with pytest.raises(NotVideo, match="AutoencoderKL"):
        identify.identify_vae_folder(tmp_path)
    with pytest.raises(NotVideo):
        identify.identify_vae_folder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("no JSON")
    with pytest.raises(NotVideo):
        identify.identify_vae_folder(tmp_path)


def test_a_config_with_values_of_the_wrong_kind_is_refused(tmp_path):
    transformer = tiny_transformer()
    path = save_single_file(tmp_path / "a.safetensors", transformer, config={**config_of(transformer), "num_layers": "two"})

    with pytest.raises(Unusable, match="a.safetensors: "):
        identify.identify_file(path)
