"""The isolation matrix: every operation of the live server's OpenAPI, asked by everybody who must not get what it does.

Bob is the victim and has one of everything; Ann, an admin and a super_admin go for it with his real ids. Each test walks all operations
and names every leak that it found; around each of them Bob's rows and files are compared.
"""

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
import socketio
from PIL import Image
from saas.live_saas import Person, SaasServer
from saas.matrix import live_rows
from saas.matrix_things import (
    MARK,
    STORE,
    Answer,
    Ids,
    Maker,
    Operation,
    film,
    make_victim,
    masked,
    missing_ids,
    operations,
    secrets_of,
    served,
    snapshot,
)
from saas.patience import until

from invokeai_saas.accounts import store
from invokeai_saas.closed.routes import MEDIA
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.storage.signing import Signer

pytestmark = pytest.mark.xdist_group("live-saas")

# They end the caller's login, which the rest of the walk needs.
LAST_WORDS = {"/api/v1/auth/logout", "/api/v1/auth/logout-everywhere"}
# They ask the internet.
ABROAD = {"/api/v2/models/hugging_face", "/api/v2/models/install/huggingface", "/api/v2/models/hf_login"}
ATTACKERS = ["ann", "admin", "super_admin"]


@dataclass
class World:
    """The server, the victim's things, and the credentials of everybody."""

    server: SaasServer
    database: PostgresDatabase
    operations: list[Operation]
    openapi: dict[str, Any]
    bob: Person
    ids: Ids
    film: bytes
    people: dict[str, Person]
    tokens: dict[str, str | None] = field(default_factory=dict)
    missing: Ids = field(default_factory=dict)

    def ask(self, operation: Operation, token: str | None, ids: Ids, *, aimed: bool = True) -> Answer:
        target, body, headers = operation.request(ids, self.film, aimed=aimed)
        status, content, _ = self.server.request(operation.method, target, body, token=token, headers=headers)
        return status, content

    def of_kind(self, *kinds: str) -> list[Operation]:
        return [each for each in self.operations if each.row.kind in kinds]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    with SaasServer(folder / "data") as server, server.database() as database:
        people = {"ann": server.person("ann@example.org"), "admin": server.person("mia@example.org", role="admin")}
        people["carl"] = server.person("carl@example.org")
        people["super_admin"], bob = server.admin(), server.person(f"bob-{MARK}@example.org")
        moving = film(folder)
        ids = make_victim(server, bob, people["super_admin"], moving)
        openapi = json.loads(server.request("GET", "/openapi.json")[1])
        made = World(server, database, operations(openapi, live_rows()), openapi, bob, ids, moving, people)
        made.missing, made.tokens = missing_ids(ids), _bad_credentials(database, people["ann"])
        yield made


def _bad_credentials(database: PostgresDatabase, ann: Person) -> dict[str, str | None]:
    secret = store.kept_signing_secret(database)
    claims = jwt.decode(ann.token, secret, algorithms=["HS256"])
    _, revoked = ann.ask("POST", "/api/v1/auth/api-keys", {"name": "revoked", "scopes": ["read", "write"]})
    ann.ask("DELETE", f"/api/v1/auth/api-keys/{revoked['key_id']}")
    _, reading = ann.ask("POST", "/api/v1/auth/api-keys", {"name": "reading", "scopes": ["read"]})
    return {
        "nothing": None,
        "garbage": "nonsense",
        "unsigned": jwt.encode(claims, "", algorithm="none"),
        "signed by somebody": jwt.encode(claims, "x" * 64, algorithm="HS256"),
        "expired": jwt.encode({**claims, "exp": int(time.time()) - 60}, secret, algorithm="HS256"),
        "revoked key": revoked["key"],
        "reading key": reading["key"],
    }


@pytest.fixture(autouse=True)
def bobs_things_stay(world: World) -> Iterator[None]:
    before = snapshot(world.server, world.database, world.bob.user_id)
    yield
    after = snapshot(world.server, world.database, world.bob.user_id)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}

    assert changed == {}


def walk(wanted: list[Operation], leak: Callable[[Operation], object]) -> list[str]:
    """What `leak` says of each operation; an empty list is good."""
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(leak, wanted))
    return [f"{operation}: {text}" for operation, text in zip(wanted, said, strict=True) if text]


def expected(status: int, answer: Answer) -> str:
    return "" if answer[0] == status else f"expected {status}, got {answer[0]} {answer[1][:120]!r}"


def test_every_operation_has_a_row_and_every_row_an_operation(world):
    live = {(method, path) for method, path, _told in served(world.openapi)}
    known = live_rows()

    assert live - set(known) == set()
    assert {row for row, told in known.items() if told.kind != "closed"} - live == set()
    assert {row for row, told in known.items() if told.kind == "closed"} & live == set()


def test_the_victims_ids_are_real(world):
    """Else every 404 below would be for the wrong reason."""
    reading = [each for each in world.of_kind("own") if each.method in ("GET", "HEAD") and not {"zip", "stored"} & each.kinds]

    there, missing = ({str(each): world.ask(each, world.bob.token, ids)[0] for each in reading} for ids in (world.ids, world.missing))

    assert {name: status for name, status in there.items() if status != 200} == {}
    assert [name for name, status in missing.items() if status == 200] == ["GET /api/v1/queue/{queue_id}/b/{batch_id}/status"]


@pytest.mark.parametrize("credential", ["nothing", "garbage", "unsigned", "signed by somebody", "expired", "revoked key"])
def test_nothing_answers_who_is_nobody(credential, world):
    wanted, token = [each for each in world.operations if each.row.kind != "public"], world.tokens[credential]

    assert walk(wanted, lambda each: expected(401, world.ask(each, token, world.ids))) == []


def test_what_is_public_tells_nobody_anything(world):
    wanted = [each for each in world.of_kind("public") if each.method == "GET"]

    def leak(each: Operation) -> str:
        status, body = world.ask(each, None, world.missing)
        return f"{status} {body[:120]!r}" if status in (401, 403) or status >= 500 or tells(world, body) else ""

    assert wanted and walk(wanted, leak) == []


def tells(world: World, body: bytes) -> list[bytes]:
    return [secret for secret in secrets_of(world.ids) if secret in body]


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_foreign_id_answers_as_a_missing_one(attacker, world):
    person = world.people[attacker]
    own = Maker(world.server, person, world.film).files()
    targets = [(each, aim) for each in world.of_kind("own", "list") for aim in aims(each)]

    def leak(each: Operation, aim: set[str]) -> str:
        asked = [{**given, **{kind: own[kind] for kind in own if kind not in aim}} for given in (world.ids, world.missing)]
        foreign, missing = (masked(world.ask(each, person.token, ids), ids) for ids in asked)
        different = foreign != missing or tells(world, foreign[1])
        return f"foreign {sorted(aim)}: {foreign[0]} {foreign[1][:200]!r}, missing: {missing[0]} {missing[1][:200]!r}" if different else ""

    leaks = [f"{each} {text}" for each, aim in targets if (text := leak(each, aim))]
    assert len(targets) > 90 and leaks == []


def aims(operation: Operation) -> list[set[str]]:
    """Everything foreign; and where a request names several things, one after the other with the rest one's own."""
    named = operation.kinds | operation.aims
    kinds = named & {"image", "video", "board"}
    return ([named] if named else []) + ([{kind} for kind in sorted(kinds)] if len(kinds) > 1 else [])


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_no_list_and_nothing_shared_holds_what_is_bobs(attacker, world):
    # Somebody new: the others have put Bob's names into requests of their own.
    role = "user" if attacker == "ann" else attacker
    person = world.server.person(f"new-{attacker}@example.org", role=role)
    kinds = ("list", "shared", "super") if attacker == "super_admin" else ("list", "shared")
    wanted = [each for each in world.of_kind(*kinds) if each.path not in LAST_WORDS | ABROAD and harmless(each)]

    def leak(each: Operation) -> str:
        status, body = world.ask(each, person.token, world.missing, aimed=False)
        ids = re.findall(rb"\d+", body) if each.path.endswith("/item_ids") else []
        leaking = tells(world, body) or str(world.ids["item"]).encode() in ids or status >= 500 or status in (401, 403)
        excused = status == 501 or each.path == "/api/v1/auth/me" or unsold(each, status)
        return f"{status} {body[:300]!r}" if leaking and not excused else ""

    assert [text for each in wanted if (text := walk([each], leak))] == []


def unsold(operation: Operation, status: int) -> bool:
    """This server sells nothing: it has no keys of Stripe's."""
    return status == 503 and operation.path.startswith(("/api/v1/subscriptions/", "/api/v1/credits/"))


def harmless(operation: Operation) -> bool:
    return operation.row.kind != "super" or operation.method == "GET"


@pytest.mark.parametrize("attacker", ["ann", "admin", "reading key"])
def test_what_is_for_higher_roles_is_refused(attacker, world):
    token = world.tokens.get(attacker) or world.people[attacker].token
    wanted = world.of_kind("super") if attacker == "admin" else world.of_kind("super", "admin")

    assert len(wanted) > 30 and walk(wanted, lambda each: expected(403, world.ask(each, token, world.ids))) == []


def test_a_key_that_reads_writes_nothing(world):
    wanted = [each for each in world.operations if each.method not in ("GET", "HEAD") and each.row.kind != "public"]

    assert len(wanted) > 80
    assert walk(wanted, lambda each: expected(403, world.ask(each, world.tokens["reading key"], world.ids))) == []


def test_what_is_closed_is_closed_for_everybody(world):
    closed = [Operation(*name, row, {}, {}) for name, row in live_rows().items() if row.kind == "closed"]
    for token in (None, *(person.token for person in world.people.values())):
        leaks = walk(closed, lambda each, token=token: expected(403, world.ask(each, token, world.ids)))

        assert leaks == []


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_media_cookie_shows_ones_own_media_and_nothing_else(kind, world):
    def asks(method: str, path: str, token: str) -> int:
        return world.server.request(method, path, headers={"Cookie": f"invokeai_media_token={token}"})[0]

    name, ann = world.ids[kind], world.people["ann"].token
    media = [(m, p.replace(f"{{{kind}_name}}", name)) for m, p in MEDIA if f"/{kind}s/" in p]
    others = [f"/api/v1/{kind}s/i/{name}", f"/api/v1/{kind}s/i/{name}/metadata", f"/api/v1/{kind}s/names", "/api/v1/auth/me"]

    assert [asks(method, path, world.bob.token) for method, path in media] == [200] * 3
    assert [asks(method, path, ann) for method, path in media] == [404] * 3
    assert [asks("GET", path, world.bob.token) for path in others] == [401] * 4
    assert [asks(method, path, str(world.tokens["expired"])) for method, path in media] == [401] * 3


def test_a_signed_address_is_good_for_its_user_its_file_and_its_time(world):
    bob, ann, key = world.bob, world.people["ann"], world.ids["stored"]
    secret = (world.server.folder / "signing.key").read_bytes()
    good = Signer(secret).url("/api/v1/stored", key, user_id=bob.user_id, seconds=60)
    expired = Signer(secret, now=lambda: time.time() - 3600).url("/api/v1/stored", key, user_id=bob.user_id, seconds=60)
    forged = Signer(b"x" * 64).url("/api/v1/stored", key, user_id=ann.user_id, seconds=60)
    changed = [
        good.replace(f"user={bob.user_id}", f"user={ann.user_id}"),
        good.replace(key, key.replace(bob.user_id, ann.user_id)),
        good.replace("expires=", "expires=9"),
        good.replace(".png", ".webp"),
    ]
    status, shown = bob.ask("GET", good)

    assert status == 200 and Image.open(io.BytesIO(shown)).size == (64, 48)
    assert {ann.ask("GET", path)[0] for path in (good, expired, forged, *changed)} == {403}
    assert {bob.ask("GET", path)[0] for path in (expired, forged, *changed)} == {403}
    assert world.server.request("GET", good)[0] == 401


@pytest.mark.parametrize("attacker", ["ann", "super_admin"])
def test_no_trick_in_a_name_leaves_ones_own_folder(attacker, world):
    bob, name = world.bob.user_id, world.ids["image"]
    file = world.server.folder / STORE / world.ids["stored"]
    tricks = [
        f"..%2f..%2f{bob}%2fimages%2f{name}",
        f"..%5c..%5c{bob}%5cimages%5c{name}",
        f"%2e%2e/%2e%2e/{bob}/images/{name}",
        f"..%252f..%252f{bob}%252fimages%252f{name}",
        f"{name}%00",
        f"%00{name}",
        f"{name}%00.png",
        str(file).replace("/", "%2f"),
        f"file:%2f%2f{file}",
        "..%2f..%2f..%2f..%2fsigning.key",
        "%c0%ae%c0%ae%2f" + name,
        name.upper(),
        f"{name}.",
        "x" * 5000,
    ]
    files = {"image", "video", "workflow", "style_preset", "zip", "stored"}
    # InvokeAI's /urls put any name into an address, for its admins, and look nothing up.
    named = [each for each in world.operations if files & set(each.row.ids.values()) and not each.path.endswith("/urls")]
    steps = [each for each in named if each.method in ("GET", "DELETE")]

    def leak(each: Operation) -> list[str]:
        (parameter,) = each.row.ids
        paths = [each.path.replace(f"{{{parameter}}}", trick) for trick in tricks]
        answers = [(path, world.server.request(each.method, path, token=world.people[attacker].token)) for path in paths]
        return [f"{path[-90:]}: {status} {body[:80]!r}" for path, (status, body, _) in answers if wrong(status, body)]

    def wrong(status: int, body: bytes) -> bool:
        # Where a step of the path became two, the interface's page may answer.
        is_page = b"<!doctype html" in body[:100].lower()
        return status >= 500 or (status < 400 and not is_page) or body[:4] in (b"\x89PNG", b"RIFF")

    assert walk(steps, leak) == []


class Listener:
    """A socket of InvokeAI's, and what came over it."""

    def __init__(self, world: World, token: str | None) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.client = socketio.Client(reconnection=False)
        self.client.on("*", lambda event, data=None: self.heard.append((event, data)))
        auth = {"token": token} if token else None
        self.client.connect(world.server.url, auth=auth, transports=["polling"], socketio_path="/ws/socket.io", wait_timeout=60)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        # Saying goodbye would wait for the end of a long poll.
        self.client.eio.disconnect(abort=True)

    def wait(self, event: str) -> None:
        until(lambda: event in [name for name, _ in self.heard], event, told=lambda: str(self.heard))


@pytest.mark.parametrize("credential", ["nothing", "garbage", "unsigned", "signed by somebody", "expired", "revoked key"])
def test_a_socket_opens_for_nobody_without_a_login(credential, world):
    def answer(token: str | None) -> bytes:
        path = "/ws/socket.io/?EIO=4&transport=polling"
        path += f"&sid={json.loads(world.server.request('GET', path)[1][1:])['sid']}"
        world.server.request("POST", path, b"40" + json.dumps({"token": token}).encode())
        return world.server.request("GET", path)[1]

    # Socket.IO's packets: 40 is connected, 44 is refused.
    assert answer(world.people["ann"].token)[:2] == b"40"
    assert answer(world.tokens[credential])[:2] == b"44"


@pytest.mark.parametrize("attacker", ["ann", "super_admin"])
def test_nobody_hears_what_somebody_else_enqueues(attacker, world):
    person, carl = world.people[attacker], world.people["carl"]
    theirs, mine = Maker(world.server, carl, world.film), Maker(world.server, person, world.film)
    with Listener(world, person.token) as ear, Listener(world, carl.token) as of_carl:
        for room in (f"user:{carl.user_id}", "admin", "default", "workflows:shared"):
            ear.client.emit("subscribe_queue", {"queue_id": room})
            ear.client.emit("subscribe_bulk_download", {"bulk_download_id": room})
        time.sleep(0.5)
        made = theirs.batch()
        of_carl.wait("batch_enqueued")
        mine.batch()
        ear.wait("batch_enqueued")
        told = json.dumps(ear.heard)

    assert not [secret for secret in (carl.user_id, made["batch"], f'"item_id": {made["item"]}') if secret in told]
    assert len([name for name, _ in ear.heard if name == "batch_enqueued"]) == 1


def test_an_administrator_clears_their_own_queue_and_hears_of_it(world):
    carl, boss = world.people["carl"], world.people["super_admin"]
    item = Maker(world.server, carl, world.film).batch()["item"]
    with Listener(world, boss.token) as ear, Listener(world, carl.token) as of_carl:
        assert boss.ask("PUT", "/api/v1/queue/default/clear")[0] == 200
        ear.wait("queue_cleared")

    assert "queue_cleared" not in [name for name, _ in of_carl.heard]
    assert carl.get(f"/api/v1/queue/default/i/{item}")["status"] == "pending"
