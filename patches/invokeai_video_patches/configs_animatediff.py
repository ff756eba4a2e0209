"""InvokeAI learns to identify AnimateDiff's motion modules, motion LoRAs and SparseCtrls. Imported only by the hook.

A motion LoRA and a SparseCtrl have upstream's type and base, so that people find them where they look. Their formats are not
upstream's: a record's class and its loader are chosen by type, base and format, and both are other ones here.
"""

from abc import ABC
from typing import Any, Literal, Self

from invokeai.backend.model_manager.configs.base import Checkpoint_Config_Base, Config_Base, Diffusers_Config_Base
from invokeai.backend.model_manager.configs.controlnet import ControlAdapterDefaultSettings
from invokeai.backend.model_manager.configs.identification_utils import raise_if_not_dir, raise_if_not_file
from invokeai.backend.model_manager.configs.lora import LoRA_Config_Base
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat, ModelType
from pydantic import BaseModel, Field

from invokeai_video_patches import identify_animatediff
from invokeai_video_patches.config_parts import facts_or_raise, own_fields


class MotionModule_Config_Base(ABC, BaseModel):
    """Fields that every record of a motion module has."""

    base: Literal[BaseModelType.StableDiffusion1] = Field(default=BaseModelType.StableDiffusion1)  # type: ignore[valid-type]
    type: Literal[ModelType.MotionModule] = Field(default=ModelType.MotionModule)  # type: ignore[valid-type,attr-defined]
    version: Literal["v1", "v2", "v3", "animatelcm"] = Field(description="The release whose structure it has.")
    max_frames: int = Field(description="Frames that it sees at once; a longer clip is made in windows of at most this many.")
    beta_schedule: str = Field(description="The noise schedule that it was trained with, as diffusers' schedulers call it.")
    widths: list[int] = Field(description="Channels of the UNet's blocks that it fits.")
    mid_block: bool = Field(description="It has a module in the UNet's middle block.")


class MotionModule_Diffusers_SD1_Config(Diffusers_Config_Base, MotionModule_Config_Base, Config_Base):
    """A motion module as a folder of diffusers' MotionAdapter."""

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_dir(mod)
        fields = own_fields(cls, override_fields)
        names = tuple(str(fields[key]) for key in ("name", "source") if fields.get(key))
        facts = facts_or_raise(lambda: identify_animatediff.identify_folder(mod.path, names=names))
        repo_variant = fields.pop("repo_variant", None) or cls._get_repo_variant_or_raise(mod)
        return cls(**{**facts, **fields}, repo_variant=repo_variant)


class MotionModule_Checkpoint_SD1_Config(Checkpoint_Config_Base, MotionModule_Config_Base, Config_Base):
    """A motion module as one file, of the original layout or diffusers'."""

    format: Literal[ModelFormat.Checkpoint] = Field(default=ModelFormat.Checkpoint)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_file(mod)
        fields = own_fields(cls, override_fields)
        return cls(**{**facts_or_raise(lambda: identify_animatediff.identify_file(mod.path)), **fields})


class MotionLoRA_Checkpoint_SD1_Config(LoRA_Config_Base, Config_Base):
    """A LoRA for motion modules as one file, of the original layout or diffusers'."""

    base: Literal[BaseModelType.StableDiffusion1] = Field(default=BaseModelType.StableDiffusion1)  # type: ignore[valid-type]
    format: Literal[ModelFormat.Checkpoint] = Field(default=ModelFormat.Checkpoint)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_file(mod)
        fields = own_fields(cls, override_fields)
        facts_or_raise(lambda: identify_animatediff.identify_lora(mod.path))
        return cls(**fields)


class SparseCtrl_SD1_Config(Config_Base):
    """A SparseCtrl, which holds a clip to its keyframes, as diffusers' folder or as one file of the original release."""

    base: Literal[BaseModelType.StableDiffusion1] = Field(default=BaseModelType.StableDiffusion1)  # type: ignore[valid-type]
    type: Literal[ModelType.ControlNet] = Field(default=ModelType.ControlNet)  # type: ignore[valid-type]
    format: Literal[ModelFormat.SparseCtrl] = Field(default=ModelFormat.SparseCtrl)  # type: ignore[valid-type,attr-defined]
    # InvokeAI sets it on everything of this type.
    default_settings: ControlAdapterDefaultSettings | None = Field(default=None)
    reads_latents: bool = Field(description="It reads keyframes as latents (rgb), else as pictures (scribble).")

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder or file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        fields = own_fields(cls, override_fields)
        return cls(**{**facts_or_raise(lambda: identify_animatediff.identify_sparse_control(mod.path)), **fields})


CONFIG_CLASSES: tuple[type[Config_Base], ...] = (
    MotionModule_Diffusers_SD1_Config,
    MotionModule_Checkpoint_SD1_Config,
    MotionLoRA_Checkpoint_SD1_Config,
    SparseCtrl_SD1_Config,
)
