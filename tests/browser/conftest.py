"""One plain `invokeai-web` with our wheel and one headless Chromium per worker, shared by the tests there; without Chromium they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_interface import PATIENCE_MS
from live_server import Server, build_wheel, make_environment
from playwright.sync_api import Browser, BrowserType, Page, expect, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
WITHOUT_GPU = ["--disable-gpu"]
# Chromium's path without a GPU converts YUV in 8 bits with a clamped blue coefficient, off by up to 12 of 255 for BT.709. Colours are
# measured on the path that a desktop takes, here with the GPU in software.
SOFTWARE_GPU = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SOFTWARE_GPU += ["--enable-gpu-rasterization"]
OF_THE_SAAS = ("test_accounts", "test_billing_page", "test_saas", "test_workers")


@pytest.hookimpl(tryfirst=True)  # xdist reads the group in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One browser for each worker, and one plain server: what uses it goes to one worker, the SaaS to the other."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("saas" if item.path.stem in OF_THE_SAAS else "plain"))
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests leave their pictures; INVOKEAI_VIDEO_SCREENSHOTS names a folder to keep."""
    kept = os.environ.get("INVOKEAI_VIDEO_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InvokeAI with our wheel, as pip leaves it."""
    folder = tmp_path_factory.mktemp("environment")
    return make_environment(folder / "venv", wheel=build_wheel(folder / "wheel"))


@pytest.fixture(scope="session")
def server(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Plain `invokeai-web` on an empty root."""
    with Server(environment, tmp_path_factory.mktemp("root")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium_type() -> Iterator[BrowserType]:
    """Playwright's handle for starting Chromium."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        yield playwright.chromium


def launch(chromium_type: BrowserType, flags: list[str]) -> Browser:
    """Start the system's Chromium; a machine without one fails the tests."""
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if executable is None:
        pytest.fail("expected Chromium, found none on PATH. On Debian or Ubuntu: apt-get install -y chromium")
    return chromium_type.launch(executable_path=executable, args=[*CHROMIUM_FLAGS, *flags], headless=True)


@pytest.fixture(scope="session")
def browser(chromium_type: BrowserType) -> Iterator[Browser]:
    """Headless Chromium, as light as it can be."""
    chromium = launch(chromium_type, WITHOUT_GPU)
    yield chromium
    chromium.close()


@pytest.fixture
def desktop_browser(chromium_type: BrowserType) -> Iterator[Browser]:
    """Headless Chromium that shows video as one with a GPU does."""
    chromium = launch(chromium_type, SOFTWARE_GPU)
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def page(browser: Browser) -> Page:
    """One English page at a laptop's size."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    return context.new_page()
