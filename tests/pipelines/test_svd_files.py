"""An original single file becomes models that compute what diffusers' pipeline computes."""

import dataclasses

import pytest
import torch
from tiny_svd import tiny_svd
from tiny_svd_files import config_of, original_file

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.svd import keys, sizes

# CLIP takes pictures of this size only.
PIXELS = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline():
    return tiny_svd()


@pytest.fixture(scope="module")
def weights(pipeline):
    return original_file(pipeline)


@pytest.fixture(scope="module")
def config(pipeline):
    return config_of(pipeline)


def shapes(weights):
    return {name: tuple(value.shape) for name, value in weights.items()}


@torch.no_grad()
def outputs(models):
    seen = torch.randn(1, 4, 8, 6, 8, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(3, 4, 3, 4, generator=torch.Generator().manual_seed(2))
    embedding = models.image_encoder(PIXELS).image_embeds
    return (
        embedding,
        models.unet(seen, torch.tensor(0.5), embedding[:, None], added_time_ids=torch.ones(1, 3)).sample,
        models.vae.decode(latents, num_frames=3).sample,
        models.vae.encode(PIXELS).latent_dist.mode(),
    )


def test_models_of_a_file_compute_what_the_pipelines_models_do(pipeline, weights, config):
    models = sizes.load(weights, sizes.describe(shapes(weights), num_frames=25, config=config))

    assert all(torch.equal(*pair) for pair in zip(outputs(models), outputs(pipeline), strict=True))
    assert models.unet.config.num_frames == 25
    assert not models.unet.training and not any(tensor.is_meta for model in vars(models).values() for tensor in model.buffers())


def test_the_weights_are_taken_over_and_not_copied(weights, config):
    models = sizes.load(weights, sizes.describe(shapes(weights), num_frames=14, config=config))

    assert models.unet.conv_in.weight.data_ptr() == weights[keys.UNET_PREFIX + "input_blocks.0.0.weight"].data_ptr()


def test_a_public_file_is_told_by_its_shapes_alone():
    class Public:
        unet, vae, image_encoder = (sizes.empty_model(part, sizes.PUBLIC[part]) for part in sizes.PARTS)

    configs = sizes.describe(shapes(original_file(Public)), num_frames=25)
    assert configs["unet"]["num_frames"] == 25
    assert sizes.empty_model("unet", configs["unet"]).config.num_attention_heads == (5, 10, 20, 20)


@dataclasses.dataclass(frozen=True)
class Damage:
    """A file that lost or gained something, and what is said of it."""

    message: str
    without: str = ""
    extra: str = ""
    config: bool = True


@pytest.mark.parametrize(
    "damage",
    [
        Damage("unet: conv_in.weight: expected .* public checkpoint; any other size needs its config", config=False),
        Damage("SVD file: expected the layer model.diffusion_model", without=keys.MARK),
        Damage("unet weights: expected .* tensors, got 1 fewer .first conv_out.bias", without=keys.UNET_PREFIX + "out.2.bias"),
        Damage("unet weights: expected the layers of .*, got 1 more", extra=keys.UNET_PREFIX + "middle_block.1.strange"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_it_is_read(weights, config, damage):
    found = {name: shape for name, shape in shapes(weights).items() if name != damage.without}
    if damage.extra:
        found[damage.extra] = (3,)

    with pytest.raises(BadInput, match=damage.message):
        sizes.describe(found, num_frames=14, config=config if damage.config else None)


def test_a_config_that_lacks_a_model_is_refused(weights, config):
    with pytest.raises(BadInput, match="config: expected parts unet, vae, image_encoder, got unet, vae"):
        sizes.describe(shapes(weights), num_frames=14, config={"unet": config["unet"], "vae": config["vae"]})
