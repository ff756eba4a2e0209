"""IP-Adapter (https://arxiv.org/abs/2308.06721): pictures as a second prompt, in every cross attention of the video UNet.

    pictures -> image encoder and projection (the caller's) -> embeddings [n, tokens, 768] -> here: added to what the text says

`attached` hangs diffusers' own processor, filled with the adapter's own layers, into the UNet's cross attentions and takes it out
again: nothing is copied, and nothing stays behind. The motion modules see no picture, as in diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

from ..errors import BadInput
from .per_step import Weight, check_span, check_weight, weight_between

# Blocks in which the method "style_precise" works against the picture.
_AGAINST = ("down_blocks.2.attentions.1", "down_blocks.2", "mid_block")


@dataclass(frozen=True)
class IPAdapter:
    """One adapter and what its pictures say."""

    layers: Callable[[int], Any]
    """The number of an attention of the UNet, counted as diffusers does -> a module with the Linear layers `to_k_ip`, `to_v_ip`."""
    positive: torch.Tensor
    """[pictures, tokens, 768]: the pictures' embeddings. They are looked at together, as one long prompt."""
    negative: torch.Tensor
    """Of the same shape: those of no picture, for the negative half."""
    weight: Weight = 1.0
    start: float = 0.0
    end: float = 1.0
    """The part of the steps in which it has a say, 0 to 1."""
    blocks: Sequence[str] = ("block",)
    """It acts in the attentions whose name contains one of these, such as "up_blocks.1"; "block" is in every name."""
    mask: torch.Tensor | None = None
    """[1, 1, h, w] in 0..1 at the latents' size: where in the picture it acts. None: everywhere."""

    def check(self, unet: Any, *, height: int, width: int, steps: Sequence[int]) -> None:
        """Raise BadInput unless it suits this UNetMotionModel and a clip of these latent sizes; reads no weight."""
        text_width = unet.config.cross_attention_dim
        for embeddings in (self.positive, self.negative):
            if embeddings.ndim != 3 or embeddings.shape[2] != text_width or embeddings.shape != self.positive.shape:
                raise BadInput.expected("IP-Adapter embeddings", f"[pictures, tokens, {text_width}]", list(embeddings.shape))
        check_span("IP-Adapter steps", self.start, self.end, point=True)
        check_weight("IP-Adapter", self.weight, steps=steps)
        if self.mask is not None and tuple(self.mask.shape) != (1, 1, height, width):
            raise BadInput.expected("IP-Adapter mask", [1, 1, height, width], list(self.mask.shape), [1, 1, height, width])
        attentions = cross_attentions(unet)
        if not any(self.acts_in(name) for name, _, _ in attentions):
            raise BadInput.expected("IP-Adapter blocks", "parts of the UNet such as up_blocks.1", list(self.blocks), "block (all of them)")
        for _, number, attention in attentions:
            _check_layers(self.layers, number, shape=(attention.inner_dim, text_width))

    def acts_in(self, name: str) -> bool:
        """Whether it acts in the attention of this name."""
        return any(block in name for block in self.blocks)

    def scale(self, name: str, *, step: int, total: int) -> float:
        """How much it adds in the attention of this name, in one call of the model."""
        return weight_between(self.weight, self.start, self.end, step=step, total=total) if self.acts_in(name) else 0.0


def style_precise(adapter: IPAdapter) -> list[IPAdapter]:
    """The adapter as InvokeAI's method "style_precise" means it: in the blocks of the composition it works against its pictures.

    There the negative half sees the pictures and the positive half sees nothing, so that guidance leads away from them.
    """
    against = [block for block in adapter.blocks if block in _AGAINST]
    others = [block for block in adapter.blocks if block not in _AGAINST]
    swapped = replace(adapter, blocks=against, positive=torch.zeros_like(adapter.negative), negative=adapter.positive)
    return [part for part in (replace(adapter, blocks=others), swapped) if part.blocks]


def cross_attentions(unet: Any) -> list[tuple[str, int, Attention]]:
    """Name, number and module of each attention of `unet` that reads the prompt, the motion modules' left out.

    The number counts all spatial attentions in the order of diffusers, self attentions too: what IP-Adapter files are keyed by.
    """
    found = [(name, part) for name, part in _in_order(unet) if isinstance(part, Attention) and "motion_modules" not in name]
    return [(name, number, part) for number, (name, part) in enumerate(found) if name.endswith("attn2")]


@contextmanager
def attached(unet: Any, adapters: Sequence[IPAdapter]) -> Iterator[Attached]:
    """Yield the adapters hung into `unet` (a UNetMotionModel); afterwards it has the processors and settings that it came with."""
    if not adapters:
        yield Attached({}, [])
        return
    processors = {}
    with ExitStack() as restore:
        for name, number, attention in cross_attentions(unet):
            restore.callback(attention.set_processor, attention.processor)
            processors[name] = _processor(adapters, number)
            attention.set_processor(processors[name])
        restore.callback(unet.register_to_config, encoder_hid_dim_type=unet.config.encoder_hid_dim_type)
        restore.callback(setattr, unet, "encoder_hid_proj", unet.encoder_hid_proj)
        unet.encoder_hid_proj = _AsTheyAre()
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        yield Attached(processors, adapters)


@dataclass(frozen=True)
class Attached:
    """Adapters in a UNet."""

    processors: dict[str, Any]
    adapters: Sequence[IPAdapter]

    def arguments(self, *, guided: bool, like: torch.Tensor, step: int, total: int) -> dict[str, Any]:
        """Set the weights of one call of the model, and return what it takes beside the prompt, in the device and dtype of `like`.

        `guided`: whether its batch is [negative, positive], else [positive].
        """
        if not self.adapters:
            return {}
        for name, processor in self.processors.items():
            processor.scale = [adapter.scale(name, step=step, total=total) for adapter in self.adapters]
        embeddings = [_batch(adapter, guided=guided).to(like) for adapter in self.adapters]
        arguments: dict[str, Any] = {"added_cond_kwargs": {"image_embeds": embeddings}}
        if any(adapter.mask is not None for adapter in self.adapters):
            arguments["cross_attention_kwargs"] = {"ip_adapter_masks": [adapter.mask for adapter in self.adapters]}
        return arguments


class _AsTheyAre(torch.nn.Module):
    """In the place of diffusers' image projection: the embeddings are projected already."""

    def forward(self, embeddings: list[torch.Tensor]) -> list[torch.Tensor]:
        return embeddings


def _processor(adapters: Sequence[IPAdapter], number: int) -> IPAdapterAttnProcessor2_0:
    """diffusers' processor for the attention of this number, with the adapters' own layers."""
    with torch.device("meta"):
        processor = IPAdapterAttnProcessor2_0(1, 1, num_tokens=[adapter.positive.shape[1] for adapter in adapters])
    layers = [adapter.layers(number) for adapter in adapters]
    processor.to_k_ip = torch.nn.ModuleList([layer.to_k_ip for layer in layers])
    processor.to_v_ip = torch.nn.ModuleList([layer.to_v_ip for layer in layers])
    return processor


def _batch(adapter: IPAdapter, *, guided: bool) -> torch.Tensor:
    """[halves, 1, pictures * tokens, 768]: with one row for all pictures, a mask too counts for all of them at once."""
    halves = [adapter.negative, adapter.positive] if guided else [adapter.positive]
    return torch.stack([half.flatten(0, 1)[None] for half in halves])


def _check_layers(layers: Callable[[int], Any], number: int, *, shape: tuple[int, int]) -> None:
    try:
        layer = layers(number)
    except KeyError as error:
        raise BadInput.expected("IP-Adapter", f"a layer for each attention of the main model (number {number})", "none") from error
    got = tuple(layer.to_k_ip.weight.shape)
    if got != shape:
        raise BadInput.expected("IP-Adapter", f"one of the main model's base (layer {number} of {list(shape)})", list(got))


def _in_order(unet: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """diffusers counts the down blocks, then the up blocks, then the middle one: the order in which its UNet has them."""
    for part in ("down_blocks", "up_blocks", "mid_block"):
        yield from getattr(unet, part).named_modules(prefix=part)
