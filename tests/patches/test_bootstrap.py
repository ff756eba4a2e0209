"""The import hooks in fresh interpreters, against a small host package that has InvokeAI's module names.

What the hooks do to the real InvokeAI is asked in `test_in_invokeai.py`; here it is about when they run and when they do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PTH = REPOSITORY / "patches" / "invokeai_video_startup.pth"
TAXONOMY = """
from enum import Enum

class BaseModelType(str, Enum):
    Any = "any"

class ModelType(str, Enum):
    Main = "main"

class SubModelType(str, Enum):
    VAE = "vae"

class ModelFormat(str, Enum):
    Diffusers = "diffusers"
"""
LOAD_CUSTOM_NODES = """
def load_custom_nodes(custom_nodes_path, logger):
    print("stock loading of", custom_nodes_path)
"""
REPORT = """
import json
from invokeai.backend.model_manager import taxonomy
print(json.dumps([member.value for member in taxonomy.BaseModelType]))
"""


class Host:
    """A folder with a host package and our `.pth`, read at interpreter start as site-packages is."""

    def __init__(self, folder: Path, version: str = "6.14.2") -> None:
        self.folder = folder
        self.write("invokeai/backend/model_manager/taxonomy.py", TAXONOMY)
        self.write("invokeai/app/invocations/load_custom_nodes.py", LOAD_CUSTOM_NODES)
        self.write(f"invokeai-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: invokeai\nVersion: {version}\n")
        (folder / PTH.name).write_text(PTH.read_text())

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.parents:
            if parent == self.folder or parent.name.endswith(".dist-info"):
                break
            (parent / "__init__.py").touch()

    def run(self, code: str, *, paths: tuple[Path, ...] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Start an interpreter without site-packages, add the host folder as a site folder, and run `code`."""
        paths = (REPOSITORY / "patches", REPOSITORY) if paths is None else paths
        start = f"import sys, site; sys.path[:0] = {[str(path) for path in paths]!r}; site.addsitedir({str(self.folder)!r})\n"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("INVOKEAI", "PYTHON"))}
        command = [sys.executable, "-S", "-c", start + textwrap.dedent(code)]
        return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_the_startup_file_alone_brings_in_the_members(host):
    result = host.run(REPORT)

    assert json.loads(result.stdout) == ["any", "z-image-video", "hunyuan-video", "svd"]
    assert result.stderr == ""


def test_the_startup_file_imports_two_small_modules_and_nothing_else(host):
    result = host.run("""
        after = {name for name in sys.modules if name.startswith(("invokeai", "logging", "importlib.metadata", "torch"))}
        print(sorted(after), type(sys.meta_path[0]).__name__)
    """)

    assert result.stdout.strip() == "['invokeai_video_patches', 'invokeai_video_patches.bootstrap'] HookFinder"


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_the_kill_switch_leaves_stock_and_installs_no_hook(host, value):
    count = "print(sum(type(finder).__name__ == 'HookFinder' for finder in sys.meta_path))"

    result = host.run(REPORT + count, INVOKEAI_VIDEO_DISABLE=value)

    assert result.stdout.splitlines() == ['["any"]', "0"]
    assert result.stderr == ""


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_the_kill_switch_is_off_for_what_means_no(host, value):
    assert "z-image-video" in host.run(REPORT, INVOKEAI_VIDEO_DISABLE=value).stdout


@pytest.mark.parametrize("version", ["6.14.1", "6.15.0", "6.15.0rc1", "7.0.0", "5.9.1"])
def test_an_unknown_version_leaves_stock_with_one_line(tmp_path, version):
    host = Host(tmp_path, version)

    result = host.run(REPORT + "from invokeai.app.invocations import load_custom_nodes")

    assert json.loads(result.stdout) == ["any"]
    assert result.stderr.splitlines() == [
        "invokeai-video: InvokeAI version: falling back to stock InvokeAI: "
        f"expected 6.14.2 or a later 6.14, got {version}"
    ]


@pytest.mark.parametrize("version", ["6.14.2", "6.14.3", "6.14.12", "6.14.3rc1"])
def test_later_6_14_versions_are_patched(tmp_path, version):
    assert "z-image-video" in Host(tmp_path, version).run(REPORT).stdout


def test_a_half_removed_pack_starts_every_interpreter_silently(host):
    result = host.run("print('started')", paths=())

    assert (result.stdout, result.stderr, result.returncode) == ("started\n", "", 0)


def test_a_damaged_pack_starts_every_interpreter_silently(host, tmp_path):
    damaged = tmp_path / "damaged"
    (damaged / "invokeai_video_patches").mkdir(parents=True)
    (damaged / "invokeai_video_patches" / "__init__.py").write_text("")
    (damaged / "invokeai_video_patches" / "bootstrap.py").write_text("def install(:\n")

    result = host.run(REPORT, paths=(damaged,))

    assert (json.loads(result.stdout), result.stderr) == (["any"], "")


def test_a_hooked_module_keeps_its_own_loader_and_source(host):
    result = host.run("""
        import inspect
        from invokeai.backend.model_manager import taxonomy
        print(type(taxonomy.__spec__.loader).__name__, taxonomy.__loader__ is taxonomy.__spec__.loader)
        print("class ModelType" in inspect.getsource(taxonomy))
    """)

    assert result.stdout.splitlines() == ["SourceFileLoader True", "True"]


def test_a_host_that_changed_falls_back_with_one_line_and_no_traceback(host):
    host.write("invokeai/backend/model_manager/taxonomy.py", TAXONOMY.replace("class ModelType", "class KindOfModel"))

    result = host.run("from invokeai.backend.model_manager import taxonomy; print('imported')")

    assert result.stdout == "imported\n"
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("invokeai-video: model types: falling back to stock InvokeAI: AttributeError")


def test_our_own_failure_inside_a_hook_is_one_line(host, tmp_path):
    patches = tmp_path / "patches"
    (patches / "invokeai_video_patches").mkdir(parents=True)
    for name in ("__init__.py", "bootstrap.py"):
        (patches / "invokeai_video_patches" / name).write_text((REPOSITORY / "patches/invokeai_video_patches" / name).read_text())

    result = host.run(REPORT, paths=(patches,))

    assert json.loads(result.stdout) == ["any"]
    assert len(result.stderr.splitlines()) == 1
    assert "invokeai.backend.model_manager.taxonomy stays as it is" in result.stderr


def test_the_host_s_own_error_passes_through_unchanged(host):
    host.write("invokeai/backend/model_manager/taxonomy.py", "raise RuntimeError('the host is broken')")

    result = host.run(REPORT)

    assert result.stderr.splitlines()[-1] == "RuntimeError: the host is broken"
    assert "invokeai-video" not in result.stderr


def test_installing_twice_leaves_one_finder(host):
    result = host.run("""
        from invokeai_video_patches import bootstrap
        bootstrap.install()
        bootstrap.install()
        print(sum(isinstance(finder, bootstrap.HookFinder) for finder in sys.meta_path))
    """)

    assert result.stdout == "1\n"


def test_failing_nodes_leave_the_host_s_own_loading_and_one_line(host, tmp_path):
    broken = tmp_path / "broken"
    (broken / "invokeai_video_nodes").mkdir(parents=True)
    (broken / "invokeai_video_nodes" / "__init__.py").write_text("raise ImportError('no nodes today')")

    result = host.run(
        """
        from invokeai.app.invocations.load_custom_nodes import load_custom_nodes
        load_custom_nodes("nodes", None)
        """,
        paths=(REPOSITORY / "patches", broken),
    )

    assert result.stdout == "stock loading of nodes\n"
    assert result.stderr == "invokeai-video: nodes: falling back to stock InvokeAI: ImportError: no nodes today\n"


def test_nodes_are_registered_after_the_host_has_loaded_its_packs(host, tmp_path):
    ours = tmp_path / "ours"
    (ours / "invokeai_video_nodes").mkdir(parents=True)
    (ours / "invokeai_video_nodes" / "__init__.py").write_text("def register(pack=None): print('ours registered')")

    result = host.run(
        """
        from invokeai_video_patches import node_registration
        from invokeai.app.invocations import load_custom_nodes as module
        node_registration.patch(module)
        module.load_custom_nodes("nodes", None)
        """,
        paths=(REPOSITORY / "patches", ours),
    )

    assert result.stdout.splitlines() == ["stock loading of nodes", "ours registered"]
