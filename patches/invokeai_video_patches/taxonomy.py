"""Members that InvokeAI's enums lack: our model bases, model types, sub-model types and formats.

A member made here pickles, deep-copies, compares and validates as one written in the class body. Adding is idempotent by value.
"""

from enum import Enum
from typing import Any

BASES = {"ZImageVideo": "z-image-video", "HunyuanVideo": "hunyuan-video", "SVD": "svd"}
TYPES = {"VideoVAE": "video_vae", "VideoTextEncoders": "video_text_encoders", "MotionModule": "motion_module"}
SUBMODELS = {"ImageEncoder": "image_encoder"}
# A format of its own, because a record's class and loader go by type, base and format: a SparseCtrl is no ControlNet of upstream's.
FORMATS = {"SparseCtrl": "sparse_ctrl"}


def add_member(enum_class: Any, name: str, value: str) -> Enum:
    """Add one string member to a closed `(str, Enum)` class and return it; an existing value is returned as it is.

    Raises ValueError when the name is taken by another value.
    """
    known = enum_class._value2member_map_.get(value)
    if known is not None:
        return known
    if name in enum_class._member_map_:
        raise ValueError(f"{enum_class.__name__}.{name}: expected {value!r}, got {enum_class[name].value!r}")
    member: Any = str.__new__(enum_class, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = enum_class
    member._sort_order_ = len(enum_class._member_names_)
    enum_class._member_names_.append(name)
    enum_class._member_map_[name] = member
    enum_class._value2member_map_[value] = member
    # EnumType.__setattr__ refuses names that are already members, so the class attribute goes in underneath it.
    type.__setattr__(enum_class, name, member)
    return member


def patch(module: Any) -> str:
    """Add our members to the enums of `invokeai.backend.model_manager.taxonomy`; returns what was added, in words."""
    added = []
    ours = {"BaseModelType": BASES, "ModelType": TYPES, "SubModelType": SUBMODELS, "ModelFormat": FORMATS}
    for class_name, members in ours.items():
        enum_class = getattr(module, class_name)
        for name, value in members.items():
            add_member(enum_class, name, value)
            added.append(value)
    return "added " + ", ".join(added)
