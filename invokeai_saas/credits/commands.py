"""`invokeai-saas credits reconcile`: exit code 0 where the books agree, 1 where they do not, and what does not."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from invokeai_saas.settings import Settings

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = Any

AGREES, DRIFTED = 0, 1


def add_commands(subparsers: Subparsers) -> None:
    """Add `credits`; its `func` takes (arguments, settings) and returns the exit code."""
    credits = subparsers.add_parser("credits", help="look after the books of credits")
    verbs = credits.add_subparsers(metavar="VERB", required=True)
    reconcile = verbs.add_parser(
        "reconcile",
        help="compare grants, holds and ledger",
        description="One line per disagreement; exit code 1 when there is one. Changes nothing.",
    )
    reconcile.add_argument("--json", action="store_true", help="one JSON object instead")
    reconcile.set_defaults(func=run_reconcile)


def run_reconcile(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print the sums and whatever does not agree."""
    from invokeai_saas.credits.reconcile import reconcile
    from invokeai_saas.db.opening import open_database

    database = open_database(settings, migrate_first=False)
    try:
        report = reconcile(database)
    finally:
        database.close()
    if arguments.json:
        print(json.dumps({"totals": report.totals, "problems": [asdict(problem) for problem in report.problems]}))
    else:
        for problem in report.problems:
            print(problem)
        print(", ".join(f"{name} {value}" for name, value in report.totals.items()))
        print(f"{len(report.problems)} disagreements" if report.problems else "the books agree")
    return DRIFTED if report.problems else AGREES
