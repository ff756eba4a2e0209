"""Result files, result lines and the log that is kept only when it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from invokeai_video_nodes.commands.console import own_streams
from invokeai_video_nodes.commands.demo import check_arguments, settings_for, unknown_words, unusual_length
from invokeai_video_nodes.commands.results import copy_result, out_folder
from invokeai_video_nodes.commands.run import file_stem
from invokeai_video_nodes.pipelines.errors import BadInput, OutputError
from invokeai_video_nodes.pipelines.mp4 import H265_SUFFIX
from invokeai_video_nodes.toy_settings import ToySettings, toy_settings


def test_a_result_never_replaces_a_file_that_was_there(tmp_path: Path) -> None:
    source = tmp_path / "gallery.mp4"
    source.write_bytes(b"new")
    out = tmp_path / "out"
    out.mkdir()
    (out / "clip.mp4").write_bytes(b"old")

    assert copy_result(source, out, "clip") == [out / "clip-2.mp4"]
    assert copy_result(source, out, "clip") == [out / "clip-3.mp4"]
    assert (out / "clip.mp4").read_bytes() == b"old"


def test_the_h265_file_comes_with_its_video_under_one_name(tmp_path: Path) -> None:
    source, out = tmp_path / "gallery.mp4", tmp_path / "out"
    source.write_bytes(b"h264")
    source.with_suffix(H265_SUFFIX).write_bytes(b"h265")
    out.mkdir()
    (out / "clip.h265.mp4").write_bytes(b"old")

    assert copy_result(source, out, "clip") == [out / "clip-2.mp4", out / "clip-2.h265.mp4"]
    assert (out / "clip-2.h265.mp4").read_bytes() == b"h265"
    assert (out / "clip.h265.mp4").read_bytes() == b"old"


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    with pytest.raises(OutputError, match="clip.mp4"):
        copy_result(tmp_path / "absent.mp4", out, "clip")
    assert list(out.iterdir()) == []


def test_an_out_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(BadInput, match="--out: expected a folder"):
        with out_folder(tmp_path / "file" / "folder"):
            pass


def test_a_refused_run_takes_its_new_and_empty_out_folder_away_but_no_other(tmp_path: Path) -> None:
    with pytest.raises(BadInput), out_folder(tmp_path / "new"):
        raise BadInput("the run is refused")
    assert not (tmp_path / "new").exists()

    (tmp_path / "old").mkdir()
    with out_folder(tmp_path / "old"), out_folder(tmp_path / "used") as used:
        (used / "clip.mp4").write_bytes(b"clip")
    assert (tmp_path / "old").is_dir() and (tmp_path / "used" / "clip.mp4").is_file()


@pytest.mark.parametrize(("words", "stem"), [("A red Circle, moving!", "a-red-circle-moving"), ("???", "result"), ("x" * 99, "x" * 60)])
def test_words_become_a_file_name(words: str, stem: str) -> None:
    assert file_stem(words) == stem


def test_other_writers_go_to_a_log_that_is_gone_after_success(capfd: pytest.CaptureFixture[str]) -> None:
    with own_streams() as console:
        os.write(1, b"noise from C on stdout\n")
        os.write(2, b"noise from C on stderr\n")
        console.result("video", Path("clip.mp4"))
        console.note("a note")
        log = console.log

    seen = capfd.readouterr()
    assert seen.out == "video: clip.mp4\n"
    assert seen.err == "a note\n"
    assert log is not None and not log.exists()


def test_the_log_is_kept_and_named_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    with own_streams() as console:
        os.write(2, b"why it failed\n")
        console.keep_log = True

    assert console.log is not None
    assert console.log.read_text() == "why it failed\n"
    assert capfd.readouterr().err == f"log: {console.log}\n"
    console.log.unlink()


def test_json_mode_puts_one_object_and_nothing_else_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with own_streams(as_json=True, verbose=True) as console:
        os.write(1, b"noise on stdout\n")
        console.result("video", Path("clip.mp4"))
        console.error("two\nlines", kind="node")

    seen = capfd.readouterr()
    assert json.loads(seen.out) == {"error": {"message": "two lines", "kind": "node"}}
    assert "noise on stdout" in seen.err


def demo_arguments(**given: object) -> Namespace:
    names = ("prompt", "frames", "steps", "guidance", "fps")
    return Namespace(**{**dict.fromkeys(names), "seed": 0, "scale": 1, "out": "outputs", **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 15}, r"--frames: expected .*divisible by f_patch_size 2, got 15 \(nearest valid value: 14\)"),
        ({"frames": 500}, "nearest valid value: 128"),
        ({"seed": -1}, r"--seed: expected 0 to 4294967295, got -1 \(nearest valid value: 0\)"),
        ({"steps": 0}, r"--steps: expected 1 to 1000, got 0 \(nearest valid value: 1\)"),
        ({"fps": 61}, "nearest valid value: 60"),
        ({"guidance": 0.5}, "nearest valid value: 1"),
        ({"scale": 99}, "nearest valid value: 16"),
        ({"out": ""}, r"--out: expected a folder, got nothing \(nearest valid value: outputs\)"),
        ({"prompt": "  "}, "--prompt: expected a few words, got nothing"),
    ],
)
def test_the_demo_refuses_a_bad_argument_with_the_nearest_good_one(given: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_arguments(demo_arguments(**given), ToySettings())


def test_the_demo_fills_the_workflow_with_what_was_said_and_else_with_the_models_own_values() -> None:
    settings = settings_for(demo_arguments(frames=8, seed=5), ToySettings(steps=20), "a star")
    values = {f"{setting.node}.{setting.field}": setting.text for setting in settings}

    assert values["positive_prompt.prompt"] == "a star"
    assert values["denoise.num_frames"] == "8"
    assert values["denoise.seed"] == "5"
    assert values["denoise.steps"] == "20"


def test_words_that_the_toy_never_saw_are_named_with_those_it_knows() -> None:
    known = ("a", "red", "circle")

    assert unknown_words("A red circle", known) is None
    assert unknown_words("a red dragon", ()) is None
    assert "dragon; it knows: a, red, circle" in str(unknown_words("a red dragon", known))


def test_a_length_that_the_toy_never_saw_is_remarked() -> None:
    assert unusual_length(16, (8, 24)) is None
    assert unusual_length(16, ()) is None
    assert "8 to 24 frames; 48" in str(unusual_length(48, (8, 24)))


def test_the_shipped_vocabulary_covers_every_plain_caption_of_the_training() -> None:
    from training.toy_model.captions import phrasings
    from training.toy_model.clips import all_subjects

    known = toy_settings().words

    assert known
    assert [text for subject in all_subjects() for text in phrasings(subject) if unknown_words(text, known)] == []
    assert unknown_words(toy_settings().prompt, known) is None


def test_the_toys_own_files_override_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"width": 96, "unknown": 1}')
    (tmp_path / "vocabulary.json").write_text('{"words": ["red"]}')

    assert toy_settings(tmp_path) == ToySettings(width=96, words=("red",))


def test_help_is_instant_because_it_imports_neither_torch_nor_invokeai() -> None:
    code = (
        "import sys\n"
        "from invokeai_video_nodes.cli import main\n"
        "for words in ([], ['demo', '--help'], ['run', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as done: assert done.code == 0\n"
        "heavy = [name for name in ('torch', 'invokeai', 'diffusers') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "install-workflows" in done.stdout
