"""The errors that the core raises, and how it is asked to stop. Any other exception that escapes it is a bug."""

from __future__ import annotations

from collections.abc import Callable

# Asked between steps and frames; True ends the work with `Canceled`.
Stop = Callable[[], bool]


class BadInput(ValueError):
    """A value that the caller can correct. Raised before any weight is used."""

    @classmethod
    def expected(cls, what: str, expected: object, got: object, nearest: object = None) -> BadInput:
        """Build the message "WHAT: expected X, got Y (nearest valid value: Z)"."""
        message = f"{what}: expected {expected}, got {got}"
        return cls(message if nearest is None else f"{message} (nearest valid value: {nearest})")


class Canceled(Exception):
    """`stop()` answered True: the work ended between two steps or frames, and nothing unfinished was left behind."""


class OutputError(RuntimeError):
    """The result could not be written (disk full, encoder failed); nothing unfinished was left behind."""


class NotFinite(RuntimeError):
    """A computation gave inf or nan, which no step after it can mend."""


class OutOfMemory(RuntimeError):
    """Not even the smallest piece of work fits into memory."""
