"""System work enters its context at named call sites only; each new one is looked at here."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# file::function -> why it sees all tenants.
SYSTEM_WORK = {
    "db/upstream_schema.py::seed_defaults": "default rows belong to 'system'",
    "db/upstream_schema.py::refuse_other_upstream": "reads upstream's bookkeeping at start",
    "jobs/lease.py::claim": "a worker serves every tenant",
    "jobs/lease.py::heartbeat": "a worker serves every tenant",
    "jobs/lease.py::fenced": "a worker serves every tenant",
    "jobs/lease.py::finish": "a worker serves every tenant",
    "jobs/lease.py::revoke": "ends the attempt of an item that its owner cancels",
    "jobs/lease.py::reap": "expired leases of all tenants",
}


def system_calls(package: Path) -> set[str]:
    found = set()
    for path in sorted(package.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                _is_as_system(node) for node in ast.walk(function)
            ):
                found.add(f"{path.relative_to(package).as_posix()}::{function.name}")
    return found


def _is_as_system(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "as_system"


def test_every_system_context_is_listed_with_its_reason():
    assert system_calls(ROOT / "invokeai_saas") == set(SYSTEM_WORK)


def test_the_list_notices_a_new_call_site(tmp_path):
    (tmp_path / "new.py").write_text("def sneak():\n    with tenancy.as_system('because'):\n        pass\n")

    assert system_calls(tmp_path) == {"new.py::sneak"}
