"""Signed addresses of our own, for the store that has none: a key and a user in, a query that proves both for a while out.

HMAC-SHA256 over key, user and expiry. Unlike a presigned S3 address it is good for one signed-in user only.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode

from invokeai_saas.storage.errors import BadSignature
from invokeai_saas.storage.keys import check_key, check_name

MIN_SECRET_BYTES = 32
# A longer life than this is a mistake or a forged number.
MAX_SECONDS = 7 * 24 * 3600


class Signer:
    """Signs and verifies with one secret; `now` is seconds since the epoch."""

    def __init__(self, secret: bytes, *, now: Callable[[], float] = time.time) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"expected a secret of {MIN_SECRET_BYTES} bytes or more, got {len(secret)}")
        self._secret, self._now = secret, now

    def url(self, base: str, key: str, *, user_id: str, seconds: int) -> str:
        """`base`/key?user=…&expires=…&signature=…, valid for `seconds` (1 to 604800)."""
        if not 1 <= seconds <= MAX_SECONDS:
            raise ValueError(f"expected 1 to {MAX_SECONDS} seconds, got {seconds}")
        expires = str(int(self._now()) + seconds)
        query = {"user": user_id, "expires": expires, "signature": self._signature(check_key(key), check_name(user_id), expires)}
        return f"{base.rstrip('/')}/{quote(key)}?{urlencode(query)}"

    def verify(self, key: str, query: Mapping[str, str], *, asking_user_id: str) -> str:
        """The key, when `query` is a signature for it and for the user who asks; raises BadSignature otherwise."""
        user, expires, signature = (query.get(name, "") for name in ("user", "expires", "signature"))
        try:
            expected = self._signature(check_key(key), check_name(user), expires)
        except ValueError:
            raise BadSignature from None
        genuine = hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))
        asked = hmac.compare_digest(user.encode(), asking_user_id.encode("utf-8", "replace"))
        # Only a genuine expiry is looked at; int() of a forged one could be anything.
        if not genuine or not asked or self._now() >= int(expires):
            raise BadSignature
        return key

    def _signature(self, key: str, user_id: str, expires: str) -> str:
        # No field can hold a newline, so that no two requests share a message.
        message = "\n".join(("stored-object-v1", "GET", key, user_id, expires))
        return hmac.new(self._secret, message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
