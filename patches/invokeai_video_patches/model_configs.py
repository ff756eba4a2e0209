"""InvokeAI learns to identify our models: the Z-Image Video classes, and the place of all of ours in the `AnyModelConfig` union.

Imported only by the hook, after the enum members exist. The union is rebuilt before anyone else has taken the alias.
"""

from abc import ABC
from typing import Annotated, Any, Literal, Self, Union, get_args

from invokeai.backend.model_manager.configs.base import Checkpoint_Config_Base, Config_Base, Diffusers_Config_Base
from invokeai.backend.model_manager.configs.identification_utils import (
    InvalidMatchError,
    NotAMatchError,
    common_config_paths,
    raise_for_class_name,
    raise_for_override_fields,
    raise_if_not_dir,
    raise_if_not_file,
)
from invokeai.backend.model_manager.configs.main import Main_Config_Base
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat
from pydantic import Field, TypeAdapter, model_validator

from invokeai_video_patches import configs_animatediff, configs_hunyuan_video, configs_svd, identify, status
from invokeai_video_patches.form_noise import without_form_noise


class ZImageVideo_Config_Base(Main_Config_Base, ABC):
    """Fields that every Z-Image Video record has, whatever its format."""

    base: Literal[BaseModelType.ZImageVideo] = Field(default=BaseModelType.ZImageVideo)  # type: ignore[valid-type]
    f_patch_sizes: list[int] = Field(description="Frames per temporal patch that the checkpoint knows, ascending.")
    latent_channels: int = Field(default=16, description="Channels of the latents that the transformer reads.")
    experimental: bool = Field(
        default=False,
        description="A still-image checkpoint whose base was set to Z-Image Video by hand; it makes no meaningful video.",
    )

    @model_validator(mode="before")
    @classmethod
    def _record_edited_by_hand(cls, values: Any) -> Any:
        """A record of ours without f_patch_sizes was an image record until someone changed its base in the Edit form."""
        if not isinstance(values, dict) or "f_patch_sizes" in values or "base" not in values:
            return values
        return {**values, "f_patch_sizes": list(identify.F_PATCH_SIZES), "experimental": True}


class Main_Diffusers_ZImageVideo_Config(Diffusers_Config_Base, ZImageVideo_Config_Base, Config_Base):
    """A Z-Image Video pipeline as a diffusers folder: transformer, vae, text_encoder, tokenizer, scheduler."""

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a folder; raises NotAMatchError, or InvalidMatchError naming what is missing."""
        raise_if_not_dir(mod)
        fields = _own_fields(cls, override_fields)
        raise_for_class_name(common_config_paths(mod.path), "ZImagePipeline")
        facts = _facts_or_raise(identify.identify_folder, mod, fields)
        repo_variant = fields.pop("repo_variant", None) or cls._get_repo_variant_or_raise(mod)
        return cls(**fields, **facts, repo_variant=repo_variant)


class Main_Checkpoint_ZImageVideo_Config(Checkpoint_Config_Base, ZImageVideo_Config_Base, Config_Base):
    """A Z-Image Video transformer as one safetensors file."""

    format: Literal[ModelFormat.Checkpoint] = Field(default=ModelFormat.Checkpoint)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a safetensors file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_file(mod)
        fields = _own_fields(cls, override_fields)
        return cls(**fields, **_facts_or_raise(identify.identify_file, mod, fields))


class Main_GGUF_ZImageVideo_Config(Checkpoint_Config_Base, ZImageVideo_Config_Base, Config_Base):
    """A Z-Image Video transformer as GGUF."""

    format: Literal[ModelFormat.GGUFQuantized] = Field(default=ModelFormat.GGUFQuantized)  # type: ignore[valid-type]

    @classmethod
    def from_model_on_disk(cls, mod: ModelOnDisk, override_fields: dict[str, Any]) -> Self:
        """Identify a GGUF file; raises NotAMatchError, or InvalidMatchError naming what is wrong."""
        raise_if_not_file(mod)
        fields = _own_fields(cls, override_fields)
        return cls(**fields, **_facts_or_raise(identify.identify_gguf, mod, fields))


CONFIG_CLASSES: tuple[type[Config_Base], ...] = (
    Main_Diffusers_ZImageVideo_Config,
    Main_Checkpoint_ZImageVideo_Config,
    Main_GGUF_ZImageVideo_Config,
    *configs_hunyuan_video.CONFIG_CLASSES,
    *configs_animatediff.CONFIG_CLASSES,
    *configs_svd.CONFIG_CLASSES,
)


def _own_fields(cls: type[Config_Base], override_fields: dict[str, Any]) -> dict[str, Any]:
    fields = without_form_noise(override_fields)
    raise_for_override_fields(cls, fields)
    return fields


def _facts_or_raise(judge: Any, mod: ModelOnDisk, fields: dict[str, Any]) -> dict[str, Any]:
    asked = fields.get("base") == BaseModelType.ZImageVideo
    try:
        facts = judge(mod.path, asked=asked)
    except identify.NotVideo as error:
        raise NotAMatchError(str(error)) from error
    except identify.Unusable as error:
        raise InvalidMatchError(str(error)) from error
    if facts.experimental:
        status.logger.warning("invokeai-video: %s: %s", mod.path.name, identify.EXPERIMENTAL_WARNING)
    return {
        "f_patch_sizes": list(facts.f_patch_sizes),
        "latent_channels": facts.latent_channels,
        "experimental": facts.experimental,
    }


def patch(module: Any) -> str:
    """Enter our classes into `configs.factory`: the union, its validator, and which of several matches wins."""
    union, discriminator = get_args(module.AnyModelConfig)
    known = {get_args(member)[0] for member in get_args(union)}
    ours = tuple(Annotated[cls, cls.get_tag()] for cls in CONFIG_CLASSES if cls not in known)
    if ours:
        module.AnyModelConfig = Annotated[Union[get_args(union) + ours], discriminator]
        module.AnyModelConfigValidator = TypeAdapter(module.AnyModelConfig)
        _prefer_ours(module)
    return f"{len(CONFIG_CLASSES)} config classes in a union of {len(get_args(union)) + len(ours)}"


def _prefer_ours(module: Any) -> None:
    """A video folder also looks like an image pipeline to InvokeAI's own candidates: our match, or our refusal, comes first."""
    factory = module.ModelConfigFactory
    inner_key, inner_match = factory.matches_sort_key, factory.from_model_on_disk

    def matches_sort_key(config: Any) -> int:
        return -1 if isinstance(config, CONFIG_CLASSES) else inner_key(config)

    def from_model_on_disk(*args: Any, **kwargs: Any) -> Any:
        result = inner_match(*args, **kwargs)
        refused = {
            cls.__name__: result.details[cls.__name__]
            for cls in CONFIG_CLASSES
            if isinstance(result.details.get(cls.__name__), InvalidMatchError)
        }
        if refused:
            return module.ModelClassificationResult(config=None, details={**refused, **result.details})
        return result

    factory.matches_sort_key = staticmethod(matches_sort_key)
    factory.from_model_on_disk = staticmethod(from_model_on_disk)
