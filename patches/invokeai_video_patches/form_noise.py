"""What the model manager's Edit form and its install dialog send for every model, whatever its class."""

from typing import Any

FORM_NOISE: dict[str, tuple[Any, ...]] = {"config_path": ("", None), "upcast_attention": (False, None)}


def without_form_noise(override_fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of the override fields (one dict is shared by all candidates) without what says nothing."""
    return {key: value for key, value in override_fields.items() if value not in FORM_NOISE.get(key, ())}
