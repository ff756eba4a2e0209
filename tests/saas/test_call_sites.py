"""System work enters its context at named call sites only; each new one is looked at here."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# file::function -> why it sees all tenants.
SYSTEM_WORK = {
    "app.py::_lifespan": "InvokeAI's start and stop are nobody's request",
    "app.py::lifespan": "InvokeAI's start and stop are nobody's request",
    "swaps/shared_records.py::_as_system": "models are one installation for all",
    "swaps/shared_records.py::shared": "models are one installation for all",
    "swaps/sockets.py::_revalidate_socket_users": "looks whether the logins of open sockets still stand",
    "db/upstream_schema.py::seed_defaults": "default rows belong to 'system'",
    "db/upstream_schema.py::refuse_other_upstream": "reads upstream's bookkeeping at start",
    "accounts/admin.py::change": "an admin changes somebody's account",
    "accounts/admin.py::create": "an admin makes somebody's account",
    "accounts/admin.py::delete": "an admin deletes somebody's account",
    "accounts/admin.py::detail": "an admin looks at somebody's account",
    "accounts/admin.py::ensure_admin": "makes the first admin",
    "accounts/admin.py::list_users": "an admin lists all accounts",
    "accounts/audit.py::read": "an admin reads what all admins did",
    "accounts/erase.py::delete_me": "one's own deletion writes users and tokens, which tenants do not",
    "accounts/erase.py::end_access": "billing's end of a subscription",
    "accounts/erase.py::erase_due": "ended accounts of all users",
    "accounts/erase.py::resume_access": "billing's begin of a subscription",
    "accounts/erase.py::send_notices": "notices to all users whose data goes soon",
    "accounts/federation.py::account_of": "looks for the account of a provider's subject",
    "accounts/identify.py::_from_access_token": "looks for the account of a token",
    "accounts/keys.py::owner_of": "looks for the account of a key",
    "accounts/mail.py::_finish": "the outbox holds everybody's letters",
    "accounts/mail.py::_lease": "the outbox holds everybody's letters",
    "accounts/operator.py::add": "whoever has the machine makes accounts",
    "accounts/operator.py::delete": "whoever has the machine deletes accounts",
    "accounts/operator.py::everybody": "whoever has the machine lists accounts",
    "accounts/operator.py::give_role": "whoever has the machine gives roles",
    "accounts/operator.py::invite": "whoever has the machine makes accounts",
    "accounts/operator.py::rename": "whoever has the machine names accounts",
    "accounts/operator.py::new_password": "whoever has the machine helps who lost a password",
    "accounts/operator.py::verify": "whoever has the machine verifies addresses",
    "accounts/operator.py::set_active": "whoever has the machine opens and closes accounts",
    "accounts/rate_limits.py::_count": "counters of strangers",
    "accounts/rate_limits.py::_one": "counters of strangers",
    "accounts/service.py::_enter": "a login, before anybody is anybody",
    "accounts/service.py::change_me": "tenants read users and do not write them",
    "accounts/service.py::change_password": "tenants read users and do not write them",
    "accounts/service.py::forgot_password": "looks for the account of an address",
    "accounts/service.py::login": "looks for the account of an address",
    "accounts/service.py::logout": "tenants do not write logins",
    "accounts/service.py::logout_everywhere": "tenants do not write logins",
    "accounts/service.py::reset_password": "looks for the account of a letter's link",
    "accounts/service.py::signup": "makes accounts",
    "accounts/service.py::verify_email": "looks for the account of a letter's link",
    "accounts/store.py::kept_signing_secret": "the signing secret is nobody's",
    "accounts/tokens.py::forget_expired": "expired tokens of all users",
    "accounts/tokens.py::refresh": "looks for the account of a refresh token",
    "credits/adjust.py::adjust": "an admin changes somebody's credits",
    "credits/events.py::_read": "holds and settlements of all users are told, each to its user",
    "credits/statistics.py::_page": "an admin exports the books",
    "credits/reconcile.py::reconcile": "the books of all users",
    "credits/upkeep.py::expire_due": "the books of all users",
    "credits/upkeep.py::release_orphans": "the books of all users",
    "credits/upkeep.py::note_late_seconds": "the books of all users",
    "billing/by_hand.py::give": "whoever has the machine gives a plan",
    "billing/customers.py::_about": "a Stripe customer is made from an account",
    "billing/customers.py::ensure": "Stripe's ids are not the tenants' to write",
    "billing/customers.py::known": "Stripe's ids are not the tenants' to read",
    "billing/inbox.py::counts": "an operator looks into the inbox",
    "billing/inbox.py::forget": "the inbox is everybody's",
    "billing/inbox.py::listed": "an operator looks into the inbox",
    "billing/inbox.py::next_unresolved": "the inbox is everybody's",
    "billing/inbox.py::record": "Stripe's events, for whomever",
    "billing/inbox.py::resolve": "the inbox is everybody's",
    "billing/inbox.py::retry": "an operator retries events",
    "billing/inbox.py::take": "the inbox is everybody's",
    "billing/process.py::_apply": "subscriptions, payments and grants are not the tenants' to write",
    "billing/process.py::_give_up": "the inbox is everybody's",
    "billing/process.py::_postpone_one": "the inbox is everybody's",
    "billing/reconcile.py::_customers": "a reconciliation looks at everybody",
    "billing/reconcile.py::_reach": "a reconciliation looks at everybody",
    "billing/reconcile.py::_reached": "a reconciliation looks at everybody",
    "billing/service.py::_dearer": "plans are the same for all, those that are not sold any more too",
    "billing/service.py::_sellable": "plans are the same for all, those that are not sold any more too",
    "billing/service.py::catalog_price": "plans are the same for all, those that are not sold any more too",
    "billing/testers.py::grant": "an admin lends somebody the tester plan",
    "billing/testers.py::listed": "an admin lists everybody's tester grants",
    "billing/testers.py::revoke": "an admin ends somebody's time as a tester",
    "billing/upkeep.py::close_deleted": "Stripe customers of accounts that are gone",
    "billing/upkeep.py::end_access": "who has no subscription any more",
    "billing/upkeep.py::end_trials": "trials of all users end",
    "billing/upkeep.py::tell_suspended": "grace of all users runs out",
    "events/postgres.py::_insert": "tells several users, or another than whose transaction it is",
    "events/postgres.py::_send": "the outbox holds everybody's events",
    "events/postgres.py::read": "events of all users are handed on, each to its user's sockets",
    "events/postgres.py::_now": "from where events of all users are read",
    "events/postgres.py::forget": "old events of all users",
    "events/video.py::_begin": "progress is told by workers, which serve every tenant",
    "events/video.py::_endings": "an administrator's request may end another user's video, who is told",
    "importing/media.py::_bring_media": "an import brings rows of all users",
    "importing/media.py::_settle": "an import brings files of all users",
    "importing/media.py::bring_pictures": "an import brings pictures of all users",
    "importing/people.py::_account": "looks for the owner's account",
    "importing/people.py::bring_users": "an import makes accounts",
    "importing/rows.py::bring_rows": "an import brings rows of all users",
    "importing/run.py::count_root": "an operator asks what an import would bring",
    "admin/dashboards.py::revenue": "an admin looks at everybody's payments",
    "admin/dashboards.py::usage": "an admin looks at everybody's usage",
    "credits/low_balance.py::tell": "balances of all users run low",
    "swaps/held_items.py::end_overrun": "a worker stops the item that it holds",
    "web/idempotency.py::forget_old": "keys of all users grow old",
    "jobs/lease.py::claim": "a worker serves every tenant",
    "jobs/lease.py::heartbeat": "a worker serves every tenant",
    "jobs/lease.py::fenced": "a worker serves every tenant",
    "jobs/lease.py::finish": "a worker serves every tenant",
    "jobs/lease.py::demand_count": "a worker serves every tenant",
    "jobs/lost.py::end_attempt": "the items of workers that are gone, of all tenants",
    "jobs/reaper.py::reap": "the items of workers that are gone, of all tenants",
    "jobs/lease.py::demand_wanted": "a worker serves every tenant",
    "jobs/lease.py::revoke": "ends the attempt of an item that its owner cancels",
    "operating/health.py::check_database": "reads the history of migrations",
    "operating/metrics.py::snapshot": "counts of all tenants together, none by itself",
    "plans/catalog.py::change": "an admin changes a plan",
    "plans/catalog.py::create": "an admin makes a plan",
    "plans/catalog.py::list_all": "an admin lists plans",
    "storage/journal.py::announce": "writes what tenants may only read, after comparing the row's owner",
    "storage/journal.py::finish": "as announce, of an announced write",
    "storage/journal.py::give_up": "as announce, of an announced write",
    "storage/journal.py::discard": "as announce, after comparing the row's owner",
    "storage/journal.py::row_exists": "a foreign row keeps its files too",
    "storage/journal.py::to_purge": "objects whose rows are gone belong to nobody",
    "storage/journal.py::forget": "objects whose rows are gone belong to nobody",
    "storage/recovery.py::strays": "an operator looks at the whole store",
    "storage/recovery.py::_expired": "what crashed processes of all tenants left",
    "storage/recovery.py::_undo": "what crashed processes of all tenants left",
    "storage/recovery.py::_purges": "what crashed processes of all tenants left",
    "jobs/stopping.py::stop_work_of": "an administrator's request stops another user's work, then as that user",
    "swaps/session_processor.py::_report": "a worker serves every tenant",
    "swaps/session_queue.py::start": "upkeep of everybody's items",
    "swaps/session_queue.py::tell": "owners hear what became of items whose workers are gone",
    "swaps/session_queue.py::enqueue_workflow_call_child": "a tenant does not choose the worker: a call inherits its parent's",
    "swaps/session_queue.py::resume_queue_item": "as enqueue_workflow_call_child",
    "swaps/session_queue.py::dequeue": "a worker serves every tenant",
    "swaps/model_images.py::_for_everybody": "models are one installation for all",
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
