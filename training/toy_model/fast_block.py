"""A `ZImageTransformerBlock` with fewer passes over memory, for training on a CPU: same parameters, same result.

The block's own forward spends almost half of a small model's time in norms, modulation and complex rotation. Here each norm
takes its modulation or gate along as one weight and has a written-out gradient, and matrices with the same input are
multiplied at once.
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch.nn import functional


class _ScaledNorm(torch.autograd.Function):
    """`x / rms(x) * weight` over the last dimension. x [B, N, D]; weight [B or 1, 1, D]."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        inverse = _inverse_rms(x, eps)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        normal, inverse, weight = ctx.saved_tensors
        product = grad * normal
        grad_weight = product.sum(dim=1, keepdim=True)
        if len(weight) == 1:
            grad_weight = grad_weight.sum(dim=0, keepdim=True)
        mean = torch.matmul(product, weight.mT) / normal.shape[-1]
        return (grad * weight).addcmul_(normal, mean, value=-1).mul_(inverse), grad_weight, None


class _RotatedNorm(torch.autograd.Function):
    """`x / rms(x) * weight`, turned by `turns`. x [B, N, H, D]; weight [H, D]; turns [1, N, 1, D / 2] complex."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, turns: torch.Tensor, eps: float) -> torch.Tensor:
        inverse = _inverse_rms(x, eps)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight, turns)
        return _turned(normal * weight, turns)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        normal, inverse, weight, turns = ctx.saved_tensors
        grad = _turned(grad.contiguous(), turns.conj().resolve_conj())
        product = grad * normal
        grad_weight = product.sum(dim=(0, 1))
        scaled = grad.mul_(weight)
        mean = product.mul_(weight).sum(dim=-1, keepdim=True) / normal.shape[-1]
        return scaled.addcmul_(normal, mean, value=-1).mul_(inverse), grad_weight, None, None


def _inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()


def _turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def run_block(block: ZImageTransformerBlock, x: torch.Tensor, freqs: torch.Tensor, adaln: torch.Tensor | None = None) -> torch.Tensor:
    """`block(x, None, freqs, adaln)`. x [B, N, D]; freqs [1, N, head_dim / 2] complex; adaln [B, D] or None."""
    norms = block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2
    weights = [norm.weight[None, None] for norm in norms]
    if adaln is not None:
        scale_1, gate_1, scale_2, gate_2 = block.adaLN_modulation(adaln).unsqueeze(1).chunk(4, dim=2)
        factors = 1 + scale_1, gate_1.tanh(), 1 + scale_2, gate_2.tanh()
        weights = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
    before_1, after_1, before_2, after_2 = weights
    eps = block.attention_norm1.eps
    attended = _attention(block.attention, _ScaledNorm.apply(x, before_1, eps), freqs)
    x = x + _ScaledNorm.apply(attended, after_1, eps)
    fed = _feed_forward(block.feed_forward, _ScaledNorm.apply(x, before_2, eps))
    return x + _ScaledNorm.apply(fed, after_2, eps)


def _attention(attention, x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    heads = attention.heads
    weight = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    both, value = functional.linear(x, weight).unflatten(-1, (3 * heads, -1)).split((2 * heads, heads), dim=2)
    norm = torch.cat([attention.norm_q.weight.expand(heads, -1), attention.norm_k.weight.expand(heads, -1)])
    both = _RotatedNorm.apply(both, norm, freqs.unsqueeze(2), attention.norm_q.eps)
    query, key = both.transpose(1, 2).split(heads, dim=1)
    out = functional.scaled_dot_product_attention(query, key, value.transpose(1, 2))
    return attention.to_out[0](out.transpose(1, 2).flatten(2))


def _feed_forward(feed_forward, x: torch.Tensor) -> torch.Tensor:
    gate, up = functional.linear(x, torch.cat([feed_forward.w1.weight, feed_forward.w3.weight])).chunk(2, dim=-1)
    return feed_forward.w2(functional.silu(gate) * up)
