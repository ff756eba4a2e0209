"""The command itself in processes of its own: exit codes, result lines, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from invokeai_video_nodes.toy_settings import toy_settings
from invokeai_video_nodes.workflow_files import workflow_file

# Importing InvokeAI dominates; shared test machines are slow at it.
TIMEOUT_SECONDS = 600
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This repository's code, no root of the person's own, and a temporary folder whose leftovers can be counted."""
    (tmp_path / "tmp").mkdir()
    paths = [str(REPOSITORY), str(REPOSITORY / "patches")]
    kept = {name: value for name, value in os.environ.items() if name not in ("INVOKEAI_ROOT", "INVOKEAI_VIDEO_DISABLE")}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "invokeai_video_nodes.cli", *map(str, words)]


def call(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


def leftovers(tmp_path: Path) -> list[str]:
    """What lies in the temporary folder afterwards, but for caches that libraries keep."""
    return [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("invokeai-video")]


def write_graph(path: Path, nodes: dict[str, Any], edges: list[Any] | None = None) -> Path:
    path.write_text(json.dumps({"nodes": nodes, "edges": edges or []}))
    return path


def test_a_word_where_a_number_belongs_is_refused_in_plain_words(environment: dict[str, str]) -> None:
    done = call(environment, "demo", "--frames", "many")

    assert done.returncode == 2
    assert "--frames: expected a whole number, got 'many'" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "absent.json"], "error: workflow file: expected a readable JSON file, got absent.json"),
        (["run", "{text_to_video}", "--set", "nonsense"], "error: --set: expected NODE.FIELD=VALUE, got 'nonsense'"),
        (["run", "{text_to_video}", "--model", "/no/such/model"], "error: --model: expected an existing model file or folder"),
        (["run", "{text_to_video}", "--root", "/no/such/root"], "error: --root: expected an existing InvokeAI root folder"),
        (["demo", "--frames", "15"], "error: --frames: expected 4 to 128 and divisible by f_patch_size"),
        (["demo", "--seed", "-1"], "error: --seed: expected 0 to"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_before_anything_is_loaded(
    environment: dict[str, str], words: list[str], message: str, tmp_path: Path
) -> None:
    words = [word.format(text_to_video=workflow_file("text_to_video")) for word in words]

    done = call(environment, *words, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("words", [["demo"], ["run", "text_to_video"]], ids=["demo", "run"])
def test_where_the_pack_is_switched_off_a_run_is_refused_before_anything_is_loaded(
    environment: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    switched_off = {**environment, "INVOKEAI_VIDEO_DISABLE": "1"}
    done = call(switched_off, *words, "--out", tmp_path / "out")
    told = call({**switched_off, "PYTHONPROFILEIMPORTTIME": "1"}, *words, "--out", tmp_path / "out").stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}

    refused = "error: INVOKEAI_VIDEO_DISABLE: expected not set, got 1, so InvokeAI runs as if the video models were not installed\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", refused)
    assert not (tmp_path / "out").exists()
    assert "argparse" in imported
    assert imported.isdisjoint({"torch", "invokeai"})


def test_a_shipped_workflow_is_found_by_its_name(environment: dict[str, str], tmp_path: Path) -> None:
    refusals = [call(environment, "run", name, "--root", tmp_path / "absent").stderr for name in ("text_to_video", "text_to_video.json")]

    assert all(refusal.startswith("error: --root:") for refusal in refusals), refusals


def test_a_workflow_runs_and_prints_its_video(environment: dict[str, str], tiny_folder: Path, tmp_path: Path) -> None:
    settings = ["--set", "Prompt.prompt=a red star", "--set", "denoise.num_frames=4", "--set", "denoise.steps=1"]

    done = call(environment, "run", workflow_file("text_to_video"), "--model", tiny_folder, *settings, "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    kind, _, path = line.partition(": ")
    assert kind == "video"
    assert Path(path).parent == tmp_path / "out"
    assert Path(path).read_bytes()[4:8] == b"ftyp"
    assert [item.name for item in (tmp_path / "out").iterdir()] == [Path(path).name]
    assert "InvokeAI]::" not in done.stderr
    assert leftovers(tmp_path) == []


def test_a_failing_node_gives_its_own_error_and_exit_code_1(environment: dict[str, str], tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.json", {"show": {"type": "show_image", "image": {"image_name": "gone.png"}}})

    done = call(environment, "run", graph, "--json", "--out", tmp_path / "out")

    assert done.returncode == 1
    answer = json.loads(done.stdout)["error"]
    assert (answer["kind"], answer["node_type"], answer["node_id"]) == ("node", "show_image", "show")
    assert not (tmp_path / "out").exists()
    [log] = leftovers(tmp_path)
    assert log.endswith(".log")
    assert f"log: {tmp_path / 'tmp' / log}" in done.stderr
    assert "Traceback" in (tmp_path / "tmp" / log).read_text()


def test_ctrl_c_during_the_run_ends_with_130_and_leaves_nothing(environment: dict[str, str], tiny_folder: Path, tmp_path: Path) -> None:
    settings = ["--set", "denoise.num_frames=128", "--set", "denoise.steps=1000"]
    words = ["run", workflow_file("text_to_video"), "--model", tiny_folder, *settings, "--out", tmp_path / "out"]
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that run in the background may have inherited an ignored SIGINT, and would pass it on.
    process = subprocess.Popen(command(*words), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)
    assert process.stderr is not None
    for line in process.stderr:
        if "Denoise" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_install_workflows_refuses_a_folder_that_is_no_root(environment: dict[str, str], tmp_path: Path) -> None:
    done = call(environment, "install-workflows", "--root", tmp_path)

    assert done.returncode == 2
    assert "an InvokeAI root that has been started once" in done.stderr
    assert not (tmp_path / "databases").exists()


def test_the_demo_turns_a_prompt_into_an_mp4(environment: dict[str, str], tmp_path: Path) -> None:
    toy = toy_settings()

    done = call(environment, "demo", "--frames", "8", "--seed", "1", "--scale", "4", "--json", "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    clip, enlarged = map(Path, json.loads(done.stdout)["videos"])
    assert sizes(clip) == (toy.width, toy.height)
    assert sizes(enlarged) == (4 * toy.width, 4 * toy.height)
    assert f"the clip lies in {tmp_path / 'out'}" in done.stderr
    assert leftovers(tmp_path) == []


def sizes(path: Path) -> tuple[int, int]:
    """(width, height) of a video file."""
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    size = next(reader)["source_size"]
    reader.close()
    return size


def test_web_hands_its_arguments_to_invokeai_web(environment: dict[str, str]) -> None:
    done = call(environment, "web", "--help")

    assert done.returncode == 0, done.stderr
    assert "--root" in done.stdout
    assert "Invoke" in done.stdout


def test_doctor_and_prepare_uninstall_are_reached_through_the_command(environment: dict[str, str], tmp_path: Path) -> None:
    shown = call(environment, "doctor", "--help")
    refused = call(environment, "prepare-uninstall", "--root", tmp_path)

    assert "--json" in shown.stdout
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --root: expected an InvokeAI root")
