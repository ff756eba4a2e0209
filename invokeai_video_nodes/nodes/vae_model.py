"""The VAE of a graph: which kinds we can use, checked before it moves to the device."""

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import AutoencoderKLHunyuanVideo15
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from invokeai.app.invocations.model import VAEField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.flux.modules.autoencoder import AutoEncoder as FluxAutoEncoder
from invokeai.backend.model_manager.load.load_base import LoadedModel

from invokeai_video_nodes.nodes.hunyuan_fields import BASE as HUNYUAN_VIDEO
from invokeai_video_nodes.nodes.svd_fields import BASE as SVD
from invokeai_video_nodes.pipelines.decode import latent_channels
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES, FrameRule

TEMPORAL_VAE = "the VAE of a Stable Video Diffusion model (with a temporal decoder)"


def load_vae(context: InvocationContext, field: VAEField, *, channels: int | None = None) -> LoadedModel:
    """Load a 2D VAE into memory, not yet onto the device. Raises BadInput for another kind or other latent `channels`."""
    if context.models.get_config(field.vae).base.value == SVD:
        got = f"'{field.vae.name}', whose latents 'Video Decode - SVD' decodes"
        raise BadInput.expected("VAE", "a VAE of single images", got)
    kinds = (AutoencoderKL, FluxAutoEncoder)
    return _load(context, field, kinds, "a VAE of single images (AutoencoderKL or the FLUX AutoEncoder)", channels)


def load_video_vae(context: InvocationContext, field: VAEField, *, channels: int | None = None) -> LoadedModel:
    """Load a 3D VAE into memory, not yet onto the device. Raises BadInput for another kind or other latent `channels`.

    Where the record says the channels, before anything is loaded.
    """
    record = context.models.get_config(field.vae)
    recorded = getattr(record, "latent_channels", None) if record.base.value == HUNYUAN_VIDEO else None
    if recorded is not None and channels is not None and recorded != channels:
        raise _other_channels(field, recorded, channels)
    kinds = (AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15)
    return _load(context, field, kinds, "a video VAE (HunyuanVideo's or HunyuanVideo-1.5's)", channels)


def load_temporal_vae(context: InvocationContext, field: VAEField, *, channels: int | None = None) -> LoadedModel:
    """Load SVD's VAE into memory, not yet onto the device. Raises BadInput for another kind, before anything is loaded."""
    require_temporal_vae(context, field)
    return _load(context, field, (AutoencoderKLTemporalDecoder,), TEMPORAL_VAE, channels)


def require_temporal_vae(context: InvocationContext, field: VAEField) -> None:
    """Raise BadInput unless the record is of an SVD model; nothing is loaded."""
    record = context.models.get_config(field.vae)
    if record.base.value != SVD:
        raise BadInput.expected("VAE", TEMPORAL_VAE, f"'{record.name}' of base {record.base.value}")


def frame_rule(context: InvocationContext, field: VAEField) -> FrameRule:
    """Which frame counts and sizes the family of this video VAE delivers, as its record says; nothing is loaded."""
    record = context.models.get_config(field.vae)
    return FRAME_RULES["hunyuan-video-1.5" if getattr(record, "generation", None) == "1.5" else "hunyuan-video"]


def _load(context: InvocationContext, field: VAEField, kinds: tuple[type, ...], expected: str, channels: int | None) -> LoadedModel:
    loaded = context.models.load(field.vae)
    if not isinstance(loaded.model, kinds):
        raise BadInput.expected("VAE", expected, f"'{field.vae.name}', a {type(loaded.model).__name__}")
    found = latent_channels(loaded.model)
    if channels is not None and found != channels:
        raise _other_channels(field, found, channels)
    return loaded


def _other_channels(field: VAEField, found: int, channels: int) -> BadInput:
    expected = f"{channels} latent channels"
    return BadInput.expected("VAE", expected, f"'{field.vae.name}' with {found}", f"a VAE with {channels} channels")


def element_size(vae: Any) -> int:
    """Bytes of one value that this VAE computes with."""
    return next(iter(vae.parameters())).element_size()
