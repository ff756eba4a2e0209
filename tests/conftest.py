"""Fixtures that several test folders share. Nothing here imports InvokeAI until a test asks for the engine.

The engine costs half a minute to import and InvokeAI allows one per process, so every test that uses it goes to one worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

# Two threads on two shared cores wait for each other longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Fixtures that take half a minute or more to make; no test uses two of them.
ONE_WORKER = ("engine", "answers", "tiled", "seen", "story")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `make soak` runs; keep the tests of one engine, or of one dear fixture, on one worker."""
    if not os.environ.get("SOAK"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="long: make soak"))
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        for name in ONE_WORKER:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))
                break


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """InvokeAI's real graph engine on an empty root; nodes run again each time, because its node cache is off."""
    from invokeai_video_nodes.headless import Engine

    with Engine(tmp_path_factory.mktemp("invokeai"), log_level="critical", settings={"node_cache_size": 0}) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny Z-Image Video model with f_patch_size 1, 2 and 4."""
    from tiny_models import make_tiny_z_image_video

    return make_tiny_z_image_video(tmp_path_factory.mktemp("models") / "tiny-video")


@pytest.fixture(scope="session")
def tiny_model(engine: Engine, tiny_folder: Path) -> dict[str, Any]:
    """The tiny model as the value of a model field in a graph."""
    return engine.model(engine.install(tiny_folder))
