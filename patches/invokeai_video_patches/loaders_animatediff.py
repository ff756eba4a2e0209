"""AnimateDiff's motion modules, motion LoRAs and SparseCtrls -> modules and patches, for InvokeAI's model cache.

A single file is read under diffusers' names, whichever layout it has. Imported only by the hook.
"""

from pathlib import Path
from typing import Any

from diffusers import MotionAdapter
from diffusers.models import SparseControlNetModel
from invokeai.backend.model_manager.configs.factory import AnyModelConfig
from invokeai.backend.model_manager.load.load_default import ModelLoader
from invokeai.backend.model_manager.taxonomy import AnyModel, SubModelType
from invokeai.backend.patches.layers.utils import any_lora_layer_from_state_dict
from invokeai.backend.patches.model_patch_raw import ModelPatchRaw

from invokeai_video_nodes.pipelines.animatediff import motion_module, sparse_control_keys
from invokeai_video_patches import identify_animatediff, status
from invokeai_video_patches.loader_parts import word


class MotionModuleDiffusersLoader(ModelLoader):
    """Loads a motion module from a folder of diffusers' MotionAdapter, in the dtype of Stable Diffusion's UNet."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        _require_whole(config, submodel_type, what="motion module")
        return _from_folder(MotionAdapter, config, dtype=self._torch_dtype)


class MotionModuleFileLoader(ModelLoader):
    """Loads a motion module from one file, of the original layout or diffusers'."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        _require_whole(config, submodel_type, what="motion module")
        path = Path(config.path)
        described = identify_animatediff.described_file(path)
        weights = motion_module.own_weights(identify_animatediff.weights_of(path)) or {}
        self._ram_cache.make_room(sum(value.numel() for value in weights.values()) * self._torch_dtype.itemsize)
        return motion_module.assembled(described, weights, dtype=self._torch_dtype)


class MotionLoRALoader(ModelLoader):
    """Reads a motion LoRA into layers that InvokeAI's LayerPatcher applies to a UNetMotionModel."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        _require_whole(config, submodel_type, what="motion LoRA")
        found = motion_module.read_lora(identify_animatediff.weights_of(Path(config.path)))
        status.logger.info("invokeai-video: %s: %d layers of motion modules from %d keys", config.name, len(found.layers), found.total)
        return ModelPatchRaw({name: any_lora_layer_from_state_dict(dict(factors)) for name, factors in found.layers.items()})


class SparseCtrlLoader(ModelLoader):
    """Loads a SparseCtrl from a folder of diffusers' SparseControlNetModel, or from one file."""

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        _require_whole(config, submodel_type, what="SparseCtrl")
        path = Path(config.path)
        if path.is_file():
            options = identify_animatediff.sparse_control_config(path)
            return sparse_control_keys.assembled(options, identify_animatediff.weights_of(path), dtype=self._torch_dtype)
        return _from_folder(SparseControlNetModel, config, dtype=self._torch_dtype)


def _from_folder(load_class: Any, config: AnyModelConfig, *, dtype: Any) -> AnyModel:
    # Folders with half-precision files only have no others to fall back to.
    halves = sorted(Path(config.path).glob("*.fp16.*"))
    whole = [path for path in Path(config.path).glob("diffusion_pytorch_model.*") if ".fp16." not in path.name]
    variant = "fp16" if halves and not whole else None
    return load_class.from_pretrained(config.path, torch_dtype=dtype, variant=variant, local_files_only=True)


def _require_whole(config: AnyModelConfig, submodel_type: SubModelType | None, *, what: str) -> None:
    if submodel_type is not None:
        raise ValueError(f"{config.name} is a {what}: expected no part, got {word(submodel_type)}")
