"""Z-Image Video checkpoints -> modules, for InvokeAI's model cache.

Loaders of our own, because upstream's open f_patch_size 1 only and use bfloat16 on the CPU: ours keep fp32 there, so that results
can be compared bit by bit with diffusers, and bfloat16 on a GPU as upstream does. Imported only by the hook.
"""

from pathlib import Path
from typing import Any

import torch
from invokeai.backend.model_manager.configs.factory import AnyModelConfig
from invokeai.backend.model_manager.load.load_default import ModelLoader
from invokeai.backend.model_manager.load.model_loaders.generic_diffusers import GenericDiffusersLoader
from invokeai.backend.model_manager.taxonomy import AnyModel, BaseModelType, ModelFormat, ModelType, SubModelType
from invokeai.backend.quantization.gguf.loaders import gguf_sd_loader
from invokeai.backend.util.devices import TorchDevice
from invokeai.backend.util.state_dict_loading import load_state_dict_ignoring_extras
from safetensors.torch import load_file

from invokeai_video_nodes.pipelines.z_image import presets
from invokeai_video_patches import identify, status, weight_files

FOLDER_PARTS = (
    SubModelType.Transformer,
    SubModelType.VAE,
    SubModelType.TextEncoder,
    SubModelType.Tokenizer,
    SubModelType.Scheduler,
)

def compute_dtype() -> torch.dtype:
    """float32 on the CPU; on a GPU bfloat16, or what upstream takes where that is missing."""
    device = TorchDevice.choose_torch_device()
    return torch.float32 if device.type == "cpu" else TorchDevice.choose_bfloat16_safe_dtype(device)


class ZImageVideoDiffusersLoader(GenericDiffusersLoader):
    """Loads one part of a Z-Image Video folder."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        if submodel_type not in FOLDER_PARTS:
            expected = ", ".join(part.value for part in FOLDER_PARTS)
            raise ValueError(f"{config.name}: expected one of the parts {expected}, got {_word(submodel_type)}")
        model_path = Path(config.path)
        if submodel_type is SubModelType.Transformer and config.experimental:
            model = self._load_experimental(config, model_path)
        else:
            model = self._load_part(config, model_path, submodel_type)
        return self._apply_fp8_layerwise_casting(model, config, submodel_type)

    def _load_part(self, config: AnyModelConfig, model_path: Path, submodel_type: SubModelType) -> AnyModel:
        load_class = self.get_hf_load_class(model_path, submodel_type)
        part = model_path / submodel_type.value
        if not issubclass(load_class, torch.nn.Module):
            return load_class.from_pretrained(part, local_files_only=True)
        options: dict[str, Any] = {"torch_dtype": compute_dtype(), "local_files_only": True}
        if submodel_type is SubModelType.Transformer:
            # Some configs give one patch size for several frame sizes; the class wants lists of one length.
            options["all_patch_size"] = (2,) * len(config.f_patch_sizes)
            options["all_f_patch_size"] = tuple(config.f_patch_sizes)
        variant = config.repo_variant.value or None
        try:
            return load_class.from_pretrained(part, variant=variant, **options)
        except OSError as error:
            if variant is None or "no file named" not in str(error):
                raise
            # The record's variant covers the whole folder; a single part may lack it.
            return load_class.from_pretrained(part, **options)

    def _load_experimental(self, config: AnyModelConfig, model_path: Path) -> AnyModel:
        """A still-image transformer with its frame layers repeated for f_patch_size 1, 2 and 4."""
        load_class = self.get_hf_load_class(model_path, SubModelType.Transformer)
        still = load_class.from_pretrained(
            model_path / SubModelType.Transformer.value, torch_dtype=compute_dtype(), local_files_only=True
        )
        dims = presets.TransformerDims.from_config(dict(still.config))
        return assemble(still.state_dict(), dims, config)


class ZImageVideoSingleFileLoader(ModelLoader):
    """Loads the transformer from one safetensors file."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        require_transformer(config, submodel_type)
        path = Path(config.path)
        header = weight_files.read_safetensors_header(path)
        weights = to_diffusers_keys(load_file(path), header)
        dtype = compute_dtype()
        self._ram_cache.make_room(sum(value.numel() for value in weights.values()) * dtype.itemsize)
        weights = {name: value.to(dtype) for name, value in weights.items()}
        model = assemble(weights, identify.dims_of(header), config)
        return self._apply_fp8_layerwise_casting(model, config, SubModelType.Transformer)


class ZImageVideoGGUFLoader(ModelLoader):
    """Loads the transformer from GGUF; the weights of its blocks stay quantized in memory."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        require_transformer(config, submodel_type)
        path = Path(config.path)
        header = weight_files.read_gguf_header(path)
        weights = to_diffusers_keys(gguf_sd_loader(path, compute_dtype=compute_dtype()), header)
        return assemble(open_pad_tokens(weights), identify.dims_of(header), config)


def require_transformer(config: AnyModelConfig, submodel_type: SubModelType | None) -> None:
    """A single file holds the transformer alone; raises ValueError for any other part."""
    if submodel_type is not SubModelType.Transformer:
        raise ValueError(
            f"{config.name} is a single file: expected the part transformer, got {_word(submodel_type)}. "
            "Choose a VAE and a Qwen3 encoder of their own in the model loader node."
        )


def _word(submodel_type: SubModelType | None) -> str:
    return "none" if submodel_type is None else submodel_type.value


def to_diffusers_keys(weights: dict[str, Any], header: weight_files.WeightHeader) -> dict[str, Any]:
    """Weights of a file under diffusers' names."""
    return presets.to_diffusers_keys(weights, latent_channels=identify.latent_channels_of(header))


def open_pad_tokens(weights: dict[str, Any]) -> dict[str, Any]:
    """Dequantize the pad tokens: the model selects from them, and quantized tensors know matrix products only."""
    return {
        name: value.get_dequantized_tensor() if name.endswith("_pad_token") and hasattr(value, "get_dequantized_tensor") else value
        for name, value in weights.items()
    }


def assemble(weights: dict[str, Any], dims: presets.TransformerDims, config: AnyModelConfig) -> torch.nn.Module:
    """Put weights (diffusers keys) into a ZImageTransformer2DModel with the record's f_patch_sizes; raises when one lacks."""
    sizes = tuple(config.f_patch_sizes)
    if config.experimental:
        warn_experimental(config)
        weights = presets.tile_embedders(weights, sizes)
    model = presets.build_transformer(dims, sizes)
    load_state_dict_ignoring_extras(model, weights, source=f"Z-Image Video transformer {config.name}", assign=True)
    return model


def warn_experimental(config: AnyModelConfig) -> None:
    """Say in plain words what an image checkpoint does as a video model."""
    status.logger.warning("invokeai-video: %s: %s", config.name, identify.EXPERIMENTAL_WARNING)


LOADERS: dict[ModelFormat, type[ModelLoader]] = {
    ModelFormat.Diffusers: ZImageVideoDiffusersLoader,
    ModelFormat.Checkpoint: ZImageVideoSingleFileLoader,
    ModelFormat.GGUFQuantized: ZImageVideoGGUFLoader,
}


def patch(module: Any) -> str:
    """Register our loaders with `ModelLoaderRegistry`, once; `module` is `invokeai.backend.model_manager.load`."""
    registry = module.ModelLoaderRegistry
    base, kind = BaseModelType.ZImageVideo, ModelType.Main
    for model_format, loader in LOADERS.items():
        if registry._to_registry_key(base, kind, model_format) not in registry._registry:
            registry.register(base=base, type=kind, format=model_format)(loader)
    return f"{len(LOADERS)} loaders for {base.value}"
