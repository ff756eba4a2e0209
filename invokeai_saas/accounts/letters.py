"""The letters' texts: a kind, a name and a link in; subject, text and HTML out. Names are strangers' input and are escaped."""

from dataclasses import dataclass
from html import escape
from typing import Literal
from urllib.parse import quote

Kind = Literal["verify", "invite", "address_known", "reset", "password_changed", "erase_notice", "deleted"]

SUBJECTS: dict[Kind, str] = {
    "verify": "Confirm your address",
    "invite": "You are invited",
    "address_known": "You already have an account",
    "reset": "Set a new password",
    "password_changed": "Your password was changed",
    "erase_notice": "Your data will be erased soon",
    "deleted": "Your account was deleted",
}
BODIES: dict[Kind, tuple[str, ...]] = {
    "verify": ("follow this link to confirm your address and finish your signup:", "If you did not sign up, ignore this letter."),
    "invite": ("you were given an account. Follow this link to choose your password:", "If you know nothing of it, ignore this letter."),
    "address_known": (
        "somebody, perhaps you, tried to sign up with this address. You have an account already: log in, or set a new password here:",
        "If it was not you, ignore this letter.",
    ),
    "reset": ("follow this link to set a new password:", "It works once. If you did not ask for it, ignore this letter."),
    "password_changed": ("your password was changed and all logins were ended. If it was not you, set a new one here:",),
    "erase_notice": ("your subscription has ended. In a few days your pictures and videos will be erased. You can save them here:",),
    "deleted": ("your account and everything in it was deleted.",),
}
# Secrets stand behind the #: no server, proxy or Referer header ever writes that part down.
PATHS: dict[Kind, str] = {
    "verify": "/account/verify-email#token=",
    "invite": "/account/reset-password#token=",
    "address_known": "/account/forgot-password",
    "reset": "/account/reset-password#token=",
    "password_changed": "/account/forgot-password",
    "erase_notice": "/",
    "deleted": "",
}


@dataclass(frozen=True, slots=True)
class Letter:
    """Both bodies say the same."""

    subject: str
    text: str
    html: str


def write(kind: Kind, *, name: str | None, public_url: str, secret: str) -> Letter:
    """A letter of `kind`; `secret` goes into its link."""
    greeting = f"Hello {name}," if name else "Hello,"
    link = link_of(kind, public_url=public_url, secret=secret)
    paragraphs = [greeting, BODIES[kind][0], *([link] if link else []), *BODIES[kind][1:]]
    html = [f'<a href="{escape(link)}">{escape(link)}</a>' if part == link else escape(part) for part in paragraphs]
    return Letter(SUBJECTS[kind], "\n\n".join(paragraphs) + "\n", "".join(f"<p>{part}</p>\n" for part in html))


def link_of(kind: Kind, *, public_url: str, secret: str) -> str:
    """The address that a letter of `kind` leads to; empty for letters without one."""
    return f"{public_url.rstrip('/')}{PATHS[kind]}{quote(secret, safe='')}" if PATHS[kind] else ""
