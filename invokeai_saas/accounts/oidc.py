"""An identity provider's token in, its verified claims out (C-48): RS256 by key id, issuer, audience, not expired.

The provider's keys are fetched once an hour. A key id that is not among them fetches anew, once a minute at most: forged ids must not
turn this server against the provider.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jwt

from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.errors import SaasError

ALGORITHM = "RS256"
CACHE_SECONDS = 3600.0
MIN_REFETCH_SECONDS = 60.0
MAX_BYTES = 1_000_000


class ProviderUnavailable(SaasError):
    """The provider's keys could not be read, and there are none from before."""

    status = 503


def fetch(url: str) -> dict[str, Any]:
    """GET a JSON document; https, or plain http to this machine."""
    if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise ValueError("expected an https address of the provider's keys")
    with urllib.request.urlopen(url, timeout=10) as answer:
        document = json.loads(answer.read(MAX_BYTES))
    if not isinstance(document, dict):
        raise ValueError("expected a JSON object")
    return document


@dataclass
class OidcVerifier:
    """Callable on a token. `clock` and `fetch` are there to be replaced in tests of time."""

    issuer: str
    audience: str
    jwks_url: str
    fetch: Callable[[str], dict[str, Any]] = fetch
    clock: Callable[[], float] = time.monotonic
    _keys: dict[str, jwt.PyJWK] = field(default_factory=dict, init=False, repr=False)
    _fetched_at: float | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __call__(self, token: str) -> dict[str, Any]:
        """The claims; raises NotSignedIn for whatever is wrong with the token, ProviderUnavailable without any keys."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = self._key(key_id) if isinstance(key_id, str) else None
            if key is None:
                raise NotSignedIn
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self.issuer,
                leeway=10,
                options={"require": ["exp", "iss", "sub"], "verify_aud": False},
            )
        except jwt.PyJWTError:
            raise NotSignedIn from None
        if not self._is_for_us(claims):
            raise NotSignedIn
        return claims

    def _is_for_us(self, claims: dict[str, Any]) -> bool:
        # Cognito's access tokens name the client in client_id and have no audience.
        named = claims.get("aud", claims.get("client_id"))
        return self.audience in named if isinstance(named, list) else named == self.audience

    def _key(self, key_id: str) -> jwt.PyJWK | None:
        with self._lock:
            age = None if self._fetched_at is None else self.clock() - self._fetched_at
            if age is None or age >= CACHE_SECONDS or (key_id not in self._keys and age >= MIN_REFETCH_SECONDS):
                self._refetch()
            return self._keys.get(key_id)

    def _refetch(self) -> None:
        try:
            listed = self.fetch(self.jwks_url).get("keys", [])
            found = {entry["kid"]: jwt.PyJWK(entry, algorithm=ALGORITHM) for entry in listed if _is_signing_key(entry)}
        except (OSError, ValueError, jwt.PyJWTError) as error:
            if self._fetched_at is None:
                raise ProviderUnavailable(f"expected the provider's keys, got {type(error).__name__}") from error
            # The old keys serve until the provider answers again; the next try is a minute away.
            self._fetched_at = self.clock() - CACHE_SECONDS + MIN_REFETCH_SECONDS
            return
        self._keys, self._fetched_at = found, self.clock()


def _is_signing_key(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("kty") == "RSA" and entry.get("use", "sig") == "sig" and isinstance(entry.get("kid"), str)
