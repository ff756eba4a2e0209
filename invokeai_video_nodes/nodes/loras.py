"""The LoRAs of a transformer field: whether their files fit it, and in force for as long as a denoise runs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from invokeai.app.invocations.model import TransformerField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import ModelFormat, ModelType
from invokeai.backend.patches.layer_patcher import LayerPatcher, PatchSpec
from invokeai.backend.patches.model_patch_raw import ModelPatchRaw
from safetensors import SafetensorError, safe_open

from invokeai_video_nodes.nodes.compute import compute_dtype
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.lora import Size, check_fit, count_matched, sizes_in
from invokeai_video_nodes.pipelines.hunyuan_video.sizes import layer_sizes, transformer_of_folder


def loras_applied(
    context: InvocationContext, field: TransformerField, record: Any, transformer: Any, cached_weights: Any, *, prefix: str
) -> AbstractContextManager[Any]:
    """A context in which the LoRAs of the transformer field are in force; quantized weights get them as side layers.

    `prefix` is what the LoRA loader puts before the transformer's layer names.
    """
    patcher: AbstractContextManager[Any] = LayerPatcher.apply_smart_model_patches(
        model=transformer,
        # Other layouts than ours, which InvokeAI reads, may write a layer's name in their own way.
        patches=_patches(context, field, None if prefix else record, layer_sizes(transformer)),
        prefix=prefix,
        dtype=compute_dtype(),
        cached_weights=cached_weights,
        force_sidecar_patching=record.format not in (ModelFormat.Diffusers, ModelFormat.Checkpoint),
    )
    return patcher


def fitting_keys(context: InvocationContext, record: Any, *, model: Any, layers: Mapping[str, Size]) -> tuple[int, int]:
    """How many of a LoRA file's keys name layers of HunyuanVideo's, and how many keys it has; reads the header only.

    Raises BadInput for a record that is no LoRA, a file that is not there, and one that does not fit `layers`, those of the
    record `model`.
    """
    if record.type is not ModelType.LoRA:
        raise BadInput.expected("LoRA", "a LoRA", f"'{record.name}' of type {record.type.value}")
    shapes = _shapes(context.models.get_absolute_path(record), name=record.name)
    matched, total = count_matched(shapes)
    if not matched:
        raise BadInput.expected(f"LoRA '{record.name}'", "layers of HunyuanVideo's transformer", f"none among its {total} keys")
    check_fit(sizes_in(shapes), layers, lora=record.name, model=model.name, generation=model.generation)
    return matched, total


def layers_of(context: InvocationContext, record: Any) -> dict[str, Size]:
    """The sizes of a HunyuanVideo transformer's layers by its config or its file's header; no weight is read."""
    from invokeai_video_patches.identify_hunyuan_video import described_file

    path = context.models.get_absolute_path(record)
    if record.format is not ModelFormat.Diffusers:
        return layer_sizes(described_file(path).empty_model())
    config = json.loads((path / "transformer" / "config.json").read_text(encoding="utf-8"))
    return layer_sizes(transformer_of_folder(config, generation=record.generation).empty_model())


def _shapes(path: Path, *, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes in a LoRA's file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except FileNotFoundError as error:
        expected = f"the file {path.name}, as the model manager notes it"
        raise BadInput.expected(f"LoRA '{name}'", expected, "no such file: it was moved or deleted; install the LoRA again") from error
    except SafetensorError as error:
        raise BadInput.expected(f"LoRA '{name}'", "a whole safetensors file", f"{path.name}, which is damaged ({error})") from error


def _patches(context: InvocationContext, field: TransformerField, model: Any, layers: Mapping[str, Size]) -> Iterator[PatchSpec]:
    """The LoRAs with their weights; where the record `model` is given, those that do not fit its layers are refused."""
    for lora in field.loras:
        name = context.models.get_config(lora.lora).name
        loaded = context.models.load(lora.lora)
        if not isinstance(loaded.model, ModelPatchRaw):
            raise BadInput.expected(f"LoRA '{name}'", "a LoRA", type(loaded.model).__name__)
        if model is not None:
            changed = {layer: (values.up.shape[0], values.down.shape[1]) for layer, values in loaded.model.layers.items()}
            check_fit(changed, layers, lora=name, model=model.name, generation=model.generation)
        yield (loaded.model, lora.weight, loaded.model_in_ram())
