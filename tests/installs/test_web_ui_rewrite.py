"""The bundle rewrite without a server: anchors against the installed InvokeAI, and what happens when they do not match."""

import importlib
import logging
import types
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from invokeai_video_patches import status, web_ui


@pytest.fixture(autouse=True)
def _own_report(monkeypatch):
    monkeypatch.setattr(status, "report", status.Report())


@pytest.fixture(scope="module")
def installed_assets() -> Path:
    import invokeai

    return Path(invokeai.__path__[0], "frontend", "web", "dist", "assets")


@pytest.fixture
def dist(tmp_path, installed_assets) -> Path:
    """A `dist` folder with the installed scripts."""
    assets = tmp_path / "dist" / "assets"
    assets.mkdir(parents=True)
    for script in installed_assets.glob("*.js"):
        (assets / script.name).write_bytes(script.read_bytes())
    (assets.parent / "index.html").write_text("<html></html>")
    return assets.parent


def served(dist: Path) -> TestClient:
    """The mount of `invokeai.app.api_app` with our patch, over a fresh copy of the module."""
    from fastapi import FastAPI
    from starlette.middleware.gzip import GZipMiddleware

    name = "invokeai.app.api.no_cache_staticfiles"
    module = types.ModuleType(name)
    exec(compile(Path(importlib.util.find_spec(name).origin).read_text(), name, "exec"), module.__dict__)
    web_ui.patch(module)
    app = FastAPI()
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.mount("/", module.NoCacheStaticFiles(directory=dist, html=True), name="ui")
    return TestClient(app)


def entry(dist: Path) -> Path:
    (script,) = (dist / "assets").glob("index-*.js")
    return script


def test_every_anchor_matches_the_installed_bundle(installed_assets):
    report = web_ui.match_report()

    assert report["misses"] == []
    assert report["matches"]
    anchors = [anchor for bundle in web_ui.BUNDLES.values() for anchor in bundle]
    assert report["counts"] == {anchor.name: anchor.expected for anchor in anchors}


def test_the_rewritten_bundle_knows_every_base_and_type(dist):
    js, _ = web_ui.rewrite(entry(dist).read_text())

    assert "`wan`,`z-image-video`,`hunyuan-video`,`svd`,`unknown`]" in js
    assert ".pid_decoder.video_vae.video_text_encoders.motion_module.unknown`" in js
    for long_label, badge, _ in web_ui.BASES.values():
        assert f"`{long_label}`" in js
        assert f"`{badge}`" in js
    for label, heading in web_ui.TYPES.values():
        assert f"`{label}`" in js
        assert f"i18nKey:`{heading}`" in js
    for long_label, _, _ in web_ui.FORMATS.values():
        assert f"`{long_label}`" in js


def test_a_text_without_anchors_comes_back_unchanged():
    js, counts = web_ui.rewrite("console.log(1)")

    assert js == "console.log(1)"
    assert set(counts.values()) == {0}


def test_an_anchor_found_twice_leaves_the_text_unchanged(dist):
    stock = entry(dist).read_text()
    doubled = stock + "\n//e=>e.type===`main`&&e.base!==`sdxl-refiner`"

    js, counts = web_ui.rewrite(doubled)

    assert js == doubled
    assert counts["main models of Generate and Canvas"] == 2


def test_the_served_bundle_is_rewritten_compressed_and_never_cached(dist):
    client, script = served(dist), entry(dist)

    response = client.get(f"/assets/{script.name}", headers={"accept-encoding": "gzip"})

    assert response.status_code == 200
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["content-type"].startswith("text/javascript")
    assert "no-store" in response.headers["cache-control"]
    assert response.text == web_ui.rewrite(script.read_text())[0]
    assert "z-image-video" in response.text


def test_the_etag_of_the_rewritten_bundle_answers_304_and_that_of_the_stock_bundle_does_not(dist):
    client, url = served(dist), f"/assets/{entry(dist).name}"
    ours = client.get(url)

    assert client.get(url, headers={"if-none-match": ours.headers["etag"]}).status_code == 304
    assert client.get(url, headers={"if-none-match": '"stock"'}).status_code == 200
    assert client.get(url, headers={"if-modified-since": ours.headers["last-modified"]}).status_code == 200


def test_other_files_are_served_as_they_are(dist):
    client = served(dist)
    (other,) = (dist / "assets").glob("worker-*.js")

    assert client.get(f"/assets/{other.name}").content == other.read_bytes()
    assert client.get("/no/such/page").text == "<html></html>"


def test_the_bundle_is_rewritten_once_and_again_only_when_a_file_changes(dist):
    calls = []
    cache = web_ui.BundleCache(lambda assets: calls.append(assets) or web_ui.rewrite_bundle(assets))
    script = entry(dist)
    for _ in range(3):
        assert cache.lookup(script, script.stat()) is not None

    assert len(calls) == 1
    script.write_text(script.read_text() + "\n")
    assert cache.lookup(script, script.stat()).content.endswith(b"\n")
    assert len(calls) == 2


def test_a_bundle_whose_anchors_do_not_match_is_served_as_it_is_with_one_log_line(dist, caplog):
    script = entry(dist)
    script.write_text(script.read_text().replace("{any:`base`,", "{any:`gray`,"))
    client = served(dist)

    with caplog.at_level(logging.WARNING, logger="InvokeAI"):
        logging.getLogger("InvokeAI").addHandler(caplog.handler)
        try:
            answers = [client.get(f"/assets/{path.name}") for path in sorted((dist / "assets").glob("*.js")) * 2]
        finally:
            logging.getLogger("InvokeAI").removeHandler(caplog.handler)

    assert {answer.status_code for answer in answers} == {200}
    assert all("z-image-video" not in answer.text for answer in answers)
    # Two handlers may have seen the same record.
    lines = {id(record): record.message for record in caplog.records}
    assert list(lines.values()) == [
        "invokeai-video: web interface: falling back to stock InvokeAI: base colours: expected 1 in index-*.js, got 0"
    ]


def test_patching_twice_wraps_once():
    module = types.SimpleNamespace(NoCacheStaticFiles=type("NoCacheStaticFiles", (), {"file_response": lambda self: None}))

    web_ui.patch(module)
    first = module.NoCacheStaticFiles.file_response
    web_ui.patch(module)

    assert module.NoCacheStaticFiles.file_response is first
