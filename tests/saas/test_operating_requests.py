"""What every request passes: an id, a line in the log, limits of size and shape, origins."""

import logging
import socket
import threading

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.operated import ANN, PUBLIC_URL, client_of, operated, small_app
from starlette.websockets import WebSocketDisconnect

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import BadSettings
from invokeai_saas.operating import watch
from invokeai_saas.operating.install import uvicorn_options
from invokeai_saas.operating.limits import Limits
from invokeai_saas.operating.plain_text import EXPECTED, EXPECTED_NUMBERS, is_plain, refusal
from invokeai_saas.operating.ports import demand_free_port
from invokeai_saas.settings import Settings, load_settings
from invokeai_saas.web.schema import describe_in_a_thread

STUDIO = "https://studio.example"


@pytest.fixture(scope="module")
def database(cluster):
    """One for all tests of this file: none writes."""
    address = cluster.clone()
    opened = PostgresDatabase(address, pool_size=2)
    yield opened
    opened.close()
    cluster.drop(address)


@pytest.fixture
def app():
    return small_app()


@pytest.fixture
def client(database, app):
    return client_of(operated(database, app, max_upload_bytes=5000, max_body_bytes=1000, cors_origins=STUDIO))


@pytest.fixture
def access(caplog):
    """The access log's records so far."""
    caplog.set_level(logging.INFO, logger=watch.access_logger.name)
    return lambda: [record for record in caplog.records if record.name == watch.access_logger.name]


@pytest.mark.parametrize("given", ["a", "A1.b_c-d", "x" * 64])
def test_a_plain_request_id_is_kept_and_answered(client, given):
    assert client.get("/api/v1/items/a", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a;b", "ä", "a\tb"])
def test_any_other_request_id_is_replaced(client, given):
    answered = client.get("/api/v1/items/a", headers={"X-Request-ID": given.encode()}).headers["x-request-id"]

    assert answered != given and len(answered) == 32 and answered.isalnum()


def test_two_request_ids_are_no_request_id(client):
    answer = client.get("/api/v1/items/a", headers=[("X-Request-ID", "a"), ("X-Request-ID", "b")])

    assert answer.headers["x-request-id"] not in ("a", "b")


@pytest.mark.parametrize("path", ["/api/v1/broken", "/api/v1/nowhere", "/healthz"])
def test_every_answer_has_a_request_id(client, path):
    assert len(client.get(path).headers["x-request-id"]) == 32


def test_a_socket_has_one_request_id(client):
    with client.websocket_connect("/ws/echo", headers={"X-Request-ID": "socket-1"}) as socket:
        socket.send_text("hello")

        assert socket.receive_text() == "hello"
        assert (b"x-request-id", b"socket-1") in socket.extra_headers


def test_the_access_log_names_the_route_and_never_the_path(client, access):
    client.get("/api/v1/items/ann-smith.png?token=abc")
    (record,) = access()

    size = len('{"name":"ann-smith.png"}')
    assert (record.method, record.route, record.status, record.bytes) == ("GET", "/api/v1/items/{name}", 200, size)
    assert record.ms >= 0 and record.user_id == ANN
    assert "smith" not in str(record.__dict__) and "token" not in str(record.__dict__)


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [("/api/v1/nowhere/ann", "(none)", 404), ("/api/v1/broken", "/api/v1/broken", 500), ("/api/v1/notes", "/api/v1/notes", 405)],
)
def test_what_goes_wrong_is_logged_by_its_route_too(client, access, path, route, status):
    client.get(path)

    assert [(record.route, record.status) for record in access()] == [(route, status)]


def test_files_of_the_interface_are_logged_as_one_route(database, access, tmp_path):
    (tmp_path / "index.html").write_text("page")
    client_of(operated(database, small_app(tmp_path))).get("/index.html")

    assert access()[0].route == "/*"


def test_probes_fill_no_log(client, access):
    client.get("/healthz")

    assert access() == []


def test_a_body_within_its_limit_passes(client, app):
    assert client.post("/api/v1/notes", json={"text": "x" * 900}).status_code == 200
    assert client.post("/api/v1/uploads/a", files={"file": b"x" * 4000}).json() == {"bytes": 4000}
    assert len(app.state.kept) == 2


def test_a_route_that_reads_a_documented_form_by_hand_may_be_sent_files(client):
    sent = {size: client.post("/api/v1/read-by-hand", content=b"x" * size).status_code for size in (1001, 5000, 5001)}

    assert sent == {1001: 200, 5000: 200, 5001: 413}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_its_limit_is_refused_before_its_route_runs(client, app, chunked):
    body = b'{"text": "' + b"x" * 1000 + b'"}'
    sent = iter([body[:600], body[600:]]) if chunked else body
    answer = client.post("/api/v1/notes", content=sent, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()) == (413, {"detail": "Expected a request of 1000 bytes or less"})
    assert answer.headers["connection"] == "close"
    assert app.state.kept == []


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_its_limit_is_refused_before_its_route_runs(client, app, chunked):
    request = client.build_request("POST", "/api/v1/uploads/a", files={"file": b"x" * 6000})
    body, kind = request.read(), request.headers["content-type"]
    answer = client.post("/api/v1/uploads/a", content=iter([body]) if chunked else body, headers={"Content-Type": kind})

    assert answer.status_code == 413
    assert app.state.kept == []


def test_calling_json_a_form_does_not_raise_its_limit(client, app):
    answer = client.post("/api/v1/notes", content=b"x" * 2000, headers={"Content-Type": "multipart/form-data; boundary=x"})

    assert answer.status_code == 413
    assert app.state.kept == []


def test_an_upload_that_is_too_large_is_refused_unread():
    """The declared length decides; not one byte is asked for."""
    import asyncio

    asked, answers = [], []

    async def reading_app(scope, receive, send):
        await receive()

    async def receive():
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": True}

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "path": "/", "query_string": b"", "headers": [(b"content-length", b"11")]}
    asyncio.run(Limits(reading_app, max_upload_bytes=10, max_body_bytes=10)(scope, receive, send))

    assert (answers[0]["status"], asked) == (413, [])


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"", b"9" * 19])
def test_a_content_length_that_is_no_number_is_refused(database, length):
    assert _status_with(database, [(b"content-length", length)]) == 400


def test_two_content_lengths_are_refused(database):
    assert _status_with(database, [(b"content-length", b"1"), (b"content-length", b"2")]) == 400


@pytest.mark.parametrize("path", ["v1/items/a%00b", "v1/items/a%0ab", "%2e%2e/etc", "v1/items/..%5cetc", "v1/items/a?x=%00"])
def test_tricks_in_a_path_are_refused(client, path):
    assert client.get(f"/api/{path}").status_code == 400


@pytest.mark.parametrize("path", ["/api/v1/items/a..b", "/api/v1/items/%ED%95%9C", "/api/v1/items/.hidden"])
def test_names_with_dots_and_letters_of_other_scripts_pass(client, path):
    assert client.get(path).status_code == 200


def test_an_early_answer_to_a_long_body_closes_the_connection(client):
    answer = client.post("/api/v1/nowhere", content=iter([b"x" * 10]))

    assert (answer.status_code, answer.headers.get("connection")) == (404, "close")


def test_a_page_of_a_known_origin_may_call_with_credentials(client):
    answer = client.get("/api/v1/items/a", headers={"Origin": STUDIO})

    assert answer.headers["access-control-allow-origin"] == STUDIO
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "X-Refreshed-Token" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "https://studio.example.evil.example", "http://studio.example", "null"])
def test_a_page_of_any_other_origin_may_not(client, origin):
    answer = client.get("/api/v1/items/a", headers={"Origin": origin})

    assert "access-control-allow-origin" not in answer.headers


def test_a_preflight_is_answered_before_anybody_is_identified(client):
    asked = {"Origin": STUDIO, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = client.options("/api/v1/notes", headers=asked)

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, STUDIO)


def test_an_error_of_a_known_origin_can_be_read_by_its_page(client):
    assert client.get("/api/v1/nowhere", headers={"Origin": STUDIO}).headers["access-control-allow-origin"] == STUDIO


def test_without_origins_nothing_is_allowed(database):
    answer = client_of(operated(database)).get("/api/v1/items/a", headers={"Origin": PUBLIC_URL})

    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", [None, PUBLIC_URL, STUDIO, "http://other.name"])
def test_sockets_open_for_programs_and_known_origins(client, origin):
    headers = {"Host": "other.name"} | ({} if origin is None else {"Origin": origin})
    with client.websocket_connect("/ws/echo", headers=headers) as socket:
        socket.send_text("hello")

        assert socket.receive_text() == "hello"
    assert client.get("/ws/poll", headers=headers).status_code == 200


def test_sockets_stay_shut_for_pages_of_other_origins(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws/echo", headers={"Origin": "https://evil.example"}):
        pass
    assert client.get("/ws/poll", headers={"Origin": "https://evil.example"}).status_code == 403


def test_forwarded_headers_count_from_named_proxies_only():
    assert uvicorn_options(Settings())["proxy_headers"] is False
    named = uvicorn_options(Settings(trusted_proxies="10.0.0.0/8, ::1"))

    assert (named["proxy_headers"], named["forwarded_allow_ips"]) == (True, "10.0.0.0/8,::1")


def _status_with(database, headers):
    import asyncio

    answers = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        answers.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/v1/notes", "raw_path": b"/api/v1/notes", "query_string": b"", "root_path": "",
        "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    asyncio.run(operated(database).app(scope, receive, send))
    return answers[0]["status"]


BROKEN = (r'"\u0000"', r'"a\ud800"', r'"\udc00"', r'"\ud83d\u0041"', r'"\ud83d x\ude00"', r'"b", "\u0000": 1', r'"\\\u0000"')


@pytest.mark.parametrize("text", BROKEN)
def test_text_that_cannot_be_stored_or_read_again_is_refused(client, app, text):
    answer = client.post("/api/v1/notes", content='{"text": ' + text + "}", headers={"Content-Type": "application/json"})

    assert (answer.status_code, app.state.kept) == (422, [])
    assert answer.json() == {"detail": EXPECTED}


@pytest.mark.parametrize("text", [r'"\ud83d\ude00"', r'"\\u0000"', r'"\\\\u0000 \\ud800"', r'"\u00e4\n\""', '"ä 😀"', r'"\u0001"'])
def test_other_text_passes(text):
    assert is_plain(text.encode())


def test_text_in_pieces_is_looked_at_as_a_whole(client, app):
    pieces = iter([b'{"text": "a\\u', b"00", b'00"}'])

    assert client.post("/api/v1/notes", content=pieces, headers={"Content-Type": "application/json"}).status_code == 422
    assert app.state.kept == []


def test_a_taken_port_is_named_before_anything_starts():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = load_settings(host="127.0.0.1", port=other.getsockname()[1])

        with pytest.raises(BadSettings, match="SAAS_PORT: expected a free port"):
            demand_free_port(settings)
    demand_free_port(settings)


def test_the_description_is_made_once_beside_the_loop():
    app, threads = FastAPI(), []
    described = app.openapi

    def openapi():
        threads.append(threading.current_thread())
        return described()

    app.openapi = openapi
    describe_in_a_thread(app)
    with TestClient(app) as client:
        first, second = client.get("/openapi.json"), client.get("/openapi.json")
        loop_thread = client.portal.call(threading.current_thread)

    assert first.json()["openapi"] and first.content == second.content
    assert len(threads) == 1 and threads[0] is not loop_thread


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1E+400", "1" * 400 + ".5"])
def test_numbers_that_json_does_not_have_are_refused(number):
    assert refusal(f'{{"a": [{number}]}}'.encode()) == EXPECTED_NUMBERS


@pytest.mark.parametrize("body", ['{"a": "NaN and Infinity 1e999"}', '{"a": 1e300}', "infinitely little {", '{"a": 0.1e-400}', "1" * 400])
def test_words_that_look_like_them_are_not(body):
    assert refusal(body.encode()) is None
