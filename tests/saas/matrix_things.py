"""What the isolation matrix needs: a victim with one of everything, requests for any operation, and what the victim has at a moment.

An operation of OpenAPI and ids (kind of thing -> id) in, a request out; the same with other ids is the request for something missing.
"""

import hashlib
import io
import json
import re
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from PIL import Image
from saas.live_saas import Person, SaasServer
from saas.matrix import WORKFLOW, Row
from saas.people import rows

from invokeai_saas.db.database import PostgresDatabase
from invokeai_video_nodes.pipelines.mp4 import write_mp4

Ids = dict[str, Any]
Answer = tuple[int, bytes]
# In every text of the victim's.
MARK = "quetzal"
# The disk store, under the data directory.
STORE = "files/objects"
PRESET = {"name": MARK, "positive_prompt": MARK, "negative_prompt": "", "type": "user", "is_public": False}
# Optional parameters that can name something foreign: name -> kind of thing.
AIMS = {
    "board_id": "board",
    "destination": "destination",
    "key": "state",
    "prefix": "state",
    "user_id": "user",
    "target_id": "user",
    "search_term": "mark",
    "search": "mark",
    "query": "mark",
    "tags": "mark",
}
# Optional parameters that make an operation reach as far as it can.
FARTHEST = {"all": "true", "include_images": "true"}
ROUTINE = {"queue_id": "default", "date": f"{datetime.now(UTC):%Y-%m-%d}", "id": "1", "provider_id": "openai"}
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.\d]*")
ITEMS = re.compile(rb'"item_ids":\[[0-9,]*\]')
# Tables of a tenant without the tenant's id.
OF_BOARDS = "SELECT * FROM {} WHERE board_id IN (SELECT board_id FROM boards WHERE user_id = %s)"
OWNED = "SELECT table_name FROM information_schema.columns WHERE column_name = 'user_id' AND table_schema = 'public' ORDER BY 1"
# What reading changes.
PASSING = {"last_used_at", "last_login_at"}


def picture(color: str = "red") -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(output, "PNG")
    return output.getvalue()


def film(folder: Path) -> bytes:
    path = folder / "film.mp4"
    write_mp4((np.full((48, 64, 3), 40 * at, np.uint8) for at in range(4)), path, fps=8, width=64, height=48)
    return path.read_bytes()


def form(parts: Mapping[str, str | tuple[str, bytes, str]]) -> tuple[bytes, dict[str, str]]:
    """Fields, and files as (name, bytes, type), as a browser sends them: body and headers."""
    edge, body = secrets.token_hex(8), b""
    for name, part in parts.items():
        filename, content, kind = ("", part.encode(), "") if isinstance(part, str) else part
        more = f'; filename="{filename}"\r\nContent-Type: {kind}' if filename else ""
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{edge}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={edge}"}


def fill(value: Any, ids: Ids) -> Any:
    """`value` with ids in place of "<kind>"."""
    if isinstance(value, dict):
        return {name: fill(each, ids) for name, each in value.items()}
    if isinstance(value, list):
        return [fill(each, ids) for each in value]
    is_id = isinstance(value, str) and value.startswith("<") and value.endswith(">")
    return ids[value[1:-1]] if is_id else value


@dataclass(frozen=True)
class Operation:
    """One operation of the live server's OpenAPI."""

    method: str
    path: str
    row: Row
    told: Mapping[str, Any]
    schemas: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def kinds(self) -> set[str]:
        """Kinds of things that it names, in its path and its body."""
        return set(self.row.ids.values()) | set(re.findall(r'"<(\w+)>"', json.dumps(self.row.body)))

    @property
    def aims(self) -> set[str]:
        """Kinds of things that its query can name."""
        return {AIMS[each["name"]] for each in self.told.get("parameters", ()) if each["in"] == "query" and each["name"] in AIMS}

    def request(self, ids: Ids, film_file: bytes, *, aimed: bool = True) -> tuple[str, Any, dict[str, str]]:
        """Target, body and headers; `aimed` fills the optional parameters with ids, too."""
        target = re.sub(r"\{(\w+)\}", lambda found: quote(str(self._step(found[1], ids)), safe="/"), self.path)
        query = {}
        for parameter in self.told.get("parameters", ()):
            name = parameter["name"]
            if parameter["in"] != "query":
                continue
            if name in AIMS and (aimed or parameter.get("required")):
                query[name] = ids[AIMS[name]]
            elif name in FARTHEST:
                query[name] = FARTHEST[name]
            elif parameter.get("required"):
                query[name] = self._sample(parameter["schema"])
        body, headers = self._body(ids, film_file)
        return target + (f"?{urlencode(query)}" if query else ""), body, headers

    def _step(self, name: str, ids: Ids) -> Any:
        return ids[self.row.ids[name]] if name in self.row.ids else ROUTINE.get(name, "none")

    def _body(self, ids: Ids, film_file: bytes) -> tuple[Any, dict[str, str]]:
        wanted = self.told.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in wanted:
            file = ("film.mp4", film_file, "video/mp4") if "/videos/" in self.path else ("a.png", picture("blue"), "image/png")
            return form({"file": file, "image": file, "data": json.dumps(PRESET | {"name": "mine", "positive_prompt": ""})})
        return (fill(self.row.body, ids) if wanted else None), {}

    def _sample(self, schema: Mapping[str, Any]) -> Any:
        if "$ref" in schema:
            return self._sample(self.schemas[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return self._sample(schema["anyOf"][0])
        return schema["enum"][0] if "enum" in schema else {"integer": 1, "boolean": False, "array": []}.get(schema.get("type", ""), "x")


def operations(openapi: Mapping[str, Any], known: Mapping[tuple[str, str], Row]) -> list[Operation]:
    """What the server serves and has a row."""
    schemas = openapi["components"]["schemas"]
    return [
        Operation(method, path, known[method, path], told, schemas)
        for method, path, told in served(openapi)
        if (method, path) in known
    ]


def served(openapi: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(method, path, what OpenAPI tells)."""
    for path, methods in openapi["paths"].items():
        for method, told in methods.items():
            yield method.upper(), path, told


def masked(answer: Answer, ids: Ids) -> Answer:
    """An answer without the ids that were asked for, nor anything that is new at every call."""
    status, body = answer
    for kind, value in sorted(ids.items(), key=lambda each: -len(str(each[1]))):
        body = re.sub(rb"(?<![\w-])" + re.escape(str(value).encode()) + rb"(?![\w-])", f"<{kind}>".encode(), body)
    return status, ITEMS.sub(b"<items>", TIME.sub(b"<time>", UUID.sub(b"<uuid>", body)))


def missing_ids(victim: Ids) -> Ids:
    """Ids of the same form that nothing has."""

    def another(value: Any) -> Any:
        if isinstance(value, int):
            return value + 1_000_000
        fresh = re.sub(UUID.pattern.decode(), lambda _: str(uuid.uuid4()), value)
        return fresh if fresh != value else secrets.token_hex(len(value) // 2)

    return {kind: another(value) for kind, value in victim.items()}


def secrets_of(ids: Ids) -> list[bytes]:
    """What must not be in anybody else's answer."""
    return [MARK.encode()] + [str(value).encode() for kind, value in ids.items() if kind != "item"]


class Maker:
    """Makes one of everything for somebody."""

    def __init__(self, server: SaasServer, person: Person, film_file: bytes, *, mark: str = "mine") -> None:
        self.server, self.person, self.film, self.mark = server, person, film_file, mark

    def post(self, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] | None = None) -> Any:
        status, answer = self.person.ask(method, path, body, **(headers or {}))
        assert status in (200, 201, 202), (path, status, answer)
        return answer

    def files(self) -> Ids:
        """Pictures, a film, boards."""
        image = self.person.upload(f"{self.mark}.png", picture())["image_name"]
        board = self.post(f"/api/v1/boards/?board_name={self.mark}")["board_id"]
        self.post("/api/v1/board_images/", {"board_id": board, "image_name": image})
        self.post("/api/v1/images/star", {"image_names": [image]})
        self.person.upload(f"{self.mark}-loose.png", picture("green"))
        body, headers = form({"file": (f"{self.mark}.mp4", self.film, "video/mp4")})
        video = self.post("/api/v1/videos/upload?video_category=user&is_intermediate=false", body, headers=headers)["video_name"]
        return {"image": image, "board": board, "video": video}

    def texts(self) -> Ids:
        """A workflow and a style preset with their pictures, a prompt, settings of the interface, recalled parameters."""
        workflow = self.post("/api/v1/workflows/", {"workflow": {**WORKFLOW, "name": MARK, "tags": MARK}})["workflow_id"]
        body, headers = form({"image": ("a.png", picture(), "image/png")})
        self.post(f"/api/v1/workflows/i/{workflow}/thumbnail", body, method="PUT", headers=headers)
        body, headers = form({"image": ("a.png", picture(), "image/png"), "data": json.dumps(PRESET)})
        preset = self.post("/api/v1/style_presets/", body, headers=headers)["id"]
        prompt = self.post("/api/v1/system_prompts/", {"name": MARK, "content": MARK})["id"]
        self.post(f"/api/v1/client_state/default/set_by_key?key={MARK}-state", f"{MARK}-value")
        self.post("/api/v1/recall/default", {"positive_prompt": MARK})
        key = self.post("/api/v1/auth/api-keys", {"name": MARK, "scopes": ["read"]})["key_id"]
        made = {"workflow": workflow, "style_preset": preset, "system_prompt": prompt, "api_key": key}
        return made | {"state": f"{MARK}-state", "mark": MARK, "user": self.person.user_id}

    def batch(self, *, destination: str | None = None) -> Ids:
        """One item in the queue."""
        graph = {"id": "g", "nodes": {"n": {"id": "n", "type": "add", "a": 1, "b": 2}}, "edges": []}
        batch = {"graph": graph, "runs": 1} | ({"destination": destination} if destination else {})
        made = self.post("/api/v1/queue/default/enqueue_batch", {"batch": batch})
        return {"item": made["item_ids"][0], "batch": made["batch"]["batch_id"]}

    def wait(self, item_id: int) -> None:
        """Until the item is done."""
        end = time.monotonic() + 120
        while (item := self.person.get(f"/api/v1/queue/default/i/{item_id}"))["status"] != "completed":
            assert item["status"] in ("pending", "in_progress") and time.monotonic() < end, item
            time.sleep(0.2)

    def zip(self, image: str) -> Ids:
        """A zip of pictures."""
        name = self.post("/api/v1/images/download", {"image_names": [image]})["bulk_download_item_name"]
        end = time.monotonic() + 60
        while not list(self.server.folder.glob(f"{STORE}/zips/*/{name}")):
            assert time.monotonic() < end
            time.sleep(0.1)
        return {"zip": name}


def make_victim(server: SaasServer, bob: Person, boss: Person, film_file: bytes) -> Ids:
    """One of everything; the processor is paused afterwards, so that what is pending stays so."""
    maker = Maker(server, bob, film_file, mark=MARK)
    ids = maker.files() | maker.texts()
    maker.wait(maker.batch()["item"])
    status, _ = boss.ask("PUT", "/api/v1/queue/default/processor/pause")
    assert status == 200
    ids |= maker.batch(destination=f"{MARK}-destination") | {"destination": f"{MARK}-destination"} | maker.zip(ids["image"])
    stored = next(iter(server.folder.glob(f"{STORE}/**/{ids['image']}")))
    return ids | {"stored": str(stored.relative_to(server.folder / STORE))}


def snapshot(server: SaasServer, database: PostgresDatabase, user_id: str) -> dict[str, Any]:
    """Every row and file that somebody has."""
    tables = [row["table_name"] for row in rows(database, OWNED)]
    found: dict[str, Any] = {name: rows(database, f"SELECT * FROM {name} WHERE user_id = %s", user_id) for name in tables}
    found |= {name: rows(database, OF_BOARDS.format(name), user_id) for name in ("board_images", "board_videos")}
    kept = {name: sorted(repr({k: v for k, v in row.items() if k not in PASSING}) for row in each) for name, each in found.items()}
    files = [*server.folder.glob(f"{STORE}/users/{user_id}/**/*"), *server.folder.glob(f"{STORE}/zips/{user_id}/*")]
    assert files
    return kept | {"files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}}
