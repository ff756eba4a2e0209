"""Stable Video Diffusion's workflows, in our own words: a picture set in motion, and the same behind Stable Diffusion 1.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflows.recipe import Field, Node, Recipe

Form = Sequence[str | Field | Sequence[Field]]

_NOTES = """\
Video Model: Stable Video Diffusion XT (25 frames) or Stable Video Diffusion (14 frames), from the model manager's Starter Models, or \
the original file svd_xt.safetensors or svd.safetensors. It takes 3.1 GB on the card while it works, and a clip of 1024x576 several more; \
12 GB are enough. There is no prompt: the model sees the picture alone.
Motion bucket: how much moves, from 0 to 255. 127 is normal, 60 calm, above 200 things may lose their shape.
Noise augmentation: how far the clip may leave the picture. 0.02 is normal; 0.1 and more lets it change and move more.
Frames per second tell the model how fast to move, too: 7 is normal, and a higher number makes each frame move less."""
_MOTION_FORM: Form = (
    "# Motion",
    Field("denoise.motion_bucket_id", "Motion bucket (127 is normal, less is calmer)", component="number-input-and-slider"),
    Field("denoise.noise_aug_strength", "Noise augmentation (0.02 is normal, 0.1 and more leaves the picture)"),
)
_CLIP_FORM: Form = (
    "# Clip",
    (Field("denoise.num_frames", "Frames"), Field("denoise.fps", "Frames per second")),
    "SVD-XT was trained to make 25 frames, SVD 14; with other numbers the motion may be poor.",
)
_QUALITY_FORM: Form = (
    "# Quality",
    Field("denoise.steps", "Steps"),
    (
        Field("denoise.min_guidance_scale", "Guidance of the first frame"),
        Field("denoise.max_guidance_scale", "Guidance of the last frame"),
    ),
    Field("decode.decode_chunk_size", "Frames decoded at once (0: as many as fit)"),
)
_VIDEO_MODEL = Field("loader.model", "Video model")
_WIRES = (
    "start.image -> denoise.image",
    "loader.model -> denoise.model",
    "loader.vae -> denoise.vae",
    "denoise.latents -> decode.latents",
    "loader.vae -> decode.vae",
)


def _nodes(column: int) -> list[Node]:
    """Loader, start image, denoise and decode, from `column` on."""
    return [
        Node("loader", "svd_model_loader", 0, label="Video Model"),
        Node("start", "svd_start_image", column, label="Start Image"),
        Node("denoise", "svd_denoise", column + 1),
        Node("decode", "svd_decode", column + 2, makes_result=True),
    ]


IMAGE_TO_VIDEO = Recipe(
    name="Image to Video - SVD",
    description="A picture starts to move.",
    notes=f"{_NOTES}\nStart Image: any picture. 'Ideal' finds the size nearest to its shape that the model does well; 'As trained' is "
    "1024x576, or 576x1024 for an upright picture.",
    tags=("video", "image to video", "svd"),
    nodes=_nodes(1),
    wires=_WIRES,
    form=(
        "# Picture",
        Field("start.image", "The picture that starts to move"),
        (Field("start.size", "Size"), Field("start.how", "Where the shapes differ")),
        "Only for a size of your own (multiples of 8):",
        (Field("start.width", "Width"), Field("start.height", "Height")),
        *_MOTION_FORM,
        *_CLIP_FORM,
        Field("denoise.seed", "Seed", shuffle=True),
        *_QUALITY_FORM,
        "# Model",
        _VIDEO_MODEL,
    ),
)

_PICTURE_VALUES: dict[str, Any] = {"steps": 30, "cfg_scale": 7.0, "denoising_start": 0.35, "scheduler": "dpmpp_2m_k"}

PICTURE_TO_VIDEO = Recipe(
    name="Picture, Drawn Anew, to Video - SD1.5 and SVD",
    description="A picture is drawn anew by Stable Diffusion 1.5 after a prompt, and what comes out starts to move.",
    notes=f"{_NOTES}\n"
    "Main Model: any Stable Diffusion 1.5 model, which draws the picture. The prompt is for it alone.\n"
    "Sketch: a photo, a sketch or a picture of your own. 'Keep' says how much of it stays: 0 draws from the prompt alone, 0.8 retouches.\n"
    "Both pictures are in the gallery beside the clip.",
    tags=("video", "image to image", "image to video", "svd", "sd1.5"),
    nodes=[
        Node("main", "main_model_loader", 0, label="Main Model"),
        Node("positive_prompt", "compel", 1, label="Prompt", values={"prompt": "oil painting of a harbour at sunset, best quality"}),
        Node("negative_prompt", "compel", 1, label="Negative Prompt", values={"prompt": "low quality, blurry, watermark, text"}),
        Node("sketch", "svd_start_image", 0, label="Sketch", values={"size": "own", "width": 768, "height": 432}),
        Node("noise", "noise", 1, label="Noise"),
        Node("encode", "i2l", 1, label="Sketch to Latents"),
        Node("draw", "denoise_latents", 2, label="Draw", values=_PICTURE_VALUES),
        Node("picture", "l2i", 2, label="Picture", makes_result=True),
        *_nodes(3),
    ],
    wires=(
        "main.clip -> positive_prompt.clip",
        "main.clip -> negative_prompt.clip",
        "sketch.image -> encode.image",
        "main.vae -> encode.vae",
        *(f"sketch.{size} -> noise.{size}" for size in ("width", "height")),
        "main.unet -> draw.unet",
        "positive_prompt.conditioning -> draw.positive_conditioning",
        "negative_prompt.conditioning -> draw.negative_conditioning",
        "noise.noise -> draw.noise",
        "encode.latents -> draw.latents",
        "draw.latents -> picture.latents",
        "main.vae -> picture.vae",
        "picture.image -> start.image",
        *_WIRES,
    ),
    form=(
        "# Picture",
        Field("sketch.image", "The picture to start from"),
        Field("draw.denoising_start", "Keep (0 nothing of it, 1 all of it)", component="number-input-and-slider"),
        (Field("sketch.width", "Width of the drawing"), Field("sketch.height", "Height of the drawing")),
        "# Prompt",
        Field("positive_prompt.prompt", "What is drawn", component="textarea"),
        Field("negative_prompt.prompt", "What to avoid", component="textarea"),
        (Field("noise.seed", "Seed of the drawing", shuffle=True), Field("denoise.seed", "Seed of the motion", shuffle=True)),
        *_MOTION_FORM,
        *_CLIP_FORM,
        (Field("start.size", "Size of the clip"), Field("start.how", "Where the shapes differ")),
        *_QUALITY_FORM,
        "# Models",
        (Field("main.model", "Main model (Stable Diffusion 1.5)"), _VIDEO_MODEL),
    ),
)

# file name -> recipe
SVD_RECIPES = {
    "svd_image_to_video": IMAGE_TO_VIDEO,
    "svd_picture_to_video": PICTURE_TO_VIDEO,
}
