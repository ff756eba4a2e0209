"""Z-Image Video checkpoints -> modules, for InvokeAI's model cache, and the place where all our loaders are registered.

Loaders of our own, because upstream's open f_patch_size 1 only and use bfloat16 on the CPU: ours keep fp32 there, so that results
can be compared bit by bit with diffusers, and bfloat16 on a GPU as upstream does. Imported only by the hook.
"""

from pathlib import Path
from typing import Any

import torch
from invokeai.backend.model_manager.configs.factory import AnyModelConfig
from invokeai.backend.model_manager.load.load_default import ModelLoader
from invokeai.backend.model_manager.taxonomy import AnyModel, BaseModelType, ModelFormat, ModelType, SubModelType
from invokeai.backend.quantization.gguf.loaders import gguf_sd_loader
from invokeai.backend.util.state_dict_loading import load_state_dict_ignoring_extras
from safetensors.torch import load_file

from invokeai_video_nodes.nodes.compute import compute_dtype
from invokeai_video_nodes.pipelines.z_image import presets
from invokeai_video_patches import identify, loaders_animatediff, loaders_hunyuan_video, loaders_svd, status, weight_files
from invokeai_video_patches.loader_parts import FolderLoader, require_transformer


class ZImageVideoDiffusersLoader(FolderLoader):
    """Loads one part of a Z-Image Video folder."""

    def _load_part(self, config: AnyModelConfig, model_path: Path, submodel_type: SubModelType) -> AnyModel:
        if submodel_type is SubModelType.Transformer and config.experimental:
            return self._load_experimental(config, model_path)
        return super()._load_part(config, model_path, submodel_type)

    def _options(self, config: AnyModelConfig, submodel_type: SubModelType) -> dict[str, Any]:
        if submodel_type is not SubModelType.Transformer:
            return {}
        # Some configs give one patch size for several frame sizes; the class wants lists of one length.
        return {"all_patch_size": (2,) * len(config.f_patch_sizes), "all_f_patch_size": tuple(config.f_patch_sizes)}

    def _load_experimental(self, config: AnyModelConfig, model_path: Path) -> AnyModel:
        """A still-image transformer with its frame layers repeated for f_patch_size 1, 2 and 4."""
        load_class = self.get_hf_load_class(model_path, SubModelType.Transformer)
        still = load_class.from_pretrained(model_path / SubModelType.Transformer.value, torch_dtype=compute_dtype(), local_files_only=True)
        dims = presets.TransformerDims.from_config(dict(still.config))
        return assemble(still.state_dict(), dims, config)


class ZImageVideoSingleFileLoader(ModelLoader):
    """Loads the transformer from one safetensors file."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        require_transformer(config, submodel_type, instead="a VAE and a Qwen3 encoder of their own")
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
        require_transformer(config, submodel_type, instead="a VAE and a Qwen3 encoder of their own")
        path = Path(config.path)
        header = weight_files.read_gguf_header(path)
        weights = to_diffusers_keys(gguf_sd_loader(path, compute_dtype=compute_dtype()), header)
        return assemble(open_pad_tokens(weights), identify.dims_of(header), config)


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


Z_IMAGE, HUNYUAN = BaseModelType.ZImageVideo, BaseModelType.HunyuanVideo  # type: ignore[attr-defined]
SD1, SVD = BaseModelType.StableDiffusion1, BaseModelType.SVD  # type: ignore[attr-defined]
MOTION_MODULE, SPARSE_CTRL = ModelType.MotionModule, ModelFormat.SparseCtrl  # type: ignore[attr-defined]
VIDEO_VAE, TEXT_ENCODERS = ModelType.VideoVAE, ModelType.VideoTextEncoders  # type: ignore[attr-defined]
LOADERS: dict[tuple[BaseModelType, ModelType, ModelFormat], type[ModelLoader]] = {
    (Z_IMAGE, ModelType.Main, ModelFormat.Diffusers): ZImageVideoDiffusersLoader,
    (Z_IMAGE, ModelType.Main, ModelFormat.Checkpoint): ZImageVideoSingleFileLoader,
    (Z_IMAGE, ModelType.Main, ModelFormat.GGUFQuantized): ZImageVideoGGUFLoader,
    (HUNYUAN, ModelType.Main, ModelFormat.Diffusers): loaders_hunyuan_video.HunyuanVideoDiffusersLoader,
    (HUNYUAN, ModelType.Main, ModelFormat.Checkpoint): loaders_hunyuan_video.HunyuanVideoSingleFileLoader,
    (HUNYUAN, ModelType.Main, ModelFormat.GGUFQuantized): loaders_hunyuan_video.HunyuanVideoGGUFLoader,
    (HUNYUAN, VIDEO_VAE, ModelFormat.Diffusers): loaders_hunyuan_video.HunyuanVideoVAELoader,
    (HUNYUAN, VIDEO_VAE, ModelFormat.Checkpoint): loaders_hunyuan_video.HunyuanVideoVAEFileLoader,
    (HUNYUAN, TEXT_ENCODERS, ModelFormat.Diffusers): loaders_hunyuan_video.HunyuanVideoEncodersLoader,
    (HUNYUAN, ModelType.LoRA, ModelFormat.LyCORIS): loaders_hunyuan_video.HunyuanVideoLoRALoader,
    (SD1, MOTION_MODULE, ModelFormat.Diffusers): loaders_animatediff.MotionModuleDiffusersLoader,
    (SD1, MOTION_MODULE, ModelFormat.Checkpoint): loaders_animatediff.MotionModuleFileLoader,
    (SD1, ModelType.LoRA, ModelFormat.Checkpoint): loaders_animatediff.MotionLoRALoader,
    (SD1, ModelType.ControlNet, SPARSE_CTRL): loaders_animatediff.SparseCtrlLoader,
    (SVD, ModelType.Main, ModelFormat.Diffusers): loaders_svd.SVDDiffusersLoader,
    (SVD, ModelType.Main, ModelFormat.Checkpoint): loaders_svd.SVDSingleFileLoader,
}


def patch(module: Any) -> str:
    """Register our loaders with `ModelLoaderRegistry`, once; `module` is `invokeai.backend.model_manager.load`."""
    registry = module.ModelLoaderRegistry
    for (base, kind, model_format), loader in LOADERS.items():
        if registry._to_registry_key(base, kind, model_format) not in registry._registry:
            registry.register(base=base, type=kind, format=model_format)(loader)
    return f"{len(LOADERS)} loaders for {', '.join(dict.fromkeys(base.value for base, _, _ in LOADERS))}"
