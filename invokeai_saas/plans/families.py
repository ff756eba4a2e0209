"""Video families and the arithmetic of what is nearest: by which name a model or node is priced and allowed."""

from invokeai_saas.plans.demands import Model

# What a plan's video_bases may name. A motion module is of base sd-1 and makes AnimateDiff of it.
VIDEO_FAMILIES = ("animatediff", "svd", "z-image-video", "hunyuan-video", "wan")
_BASES = {"svd", "z-image-video", "hunyuan-video"}
# Models for all bases (encoders, upscalers), and providers' models, which the third-party permission guards.
ANY_BASE, PROVIDER_BASE = "any", "external"
# 4n+1 frames (decision 9).
_FOUR_N_PLUS_ONE = {"hunyuan-video", "wan"}
GRID = 16


def video_family(model: Model) -> str | None:
    """The family of a model that only makes video; None for models of pictures, AnimateDiff's checkpoint included."""
    if model.type == "motion_module":
        return "animatediff"
    return model.base if model.base in _BASES else None


def frames_within(limit: int, family: str) -> int:
    """The nearest count up to `limit` that the family can make: 48 -> 45 for HunyuanVideo (4n+1)."""
    return (limit - 1) // 4 * 4 + 1 if family in _FOUR_N_PLUS_ONE else limit


def side_within(side: int | None, limit: int | None) -> int | None:
    """The side itself where it fits, else the largest multiple of 16 up to `limit`: 800 within 720 -> 720."""
    if side is None or limit is None or side <= limit:
        return side
    return max(GRID, limit // GRID * GRID)
