"""The toy's text side: a small byte-level BPE and a frozen, randomly initialised Qwen3.

Nothing here is trained but the merges. The features are computed exactly as InvokeAI's `z_image_text_encoder` node and
diffusers' ZImagePipeline do: chat template with thinking on, padded to 512, the second-to-last hidden state, real tokens only.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from training.toy_model.captions import caption
from training.toy_model.clips import all_subjects

MAX_TOKENS = 512
HIDDEN = 64
_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Two tokens of wrapping keep most captions within 32 tokens, the multiple to which Z-Image pads them.
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE learned from the captions: each known word is one token, anything else falls back to bytes."""
    generator = np.random.default_rng(7)
    corpus = [caption(subject, generator) for subject in all_subjects() for _ in range(60)]
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(corpus, vocab_size=640, min_frequency=2, show_progress=False)
    vocab, merges = _vocab_and_merges(learner)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=_PAD,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_START, _END],
        model_max_length=MAX_TOKENS,
    )
    tokenizer.padding_side = "right"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _vocab_and_merges(learner: ByteLevelBPETokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    model = json.loads(learner._tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]


def build_text_encoder(vocab_size: int) -> Qwen3ForCausalLM:
    """A two-layer Qwen3 with random weights, rounded to fp16 so that the export changes nothing."""
    torch.manual_seed(11)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    # Unit embeddings: each token's own word stays louder than what the random layers mix into it.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


@torch.no_grad()
def encode(prompts: list[str], *, tokenizer: Qwen2Tokenizer, encoder: Qwen3ForCausalLM) -> list[torch.Tensor]:
    """The features of each prompt, a list of [tokens, 64] fp32."""
    features = []
    for begin in range(0, len(prompts), 32):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            for prompt in prompts[begin : begin + 32]
        ]
        batch = tokenizer(
            texts,
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = batch.attention_mask.bool()
        # Right padding and causal attention: what follows the last real token cannot reach it, so it can be cut off.
        longest = int(mask.sum(dim=1).max())
        ids, mask = batch.input_ids[:, :longest], mask[:, :longest]
        hidden = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        features += [row[keep].clone() for row, keep in zip(hidden, mask, strict=True)]
    return features
