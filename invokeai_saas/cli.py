"""`invokeai-saas`: the command line. Each domain adds its commands; here arguments are read and errors become exit codes.

Exit codes: 0 done, 1 failed, 2 the input or a setting was wrong, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from invokeai_saas.settings import Settings

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the console script; returns the exit code."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        # The pack alone brings the command and not what it needs.
        print(f"error: {error.name} is not installed: pip install 'invokeai-video[saas]'", file=sys.stderr)
        return FAILED


def _run(argv: Sequence[str] | None) -> int:
    from invokeai_saas.errors import BadSettings, SaasError
    from invokeai_saas.settings import load_settings

    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "func"):
        parser.print_help()
        return OK
    try:
        return int(arguments.func(arguments, load_settings()))
    except SaasError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, BadSettings) else FAILED
    except EOFError:
        print("error: expected an answer typed on a terminal, got none", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # Whoever read has seen enough; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    from invokeai_saas.accounts import commands as accounts
    from invokeai_saas.billing import commands as billing
    from invokeai_saas.credits import commands as credits
    from invokeai_saas.db import commands as database
    from invokeai_saas.importing import commands as importing
    from invokeai_saas.operating import commands as operating
    from invokeai_saas.workers import commands as workers
    from invokeai_saas.workers import fleet_commands as fleet

    parser = argparse.ArgumentParser(prog="invokeai-saas", description="InvokeAI with video models, for many users.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    start = commands.add_parser("serve", help="start the server", description="Start the server; settings come from the environment.")
    start.add_argument("--no-worker", action="store_true", help="run no queue items here; `invokeai-saas worker` runs them elsewhere")
    start.set_defaults(func=_serve)
    for domain in (database, importing, accounts, billing, credits, operating, workers, fleet):
        domain.add_commands(commands)
    return parser


def _serve(arguments: argparse.Namespace, settings: "Settings") -> int:
    from invokeai_saas.app import serve
    from invokeai_saas.operating.shutdown import exit_now

    # Some of InvokeAI's threads never end by themselves; all of ours are closed.
    exit_now(serve(settings, worker=not arguments.no_worker))
    return OK


if __name__ == "__main__":
    sys.exit(main())
