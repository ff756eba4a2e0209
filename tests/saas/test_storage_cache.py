"""The local copies: bounded, whole, fetched once, and there for who was just given one."""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from invokeai_saas.storage.cache import LocalCache
from invokeai_saas.storage.errors import ObjectMissing


class Source:
    """Hands out 100 bytes per key and counts."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def fetch(self, key: str):
        def fetches(path: Path) -> None:
            self.fetched.append(key)
            path.write_bytes(content(key))

        return fetches


def content(key: str) -> bytes:
    return key.encode().ljust(100, b".")


class Clock:
    def __init__(self) -> None:
        self.now = time.time() - 10_000

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_file_is_fetched_once_and_keeps_its_extension(tmp_path, source):
    cache = LocalCache(tmp_path, max_bytes=1000)
    paths = {cache.path_of("a.mp4", source.fetch("a.mp4")) for _ in range(3)}

    assert source.fetched == ["a.mp4"]
    assert [path.suffix for path in paths] == [".mp4"]
    assert paths.pop().read_bytes() == content("a.mp4")


def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path, source, clock):
    cache = LocalCache(tmp_path, max_bytes=300, keep_seconds=5, now=clock)
    for key in ("a", "b", "c", "a", "d"):
        clock.now += 10
        cache.path_of(key, source.fetch(key))

    assert cache.bytes() == 300
    for key in ("a", "c", "d"):
        cache.path_of(key, source.fetch(key))
    assert source.fetched == ["a", "b", "c", "d"]


def test_what_was_just_handed_out_stays_until_twice_the_bound(tmp_path, source, clock):
    cache = LocalCache(tmp_path, max_bytes=300, keep_seconds=60, now=clock)
    sizes = []
    for number in range(9):
        clock.now += 1
        cache.path_of(str(number), source.fetch(str(number)))
        sizes.append(cache.bytes())

    assert sizes == [100, 200, 300, 400, 500, 600, 600, 600, 600]
    clock.now += 100
    cache.path_of("last", source.fetch("last"))
    assert cache.bytes() == 300


def test_many_askers_fetch_once_and_others_do_not_wait(tmp_path, source):
    cache = LocalCache(tmp_path, max_bytes=10**6)
    inside, go = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        inside.set()
        assert go.wait(120)
        source.fetch("a")(path)

    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(cache.path_of, "a", slow) for _ in range(8)]
        assert inside.wait(120)
        assert cache.path_of("b", source.fetch("b")).read_bytes() == content("b")
        go.set()
        paths = {future.result().read_bytes() for future in asked}

    assert paths == {content("a")}
    assert source.fetched == ["b", "a"]


def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_tries_again(tmp_path, source):
    cache = LocalCache(tmp_path, max_bytes=1000)

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise ObjectMissing("gone")

    with pytest.raises(ObjectMissing):
        cache.path_of("a", fails)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {".lock"}
    assert cache.path_of("a", source.fetch("a")).read_bytes() == content("a")


def test_readers_see_whole_files_while_everything_is_evicted_around_them(tmp_path):
    # Two caches on one folder, as two processes would have.
    caches = [LocalCache(tmp_path, max_bytes=20_000, keep_seconds=1.0) for _ in range(2)]
    source, seed = Source(), random.randrange(2**32)
    print("seed", seed)

    def reads(number: int) -> int:
        rng, wrong = random.Random(seed + number), 0
        for _ in range(150):
            key = str(rng.randrange(2000))
            wrong += caches[number % 2].path_of(key, source.fetch(key)).read_bytes() != content(key)
        return wrong

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(reads, range(6))) == 0
    assert len(source.fetched) > 500
    assert caches[0].bytes() <= 2 * 20_000


def test_what_a_killed_download_left_goes_after_a_day(tmp_path, source):
    cache = LocalCache(tmp_path, max_bytes=1000)
    old, young = tmp_path / "old.part", tmp_path / "young.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    cache.path_of("a", source.fetch("a"))

    assert (old.exists(), young.exists()) == (False, True)


def test_a_forgotten_file_is_fetched_again(tmp_path, source):
    cache = LocalCache(tmp_path, max_bytes=1000)
    path = cache.path_of("a", source.fetch("a"))
    cache.forget("a")

    assert not path.exists()
    cache.path_of("a", source.fetch("a"))
    assert source.fetched == ["a", "a"]
