"""Prompts and start pictures -> what the transformer reads beside the latents, as diffusers' pipelines make it.

HunyuanVideo     a language model with a fixed template (for image to video it sees the picture too), and CLIP's pooled text
HunyuanVideo-1.5 a language model with a chat template, ByT5 for words in quotation marks, SigLIP for the start picture

Templates, crops and the placing of picture tokens are diffusers' own code: they must fit the weights to the last token.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline
from PIL import Image

from ..errors import BadInput

MAX_PROMPT_TOKENS = 256
# Where the template has the picture: a second one in the prompt would make more room for pictures than there are.
PICTURE_MARK = "<image>"
# Every how many of the picture's tokens the transformer was trained to read.
_PICTURE_STRIDE = {"latent_concat": 2, "token_replace": 4}


@dataclass(frozen=True)
class PromptFeatures:
    """One prompt for HunyuanVideo. tokens [1, n, d]; mask [1, n], 1 where a token is real; pooled [1, p]."""

    tokens: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class PromptFeatures15:
    """One prompt for HunyuanVideo-1.5. tokens [1, n, d], glyphs [1, m, e] (words in quotation marks) and their masks."""

    tokens: torch.Tensor
    mask: torch.Tensor
    glyphs: torch.Tensor
    glyph_mask: torch.Tensor


Features = PromptFeatures | PromptFeatures15


@dataclass(frozen=True)
class TextEncoders:
    """Two encoders with their tokenizers: `language` reads the sentence, `second` is CLIP, or ByT5 in 1.5.

    For image to video of the first generation `language` is a LlavaForConditionalGeneration with an `image_processor`.
    """

    language: Any
    tokenizer: Any
    second: Any
    second_tokenizer: Any
    image_processor: Any = None


@torch.no_grad()
def encode_prompt(prompt: str, encoders: TextEncoders) -> PromptFeatures:
    """Features of `prompt` for text to video, in the dtype and on the device of the encoders."""
    pipeline = pipeline_hunyuan_video.HunyuanVideoPipeline
    shell = _shell(encoders)
    tokens, mask = pipeline._get_llama_prompt_embeds(
        shell, prompt, pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE, max_sequence_length=MAX_PROMPT_TOKENS
    )
    return PromptFeatures(tokens, mask, pipeline._get_clip_prompt_embeds(shell, prompt))


@torch.no_grad()
def encode_prompt_with_picture(prompt: str, picture: Any, encoders: TextEncoders, *, condition: str) -> PromptFeatures:
    """Features of `prompt` and a PIL `picture` for image to video, as the transformer's `image_condition_type` wants them.

    None is a black picture, which goes with a negative prompt. Raises BadInput for a prompt with the template's own mark.
    """
    check_prompt_with_picture(prompt)
    if condition not in _PICTURE_STRIDE:
        raise BadInput.expected("image_condition_type", f"one of {', '.join(_PICTURE_STRIDE)}", condition)
    if encoders.image_processor is None:
        raise BadInput.expected("text encoder", "one that sees pictures (Llava) with its image processor", "one for text alone")
    pipeline = pipeline_hunyuan_video_image2video.HunyuanVideoImageToVideoPipeline
    shell = _shell(encoders)
    # diffusers takes this stride for negative prompts whatever the condition.
    stride = _PICTURE_STRIDE["latent_concat" if picture is None else condition]
    tokens, mask = pipeline._get_llama_prompt_embeds(
        shell,
        picture or Image.new("RGB", (336, 336)),
        prompt,
        picture_template(encoders.language.config),
        max_sequence_length=MAX_PROMPT_TOKENS,
        image_embed_interleave=stride,
    )
    return PromptFeatures(tokens, mask, pipeline._get_clip_prompt_embeds(shell, prompt))


def check_prompt_with_picture(prompt: str) -> None:
    """Raise BadInput for a prompt that image to video of the first generation cannot encode."""
    if PICTURE_MARK in prompt:
        expected = f"words without {PICTURE_MARK}, which is reserved: it marks where the model sees the start image"
        raise BadInput.expected("prompt", expected, f"{prompt.count(PICTURE_MARK)} of it: leave it out")


def check_features(features: Any, *, generation: str, width: int | None, what: str = "prompt") -> None:
    """Raise BadInput unless a transformer of this generation, reading `width` features per token (None: unknown), takes these."""
    given = "1.5" if isinstance(features, PromptFeatures15) else "1.0"
    if given != generation:
        raise BadInput.expected(what, f"text features of HunyuanVideo {generation}, as this transformer reads", f"those of {given}")
    if width is not None and features.tokens.shape[-1] != width:
        raise BadInput.expected("text encoder", f"{width} features per token, as this transformer reads", features.tokens.shape[-1])


def picture_template(config: Any) -> dict[str, Any]:
    """The public template, with as many picture tokens as the language model's eye makes: 576 of 336x336 in patches of 14."""
    public = pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE
    tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return {**public, "image_emb_len": tokens, "image_emb_end": public["image_emb_start"] + tokens}


@torch.no_grad()
def encode_prompt_15(prompt: str, encoders: TextEncoders) -> PromptFeatures15:
    """Features of `prompt` for HunyuanVideo-1.5, text to video and image to video alike."""
    device = _device(encoders.language)
    tokens, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(encoders.language, encoders.tokenizer, prompt, device)
    glyphs, glyph_mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(encoders.second_tokenizer, encoders.second, prompt, device)
    return PromptFeatures15(tokens, mask, glyphs, glyph_mask)


@torch.no_grad()
def encode_picture_15(picture: Any, *, image_encoder: Any, feature_extractor: Any) -> torch.Tensor:
    """A PIL picture -> SigLIP's features [1, n, d], which HunyuanVideo-1.5 reads beside the start frame's latent."""
    parameter = next(image_encoder.parameters())
    pixels = feature_extractor.preprocess(images=picture, do_resize=True, return_tensors="pt", do_convert_rgb=True)
    features: torch.Tensor = image_encoder(**pixels.to(device=parameter.device, dtype=parameter.dtype)).last_hidden_state
    return features


def moved(features: Features, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The features where and as the transformer reads them; masks too, as diffusers passes them."""
    return type(features)(**{item.name: getattr(features, item.name).to(device=device, dtype=dtype) for item in fields(features)})


def _shell(encoders: TextEncoders) -> Any:
    """What diffusers' encoding methods use of their pipeline."""
    return SimpleNamespace(
        text_encoder=encoders.language,
        tokenizer=encoders.tokenizer,
        text_encoder_2=encoders.second,
        tokenizer_2=encoders.second_tokenizer,
        image_processor=encoders.image_processor,
        _execution_device=_device(encoders.language),
    )


def _device(module: Any) -> torch.device:
    device: torch.device = next(module.parameters()).device
    return device
