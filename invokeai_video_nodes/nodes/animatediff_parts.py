"""The models that an AnimateDiff graph names -> whether they belong together, by their records and JSON files; no weight is read."""

import json
from pathlib import Path
from typing import Any

from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat, ModelType, ModelVariantType

from invokeai_video_nodes.nodes.animatediff_fields import AnimateDiffModelField
from invokeai_video_nodes.pipelines.animatediff.unet import check_fit
from invokeai_video_nodes.pipelines.errors import BadInput

SD1 = BaseModelType.StableDiffusion1
MOTION_MODULE, SPARSE_CTRL = ModelType("motion_module"), ModelFormat("sparse_ctrl")
# The sizes of Stable Diffusion 1.5's UNet, which every single file has, and of a public motion module.
PUBLIC_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
PUBLIC_MODULE = {"conv_in_channels": None, "block_out_channels": (320, 640, 1280, 1280), "motion_layers_per_block": 2}


def check_model(context: InvocationContext, model: AnimateDiffModelField) -> tuple[Any, Any]:
    """The records of the main model and the motion module; raises BadInput unless the module fits the UNet and its LoRAs are its own."""
    main = context.models.get_config(model.unet.unet)
    require_sd1(main, "main model", (ModelType.Main,))
    if main.variant is not ModelVariantType.Normal:
        raise BadInput.expected("main model", "Stable Diffusion 1.5 for pictures from text", f"'{main.name}' for {main.variant.value}")
    module = context.models.get_config(model.motion_module)
    require_sd1(module, "motion module", (MOTION_MODULE,))
    unet_path = context.models.get_absolute_path(main) / "unet" / "config.json"
    unet = PUBLIC_UNET | (_json(unet_path) if main.format is ModelFormat.Diffusers else {})
    check_fit(unet, _module_config(module, context.models.get_absolute_path(module)))
    for lora in model.motion_loras:
        check_motion_lora(context, lora.lora)
    for lora in model.unet.loras:
        record = context.models.get_config(lora.lora)
        if _is_motion_lora(record):
            raise BadInput.expected("LoRA", "a LoRA for pictures", f"'{record.name}', a motion LoRA: it goes into 'Apply Motion LoRA'")
    return main, module


def check_motion_lora(context: InvocationContext, lora: ModelIdentifierField) -> Any:
    """The record of a motion LoRA; raises BadInput for another model."""
    record = context.models.get_config(lora)
    require_sd1(record, "motion LoRA", (ModelType.LoRA,))
    if not _is_motion_lora(record):
        raise BadInput.expected("motion LoRA", "a LoRA for motion modules", f"'{record.name}', a LoRA for pictures")
    return record


def check_control_model(context: InvocationContext, model: ModelIdentifierField, *, sparse: bool) -> Any:
    """The record of a ControlNet, or with `sparse` of a SparseCtrl; raises BadInput for another model."""
    what, other = ("SparseCtrl", "a ControlNet") if sparse else ("ControlNet", "a SparseCtrl")
    record = context.models.get_config(model)
    require_sd1(record, what, (ModelType.ControlNet,))
    if (record.format is SPARSE_CTRL) != sparse:
        raise BadInput.expected(what, f"a {what} model", f"'{record.name}', {other}")
    return record


def require_sd1(record: Any, what: str, types: tuple[ModelType, ...]) -> None:
    """Raise BadInput unless the record is of one of the types and for Stable Diffusion 1.5."""
    if record.type not in types:
        raise BadInput.expected(what, f"a model of type {types[0].value}", f"'{record.name}' of type {record.type.value}")
    if record.base is not SD1:
        raise BadInput.expected(what, "one for Stable Diffusion 1.5 (base sd-1)", f"'{record.name}' of base {record.base.value}")


def _is_motion_lora(record: Any) -> bool:
    # InvokeAI's own LoRAs of this base have formats of theirs.
    return record.type is ModelType.LoRA and record.format is ModelFormat.Checkpoint


def _module_config(record: Any, path: Path) -> dict[str, Any]:
    if record.format is ModelFormat.Diffusers:
        return PUBLIC_MODULE | _json(path / "config.json")
    from invokeai_video_patches.identify_animatediff import described_file

    return described_file(path).config


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput.expected("model folder", f"{path.parent.name}/{path.name}", "none: install the model again") from error
    except ValueError as error:
        raise BadInput.expected(f"{path.parent.name}/{path.name}", "JSON", f"a damaged file ({error})") from error
    return content if isinstance(content, dict) else {}
