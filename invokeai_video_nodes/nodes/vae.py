"""Latents -> video: each frame goes from the VAE straight into the encoder, so one frame, or one tile of a 3D VAE, is in memory.

While a decode lasts, its latents lie in a file that survives whatever happens to it: see `kept_latents`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Optional

import numpy as np
import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import (
    FieldDescriptions,
    ImageField,
    Input,
    InputField,
    LatentsField,
    MetadataField,
    WithBoard,
    WithMetadata,
)
from invokeai.app.invocations.model import VAEField
from invokeai.app.invocations.primitives import ImageCollectionOutput, VideoOutput
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.load.load_base import LoadedModel
from invokeai.backend.util.devices import TorchDevice
from PIL import Image
from pydantic import ValidationInfo, field_validator

from invokeai_video_nodes.nodes.clip_latents import PIXELS_PER_LATENT, ClipFacts
from invokeai_video_nodes.nodes.fields import CATEGORY, CODEC_LABELS, CodecChoice, Describe, with_limits
from invokeai_video_nodes.nodes.kept_latents import kept_while_decoding
from invokeai_video_nodes.nodes.progress import frame_progress, stops_when_canceled
from invokeai_video_nodes.nodes.save_video import save_video
from invokeai_video_nodes.nodes.vae_model import element_size, load_vae, load_video_vae
from invokeai_video_nodes.nodes.vae_tiles import vae_in_tiles
from invokeai_video_nodes.pipelines.decode import decode_frames
from invokeai_video_nodes.pipelines.memory import decode_working_bytes
from invokeai_video_nodes.pipelines.mp4 import check_mp4_settings
from invokeai_video_nodes.pipelines.vae3d import check_tile, decode_video

DEFAULT_FPS = 8
TILE_FRAMES = (
    "How many frames are decoded at once, a multiple of 4 and at least 8. 0: as many as fit into the memory. Where memory runs out "
    "all the same, the decode goes on with half as many."
)
TILE_SIZE = (
    "Width and height in pixels of what is decoded at once, a multiple of 8 and at least 64 (HunyuanVideo-1.5: a multiple of 16 and at "
    "least 128). 0: as much as fits into the memory."
)


def _checked_tile(value: int, info: ValidationInfo) -> int:
    """Refuse here, when the graph is queued, what no VAE can take: the decode comes only after the denoise.

    The fields are never connected: InvokeAI sets a connected value right before the node runs, and where that is refused here the
    node does not run, so that it keeps no latents and tells no reason.
    """
    check_tile("tile_size" if info.field_name == "tile_size" else "tile_frames", value)
    return value


@invocation(
    "z_image_video_decode",
    title="Video Decode - Z-Image",
    tags=["video", "z-image", "vae", "decode", "latents"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class ZImageVideoDecodeInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Turns a clip's latents into an MP4 in the gallery."""

    latents: LatentsField = InputField(description="The latents of a clip.", input=Input.Connection)
    vae: VAEField = InputField(description=FieldDescriptions.vae, input=Input.Connection)
    fps: Optional[int] = InputField(
        default=None,
        ge=0,  # the workflow editor fills 0 into an optional number that has no default
        le=60,
        description="Frames per second at which the clip plays. 0 or empty: as the denoise node says, else 8.",
        title="Frames per Second",
    )
    crf: int = InputField(default=18, ge=0, le=51, description=Describe.crf, title="Quality (CRF)")
    codec: CodecChoice = InputField(default="h264", description=Describe.codec, ui_choice_labels=CODEC_LABELS)

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> VideoOutput:
        with kept_while_decoding(context, self.latents) as (latents, facts):
            return decoded_frame_by_frame(context, latents, facts, vae=self.vae, fps=self.fps, crf=self.crf, codec=self.codec)


def decoded_frame_by_frame(
    context: InvocationContext,
    latents: torch.Tensor,
    facts: ClipFacts,
    *,
    vae: VAEField,
    fps: int | None,
    crf: int,
    codec: CodecChoice,
) -> VideoOutput:
    """Latents [1, C, F, h, w] through a 2D VAE into an MP4 of the gallery; `fps` None or 0: as the facts say, else 8."""
    fps = fps or facts.fps or DEFAULT_FPS
    height, width = (size * PIXELS_PER_LATENT for size in latents.shape[-2:])
    check_mp4_settings(fps=fps, width=width, height=height, codec="h264", crf=crf)
    loaded = load_vae(context, vae, channels=latents.shape[1])
    needed = decode_working_bytes(height=height, width=width, element_size=element_size(loaded.model))
    with stops_when_canceled(context) as stop, loaded.model_on_device(working_mem_bytes=needed) as (_, model):
        frames = decode_frames(
            model,
            latents,
            stop=stop,
            on_frame=frame_progress(context, "Decoding"),
            device=TorchDevice.choose_torch_device(),
        )
        return save_video(context, frames, width=width, height=height, fps=fps, crf=crf, codec=codec, stop=stop)


@invocation(
    "video_vae_decode",
    title="Video Decode - Video VAE",
    tags=["video", "hunyuan", "vae", "decode", "latents"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class VideoVAEDecodeInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Turns a clip's latents into an MP4 in the gallery, through a video VAE, in tiles that fit the memory."""

    latents: LatentsField = InputField(description="The latents of a clip.", input=Input.Connection)
    vae: VAEField = InputField(description="A video VAE.", input=Input.Connection)
    fps: Optional[int] = InputField(
        default=None,
        ge=0,  # the workflow editor fills 0 into an optional number that has no default
        le=60,
        description="Frames per second at which the clip plays. 0 or empty: as the denoise node says, else 24.",
        title="Frames per Second",
    )
    crf: int = InputField(default=18, ge=0, le=51, description=Describe.crf, title="Quality (CRF)")
    codec: CodecChoice = InputField(default="h264", description=Describe.codec, ui_choice_labels=CODEC_LABELS)
    tile_frames: int = with_limits(InputField(default=0, description=TILE_FRAMES, input=Input.Direct), minimum=0, step=4)
    tile_size: int = with_limits(InputField(default=0, description=TILE_SIZE, input=Input.Direct), minimum=0, step=8)
    _check_tiles = field_validator("tile_frames", "tile_size")(_checked_tile)

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> VideoOutput:
        with kept_while_decoding(context, self.latents) as (latents, facts):
            loaded = load_video_vae(context, self.vae, channels=latents.shape[1])
            width, height = _frame_size(loaded.model, latents)
            fps = self.fps or facts.fps or 24
            check_mp4_settings(fps=fps, width=width, height=height, codec="h264", crf=self.crf)
            with _in_tiles(context, loaded, latents, facts, tile_frames=self.tile_frames, tile_size=self.tile_size) as (frames, stop):
                return save_video(
                    context,
                    frames,
                    width=width,
                    height=height,
                    fps=fps,
                    crf=self.crf,
                    codec=self.codec,
                    stop=stop,
                    metadata=_with_facts(self.metadata, facts),
                )


@invocation(
    "video_vae_decode_frames",
    title="Video Frames Decode - Video VAE",
    tags=["video", "hunyuan", "vae", "decode", "latents", "frames", "collection"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class VideoVAEDecodeFramesInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Turns a clip's latents into a collection of images, through a video VAE, in tiles that fit the memory."""

    latents: LatentsField = InputField(description="The latents of a clip.", input=Input.Connection)
    vae: VAEField = InputField(description="A video VAE.", input=Input.Connection)
    tile_frames: int = with_limits(InputField(default=0, description=TILE_FRAMES, input=Input.Direct), minimum=0, step=4)
    tile_size: int = with_limits(InputField(default=0, description=TILE_SIZE, input=Input.Direct), minimum=0, step=8)
    _check_tiles = field_validator("tile_frames", "tile_size")(_checked_tile)

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> ImageCollectionOutput:
        with kept_while_decoding(context, self.latents) as (latents, facts):
            loaded = load_video_vae(context, self.vae, channels=latents.shape[1])
            with _in_tiles(context, loaded, latents, facts, tile_frames=self.tile_frames, tile_size=self.tile_size) as (frames, _):
                saved = (context.images.save(image=Image.fromarray(frame)) for frame in frames)
                return ImageCollectionOutput(collection=[ImageField(image_name=image.image_name) for image in saved])


def _with_facts(metadata: MetadataField | None, facts: ClipFacts) -> MetadataField | None:
    """The metadata that the gallery shows with what a step cache left out, None where it left out nothing."""
    if not facts.skipped_calls:
        return None
    return MetadataField({**(metadata.root if metadata else {}), "step_cache_skipped_calls": facts.skipped_calls})


def _frame_size(vae: Any, latents: torch.Tensor) -> tuple[int, int]:
    """(width, height) in pixels."""
    height, width = (size * int(vae.config.spatial_compression_ratio) for size in latents.shape[-2:])
    return width, height


@contextmanager
def _in_tiles(
    context: InvocationContext, loaded: LoadedModel, latents: torch.Tensor, facts: ClipFacts, *, tile_frames: int, tile_size: int
) -> Iterator[tuple[Iterator[np.ndarray], Callable[[], bool]]]:
    """The clip's frames as they are decoded, and what says that the artist canceled; the VAE is on the device meanwhile."""
    shape = tuple(latents.shape)
    with vae_in_tiles(context, loaded, shape, doing="Decoding", tile_frames=tile_frames, tile_size=tile_size) as (vae, options):
        yield islice(decode_video(vae, latents, **options), facts.skip_frames, None), options["stop"]
