"""Sizes, files and words that the house rules limit."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows or would add, without ignored ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(ROOT / name for name in set(names) if (ROOT / name).is_file())


def long_functions(source: str) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append((node.name, lines))
    return found


def is_workflow(text: str) -> bool:
    """True for what InvokeAI's node manager would import as a workflow of a node pack."""
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and "nodes" in content and "edges" in content


def test_no_function_is_longer_than_80_lines():
    found = [(path.relative_to(ROOT).as_posix(), *hit) for path in tracked("*.py") for hit in long_functions(path.read_text())]

    assert found == []


def test_no_file_is_longer_than_400_lines():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in tracked("*.py")}

    assert {name: lines for name, lines in lengths.items() if lines >= MAX_FILE_LINES} == {}


def test_json_with_nodes_and_edges_lies_in_workflows_only():
    found = [path.relative_to(ROOT).as_posix() for path in tracked("*.json") if is_workflow(path.read_text(encoding="utf-8"))]

    assert [name for name in found if not name.startswith("workflows/")] == []


def test_the_lock_holds_names_versions_and_hashes_but_no_addresses():
    text = (ROOT / "requirements.lock").read_text()

    assert re.search(r"https?://|--index-url|--extra-index-url|--find-links|file:", text) is None
    assert re.search(r"^invokeai==6\.14\.\d+ ", text, re.MULTILINE)
    unhashed = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if "==" in line and "--hash=sha256:" not in line]
    assert unhashed == []


def test_the_lock_serves_both_python_versions():
    """Every requirement of pyproject is pinned, and nothing in the lock is for one Python version alone by mistake."""
    text = (ROOT / "requirements.lock").read_text()

    for name in ("starlette", "imageio-ffmpeg", "pytest", "pytest-xdist", "playwright", "ruff", "mypy", "hatchling"):
        assert re.search(rf"^{name}==\S+ ", text, re.MULTILINE), name


def test_no_line_of_code_is_left_to_do():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [path.relative_to(ROOT).as_posix() for path in tracked("*.py") if path != Path(__file__) and words.search(path.read_text())]

    assert found == []


@pytest.mark.parametrize(("lines", "bites"), [(MAX_FUNCTION_LINES, False), (MAX_FUNCTION_LINES + 1, True)])
def test_the_function_length_rule_bites(lines, bites):
    source = "def f():\n" + "    pass\n" * (lines - 1)

    assert bool(long_functions(source)) is bites


def test_the_workflow_rule_bites():
    assert is_workflow('{"nodes": [], "edges": []}')
    assert not is_workflow('{"graph": {"nodes": {}, "edges": []}}')
