"""A tiny random Stable Diffusion 1.5 of diffusers: the real classes at toy sizes, seeded, made in a second. Imports no InvokeAI.

InvokeAI's model manager takes its folder for Stable Diffusion 1.5, because the text features are 768 wide, and stock nodes run it.
The UNet has four blocks, as the model manager wants of a motion module, of the widths of `tiny_animatediff_files`: every module,
single file and motion LoRA of that file fits it, and so do the ControlNet and the SparseCtrl of this one.

    tiny_sd1().save_pretrained(folder)
    save_motion_module(folder, "v2")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, PNDMScheduler, SparseControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from tiny_animatediff import GROUPS, LATENT_CHANNELS, TEXT_FEATURES, TOKENS, tiny_image_vae, tiny_unet
from tiny_animatediff_files import TINY_WIDTHS, tiny_adapter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPT, NEGATIVE = "a red circle moves to the right", "blurred, dark"
# Words of these are single tokens; anything else is spelled in bytes.
_WORDS = (
    PROMPT,
    NEGATIVE,
    "a blue square that grows, a green triangle in the rain, a cat on a sofa, a dog in the snow, best quality, masterpiece",
    "spring summer autumn winter morning evening night walks runs jumps sleeps slowly quickly with an and of from at .",
)
_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


_SPREAD = 0.2  # of weights that diffusers sets to zero, so that they change something


def tiny_sd1(*, seed: int = 0, unet: UNet2DConditionModel | None = None) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of 4 latent channels, 8 pixels per latent cell, 77 tokens of 768 features, float32."""
    tokenizer = byte_pair_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=tiny_image_vae(),
        text_encoder=tiny_text_encoder(tokenizer, seed=seed),
        tokenizer=tokenizer,
        unet=unet or tiny_sd1_unet(seed=seed),
        scheduler=PNDMScheduler(**_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_sd1_unet(*, seed: int = 0, **settings: Any) -> UNet2DConditionModel:
    """Its UNet: four blocks of two layers."""
    config = {
        "block_out_channels": TINY_WIDTHS,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        # diffusers gives a motion module the UNet's number of groups, whatever the module's config says.
        "norm_num_groups": 32,
    }
    return tiny_unet(seed=seed, **(config | settings))


def save_motion_module(folder: Path, version: str = "v2", **options: Any) -> Path:
    """A motion module of that UNet as a folder of diffusers' MotionAdapter; `tiny_animatediff_files.save_original` makes a file."""
    tiny_adapter(version, **options).save_pretrained(folder)
    return folder


def tiny_sd1_controlnet(*, seed: int = 3) -> ControlNetModel:
    """A ControlNet of that UNet; its output layers are random instead of zero."""
    torch.manual_seed(seed)
    return _awake(ControlNetModel.from_unet(tiny_sd1_unet(), conditioning_embedding_out_channels=(8, 8, 8, 8)))


def tiny_sd1_sparse_controlnet(*, seed: int = 4, reads_latents: bool = False) -> SparseControlNetModel:
    """A SparseCtrl of that UNet, for keyframes as pictures (scribble) or as latents (rgb)."""
    torch.manual_seed(seed)
    model = SparseControlNetModel(
        block_out_channels=TINY_WIDTHS,
        layers_per_block=2,
        in_channels=LATENT_CHANNELS,
        conditioning_channels=LATENT_CHANNELS if reads_latents else 3,
        down_block_types=("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
        cross_attention_dim=TEXT_FEATURES,
        attention_head_dim=2,
        norm_num_groups=GROUPS,
        motion_num_attention_heads=2,
        conditioning_embedding_out_channels=(8, 8, 8, 8),
        use_simplified_condition_embedding=reads_latents,
    )
    return _awake(model)


def tiny_text_encoder(tokenizer: CLIPTokenizer, *, seed: int = 0) -> CLIPTextModel:
    """CLIP's text model at its real width, with two layers, so that clip skip has one to skip."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_FEATURES,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def byte_pair_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of a few hundred, trained on a handful of words; its two marks come last, as CLIP's do."""
    suffix = "</w>"
    trained = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    trained.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix=suffix, show_progress=False)
    trained.train_from_iterator(list(_WORDS) * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    # Every byte, inside a word and at its end, so that any text has tokens.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet + [letter + suffix for letter in alphabet]
    pieces = letters + [piece for piece in model["vocab"] if piece not in set(letters)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _awake(model: Any) -> Any:
    for parameter in model.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=_SPREAD)
    return model.eval()
