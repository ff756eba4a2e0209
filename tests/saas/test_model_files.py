"""Models of the bucket on a worker's disk: whole, checked, resumed, one fetch at a time, thrown out again; every failure is said."""

import hashlib
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
from saas.stores import disk_store, moto_server, s3_store
from saas.unsteady import Unsteady

from invokeai_saas.storage.errors import ObjectMissing, StorageUnavailable
from invokeai_saas.workers import model_files, model_store
from invokeai_saas.workers.manifest import BadManifest, Manifest, ModelFile, manifest_key
from invokeai_saas.workers.model_files import ModelCorrupt, ModelFiles, ModelMissing, ModelUnavailable, NoRoom
from invokeai_saas.workers.model_store import Record, UnknownModel, prune, push, pushed_keys

FOLDER, FILE = Record("folder-key", "A folder", "folder-key"), Record("file-key", "A file", "file-key/model.safetensors")
PATHS = {FOLDER.key: FOLDER.path, FILE.key: FILE.path}
SIZE = 3_000_000


@pytest.fixture(scope="module")
def moto_url():
    with moto_server() as (url, _):
        yield url


@pytest.fixture(params=["disk", "moto"])
def store(request, tmp_path):
    made = disk_store(tmp_path) if request.param == "disk" else s3_store(request.getfixturevalue("moto_url"), tmp_path)
    yield made
    made.delete([found.key for found in made.list("")])


@pytest.fixture
def installed(tmp_path):
    """A models folder with a model that is a folder and one that is a file."""
    models = tmp_path / "installed"
    (models / "folder-key" / "unet").mkdir(parents=True)
    (models / "folder-key" / "model_index.json").write_text("{}")
    (models / "folder-key" / "unet" / "weights.safetensors").write_bytes(os.urandom(SIZE))
    # Equal files are one object.
    (models / "folder-key" / "copy.json").write_text("{}")
    (models / "folder-key" / ".gitattributes").write_text("not part of it")
    (models / "file-key").mkdir()
    (models / "file-key" / "model.safetensors").write_bytes(os.urandom(SIZE))
    return models


def files_of(store, tmp_path, **settings):
    return ModelFiles(store, tmp_path / "worker", **({"records": lambda: PATHS, "reserve_bytes": 0, "retry_seconds": ()} | settings))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


class Counting:
    """A store whose reads are counted, and which breaks off, or gives other bytes, when told."""

    def __init__(self, store):
        self._store, self.starts, self.break_after, self.spoil = store, [], None, 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def chunks(self, key, *, start=0):
        if key.endswith("manifest.json"):
            yield from self._store.chunks(key)
            return
        self.starts.append((key.rpartition("/")[2], start))
        for number, piece in enumerate(_small(self._store.chunks(key, start=start))):
            if self.break_after is not None and number >= self.break_after:
                self.break_after = None
                raise StorageUnavailable("broken off")
            if self.spoil > 0 and number == 0:
                self.spoil -= 1
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            yield piece


def _small(pieces):
    for piece in pieces:
        for start in range(0, len(piece), 500_000):
            yield piece[start : start + 500_000]


def test_what_was_pushed_is_fetched_byte_for_byte(store, installed, tmp_path):
    pushed = [push(store, record, installed) for record in (FOLDER, FILE)]
    files = files_of(store, tmp_path)
    with files.hold('{"key": "folder-key"} {"key": "file-key"}'):
        there = tree(tmp_path / "worker")

    assert there == tree(installed)
    assert ([each.files for each in pushed], [each.uploaded_files for each in pushed]) == ([3, 1], [2, 1])
    assert list(files.fetched()) == ["folder-key", "file-key"]


def test_only_what_the_job_names_is_fetched(store, installed, tmp_path):
    for record in (FOLDER, FILE):
        push(store, record, installed)
    with files_of(store, tmp_path).hold('{"model": {"key": "file-key"}, "text": "folder-keys"}'):
        assert list(tree(tmp_path / "worker")) == [FILE.path]


def test_pushing_again_uploads_nothing_and_a_change_only_itself(store, installed):
    first, again = push(store, FOLDER, installed), push(store, FOLDER, installed)
    (installed / "folder-key" / "model_index.json").write_text('{"changed": true}')
    changed = push(store, FOLDER, installed)

    assert [each.uploaded_files for each in (first, again, changed)] == [2, 0, 1]
    assert pushed_keys(store) == {"folder-key"}
    # The model itself stays where it is.
    assert len(tree(installed)) == 4


def test_a_model_without_files_here_cannot_be_pushed(store, tmp_path):
    with pytest.raises(UnknownModel, match="A folder"):
        push(store, FOLDER, tmp_path)


def test_a_broken_download_goes_on_where_it_was(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)
    counting.break_after = 3
    with pytest.raises(ModelUnavailable, match="broken off"):
        files_of(counting, tmp_path).ensure(FILE.key, FILE.path)
    not_there = (tmp_path / "worker" / FILE.path).exists()
    files_of(counting, tmp_path).ensure(FILE.key, FILE.path)

    assert not not_there
    assert [start for _name, start in counting.starts] == [0, 1_500_000]
    assert tree(tmp_path / "worker") == {FILE.path: tree(installed)[FILE.path]}


def test_a_store_that_is_away_for_moments_is_waited_for(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)
    counting.break_after = 2
    files_of(counting, tmp_path, retry_seconds=(0.0, 0.0)).ensure(FILE.key, FILE.path)

    assert [start for _name, start in counting.starts] == [0, 1_000_000]


def test_wrong_bytes_are_fetched_once_more_and_then_refused(store, installed, tmp_path):
    push(store, FILE, installed)
    counting = Counting(store)
    counting.spoil = 1
    files_of(counting, tmp_path).ensure(FILE.key, FILE.path)
    shutil.rmtree(tmp_path / "worker")
    counting.spoil = 2

    with pytest.raises(ModelCorrupt, match="file-key in the bucket is damaged .* push it again"):
        files_of(counting, tmp_path).ensure(FILE.key, FILE.path)
    assert tree(tmp_path / "worker") == {}


def test_a_model_that_is_nowhere_is_named(store, tmp_path):
    with pytest.raises(ModelMissing, match="file-key is neither on this machine nor in the bucket: invokeai-saas models push file-key"):
        files_of(store, tmp_path).ensure(FILE.key, FILE.path)


def test_a_model_whose_object_is_gone_is_missing(store, installed, tmp_path):
    push(store, FILE, installed)
    store.delete([found.key for found in store.list("models/files/file-key/") if not found.key.endswith(".json")])

    with pytest.raises(ModelMissing, match="the bucket lost"):
        files_of(store, tmp_path).ensure(FILE.key, FILE.path)


def test_a_manifest_that_is_none_of_ours_is_refused(store, tmp_path):
    store.put(manifest_key("file-key"), b'{"version": 2}', "application/json")

    with pytest.raises(ModelCorrupt, match="version 1"):
        files_of(store, tmp_path).ensure(FILE.key, FILE.path)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a\0b"])
def test_a_manifest_cannot_climb_out_of_the_models_folder(path):
    with pytest.raises(BadManifest, match="inside"):
        Manifest("k", (ModelFile(path, "0" * 64, 1),))


def test_damaged_bytes_on_the_disk_are_found_and_fetched_again(store, installed, tmp_path):
    push(store, FOLDER, installed)
    files = files_of(store, tmp_path)
    target = files.ensure(FOLDER.key, FOLDER.path)
    fine = files.repair(FOLDER.key, FOLDER.path)
    weights = target / "unet" / "weights.safetensors"
    weights.write_bytes(b"\0" * SIZE)

    # Same size: no look at the folder finds it.
    assert files.ensure(FOLDER.key, FOLDER.path) == target
    assert (fine, files.repair(FOLDER.key, FOLDER.path)) == (False, True)
    assert tree(target) == tree(installed / "folder-key")


@pytest.mark.parametrize("damage", ["cut", "removed", "folder"])
def test_a_model_with_a_file_less_is_fetched_again(store, installed, tmp_path, damage):
    push(store, FOLDER, installed)
    files = files_of(store, tmp_path)
    target = files.ensure(FOLDER.key, FOLDER.path)
    weights = target / "unet" / "weights.safetensors"
    if damage == "cut":
        weights.write_bytes(b"short")
    elif damage == "removed":
        weights.unlink()
    else:
        shutil.rmtree(target)
    files.ensure(FOLDER.key, FOLDER.path)

    assert tree(target) == tree(installed / "folder-key")


def test_the_operators_own_files_are_neither_asked_for_nor_thrown_out(store, installed, tmp_path):
    shutil.copytree(installed, tmp_path / "worker")
    files = files_of(store, tmp_path, limit_bytes=1)
    with files.hold('"folder-key" "file-key"'):
        pass

    assert files.fetched() == {}
    assert files.repair(FILE.key, FILE.path) is False
    assert tree(tmp_path / "worker") == tree(installed)


def test_one_that_was_installed_elsewhere_gets_a_place_of_its_own(store, installed, tmp_path):
    record = Record("file-key", "In place", str(installed / "file-key" / "model.safetensors"))
    push(store, record, tmp_path / "unused")
    files = files_of(store, tmp_path)
    here = files.ensure(record.key, record.path)
    gone = record.path.replace("installed", "another/machine")
    fetched = files.ensure(record.key, gone)

    assert files.target("file-key", str(tmp_path / "worker" / FILE.path)) == files.target("file-key", FILE.path)
    assert here == Path(record.path)
    assert fetched.is_relative_to(tmp_path / "worker" / ".fetched")
    assert fetched.read_bytes() == here.read_bytes()


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
    other = files_of(store, tmp_path, limit_bytes=SIZE + 100, room_seconds=30)
    with files.hold('"folder-key"'):
        with pytest.raises(NoRoom, match="running jobs hold"):
            files.ensure(FILE.key, FILE.path)
        waiting = threading.Thread(target=lambda: other.ensure(FILE.key, FILE.path))
        waiting.start()
        time.sleep(0.5)
        held = tree(tmp_path / "worker" / "folder-key") == tree(installed / "folder-key")
    waiting.join(20)

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
    for round_number in range(12):
        process = subprocess.Popen([sys.executable, script, str(tmp_path), str(0.004)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"fetching\n"
        time.sleep(0.02 * round_number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, digest in tree(tmp_path / "worker").items():
            assert whole[name] == digest
        if round_number == 8:
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


def test_an_object_is_read_from_anywhere_to_its_end(store):
    store.put("models/files/k/x", bytes(range(256)) * 100, "application/octet-stream")
    read = {start: b"".join(store.chunks("models/files/k/x", start=start)) for start in (0, 1, 25_599, 25_600)}

    assert read == {start: (bytes(range(256)) * 100)[start:] for start in read}
    with pytest.raises(ObjectMissing):
        b"".join(store.chunks("models/files/k/y"))


def test_a_name_close_to_a_model_is_suggested():
    with pytest.raises(UnknownModel, match="got 'A foldr': A folder\\?"):
        model_store.named([FOLDER, FILE], ["A foldr"])
    assert model_store.named([FOLDER, FILE], ["file-key", "A folder"]) == [FILE, FOLDER]


def test_a_store_that_is_away_is_the_workers_fault(installed, tmp_path):
    store = Unsteady(tmp_path)
    push(store, FILE, installed)
    counting = Counting(store)
    counting.break_after = 0

    with pytest.raises(ModelUnavailable) as refused:
        files_of(counting, tmp_path).ensure(FILE.key, FILE.path)
    assert refused.value.status == 503
    assert model_files.RESERVE_BYTES == 2**30
