"""Tests of one group share their fixtures: xdist says so by a suffix of their ids, which it stops doing quietly when pytest changes."""

import os

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process is one group")
def test_tests_of_a_group_run_on_one_worker(request):
    assert request.node.nodeid.endswith("@one")
