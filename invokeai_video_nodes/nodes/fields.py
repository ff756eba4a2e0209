"""The words that artists read on our nodes, and checks of what flows between them.

Field classes are InvokeAI's own wherever one fits, because the class name is the connection type in the workflow editor: latents
travel as `LatentsField` (5-D), videos as `VideoField`, control as `ZImageControlField`.
"""

from typing import Any, Final, Literal

from invokeai.app.util.misc import SEED_MAX
from invokeai.backend.model_manager.taxonomy import BaseModelType

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.schedules import MAX_SHIFT
from invokeai_video_nodes.pipelines.shapes import F_PATCH_SIZES, FRAME_RULES

FAMILY: Final = "z-image-video"
RULE = FRAME_RULES[FAMILY]
CATEGORY = "video"
FRAMES = {"minimum": RULE.min_frames, "maximum": RULE.max_frames}
F_PATCHES = {"minimum": min(F_PATCH_SIZES), "maximum": max(F_PATCH_SIZES)}
PIXELS = {"minimum": RULE.size_step, "maximum": RULE.max_size, "step": RULE.size_step}
# `le` refuses inf and nan too, which the queue could not store: it would write null, and InvokeAI would not start again.
GUIDANCE = {"ge": 1.0, "le": 100.0}
SHIFT = {"ge": 0.0, "le": MAX_SHIFT}
STEPS = {"gt": 0, "le": 1000}
SEED = {"ge": 0, "le": SEED_MAX}
LORA_WEIGHT = {"ge": -10.0, "le": 10.0}

SCHEDULER_LABELS = {"euler": "Euler", "heun": "Heun (2nd order, twice the time)", "lcm": "LCM (few steps)"}

CodecChoice = Literal["h264", "h264+h265"]
CODEC_LABELS = {"h264": "H.264", "h264+h265": "H.264, and an H.265 file beside it"}


class Describe:
    """Field descriptions, with units."""

    num_frames = (
        f"How many frames the clip has ({RULE.min_frames} to {RULE.max_frames}). Must be divisible by the frame patch size. "
        "Divided by the frames per second this is the clip's length in seconds."
    )
    fps = "Frames per second at which the clip plays. It is remembered with the latents and does not change the motion."
    f_patch_size = (
        "Frame patch size: how many frames the model looks at as one. Larger is faster and moves more coarsely. "
        "The model loader shows the sizes that the checkpoint knows."
    )
    width = "Width of the clip in pixels, a multiple of 16."
    height = "Height of the clip in pixels, a multiple of 16."
    seed = "Number that picks the noise. The same seed and settings give the same clip on every machine."
    steps = "Number of denoising steps. More steps take longer and add detail."
    guidance_scale = (
        "How strongly the negative prompt is pushed away. 1.0 turns guidance off; above 1.0 a negative prompt is needed and "
        "every step takes twice as long."
    )
    shift = (
        "Moves the noise schedule: higher spends more steps on the overall motion, lower more on detail. "
        "0.01 to 100; 0 or empty: as the checkpoint says. The number of frames never enters."
    )
    codec = "The gallery plays H.264. The H.265 file is smaller; it lies beside the other as NAME.h265.mp4."
    crf = "Quality of the video file: 0 is lossless and large, 18 looks the same to the eye, 51 is the worst."


def require_z_image_video(config: Any, what: str) -> None:
    """Raise BadInput unless the model record is a Z-Image Video main model, naming the way to open a still-image checkpoint."""
    if config.base is BaseModelType.ZImageVideo:
        return
    expected = "a model of base z-image-video"
    got = f"'{config.name}' of base {config.base.value}"
    if config.base is BaseModelType.ZImage:
        got += (
            " (a still-image checkpoint; to open it anyway as an experiment, change its base to Z-Image Video in the model "
            "manager: it was never trained on motion, so the clip will not be a meaningful video)"
        )
    raise BadInput.expected(what, expected, got)


def with_limits(field: Any, *, minimum: int | None = None, maximum: int | None = None, step: int | None = None) -> Any:
    """Tell the workflow editor the limits of a number, and leave the refusal to the node's own check.

    Pydantic's refusal would come first and names no nearest value; for a connected number InvokeAI shows none of its text.
    """
    limits = {"minimum": minimum, "maximum": maximum, "multipleOf": step}
    field.json_schema_extra.update({name: value for name, value in limits.items() if value is not None})
    return field
