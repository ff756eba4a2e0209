"""What the loaders of all our models share: one part of a diffusers folder, and the refusal of other parts.

Imported only by the hook, after InvokeAI's own loaders.
"""

from pathlib import Path
from typing import Any

import torch
from invokeai.backend.model_manager.configs.factory import AnyModelConfig
from invokeai.backend.model_manager.load.model_loaders.generic_diffusers import GenericDiffusersLoader
from invokeai.backend.model_manager.taxonomy import AnyModel, SubModelType

from invokeai_video_nodes.nodes.compute import compute_dtype

FOLDER_PARTS = (
    SubModelType.Transformer,
    SubModelType.VAE,
    SubModelType.TextEncoder,
    SubModelType.Tokenizer,
    SubModelType.Scheduler,
)


class FolderLoader(GenericDiffusersLoader):
    """Loads one part of a diffusers folder, with the class that its model_index.json names."""

    parts: tuple[SubModelType, ...] = FOLDER_PARTS

    def _load_model(self, config: AnyModelConfig, submodel_type: SubModelType | None = None) -> AnyModel:
        if submodel_type not in self.parts:
            expected = ", ".join(part.value for part in self.parts)
            raise ValueError(f"{config.name}: expected one of the parts {expected}, got {word(submodel_type)}")
        model = self._load_part(config, Path(config.path), submodel_type)
        return self._apply_fp8_layerwise_casting(model, config, submodel_type)

    def _load_part(self, config: AnyModelConfig, model_path: Path, submodel_type: SubModelType) -> AnyModel:
        load_class = self.get_hf_load_class(model_path, submodel_type)
        part = model_path / submodel_type.value
        if not part.is_dir():
            # Without this diffusers takes the path for a name on a hub, and says that it cannot be reached.
            expected = f"the folder {model_path.name}/{submodel_type.value}"
            raise ValueError(f"{config.name}: expected {expected}, got none: it was moved or deleted; install the model again")
        if not issubclass(load_class, torch.nn.Module):
            return load_class.from_pretrained(part, local_files_only=True)
        options = {"torch_dtype": compute_dtype(), "local_files_only": True, **self._options(config, submodel_type)}
        variant = config.repo_variant.value or None
        try:
            return load_class.from_pretrained(part, variant=variant, **options)
        except OSError as error:
            if variant is None or "no file named" not in str(error):
                raise
            # The record's variant covers the whole folder; a single part may lack it.
            return load_class.from_pretrained(part, **options)

    def _options(self, config: AnyModelConfig, submodel_type: SubModelType) -> dict[str, Any]:
        return {}


def require_transformer(config: AnyModelConfig, submodel_type: SubModelType | None, *, instead: str) -> None:
    """A single file holds the transformer alone; raises ValueError for any other part, saying what to choose `instead`."""
    if submodel_type is not SubModelType.Transformer:
        raise ValueError(
            f"{config.name} is a single file: expected the part transformer, got {word(submodel_type)}. "
            f"Choose {instead} in the model loader node."
        )


def word(submodel_type: SubModelType | None) -> str:
    """A part's name for a message."""
    return "none" if submodel_type is None else submodel_type.value
