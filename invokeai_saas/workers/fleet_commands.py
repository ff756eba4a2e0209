"""`invokeai-saas models …` and `invokeai-saas scale-advice`: the operator's side of a fleet."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.settings import Settings
from invokeai_saas.workers.registry import TIERS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = Any

OK, NOT_ALL = 0, 1
GB = 1e9


def add_commands(subparsers: Subparsers) -> None:
    """Add them; each `func` takes (arguments, settings) and returns the exit code."""
    advice = subparsers.add_parser(
        "scale-advice",
        help="how many workers each tier should have",
        description="Looks at the queue and the workers as the servers do, and prints what they would.",
    )
    advice.add_argument("--tier", choices=TIERS, help="only this one; prints the number alone without --json")
    advice.add_argument("--json", action="store_true", help="one JSON object instead")
    advice.set_defaults(func=run_scale_advice)
    models = subparsers.add_parser("models", help="models in the bucket, for workers with --models sync")
    verbs = models.add_subparsers(metavar="VERB", required=True)
    push = verbs.add_parser("push", help="bring installed models into the bucket: only what is not there yet")
    push.add_argument("models", nargs="*", metavar="KEY", help="keys or names of installed models")
    push.add_argument("--all", action="store_true", help="every installed model whose files are on this machine; reads all of them")
    push.add_argument("--missing", action="store_true", help="those of --all that the bucket does not have")
    push.set_defaults(func=run_push)
    listing = verbs.add_parser("list", help="installed models, and which of them are here and in the bucket")
    listing.add_argument("--json", action="store_true", help="one JSON object instead")
    listing.set_defaults(func=run_list)
    check = verbs.add_parser("check", help="compare this machine's files with the hashes in the bucket; exit code 1 where they differ")
    check.add_argument("models", nargs="*", metavar="KEY", help="default: all that are here and in the bucket")
    check.set_defaults(func=run_check)
    prune = verbs.add_parser("prune", help="remove from the bucket what no installed model needs, a day after it was pushed")
    prune.set_defaults(func=run_prune)


def run_scale_advice(arguments: argparse.Namespace, settings: Settings) -> int:
    """Look, remember, print."""
    from invokeai_saas.workers import scaling

    bounds = scaling.bounds_of(settings.scale_bounds)
    found = _with_database(settings, lambda database: scaling.look(database, bounds))
    shown = [each for each in found if arguments.tier in (None, each.tier)]
    if arguments.json:
        print(json.dumps({each.tier: asdict(each) for each in shown}, default=lambda value: value.isoformat(), indent=2))
    elif arguments.tier:
        print(shown[0].wanted)
    else:
        for each in shown:
            print(f"{each.tier}: {each.wanted} workers ({each.step:+d}), {each.alive} live, {each.busy} busy: {each.why}")
    return OK


def run_push(arguments: argparse.Namespace, settings: Settings) -> int:
    """One line per model."""
    from invokeai_saas.errors import BadSettings
    from invokeai_saas.workers import model_store

    if bool(arguments.models) + arguments.all + arguments.missing != 1:
        raise BadSettings("models push: expected keys or names of models, or --all, or --missing")
    folder, store = model_store.models_folder(settings), _store(settings)
    installed = _with_database(settings, model_store.records)
    if arguments.models:
        wanted = model_store.named(installed, arguments.models)
    else:
        there = model_store.pushed_keys(store) if arguments.missing else set()
        wanted = [each for each in installed if each.key not in there and (folder / each.path).exists()]
    for record in wanted:
        done = model_store.push(store, record, folder)
        print(
            f"{record.key}  {record.name}: {done.uploaded_files} of {done.files} files, {done.uploaded_bytes / GB:.2f} GB pushed",
            flush=True,
        )
    return OK


def run_list(arguments: argparse.Namespace, settings: Settings) -> int:
    """One line per installed model."""
    from invokeai_saas.workers import model_store

    folder = model_store.models_folder(settings)
    installed, pushed = _with_database(settings, model_store.records), model_store.pushed_keys(_store(settings))
    rows = [
        {"key": each.key, "name": each.name, "here": (folder / each.path).exists(), "in_bucket": each.key in pushed} for each in installed
    ]
    if arguments.json:
        print(json.dumps({"models": rows}, indent=2))
        return OK
    for row in rows:
        places = [name for name, there in (("here", row["here"]), ("in the bucket", row["in_bucket"])) if there]
        print(f"{row['key']}  {row['name']}: {', '.join(places) or 'nowhere'}")
    return OK


def run_check(arguments: argparse.Namespace, settings: Settings) -> int:
    """One line per model; NOT_ALL where bytes differ."""
    from invokeai_saas.workers import model_store
    from invokeai_saas.workers.manifest import read_folder

    folder, store, differ = model_store.models_folder(settings), _store(settings), 0
    installed = _with_database(settings, model_store.records)
    for record in model_store.named(installed, arguments.models) if arguments.models else installed:
        manifest, path = model_store.pushed_manifest(store, record.key), folder / record.path
        if manifest is None or not path.exists():
            if arguments.models:
                print(f"{record.key}  {record.name}: not {'here' if manifest else 'in the bucket'}")
                differ += 1
            continue
        same = set(manifest.files) <= set(read_folder(record.key, path).files)
        differ += not same
        print(f"{record.key}  {record.name}: {'as pushed' if same else 'OTHER BYTES than in the bucket'}", flush=True)
    return NOT_ALL if differ else OK


def run_prune(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Say what went."""
    from invokeai_saas.workers import model_store

    gone = model_store.prune(_store(settings), _with_database(settings, model_store.records))
    print(f"{len(gone)} objects removed, {sum(found.bytes for found in gone) / GB:.2f} GB")
    return OK


def _with_database(settings: Settings, work: Callable[[PostgresDatabase], Any]) -> Any:
    from invokeai_saas.db.opening import open_database

    database = open_database(settings, migrate_first=False)
    try:
        return work(database)
    finally:
        database.close()


def _store(settings: Settings) -> Any:
    from invokeai_saas.storage.opening import open_store

    store = open_store(settings)
    store.check()
    return store
