"""ControlNets and SparseCtrls of an AnimateDiff denoise: checked by records and sizes, pictures prepared, models on the device."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from invokeai.app.invocations.controlnet import ControlField
from invokeai.app.invocations.fields import ImageField
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.app.util.controlnet_utils import prepare_control_image

from invokeai_video_nodes.nodes.animatediff_control import check_keyframes
from invokeai_video_nodes.nodes.animatediff_fields import AnimateDiffControlFramesField, AnimateDiffSparseControlField
from invokeai_video_nodes.nodes.animatediff_parts import check_control_model
from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.nodes.vae_model import element_size, load_vae
from invokeai_video_nodes.pipelines.animatediff.control import Control, ControlNet, SparseCtrl
from invokeai_video_nodes.pipelines.animatediff.per_step import check_span, check_weight
from invokeai_video_nodes.pipelines.encode import encode_pixels
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.memory import encode_working_bytes
from invokeai_video_nodes.pipelines.shapes import ClipShape


@dataclass(frozen=True)
class Controls:
    """What a denoise node is given, each list in the order of its field."""

    controls: Sequence[ControlField]
    frames: Sequence[AnimateDiffControlFramesField]
    sparse: AnimateDiffSparseControlField | None

    def check(self, context: InvocationContext, shape: ClipShape, *, steps: Sequence[int]) -> None:
        """Raise BadInput unless all of it suits the clip and runs of so many steps; records are read, no models."""
        for control in (*self.controls, *self.frames):
            check_control_model(context, control.control_model, sparse=False)
            check_span("control steps", control.begin_step_percent, control.end_step_percent)
            check_weight("ControlNet", control.control_weight, steps=steps)
        for given in self.frames:
            if len(given.images) != shape.num_frames:
                expected = f"{shape.num_frames} images, one for each frame"
                raise BadInput.expected("control_frames", expected, len(given.images), shape.num_frames)
        if self.sparse is not None:
            check_control_model(context, self.sparse.control_model, sparse=True)
            check_keyframes(self.sparse.frames, images=len(self.sparse.images), num_frames=shape.num_frames)

    @contextmanager
    def loaded(self, context: InvocationContext, shape: ClipShape) -> Iterator[list[Control]]:
        """The core's controls, with their models on the device."""
        # All pictures first: a VAE that keyframes need is gone again when the first model comes.
        pictures = [_pictures(context, control, [control.image], shape).expand(shape.num_frames, -1, -1, -1) for control in self.controls]
        pictures += [_pictures(context, control, control.images, shape) for control in self.frames]
        keyframes = None if self.sparse is None else _keyframes(context, self.sparse, shape)
        with ExitStack() as stack:
            opened: list[Control] = [
                _control_net(control, _on_device(context, stack, control), shown)
                for control, shown in zip((*self.controls, *self.frames), pictures, strict=True)
            ]
            if self.sparse is not None and keyframes is not None:
                model = _on_device(context, stack, self.sparse)
                opened.append(SparseCtrl(model, pictures=keyframes, frames=self.sparse.frames, weight=self.sparse.weight))
            yield opened


def _on_device(context: InvocationContext, stack: ExitStack, control: Any) -> Any:
    _, model = stack.enter_context(context.models.load(control.control_model).model_on_device())
    return model


def _control_net(control: ControlField | AnimateDiffControlFramesField, model: Any, pictures: torch.Tensor) -> ControlNet:
    return ControlNet(
        model,
        pictures=pictures,
        weight=control.control_weight,
        start=control.begin_step_percent,
        end=control.end_step_percent,
        positive_only=control.control_mode in ("more_control", "unbalanced"),
        soft=control.control_mode in ("more_prompt", "more_control"),
    )


def _pictures(context: InvocationContext, control: Any, images: Sequence[ImageField], shape: ClipShape) -> torch.Tensor:
    """uint8 [n, 3, H, W] on the CPU, each brought to the clip's size as InvokeAI's own denoise does it.

    8 bits are what the images have: as float32 those of 128 frames of 512x512 pixels would take 400 MB.
    """
    prepared = []
    for image in images:
        if context.util.is_canceled():
            raise CanceledException
        pixels = prepare_control_image(
            context.images.get_pil(image.image_name),
            width=shape.width,
            height=shape.height,
            device="cpu",
            dtype=torch.float32,
            resize_mode=control.resize_mode,
            do_classifier_free_guidance=False,
        )
        prepared.append((pixels * 255.0).round().to(torch.uint8))
    return torch.cat(prepared)


def _keyframes(context: InvocationContext, sparse: AnimateDiffSparseControlField, shape: ClipShape) -> torch.Tensor:
    """uint8 [n, 3, H, W], or where the model reads latents [n, 4, h, w] scaled; on the CPU."""
    pixels = _pictures(context, sparse, sparse.images, shape)
    if not context.models.get_config(sparse.control_model).reads_latents:
        return pixels
    if sparse.vae is None:
        raise BadInput.expected("VAE", "one connected to the SparseCtrl node, because its model reads latents", "none")
    loaded = load_vae(context, sparse.vae, channels=shape.latent_channels)
    needed = encode_working_bytes(height=shape.height, width=shape.width, element_size=element_size(loaded.model))
    with loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
        return torch.cat([encode_pixels(vae, picture[None].to(compute_device()) / 255.0 * 2.0 - 1.0).cpu() for picture in pixels])
