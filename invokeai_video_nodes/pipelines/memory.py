"""Working memory of a run, beside the weights: what a loader has to keep free on the device."""

from __future__ import annotations

from .shapes import ClipShape

# Bytes per output pixel and byte of element, measured for SD/FLUX-like decoders (InvokeAI's vae_working_memory.py).
_VAE_DECODE_BYTES = 2200
_VAE_ENCODE_BYTES = 1100
# Activations alive at once in a transformer call, in widths of the model. About 13 by counting (residual, normed copy, and the
# hidden layers of the feed-forward with their product); 23.6 were measured at width 512 and 4096 tokens in float32 on a CPU,
# scratch buffers and allocator included.
_BLOCK_WIDTHS = 24
# float32 copies of the latents: sample, prediction, guidance partner, held frame, estimate.
_LATENT_COPIES = 8


def decode_working_bytes(*, height: int, width: int, element_size: int) -> int:
    """Peak of decoding one frame of height x width pixels; the number of frames does not matter, they stream."""
    return height * width * element_size * _VAE_DECODE_BYTES


def encode_working_bytes(*, height: int, width: int, element_size: int) -> int:
    """Peak of encoding one image of height x width pixels."""
    return height * width * element_size * _VAE_ENCODE_BYTES


def denoise_working_bytes(clip: ClipShape, *, dim: int, caption_tokens: int, element_size: int) -> int:
    """Peak of one transformer call with memory-efficient attention, for a model of width `dim`."""
    tokens = clip.tokens + caption_tokens
    latent_values = clip.token_features * clip.tokens
    return int(tokens * dim * element_size * _BLOCK_WIDTHS) + latent_values * 4 * _LATENT_COPIES
