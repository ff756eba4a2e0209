"""A process that dies at any moment leaves, after recovery, no row without a file and no file without a row."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from saas.stored_rows import add_workflow_row, delete_row, demand_whole, image_rows, objects, save_image
from saas.stores import SIGNING_SECRET

from invokeai_saas.db import tenancy
from invokeai_saas.storage import journal
from invokeai_saas.storage.disk import DiskStore
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName
from invokeai_saas.storage.signing import Signer

ROUNDS = int(os.environ.get("SAAS_SOAK_KILLS", "6"))


class Dead(BaseException):
    """The process is gone: nothing catches this on its way."""


class Mortal(DiskStore):
    """Dies before or after the n-th put or delete."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "files", Signer(SIGNING_SECRET))
        self.check()
        self.dies: str | None = None
        self._calls = 0

    def _moment(self, when: str) -> None:
        if self.dies == f"{when} {self._calls}":
            self.dies = None
            raise Dead

    def put(self, key: str, data: bytes, content_type: str) -> None:
        self._calls += 1
        self._moment("before")
        super().put(key, data, content_type)
        self._moment("after")

    def delete(self, keys: Iterable[str]) -> None:
        self._calls += 1
        self._moment("before")
        super().delete(keys)
        self._moment("after")


@pytest.fixture
def files(database, tmp_path) -> Files:
    return Files(database, Mortal(tmp_path))


def recover(files: Files, database) -> None:
    """What the next process does; twice is as good as once."""
    for _ in range(2):
        files.recover(older_than_seconds=0)
        demand_whole(files, database)


@pytest.mark.parametrize(
    ("dies", "survives"), [("before 1", False), ("after 1", False), ("before 2", False), ("after 2", True)]
)
def test_a_death_while_saving_is_undone_or_finished(files, database, dies, survives):
    files.store.dies = dies
    with pytest.raises(Dead):
        save_image(files, database, "ann", "a.png")
    recover(files, database)

    assert image_rows(database) == ({"a.png"} if survives else set())
    with tenancy.as_user("ann"):
        assert (files.locate(ObjectName("image", "a.png")) is not None) is survives


def test_a_death_between_row_and_announcement_is_undone(files, database, monkeypatch):
    def dies(*arguments: object) -> None:
        raise Dead

    with monkeypatch.context() as patch, pytest.raises(Dead):
        patch.setattr(journal, "announce", dies)
        save_image(files, database, "ann", "a.png")
    assert image_rows(database) == {"a.png"}
    recover(files, database)

    assert image_rows(database) == set()


@pytest.mark.parametrize("dies", ["before 3", "after 3"])
def test_a_death_while_deleting_is_finished(files, database, dies):
    save_image(files, database, "ann", "a.png")
    files.store.dies = dies
    delete_row(database, "ann", "a.png")
    with pytest.raises(Dead), tenancy.as_user("ann"):
        files.purge("image", ["a.png"])
    recover(files, database)

    assert objects(files) == {}


@pytest.mark.parametrize("dies", ["before 2", "after 2", "before 3", "after 3"])
def test_a_death_while_replacing_a_picture_leaves_a_whole_one(files, database, dies):
    with tenancy.as_user("ann"):
        add_workflow_row(database, "ann", "w")
        files.save("workflow", "w", {"file": b"first"})
        files.store.dies = dies
        try:
            files.save("workflow", "w", {"file": b"second"})
        except Dead:
            pass
        files.store.dies = None
    recover(files, database)

    with tenancy.as_user("ann"):
        assert files.path(ObjectName("workflow", "w")).read_bytes() in (b"first", b"second")


def test_killed_processes_leave_nothing_half_done(dsn, database, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng, kept, unsure, deleted = random.Random(seed), set(), set(), set()
    files = Files(database, Mortal(tmp_path))
    for number in range(ROUNDS):
        for said, name in killed_worker(dsn, tmp_path, f"{seed}-{number}", rng.uniform(0.1, 0.8)):
            if said == "saved":
                kept.add(name)
            elif said == "deleting":
                kept.discard(name)
                unsure.add(name)
            elif said == "deleted":
                unsure.discard(name)
                deleted.add(name)
        recover(files, database)

        there = image_rows(database)
        assert kept <= there
        assert not deleted & there
    print(len(kept), "kept", len(deleted), "deleted", len(there - kept), "neither acknowledged nor lost")
    assert len(kept) > ROUNDS
    assert len(deleted) > ROUNDS


def killed_worker(dsn: str, folder: Path, seed: str, seconds: float) -> list[tuple[str, str]]:
    """What storing_worker.py said until it was killed, `seconds` after it began."""
    doomed = make_conninfo(dsn, application_name="doomed")
    command = [sys.executable, str(Path(__file__).parent / "storing_worker.py"), doomed, str(folder), seed]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready -\n"
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    said = process.stdout.read()
    process.wait()
    timer.join()
    await_end_of_sessions(dsn)
    lines = [line.split(" ") for line in said.splitlines(keepends=True) if line.endswith("\n")]
    return [(verb, name.strip()) for verb, name in lines]


def await_end_of_sessions(dsn: str) -> None:
    """The server ends a killed client's statement before it notices: what commits then must have committed before recovery looks."""
    deadline = time.monotonic() + 120
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'doomed'").fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.02)
