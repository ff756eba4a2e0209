"""Every SQL statement of the installed InvokeAI: what its source holds whole, and what was recorded of what it builds.

Record again after a change of InvokeAI (the test says when):
    export SAAS_RECORD_STATEMENTS=$PWD/statements.json
    python tests/saas/upstream_suite.py CHECKOUT
    python -m pytest tests/saas/test_upstream_services.py
    PYTHONPATH=.:tests python -m saas.upstream_statements statements.json
The first two run InvokeAI's own tests and ours on Postgres and note who sent what, the last writes data/upstream_statements.json.
"""

import ast
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from invokeai_saas.db.sqlite_dialect import _template, translate

SNAPSHOT = Path(__file__).with_name("data") / "upstream_statements.json"
# The database and migrator themselves, which ours stand in for.
NOT_SERVICES = ("app/services/shared/sqlite",)
# Sent to the look-alike, never to the translation.
NOT_TRANSLATED = ("BEGIN IMMEDIATE",)


def installed_source() -> Path:
    """InvokeAI's folder, found without importing it."""
    spec = importlib.util.find_spec("invokeai")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def senders(root: Path) -> Iterator[tuple[str, ast.AST, list[ast.expr]]]:
    """(`path::Class.function`, the function, the SQL arguments of its execute calls)."""
    for path in sorted((root / "app").rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if relative.startswith(NOT_SERVICES):
            continue
        for name, function in _functions(ast.parse(path.read_text(encoding="utf-8")), ""):
            arguments = [call.args[0] for call in ast.walk(function) if _is_execute(call)]
            if arguments:
                yield f"{relative}::{name}", function, arguments


def whole_statements(root: Path) -> set[str]:
    """SQL that stands in the source as one literal."""
    literals = (a.value for _, _, arguments in senders(root) for a in arguments if isinstance(a, ast.Constant))
    return {text for text in literals if isinstance(text, str) and text not in NOT_TRANSLATED}


def building_functions(root: Path) -> dict[str, str]:
    """Functions that build SQL, and a fingerprint of each: when it changes, what was recorded of it is no longer all."""
    found = {}
    for name, function, arguments in senders(root):
        if not all(isinstance(argument, ast.Constant) for argument in arguments):
            found[name] = hashlib.sha256(_text(function).encode()).hexdigest()[:16]
    return found


def record(recorded: dict[str, list[str]]) -> None:
    """Write the snapshot from what upstream_suite.py noted."""
    root = installed_source()
    templates = {_template(sql)[0] for sql in [*recorded, *whole_statements(root)] if sql not in NOT_TRANSLATED}
    building = building_functions(root)
    heard = {caller for callers in recorded.values() for caller in callers}
    snapshot = {
        "how": "written by tests/saas/upstream_statements.py; its head says how to record again",
        "functions": building,
        "not_heard": sorted(set(building) - heard),
        "statements": {_source(template): translate(_source(template)).sql for template in sorted(templates)},
    }
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(json.dumps(snapshot, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read() -> dict[str, dict[str, str]]:
    """The snapshot."""
    snapshot: dict[str, dict[str, str]] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return snapshot


def _source(template: str) -> str:
    """A template as SQLite's SQL again, on one line."""
    return " ".join(re.sub(r":p\d+", "?", re.sub(r":many\d+", "?, ?", template)).split())


def _text(function: ast.AST) -> str:
    """The same on every Python that we support: 3.12 writes a field that 3.11 does not have."""
    return ast.dump(function).replace(", type_params=[]", "")


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


def _is_execute(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr in {"execute", "executemany"} and bool(node.args)


if __name__ == "__main__":
    record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(f"recorded {SNAPSHOT}")
