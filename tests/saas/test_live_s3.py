"""The server as a whole on an S3 server that checks signatures: files lie in the bucket, play from there, and an outage loses nothing.

SAAS_SOAK_MEGABYTES sets how large the large video is (60 here, 500 in `make soak-saas`).
"""

import json
import os
import re
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from saas.clips import clip, color_of, png
from saas.live_saas import Person, SaasServer, multipart
from saas.patience import until
from saas.stored_rows import demand_whole, journal_states
from saas.stores import BUCKET, KEY_ID, SECRET, RcloneServer, client, s3_store

from invokeai_saas.db import tenancy
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName

pytestmark = [pytest.mark.xdist_group("live-s3"), pytest.mark.timeout(1800)]
MEGABYTES = int(os.environ.get("SAAS_SOAK_MEGABYTES", "60"))
MAX_GROWTH_BYTES = 64 * 10**6
UPLOAD = "/api/v1/images/upload?image_category=user&is_intermediate=false"


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


@dataclass
class Live:
    """The server, its store, two people, and a folder for clips."""

    server: SaasServer
    store: RcloneServer
    ann: Person
    bob: Person
    folder: Path

    @contextmanager
    def files(self) -> Iterator[Files]:
        """The server's rows and objects, seen past the server."""
        with self.server.database() as database:
            yield Files(database, s3_store(self.store.url, self.folder / "beside"))

    def recover(self) -> None:
        """Settle what is open and demand that nothing is half-done."""
        with self.files() as files, self.server.database() as database:
            files.recover(older_than_seconds=0)
            demand_whole(files, database)

    def video(self, name: str, *, megabytes: int = 0) -> tuple[str, Path]:
        """Ann's new video: its name, and the file that was sent."""
        path = clip(self.folder / name, megabytes=megabytes)
        status, answer = self.ann.upload_video(path)
        assert status == 201, answer
        return answer["video_name"], path

    def address_of(self, video: str) -> str:
        """Where the server sends ann's player."""
        request = urllib.request.Request(f"{self.server.url}/api/v1/videos/i/{video}/full")
        request.add_header("Authorization", f"Bearer {self.ann.token}")
        try:
            urllib.request.build_opener(NoRedirects).open(request, timeout=60)
        except urllib.error.HTTPError as error:
            assert error.code == 307, error.read()
            assert error.headers["Cache-Control"] == "private, no-store"
            return str(error.headers["Location"])
        raise AssertionError("the server sent the video itself")

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The store is gone inside."""
        self.store.stop()
        try:
            yield
        finally:
            self.store.start()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-live-s3-") as name, running_store(Path(name) / "store") as store:
        with SaasServer(Path(name) / "data", variables=variables(store)) as server:
            print(f"started in {server.start_seconds:.0f} s")
            yield Live(server, store, server.person("ann@example.org"), server.person("bob@example.org"), Path(name))


@contextmanager
def running_store(folder: Path) -> Iterator[RcloneServer]:
    store = RcloneServer(folder)
    store.start()
    try:
        yield store
    finally:
        store.stop()


def variables(store: RcloneServer, *, secret: str = SECRET) -> dict[str, str]:
    return {"S3_BUCKET": BUCKET, "S3_ENDPOINT_URL": store.url, "S3_ACCESS_KEY_ID": KEY_ID, "S3_SECRET_ACCESS_KEY": secret}


def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def ranged(url: str, first: int, last: int) -> bytes:
    """Bytes `first` to `last` of an address, and no others."""
    status, content = fetch(url, Range=f"bytes={first}-{last}")
    # This store answers a part with 200 and the part's length; the stores that say 206 are in test_storage_stores.py.
    assert status in (200, 206)
    return content


def readiness(live: Live) -> tuple[int, str]:
    status, content, _ = live.server.request("GET", "/readyz")
    return status, json.loads(content)["parts"]["storage"]


def keys(live: Live) -> set[str]:
    return {item["Key"] for item in client(live.store.url).list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def test_a_picture_lies_in_the_bucket_and_is_listed_read_and_deleted_by_its_owner(live):
    name = live.ann.upload("a.png", png((10, 20, 30)))["image_name"]
    mine = f"users/{live.ann.user_id}/images"
    stored = {key for key in keys(live) if name.removesuffix(".png") in key}
    full = live.ann.get(f"/api/v1/images/i/{name}/full")
    thumbnail = live.ann.get(f"/api/v1/images/i/{name}/thumbnail")
    listed = [item["image_name"] for item in live.ann.get("/api/v1/images/?limit=10&offset=0")["items"]]
    deleted = live.ann.ask("DELETE", f"/api/v1/images/i/{name}")[0]

    assert stored == {f"{mine}/{name}", f"{mine}/thumbnails/{name.removesuffix('.png')}.webp"}
    assert (color_of(full), thumbnail[:4], listed) == ((10, 20, 30), b"RIFF", [name])
    assert (deleted, live.ann.ask("GET", f"/api/v1/images/i/{name}/full")[0]) == (200, 404)
    assert not stored & keys(live)
    assert not list(live.server.folder.glob("files/**/*.png"))


def test_pictures_and_videos_of_somebody_else_are_missing_ones(live):
    picture = live.ann.upload("b.png", png((1, 1, 1)))["image_name"]
    video, _ = live.video("foreign.mp4")
    paths = [f"images/i/{picture}/full", f"images/i/{picture}/thumbnail", f"videos/i/{video}/full", f"videos/i/{video}/thumbnail"]
    none = [path.replace(picture, "x.png").replace(video, "x.mp4") for path in paths]
    of_bob, missing = ([live.bob.ask("GET", f"/api/v1/{path}") for path in asked] for asked in (paths, none))
    rows = [path.rpartition("/")[0] for path in (*paths, *none)]
    deletes = [live.bob.ask("DELETE", f"/api/v1/{row}")[0] for row in rows]

    assert {status for status, _ in of_bob} == {404}
    assert of_bob == missing
    # What InvokeAI answers to both.
    assert set(deletes) == {403}
    assert [live.ann.ask("GET", f"/api/v1/images/i/{picture}/full")[0], live.address_of(video)[:4]] == [200, "http"]


def test_a_video_plays_from_the_store_while_the_server_stands_still(live):
    name, sent = live.video("playing.mp4", megabytes=20)
    address, content = live.address_of(name), sent.read_bytes()
    assert live.server.process is not None
    live.server.process.send_signal(signal.SIGSTOP)
    try:
        parts = [ranged(address, start, start + 99_999) for start in (0, 9_000_000, len(content) - 100_000)]
        whole = fetch(address)
    finally:
        live.server.process.send_signal(signal.SIGCONT)

    assert address.startswith(f"{live.store.url}/{BUCKET}/users/{live.ann.user_id}/videos/")
    assert parts == [content[start : start + 100_000] for start in (0, 9_000_000, len(content) - 100_000)]
    assert whole == (200, content)


def test_an_address_is_good_for_one_object_and_a_while(live):
    name, sent = live.video("signed.mp4")
    other, _ = live.video("other.mp4")
    address = live.address_of(name)
    with live.files() as files, tenancy.as_user(live.ann.user_id):
        short = files.signed_url(ObjectName("video", name), seconds=1)
    changed = re.sub(r"(X-Amz-Signature=)(.)", lambda found: found[1] + ("0" if found[2] != "0" else "1"), address)
    longer = re.sub(r"X-Amz-Expires=\d+", "X-Amz-Expires=86400", address)
    time.sleep(2.1)

    assert re.search(r"X-Amz-Expires=3600\b", address)
    assert fetch(address) == (200, sent.read_bytes())
    assert fetch(address.replace(name, other))[0] == 403
    assert (fetch(changed)[0], fetch(longer)[0]) == (403, 403)
    assert fetch(short)[0] in (400, 403)


def test_the_store_answers_nobody_without_a_signature(live):
    name = live.ann.upload("c.png", png((3, 3, 3)))["image_name"]
    paths = ["", f"/{BUCKET}", f"/{BUCKET}/users/{live.ann.user_id}/images/{name}"]

    assert all(fetch(live.store.url + path)[0] in (400, 401, 403) for path in paths)


def test_a_wrong_secret_ends_the_start_with_a_line_that_names_the_variable(live):
    server = SaasServer(live.folder / "refused", variables=variables(live.store, secret="guessed"))
    server.folder.mkdir()
    server.launch()
    assert server.process is not None
    code = server.process.wait(timeout=300)
    said = [line for line in server.log().splitlines() if "S3_" in line or "guessed" in line or "Traceback" in line]

    assert code == 2
    assert said == ["error: S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY: expected credentials for S3_BUCKET, the server refused them"]


def test_an_outage_is_said_so_and_leaves_nothing_behind(live):
    seen, unseen, doomed = (live.ann.upload(f"{name}.png", png((5, 6, 7)))["image_name"] for name in ("seen", "unseen", "doomed"))
    before = live.ann.get("/api/v1/images/?limit=100&offset=0")["total"]
    live.ann.get(f"/api/v1/images/i/{seen}/full")
    body, kind = multipart("late.png", png((8, 8, 8)), "image/png")
    with live.outage():
        began = time.monotonic()
        picture = live.ann.ask("POST", UPLOAD, body, **{"Content-Type": kind})
        video = live.ann.upload_video(clip(live.folder / "late.mp4"))
        print(f"two refused uploads took {time.monotonic() - began:.1f} s")
        reads = [live.ann.ask("GET", f"/api/v1/images/i/{name}/full")[0] for name in (seen, unseen)]
        deleted = live.ann.ask("DELETE", f"/api/v1/images/i/{doomed}")[0]
        listed = live.ann.get("/api/v1/images/?limit=100&offset=0")["total"]
        until(lambda: readiness(live)[0] == 503)
        said = readiness(live)[1]
    until(lambda: readiness(live) == (200, "ok"))

    assert (picture[0], video[0]) == (503, 503)
    assert picture[1] == {"detail": "the service cannot answer now"} == video[1]
    # What was downloaded is still there; a file that cannot be had is not called missing.
    assert reads == [200, 503]
    assert (deleted, listed, said) == (200, before - 1, "failed")
    live.recover()
    assert not any(doomed in key for key in keys(live))
    assert color_of(live.ann.get(f"/api/v1/images/i/{unseen}/full")) == (5, 6, 7)
    assert live.ann.ask("POST", UPLOAD, body, **{"Content-Type": kind})[0] == 201


def test_a_store_that_dies_in_the_middle_of_a_video_leaves_nothing_of_it(live):
    path, answers = clip(live.folder / "cut.mp4", megabytes=40), list[tuple[int, object]]()
    listed = "/api/v1/videos/?limit=1&offset=0"
    before = live.ann.get(listed)["total"]
    upload = threading.Thread(target=lambda: answers.append(live.ann.upload_video(path)))
    with live.server.database() as database:
        upload.start()
        until(lambda: journal_states(database)["writing"])
        with live.outage():
            upload.join()

    assert [status for status, _ in answers] == [503]
    assert live.ann.get(listed)["total"] == before
    live.recover()
    assert live.ann.upload_video(path)[0] == 201
    live.recover()


def test_a_large_video_goes_up_and_plays_with_little_memory(live):
    live.video("warm.mp4", megabytes=20)
    path = clip(live.folder / "large.mp4", megabytes=MEGABYTES)
    assert live.server.process is not None
    with Memory(live.server.process.pid) as memory:
        began = time.monotonic()
        status, answer = live.ann.upload_video(path)
        took = time.monotonic() - began
        play(live, answer["video_name"], path)
    size = path.stat().st_size
    path.unlink()
    print(f"{size / 1e6:.0f} MB in {took:.1f} s: {memory.grown / 1e6:.1f} MB more memory on {memory.before / 1e6:.0f} MB")

    assert status == 201
    # Half of a small one, so that a server that holds it whole is seen.
    assert memory.grown < min(MAX_GROWTH_BYTES, size / 2)


def play(live: Live, name: str, sent: Path) -> None:
    """Forty parts from all over it, each by an address of its own."""
    size = sent.stat().st_size
    with sent.open("rb") as file:
        for start in range(0, size, size // 40):
            end = min(start + 65_535, size - 1)
            file.seek(start)
            assert ranged(live.address_of(name), start, end) == file.read(end - start + 1)


class Memory:
    """How far the memory of a process grew inside. Not its resident size: of that, libraries come and go."""

    def __init__(self, pid: int) -> None:
        self._status, self._over, self._thread = Path(f"/proc/{pid}/status"), threading.Event(), threading.Thread(target=self._watch)
        self.before = self._peak = self._anonymous()

    @property
    def grown(self) -> int:
        return self._peak - self.before

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, self._anonymous())

    def _anonymous(self) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024
