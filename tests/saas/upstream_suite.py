"""InvokeAI's own tests on our Postgres: `python tests/saas/upstream_suite.py CHECKOUT [pytest arguments]`.

CHECKOUT is a source tree of InvokeAI (its tests/ folder is enough). Its tests run with every database replaced by a clone of our
migrated template and the session queue by ours, in system context and without our house policies; `--sqlite` runs them as they are, to
compare. Tests that differ are listed with their reason in upstream_known_differences.txt; anything else that fails here and passes on
SQLite is a failure, and so is a row of the list whose test passes or is gone. Needs what InvokeAI's own tests need: pytest-datadir,
pytest-asyncio, requests_testadapter.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KNOWN = Path(__file__).with_name("upstream_known_differences.txt")
_S = "tests/app/services"
# What touches records: services, routers, sockets. Downloads, model identification and the SQLite migrator itself do not.
SERVICES = [
    *(
        f"{_S}/{name}"
        for name in ("auth", "boards", "bulk_download", "gallery", "image_files", "image_moves", "image_records", "images")
    ),
    *(
        f"{_S}/{name}"
        for name in ("model_records", "orphaned_models", "session_processor", "session_queue", "users", "video_records")
    ),
    *(
        f"{_S}/{name}"
        for name in ("videos", "workflow_records", "model_install/test_orphan_scan.py", "test_image_move_startup_safety.py")
    ),
    *(
        f"{_S}/{name}"
        for name in ("test_sql_injection_protection.py", "test_system_prompt_records.py", "test_workflow_call_batch.py")
    ),
    *(f"{_S}/{name}" for name in ("test_workflow_call_batch_runtime.py", "test_workflow_call_runtime.py")),
    "tests/test_session_queue.py",
]
ROUTERS = [
    "tests/app/routers",
    "tests/app/api",
    "tests/app/test_socket_privilege_revocation.py",
    "tests/app/test_workflow_socketio.py",
]


def main() -> int:
    """Run one side, print the figures, compare with the list (ours) or just report (SQLite)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--sqlite", action="store_true", help="run on SQLite, for comparison")
    parser.add_argument("--upstream-queue", action="store_true", help="with upstream's session queue on our database in place of ours")
    parser.add_argument("--sqlite-report", type=Path, help="junit file of a run with --sqlite: its failures are not ours")
    parser.add_argument("--junit", type=Path, help="where to write the junit file")
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        junit = arguments.junit or Path(folder) / "junit.xml"
        if not arguments.upstream_queue:
            os.environ["SAAS_SUITE_QUEUE"] = "ours"
        run_suite(arguments.checkout.resolve(), sqlite=arguments.sqlite, junit=junit.resolve(), selection=rest)
        outcomes = read_outcomes(junit)
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
    print(f"{'SQLite' if arguments.sqlite else 'Postgres'}: {counts}")
    if arguments.sqlite:
        return 0
    fails_there = failures(read_outcomes(arguments.sqlite_report)) if arguments.sqlite_report else set()
    known = read_known()
    new = sorted(failures(outcomes) - fails_there - set(known))
    # A selection of tests says nothing about the others.
    healed = sorted(name for name in known if outcomes.get(name, "" if rest else "gone") in {"passed", "gone"})
    print(f"fail on SQLite too: {len(failures(outcomes) & fails_there)}; known differences: {len(failures(outcomes) & set(known))}")
    print("\n".join([*(f"NEW FAILURE {name}" for name in new), *(f"PASSES OR IS GONE, take it off the list: {name}" for name in healed)]))
    return 1 if new or healed else 0


def run_suite(checkout: Path, *, sqlite: bool, junit: Path, selection: list[str]) -> None:
    """Run pytest in the checkout; the outcome is in `junit`."""
    with tempfile.TemporaryDirectory() as root:
        paths = [str(checkout), str(ROOT), str(ROOT / "tests" / "saas"), str(ROOT / "tests" / "saas" / "plugins")]
        paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "INVOKEAI_ROOT": root, "OMP_NUM_THREADS": "1"}
        plugins = ["-p", "cheap_passwords", *([] if sqlite else ["-p", "invokeai_on_postgres"])]
        chosen = selection or [path for path in SERVICES + ROUTERS if (checkout / path).exists()]
        command = [sys.executable, "-m", "pytest", "-q", *plugins, "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]
        command += ["--timeout", "180", "--tb=short", f"--junitxml={junit}", *chosen]
        subprocess.run(command, cwd=checkout, env=environment, check=False)


def read_outcomes(junit: Path) -> dict[str, str]:
    """`module::test` -> passed, failed (errors too) or skipped."""
    outcomes = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def failures(outcomes: dict[str, str]) -> set[str]:
    """Names of the tests that failed."""
    return {name for name, outcome in outcomes.items() if outcome == "failed"}


def read_known() -> dict[str, str]:
    """Test -> reason, from the list; a reason is the last comment line above the test."""
    known, reason = {}, ""
    for line in KNOWN.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            reason = line.lstrip("# ")
        elif line.strip():
            known[line.strip()] = reason
    return known


if __name__ == "__main__":
    sys.exit(main())
