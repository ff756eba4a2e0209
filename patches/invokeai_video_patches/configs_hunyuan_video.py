"""InvokeAI learns to identify HunyuanVideo models. Imported only by the hook, after the enum members exist."""

from abc import ABC
from dataclasses import asdict
from typing import Any, Literal, Optional, Self

from invokeai.backend.model_manager.configs.base import Checkpoint_Config_Base, Config_Base, Diffusers_Config_Base
from invokeai.backend.model_manager.configs.identification_utils import (
    InvalidMatchError,
    NotAMatchError,
    raise_for_override_fields,
    raise_if_not_dir,
    raise_if_not_file,
)
from invokeai.backend.model_manager.configs.lora import LoRA_Config_Base
from invokeai.backend.model_manager.configs.main import Main_Config_Base
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat, ModelType
from pydantic import BaseModel, Field, model_validator

from invokeai_video_patches import identify, identify_hunyuan_encoders, identify_hunyuan_video, status
from invokeai_video_patches.form_noise import without_form_noise


class HunyuanVideo_Config_Base(Main_Config_Base, ABC):
    """Fields that every HunyuanVideo record has, whatever its format."""

    base: Literal[BaseModelType.HunyuanVideo] = Field(default=BaseModelType.HunyuanVideo)  # type: ignore[valid-type]
    generation: Literal["1.0", "1.5"] = Field(description="1.0: HunyuanVideo; 1.5: HunyuanVideo-1.5.")
    condition: Optional[Literal["latent_concat", "token_replace"]] = Field(
        default=None, description="How a start image enters an image-to-video model; none for text to video."
    )
    latent_channels: int = Field(default=16, description="Channels of the VAE's latents.")
    guidance_embeds: bool = Field(default=True, description="A distilled model, which reads its guidance as a number.")
    text_features: Optional[int] = Field(default=None, description="Features per token of the language model that it reads.")


class Main_Diffusers_HunyuanVideo_Config(Diffusers_Config_Base, HunyuanVideo_Config_Base, Config_Base):
    """A HunyuanVideo or HunyuanVideo-1.5 pipeline as a diffusers folder, for text or for image to video."""

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder; raises NotAMatchError, or InvalidMatchError naming what is missing."""
        raise_if_not_dir(mod)
        fields = _own_fields(cls, override_fields)
        facts = _facts_or_raise(identify_hunyuan_video.identify_folder, mod)
        repo_variant = fields.pop("repo_variant", None) or cls._get_repo_variant_or_raise(mod)
        return cls(**{**facts, **fields}, repo_variant=repo_variant)


class HunyuanVideo_File_Config_Base(Checkpoint_Config_Base, HunyuanVideo_Config_Base, ABC):
    """A transformer in one file.

    Text and image to video can have equal shapes. Then the file is taken for text to video until the record's config path says
    otherwise (the Edit form's Path To Config): diffusers' config.json of the transformer, or the condition's name.
    """

    @model_validator(mode="before")
    @classmethod
    def _condition_as_the_config_path_says(cls, values: Any) -> Any:
        """A readable config wins; an unreadable one must not break the whole model list, so the loader refuses it instead."""
        path = values.get("config_path") if isinstance(values, dict) else None
        if not path or "generation" not in values:
            return values
        try:
            return {**values, "condition": identify_hunyuan_video.condition_in(path, values["generation"])}
        except identify.Unusable:
            return values


class Main_Checkpoint_HunyuanVideo_Config(HunyuanVideo_File_Config_Base, Config_Base):
    """A HunyuanVideo or HunyuanVideo-1.5 transformer as one safetensors file."""

    format: Literal[ModelFormat.Checkpoint] = Field(default=ModelFormat.Checkpoint)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a safetensors file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        return _identified_file(cls, mod, override_fields, suffix=".safetensors")


class Main_GGUF_HunyuanVideo_Config(HunyuanVideo_File_Config_Base, Config_Base):
    """A HunyuanVideo or HunyuanVideo-1.5 transformer as GGUF."""

    format: Literal[ModelFormat.GGUFQuantized] = Field(default=ModelFormat.GGUFQuantized)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a GGUF file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        return _identified_file(cls, mod, override_fields, suffix=".gguf")


class VideoVAE_HunyuanVideo_Config_Base(ABC, BaseModel):
    """Fields that every record of a HunyuanVideo VAE has."""

    base: Literal[BaseModelType.HunyuanVideo] = Field(default=BaseModelType.HunyuanVideo)  # type: ignore[valid-type]
    type: Literal[ModelType.VideoVAE] = Field(default=ModelType.VideoVAE)  # type: ignore[valid-type,attr-defined]
    generation: Literal["1.0", "1.5"] = Field(description="1.0: HunyuanVideo; 1.5: HunyuanVideo-1.5.")
    latent_channels: int = Field(description="Channels of its latents.")


class VideoVAE_Diffusers_HunyuanVideo_Config(Diffusers_Config_Base, VideoVAE_HunyuanVideo_Config_Base, Config_Base):
    """A 3D VAE of HunyuanVideo or HunyuanVideo-1.5 as a diffusers folder of its own."""

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder; raises NotAMatchError, or InvalidMatchError naming what is missing."""
        raise_if_not_dir(mod)
        fields = _own_fields(cls, override_fields)
        facts = _facts_or_raise(identify_hunyuan_video.identify_vae_folder, mod)
        repo_variant = fields.pop("repo_variant", None) or cls._get_repo_variant_or_raise(mod)
        return cls(**{**facts, **fields}, repo_variant=repo_variant)


class VideoVAE_Checkpoint_HunyuanVideo_Config(Checkpoint_Config_Base, VideoVAE_HunyuanVideo_Config_Base, Config_Base):
    """A 3D VAE of HunyuanVideo or HunyuanVideo-1.5 as one safetensors file."""

    format: Literal[ModelFormat.Checkpoint] = Field(default=ModelFormat.Checkpoint)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a safetensors file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_file(mod)
        fields = _own_fields(cls, override_fields)
        facts = _facts_or_raise(identify_hunyuan_video.identify_vae_file, mod)
        return cls(**{**facts, **fields})


class VideoTextEncoders_Diffusers_HunyuanVideo_Config(Diffusers_Config_Base, Config_Base):
    """The text encoders of HunyuanVideo or HunyuanVideo-1.5 with their tokenizers, as a folder without transformer and VAE."""

    base: Literal[BaseModelType.HunyuanVideo] = Field(default=BaseModelType.HunyuanVideo)  # type: ignore[valid-type]
    type: Literal[ModelType.VideoTextEncoders] = Field(default=ModelType.VideoTextEncoders)  # type: ignore[valid-type,attr-defined]
    generation: Literal["1.0", "1.5"] = Field(description="1.0: HunyuanVideo; 1.5: HunyuanVideo-1.5.")
    sees_images: bool = Field(description="They look at a start image as well, for image to video.")
    text_features: int = Field(description="Features per token of the language model.")

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder; raises NotAMatchError, or InvalidMatchError naming what is missing."""
        raise_if_not_dir(mod)
        fields = _own_fields(cls, override_fields)
        facts = _facts_or_raise(identify_hunyuan_encoders.identify_encoders, mod)
        repo_variant = fields.pop("repo_variant", None) or cls._get_repo_variant_or_raise(mod)
        return cls(**{**facts, **fields}, repo_variant=repo_variant)


class LoRA_LyCORIS_HunyuanVideo_Config(LoRA_Config_Base, Config_Base):
    """A LoRA for HunyuanVideo as one safetensors file, in any published layout."""

    base: Literal[BaseModelType.HunyuanVideo] = Field(default=BaseModelType.HunyuanVideo)  # type: ignore[valid-type]
    format: Literal[ModelFormat.LyCORIS] = Field(default=ModelFormat.LyCORIS)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a file; raises NotAMatchError, or InvalidMatchError for one that FLUX could own as well."""
        raise_if_not_file(mod)
        fields = without_form_noise(override_fields)
        raise_for_override_fields(cls, fields)
        try:
            identify_hunyuan_video.identify_lora(mod.path, asked=fields.get("base"))
        except identify.NotVideo as error:
            raise NotAMatchError(str(error)) from error
        except identify.Unusable as error:
            raise InvalidMatchError(str(error)) from error
        return cls(**fields)


def _own_fields(cls: type[Config_Base], override_fields: dict[str, Any]) -> dict[str, Any]:
    fields = without_form_noise(override_fields)
    raise_for_override_fields(cls, fields)
    return fields


def _facts_or_raise(judge: Any, mod: ModelOnDisk) -> dict[str, Any]:
    try:
        return asdict(judge(mod.path))
    except identify.NotVideo as error:
        raise NotAMatchError(str(error)) from error
    except identify.Unusable as error:
        raise InvalidMatchError(str(error)) from error


def _identified_file(cls: Any, mod: ModelOnDisk, override_fields: dict[str, Any], *, suffix: str) -> Any:
    raise_if_not_file(mod)
    if mod.path.suffix.lower() != suffix:
        raise NotAMatchError(f"no {suffix} file")
    fields = _own_fields(cls, override_fields)
    record = cls(**{**_facts_or_raise(identify_hunyuan_video.identify_file, mod), **fields})
    if record.condition is None and not identify_hunyuan_video.carries_config(mod.path):
        status.logger.info("invokeai-video: %s: %s", mod.path.name, identify_hunyuan_video.TAKEN_FOR_TEXT_TO_VIDEO)
    return record


CONFIG_CLASSES: tuple[type[Config_Base], ...] = (
    Main_Diffusers_HunyuanVideo_Config,
    Main_Checkpoint_HunyuanVideo_Config,
    Main_GGUF_HunyuanVideo_Config,
    VideoVAE_Diffusers_HunyuanVideo_Config,
    VideoVAE_Checkpoint_HunyuanVideo_Config,
    VideoTextEncoders_Diffusers_HunyuanVideo_Config,
    LoRA_LyCORIS_HunyuanVideo_Config,
)
