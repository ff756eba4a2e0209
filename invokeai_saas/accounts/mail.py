"""A letter into the outbox, in the transaction of its cause; the outbox through SMTP to its reader, at least once.

A letter is leased before it is sent, so that no transaction waits for a mail server and two senders do not send one letter.
"""

import logging
import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any, Protocol

from invokeai_saas.accounts import letters
from invokeai_saas.accounts.model import Account, AccountPolicy, Accounts
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy

MAX_ATTEMPTS = 8
PUT = """
INSERT INTO mail_outbox (user_id, kind, to_address, subject, text_body, html_body) VALUES (%s, %s, %s, %s, %s, %s)
"""
# The lease is `not_before`: 5 minutes, then 10, 20 and so on for every failed try.
LEASE = """
WITH due AS (
    SELECT mail_id FROM mail_outbox WHERE done_at IS NULL AND not_before <= clock_timestamp()
    ORDER BY mail_id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE mail_outbox AS mail
SET attempts = attempts + 1, not_before = clock_timestamp() + interval '5 minutes' * power(2, attempts)
FROM due WHERE mail.mail_id = due.mail_id
RETURNING mail.mail_id, mail.attempts, to_address, subject, text_body, html_body
"""
FINISH = """
UPDATE mail_outbox SET done_at = clock_timestamp(), outcome = %s, to_address = NULL, subject = NULL, text_body = NULL, html_body = NULL
WHERE mail_id = %s AND attempts = %s AND done_at IS NULL
"""

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Whatever takes a letter; raises OSError or SMTPException when it does not."""

    def send(self, message: EmailMessage) -> None:
        """Hand over one letter."""


@dataclass(frozen=True, slots=True)
class SmtpTransport:
    """One connection per letter. `security` is tls (465), starttls (587) or none."""

    host: str
    port: int
    security: str = "starttls"
    username: str | None = None
    password: str | None = None
    timeout_seconds: float = 30.0

    def __repr__(self) -> str:
        return f"SmtpTransport({self.host}:{self.port}, {self.security})"

    def send(self, message: EmailMessage) -> None:
        """Connect, log in when a name is set, send, leave."""
        context = ssl.create_default_context()
        if self.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout_seconds, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=self.timeout_seconds)
        with server:
            if self.security == "starttls":
                server.starttls(context=context)
            if self.username is not None:
                server.login(self.username, self.password or "")
            server.send_message(message)


def enqueue(cursor: Cursor, account: Account, kind: letters.Kind, policy: AccountPolicy, secret: str) -> None:
    """Write a letter to the account's address; it leaves after the commit."""
    letter = letters.write(kind, name=account.display_name, public_url=policy.public_url, secret=secret)
    cursor.execute(PUT, (account.user_id, kind, account.email, letter.subject, letter.text, letter.html))


def deliver(accounts: Accounts, transport: Transport, *, sender: str, at_most: int = 100) -> int:
    """Send what is due, one letter after the other; returns how many went out. A failed one is tried again later, 8 times in all."""
    sent = 0
    for _ in range(at_most):
        row = _lease(accounts)
        if row is None:
            break
        sent += _send(accounts, transport, sender, row)
    return sent


def _lease(accounts: Accounts) -> dict[str, Any] | None:
    with tenancy.as_system("the outbox holds everybody's letters"), accounts.database.postgres() as cursor:
        return cursor.execute(LEASE).fetchone()


def _send(accounts: Accounts, transport: Transport, sender: str, row: dict[str, Any]) -> bool:
    try:
        transport.send(as_message(row, sender))
    except (OSError, smtplib.SMTPException, ValueError) as error:
        # The class only: servers like to repeat the address in their answers.
        logger.warning("letter %d was not taken at try %d: %s", row["mail_id"], row["attempts"], type(error).__name__)
        if row["attempts"] >= MAX_ATTEMPTS:
            _finish(accounts, row, "failed")
        return False
    _finish(accounts, row, "sent")
    return True


def _finish(accounts: Accounts, row: dict[str, Any], outcome: str) -> None:
    with tenancy.as_system("the outbox holds everybody's letters"), accounts.database.postgres() as cursor:
        cursor.execute(FINISH, (outcome, row["mail_id"], row["attempts"]))


def as_message(row: dict[str, Any], sender: str) -> EmailMessage:
    """Text and HTML of the same content; EmailMessage refuses line breaks in headers."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, row["to_address"], row["subject"]
    message["Date"], message["Message-ID"] = formatdate(usegmt=True), make_msgid(f"outbox-{row['mail_id']}", domain="invokeai.invalid")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(row["text_body"])
    message.add_alternative(row["html_body"], subtype="html")
    return message
