"""Models of the bucket on a worker's disk: whole, checked, resumed, repaired; every failure is said."""

import shutil
from pathlib import Path

import pytest
from saas.model_folders import FILE, FOLDER, SIZE, Counting, files_of, install_models, tree
from saas.stores import disk_store, moto_server, s3_store
from saas.unsteady import Unsteady

from invokeai_saas.storage.errors import ObjectMissing
from invokeai_saas.workers import model_store
from invokeai_saas.workers.manifest import BadManifest, Manifest, ModelFile, manifest_key
from invokeai_saas.workers.model_files import ModelCorrupt, ModelMissing, ModelUnavailable
from invokeai_saas.workers.model_store import Record, UnknownModel, push, pushed_keys


@pytest.fixture(scope="module")
def moto_url():
    with moto_server() as (url, _):
        yield url


@pytest.fixture(params=["disk", "moto"])
def any_store(request, tmp_path):
    made = disk_store(tmp_path) if request.param == "disk" else s3_store(request.getfixturevalue("moto_url"), tmp_path)
    yield made
    made.delete([found.key for found in made.list("")])


@pytest.fixture
def store(tmp_path):
    return disk_store(tmp_path)


@pytest.fixture
def installed(tmp_path):
    return install_models(tmp_path)


def test_what_was_pushed_is_fetched_byte_for_byte(any_store, installed, tmp_path):
    pushed = [push(any_store, record, installed) for record in (FOLDER, FILE)]
    files = files_of(any_store, tmp_path)
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


def test_pushing_again_uploads_nothing_and_a_change_only_itself(any_store, installed):
    first, again = push(any_store, FOLDER, installed), push(any_store, FOLDER, installed)
    (installed / "folder-key" / "model_index.json").write_text('{"changed": true}')
    changed = push(any_store, FOLDER, installed)

    assert [each.uploaded_files for each in (first, again, changed)] == [2, 0, 1]
    assert pushed_keys(any_store) == {"folder-key"}
    # The model itself stays where it is.
    assert len(tree(installed)) == 4


def test_a_model_without_files_here_cannot_be_pushed(store, tmp_path):
    with pytest.raises(UnknownModel, match="A folder"):
        push(store, FOLDER, tmp_path)


def test_a_broken_download_goes_on_where_it_was(any_store, installed, tmp_path):
    push(any_store, FILE, installed)
    counting = Counting(any_store)
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


def test_an_object_is_read_from_anywhere_to_its_end(any_store):
    any_store.put("models/files/k/x", bytes(range(256)) * 100, "application/octet-stream")
    read = {start: b"".join(any_store.chunks("models/files/k/x", start=start)) for start in (0, 1, 25_599, 25_600)}

    assert read == {start: (bytes(range(256)) * 100)[start:] for start in read}
    with pytest.raises(ObjectMissing):
        b"".join(any_store.chunks("models/files/k/y"))


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
