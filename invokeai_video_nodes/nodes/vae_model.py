"""The VAE of a graph: which kinds we can use, checked before it moves to the device."""

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from invokeai.app.invocations.model import VAEField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.flux.modules.autoencoder import AutoEncoder as FluxAutoEncoder
from invokeai.backend.model_manager.load.load_base import LoadedModel

from invokeai_video_nodes.pipelines.decode import latent_channels
from invokeai_video_nodes.pipelines.errors import BadInput


def load_vae(context: InvocationContext, field: VAEField, *, channels: int | None = None) -> LoadedModel:
    """Load a 2D VAE into memory, not yet onto the device. Raises BadInput for another kind or other latent `channels`."""
    loaded = context.models.load(field.vae)
    if not isinstance(loaded.model, (AutoencoderKL, FluxAutoEncoder)):
        expected = "a VAE of single images (AutoencoderKL or the FLUX AutoEncoder)"
        raise BadInput.expected("VAE", expected, f"'{field.vae.name}', a {type(loaded.model).__name__}")
    found = latent_channels(loaded.model)
    if channels is not None and found != channels:
        expected = f"{channels} latent channels"
        raise BadInput.expected("VAE", expected, f"'{field.vae.name}' with {found}", f"a VAE with {channels} channels")
    return loaded


def element_size(vae: Any) -> int:
    """Bytes of one value that this VAE computes with."""
    return next(iter(vae.parameters())).element_size()
