"""The web process killed at any moment, and started again on the same data folder: what was acknowledged holds, nothing is half-done.

SAAS_SOAK_KILLS sets how often it dies under load (once here: each start costs half a minute). The seed and what was acknowledged are
printed.
"""

import os
import random
import signal
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from saas.clips import clip, color_of, png
from saas.live_saas import Person, SaasServer, multipart
from saas.rows import add_items, status_of
from saas.stored_rows import demand_whole
from saas.stores import disk_store
from saas.test_kill_postgres import kill_all
from saas.workers import Worker

from invokeai_saas.db.embedded import start_embedded
from invokeai_saas.storage.files import Files

KILLS = int(os.environ.get("SAAS_SOAK_KILLS", "1"))
WORK_SECONDS = 120
FIRST_STARTS = min(KILLS, 10)
pytestmark = [pytest.mark.xdist_group("kill-web"), pytest.mark.timeout(900 + 120 * KILLS)]
UPLOAD = "/api/v1/images/upload?image_category=user&is_intermediate=false"
LOST = (urllib.error.URLError, ConnectionError, HTTPException, TimeoutError)
SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = 'invokeai' AND pid <> pg_backend_pid() AND application_name <> 'elsewhere'
"""


class Load:
    """One person who uploads pictures and videos and deletes them, and remembers what was acknowledged."""

    def __init__(self, person: Person, clips: list[Path], seed: int) -> None:
        self.person, self._clips, self._rng, self._over = person, clips, random.Random(seed), threading.Event()
        self.pictures: dict[str, tuple[int, int, int]] = {}
        self.videos: dict[str, Path] = {}
        self.deleted: set[str] = set()
        self.wrong: list[object] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the server is lost, or the end."""
        self._over.clear()
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _work(self) -> None:
        with suppress(*LOST):
            while not self._over.is_set():
                chosen = self._rng.random()
                if chosen < 0.35 and len(self.pictures) > 1:
                    self._delete()
                elif chosen < 0.5:
                    self._video()
                else:
                    self._picture()

    def _picture(self) -> None:
        color = (self._rng.randrange(256), self._rng.randrange(256), self._rng.randrange(256))
        body, kind = multipart("a.png", png(color), "image/png")
        status, answer = self.person.ask("POST", UPLOAD, body, **{"Content-Type": kind})
        if self._is_well(status, 201, answer):
            self.pictures[answer["image_name"]] = color

    def _video(self) -> None:
        sent = self._rng.choice(self._clips)
        status, answer = self.person.upload_video(sent)
        # InvokeAI takes two at a time.
        if status != 429 and self._is_well(status, 201, answer):
            self.videos[answer["video_name"]] = sent

    def _delete(self) -> None:
        """Up to three at once, never the last. From the question on nobody knows; from the answer on they are gone."""
        names = self._rng.sample(sorted(self.pictures), min(3, len(self.pictures) - 1))
        for name in names:
            del self.pictures[name]
        status, answer = self.person.ask("POST", "/api/v1/images/delete", {"image_names": names})
        if self._is_well(status, 200, answer):
            self.deleted.update(answer["deleted_images"])

    def _is_well(self, status: int, expected: int, answer: object) -> bool:
        if status != expected:
            self.wrong.append((status, answer))
        return status == expected

    def demand_acknowledged(self, rng: random.Random, *, at_most: int) -> None:
        """Everything is listed; of pictures and videos a sample is read; what was deleted is gone."""
        listed = set(self.person.get("/api/v1/images/names")["image_names"])
        kept = rng.sample(sorted(self.pictures), min(at_most, len(self.pictures)))
        colors = {name: color_of(self.person.get(f"/api/v1/images/i/{name}/full")) for name in kept}
        videos = rng.sample(sorted(self.videos), min(at_most, len(self.videos)))
        played = {name: self._play(name) for name in videos}

        assert self.wrong == []
        assert set(self.pictures) <= listed
        assert not self.deleted & listed
        assert colors == {name: self.pictures[name] for name in kept}
        assert played == {name: self.videos[name].read_bytes() for name in videos}

    def _play(self, name: str) -> bytes:
        content = self.person.get(f"/api/v1/videos/i/{name}/full")
        assert isinstance(content, bytes)
        return content


def await_work(loads: list[Load]) -> None:
    """Until something was kept and something deleted: a slow machine does little in a few seconds, and a kill would show nothing."""
    deadline = time.monotonic() + WORK_SECONDS
    while not (any(load.pictures or load.videos for load in loads) and any(load.deleted for load in loads)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-kill-web-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[SaasServer]:
    """One that was killed in its first start, again and again, before it came up."""
    server = SaasServer(folder / "data")
    server.folder.mkdir()
    rng, moments = random.Random(seed := random.randrange(2**32)), []
    try:
        for number in range(FIRST_STARTS):
            moments.append(killed_start(server, rng, during_migrations=number == FIRST_STARTS - 1))
        server.start()
        print(f"seed {seed}: killed in the first start after {moments}, then up in {server.start_seconds:.0f} s")
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def elsewhere(server: SaasServer) -> Iterator[tuple[Worker, int]]:
    """A worker of another process that holds an item, from before the first kill under load on."""
    admin = server.admin()
    assert admin.ask("PUT", "/api/v1/queue/default/processor/pause")[0] == 200
    time.sleep(3)  # until the server's own worker has looked
    with server.database() as database:
        item = add_items(database, "dan", 1)[0]
        address = make_conninfo(start_embedded(server.folder), application_name="elsewhere")
        worker = Worker(address, "elsewhere", lease_seconds=60.0, steps=100_000)
    worker.says("saved")
    yield worker, item
    if worker.process.poll() is None:
        worker.process.kill()
        worker.process.communicate()


def killed_start(server: SaasServer, rng: random.Random, *, during_migrations: bool) -> str:
    """Start and kill: while the cluster is made, or when some migrations were applied; says when."""
    server.launch()
    began = time.monotonic()
    applied = rng.randrange(1, 6) if during_migrations else 0
    while during_migrations and server.log().count(" applied in ") < applied:
        assert server.process is not None and server.process.poll() is None, server.log()[-2000:]
        time.sleep(0.005)
    if not during_migrations:
        await_folder(server.folder)
        time.sleep(rng.uniform(0, 1.0))
    server.kill()
    if during_migrations:
        # As a power loss; elsewhere Postgres outlives the web process.
        kill_all(server.folder)
    return f"{time.monotonic() - began:.1f} s ({server.log().count(' applied in ')} migrations)"


def await_folder(folder: Path) -> None:
    """The first sign of a cluster that is being made."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("postgres*")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def settle(server: SaasServer) -> None:
    """What recovery does when no other process is writing; then nothing is half-done."""
    await_end_of_sessions(server)
    with server.database() as database:
        files = Files(database, disk_store(server.folder))
        files.recover(older_than_seconds=0)
        demand_whole(files, database)


def await_end_of_sessions(server: SaasServer) -> None:
    """Postgres ends a killed client's statement before it notices: what commits then must have committed before recovery looks."""
    deadline = time.monotonic() + 60
    with psycopg.connect(start_embedded(server.folder), autocommit=True) as connection:
        while connection.execute(SESSIONS).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_start_after_killed_first_starts_makes_one_administrator_who_can_sign_in(server):
    assert server.log().count("First start: an administrator was made") == 1
    assert server.admin().get("/api/v1/auth/me")["role"] == "super_admin"
    with server.database() as database:
        demand_whole(Files(database, disk_store(server.folder)), database)


def test_kills_under_load_lose_nothing_acknowledged_and_leave_nothing_half_done(server, folder, elsewhere):
    seed = random.randrange(2**32)
    rng, starts = random.Random(seed), []
    clips = [clip(folder / f"{number}.mp4", megabytes=number, seed=number) for number in (0, 1, 6)]
    people = [server.person(f"{name}@example.org") for name in ("ann", "bob", "cem")]
    loads = [Load(person, clips, seed + number) for number, person in enumerate(people)]
    for _ in range(KILLS):
        with loads[0].running(), loads[1].running(), loads[2].running():
            await_work(loads)
            time.sleep(rng.uniform(1.0, 6.0))
            server.kill()
        settle(server)
        server.start()
        starts.append(server.start_seconds)
        for load in loads:
            load.demand_acknowledged(rng, at_most=5)
    kept, gone = sum(len(load.pictures) + len(load.videos) for load in loads), sum(len(load.deleted) for load in loads)
    print(f"seed {seed}: {KILLS} kills, {kept} acknowledged uploads kept, {gone} acknowledged deletes; up in {max(starts):.0f} s at most")

    assert kept > 0
    assert gone > 0


def test_the_restarts_left_the_running_item_of_another_process_alone(server, elsewhere):
    worker, item = elsewhere
    with server.database() as database:
        running = status_of(database, item)
        worker.signal(signal.SIGTERM)
        said = worker.rest()

        assert running == "in_progress"
        assert not [line for line in said if line.startswith(("lost", "refused"))]
        assert (said[-1], status_of(database, item)) == ("completed", "completed")
