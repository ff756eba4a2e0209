"""Which kernel computes attention, for one run: PyTorch's own choice (SDPA), or another that is installed and reads masks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from .errors import BadInput

Attention = Literal["sdpa", "cudnn", "xformers"]


def _has_xformers() -> bool:
    return torch.cuda.is_available() and importlib.util.find_spec("xformers") is not None


# name -> diffusers' backend, and whether it can run here. Flash and Sage are missing: they take no mask, and these models have one.
BACKENDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "sdpa": ("native", lambda: True),
    "cudnn": ("_native_cudnn", torch.cuda.is_available),
    "xformers": ("xformers", _has_xformers),
}


def check_attention(name: str) -> None:
    """Raise BadInput for a kernel that cannot run here, with those that can."""
    usable = [known for known, (_, is_usable) in BACKENDS.items() if is_usable()]
    if name not in usable:
        raise BadInput.expected("attention", f"one that runs here: {', '.join(usable)}", name, "sdpa")


@contextmanager
def attention(transformer: torch.nn.Module, name: str) -> Iterator[None]:
    """Let a diffusers `transformer` compute attention by `name`; the model is shared, so it is put back afterwards."""
    check_attention(name)
    backend = BACKENDS[name][0]
    processors: list[Any] = [getattr(module, "processor", None) for module in transformer.modules()]
    processors = [processor for processor in processors if hasattr(processor, "_attention_backend")]
    before = [processor._attention_backend for processor in processors]
    try:
        for processor in processors:
            processor._attention_backend = None if backend == "native" else backend
        yield
    finally:
        for processor, value in zip(processors, before, strict=True):
            processor._attention_backend = value
