"""The starter models as data: what each is, where it comes from, what it costs in disk and memory, what it needs beside it.

Every `Row` is one starter model; a later family appends its rows. `python -m docs.models_page` writes them into docs/models.md.
"""

from dataclasses import dataclass
from typing import Any

APACHE = "Apache-2.0"
MIT = "MIT"
STABILITY = "Stability AI Community License"
TENCENT = "Tencent Hunyuan Community License"
# licence -> where it does not apply, in the words of the licence's own territory clause
NOT_LICENSED_IN = {APACHE: "", MIT: "", STABILITY: "", TENCENT: "the European Union, the United Kingdom and South Korea"}


@dataclass(frozen=True)
class Row:
    """One starter model.

    `source` is a URL, a hub id ("owner/repo", "owner/repo::subfolder", "owner/repo::one+another") or, with `in_package`, a folder of
    our package. `size_gb` (10^9 bytes) is downloaded; `weights_gb` is what its transformer, UNet, VAE or encoders take while they work.
    `card_gb` names the smallest card on which that stays in place, 0 for any. `dependencies` and `bundles` are names of rows and
    keys of `BUNDLES`.
    """

    name: str
    base: str
    type: str
    format: str
    source: str
    description: str
    licence: str
    size_gb: float
    weights_gb: float
    card_gb: int = 0
    dependencies: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    in_package: bool = False


# bundle key -> the name on its button
BUNDLES = {
    "invokeai_video_toy": "Video (toy model)",
    "invokeai_video_hunyuan_12gb": "HunyuanVideo (12 GB cards)",
    "invokeai_video_hunyuan_24gb": "HunyuanVideo (24 GB cards)",
    "invokeai_video_hunyuan_48gb": "HunyuanVideo (48 GB cards)",
    "invokeai_video_hunyuan_15": "HunyuanVideo-1.5 (24 GB cards)",
    "invokeai_video_animatediff": "AnimateDiff (6 GB cards)",
    "invokeai_video_animatelcm": "AnimateLCM (6 GB cards)",
    "invokeai_video_svd": "Stable Video Diffusion (12 GB cards)",
}
# bundle key -> sources of InvokeAI's own starter models that belong in it: the pictures that a motion module moves.
UPSTREAM_MEMBERS = {
    "invokeai_video_animatediff": ("Lykon/dreamshaper-8", "lllyasviel/control_v11p_sd15_canny"),
    "invokeai_video_animatelcm": ("Lykon/dreamshaper-8",),
}

_VAE = "HunyuanVideo VAE"
_ENCODERS = "HunyuanVideo Text Encoders"
_IN_ONE_FILE = (_VAE, _ENCODERS)


def _hunyuan(name: str, source: str, description: str, *, size_gb: float, weights_gb: float, card_gb: int, **more: tuple[str, ...]) -> Row:
    """A HunyuanVideo model; a URL's ending tells the format, and everything but a folder needs its VAE and text encoders."""
    kind = "gguf_quantized" if source.endswith(".gguf") else "checkpoint" if source.endswith(".safetensors") else "diffusers"
    return Row(
        name=name,
        base="hunyuan-video",
        type="main",
        format=kind,
        source=source,
        description=description,
        licence=TENCENT,
        size_gb=size_gb,
        weights_gb=weights_gb,
        card_gb=card_gb,
        dependencies=() if kind == "diffusers" else _IN_ONE_FILE,
        bundles=more.get("bundles", ()),
    )


def _hunyuan_15(variant: str, name: str, description: str, **more: tuple[str, ...]) -> Row:
    """A complete HunyuanVideo-1.5 folder: stored in 32 bits, 17 GB in memory."""
    source = f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{variant}"
    return _hunyuan(f"HunyuanVideo-1.5 {name}", source, description, size_gb=53, weights_gb=16.7, card_gb=24, **more)


_SD1 = "For Stable Diffusion 1.5."
_LCM_LORA = "AnimateLCM LoRA"


def _motion_module(name: str, source: str, description: str, *, size_gb: float, **more: Any) -> Row:
    """A motion module as a folder of diffusers' MotionAdapter, stored in 32 bits, at work in 16."""
    more = {"licence": APACHE, "card_gb": 6, **more}
    kind = ("sd-1", "motion_module", "diffusers")
    return Row(name, *kind, source, f"{description} {_SD1}", size_gb=size_gb, weights_gb=size_gb / 2, **more)


def _motion_lora(name: str, slug: str, description: str) -> Row:
    source = f"guoyww/animatediff-motion-lora-{slug}::diffusion_pytorch_model.safetensors"
    text = f"{description} A motion LoRA for the module v2."
    return Row(f"AnimateDiff {name}", "sd-1", "lora", "checkpoint", source, text, licence=APACHE, size_gb=0.077, weights_gb=0.039)


def _sparse_control(name: str, slug: str, description: str) -> Row:
    source, text = f"guoyww/animatediff-sparsectrl-{slug}", f"{description} For the module v3."
    kind = ("sd-1", "controlnet", "sparse_ctrl")
    return Row(f"AnimateDiff SparseCtrl {name}", *kind, source, text, licence=APACHE, size_gb=1.0, weights_gb=1.0, card_gb=6)


def _svd(name: str, source: str, description: str, **more: Any) -> Row:
    """Stable Video Diffusion: as a folder in 16 bits, as one file of the original release in 32."""
    kind, size_gb = ("checkpoint", 9.6) if source.endswith(".safetensors") else ("diffusers", 4.5)
    text = f"{description} {_ASK}"
    return Row(name, "svd", "main", kind, source, text, licence=STABILITY, size_gb=size_gb, weights_gb=3.1, card_gb=12, **more)


_ASK = "The page of its source asks you to accept its terms; the download then wants your Hugging Face access token in the Model Manager."

ANIMATEDIFF_ROWS = (
    _motion_module(
        "AnimateDiff Motion Module v3",
        "guoyww/animatediff-motion-adapter-v1-5-3",
        "Makes pictures of one main model into a clip of 16 frames; the steadiest of the three, and the one that SparseCtrl is made for.",
        size_gb=1.67,
        bundles=("invokeai_video_animatediff",),
    ),
    _motion_module(
        "AnimateDiff Motion Module v2",
        "guoyww/animatediff-motion-adapter-v1-5-2",
        "Makes pictures of one main model into a clip of 16 frames; moves most, and motion LoRAs are made for it.",
        size_gb=1.82,
    ),
    _motion_module(
        "AnimateDiff Motion Module v1",
        "guoyww/animatediff-motion-adapter-v1-5",
        "Makes pictures of one main model into a clip of 16 frames; the first release, at most 24 frames at once.",
        size_gb=1.67,
    ),
    _motion_module(
        "AnimateLCM",
        "wangfuyun/AnimateLCM",
        "A motion module that needs 4 to 8 steps, together with its LoRA.",
        size_gb=1.82,
        licence=MIT,
        dependencies=(_LCM_LORA,),
        bundles=("invokeai_video_animatelcm",),
    ),
    Row(
        name=_LCM_LORA,
        base="sd-1",
        type="lora",
        format="lycoris",
        source="wangfuyun/AnimateLCM::AnimateLCM_sd15_t2v_lora.safetensors",
        description=f"Lets the main model draw in the few steps of AnimateLCM: apply it to the main model with a weight of 0.8. {_SD1}",
        licence=MIT,
        size_gb=0.135,
        weights_gb=0.135,
        bundles=("invokeai_video_animatelcm",),
    ),
    _motion_lora("Zoom In", "zoom-in", "The camera moves closer."),
    _motion_lora("Zoom Out", "zoom-out", "The camera moves away."),
    _motion_lora("Pan Left", "pan-left", "The camera moves to the left."),
    _motion_lora("Pan Right", "pan-right", "The camera moves to the right."),
    _motion_lora("Tilt Up", "tilt-up", "The camera moves up."),
    _motion_lora("Tilt Down", "tilt-down", "The camera moves down."),
    _motion_lora("Roll Clockwise", "rolling-clockwise", "The camera turns clockwise."),
    _motion_lora("Roll Anticlockwise", "rolling-anticlockwise", "The camera turns anticlockwise."),
    _sparse_control("RGB", "rgb", "Holds single frames of a clip to pictures that you give, and finds the way between them."),
    _sparse_control("Scribble", "scribble", "Holds single frames of a clip to sketches that you give, and finds the way between them."),
)

SVD_ROWS = (
    _svd(
        "Stable Video Diffusion XT",
        "stabilityai/stable-video-diffusion-img2vid-xt",
        "A picture becomes the first frame of a clip of 25 frames.",
        bundles=("invokeai_video_svd",),
    ),
    _svd(
        "Stable Video Diffusion",
        "stabilityai/stable-video-diffusion-img2vid",
        "A picture becomes the first frame of a clip of 14 frames.",
    ),
    _svd(
        "Stable Video Diffusion XT (one file)",
        "stabilityai/stable-video-diffusion-img2vid-xt::svd_xt.safetensors",
        "The 25 frames model as the one file of its original release.",
    ),
    _svd(
        "Stable Video Diffusion (one file)",
        "stabilityai/stable-video-diffusion-img2vid::svd.safetensors",
        "The 14 frames model as the one file of its original release.",
    ),
)

ROWS = (
    Row(
        name="Toy Video",
        base="z-image-video",
        type="main",
        format="diffusers",
        source="toy_model/model",
        description="A toy that was trained on synthetic clips of moving shapes: a few MB, seconds per clip on a CPU. "
        'Try "a red circle moves to the right".',
        licence=APACHE,
        size_gb=0.007,
        weights_gb=0.006,
        bundles=("invokeai_video_toy",),
        in_package=True,
    ),
    _hunyuan(
        "HunyuanVideo Text to Video",
        "hunyuanvideo-community/HunyuanVideo",
        "A prompt becomes a clip. The complete folder: transformer, text encoders and VAE.",
        size_gb=41.9,
        weights_gb=25.6,
        card_gb=48,
        bundles=("invokeai_video_hunyuan_48gb",),
    ),
    _hunyuan(
        "HunyuanVideo Image to Video",
        "hunyuanvideo-community/HunyuanVideo-I2V",
        "A picture becomes the first frame of a clip. The complete folder: transformer, text and image encoders and VAE.",
        size_gb=43.5,
        weights_gb=25.6,
        card_gb=48,
        bundles=("invokeai_video_hunyuan_48gb",),
    ),
    _hunyuan(
        "HunyuanVideo Text to Video (fp8)",
        "Kijai/HunyuanVideo_comfy::hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors",
        "A prompt becomes a clip. The transformer alone, in 8 bits.",
        size_gb=13.2,
        weights_gb=13.2,
        card_gb=24,
        bundles=("invokeai_video_hunyuan_24gb",),
    ),
    _hunyuan(
        "HunyuanVideo Text to Video (GGUF Q8)",
        "https://huggingface.co/city96/HunyuanVideo-gguf/resolve/main/hunyuan-video-t2v-720p-Q8_0.gguf",
        "A prompt becomes a clip. The transformer alone, in 8 bits; nearest to the full one.",
        size_gb=14.0,
        weights_gb=14.0,
        card_gb=24,
    ),
    _hunyuan(
        "HunyuanVideo Text to Video (GGUF Q6)",
        "https://huggingface.co/city96/HunyuanVideo-gguf/resolve/main/hunyuan-video-t2v-720p-Q6_K.gguf",
        "A prompt becomes a clip. The transformer alone, in 6 bits.",
        size_gb=11.0,
        weights_gb=11.0,
        card_gb=16,
    ),
    _hunyuan(
        "HunyuanVideo Text to Video (GGUF Q4)",
        "https://huggingface.co/city96/HunyuanVideo-gguf/resolve/main/hunyuan-video-t2v-720p-Q4_K_M.gguf",
        "A prompt becomes a clip. The transformer alone, in 4 bits, for small cards.",
        size_gb=7.9,
        weights_gb=7.9,
        card_gb=12,
        bundles=("invokeai_video_hunyuan_12gb",),
    ),
    Row(
        name=_VAE,
        base="hunyuan-video",
        type="video_vae",
        format="diffusers",
        source="hunyuanvideo-community/HunyuanVideo::vae",
        description="Turns HunyuanVideo's latents into frames and back. For models in one file.",
        licence=TENCENT,
        size_gb=1.0,
        weights_gb=0.5,
        bundles=("invokeai_video_hunyuan_12gb", "invokeai_video_hunyuan_24gb"),
    ),
    Row(
        name=_ENCODERS,
        base="hunyuan-video",
        type="video_text_encoders",
        format="diffusers",
        source="hunyuanvideo-community/HunyuanVideo::text_encoder+tokenizer+text_encoder_2+tokenizer_2+scheduler",
        description="Reads the prompt, for text-to-video models in one file: the language model and CLIP, with their tokenizers.",
        licence=TENCENT,
        size_gb=15.3,
        weights_gb=15.3,
        bundles=("invokeai_video_hunyuan_12gb", "invokeai_video_hunyuan_24gb"),
    ),
    _hunyuan_15(
        "480p_t2v",
        "Text to Video 480p",
        "A prompt becomes a clip of about 848x480. True CFG 6.",
        bundles=("invokeai_video_hunyuan_15",),
    ),
    _hunyuan_15(
        "480p_i2v",
        "Image to Video 480p",
        "A picture becomes the first frame of a clip of about 848x480. True CFG 6.",
        bundles=("invokeai_video_hunyuan_15",),
    ),
    _hunyuan_15("720p_t2v", "Text to Video 720p", "A prompt becomes a clip of about 1280x720. True CFG 6."),
    _hunyuan_15("720p_i2v", "Image to Video 720p", "A picture becomes the first frame of a clip of about 1280x720. True CFG 6."),
    _hunyuan_15("480p_t2v_distilled", "Text to Video 480p (distilled)", "As the plain one in half the time: true CFG stays at 1."),
    _hunyuan_15("480p_i2v_distilled", "Image to Video 480p (distilled)", "As the plain one in half the time: true CFG stays at 1."),
    _hunyuan_15("720p_i2v_distilled", "Image to Video 720p (distilled)", "As the plain one in half the time: true CFG stays at 1."),
    _hunyuan_15(
        "480p_i2v_step_distilled",
        "Image to Video 480p (few steps)",
        "A picture becomes the first frame of a clip in 8 or 12 steps; true CFG stays at 1.",
    ),
    *ANIMATEDIFF_ROWS,
    *SVD_ROWS,
)


def by_name() -> dict[str, Row]:
    """Every row under its name."""
    return {row.name: row for row in ROWS}


def full_description(row: Row) -> str:
    """What the Starter Models page shows: what it does, its size, its licence and where that does not apply."""
    nowhere = NOT_LICENSED_IN[row.licence]
    territory = f", which does not apply in {nowhere}" if nowhere else ""
    return f"{row.description} {size_text(row.size_gb)}. Licence: {row.licence}{territory}."


def size_text(size_gb: float) -> str:
    """A size in words: 42 GB, 7.9 GB, 7 MB."""
    if size_gb < 0.1:
        return f"{size_gb * 1000:.0f} MB"
    return f"{size_gb:.0f} GB" if size_gb >= 20 else f"{size_gb:.1f} GB"
