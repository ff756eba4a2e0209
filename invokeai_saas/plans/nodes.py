"""Every node that has a size, a frame count, steps or a count: what it is, and which of its fields say so.

A node that looks as if it had one of these and stands in none of the tables is refused until somebody has described it: undescribed()
finds it, and a test walks all nodes that are registered.
"""

import functools
import typing
from dataclasses import dataclass
from typing import Any, Literal

from invokeai.app.invocations.model import ModelIdentifierField

from invokeai_saas.plans.demands import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How to read one type of node. Fields are named; a Literal number is what the node always has.

    `follows` are inputs whose size the result has, in this order, where the node has no size of its own; `factor` is what it is multiplied
    with: a number or the field that holds it. `model` is the input through which the generating model comes.
    """

    role: Literal["job", "size", "provider"]
    kind: Kind = "image"
    family: str = ""
    width: str | None = None
    height: str | None = None
    frames: str | None = None
    steps: str | int | None = None
    count: str | None = None
    model: str | None = None
    follows: tuple[str, ...] = ()
    factor: str | float = 1

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are numbers of this rule."""
        named = (self.width, self.height, self.frames, self.steps, self.count, self.factor)
        return tuple(name for name in named if isinstance(name, str))


def _denoise(family: str, *, steps: str = "steps", model: str = "transformer") -> Rule:
    return Rule(role="job", family=family, width="width", height="height", steps=steps, model=model)


def _unet() -> Rule:
    return Rule(role="job", family="unknown", steps="steps", model="unet", follows=("noise", "latents"))


def _video(family: str, *, model: str = "model") -> Rule:
    return Rule(role="job", kind="video", family=family, width="width", height="height", frames="num_frames", steps="steps", model=model)


def _pid(family: str) -> Rule:
    return Rule(role="job", family=family, steps="num_inference_steps", model="pid_decoder", follows=("latents",), factor=4)


def _sized(*follows: str, kind: Kind = "image", frames: str | None = None) -> Rule:
    return Rule(role="size", kind=kind, width="width", height="height", frames=frames, follows=follows)


def _scaled(factor: str | float, follows: str = "image") -> Rule:
    return Rule(role="size", follows=(follows,), factor=factor)


_PROVIDER = Rule(role="provider", width="width", height="height", count="num_images", model="model")
# svd_denoise has the size of its picture, ideogram4_denoise the steps of its preset where none are given.
RULES: dict[str, Rule] = {
    "anima_denoise": _denoise("anima"),
    "anima_denoise_meta": _denoise("anima"),
    "cogview4_denoise": _denoise("cogview4"),
    "denoise_latents": _unet(),
    "denoise_latents_meta": _unet(),
    "tiled_multi_diffusion_denoise_latents": _unet(),
    "ernie_image_denoise": _denoise("ernie-image"),
    "flux_denoise": _denoise("flux", steps="num_steps"),
    "flux_denoise_meta": _denoise("flux", steps="num_steps"),
    "flux2_denoise": _denoise("flux2", steps="num_steps"),
    "ideogram4_denoise": _denoise("ideogram-4"),
    "krea2_denoise": _denoise("krea-2"),
    "qwen_image_denoise": _denoise("qwen-image"),
    "sd3_denoise": _denoise("sd-3"),
    "wan_denoise": _denoise("wan"),
    "z_image_denoise": _denoise("z-image"),
    "z_image_denoise_meta": _denoise("z-image"),
    "animatediff_denoise": _video("animatediff"),
    "hunyuan_video_denoise": _video("hunyuan-video", model="transformer"),
    "wan_video_denoise": _video("wan", model="transformer"),
    "z_image_video_denoise": _video("z-image-video", model="transformer"),
    "svd_denoise": Rule(role="job", kind="video", family="svd", frames="num_frames", steps="steps", model="model", follows=("image",)),
    "flux_pid_decode": _pid("flux"),
    "flux2_pid_decode": _pid("flux2"),
    "qwen_image_pid_decode": _pid("qwen-image"),
    "sd3_pid_decode": _pid("sd-3"),
    "sdxl_pid_decode": _pid("sdxl"),
    "z_image_pid_decode": _pid("z-image"),
    "pid_upscale": Rule(role="job", family="flux", steps="num_inference_steps", model="pid_decoder", follows=("image",), factor=4),
    "alibabacloud_image_generation": _PROVIDER,
    "gemini_image_generation": _PROVIDER,
    "openai_image_generation": _PROVIDER,
    "seedream_image_generation": _PROVIDER,
    "noise": _sized(),
    "blank_image": _sized(),
    "heuristic_resize": _sized(),
    "img_resize": _sized(),
    "img_crop": _sized(),
    "crop_latents": _sized(),
    "lresize": _sized(),
    "rectangle_mask": _sized(),
    "svd_start_image": _sized(),
    "krea2_style_reference": _sized(),
    "hunyuan_video_image_encoder": _sized(kind="video"),
    "qwen_image_i2l": _sized("image"),
    "animatediff_encode": _sized("images", "video", kind="video", frames="num_frames"),
    "video_vae_encode": _sized("images", "video", kind="video", frames="num_frames"),
    "z_image_video_encode": _sized("image", kind="video", frames="num_frames"),
    "wan_ref_image_encoder": _sized(frames="num_frames"),
    "img_scale": _scaled("scale_factor"),
    "lscale": _scaled("scale_factor", "latents"),
    "spandrel_image_to_image_autoscale": _scaled("scale"),
    "spandrel_image_to_image": _scaled(4),
    "esrgan": _scaled(4),
}
# Nodes whose picture or latents have the size of this input.
SAME_SIZE = {
    **dict.fromkeys(
        ("i2l", "anima_i2l", "cogview4_i2l", "sd3_i2l", "wan_i2l", "z_image_i2l", "flux_vae_encode", "flux2_vae_encode"), "image",
    ),
    **dict.fromkeys(
        ("l2i", "anima_l2i", "cogview4_l2i", "sd3_l2i", "wan_l2i", "z_image_l2i", "qwen_image_l2i", "ideogram4_l2i", "flux_vae_decode",
         "flux2_vae_decode", "ernie_image_vae_decode", "latents"), "latents",
    ),
    **dict.fromkeys(
        ("image", "save_image", "show_image", "img_blur", "img_chan", "img_conv", "img_hue_adjust", "img_lerp", "img_ilerp", "img_nsfw",
         "img_watermark", "img_noise", "unsharp_mask", "infill_cv2", "infill_lama", "infill_patchmatch", "infill_rgba", "infill_tile"),
        "image",
    ),
    "lblend": "latents_a",
    "color_correct": "base_image",
}  # fmt: skip
# Nodes whose picture's size is an arithmetic of its own, in sizes.py: edges are moved, or pictures put together.
BOXED = frozenset({"img_pad_crop", "img_paste", "crop_image_to_bounding_box", "paste_image_into_bounding_box", "merge_tiles_to_image"})
# Lists that a node makes: the field that says how long, or the list itself.
LIST_LENGTHS = {
    "range": "stop",
    "range_of_size": "size",
    "random_range": "size",
    "float_range": "steps",
    "dynamic_prompt": "max_prompts",
    "boolean_collection": "collection",
    "conditioning_collection": "collection",
    "float_collection": "collection",
    "image_collection": "collection",
    "integer_collection": "collection",
    "latents_collection": "collection",
    "string_collection": "collection",
}
# A list longer than this is no use of ours, whatever the plan.
LONGEST_LIST = 10_000
# Nodes that take a model out of a picture's metadata: which one, only the running graph would know.
MODELS_FROM_METADATA = frozenset({
    "metadata_to_controlnets", "metadata_to_ip_adapters", "metadata_to_lora_collection", "metadata_to_loras", "metadata_to_model",
    "metadata_to_sdlx_loras", "metadata_to_sdxl_model", "metadata_to_t2i_adapters", "metadata_to_vae",
})  # fmt: skip
# What is written into a picture and never run.
METADATA = frozenset({"core_metadata", "metadata", "metadata_item", "metadata_item_linked", "merge_metadata", "metadata_from_image"})
# Nodes with fields that look like a size or a count, or that hand on latents or clips, looked at, and why they ask for nothing.
REVIEWED = {
    "animatediff_decode": "has the size of its latents",
    "animatediff_free_init": "repeats the denoising of a clip; seconds are charged as measured and stop at the hold",
    "animatediff_sparse_control": "positions of pictures in the clip beside it",
    "animatediff_windows": "how many frames of the clip beside it are done at once",
    "animatediff_prompt_schedule": "weights of prompts, one per frame of the clip beside it",
    "bounding_box": "numbers for other nodes",
    "calculate_image_tiles": "numbers for other nodes",
    "calculate_image_tiles_even_split": "numbers for other nodes",
    "calculate_image_tiles_min_overlap": "numbers for other nodes",
    "content_shuffle": "the size of the noise, not of the picture",
    "color_map": "the size of the tiles",
    "core_metadata": "a record",
    "ernie_image_prompt_enhancer": "a prompt's words",
    "decode_watermark": "words",
    "extract_video_range": "part of a clip that is there",
    "face_off": "part of a picture that is there",
    "frames_to_video": "pictures that are there",
    "hunyuan_video_model_loader": "a loader",
    "ideal_size": "numbers for other nodes",
    "image_panel_layout": "numbers for other nodes",
    "img_channel_multiply": "a colour",
    "img_channel_offset": "a colour",
    "iterate": "counted by what it iterates over",
    "collect": "counted by what it collects",
    "integer_batch": "becomes the batch's own data before it runs",
    "float_batch": "becomes the batch's own data before it runs",
    "krea2_conditioning_rebalance": "a weight",
    "prompt_from_file": "off on this server",
    "sdxl_compel_prompt": "numbers that the prompt is told",
    "sdxl_refiner_compel_prompt": "numbers that the prompt is told",
    "svd_decode": "has the size of its latents",
    "text_llm": "words",
    "text_llm_with_preset": "words",
    "video": "a clip that is there",
    "video_concat": "clips that are there",
    "video_latents_load": "off on this server",
    "video_to_frames": "frames of a clip that is there",
    "video_vae_decode": "has the size of its latents",
    "video_vae_decode_frames": "has the size of its latents",
    "wan_i2v_ideal_dimensions": "numbers for other nodes",
    "wan_l2v": "has the size of its latents",
    "wan_ti2v_ideal_dimensions": "numbers for other nodes",
    "z_image_video_decode": "has the size of its latents",
}
# Numbers by whose name a node asks for nothing: strengths, weights, thresholds, colours, positions, seeds.
HARMLESS_NUMBERS = frozenset({
    "a", "adain_strength", "adaptive_gamut", "aesthetic_score", "alpha", "amount", "b", "b1", "b2", "begin_step_percent", "beta",
    "blend_amount", "brightness", "cfg_rescale_multiplier", "cfg_scale", "cfg_scale_end_step", "cfg_scale_start_step", "clip_skip",
    "color", "contrast", "control_context_scale", "control_weight", "crf", "crop_left", "crop_top", "cutoff", "decimals",
    "decode_chunk_size", "default_value", "degrees", "denoising_end", "denoising_start", "detection_threshold", "distance_threshold",
    "downsampling_factor", "dype_exponent", "dype_scale", "edge_blur", "edge_radius", "edge_size", "end_step_percent", "eta",
    "every_nth", "f_patch_size", "face_id", "fade_size_px", "fps", "frame_index", "guidance", "guidance_scale",
    "guidance_scale_low_noise", "hidiffusion_t1_ratio", "hidiffusion_t2_ratio", "high", "high_scale_end", "high_scale_start",
    "high_threshold", "hrf_strength", "hue", "instantx_control_mode", "low", "low_scale_end", "low_scale_start", "low_threshold",
    "margin", "mask_blur", "max", "max_faces", "max_guidance_scale", "min", "min_confidence", "min_guidance_scale", "min_overlap",
    "minimum_confidence", "minimum_denoise", "motion_bucket_id", "motion_scale", "motion_strength", "mu", "multiple",
    "noise_aug_strength", "noise_strength", "ok_adaptive_gamut", "opacity", "order", "overlap", "panel_col_idx", "panel_row_idx",
    "quality", "radius", "radius_h", "radius_w", "randomize_percent", "ref_k_strength", "ref_value_mix", "s1", "s2", "score_threshold",
    "seed", "sharpness", "shift", "skip", "skipped_layers", "spatial_stop", "start", "start_line", "step", "strength", "stride",
    "style_strength", "temperature", "temporal_stop", "threshold", "threshold_lower", "threshold_upper", "tile_frames", "tile_height",
    "tile_overlap", "tile_size", "tile_width", "top_p", "transition_frames", "true_cfg_scale", "value", "value_adain_strength",
    "variance_seed", "weight", "x_offset", "y_offset",
})  # fmt: skip
_HANDS_ON = {"LatentsField", "VideoField"}


def described(node_type: str) -> bool:
    """Whether some table says what the node asks for."""
    tables = (RULES, SAME_SIZE, LIST_LENGTHS, REVIEWED)
    return any(node_type in table for table in tables) or node_type in BOXED or node_type in METADATA | MODELS_FROM_METADATA


@functools.lru_cache(maxsize=2048)
def undescribed(cls: type[Any]) -> tuple[str, ...]:
    """What of a node nobody has described: its numbers with names that are not harmless, and latents or clips that it hands on."""
    if described(cls.get_type()):
        return ()
    numbers = [
        name
        for name, field in cls.model_fields.items()
        if name not in HARMLESS_NUMBERS and any(each in (int, float) for each in _leaves(field.annotation))
    ]
    output = cls.get_output_annotation()
    handed = [
        f"-> {name}"
        for name, field in output.model_fields.items()
        if any(getattr(each, "__name__", "") in _HANDS_ON for each in _leaves(field.annotation))
    ]
    return tuple(numbers + handed)


def _leaves(annotation: Any) -> list[Any]:
    """The types inside unions, lists and Annotated; a model's own fields are its own business."""
    inside = typing.get_args(annotation)
    if not inside or typing.get_origin(annotation) is Literal:
        return [annotation]
    return [leaf for each in inside for leaf in _leaves(each)]


def is_model_field(value: Any) -> bool:
    """Whether a value is InvokeAI's way to name an installed model, also as JSON."""
    if isinstance(value, dict):
        return isinstance(value.get("key"), str) and bool({"base", "type", "hash"} & value.keys())
    return isinstance(value, ModelIdentifierField)
