"""People of the SaaS in browsers of their own, and the mail that they get."""

from __future__ import annotations

import email
import email.policy
import time
from typing import Any

from live_interface import Interface
from saas.patience import until

OPEN = ("pending", "waiting", "in_progress")


class Mailbox:
    """Keeps the letters that arrive."""

    def __init__(self) -> None:
        self.arrived: list[email.message.EmailMessage] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        """What aiosmtpd calls for a letter."""
        self.arrived.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"

    def wait_for_one(self) -> email.message.EmailMessage:
        """The first letter, as soon as there is one."""
        until(lambda: bool(self.arrived))
        return self.arrived[0]


class Someone(Interface):
    """The interface in somebody's own browser."""

    def close_notices(self) -> None:
        """Close the notes in the corner, which would cover the picture."""
        for _ in range(4):
            notice = self.page.get_by_role("status").get_by_role("button", name="Close").first
            if notice.is_visible():
                notice.click()
                self.page.wait_for_timeout(400)

    def log_in(self, address: str, password: str) -> None:
        """On InvokeAI's own login page."""
        self.page.goto(f"{self.url}/login")
        self.fill_login(address, password)
        self.page.wait_for_url("**/app")
        self.page.get_by_test_id("Models").wait_for()

    def fill_login(self, address: str, password: str) -> None:
        """Fill in the form and send it."""
        self.page.locator("input[type=email]").fill(address)
        self.page.locator("input[type=password]").fill(password)
        self.page.locator("button[type=submit]").click()

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """A request as the interface makes it: status and JSON."""
        script = """async ([method, path, body]) => {
            const headers = {Authorization: `Bearer ${localStorage.getItem('auth_token')}`, 'Content-Type': 'application/json'};
            const answer = await fetch(path, {method, headers, body: body === null ? undefined : JSON.stringify(body)});
            return [answer.status, await answer.json().catch(() => null)];
        }"""
        status, content = self.page.evaluate(script, [method, path, body])
        return status, content

    def get(self, path: str) -> Any:
        """GET that must succeed."""
        status, content = self.ask(path)
        assert status == 200, (path, status, content)
        return content

    def token(self) -> str | None:
        """What the interface sends."""
        return self.page.evaluate("localStorage.getItem('auth_token')")  # type: ignore[no-any-return]

    def newest_item(self) -> dict[str, Any]:
        """The queue item that was added last."""
        return max(self.get("/api/v1/queue/default/list_all"), key=lambda item: item["item_id"])  # type: ignore[no-any-return]

    def wait_for_item(self, *, seconds: float) -> dict[str, Any]:
        """Wait until the newest item has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            item = self.newest_item()
            if item["status"] not in OPEN:
                return item
            self.page.wait_for_timeout(500)
        raise AssertionError(item)
