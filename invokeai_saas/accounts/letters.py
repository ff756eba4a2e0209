"""The letters' texts: a kind, a name and a link in; subject, text and HTML out. Names are strangers' input and are escaped."""

from dataclasses import dataclass
from html import escape
from typing import Literal
from urllib.parse import quote

Kind = Literal[
    "verify", "invite", "address_known", "reset", "password_changed", "erase_notice", "deleted",
    "trial_started", "trial_ended", "renewed", "payment_failed", "suspended", "subscription_ended", "pack_bought", "pack_pending",
    "pack_failed", "money_back", "credits_back", "tester_granted", "tester_revoked", "low_balance",
]  # fmt: skip

SUBJECTS: dict[Kind, str] = {
    "verify": "Confirm your address",
    "invite": "You are invited",
    "address_known": "You already have an account",
    "reset": "Set a new password",
    "password_changed": "Your password was changed",
    "erase_notice": "Your data will be erased soon",
    "deleted": "Your account was deleted",
    "trial_started": "Your trial has begun",
    "trial_ended": "Your trial has ended",
    "renewed": "Your credits are here",
    "payment_failed": "Your payment did not go through",
    "suspended": "Your subscription is suspended",
    "subscription_ended": "Your subscription has ended",
    "pack_bought": "Your credits are here",
    "pack_pending": "Your payment is on its way",
    "pack_failed": "Your payment did not go through",
    "money_back": "Credits were taken back",
    "credits_back": "Your credits are back",
    "tester_granted": "You are a tester",
    "tester_revoked": "Your time as a tester has ended",
    "low_balance": "Your credits are running low",
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
    "trial_started": (
        "your trial has begun: 500 credits for 7 days. See what you have, and choose a plan whenever you like, here:",
        "Nothing is charged when it ends.",
    ),
    "trial_ended": (
        "your trial has ended. Choose a plan to go on:",
        "What you made stays readable for 30 days and is erased then, unless you choose a plan.",
    ),
    "renewed": ("your payment arrived and your plan's credits are on your account. Invoices and credits are here:",),
    "payment_failed": (
        "the payment for your plan did not go through. Please look at your card here:",
        "It will be tried again in the next days. Without a payment your plan is suspended after that.",
    ),
    "suspended": (
        "your plan is suspended, because its payment has not arrived. What you made is safe. Pay the open invoice here to go on at once:",
    ),
    "subscription_ended": (
        "your subscription has ended. You can begin a new one at any time:",
        "What you made stays readable for 30 days and is erased then, unless you choose a plan.",
    ),
    "pack_bought": ("your payment arrived and the credits that you bought are on your account. They are good for 60 days:",),
    "pack_pending": ("thank you for your order. Your bank is sending the payment; the credits come when it has arrived:",),
    "pack_failed": ("your bank did not send the payment for the credits that you ordered, so nothing was charged. Try again here:",),
    "money_back": ("a payment of yours was refunded or is disputed, and the unused credits that came with it were taken back. See here:",),
    "credits_back": ("the credits that were taken back with a disputed or refunded payment are on your account again. See here:",),
    "tester_granted": ("you were given the tester plan and its credits for a while. See what you have here:",),
    "tester_revoked": ("your time as a tester has ended, and the unused credits of it were taken back. Choose a plan to go on:",),
    "low_balance": ("fewer than ten credits are left on your account. Buy more, or choose a larger plan, here:",),
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
    "trial_started": "/account/billing",
    "trial_ended": "/account/billing",
    "renewed": "/account/billing",
    "payment_failed": "/account/billing",
    "suspended": "/account/billing",
    "subscription_ended": "/account/billing",
    "pack_bought": "/account/billing",
    "pack_pending": "/account/billing",
    "pack_failed": "/account/billing",
    "money_back": "/account/billing",
    "credits_back": "/account/billing",
    "tester_granted": "/account/billing",
    "tester_revoked": "/account/billing",
    "low_balance": "/account/billing",
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
