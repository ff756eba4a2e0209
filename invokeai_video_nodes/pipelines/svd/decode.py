"""Latents -> 8-bit frames through SVD's temporal decoder, chunk by chunk: nothing holds more than one decoded chunk.

The decoder looks at neighbouring frames of its chunk only, so the chunk size changes the pixels a little. At one chunk size they
are those of diffusers' pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from ..decode import OnFrame, to_uint8, vae_dtype
from ..errors import BadInput, Canceled, OutOfMemory, Stop
from ..out_of_memory import free_cached, tried
from ..shapes import check_latents
from ..stopping import cancelable

# Told where memory ran out: the frame that the chunk began at (from 0), its size, and the size that goes on.
OnShrink = Callable[[int, int, int], None]


def decode_chunks(
    vae: Any,
    latents: torch.Tensor,
    *,
    chunk_size: int,
    stop: Stop | None = None,
    on_frame: OnFrame | None = None,
    on_shrink: OnShrink | None = None,
    device: torch.device | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames of `latents` [1, C, F, h, w] as uint8 [8h, 8w, 3] RGB arrays, as soon as their chunk is done.

    Takes diffusers' AutoencoderKLTemporalDecoder; `chunk_size` frames are decoded in one call. Where memory runs out, the chunk
    that failed and all later ones go on with half as many, no frame repeated or missing. `on_frame(i, total)` is told before each
    frame is yielded. Each chunk moves to `device` (None: stays) and to the VAE's dtype. Raises BadInput at once, before any
    decoding, for a chunk size below 1 or other channels; Canceled between chunks and within one where `stop()` answers True;
    OutOfMemory where a single frame does not fit.
    """
    check_latents(latents)
    if chunk_size < 1:
        raise BadInput.expected("decode_chunk_size", "1 or more frames", chunk_size, 1)
    channels = int(vae.config.latent_channels)
    if latents.shape[1] != channels:
        raise BadInput.expected("VAE: latent channels", f"{latents.shape[1]} as the latents have", channels, latents.shape[1])
    return _stream(vae, latents, chunk_size, stop=stop, on_frame=on_frame, on_shrink=on_shrink, device=device or latents.device)


def decode_chunk(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents [1, C, n, h, w] -> pixels [n, 3, 8h, 8w] in about -1..1, float32, all in one call."""
    rows = latents[0].transpose(0, 1).contiguous()
    with torch.no_grad():
        scaled = (1 / vae.config.scaling_factor * rows).to(vae_dtype(vae))
        pixels: torch.Tensor = vae.decode(scaled, num_frames=len(rows), return_dict=False)[0]
        return pixels.float()


def _stream(
    vae: Any,
    latents: torch.Tensor,
    chunk_size: int,
    *,
    stop: Stop | None,
    on_frame: OnFrame | None,
    on_shrink: OnShrink | None,
    device: torch.device,
) -> Iterator[np.ndarray]:
    total, begin = latents.shape[2], 0
    while begin < total:
        if stop is not None and stop():
            raise Canceled
        pixels = tried(partial(_decoded, vae, latents[:, :, begin : begin + chunk_size], stop=stop, device=device))
        if pixels is None:
            chunk_size = _half(min(chunk_size, total - begin), begin, on_shrink)
            continue
        frames = [to_uint8(frame) for frame in pixels]
        del pixels  # four times as large, and not needed while frames wait for the encoder
        frames.reverse()
        while frames:
            begin += 1
            if on_frame is not None:
                on_frame(begin, total)
            # No name for the frame here: a suspended generator would keep it alive.
            yield frames.pop()


def _decoded(vae: Any, latents: torch.Tensor, *, stop: Stop | None, device: torch.device) -> torch.Tensor:
    with cancelable([vae.decoder.mid_block, *vae.decoder.up_blocks], stop):
        return decode_chunk(vae, latents.to(device))


def _half(chunk_size: int, begin: int, on_shrink: OnShrink | None) -> int:
    free_cached()
    if chunk_size == 1:
        raise OutOfMemory(f"out of memory at frame {begin + 1}, with a single frame per chunk")
    if on_shrink is not None:
        on_shrink(begin, chunk_size, chunk_size // 2)
    return chunk_size // 2
