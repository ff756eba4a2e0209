"""The double on the wire: a real HTTP server for the SDK, the same without a socket for speed, and signed webhooks out."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import stripe
from saas.stripe_double import KEY, StripeDouble, TimedOut

SECRET = "whsec_double_secret_of_the_tests"


class DirectClient(stripe.HTTPClient):
    """What the SDK calls instead of a socket; everything above it is the SDK's own, retries included."""

    name = "direct"

    def __init__(self, double: StripeDouble) -> None:
        super().__init__()
        self._double = double

    def request(self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, *, _usage: Any = None) -> Any:
        """One request; raises APIConnectionError for a timeout, as requests would."""
        target = "/" + url.split("://", 1)[1].split("/", 1)[1]
        try:
            status, body = self._double.handle(method.upper(), target, dict(headers or {}), post_data or "")
        except TimedOut:
            raise stripe.APIConnectionError("Request timed out", should_retry=True) from None
        return body, status, {"Request-Id": "req_direct"}

    def close(self) -> None:
        """Nothing is open."""

    def _sleep_time_seconds(self, *args: Any, **kwargs: Any) -> float:
        return 0.0


@contextmanager
def serving(double: StripeDouble) -> Iterator[str]:
    """The double at an address, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            try:
                status, answer = double.handle(self.command, self.path, dict(self.headers), body)
            except TimedOut:
                self.close_connection = True
                return
            sent = answer.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.send_header("Request-Id", "req_double")
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def direct(double: StripeDouble, **options: Any) -> stripe.StripeClient:
    """The official client on the double, without a socket."""
    return stripe.StripeClient(KEY, http_client=DirectClient(double), **{"max_network_retries": 2, **options})


def signature(body: str, *, secret: str = SECRET, at: int | None = None) -> str:
    """The Stripe-Signature header of a body, signed now or at a time."""
    return stripe.WebhookSignature.generate_signature_header(body, secret, at if at is not None else int(time.time()))


def event_id(body: str) -> str:
    """The id of an event's JSON."""
    return str(json.loads(body)["id"])
