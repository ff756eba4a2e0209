"""`invokeai-saas billing reconcile|inbox|retry|upkeep|give-plan`: what an operator does when money is stuck, or came another way."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from invokeai_saas.settings import Settings

if TYPE_CHECKING:
    from invokeai_saas.billing.model import Billing

MOST_DAYS_BACK = 365
STATES = ("waiting", "failed", "ignored", "done")


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `billing`; each command's `func` takes (args, settings) and returns the exit code."""
    parser = subparsers.add_parser("billing", help="Stripe: what came, what is stuck, what was missed")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "reconcile", "bring in what webhooks did not bring", reconcile)(
        ("--days", {"type": _days, "help": "1 to 365: look this far back instead of since the last time; Stripe remembers 30 days"}),
        ("--all", {"action": "store_true", "help": "ask about every customer one by one, also of what is older"}),
    )
    _add(commands, "inbox", "show events that wait or failed", inbox)(
        ("--state", {"choices": STATES, "action": "append", "help": "only these; default waiting and failed"}),
        ("--limit", {"type": int, "default": 50, "help": "at most so many, newest first"}),
    )
    _add(commands, "retry", "process an event again, or all that failed", retry)(
        ("event", {"nargs": "?", "help": "its id; without: every failed one"}),
    )
    _add(commands, "give-plan", "put an account on a plan without Stripe: a contract, an imported user", give_plan)(
        ("email", {"help": "whose"}),
        ("plan", {"help": "its slug: starter, pro, studio, enterprise, …"}),
        ("--days", {"type": int, "required": True, "help": "for how long"}),
        ("--credits", {"type": int, "required": True, "help": "for that time; 0 for none"}),
        ("--reason", {"required": True, "help": "for the audit log"}),
    )
    _add(commands, "upkeep", "end trials, tell who is suspended, close deleted customers, now", upkeep)()


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help: str, func: Callable[..., int]
) -> Callable[..., None]:
    parser = commands.add_parser(name, help=help)
    parser.set_defaults(func=func)

    def options(*wanted: tuple[str, dict[str, object]]) -> None:
        for option, settings in wanted:
            parser.add_argument(option, **settings)  # type: ignore[arg-type]

    return options


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 1 <= days <= MOST_DAYS_BACK:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_DAYS_BACK} days, got {text}")
    return days


def reconcile(args: argparse.Namespace, settings: Settings) -> int:
    """Exit code 1 when a customer could not be asked about."""
    from invokeai_saas.billing import reconcile as reconciling

    since = None if args.days is None else datetime.now(UTC) - timedelta(days=args.days)
    with _opened(settings) as billing:
        done = reconciling.reconcile(billing, since=since, everybody=args.all)
    print(f"{done.events} events at Stripe, {done.new} of them new here; {done.customers} customers asked about, {done.failed} failed")
    return 1 if done.failed else 0


def inbox(args: argparse.Namespace, settings: Settings) -> int:
    """One line per event, and how many there are of each state."""
    from invokeai_saas.billing import inbox as events

    with _opened(settings) as billing:
        for row in events.listed(billing, args.state or ("waiting", "failed"), limit=args.limit):
            when = f"{row['received_at']:%Y-%m-%d %H:%M:%S}"
            tried = f"{row['state']} after {row['attempts']} tries"
            print(f"{when}  {row['event_id']}  {row['type']}  {row['customer']}  {tried}  {row['error'] or ''}")
        counts = events.counts(billing)
    print(", ".join(f"{number} {state}" for state, (number, _) in sorted(counts.items())) or "the inbox is empty")
    return 1 if "failed" in counts else 0


def retry(args: argparse.Namespace, settings: Settings) -> int:
    """Exit code 1 when there was nothing to retry, or something still waits."""
    from invokeai_saas.billing import inbox as events
    from invokeai_saas.billing import process

    with _opened(settings) as billing:
        number = events.retry(billing, args.event)
        process.process_waiting(billing, at_most=100_000)
        left = events.listed(billing, ("waiting", "failed"), limit=20)
    print(f"{number} events tried again, {len(left)} still waiting or failed")
    for row in left:
        print(f"  {row['event_id']}  {row['type']}: {row['error'] or 'not tried yet'}")
    return 0 if number and not left else 1


def give_plan(args: argparse.Namespace, settings: Settings) -> int:
    """The plan that was given before ends and its credits stay; what is paid for at Stripe is refused."""
    from invokeai_saas.billing import by_hand

    with _opened(settings) as billing:
        given = by_hand.give(
            billing.accounts, email=args.email, slug=args.plan, days=args.days, amount=args.credits, reason=args.reason
        )
    print(f"{args.email} is on {args.plan} until {given['current_period_end']:%Y-%m-%d}, with {args.credits:,} credits more")
    return 0


def upkeep(args: argparse.Namespace, settings: Settings) -> int:
    """What the server does every hour."""
    from invokeai_saas.billing import upkeep as keeping

    with _opened(settings) as billing:
        for name, number in keeping.run(billing).items():
            print(f"{name.replace('_', ' ')}: {number}")
    return 0


@contextmanager
def _opened(settings: Settings) -> Iterator["Billing"]:
    from invokeai_saas.accounts.setup import accounts_of
    from invokeai_saas.billing.setup import billing_of
    from invokeai_saas.db.opening import open_database

    database = open_database(settings, migrate_first=False)
    try:
        yield billing_of(settings, accounts_of(settings, database))
    finally:
        database.close()
