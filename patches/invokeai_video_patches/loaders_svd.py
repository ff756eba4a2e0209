"""Stable Video Diffusion -> modules, for InvokeAI's model cache. Imported only by the hook."""

import math
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler
from invokeai.backend.model_manager.configs.factory import AnyModelConfig
from invokeai.backend.model_manager.load.load_default import ModelLoader
from invokeai.backend.model_manager.taxonomy import AnyModel, SubModelType
from safetensors import safe_open

from invokeai_video_nodes.pipelines.svd import keys, sizes
from invokeai_video_nodes.pipelines.svd.schedule import PUBLIC_SVD
from invokeai_video_patches.identify_svd import file_header
from invokeai_video_patches.loader_parts import FolderLoader, word

IMAGE_ENCODER = SubModelType.ImageEncoder  # type: ignore[attr-defined]


PARTS = (SubModelType.UNet, SubModelType.VAE, IMAGE_ENCODER, SubModelType.Scheduler)


class SVDDiffusersLoader(FolderLoader):
    """Loads one part of an SVD folder. The feature extractor is settings only: who needs it reads it from the folder."""

    parts = PARTS

    def _options(self, config: AnyModelConfig, submodel_type: SubModelType) -> dict[str, Any]:
        # The releases are float16, and so is Stable Diffusion in InvokeAI: float32 on the CPU.
        return {"torch_dtype": self._torch_dtype}


class SVDSingleFileLoader(ModelLoader):
    """Loads one part of the original single file, reading only that part's tensors; the scheduler is the public one."""

    def get_size_fs(self, config: AnyModelConfig, model_path: Path, submodel_type: SubModelType | None = None) -> int:
        """Bytes that the part takes in memory; upstream's answer is the whole file, for which the cache would empty itself."""
        if submodel_type in (None, SubModelType.Scheduler):
            return 0
        shapes = file_header(model_path).shapes
        values = sum(math.prod(shapes[name]) for name in keys.part_names(submodel_type.value, shapes))
        return values * self._torch_dtype.itemsize

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        if submodel_type not in PARTS:
            expected = ", ".join(part.value for part in PARTS)
            raise ValueError(f"{config.name}: expected one of the parts {expected}, got {word(submodel_type)}")
        if submodel_type is SubModelType.Scheduler:
            return EulerDiscreteScheduler(**PUBLIC_SVD)
        path, part = Path(config.path), submodel_type.value
        header = file_header(path)
        with safe_open(path, framework="pt") as file:
            # Copies, so that no weight lies in the file any more: there it begins at any byte, where kernels round differently.
            names = keys.part_names(part, header.shapes)
            weights = {name: file.get_tensor(name).to(self._torch_dtype, copy=True) for name in names}
        configs = sizes.configs_for(num_frames=config.num_frames, config=header.config())
        model = sizes.load_part(part, weights, configs[part])
        return self._apply_fp8_layerwise_casting(model, config, submodel_type)
