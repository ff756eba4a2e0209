"""The doctor's judgements that need no InvokeAI; the rest is asked in `test_in_invokeai.py`."""

from __future__ import annotations

import asyncio
import json

import pytest

from invokeai_video_nodes import doctor
from invokeai_video_nodes.doctor import Finding


async def broken_app(scope, receive, send):
    raise AttributeError("content_type_is_excluded")


async def answering_app(scope, receive, send):
    assert scope["path"] == "/ws/socket.io/"
    assert (b"accept-encoding", b"gzip") in scope["headers"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"0{}"})


def test_a_starlette_that_breaks_polling_is_recognised_with_both_cures():
    status = asyncio.run(doctor._socket_status(broken_app))

    finding = doctor._socket(status, 9)

    assert not finding.ok
    assert finding.detail.startswith("answers 500 with starlette ")
    assert "'starlette<1.6'" in finding.detail
    assert "http_compression_level: 0" in finding.detail


def test_an_answering_application_is_well():
    assert doctor._socket(asyncio.run(doctor._socket_status(answering_app)), 9).ok


def test_compression_switched_off_is_well_even_with_a_broken_starlette(tmp_path):
    (tmp_path / "invokeai.yaml").write_text("http_compression_level: 0\n")

    assert doctor._compression_level(tmp_path) == 0
    assert doctor._socket(500, 0).ok


@pytest.mark.parametrize("text", [None, "", "port: 9090\n"])
def test_compression_is_on_where_the_root_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "invokeai.yaml").write_text(text)

    assert doctor._compression_level(tmp_path) == 9


def test_a_missing_ffmpeg_is_told_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))

    finding = doctor._ffmpeg()

    assert not finding.ok
    assert "install imageio-ffmpeg" in finding.detail


def test_ffmpeg_has_both_encoders():
    assert doctor._ffmpeg().ok


def test_the_kill_switch_is_told_and_invokeai_left_alone(monkeypatch, capsys):
    monkeypatch.setenv("INVOKEAI_VIDEO_DISABLE", "1")

    findings = {finding.name: finding for finding in doctor.examine(None)}

    assert not findings["kill switch"].ok
    assert "INVOKEAI_VIDEO_DISABLE is set" in findings["kill switch"].detail
    assert not any(name.startswith("patch:") for name in findings)
    assert "starting InvokeAI" not in capsys.readouterr().err


def test_an_unknown_invokeai_is_told_with_the_versions_it_should_be(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: {"invokeai": "6.15.0"}.get(name, "1.0"))

    findings = {finding.name: finding for finding in doctor.examine(None)}

    assert findings["invokeai"] == Finding("invokeai", False, "6.15.0; expected 6.14.2 or a later 6.14, so stock behaviour")
    assert not any(name.startswith("patch:") for name in findings)


def test_each_finding_is_printed_before_the_next_is_looked_for(monkeypatch, capsys):
    printed = []

    def findings(root):
        yield Finding("first", True, "quick")
        printed.append(capsys.readouterr().out)
        yield Finding("second", True, "slow")

    monkeypatch.setattr(doctor, "examine", findings)
    doctor.run_doctor()

    assert printed == ["ok   first: quick\n"]


def test_a_pack_in_the_nodes_folder_is_a_way_in(tmp_path):
    package = tmp_path / "nodes" / "video-pack" / "invokeai_video_nodes"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()

    (finding,) = doctor._ways_in(tmp_path)

    assert str(tmp_path / "nodes" / "video-pack") in finding.detail


@pytest.mark.parametrize(("findings", "code", "last"), [([True, True], 0, "All is well."), ([True, False], 1, "1 of 2 need attention")])
def test_the_exit_code_says_whether_all_is_well(monkeypatch, capsys, findings, code, last):
    monkeypatch.setattr(doctor, "examine", lambda root: (Finding(f"n{i}", ok, "d") for i, ok in enumerate(findings)))

    assert doctor.run_doctor() == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)
    assert doctor.run_doctor(json=True) == code
    assert [entry["ok"] for entry in json.loads(capsys.readouterr().out)] == findings
