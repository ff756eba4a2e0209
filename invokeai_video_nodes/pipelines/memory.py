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
# AnimateDiff, in widths of the UNet's first block: activations alive at once per latent cell, and per frame whatever its size (the
# text's keys and values among them); and what one call needs at any size. Peak resident memory over the loaded weights of one call of
# the SD1.5 UNet with a v2 module, random weights, float32, on a CPU: 8 frames of 128x128 pixels 226 MiB, of 256x256 468 MiB, with two
# halves 818 MiB; 16 frames of 128x128 with two halves 612 MiB. The sum of the three lies 7 to 22% above each.
_MOTION_CELL_WIDTHS = 40
_MOTION_FRAME_WIDTHS = 3300
_MOTION_FIXED_BYTES = 128 * 2**20
# Activations alive at once in SVD's UNet, in widths of its first level per latent cell and frame. Measured with the public UNet
# (random weights, float32, one thread of a CPU): 29.4 at 2 x 14 frames of 128x192, 28.4 at 2 x 14 frames of 192x320.
_SVD_UNET_WIDTHS = 32
# The same for one frame of its temporal decoder per pixel, in channels of the last level; measured in the same way: 10.1 at 2 and
# 10.0 at 4 frames of 256x384, 9.3 at one.
_SVD_DECODER_WIDTHS = 11
# What the original release decodes at once; more than that gains nothing that can be seen.
_SVD_MOST_FRAMES = 14
# Free memory lies in pieces, and the estimate is one.
_SHARE_OF_FREE = 0.8


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


def motion_working_bytes(*, frames: int, halves: int, height: int, width: int, first_width: int, element_size: int) -> int:
    """Peak of one call of AnimateDiff's video UNet on `frames` of height x width latent cells, those of one window.

    `halves`: 2 with guidance, else 1. `first_width`: channels of the UNet's first block, 320 for SD1.5.
    """
    per_frame = height * width * _MOTION_CELL_WIDTHS + _MOTION_FRAME_WIDTHS
    return frames * halves * per_frame * first_width * element_size + _MOTION_FIXED_BYTES


def svd_working_bytes(clip: ClipShape, *, width: int, element_size: int, guided: bool) -> int:
    """Peak of one call of SVD's UNet; `width`: channels of its first level. Guided, both halves go through it in one call."""
    cells = clip.latent_frames * clip.latent_height * clip.latent_width
    activations = cells * (2 if guided else 1) * width * element_size * _SVD_UNET_WIDTHS
    return activations + cells * clip.latent_channels * 4 * _LATENT_COPIES


def svd_decode_working_bytes(*, height: int, width: int, element_size: int, channels: int) -> int:
    """Peak of SVD's temporal decoder for each frame of height x width pixels that it decodes at once.

    `channels`: of its last level, where the pixels are.
    """
    return height * width * channels * element_size * _SVD_DECODER_WIDTHS


def svd_decode_frames(free_bytes: int, *, frame_bytes: int, num_frames: int) -> int:
    """How many frames to decode at once: as many as fit, at most what the model's release does, and at least one."""
    return max(min(int(_SHARE_OF_FREE * free_bytes) // frame_bytes, _SVD_MOST_FRAMES, num_frames), 1)
