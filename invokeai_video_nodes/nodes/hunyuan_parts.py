"""The models that a HunyuanVideo graph is put together from -> where each part comes from, checked before anything loads.

A diffusers folder brings everything. A single file or GGUF holds the transformer alone: the text encoders come from a model of their
own, which brings no VAE, or from a folder of the same kind, which lends its VAE too. Records and JSON files are read, no weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import ModelFormat, ModelType

from invokeai_video_nodes.nodes.hunyuan_fields import require_hunyuan_video
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video import sizes
from invokeai_video_nodes.pipelines.hunyuan_video.denoise import CONCAT, REPLACE

TEXT_ENCODERS = ModelType("video_text_encoders")
CONDITIONS = (CONCAT, REPLACE)


@dataclass(frozen=True)
class Parts:
    """Where the encoders and the VAE come from, how a start image enters the transformer, and the schedule's shift.

    `has_image_encoder`: the encoders include one for images.
    """

    encoders: ModelIdentifierField
    vae: ModelIdentifierField
    condition: str | None
    has_image_encoder: bool
    shift: float


def choose_parts(
    context: InvocationContext,
    model: ModelIdentifierField,
    *,
    encoder_source: ModelIdentifierField | None,
    vae_model: ModelIdentifierField | None,
) -> Parts:
    """The parts beside the transformer of `model`; raises BadInput for one that is missing or does not fit it."""
    record = context.models.get_config(model)
    require_hunyuan_video(record, "video model")
    if record.type is not ModelType.Main:
        raise BadInput.expected("video model", "a HunyuanVideo model", f"'{record.name}' of type {record.type.value}")
    whole = record.format is ModelFormat.Diffusers
    if not whole and encoder_source is None:
        expected = f"text encoders chosen in this node, because '{record.name}' holds the transformer only"
        raise BadInput.expected("Encoder Source", expected, "none")
    check_config_path(record)
    encoders = encoder_source or model
    encoders_record = context.models.get_config(encoders)
    check_encoders(record, encoders_record, folder=context.models.get_absolute_path(encoders_record))
    vae = vae_model or (model if whole else encoders)
    check_vae(record, context.models.get_config(vae), picked=vae_model is not None)
    folder = context.models.get_absolute_path(record if whole else encoders_record)
    return Parts(
        encoders=encoders,
        vae=vae,
        condition=record.condition,
        has_image_encoder=record.generation == "1.5" and record.condition is not None,
        shift=shift_in(folder, generation=record.generation),
    )


def check_encoders(record: Any, source: Any, *, folder: Path) -> None:
    """Raise BadInput unless `source`, a folder, brings text encoders that the transformer of `record` was trained with."""
    require_hunyuan_video(source, "Encoder Source")
    if source.type is not TEXT_ENCODERS and (source.type is not ModelType.Main or source.format is not ModelFormat.Diffusers):
        got = f"'{source.name}', {'a single file' if source.type is ModelType.Main else f'of type {source.type.value}'}"
        raise BadInput.expected("Encoder Source", "text encoders or a complete HunyuanVideo folder", got)
    if source.generation != record.generation:
        expected = f"encoders of HunyuanVideo {record.generation}, as '{record.name}' is"
        raise BadInput.expected("Encoder Source", expected, f"'{source.name}' of HunyuanVideo {source.generation}")
    if not _fits_task(record, source):
        expected = f"encoders for {_task(record)}, as '{record.name}' is"
        raise BadInput.expected("Encoder Source", expected, f"'{source.name}' for {_task(source)}")
    width = source.text_features if source.type is TEXT_ENCODERS else text_features_in(folder)
    if record.text_features is not None and width is not None and width != record.text_features:
        expected = f"a text encoder of {record.text_features} features per token, as '{record.name}' reads"
        raise BadInput.expected("text encoder", expected, f"{width} in '{source.name}'", record.text_features)


def check_vae(record: Any, vae: Any, *, picked: bool) -> None:
    """Raise BadInput unless the latents of the VAE (a record of its own, or a folder's) are those of the transformer."""
    if not picked and vae.type is TEXT_ENCODERS:
        expected = f"a video VAE chosen in this node, because '{vae.name}' holds text encoders only"
        raise BadInput.expected("VAE", expected, "none")
    what = "VAE" if picked else "VAE of the Encoder Source"
    require_hunyuan_video(vae, what)
    if picked and vae.type.value != "video_vae":
        raise BadInput.expected(what, "a video VAE", f"'{vae.name}' of type {vae.type.value}")
    if (vae.generation, vae.latent_channels) != (record.generation, record.latent_channels):
        expected = f"HunyuanVideo {record.generation} with {record.latent_channels} latent channels, as '{record.name}' has"
        raise BadInput.expected(what, expected, f"'{vae.name}' of HunyuanVideo {vae.generation} with {vae.latent_channels}")


def check_config_path(record: Any) -> None:
    """Raise BadInput where the record's config path says nothing of how a start picture enters the model."""
    path = getattr(record, "config_path", None)
    if path and path not in CONDITIONS and not _json(Path(path)):
        expected = f"a config.json of a transformer, {' or '.join(CONDITIONS)}, or nothing, in the record of '{record.name}'"
        raise BadInput.expected("config path", expected, path)


def text_features_in(folder: Path) -> int | None:
    """Features per token of a folder's language model, None where its config does not say."""
    return sizes.text_features(_json(folder / "text_encoder" / "config.json"))


def shift_in(folder: Path, *, generation: str) -> float:
    """The shift of a folder's schedule; where the folder has no schedule, that of the public checkpoints."""
    path = folder / "scheduler" / "scheduler_config.json"
    return float(_json(path).get("shift", 1.0)) if path.is_file() else sizes.PUBLIC_SHIFT[generation]


def _fits_task(record: Any, source: Any) -> bool:
    """Whether the encoders look at a start image as the transformer wants it."""
    if record.generation == "1.5":
        return record.condition is None or _sees_images(source)
    if source.type is TEXT_ENCODERS:
        return _sees_images(source) == (record.condition is not None)
    # The first generation's language model looks at the start picture, and how it does is trained with each condition.
    return bool(source.condition == record.condition)


def _sees_images(source: Any) -> bool:
    return bool(source.sees_images if source.type is TEXT_ENCODERS else source.condition is not None)


def _task(record: Any) -> str:
    if record.type is TEXT_ENCODERS:
        return "image to video" if record.sees_images else "text to video"
    return f"image to video by {record.condition}" if record.condition else "text to video"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
