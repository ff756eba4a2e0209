"""A model call that ends early: `stop` is asked before every part of the model, not only between calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import Canceled, Stop


@contextmanager
def cancelable(parts: Iterable[Any], stop: Stop | None) -> Iterator[None]:
    """Within it, each of the modules `parts` raises Canceled instead of running once `stop()` answers True."""
    if stop is None:
        yield
        return

    def ask(*_: Any) -> None:
        if stop():
            raise Canceled

    hooks = [part.register_forward_pre_hook(ask) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
