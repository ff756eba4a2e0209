"""Muon for the hidden matrices, in fp32 (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

torch.optim.Muon orthogonalises in bfloat16, which most CPUs only emulate; this one keeps fp32 and stacks matrices of one
shape into a single batched product. A convolution counts as the matrix that it is to its unfolded input. Everything that is not
a hidden matrix goes to AdamW.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic of the Newton-Schulz iteration


def orthogonalised(matrices: torch.Tensor, *, iterations: int = 5) -> torch.Tensor:
    """[N, A, B] -> the nearest semi-orthogonal matrices, approximately: singular values land in 0.7..1.2."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the step size that AdamW would take at the same rate."""

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._step_stack(matrices, lr=group["lr"], decay=group["weight_decay"])

    def _step_stack(self, matrices: list[nn.Parameter], *, lr: float, decay: float) -> None:
        directions = []
        for matrix in matrices:
            state = self.state[matrix]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(matrix)
            momentum = state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
            directions.append(matrix.grad.lerp(momentum, MOMENTUM).flatten(1))
        for matrix, update in zip(matrices, orthogonalised(torch.stack(directions)), strict=True):
            matrix.mul_(1 - lr * decay).add_(update.view_as(matrix), alpha=-lr * 0.2 * max(update.shape) ** 0.5)


def build_optimizers(model: nn.Module, *, hidden_names: tuple[str, ...], muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the weights of two or more dimensions whose name contains one of `hidden_names`, AdamW for the rest."""
    hidden, rest = [], []
    for name, parameter in model.named_parameters():
        is_hidden = parameter.ndim > 1 and any(part in name for part in hidden_names)
        (hidden if is_hidden else rest).append(parameter)
    return [
        Muon(hidden, lr=muon_lr, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def descend(model: nn.Module, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer], rates: list[float]) -> None:
    """One step down the gradient of `loss`, clipped to norm 1, each optimizer at its learning rate."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, rate in zip(optimizers, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
