"""`invokeai-saas worker`: runs the queue's items on this machine's GPUs, for the server of DATABASE_URL."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from invokeai_saas.settings import Settings


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Into the main parser's commands."""
    worker = commands.add_parser(
        "worker",
        help="run queue items on this machine's GPUs",
        description="Run queue items: one process for each device. Settings come from the environment, as for the server.",
    )
    worker.add_argument("--tier", action="append", default=[], metavar="TIER", help="basic, high_performance or dedicated; may be repeated")
    worker.add_argument("--devices", default="", metavar="LIST", help="such as cuda:0,cuda:1; default: every NVIDIA card")
    worker.add_argument("--name", help="stays over restarts; default: host and process number")
    worker.add_argument(
        "--models",
        choices=("shared", "sync", "local"),
        default="shared",
        help="a folder that all machines share, files fetched from the bucket when they are needed, or what lies on this machine",
    )
    worker.set_defaults(func=_worker)


def _worker(arguments: argparse.Namespace, settings: "Settings") -> int:
    from invokeai_saas.operating import logs
    from invokeai_saas.workers.supervisor import Options, serve_worker

    logs.configure(settings)
    logs.log_crashes()
    devices = tuple(word.strip() for word in arguments.devices.split(",") if word.strip())
    return serve_worker(settings, Options(tiers=tuple(arguments.tier), devices=devices, name=arguments.name, models=arguments.models))
