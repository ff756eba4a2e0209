"""The names in the original releases of HunyuanVideo's 3D VAEs -> diffusers' names.

The first VAE grew out of diffusers and has diffusers' names already, under a prefix in some files. The one of 1.5 has names of its
own, which the conversion script in diffusers' repository lists:

    encoder.down.0.block.1.conv1.conv      encoder.down_blocks.0.resnets.1.conv1.conv
    encoder.down.0.downsample.conv.conv    encoder.down_blocks.0.downsamplers.0.conv.conv
    decoder.mid.block_2.norm1              decoder.mid_block.resnets.1.norm1
    decoder.mid.attn_1.q                   decoder.mid_block.attentions.0.to_q
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

# Pairs of layers that only these VAEs have together, in either layout.
_PAIRS = (
    ("encoder.down_blocks.0.resnets.0.conv1.conv.weight", "encoder.mid_block.attentions.0.to_q.weight"),
    ("encoder.down.0.block.0.conv1.conv.weight", "encoder.mid.attn_1.norm.gamma"),
)
MARKS = tuple(first for first, _ in _PAIRS)
_RENAMED = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(encoder|decoder)\.(down|up)\.(\d+)\.block\.(\d+)\.", r"\1.\2_blocks.\3.resnets.\4."),
        (r"^(encoder|decoder)\.(down|up)\.(\d+)\.(down|up)sample\.", r"\1.\2_blocks.\3.\4samplers.0."),
        (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
        (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
        (r"^(encoder|decoder)\.mid\.attn_1\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
        (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    )
]


def own_weights(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """The VAE's part of a file, without what stands before its names; None where the file holds no such VAE."""
    for first, second in _PAIRS:
        for name in weights:
            prefix = name.removesuffix(first)
            if prefix != name and prefix + second in weights:
                return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return None


def generation_of(names: Collection[str]) -> str:
    """ "1.0" or "1.5", by the names of a VAE in either layout: the norms of 1.5 have no bias, only a gamma."""
    return "1.5" if any(name.endswith(".gamma") for name in names) else "1.0"


def to_diffusers_keys(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights under diffusers' names; names that are diffusers' already, or nobody's, stay."""
    return {to_diffusers_name(name): value for name, value in weights.items()}


def to_diffusers_name(name: str) -> str:
    """diffusers' name for an original one."""
    for pattern, renamed in _RENAMED:
        name = pattern.sub(renamed, name)
    return name
