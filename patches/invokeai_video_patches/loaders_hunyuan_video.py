"""HunyuanVideo checkpoints, text encoders, video VAEs and LoRAs -> modules, for InvokeAI's model cache.

A single file is read under diffusers' names, whichever layout it has. fp8 becomes the compute dtype while it is read; GGUF stays
quantized, also where one of its weights is three of diffusers'. Imported only by the hook.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from invokeai.backend.model_manager.configs.factory import AnyModelConfig
from invokeai.backend.model_manager.load.load_default import ModelLoader
from invokeai.backend.model_manager.taxonomy import AnyModel, SubModelType
from invokeai.backend.patches.layers.utils import any_lora_layer_from_state_dict
from invokeai.backend.patches.model_patch_raw import ModelPatchRaw
from invokeai.backend.quantization.gguf.loaders import gguf_sd_loader
from invokeai.backend.quantization.gguf.utils import TORCH_COMPATIBLE_QTYPES
from safetensors.torch import load_file

from invokeai_video_nodes.nodes.compute import compute_dtype
from invokeai_video_nodes.pipelines.hunyuan_video import keys, lora, scaled_fp8, sizes, vae_keys
from invokeai_video_patches import identify_hunyuan_encoders, identify_hunyuan_video, status
from invokeai_video_patches.loader_parts import FOLDER_PARTS, FolderLoader, require_transformer, word

_TOKENIZERS = (SubModelType.Tokenizer, SubModelType.Tokenizer2)
ENCODER_PARTS = (
    SubModelType.TextEncoder,
    SubModelType.TextEncoder2,
    *_TOKENIZERS,
    SubModelType.ImageEncoder,  # type: ignore[attr-defined]
)
HUNYUAN_PARTS = tuple(dict.fromkeys((*FOLDER_PARTS, *ENCODER_PARTS)))


class HunyuanVideoDiffusersLoader(FolderLoader):
    """Loads one part of a HunyuanVideo folder."""

    parts = HUNYUAN_PARTS


class HunyuanVideoEncodersLoader(FolderLoader):
    """Loads one of the text encoders, or their tokenizers, from a folder of their own."""

    parts = ENCODER_PARTS

    def get_hf_load_class(self, model_path: Path, submodel_type: SubModelType | None = None) -> Any:
        """The class that the part's own config names, because there is no model_index.json to name it."""
        part = model_path / word(submodel_type)
        named = identify_hunyuan_encoders.tokenizer_class if submodel_type in _TOKENIZERS else identify_hunyuan_encoders.encoder_class
        return self._hf_definition_to_type(module="transformers", class_name=named(part))


class HunyuanVideoLoRALoader(ModelLoader):
    """Reads a LoRA file into layers that InvokeAI's LayerPatcher applies."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        if submodel_type is not None:
            raise ValueError(f"{config.name} is a LoRA: expected no part, got {word(submodel_type)}")
        found = lora.read_lora(load_file(Path(config.path)))
        status.logger.info("invokeai-video: %s: matched %d of %d keys (%s layout)", config.name, found.matched, found.total, found.layout)
        return ModelPatchRaw({name: any_lora_layer_from_state_dict(dict(factors)) for name, factors in found.layers.items()})


class HunyuanVideoSingleFileLoader(ModelLoader):
    """Loads the transformer from one safetensors file, of the original layout or diffusers'."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        require_transformer(config, submodel_type, instead=_INSTEAD)
        described = _described(config)
        weights = _opened(self, config, keys.own_weights)
        named = sizes.transformer_names(weights, generation=described.generation)
        model = _assembled(described, {name: value.contiguous() for name, value in named.items()})
        return self._apply_fp8_layerwise_casting(model, config, SubModelType.Transformer)


class HunyuanVideoGGUFLoader(ModelLoader):
    """Loads the transformer from GGUF; the matrices of its layers stay quantized in memory."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        require_transformer(config, submodel_type, instead=_INSTEAD)
        described = _described(config)
        weights = keys.own_weights(gguf_sd_loader(Path(config.path), compute_dtype=compute_dtype()))
        named = sizes.transformer_names(weights or {}, generation=described.generation)
        model = described.empty_model()
        return _filled(model, {name: _opened_unless_matrix(model, name, value) for name, value in named.items()})


class HunyuanVideoVAELoader(ModelLoader):
    """Loads a 3D VAE from a folder of its own."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        _require_vae(config, submodel_type)
        load_class = sizes.VAES[config.generation]
        variant = config.repo_variant.value or None
        return load_class.from_pretrained(config.path, torch_dtype=compute_dtype(), variant=variant, local_files_only=True)


class HunyuanVideoVAEFileLoader(ModelLoader):
    """Loads a 3D VAE from one safetensors file, of the original layout or diffusers'."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        _require_vae(config, submodel_type)
        described = identify_hunyuan_video.described_vae_file(Path(config.path))
        return _assembled(described, vae_keys.to_diffusers_keys(_opened(self, config, vae_keys.own_weights)))


_PLAIN_FLOATS = (*TORCH_COMPATIBLE_QTYPES, gguf.GGMLQuantizationType.BF16)
_INSTEAD = "an encoder source, and a VAE where it brings none that fits,"


def _described(config: AnyModelConfig) -> sizes.Described:
    """The file's transformer; how it takes a start picture is the record's word, because shapes may not tell it."""
    return sizes.with_condition(identify_hunyuan_video.described_file(Path(config.path)), config.condition)


def _opened(loader: Any, config: AnyModelConfig, own_weights: Any) -> dict[str, torch.Tensor]:
    """A safetensors file's weights in the compute dtype, with room made for them."""
    path, dtype = Path(config.path), compute_dtype()
    weights = own_weights(load_file(path)) or {}
    loader._ram_cache.make_room(sum(value.numel() for value in weights.values()) * dtype.itemsize)
    opened, fp8 = scaled_fp8.opened(weights, dtype=dtype)
    if fp8:
        status.logger.info("invokeai-video: %s: %d fp8 weights of %d opened as %s", path.name, fp8, len(opened), dtype)
    return opened


def _opened_unless_matrix(model: torch.nn.Module, name: str, value: Any) -> torch.Tensor:
    """Quantized tensors know matrix products only, so biases, norms, embeddings and the patch convolution are opened.

    What GGUF stores as plain floats is opened too, for nothing is saved by converting it again in every step.
    """
    quantized = getattr(value, "_ggml_quantization_type", None)
    layer = model.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, torch.nn.Linear) and name.endswith(".weight") and quantized not in _PLAIN_FLOATS:
        return value
    return value.get_dequantized_tensor().contiguous() if hasattr(value, "get_dequantized_tensor") else value


def _assembled(described: sizes.Described, weights: dict[str, Any]) -> torch.nn.Module:
    return _filled(described.empty_model(), weights)


def _filled(model: torch.nn.Module, weights: dict[str, Any]) -> torch.nn.Module:
    # Names and shapes were checked against the file's header, so a difference here is a bug.
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def _require_vae(config: AnyModelConfig, submodel_type: SubModelType | None) -> None:
    if submodel_type not in (None, SubModelType.VAE):
        raise ValueError(f"{config.name} is a video VAE: expected the part vae, got {word(submodel_type)}")
