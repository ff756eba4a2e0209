"""A JSON body in, why it cannot be stored and read again out: a NUL, half of a surrogate pair, a number that is none.

Any of them would be stored, and every list that holds it would fail from then on.
"""

import json
import math
import re

# Escapes one after the other, so that an escaped backslash before a "u" is none.
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
EXPECTED = "Expected text without NUL and without halves of surrogate pairs"
EXPECTED_NUMBERS = "Expected numbers that JSON has: no NaN, no Infinity, none beyond 1e308"
# What such a number looks like; in a string it is a word, and the text is read to know.
_NO_NUMBER = re.compile(rb"NaN|Infinity|[eE]\+?\d{3}|\d{300}")


def refusal(body: bytes) -> str | None:
    """What was expected of the JSON text, None where nothing is wrong with it."""
    if not is_plain(body):
        return EXPECTED
    return None if has_numbers(body) else EXPECTED_NUMBERS


def has_numbers(body: bytes) -> bool:
    """False where a number of the JSON text is none, which Python's reader takes. What is no JSON is somebody else's to refuse."""
    if _NO_NUMBER.search(body) is None:
        return True
    try:
        json.loads(body, parse_constant=_finite, parse_float=_finite)
    except _NotFinite:
        return False
    except (ValueError, RecursionError):
        return True
    return True


class _NotFinite(Exception):
    """Ends the reading."""


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise _NotFinite
    return number


def is_plain(body: bytes) -> bool:
    """False where a string of the JSON text holds such a character."""
    if b"\\u" not in body:
        return True
    half_at: int | None = None
    for escape in _ESCAPE.finditer(body):
        code = int(escape[1], 16) if escape[1] else -1
        if half_at is not None:
            # The second half follows at once.
            if escape.start() != half_at or not 0xDC00 <= code <= 0xDFFF:
                return False
            half_at = None
        elif code == 0 or 0xDC00 <= code <= 0xDFFF:
            return False
        elif 0xD800 <= code <= 0xDBFF:
            half_at = escape.end()
    return half_at is None
