"""The original single file of SVD, written from diffusers' models, becomes the same weights again."""

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from tiny_svd import tiny_svd
from tiny_svd_files import original_file, original_image_encoder, original_unet, original_vae
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.svd import keys


@pytest.fixture(scope="module")
def pipeline():
    tiny = tiny_svd()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # Norms and mixers begin as ones and zeros, all alike: a swap of two would not show.
        for model in (tiny.unet, tiny.vae, tiny.image_encoder):
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return tiny


def shapes(weights):
    return {name: tuple(value.shape) for name, value in weights.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("embedder", [True, False])
def test_an_original_file_loads_to_the_same_weights(pipeline, tmp_path, embedder):
    save_file(original_file(pipeline, embedder=embedder), tmp_path / "svd.safetensors")
    weights = load_file(tmp_path / "svd.safetensors")
    parts = keys.to_diffusers(weights)

    assert keys.is_original(weights)
    assert_same(parts.unet, pipeline.unet.state_dict())
    assert_same(parts.vae, pipeline.vae.state_dict())
    assert_same(parts.image_encoder, pipeline.image_encoder.state_dict())


def test_a_first_stage_without_quant_conv_gets_one_that_changes_nothing(pipeline):
    weights = original_file(pipeline, embedder=False)
    del weights["first_stage_model.quant_conv.weight"], weights["first_stage_model.quant_conv.bias"]
    vae = keys.vae_to_diffusers(weights)

    moments = torch.randn(1, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    changed = torch.nn.functional.conv2d(moments, vae["quant_conv.weight"], vae["quant_conv.bias"])
    assert torch.equal(changed, moments)
    assert vae.keys() == pipeline.vae.state_dict().keys()


def test_the_public_sizes_find_every_layer_too():
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel()
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2
        )
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, patch_size=14, projection_dim=1024)
        )
    stage = {"first_stage_model." + name: value for name, value in original_vae(vae)}

    for found, model in (
        (keys.unet_to_diffusers(dict(original_unet(unet))), unet),
        (keys.vae_to_diffusers(stage), vae),
        (keys.image_encoder_to_diffusers(dict(original_image_encoder(vision))), vision),
    ):
        assert shapes(found) == shapes(model.state_dict())


def test_other_files_are_not_taken_for_svd(pipeline):
    assert not keys.is_original(pipeline.unet.state_dict())
    assert not keys.is_original({"model.diffusion_model.input_blocks.1.0.in_layers.2.weight": 0})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (keys.UNET_PREFIX + "input_blocks.1.0.strange.weight", "UNet weights: .* got input_blocks.1.0.strange.weight"),
        (keys.UNET_PREFIX + "strange", "UNet weights: .* got strange"),
        (keys.IMAGE_ENCODER_PREFIX + "strange", "image encoder weights: .* got strange"),
        (keys.VAE_PREFIX + "decoder.mid.attn_1.strange.weight", "VAE weights: .* got decoder.mid.attn_1.strange.weight"),
        (keys.VAE_PREFIX + "decoder.strange.weight", "VAE weights: .* got decoder.strange.weight"),
    ],
)
def test_a_layer_that_svd_has_not_is_refused_by_its_name(pipeline, name, message):
    with pytest.raises(BadInput, match=message):
        keys.to_diffusers({**original_file(pipeline), name: torch.zeros(1)})


@pytest.mark.parametrize("prefix", [keys.UNET_PREFIX, keys.VAE_PREFIX, keys.IMAGE_ENCODER_PREFIX])
def test_a_file_that_lacks_one_of_the_models_is_refused(pipeline, prefix):
    weights = {name: value for name, value in original_file(pipeline).items() if not name.startswith(prefix)}

    with pytest.raises(BadInput, match=f"SVD file: expected layers named {prefix}"):
        keys.to_diffusers(weights)
