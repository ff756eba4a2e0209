"""Environments for the ways in: InvokeAI alone, and InvokeAI with our wheel."""

from pathlib import Path

import pytest
from live_server import build_wheel, copy_repository, make_environment
from tiny_models import make_tiny_z_image_video


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory) -> Path:
    """InvokeAI without a trace of our pack."""
    return make_environment(tmp_path_factory.mktemp("bare"), wheel=None)


@pytest.fixture(scope="session")
def packed_environment(tmp_path_factory) -> Path:
    """InvokeAI with our wheel, as pip leaves it."""
    folder = tmp_path_factory.mktemp("packed")
    return make_environment(folder / "venv", wheel=build_wheel(folder / "wheel"))


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """What a clone of this repository holds, in a folder named like the public one."""
    return copy_repository(tmp_path_factory.mktemp("clone") / "invokeai-video")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny random Z-Image Video model as a diffusers folder."""
    return make_tiny_z_image_video(tmp_path_factory.mktemp("models") / "tiny-video")
