"""The outbox: a real mail server takes letters with text and HTML, once each; what fails is tried again and then given up."""

import email
import email.policy
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiosmtpd.controller import Controller
from saas.people import PASSWORD, join, letters, rows

from invokeai_saas.accounts import letters as texts
from invokeai_saas.accounts import mail, service
from invokeai_saas.accounts.mail import SmtpTransport
from invokeai_saas.db import tenancy

ANN = "ann@example.com"
SENDER = "InvokeAI <noreply@invoke.example>"


class Mailbox:
    """Keeps what arrives; refuses as long as it is told to."""

    def __init__(self):
        self.arrived, self.refuse = [], False

    async def handle_DATA(self, _server, _session, envelope):
        if self.refuse:
            return "451 come back later, ann@example.com"
        self.arrived.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@pytest.fixture
def mailbox():
    return Mailbox()


@pytest.fixture
def transport(mailbox):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield SmtpTransport("127.0.0.1", port, security="none")
    controller.stop()


def due_again(database):
    rows(database, "UPDATE mail_outbox SET not_before = now() WHERE done_at IS NULL")


def test_a_letter_arrives_with_text_and_html_and_the_outbox_forgets_it(accounts, database, mailbox, transport):
    service.signup(accounts, email=ANN, password=PASSWORD, name="Ann <b>Smith</b>")
    sent = mail.deliver(accounts, transport, sender=SENDER)
    (message,) = mailbox.arrived
    text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))

    assert (sent, message["To"], message["From"], message["Subject"]) == (1, ANN, SENDER, "Confirm your address")
    assert "https://invoke.example/account/verify-email#token=" in text and "https://invoke.example/account/verify-email#token=" in html
    assert "Ann <b>Smith</b>" in text and "Ann &lt;b&gt;Smith&lt;/b&gt;" in html
    (kept,) = rows(database, "SELECT * FROM mail_outbox")
    assert (kept["outcome"], kept["to_address"], kept["text_body"], kept["html_body"]) == ("sent", None, None, None)
    assert mail.deliver(accounts, transport, sender=SENDER) == 0


def test_two_senders_send_a_letter_once(accounts, mailbox, transport):
    for n in range(12):
        service.signup(accounts, email=f"user{n}@example.com", password=PASSWORD, name=None)
    with ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(lambda _: mail.deliver(accounts, transport, sender=SENDER), range(3)))

    assert sum(sent) == 12
    assert len({message["To"] for message in mailbox.arrived}) == len(mailbox.arrived) == 12


def test_a_refused_letter_waits_and_goes_later(accounts, database, mailbox, transport, caplog):
    join(accounts, ANN)
    service.forgot_password(accounts, email=ANN)
    rows(database, "DELETE FROM mail_outbox WHERE kind <> 'reset'")
    mailbox.refuse = True
    refused = mail.deliver(accounts, transport, sender=SENDER)
    mailbox.refuse = False
    too_early = mail.deliver(accounts, transport, sender=SENDER)
    due_again(database)

    assert (refused, too_early, mail.deliver(accounts, transport, sender=SENDER)) == (0, 0, 1)
    assert "not taken" in caplog.text and ANN not in caplog.text


def test_without_a_mail_server_letters_wait_and_are_given_up_after_8_tries(accounts, database):
    service.signup(accounts, email=ANN, password=PASSWORD, name=None)
    nowhere = SmtpTransport("127.0.0.1", 1, security="none", timeout_seconds=1)
    for _ in range(7):
        assert mail.deliver(accounts, nowhere, sender=SENDER) == 0
        due_again(database)
    waiting = letters(database, "verify", ANN)
    mail.deliver(accounts, nowhere, sender=SENDER)

    assert [letter["attempts"] for letter in waiting] == [7]
    assert rows(database, "SELECT outcome, to_address FROM mail_outbox") == [{"outcome": "failed", "to_address": None}]


def test_the_waits_between_tries_grow(accounts, database):
    service.signup(accounts, email=ANN, password=PASSWORD, name=None)
    nowhere = SmtpTransport("127.0.0.1", 1, security="none", timeout_seconds=1)
    waits = []
    for _ in range(3):
        mail.deliver(accounts, nowhere, sender=SENDER)
        (row,) = rows(database, "SELECT extract(epoch FROM not_before - clock_timestamp()) AS wait FROM mail_outbox")
        waits.append(round(float(row["wait"]) / 60))
        due_again(database)

    assert waits == [5, 10, 20]


def test_a_letter_of_a_signup_that_failed_is_never_written(accounts, database):
    with pytest.raises(RuntimeError), tenancy.as_system("test"), database.postgres():
        service.signup(accounts, email=ANN, password=PASSWORD, name=None)
        raise RuntimeError

    assert rows(database, "SELECT 1 FROM mail_outbox") == []


def test_line_breaks_do_not_reach_the_headers(accounts, database, mailbox, transport):
    service.signup(accounts, email=ANN, password=PASSWORD, name=None)
    rows(database, "UPDATE mail_outbox SET to_address = %s", "ann@example.com\nBcc: eve@example.com")
    mail.deliver(accounts, transport, sender=SENDER)

    assert mailbox.arrived == []


def test_the_password_of_the_mail_server_is_never_printed():
    assert "geheim" not in repr(SmtpTransport("mail.example", 587, username="u", password="geheim"))


@pytest.mark.parametrize("kind", texts.SUBJECTS)
def test_every_letter_says_the_same_in_both_bodies(kind):
    letter = texts.write(kind, name="Ann & Bob", public_url="https://invoke.example/", secret="a-b")

    assert "Ann & Bob" in letter.text and "Ann &amp; Bob" in letter.html
    assert letter.text.count("https://") * 2 == letter.html.count("https://")
    assert "example//" not in letter.text
