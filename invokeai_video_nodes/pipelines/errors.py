"""The errors that the core raises; everything else that escapes it is a bug."""

from __future__ import annotations


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
