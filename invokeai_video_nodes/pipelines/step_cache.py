"""Steps that are nearly the step before are not computed again: first-block caching, with diffusers' hooks.

The first block always runs. Where what it adds has changed by less than a threshold since the last computed step, what the other
blocks added then is added again (FirstBlockCache, https://github.com/chengzeyi/ParaAttention). The model is shared, so the
hooks live for one run and go with it, whatever ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, apply_first_block_cache
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15TransformerBlock

from .errors import BadInput

Preset = Literal["off", "safe", "fast"]
# Largest relative change of the first block's contribution that counts as "nearly the same".
THRESHOLDS: dict[Preset, float | None] = {"off": None, "safe": 0.05, "fast": 0.10}
# With fewer steps each one differs too much from the last.
MIN_STEPS = 10

# diffusers knows where HunyuanVideo's blocks return what, but not 1.5's.
TransformerBlockRegistry.register(
    HunyuanVideo15TransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
)


def check_step_cache(preset: Preset, steps: int) -> None:
    """Raise BadInput for a cache that is on with fewer than MIN_STEPS steps, or an unknown preset."""
    if preset not in THRESHOLDS:
        raise BadInput.expected("step cache", f"one of {', '.join(THRESHOLDS)}", preset)
    if preset != "off" and steps < MIN_STEPS:
        raise BadInput.expected("step cache", f"off below {MIN_STEPS} steps", f"{preset} with {steps} steps", "off")


class StepCache:
    """Runs model calls of one denoise and counts those that were skipped. `threshold` None computes every call."""

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold
        self.calls = self.skipped = 0
        self._registry: Any = None
        self._states: Any = None

    @contextmanager
    def on(self, transformer: torch.nn.Module) -> Iterator[StepCache]:
        """Hook the cache into `transformer`, and leave it as it was found."""
        if self.threshold is None:
            yield self
            return
        before = {module: dict(vars(module)) for module in transformer.modules()}
        try:
            apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=self.threshold))
            self._registry = HookRegistry.check_if_exists_or_initialize(transformer)
            head = next(registry for registry in self._registry._get_child_registries() if "fbc_leader_block_hook" in registry.hooks)
            self._states = head.hooks["fbc_leader_block_hook"].state_manager
            yield self
        finally:
            self._registry = self._states = None
            # diffusers leaves its registries and a forward of each instance behind, and the registries hold the last run's tensors.
            for module, attributes in before.items():
                for name in ("_diffusers_hook", "forward"):
                    module.__dict__.pop(name, None)
                    if name in attributes:
                        module.__dict__[name] = attributes[name]

    def call(self, branch: str, model: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `model()` gives; calls of one `branch` (with the prompt, without it) are compared with one another."""
        self.calls += 1
        if self._states is None:
            return model()
        self._registry._set_context(branch)
        try:
            prediction = model()
            self.skipped += not self._states.get_state().should_compute
            return prediction
        finally:
            self._registry._set_context(None)
