"""Collections of garbage: none during a start, and afterwards none over what the start made."""

import gc
import weakref

import pytest

from invokeai_saas.operating import collector


class Loop:
    """Garbage that only the collector can take away."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    gc.unfreeze()
    gc.enable()


def made_and_forgotten():
    return weakref.ref(Loop())


def test_nothing_is_collected_while_a_server_starts():
    collector.pause()

    assert not gc.isenabled()


def test_what_a_start_made_is_not_looked_at_again():
    collector.pause()
    kept = [[] for _ in range(1000)]
    collector.settle()

    assert gc.isenabled() and gc.get_freeze_count() > len(kept)
    assert all(each is not kept for each in gc.get_objects())


def test_garbage_of_requests_is_collected_as_ever():
    collector.pause()
    collector.settle()
    gone = made_and_forgotten()
    gc.collect()

    assert gone() is None
