"""Latents -> video through Stable Video Diffusion's temporal decoder, a few frames at a time straight into the encoder.

While the decode lasts its latents lie in a file that survives whatever happens to it: see `kept_latents`.
"""

from typing import Optional

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import Input, InputField, LatentsField, WithBoard, WithMetadata
from invokeai.app.invocations.model import VAEField
from invokeai.app.invocations.primitives import VideoOutput
from invokeai.app.services.shared.invocation_context import InvocationContext
from pydantic import field_validator

from invokeai_video_nodes.nodes.clip_latents import PIXELS_PER_LATENT, ClipFacts
from invokeai_video_nodes.nodes.compute import all_bytes, compute_device, free_bytes
from invokeai_video_nodes.nodes.fields import CATEGORY, CODEC_LABELS, CodecChoice, Describe, with_limits
from invokeai_video_nodes.nodes.kept_latents import kept_while_decoding
from invokeai_video_nodes.nodes.progress import frame_progress, stops_when_canceled
from invokeai_video_nodes.nodes.save_video import save_video
from invokeai_video_nodes.nodes.svd_fields import BASE, DEFAULT_FPS, RULE
from invokeai_video_nodes.nodes.vae_model import element_size, load_temporal_vae
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.memory import svd_decode_frames, svd_decode_working_bytes
from invokeai_video_nodes.pipelines.mp4 import check_mp4_settings
from invokeai_video_nodes.pipelines.svd.decode import decode_chunks


@invocation(
    "svd_decode",
    title="Video Decode - SVD",
    tags=["video", "svd", "vae", "decode", "latents"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class SVDDecodeInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Turns the latents of an SVD clip into an MP4 in the gallery."""

    latents: LatentsField = InputField(description="The latents of a clip.", input=Input.Connection)
    vae: VAEField = InputField(description="The VAE of an SVD model.", input=Input.Connection, title="VAE")
    # Never connected: a connected value would be refused only after the denoise, and no latents kept.
    decode_chunk_size: int = with_limits(
        InputField(
            default=0,
            description="How many frames are decoded together. More flicker less and need more memory. 0: as many as fit. Where "
            "memory runs out all the same, the decode goes on with half as many.",
            input=Input.Direct,
            title="Frames at Once",
        ),
        minimum=0,
        maximum=RULE.max_frames,
    )
    fps: Optional[int] = InputField(
        default=None,
        ge=0,  # the workflow editor fills 0 into an optional number that has no default
        le=60,
        description="Frames per second at which the clip plays. 0 or empty: as the denoise node says, else 7.",
        title="Frames per Second",
    )
    crf: int = InputField(default=18, ge=0, le=51, description=Describe.crf, title="Quality (CRF)")
    codec: CodecChoice = InputField(default="h264", description=Describe.codec, ui_choice_labels=CODEC_LABELS)

    @field_validator("decode_chunk_size")
    @classmethod
    def _check_chunk_size(cls, value: int) -> int:
        if not 0 <= value <= RULE.max_frames:
            expected = f"0 to {RULE.max_frames} frames, 0 for as many as fit"
            raise BadInput.expected("decode_chunk_size", expected, value, min(max(value, 0), RULE.max_frames))
        return value

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> VideoOutput:
        with kept_while_decoding(context, self.latents, family=BASE) as (latents, facts):
            return self._decoded(context, latents, facts)

    def _decoded(self, context: InvocationContext, latents: torch.Tensor, facts: ClipFacts) -> VideoOutput:
        fps, device = self.fps or facts.fps or DEFAULT_FPS, compute_device()
        height, width = (size * PIXELS_PER_LATENT for size in latents.shape[-2:])
        check_mp4_settings(fps=fps, width=width, height=height, codec="h264", crf=self.crf)
        loaded = load_temporal_vae(context, self.vae, channels=latents.shape[1])
        frame_bytes = svd_decode_working_bytes(
            height=height, width=width, element_size=element_size(loaded.model), channels=loaded.model.config.block_out_channels[0]
        )

        def chunk_size(available: int) -> int:
            return self.decode_chunk_size or svd_decode_frames(available, frame_bytes=frame_bytes, num_frames=latents.shape[2])

        # First ask for what would be best, so that InvokeAI moves other models away; then see what there is.
        needed = frame_bytes * min(chunk_size(all_bytes(device)), latents.shape[2])
        with stops_when_canceled(context) as stop, loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
            frames = decode_chunks(
                vae,
                latents,
                chunk_size=chunk_size(free_bytes(device)),
                stop=stop,
                on_frame=frame_progress(context, "Decoding"),
                on_shrink=lambda at, before, after: context.logger.warning(
                    f"Out of memory at frame {at + 1}: going on with {after} frames at once instead of {before}."
                ),
                device=device,
            )
            return save_video(context, frames, width=width, height=height, fps=fps, crf=self.crf, codec=self.codec, stop=stop)
