"""The workflows that we ship, in our own words; `build.py` turns each into a file.

Z-Image Video's values fit the toy model, so that a first Invoke works; the notes say what a full-size checkpoint wants.
The recipes of the other families are in files of their own.
"""

from __future__ import annotations

from invokeai_video_nodes.toy_settings import toy_settings
from workflows.animatediff_recipes import ANIMATEDIFF_RECIPES
from workflows.hunyuan_recipes import HUNYUAN_RECIPES
from workflows.recipe import Field, Node, Recipe
from workflows.svd_recipes import SVD_RECIPES

_TOY = toy_settings()
_SIZES = {"width": _TOY.width, "height": _TOY.height}
_STEPS = {
    "steps": _TOY.steps,
    "guidance_scale": _TOY.guidance_scale,
    "f_patch_size": _TOY.f_patch_size,
    "fps": _TOY.fps,
}

_MODEL_NOTES = f"""\
Video Model: a Z-Image Video checkpoint. The toy that ships with the pack is in the model manager under Starter Models; \
it draws one simple shape that moves, at {_TOY.width}x{_TOY.height}. A checkpoint folder brings its own VAE and text encoder.
VAE, Qwen3 Encoder: only for a checkpoint that is a single file or a GGUF: a FLUX VAE (16 channels) and a Qwen3 encoder.
The values here fit the toy. A full-size checkpoint wants 512x512 or more and the steps and guidance of its card."""

_PROMPT_FORM = (
    "# Prompt",
    Field("positive_prompt.prompt", "What is seen and how it moves", component="textarea"),
    Field("negative_prompt.prompt", "What to avoid (may stay empty)", component="textarea"),
)
_QUALITY_FORM = (
    "# Quality",
    (Field("denoise.steps", "Steps"), Field("denoise.guidance_scale", "Guidance")),
)
_MODEL_FORM = (
    "# Model",
    Field("loader.model", "Video model"),
    Field("denoise.f_patch_size", "Frame patch size (1, 2 or 4, what the model knows)"),
    "Only for a checkpoint in one file:",
    (Field("loader.vae_model", "VAE"), Field("loader.qwen3_encoder_model", "Qwen3 encoder")),
)
_LENGTH_TEXT = "Frames must be divisible by the frame patch size. Frames divided by frames per second is the length in seconds."


def _prompted_nodes() -> list[Node]:
    return [
        Node("loader", "z_image_video_model_loader", 0, label="Video Model"),
        Node("positive_prompt", "z_image_text_encoder", 1, label="Prompt", values={"prompt": _TOY.prompt}),
        Node("negative_prompt", "z_image_text_encoder", 1, label="Negative Prompt", values={"prompt": ""}),
    ]


_PROMPTED_WIRES = [
    "loader.qwen3_encoder -> positive_prompt.qwen3_encoder",
    "loader.qwen3_encoder -> negative_prompt.qwen3_encoder",
    "loader.transformer -> denoise.transformer",
    "positive_prompt.conditioning -> denoise.positive_conditioning",
    "negative_prompt.conditioning -> denoise.negative_conditioning",
    "denoise.latents -> decode.latents",
    "loader.vae -> decode.vae",
]

# Integer node -> the input that it feeds in both encode and denoise, so that an artist sets each once.
_SHARED_NUMBERS = {"frames": "num_frames", "width": "width", "height": "height", "seed": "seed"}

TEXT_TO_VIDEO = Recipe(
    name="Text to Video - Z-Image Video",
    description="A prompt becomes a video clip.",
    notes=_MODEL_NOTES,
    tags=("video", "text to video", "z-image"),
    nodes=[
        *_prompted_nodes(),
        Node("denoise", "z_image_video_denoise", 2, values={**_SIZES, **_STEPS, "num_frames": _TOY.num_frames}),
        Node("decode", "z_image_video_decode", 3, makes_result=True),
    ],
    wires=_PROMPTED_WIRES,
    form=(
        *_PROMPT_FORM,
        "# Clip",
        (Field("denoise.num_frames", "Frames"), Field("denoise.fps", "Frames per second")),
        (Field("denoise.width", "Width"), Field("denoise.height", "Height")),
        Field("denoise.seed", "Seed", shuffle=True),
        _LENGTH_TEXT,
        *_QUALITY_FORM,
        *_MODEL_FORM,
    ),
)

IMAGE_TO_VIDEO = Recipe(
    name="Image to Video - Z-Image Video",
    description="A clip that grows out of noise in which the first frame leans towards an image.",
    notes=f"{_MODEL_NOTES}\nImage: any picture; it is stretched to the clip's width and height.",
    tags=("video", "image to video", "z-image"),
    nodes=[
        *_prompted_nodes(),
        Node("frames", "integer", 0, label="Frames", values={"value": _TOY.num_frames}),
        Node("width", "integer", 0, label="Width", values={"value": _TOY.width}),
        Node("height", "integer", 0, label="Height", values={"value": _TOY.height}),
        Node("seed", "integer", 0, label="Seed", values={"value": 0}),
        Node("encode", "z_image_video_encode", 1, label="Image", values={**_SIZES, "num_frames": _TOY.num_frames}),
        Node("denoise", "z_image_video_denoise", 2, values={**_SIZES, **_STEPS, "num_frames": _TOY.num_frames}),
        Node("decode", "z_image_video_decode", 3, makes_result=True),
    ],
    wires=[
        *_PROMPTED_WIRES,
        "loader.vae -> encode.vae",
        "encode.latents -> denoise.latents",
        *(f"{source}.value -> {node}.{field}" for source, field in _SHARED_NUMBERS.items() for node in ("encode", "denoise")),
    ],
    form=(
        "# Image",
        Field("encode.image", "Image for the first frame"),
        Field("encode.noise_strength", "Freedom (0 keeps the image, 1 ignores it)", component="number-input-and-slider"),
        *_PROMPT_FORM,
        "# Clip",
        (Field("frames.value", "Frames"), Field("denoise.fps", "Frames per second")),
        (Field("width.value", "Width"), Field("height.value", "Height")),
        Field("seed.value", "Seed", shuffle=True),
        _LENGTH_TEXT,
        *_QUALITY_FORM,
        *_MODEL_FORM,
    ),
)

FIRST_FRAME_HELD = Recipe(
    name="First Frame Held - Z-Image Video",
    description="A clip that starts with exactly this image and moves on from there.",
    notes=f"{_MODEL_NOTES}\nFirst frame: any picture; it is stretched to the clip's width and height.\n"
    "Motion strength: 0 holds the first frame through every step, so that it comes out as it went in; "
    "1 shows it to the model in the first step only.",
    tags=("video", "image to video", "first frame", "z-image"),
    nodes=[
        *_prompted_nodes(),
        Node("denoise", "z_image_video_denoise", 2, values={**_SIZES, **_STEPS, "num_frames": _TOY.num_frames}),
        Node("decode", "z_image_video_decode", 3, makes_result=True),
    ],
    wires=[*_PROMPTED_WIRES, "loader.vae -> denoise.vae"],
    form=(
        "# First frame",
        Field("denoise.start_image", "First frame"),
        Field("denoise.motion_strength", "Motion strength (0 holds the frame exactly)", component="number-input-and-slider"),
        *_PROMPT_FORM,
        "# Clip",
        (Field("denoise.num_frames", "Frames"), Field("denoise.fps", "Frames per second")),
        (Field("denoise.width", "Width"), Field("denoise.height", "Height")),
        Field("denoise.seed", "Seed", shuffle=True),
        _LENGTH_TEXT,
        *_QUALITY_FORM,
        *_MODEL_FORM,
    ),
)

RECIPES = {
    "text_to_video": TEXT_TO_VIDEO,
    "image_to_video": IMAGE_TO_VIDEO,
    "first_frame_held": FIRST_FRAME_HELD,
    **HUNYUAN_RECIPES,
    **ANIMATEDIFF_RECIPES,
    **SVD_RECIPES,
}
