"""Commands of the operator: `doctor`, `bucket-policy`. Each function takes (arguments, settings) and returns the exit code."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from invokeai_saas.settings import Settings
from invokeai_saas.storage.bucket_policy import bucket_policy

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = Any


def add_commands(subparsers: Subparsers) -> None:
    """Add them to the command line."""
    doctor = subparsers.add_parser(
        "doctor", help="look at everything that the service needs", description="One line per check; exit code 1 when one is an error."
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object instead")
    doctor.set_defaults(func=run_doctor)
    policy = subparsers.add_parser(
        "bucket-policy",
        help="print the life cycle and CORS rules that the bucket should have",
        description="Prints what put-bucket-lifecycle-configuration and put-bucket-cors take. Nothing is applied.",
    )
    policy.add_argument("--origin", action="append", metavar="URL", help="a page that plays videos; default: the settings' own")
    policy.set_defaults(func=run_bucket_policy)


def run_doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    """0 when nothing is an error."""
    from invokeai_saas.operating.doctor import ERROR, examine

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not arguments.json:
            print(finding.line(), flush=True)
    if arguments.json:
        print(json.dumps([finding.as_json() for finding in findings], indent=2))
    return 1 if any(finding.level == ERROR for finding in findings) else 0


def run_bucket_policy(arguments: argparse.Namespace, settings: Settings) -> int:
    """0; 2 for an origin that is none."""
    origins = arguments.origin or [settings.public_url, *settings.cors_origins]
    try:
        print(json.dumps(bucket_policy(origins), indent=2))
    except ValueError as error:
        print(f"error: --origin: {error}")
        return 2
    return 0
