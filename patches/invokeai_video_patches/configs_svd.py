"""InvokeAI learns to identify Stable Video Diffusion. Imported only by the hook, after the enum members exist."""

from abc import ABC
from pathlib import Path
from typing import Any, Literal, Self

from invokeai.backend.model_manager.configs.base import Checkpoint_Config_Base, Config_Base, Diffusers_Config_Base
from invokeai.backend.model_manager.configs.identification_utils import raise_if_not_dir, raise_if_not_file
from invokeai.backend.model_manager.configs.main import Main_Config_Base
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat
from pydantic import Field

from invokeai_video_patches import identify_svd
from invokeai_video_patches.config_parts import facts_or_raise, own_fields


class SVD_Config_Base(Main_Config_Base, ABC):
    """Fields that every record of SVD or SVD-XT has."""

    base: Literal[BaseModelType.SVD] = Field(default=BaseModelType.SVD)  # type: ignore[valid-type,attr-defined]
    # Not "variant": InvokeAI accepts its own variants only under that name, and its Edit form sends it back.
    release: Literal["svd", "svd-xt"] = Field(description="svd makes 14 frames, svd-xt 25.")
    num_frames: int = Field(description="Frames that the model was trained to make.")


class Main_Diffusers_SVD_Config(Diffusers_Config_Base, SVD_Config_Base, Config_Base):
    """SVD or SVD-XT as a diffusers folder: unet, vae, image_encoder, feature_extractor, scheduler."""

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder; raises NotAMatchError, or InvalidMatchError naming what is missing."""
        raise_if_not_dir(mod)
        fields = own_fields(cls, override_fields)
        facts = facts_or_raise(lambda: identify_svd.identify_folder(mod.path))
        repo_variant = fields.pop("repo_variant", None) or cls._get_repo_variant_or_raise(mod)
        return cls(**{**facts, **fields}, repo_variant=repo_variant)


class Main_Checkpoint_SVD_Config(Checkpoint_Config_Base, SVD_Config_Base, Config_Base):
    """SVD or SVD-XT as the original single file, which holds UNet, VAE and image encoder."""

    format: Literal[ModelFormat.Checkpoint] = Field(default=ModelFormat.Checkpoint)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_file(mod)
        fields = own_fields(cls, override_fields)
        # A source on this disk is the file's own path, whose folders say nothing of the file.
        names = [str(fields[key]) for key in ("name", "source") if fields.get(key) and not Path(str(fields[key])).exists()]
        facts = facts_or_raise(lambda: identify_svd.identify_file(mod.path, asked=identify_svd.asked_frames(fields), names=names))
        return cls(**{**fields, **facts})


CONFIG_CLASSES: tuple[type[Config_Base], ...] = (Main_Diffusers_SVD_Config, Main_Checkpoint_SVD_Config)
