"""What the config classes of our models share: the override fields that say something, and a judge's answer in InvokeAI's words.

Imported only by the hook.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from invokeai.backend.model_manager.configs.base import Config_Base
from invokeai.backend.model_manager.configs.identification_utils import InvalidMatchError, NotAMatchError, raise_for_override_fields

from invokeai_video_patches import identify
from invokeai_video_patches.form_noise import without_form_noise


def own_fields(cls: type[Config_Base], override_fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of the override fields that says something; raises NotAMatchError where they ask for another class."""
    fields = without_form_noise(override_fields)
    raise_for_override_fields(cls, fields)
    return fields


def facts_or_raise(judge: Callable[[], Any]) -> dict[str, Any]:
    """The fields that a judge's facts become; raises NotAMatchError for "not ours", InvalidMatchError for "unusable"."""
    try:
        facts = judge()
    except identify.NotVideo as error:
        raise NotAMatchError(str(error)) from error
    except identify.Unusable as error:
        raise InvalidMatchError(str(error)) from error
    return {} if facts is None else {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(facts).items()}
