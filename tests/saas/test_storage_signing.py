"""Signed addresses: good for one key, one user, a while; nothing else."""

import os
import tempfile
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import load_settings
from invokeai_saas.storage.disk import DiskStore
from invokeai_saas.storage.errors import BadName, BadSignature
from invokeai_saas.storage.opening import ARRIVING_LIFE_SECONDS, SECRET_FILE, open_store, receive_uploads
from invokeai_saas.storage.signing import MAX_SECONDS, Signer

KEY = "users/ann/images/a b&c=1.png"
NOW = 1_000_000.0


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock) -> Signer:
    return Signer(b"s" * 32, now=clock)


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


@pytest.fixture
def query(signer) -> dict[str, str]:
    return query_of(signer.url("/files/", KEY, user_id="ann", seconds=60))


def test_the_address_reads_its_object_for_its_user_until_it_expires(signer, clock, query):
    assert signer.verify(KEY, query, asking_user_id="ann") == KEY
    clock.now = NOW + 59.9
    assert signer.verify(KEY, query, asking_user_id="ann") == KEY
    clock.now = NOW + 60
    with pytest.raises(BadSignature):
        signer.verify(KEY, query, asking_user_id="ann")


@pytest.mark.parametrize("change", [
    {"expires": "1000061"}, {"expires": "9999999999"}, {"expires": ""}, {"expires": "x"}, {"expires": "１００００６０"}, {"user": "bob"},
    {"user": ""}, {"user": "ann\n1"}, {"signature": ""}, {"signature": "0" * 64}, {"signature": "é"}, {"signature": "\ud800"},
])  # fmt: skip
def test_a_changed_query_is_refused(signer, query, change):
    with pytest.raises(BadSignature) as refused:
        signer.verify(KEY, query | change, asking_user_id=change.get("user", "ann"))
    assert str(refused.value) == str(BadSignature())


@pytest.mark.parametrize("key", ["users/ann/images/b.png", "users/bob/images/a.png", "../x", "", KEY + "/"])
def test_another_key_is_refused(signer, query, key):
    with pytest.raises(BadSignature):
        signer.verify(key, query, asking_user_id="ann")


@pytest.mark.parametrize("asking", ["bob", "", "Ann", "ann ", "\ud800"])
def test_another_user_is_refused(signer, query, asking):
    with pytest.raises(BadSignature):
        signer.verify(KEY, query, asking_user_id=asking)


def test_a_query_without_its_parts_is_refused(signer, query):
    for name in query:
        with pytest.raises(BadSignature):
            signer.verify(KEY, {key: value for key, value in query.items() if key != name}, asking_user_id="ann")


def test_another_secret_signs_nothing_of_ours(query, clock):
    with pytest.raises(BadSignature):
        Signer(b"t" * 32, now=clock).verify(KEY, query, asking_user_id="ann")


def test_what_is_no_key_or_no_time_is_not_signed(signer):
    for key, user_id, seconds, wrong in (
        ("../x", "ann", 60, BadName), (KEY, "a/b", 60, BadName), (KEY, "ann", 0, ValueError), (KEY, "ann", MAX_SECONDS + 1, ValueError),
    ):  # fmt: skip
        with pytest.raises(wrong):
            signer.url("/files", key, user_id=user_id, seconds=seconds)
    with pytest.raises(ValueError, match="32 bytes"):
        Signer(b"short")


def test_the_secret_is_made_once_kept_and_private(tmp_path):
    settings = load_settings(data_dir=tmp_path / "data")
    urls = []
    for _ in range(2):
        store = open_store(settings)
        assert isinstance(store, DiskStore)
        urls.append(store.signer._signature("k", "ann", "1"))

    assert urls[0] == urls[1]
    assert (tmp_path / "data" / SECRET_FILE).stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == [SECRET_FILE]


def test_a_broken_secret_file_is_named(tmp_path):
    (tmp_path / SECRET_FILE).write_bytes(b"short")

    with pytest.raises(BadSettings, match=SECRET_FILE):
        open_store(load_settings(data_dir=tmp_path))


def test_uploads_arrive_beside_the_store_and_those_of_a_killed_process_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "")
    left, fresh = tmp_path / "arriving" / "left.mp4", tmp_path / "arriving" / "fresh.mp4"
    left.parent.mkdir()
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (0, time.time() - ARRIVING_LIFE_SECONDS - 60))
    receive_uploads(tmp_path / "arriving")
    with tempfile.NamedTemporaryFile() as arriving:
        assert arriving.name.startswith(str(tmp_path / "arriving"))

    assert list((tmp_path / "arriving").iterdir()) == [fresh]
    assert os.environ["TMPDIR"] == str(tmp_path / "arriving")
