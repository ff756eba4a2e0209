"""Tiny random HunyuanVideo pipelines of diffusers: the real classes at toy sizes, seeded, made in a second or two.

They test plumbing and arithmetic, never quality. Imports no InvokeAI.

    tiny_text_to_video()                        HunyuanVideoPipeline
    tiny_image_to_video("token_replace")        HunyuanVideoImageToVideoPipeline, or "latent_concat"
    tiny_text_to_video_15(), tiny_image_to_video_15()
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE as WITH_PICTURE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import TextEncoders

TEXT_FEATURES, POOLED_FEATURES, PICTURE_FEATURES = 16, 8, 12
PICTURE_SIDE = 28  # pixels of the vision models' input, in patches of 14
_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<|im_start|>", "<|im_end|>")
_PROMPTS = ("a red circle moves to the right", "a blue square that grows", "blurred", 'a sign that says "open"')


def encoders_of(pipeline: Any) -> TextEncoders:
    """The text encoders of any of the pipelines below, as our core takes them."""
    return TextEncoders(
        language=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        second=pipeline.text_encoder_2,
        second_tokenizer=pipeline.tokenizer_2,
        image_processor=getattr(pipeline, "image_processor", None),
    )


def tiny_text_to_video(*, seed: int = 0, guidance_embeds: bool = True) -> HunyuanVideoPipeline:
    """A HunyuanVideoPipeline, 4 latent channels, float32."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    clip_tokenizer = word_tokenizer(max_length=77)
    return _quiet(
        HunyuanVideoPipeline(
            text_encoder=LlamaModel(_llama(len(tokenizer))).eval(),
            tokenizer=tokenizer,
            transformer=tiny_transformer(guidance_embeds=guidance_embeds),
            vae=tiny_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=_clip(len(clip_tokenizer)),
            tokenizer_2=clip_tokenizer,
        )
    )


def tiny_image_to_video(condition: str, *, seed: int = 0) -> HunyuanVideoImageToVideoPipeline:
    """A HunyuanVideoImageToVideoPipeline whose transformer takes its start frame by `condition`."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    clip_tokenizer = word_tokenizer(max_length=77)
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        projection_dim=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        image_size=PICTURE_SIDE,
        patch_size=14,
    )
    llava = LlavaConfig(
        vision_config=vision,
        text_config=_llama(len(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _quiet(
        HunyuanVideoImageToVideoPipeline(
            text_encoder=LlavaForConditionalGeneration(llava).eval(),
            tokenizer=tokenizer,
            transformer=tiny_transformer(condition=condition, guidance_embeds=condition == "token_replace"),
            vae=tiny_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=_clip(len(clip_tokenizer)),
            tokenizer_2=clip_tokenizer,
            image_processor=CLIPImageProcessor(size=PICTURE_SIDE, crop_size=PICTURE_SIDE),
        )
    )


def tiny_text_to_video_15(*, seed: int = 0, scale: float = 1.0) -> HunyuanVideo15Pipeline:
    """A HunyuanVideo15Pipeline; `scale` is its guider's, 1.0 switches it off."""
    return _quiet(HunyuanVideo15Pipeline(**_parts_15(seed, scale, task="t2v")))


def tiny_image_to_video_15(*, seed: int = 0, scale: float = 1.0, mean_flow: bool = False) -> HunyuanVideo15ImageToVideoPipeline:
    """A HunyuanVideo15ImageToVideoPipeline, which chooses its size by the picture: about 64x64 pixels; `mean_flow`: distilled."""
    vision = SiglipVisionConfig(
        hidden_size=PICTURE_FEATURES,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PICTURE_SIDE,
        patch_size=14,
    )
    parts = _parts_15(seed, scale, task="i2v", mean_flow=mean_flow)
    return _quiet(
        HunyuanVideo15ImageToVideoPipeline(
            **parts,
            image_encoder=SiglipVisionModel(vision).eval(),
            feature_extractor=SiglipImageProcessor(size={"height": PICTURE_SIDE, "width": PICTURE_SIDE}),
        )
    )


def tiny_transformer(*, condition: str | None = None, guidance_embeds: bool = True) -> HunyuanVideoTransformer3DModel:
    """The first generation's transformer: 4 latent channels, 2 heads of 10."""
    return HunyuanVideoTransformer3DModel(
        in_channels=9 if condition == "latent_concat" else 4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=guidance_embeds,
        text_embed_dim=TEXT_FEATURES,
        pooled_projection_dim=POOLED_FEATURES,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=condition,
    ).eval()


def tiny_vae() -> AutoencoderKLHunyuanVideo:
    """The 3D VAE of the first generation: 8x in space, 4x in time, 4 latent channels."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=True
    ).eval()


def word_tokenizer(*, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which the template's words are single tokens, so that it fits the crop of the public one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = [DEFAULT_PROMPT_TEMPLATE["template"], WITH_PICTURE["template"], *_PROMPTS] * 3
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", *_MARKS]
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    )
    # The public tokenizers begin with a token of their own, which the places in the templates count.
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bpe.token_to_id("<bos>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        additional_special_tokens=list(_MARKS),
        model_max_length=max_length,
        chat_template="{%- for m in messages -%}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{%- endfor -%}<|im_start|>",
    )


def _llama(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_FEATURES,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def _clip(vocab_size: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=POOLED_FEATURES,
        intermediate_size=16,
        projection_dim=POOLED_FEATURES,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    return CLIPTextModel(config).eval()


def _parts_15(seed: int, scale: float, *, task: str, mean_flow: bool = False) -> dict[str, Any]:
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(max_length=2048)
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_FEATURES,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        rope_theta=1_000_000.0,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    glyphs = T5Config(d_model=PICTURE_FEATURES, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=384, is_gated_act=True)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT_FEATURES,
        text_embed_2_dim=PICTURE_FEATURES,
        image_embed_dim=PICTURE_FEATURES,
        rope_axes_dim=(2, 2, 4),
        target_size=64,
        task_type=task,
        use_meanflow=mean_flow,
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1, scaling_factor=1.03682
    )
    return {
        "text_encoder": Qwen2_5_VLTextModel(text).eval(),
        "tokenizer": tokenizer,
        "transformer": transformer.eval(),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": T5EncoderModel(glyphs).eval(),
        "tokenizer_2": ByT5Tokenizer(),
        "guider": ClassifierFreeGuidance(guidance_scale=scale),
    }


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
