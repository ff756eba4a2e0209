"""One model call with a control clip and with prompts for regions: the transformer's own steps, two places opened up.

diffusers' `ZImageTransformer2DModel.forward` has no room for hints that depend on its own embeddings, nor for an attention mask per
pair of tokens, so this walks its public parts in its order (no control, no regions: bit-equal to calling it). Token order is
[frames, caption], each padded to a multiple of 32.

Control follows VideoX-Fun's Z-Image ControlNet (https://github.com/aigc-apps/VideoX-Fun, Apache-2.0): hints computed once per call
from the control tokens and the unrefined unified sequence, added after every second layer. Regional prompts follow
https://arxiv.org/abs/2411.02395: even layers see the regional mask, odd layers everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat

from ..errors import BadInput
from .denoise import PATCH_SIZE as PATCH
from .denoise import Predict


@dataclass(frozen=True)
class RegionalMask:
    """Which token may look at which: `allowed` [S, S] bool over frame tokens, then the tokens of `caption`, without padding.

    `caption` [n, d] is the one that the mask was made for; a call with another caption (the negative one) is left alone.
    """

    allowed: torch.Tensor
    caption: torch.Tensor

    def is_for(self, caption: torch.Tensor) -> bool:
        """Whether the mask was made for this caption, whatever its dtype and device have become."""
        return bool(torch.equal(self.caption.to(caption), caption))

    def padded(self, *, frame_tokens: int, padded_frames: int, padded_total: int) -> torch.Tensor:
        """[1, 1, S', S'] bool over the padded sequence; padding tokens may look at everything, nobody looks at them."""
        captions = self.allowed.shape[0] - frame_tokens
        place = torch.cat([torch.arange(frame_tokens), padded_frames + torch.arange(captions)]).to(self.allowed.device)
        spread = torch.ones(padded_total, padded_total, dtype=torch.bool, device=self.allowed.device)
        spread[place] = False
        spread[place[:, None], place[None, :]] = self.allowed
        return spread[None, None]


@dataclass(frozen=True)
class ControlClip:
    """A control adapter and what it looks at.

    `adapter` has `control_all_x_embedder`, `control_noise_refiner`, `control_layers` and `x_pad_token`; `latents` are
    [C, F, h, w] with as many channels as its embedder wants (`control_channels`). `begin`/`end` are fractions of the steps.
    """

    adapter: Any
    latents: torch.Tensor
    scale: float
    begin: float = 0.0
    end: float = 1.0

    def applies(self, *, step: int, total: int) -> bool:
        """Whether 0-based `step` of `total` lies between `begin` and `end`, both inclusive."""
        return self.begin <= step / total <= self.end


def control_channels(latents: torch.Tensor, *, wanted: int) -> torch.Tensor:
    """[C, F, h, w] -> [wanted, F, h, w]: adapters that also inpaint take C empty reference channels and a mask of ones.

    Raises BadInput for an adapter of other channels.
    """
    channels = latents.shape[0]
    if wanted == channels:
        return latents
    if wanted != 2 * channels + 1:
        raise BadInput.expected("control latents: channels of the adapter", f"{channels} or {2 * channels + 1}", wanted)
    return torch.cat([latents, torch.zeros_like(latents), torch.ones_like(latents[:1])])


def repeated(latents: torch.Tensor, *, num_frames: int) -> torch.Tensor:
    """One still [C, 1, h, w], or a clip of `num_frames` -> [C, F, h, w]. Raises BadInput for any other frame count."""
    frames = latents.shape[1]
    if frames not in (1, num_frames):
        raise BadInput.expected("control frames", f"1 or {num_frames} images", frames, num_frames)
    return latents.expand(-1, num_frames, -1, -1)


def regional_mask(masks: Sequence[torch.Tensor | None], captions: Sequence[torch.Tensor], *, frame_groups: int) -> RegionalMask | None:
    """Prompts and where in the picture each one holds -> the mask of the whole clip; None where no prompt has a region.

    `masks` are [1, 1, h/2 * w/2] in 0..1 or None (then: wherever no other mask reaches), the same in all `frame_groups` = F/f;
    `captions` are [n_i, d]. Frame tokens see all frame tokens; a caption sees its own tokens and its region's.
    """
    regions = [mask.flatten() > 0.5 for mask in masks if mask is not None]
    if not regions:
        return None
    background = ~torch.stack(regions).any(dim=0)
    flat = [repeat(background if mask is None else mask.flatten() > 0.5, "s -> (g s)", g=frame_groups) for mask in masks]
    frames, caption = flat[0].numel(), torch.cat(list(captions))
    allowed = torch.zeros(frames + len(caption), frames + len(caption), dtype=torch.bool, device=caption.device)
    allowed[:frames, :frames] = True
    start = frames
    for region, words in zip(flat, captions, strict=True):
        own = slice(start, start + len(words))
        allowed[own, own] = True
        allowed[:frames, own] = region[:, None]
        allowed[own, :frames] = region[None, :]
        start += len(words)
    return RegionalMask(allowed=allowed, caption=caption)


def guided_call(transformer: Any, *, f_patch_size: int, control: ControlClip | None, regions: RegionalMask | None) -> Predict | None:
    """The transformer call with control and regions as `denoise` takes it; None where there is neither."""
    if control is None and regions is None:
        return None

    def call(*, x: torch.Tensor, t: torch.Tensor, caption: torch.Tensor, step: int, total: int) -> torch.Tensor:
        active = control if control is not None and control.applies(step=step, total=total) else None
        return predict(transformer, x, t, caption, f_patch_size=f_patch_size, control=active, regions=regions)

    return call


def predict(
    transformer: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    caption: torch.Tensor,
    *,
    f_patch_size: int,
    control: ControlClip | None = None,
    regions: RegionalMask | None = None,
) -> torch.Tensor:
    """[C, F, h, w] at time `t` [1] with `caption` [n, d] -> the transformer's output [C, F, h, w] (x0 - noise)."""
    key = f"{PATCH}-{f_patch_size}"
    adaln = transformer.t_embedder(t * transformer.t_scale).type_as(x)
    patches, words, size, x_ids, cap_ids, x_pad, cap_pad = transformer.patchify_and_embed([x], [caption], PATCH, f_patch_size)
    frames, x_freqs, x_mask = _sequence(transformer, transformer.all_x_embedder[key](patches[0]), x_ids, x_pad, transformer.x_pad_token)
    for layer in transformer.noise_refiner:
        frames = layer(frames, x_mask, x_freqs, adaln, None, None, None)
    refined, cap_freqs, cap_mask = _sequence(transformer, transformer.cap_embedder(words[0]), cap_ids, cap_pad, transformer.cap_pad_token)
    for layer in transformer.context_refiner:
        refined = layer(refined, cap_mask, cap_freqs)
    unified, freqs, mask, _ = transformer._build_unified_sequence(
        frames, x_freqs, [frames.shape[1]], None, refined, cap_freqs, [refined.shape[1]],
        None, None, None, None, None, False, x.device,
    )  # fmt: skip

    hints = {} if control is None else _hints(control, unified, refined, adaln, freqs, f_patch_size)
    even_mask = mask
    if regions is not None and regions.is_for(caption):
        tokens = (x.shape[1] // f_patch_size) * (x.shape[2] // PATCH) * (x.shape[3] // PATCH)
        even_mask = regions.padded(frame_tokens=tokens, padded_frames=frames.shape[1], padded_total=unified.shape[1])
    for index, layer in enumerate(transformer.layers):
        unified = layer(unified, mask if index % 2 else even_mask, freqs, adaln, None, None, None)
        if index in hints:
            unified = unified + hints[index]
    unified = transformer.all_final_layer[key](unified, c=adaln)
    return transformer.unpatchify([unified[0]], size, PATCH, f_patch_size)[0]


def _sequence(transformer: Any, embedded: torch.Tensor, ids: Any, pad: Any, token: torch.Tensor) -> tuple[Any, Any, Any]:
    """Embedded tokens [n, dim] -> ([1, n, dim] with the pad token in place, rotary frequencies, attention mask)."""
    tokens, freqs, mask, _, _ = transformer._prepare_sequence([embedded], ids, pad, token, None, embedded.device)
    return tokens, freqs, mask


def _hints(
    control: ControlClip,
    unified: torch.Tensor,
    caption: torch.Tensor,
    adaln: torch.Tensor,
    freqs: torch.Tensor,
    f_patch_size: int,
) -> dict[int, torch.Tensor]:
    """Layer index -> what is added after that layer, [1, S, dim]; computed in the adapter's dtype, returned in the model's."""
    adapter = control.adapter
    tokens = _control_tokens(control, f_patch_size)
    dtype = tokens.dtype
    frames = unified.shape[1] - caption.shape[1]
    if len(tokens) < frames:
        padding = adapter.x_pad_token.to(dtype).reshape(1, -1).expand(frames - len(tokens), -1)
        tokens = torch.cat([tokens, padding])
    tokens, adaln = tokens[None], adaln.to(dtype)
    for layer in adapter.control_noise_refiner:
        tokens = layer(tokens, None, freqs[:, :frames], adaln)
    state = torch.cat([tokens, caption.to(dtype)], dim=1)
    for layer in adapter.control_layers:
        state = layer(state, x=unified.to(dtype), attn_mask=None, freqs_cis=freqs, adaln_input=adaln)
    # Each control layer stacks its hint in front of the running state.
    return {2 * index: hint.type_as(unified) * control.scale for index, hint in enumerate(torch.unbind(state)[:-1])}


def _control_tokens(control: ControlClip, f_patch_size: int) -> torch.Tensor:
    """[C, F, h, w] -> [tokens, dim].

    Published adapters know single images only (embedder `2-1`). The mean of a frame group's single-image tokens equals tiling that
    embedder over the group divided by its size, so a still control clip embeds exactly as the still itself.
    """
    embedders = control.adapter.control_all_x_embedder
    native = f"{PATCH}-{f_patch_size}"
    f = f_patch_size if native in embedders else 1
    embedder = embedders[f"{PATCH}-{f}"]
    weight = embedder.weight
    patches = rearrange(control.latents, "c (g f) (h ph) (w pw) -> (g h w) (f ph pw c)", f=f, ph=PATCH, pw=PATCH)
    tokens = embedder(patches.to(device=weight.device, dtype=weight.dtype))
    if f == f_patch_size:
        return tokens
    per_frame = (control.latents.shape[2] // PATCH) * (control.latents.shape[3] // PATCH)
    return rearrange(tokens, "(g f s) d -> g f s d", f=f_patch_size, s=per_frame).mean(dim=1).flatten(0, 1)
