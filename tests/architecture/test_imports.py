"""The import rules of the house, read from the source without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES = ROOT / "invokeai_video_nodes"
PATCHES = ROOT / "patches" / "invokeai_video_patches"
# Patch modules that the hooks import after InvokeAI's own; the others must work in an interpreter without InvokeAI.
RUN_INSIDE_HOOKS = {
    "model_configs.py",
    "configs_hunyuan_video.py",
    "model_loaders.py",
    "loader_parts.py",
    "loaders_hunyuan_video.py",
    "starter_models.py",
    "late_rebuild.py",
    "web_ui.py",
    "config_parts.py",
    "configs_animatediff.py",
    "configs_svd.py",
    "loaders_animatediff.py",
    "loaders_svd.py",
}


def imports(path: Path, *, only_at_import: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports; `only_at_import` leaves out those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _outside_functions(tree) if only_at_import else ast.walk(tree)
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = list(package[: len(package) - node.level]) if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _outside_functions(child)


def of_package(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def offenders(files: list[Path], forbidden: tuple[str, ...], *, only_at_import: bool = False) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path, only_at_import=only_at_import)
        if any(of_package(name, package) for package in forbidden)
    ]


def test_the_core_imports_neither_invokeai_nor_the_nodes_nor_the_saas():
    files = sorted((NODES / "pipelines").rglob("*.py"))

    assert files
    assert offenders(files, ("invokeai", "invokeai_saas", "invokeai_video_patches", "invokeai_video_nodes.nodes")) == []


def test_nothing_of_ours_imports_the_saas():
    files = [*sorted(NODES.rglob("*.py")), *sorted(PATCHES.rglob("*.py"))]

    assert offenders(files, ("invokeai_saas",)) == []


def test_patches_import_invokeai_only_inside_hooks():
    files = [path for path in sorted(PATCHES.glob("*.py")) if path.name not in RUN_INSIDE_HOOKS]

    assert {path.name for path in files} >= {"bootstrap.py", "hooks.py", "taxonomy.py", "status.py"}
    assert offenders(files, ("invokeai",), only_at_import=True) == []


def test_the_bootstrap_imports_the_standard_library_only_and_little_of_it():
    names = set(imports(PATCHES / "bootstrap.py", only_at_import=True))

    assert names == {"os", "sys"}


def test_the_package_itself_imports_without_invokeai():
    files = [NODES / "__init__.py", NODES / "cli.py"]

    assert offenders(files, ("invokeai", "torch", "diffusers"), only_at_import=True) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from invokeai.app import x", True),
        ("def f():\n    import invokeai", True),
        ("from ..nodes import vae", True),
        ("import invokeai_video_nodes.pipelines.shapes", False),
    ],
)
def test_the_import_rule_bites(tmp_path, monkeypatch, source, expected):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "invokeai_video_nodes" / "pipelines" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)

    found = offenders([path], ("invokeai", "invokeai_video_nodes.nodes"))

    assert bool(found) is expected
