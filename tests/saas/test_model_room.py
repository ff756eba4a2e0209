"""Room for models on a worker's disk: one fetch at a time, what nobody used goes, what a job holds stays, kills leave whole models."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from saas.model_folders import FILE, FOLDER, PATHS, SIZE, Counting, files_of, install_models, tree
from saas.patience import PATIENCE_SECONDS
from saas.stores import disk_store

from invokeai_saas.workers.model_files import ModelUnavailable, NoRoom
from invokeai_saas.workers.model_store import Record, prune, push, pushed_keys

# Spread over a fetch that takes a quarter of a second.
KILLS = int(os.environ.get("SAAS_SOAK_FETCH_KILLS", "5"))


@pytest.fixture
def store(tmp_path):
    return disk_store(tmp_path)


@pytest.fixture
def installed(tmp_path):
    return install_models(tmp_path)


def test_of_many_at_once_one_fetches(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)
    threads = [threading.Thread(target=lambda: files_of(counting, tmp_path).ensure(FILE.key, FILE.path)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(counting.starts) == 1
    assert tree(tmp_path / "worker") == {FILE.path: tree(installed)[FILE.path]}


def test_the_least_recently_used_goes_when_the_limit_is_reached(store, installed, tmp_path):
    for record in (FOLDER, FILE):
        push(store, record, installed)
    files = files_of(store, tmp_path, limit_bytes=SIZE + 100)
    files.ensure(FOLDER.key, FOLDER.path)
    files.ensure(FILE.key, FILE.path)
    second = list(files.fetched())
    files.ensure(FOLDER.key, FOLDER.path)

    assert (second, list(files.fetched())) == (["file-key"], ["folder-key"])
    assert not (tmp_path / "worker" / "file-key").exists()


def test_use_counts_and_not_the_day_of_the_fetch(store, installed, tmp_path):
    third = Record("third-key", "Third", "third-key/model.safetensors")
    shutil.copytree(installed / "file-key", installed / "third-key")
    paths = {**PATHS, third.key: third.path}
    for record in (FOLDER, FILE, third):
        push(store, record, installed)
    files = files_of(store, tmp_path, limit_bytes=2 * SIZE + 100, records=lambda: paths)
    for record in (FOLDER, FILE, FOLDER):
        files.ensure(record.key, record.path)
        time.sleep(0.02)
    files.ensure(third.key, third.path)

    assert set(files.fetched()) == {"folder-key", "third-key"}


def test_a_model_that_a_job_holds_is_not_thrown_out(store, installed, tmp_path):
    for record in (FOLDER, FILE):
        push(store, record, installed)
    files = files_of(store, tmp_path, limit_bytes=SIZE + 100, room_seconds=0.3)
    other = files_of(store, tmp_path, limit_bytes=SIZE + 100, room_seconds=PATIENCE_SECONDS)
    with files.hold('"folder-key"'):
        with pytest.raises(NoRoom, match="running jobs hold"):
            files.ensure(FILE.key, FILE.path)
        waiting = threading.Thread(target=lambda: other.ensure(FILE.key, FILE.path))
        waiting.start()
        time.sleep(0.5)
        held = tree(tmp_path / "worker" / "folder-key") == tree(installed / "folder-key")
    waiting.join(PATIENCE_SECONDS)

    assert held
    assert list(other.fetched()) == ["file-key"]


def test_a_model_above_the_limit_is_refused_before_a_byte(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)

    with pytest.raises(NoRoom, match="SAAS_MODEL_CACHE_GB"):
        files_of(counting, tmp_path, limit_bytes=SIZE - 1).ensure(FILE.key, FILE.path)
    assert counting.starts == []


def test_a_full_disk_is_seen_before_a_byte(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)

    with pytest.raises(NoRoom, match="GB free"):
        files_of(counting, tmp_path, reserve_bytes=2**60).ensure(FILE.key, FILE.path)
    assert counting.starts == []


def test_a_fetch_that_is_to_stop_keeps_what_came(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)
    with pytest.raises(ModelUnavailable, match="stopped"):
        files_of(counting, tmp_path).ensure(FILE.key, FILE.path, stop=lambda: True)
    files_of(counting, tmp_path).ensure(FILE.key, FILE.path)

    assert [start for _name, start in counting.starts] == [0, 500_000]


def test_kills_at_any_moment_leave_whole_models_only(installed, tmp_path):
    store = disk_store(tmp_path)
    for record in (FOLDER, FILE):
        push(store, record, installed)
    whole = tree(installed)
    script = str(Path(__file__).with_name("fetching_worker.py"))
    files = files_of(store, tmp_path)
    for round_number in range(KILLS):
        process = subprocess.Popen([sys.executable, script, str(tmp_path), str(0.004)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"fetching\n"
        time.sleep(0.24 * round_number / KILLS)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, digest in tree(tmp_path / "worker").items():
            assert whole[name] == digest
        if round_number == KILLS // 2:
            files.ensure(FOLDER.key, FOLDER.path)
            shutil.rmtree(tmp_path / "worker" / "folder-key")
    for record in (FOLDER, FILE):
        files.ensure(record.key, record.path)

    assert tree(tmp_path / "worker") == whole
    assert list((tmp_path / "worker" / ".fetched" / "parts").iterdir()) == []


def test_prune_keeps_what_is_installed_and_what_is_young(store, installed, tmp_path):
    for record in (FOLDER, FILE):
        push(store, record, installed)
    (installed / "folder-key" / "model_index.json").write_text('{"changed": true}')
    push(store, FOLDER, installed)
    young = prune(store, [FOLDER])
    gone = prune(store, [FOLDER], now=datetime.now(UTC) + timedelta(days=2))
    files_of(store, tmp_path).ensure(FOLDER.key, FOLDER.path)

    # copy.json still needs the object that model_index.json left.
    assert (young, {found.key.split("/")[2] for found in gone}, len(gone)) == ([], {"file-key"}, 2)
    assert pushed_keys(store) == {"folder-key"}
    assert tree(tmp_path / "worker" / "folder-key") == tree(installed / "folder-key")
