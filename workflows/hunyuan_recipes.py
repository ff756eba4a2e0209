"""HunyuanVideo's workflows, in our own words.

Their values suit the public checkpoints on one consumer card; the notes say what each part wants in memory. The two generations
take different guidance and look at a start image differently, so each has a workflow of its own where that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflows.recipe import Field, Node, Recipe

Form = Sequence[str | Field | Sequence[Field]]

_PROMPT = "a lighthouse at dusk, waves roll in, the camera rises slowly"
_MEMORY = """\
Only one part is at work at a time, and InvokeAI moves to the GPU what fits; the rest stays in main memory. The decode works in tiles \
as large as the free memory allows, and in smaller ones where it runs out. The preview and the clip need nothing else."""
_NOTES = f"""\
Video Model: a HunyuanVideo model of the first generation, from the model manager's Starter Models. Its 13 billion values take 26 GB \
in full, 13 GB in fp8 and 8 GB as GGUF Q4.
A complete folder brings its own text encoders (15 GB, at work before the transformer) and VAE (1 GB). A model in one file needs text \
encoders and a VAE, which are models of their own among the Starter Models; a complete folder can lend both.
LoRAs: may stay empty. They work on every kind of file.
{_MEMORY}"""
_NOTES_15 = f"""\
Video Model: a HunyuanVideo-1.5 folder, from the model manager's Starter Models. Its 8 billion values take 17 GB in full. The folder \
brings its own text encoders (15 GB, at work before the transformer) and VAE (3 GB).
True CFG: 6 with a negative prompt for the plain models, 1 for those that are called distilled. A model of the first generation \
runs here too: set true CFG to 1 for it, or each of its steps takes twice as long for nothing.
LoRAs: may stay empty.
{_MEMORY}"""
_LENGTH_TEXT = (
    "Frames are 4n+1: 5, 9, 13 ... 61 ... 129. Frames divided by frames per second is the length in seconds. "
    "Width and height are multiples of 16."
)
_ONE_FILE = "Only for a model in one file:"
_PARTS = (Field("loader.encoder_source", "Text encoders from"), Field("loader.vae_model", "VAE"))

_MODEL_FORM: Form = (
    "# LoRAs",
    Field("lora.loras", "LoRAs (may stay empty)"),
    "# Model",
    Field("loader.model", "Video model"),
    _ONE_FILE,
    _PARTS,
)
_SEED = Field("denoise.seed", "Seed", shuffle=True)
_STEPS = Field("denoise.steps", "Steps")
_TRUE_CFG = Field("denoise.true_cfg_scale", "True CFG (above 1 the negative prompt counts; twice the time)")
_SPEED = Field("denoise.step_cache", "Step cache (skips work where little changes; off below 10 steps)")
_QUALITY_FORM: Form = ("# Quality", (_STEPS, Field("denoise.guidance_scale", "Guidance (costs no time)")), _TRUE_CFG, _SPEED)
_QUALITY_FORM_15: Form = ("# Quality", _STEPS, _TRUE_CFG, _SPEED)
_CLIP_FORM: Form = ("# Clip", (Field("denoise.num_frames", "Frames"), Field("denoise.fps", "Frames per second")))
_SIZE_FORM: Form = ((Field("denoise.width", "Width"), Field("denoise.height", "Height")),)
_SHARED_SIZE_FORM: Form = ((Field("width.value", "Width"), Field("height.value", "Height")),)

_VALUES: dict[str, Any] = {"num_frames": 61, "width": 512, "height": 320}
_VALUES_15: dict[str, Any] = {"num_frames": 61, "width": 832, "height": 480, "true_cfg_scale": 6.0}

_WIRES = (
    "loader.transformer -> lora.transformer",
    "loader.encoder -> positive_prompt.encoder",
    "loader.encoder -> negative_prompt.encoder",
    "lora.transformer -> denoise.transformer",
    "positive_prompt.conditioning -> denoise.positive_conditioning",
    "negative_prompt.conditioning -> denoise.negative_conditioning",
    "denoise.latents -> decode.latents",
    "loader.vae -> decode.vae",
    "loader.shift -> denoise.shift",
    "loader.vae -> denoise.vae",
)


def _nodes(values: dict[str, Any], *between: Node) -> list[Node]:
    """Loader, LoRAs, both prompts and what comes `between`, then denoise with `values`, and decode."""
    return [
        Node("loader", "hunyuan_video_model_loader", 0, label="Video Model"),
        Node("lora", "hunyuan_video_lora_collection_loader", 1, label="LoRAs"),
        Node("positive_prompt", "hunyuan_video_text_encoder", 1, label="Prompt", values={"prompt": _PROMPT}),
        Node("negative_prompt", "hunyuan_video_text_encoder", 1, label="Negative Prompt", values={"prompt": ""}),
        *between,
        Node("denoise", "hunyuan_video_denoise", 2, values=values),
        Node("decode", "video_vae_decode", 3, makes_result=True),
    ]


def _prompts(negative: str) -> Form:
    return (
        "# Prompt",
        Field("positive_prompt.prompt", "What is seen and how it moves", component="textarea"),
        Field("negative_prompt.prompt", f"What to avoid ({negative})", component="textarea"),
    )


_PROMPT_FORM = _prompts("used when true CFG is above 1")
_PROMPT_FORM_15 = _prompts("may stay empty")


def _image_nodes(values: dict[str, Any]) -> list[Node]:
    """One picture and one size, each set once, feed the start image and the clip."""
    return [
        Node("image", "image", 0, label="Start Image"),
        Node("width", "integer", 0, label="Width", values={"value": values["width"]}),
        Node("height", "integer", 0, label="Height", values={"value": values["height"]}),
        Node("start", "hunyuan_video_image_encoder", 1, label="Start Image Encoder"),
    ]


_IMAGE_WIRES = (
    "image.image -> start.image",
    "loader.vae -> start.vae",
    "loader.encoder -> start.encoder",
    "start.start_image -> denoise.start_image",
    *(f"{size}.value -> {node}.{size}" for size in ("width", "height") for node in ("start", "denoise")),
)
_IMAGE_NOTES = """
It wants an image-to-video model (I2V): a text-to-video model takes no start image, and is refused before VAE and transformer load.
Start Image: it is stretched to the clip's width and height, so give it the same shape."""
_IMAGE_FORM: Form = ("# Start image", Field("image.image", "The first frame; it is stretched to the clip's width and height"))

TEXT_TO_VIDEO = Recipe(
    name="Text to Video - HunyuanVideo",
    description="A prompt becomes a video clip.",
    notes=_NOTES,
    tags=("video", "text to video", "hunyuan"),
    nodes=_nodes(_VALUES),
    wires=_WIRES,
    form=(*_PROMPT_FORM, *_CLIP_FORM, *_SIZE_FORM, _SEED, _LENGTH_TEXT, *_QUALITY_FORM, *_MODEL_FORM),
)

TEXT_TO_VIDEO_15 = Recipe(
    name="Text to Video - HunyuanVideo-1.5",
    description="A prompt becomes a video clip.",
    notes=_NOTES_15,
    tags=("video", "text to video", "hunyuan"),
    nodes=_nodes(_VALUES_15),
    wires=_WIRES,
    form=(*_PROMPT_FORM_15, *_CLIP_FORM, *_SIZE_FORM, _SEED, _LENGTH_TEXT, *_QUALITY_FORM_15, *_MODEL_FORM),
)

IMAGE_TO_VIDEO = Recipe(
    name="Image to Video - HunyuanVideo",
    description="A picture becomes the first frame of a clip and moves on from there.",
    notes=f"{_NOTES}{_IMAGE_NOTES}",
    tags=("video", "image to video", "first frame", "hunyuan"),
    nodes=_nodes(_VALUES, *_image_nodes(_VALUES)),
    wires=(*_WIRES, *_IMAGE_WIRES, "image.image -> positive_prompt.image"),
    form=(*_IMAGE_FORM, *_PROMPT_FORM, *_CLIP_FORM, *_SHARED_SIZE_FORM, _SEED, _LENGTH_TEXT, *_QUALITY_FORM, *_MODEL_FORM),
)

IMAGE_TO_VIDEO_15 = Recipe(
    name="Image to Video - HunyuanVideo-1.5",
    description="A picture becomes the first frame of a clip and moves on from there.",
    notes=f"{_NOTES_15}{_IMAGE_NOTES}",
    tags=("video", "image to video", "first frame", "hunyuan"),
    nodes=_nodes(_VALUES_15, *_image_nodes(_VALUES_15)),
    wires=(*_WIRES, *_IMAGE_WIRES),
    form=(*_IMAGE_FORM, *_PROMPT_FORM_15, *_CLIP_FORM, *_SHARED_SIZE_FORM, _SEED, _LENGTH_TEXT, *_QUALITY_FORM_15, *_MODEL_FORM),
)

VIDEO_TO_VIDEO = Recipe(
    name="Video to Video - HunyuanVideo",
    description="A clip is drawn anew after a prompt, and keeps as much of its motion as you want.",
    notes=f"{_NOTES}\nIt wants a text-to-video model. HunyuanVideo-1.5 works too: set true CFG to 6.\n"
    "Video: where frames, width and height are 0, the clip takes as many frames from the first on as are 4n+1 (5, 9, 13 ... 129), and "
    "each side at its nearest multiple of 16. Numbers that you set are taken as they are, or refused.\n"
    "Mask: a picture of the clip's width and height (the log tells them); white is made anew, black stays.",
    tags=("video", "video to video", "hunyuan"),
    nodes=_nodes({"strength": 0.6}, Node("encode", "video_vae_encode", 1, label="Video")),
    wires=(
        *_WIRES,
        "loader.vae -> encode.vae",
        *(f"encode.{name} -> denoise.{name}" for name in ("latents", "num_frames", "width", "height")),
    ),
    form=(
        "# Video",
        Field("encode.video", "The video to start from"),
        Field("encode.num_frames", "Frames (0: as many as fit)"),
        (Field("encode.width", "Width (0: the nearest to its own)"), Field("encode.height", "Height (0: the nearest to its own)")),
        Field("denoise.mask", "Mask of the clip's size: white is made anew, black stays (may stay empty)"),
        Field("denoise.strength", "Strength (lower keeps more of the video, 1 keeps nothing)", component="number-input-and-slider"),
        "Frames are 4n+1: 5, 9, 13 ... 61 ... 129. Sizes are multiples of 16.",
        *_PROMPT_FORM,
        "# Clip",
        (Field("denoise.fps", "Frames per second (set it to the video's)"), _SEED),
        *_QUALITY_FORM,
        *_MODEL_FORM,
    ),
)

LATENTS_TO_VIDEO = Recipe(
    name="Latents to Video - HunyuanVideo",
    description="Decodes a clip whose decode failed: its latents are safe on disk, in the folder outputs/video-latents.",
    notes="Video Model: the one that made the latents, or another of its generation. A model in one file wants text encoders and a VAE "
    "chosen here too, the same as in the workflow of the clip. Only the VAE is loaded (1 GB; HunyuanVideo-1.5: 3 GB).\n"
    "Saved Latents: the name that the error message told. Where there was no message, because the process was killed or the power went, "
    "it is the newest file in the folder outputs/video-latents of InvokeAI's root. The file stays after this workflow has made the video; "
    "you may delete it then. A decode that you cancel deletes its own.\n"
    f"{_MEMORY}",
    tags=("video", "decode", "latents", "hunyuan"),
    nodes=[
        Node("loader", "hunyuan_video_model_loader", 0, label="Video Model"),
        Node("load", "video_latents_load", 0, label="Saved Latents"),
        Node("decode", "video_vae_decode", 1, makes_result=True),
    ],
    wires=("load.latents -> decode.latents", "loader.vae -> decode.vae"),
    form=(
        "# Saved latents",
        Field("load.name", "The name in the error message, or of the newest file in outputs/video-latents"),
        "# Clip",
        (Field("decode.fps", "Frames per second (0: as it was made)"), Field("decode.crf", "Quality (18 is clean, higher is smaller)")),
        "# Model",
        Field("loader.model", "Video model"),
        _ONE_FILE,
        _PARTS,
    ),
)

# file name -> recipe
HUNYUAN_RECIPES = {
    "hunyuan_text_to_video": TEXT_TO_VIDEO,
    "hunyuan_15_text_to_video": TEXT_TO_VIDEO_15,
    "hunyuan_image_to_video": IMAGE_TO_VIDEO,
    "hunyuan_15_image_to_video": IMAGE_TO_VIDEO_15,
    "hunyuan_video_to_video": VIDEO_TO_VIDEO,
    "hunyuan_latents_to_video": LATENTS_TO_VIDEO,
}
