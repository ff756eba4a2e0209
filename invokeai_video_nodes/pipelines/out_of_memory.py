"""Work that may run out of memory: tried, and where it fails, what it left behind is freed for a smaller try."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def tried(work: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """What `work` makes, or None where memory ran out."""
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        # torch's CPU allocator has no class of its own.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        return None


def free_cached() -> None:
    """Give back what a failed try left: Python's cycles and the GPU allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
