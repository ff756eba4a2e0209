"""A JSON body in, whether its text can be stored and read again: no NUL, which Postgres refuses, and no half of a surrogate pair.

Either would be stored escaped, and every list that holds it would fail from then on.
"""

import re

# Escapes one after the other, so that an escaped backslash before a "u" is none.
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
EXPECTED = "Expected text without NUL and without halves of surrogate pairs"


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
