"""The core's steps and frames -> InvokeAI's progress bar, preview picture and cancel button."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from invokeai.app.invocations.model import VAEField
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.shared.invocation_context import InvocationContext
from PIL import Image

from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.nodes.vae_model import load_video_vae
from invokeai_video_nodes.pipelines.errors import BadInput, Canceled
from invokeai_video_nodes.pipelines.preview import FLUX_FACTORS, PreviewFactors, fit_factors, latent_preview, load_factors
from invokeai_video_nodes.pipelines.vae3d import TilePlan, encode_video


class StepPreview:
    """Tells the user of each denoising step, with a picture of the clip's middle frame as it stands."""

    def __init__(self, context: InvocationContext, *, size: tuple[int, int], factors: PreviewFactors | None) -> None:
        """`size` is the clip's (width, height) in pixels; without `factors` there is a bar but no picture."""
        self._context = context
        self._size = size
        self._factors = factors

    def __call__(self, step: int, total: int, x0_estimate: torch.Tensor, latents: torch.Tensor) -> None:
        """`step` counts from 1; `x0_estimate` [1, C, F, h, w] are the clean latents as far as they are known."""
        self._context.util.signal_progress(f"Denoising step {step}/{total}", step / total, self._picture(x0_estimate), self._size)

    def _picture(self, x0_estimate: torch.Tensor) -> Image.Image | None:
        if self._factors is None:
            return None
        return Image.fromarray(latent_preview(x0_estimate[0, :, x0_estimate.shape[2] // 2], self._factors))


def preview_factors(model_path: Path, channels: int) -> PreviewFactors | None:
    """The checkpoint's own preview factors, else FLUX's where the channels fit, else None."""
    own = load_factors(model_path) if model_path.is_dir() else None
    if own is not None and own.channels != channels:
        raise BadInput.expected(f"{model_path.name}: latent preview: channels", channels, own.channels, channels)
    return own or (FLUX_FACTORS if channels == FLUX_FACTORS.channels else None)


# One fit serves every run with the same VAE.
_fitted: dict[tuple[str, str], PreviewFactors] = {}


def fitted_factors(context: InvocationContext, field: VAEField, *, channels: int) -> PreviewFactors:
    """Preview factors for a video VAE, fitted to it at its first use. Raises BadInput for another kind of VAE."""
    key = field.vae.key, str(field.vae.submodel_type)
    if key not in _fitted:
        loaded = load_video_vae(context, field, channels=channels)
        with loaded as vae:
            device = compute_device()
            plan = TilePlan(frames=1, height=32, width=32, overlap=0, margin=0)

            def encode(picture: np.ndarray) -> torch.Tensor:
                return encode_video(vae, iter([picture]), num_frames=1, plan=plan, device=device)[0, :, 0]

            _fitted[key] = fit_factors(encode, cell=int(vae.config.spatial_compression_ratio))
    return _fitted[key]


def frame_progress(context: InvocationContext, verb: str) -> Callable[[int, int], None]:
    """A callback for (1-based frame, total) that shows "VERB frame i/N"."""

    def on_frame(frame: int, total: int) -> None:
        context.util.signal_progress(f"{verb} frame {frame}/{total}", frame / total)

    return on_frame


@contextmanager
def stops_when_canceled(context: InvocationContext) -> Iterator[Callable[[], bool]]:
    """`with stops_when_canceled(context) as stop:` pass `stop` to the core; its Canceled leaves as InvokeAI's."""
    try:
        yield context.util.is_canceled
    except Canceled as error:
        raise CanceledException from error
