"""AnimateDiff's workflows, in our own words: InvokeAI's Stable Diffusion 1.5 nodes, a motion module, and a clip at the end.

Their values suit the public motion module v3; the notes say what other modules and longer clips want.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflows.recipe import Field, Node, Recipe

Form = Sequence[str | Field | Sequence[Field]]

_PROMPT = "a lighthouse on a cliff at dusk, waves roll in, clouds drift, film grain, best quality"
_NEGATIVE = "low quality, blurry, watermark, text, deformed"
_NOTES = """\
Main Model: any Stable Diffusion 1.5 model; it gives the clip its look. One for inpainting, and one of SD 2 or SDXL, is refused.
Motion Module: v3, v2 or v1 of AnimateDiff, from the model manager's Starter Models. v3 is the steadiest, v2 moves most. AnimateLCM has \
a workflow of its own.
Together they take 2.6 GB on the card while they work; 16 frames of 512x512 fit on one of 6 GB.
LoRAs, ControlNets, IP-Adapters and T2I-Adapters of Stable Diffusion 1.5 go where they go for a picture: LoRAs between main model and \
motion module, the others into the denoise node. A motion LoRA (a camera move, for the module v2) goes between motion module and denoise."""
_LENGTH_TEXT = (
    "The modules were trained on 16 frames of about 512x512. More than 24 frames (v1) or 32 (v2, v3) are made in windows of 16, up to 128; "
    "each window takes the time of a clip. Width and height are multiples of 8."
)

_MAIN_FORM: Form = ("# Models", Field("main.model", "Main model (Stable Diffusion 1.5)"), Field("loader.motion_module", "Motion module"))
_SEED = Field("denoise.seed", "Seed", shuffle=True)
_QUALITY_FORM: Form = (
    "# Quality",
    (Field("denoise.steps", "Steps"), Field("denoise.guidance_scale", "Guidance")),
    Field("denoise.scheduler", "Scheduler"),
    Field("denoise.motion_scale", "Motion (1 as trained, less is calmer)"),
)
_CLIP_FORM: Form = (
    "# Clip",
    (Field("denoise.num_frames", "Frames"), Field("denoise.fps", "Frames per second")),
    (Field("denoise.width", "Width"), Field("denoise.height", "Height")),
    _SEED,
    _LENGTH_TEXT,
)
_NEGATIVE_FIELD = Field("negative_prompt.prompt", "What to avoid", component="textarea")
_PROMPT_FORM: Form = (
    "# Prompt",
    Field("positive_prompt.prompt", "What is seen and how it moves", component="textarea"),
    _NEGATIVE_FIELD,
)

_VALUES: dict[str, Any] = {"num_frames": 16, "width": 512, "height": 512}
_WIRES = (
    "main.unet -> loader.unet",
    "main.clip -> positive_prompt.clip",
    "main.clip -> negative_prompt.clip",
    "positive_prompt.conditioning -> denoise.positive_conditioning",
    "negative_prompt.conditioning -> denoise.negative_conditioning",
    "loader.model -> denoise.model",
    "denoise.latents -> decode.latents",
    "main.vae -> decode.vae",
)
_TAGS = ("video", "animatediff", "sd1.5")


def _nodes(values: dict[str, Any], *between: Node, prompt: bool = True) -> list[Node]:
    """Main model, motion module, prompts and what comes `between`, then denoise with `values`, and decode."""
    prompts = [Node("positive_prompt", "compel", 1, label="Prompt", values={"prompt": _PROMPT})] if prompt else []
    return [
        Node("main", "main_model_loader", 0, label="Main Model"),
        Node("loader", "animatediff_model_loader", 1, label="Motion Module"),
        *prompts,
        Node("negative_prompt", "compel", 1, label="Negative Prompt", values={"prompt": _NEGATIVE}),
        *between,
        Node("denoise", "animatediff_denoise", 2, values={**_VALUES, **values}),
        Node("decode", "animatediff_decode", 3, makes_result=True),
    ]


TEXT_TO_VIDEO = Recipe(
    name="Text to Video - AnimateDiff",
    description="A prompt becomes a video clip in the look of a Stable Diffusion 1.5 model.",
    notes=_NOTES,
    tags=(*_TAGS, "text to video"),
    nodes=_nodes({}),
    wires=_WIRES,
    form=(*_PROMPT_FORM, *_CLIP_FORM, *_QUALITY_FORM, *_MAIN_FORM),
)

TEXT_TO_VIDEO_LCM = Recipe(
    name="Text to Video - AnimateLCM",
    description="A prompt becomes a video clip in 6 steps.",
    notes="Main Model: any Stable Diffusion 1.5 model.\n"
    "Motion Module: AnimateLCM. LoRA: AnimateLCM LoRA, with a weight of 0.8. Both are in the model manager's Starter Models; one without "
    "the other gives a blurred or a burnt clip.\n"
    "4 to 8 steps with the scheduler LCM and a guidance of 1 to 2 are what it was made for; more of either makes it worse.",
    tags=(*_TAGS, "animatelcm", "text to video", "fast"),
    nodes=_nodes(
        {"steps": 6, "guidance_scale": 2.0, "scheduler": "lcm"},
        Node("lora", "lora_loader", 0, label="AnimateLCM LoRA", values={"weight": 0.8}),
    ),
    wires=(
        "main.unet -> lora.unet",
        "main.clip -> lora.clip",
        "lora.unet -> loader.unet",
        "lora.clip -> positive_prompt.clip",
        "lora.clip -> negative_prompt.clip",
        *_WIRES[3:],
    ),
    form=(
        *_PROMPT_FORM,
        *_CLIP_FORM,
        *_QUALITY_FORM,
        *_MAIN_FORM,
        (Field("lora.lora", "AnimateLCM's LoRA"), Field("lora.weight", "Its weight")),
    ),
)

VIDEO_TO_VIDEO = Recipe(
    name="Video to Video - AnimateDiff with ControlNet",
    description="A clip is drawn anew after a prompt; the edges of each of its frames hold the new one.",
    notes=f"{_NOTES}\n"
    "ControlNet: 'Hard Edge Detection (canny)' for Stable Diffusion 1.5, from InvokeAI's own Starter Models. For another kind, put its "
    "picture node (pose, depth, line art ...) in the place of the node 'Edges': it sees the frames one by one, and they come back in "
    "their order.\n"
    "Video: its first frames are taken, brought to width and height. Take every second frame of a fast video, and half its frames per "
    "second.",
    tags=(*_TAGS, "video to video", "controlnet"),
    nodes=_nodes(
        {"strength": 0.75},
        Node("frames", "video_to_frames", 0, label="Video", values={"limit": 16}),
        Node("each", "iterate", 0, label="Each Frame"),
        Node("edges", "canny_edge_detection", 0, label="Edges"),
        Node("all_edges", "collect", 1, label="All Edges"),
        Node("control", "animatediff_control_frames", 1, label="ControlNet", values={"control_weight": 0.8}),
        Node("encode", "animatediff_encode", 1, label="Start Clip", values={"width": 512, "height": 512}),
    ),
    wires=(
        *_WIRES,
        "frames.collection -> each.collection",
        "each.item -> edges.image",
        "edges.image -> all_edges.item",
        "all_edges.collection -> control.images",
        "control.control_frames -> denoise.control_frames",
        "frames.collection -> encode.images",
        "main.vae -> encode.vae",
        "encode.latents -> denoise.latents",
        *(f"encode.{name} -> denoise.{name}" for name in ("num_frames", "width", "height")),
    ),
    form=(
        "# Video",
        Field("frames.video", "The video to start from"),
        (Field("frames.limit", "Frames (4 to 128)"), Field("frames.every_nth", "Take every n-th frame")),
        (Field("encode.width", "Width (0: the nearest to its own)"), Field("encode.height", "Height (0: the nearest to its own)")),
        Field("denoise.strength", "Strength (lower keeps more of the video, 1 keeps only its edges)", component="number-input-and-slider"),
        *_PROMPT_FORM,
        "# ControlNet",
        Field("control.control_model", "ControlNet (canny)"),
        (Field("control.control_weight", "Weight"), Field("control.end_step_percent", "Lets go at (share of the steps)")),
        (Field("edges.low_threshold", "Fewer edges from"), Field("edges.high_threshold", "Strong edges from")),
        "# Clip",
        (Field("denoise.fps", "Frames per second"), _SEED),
        "More than 24 frames (v1) or 32 (v2, v3) are made in windows of 16. Width and height are multiples of 8.",
        *_QUALITY_FORM,
        *_MAIN_FORM,
    ),
)

_TRAVEL = """\
0: a forest in spring, fresh leaves
16: a forest in summer, green leaves, bright sun
32: a forest in autumn, red and yellow leaves
48: a forest in winter, snow on bare branches"""

PROMPT_TRAVEL = Recipe(
    name="Prompt Travel - AnimateDiff",
    description="A clip whose prompt changes on the way: each line of the schedule names a frame and what it shows.",
    notes=f"{_NOTES}\n"
    "Prompts: one line each, 'frame: prompt', frames counted from 0 and rising. Between two of them the prompts blend. What stands before "
    "or after belongs to every line: put there what the whole clip shares.",
    tags=(*_TAGS, "prompt travel", "text to video"),
    nodes=_nodes(
        {"num_frames": 64},
        Node("num_frames", "integer", 0, label="Frames", values={"value": 64}),
        Node(
            "schedule",
            "animatediff_prompt_schedule",
            1,
            label="Prompts",
            values={"prompts": _TRAVEL, "after": "wide shot, the camera stands still, best quality", "num_frames": 64},
        ),
        Node("windows", "animatediff_windows", 1, label="Context Windows"),
        prompt=False,
    ),
    wires=(
        *(wire for wire in _WIRES if "positive" not in wire),
        "main.clip -> schedule.clip",
        "num_frames.value -> schedule.num_frames",
        "num_frames.value -> denoise.num_frames",
        "schedule.prompt_schedule -> denoise.prompt_schedule",
        "windows.windows -> denoise.windows",
    ),
    form=(
        "# Prompts",
        Field("schedule.prompts", "Frame: prompt, one a line", component="textarea"),
        Field("schedule.before", "In front of every prompt", component="textarea"),
        Field("schedule.after", "Behind every prompt", component="textarea"),
        _NEGATIVE_FIELD,
        "# Clip",
        (Field("num_frames.value", "Frames"), Field("denoise.fps", "Frames per second")),
        (Field("denoise.width", "Width"), Field("denoise.height", "Height")),
        _SEED,
        _LENGTH_TEXT,
        "# Windows",
        (Field("windows.length", "Frames at once (0: what the module knows)"), Field("windows.overlap", "Shared with the next")),
        *_QUALITY_FORM,
        *_MAIN_FORM,
    ),
)

SEAMLESS_LOOP = Recipe(
    name="Seamless Loop - AnimateDiff",
    description="A clip whose last frame leads into its first, for backgrounds and animated pictures.",
    notes=f"{_NOTES}\n"
    "Loop: it comes from windows that run over the end into the beginning, so the clip must be longer than one window: 24 frames or more "
    "with windows of 16.",
    tags=(*_TAGS, "loop", "text to video"),
    nodes=_nodes(
        {"num_frames": 32, "loop": True},
        Node("windows", "animatediff_windows", 1, label="Context Windows", values={"length": 16, "overlap": 8, "kind": "looped"}),
    ),
    wires=(*_WIRES, "windows.windows -> denoise.windows"),
    form=(
        *_PROMPT_FORM,
        *_CLIP_FORM,
        "# Windows",
        (Field("windows.length", "Frames at once"), Field("windows.overlap", "Shared with the next (more is smoother, slower)")),
        *_QUALITY_FORM,
        *_MAIN_FORM,
    ),
)

# file name -> recipe
ANIMATEDIFF_RECIPES = {
    "animatediff_text_to_video": TEXT_TO_VIDEO,
    "animatelcm_text_to_video": TEXT_TO_VIDEO_LCM,
    "animatediff_video_to_video": VIDEO_TO_VIDEO,
    "animatediff_prompt_travel": PROMPT_TRAVEL,
    "animatediff_seamless_loop": SEAMLESS_LOOP,
}
