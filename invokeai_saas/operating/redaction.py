"""Text in, the same text without secrets out: for logs and traces.

By shape (headers, tokens, passwords, addresses with credentials) and by value (the secrets of the settings, wherever they turn up).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import SecretStr

HIDDEN = "***"
# Shorter ones are words: hiding them would garble the logs.
MIN_SECRET_LENGTH = 6
_NAMES = (
    r"(?:[\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|signature|credential|authorization|cookie)[\w-]*"
    r"|pwd|sig|jwt|code_verifier)"
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # An address of a database goes as a whole: its host and names are nobody's business either.
    (re.compile(r"\bpostgres(?:ql)?(?:\+\w+)?://[^\s\"'<>]*", re.IGNORECASE), f"postgresql://{HIDDEN}"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/\"'<>]*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    # Headers, as lines, as dicts and as ASGI's pairs.
    (re.compile(r"\b((?:set-)?cookie)([\"']?\s*[:=,]\s*(?:b(?=[\"']))?[\"']?)[^\r\n\"']+", re.IGNORECASE), rf"\1\2{HIDDEN}"),
    (
        re.compile(
            r"\b((?:proxy-)?authorization|x-api-key)([\"']?\s*[:=,]\s*(?:b(?=[\"']))?[\"']?)(?:(?:basic|bearer|digest)\s+)?[^\s\"',]+",
            re.IGNORECASE,
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(rf"((?:^|[?&;\s])(?:{_NAMES}|code)=)[^&\s\"'#<>]*", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"({_NAMES}[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s\"',}}&]+)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer\s+)[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),
    (re.compile(r"\biv_[0-9a-f]{16}\.[\w-]+"), HIDDEN),
)  # fmt: skip
# What every rule needs somewhere: most texts have none of it, and looking once is cheap at every request.
_WORTH_A_LOOK = re.compile(r"[:=,]|bearer|eyJ|iv_", re.IGNORECASE)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)


class Redactor:
    """Hides what looks like a secret, and the values of `secrets` whatever they look like."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """One text."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        if _WORTH_A_LOOK.search(text) is None:
            return text
        for pattern, becomes in _RULES:
            text = pattern.sub(becomes, text)
        return text

    def value(self, value: Any) -> Any:
        """Whatever a log record may carry: texts are cleaned, containers walked, what has a secret's name is hidden."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.text(value.decode("utf-8", "replace"))
        if isinstance(value, Mapping):
            return {self.text(str(name)): self._named(str(name), item) for name, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        return value if value is None or isinstance(value, bool | int | float) else self.text(str(value))

    def _named(self, name: str, value: Any) -> Any:
        return HIDDEN if _SECRET_NAME.fullmatch(name) and value is not None else self.value(value)


def secrets_of(settings: Any) -> list[str]:
    """The values of all secret settings."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    found = {name: str(value.get_secret_value()) for name, value in values.items() if isinstance(value, SecretStr)}
    # `postgres` and `procrastinate` say a way and hide nothing; an address may hold a password.
    return [value for name, value in found.items() if name not in ("events", "wakeups") or "://" in value]
