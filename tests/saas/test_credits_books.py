"""Grants, refunds, expiry, and the books compared with themselves: what drifts is said."""

import json
import logging
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from saas.books import as_owner, drift, end, give, hold, remaining, run
from saas.people import rows

from invokeai_saas.cli import main
from invokeai_saas.credits import service, upkeep
from invokeai_saas.credits.errors import BadCredits, GrantConflict, NoSuchGrant
from invokeai_saas.credits.reconcile import BooksCheck, reconcile
from invokeai_saas.db import tenancy

ENDED = "UPDATE credits SET valid_until = now() - interval '1 second', valid_from = now() - interval '1 day'"


def take_back(database, credits: int, key: str = "refund-1", reference: str = "pack"):
    with tenancy.as_system("a test refunds"), database.postgres() as cursor:
        return service.take_back(cursor, user_id="ann", credits=credits, source_reference=reference, reason="refunded", key=key)


def give_back(database, key: str = "refund-1") -> int:
    with tenancy.as_system("a test wins a dispute"), database.postgres() as cursor:
        return service.give_back(cursor, key=key, reason="dispute won")


def parts(database) -> dict[str, int]:
    """A grant's columns that are not 0."""
    columns = ("available", "held", "consumed", "expired", "revoked", "owed")
    [row] = rows(database, "SELECT " + ", ".join(f"{name}_credits AS {name}" for name in columns) + " FROM credits")
    return {name: value for name, value in row.items() if value}


def test_a_reference_is_granted_once(database):
    assert [give(database, "ann", 100, reference="invoice-1") for _ in range(3)] == [True, False, False]
    assert remaining(database, "ann") == 100
    assert rows(database, "SELECT amount, transaction_type FROM credit_transactions") == [{"amount": 100, "transaction_type": "purchase"}]


@pytest.mark.parametrize(("user", "credits"), [("bob", 100), ("ann", 101)])
def test_a_reference_means_one_grant(database, user, credits):
    give(database, "ann", 100, reference="invoice-1")
    with pytest.raises(GrantConflict):
        give(database, user, credits, reference="invoice-1")

    assert remaining(database, "ann") == 100


@pytest.mark.parametrize("credits", [0, -1, 10_000_001, True, 2.0])
def test_an_absurd_grant_changes_nothing(database, credits):
    with pytest.raises(BadCredits):
        give(database, "ann", credits)

    assert rows(database, "SELECT 1 FROM credits") == []


@pytest.mark.parametrize(("begins", "ends"), [(-2, -1), (2, 1), (1, 1)])
def test_a_window_in_the_past_or_reversed_changes_nothing(database, begins, ends):
    now = datetime.now(UTC)
    window = {"valid_from": now + timedelta(days=begins), "valid_until": now + timedelta(days=ends)}
    with pytest.raises(BadCredits), tenancy.as_system("a test grants"), database.postgres() as cursor:
        service.grant(cursor, user_id="ann", credits=5, source="purchase", description="d", **window)
    with pytest.raises(psycopg.errors.CheckViolation), tenancy.as_system("a test grants"), database.postgres() as cursor:
        cursor.execute("SELECT credits_grant('ann', 5, 'purchase', %s, %s, 'd', NULL)", (window["valid_from"], window["valid_until"]))

    assert rows(database, "SELECT 1 FROM credits") == []


def test_a_source_that_nobody_knows_is_refused(database):
    with pytest.raises(BadCredits):
        give(database, "ann", 5, source="gift")


def test_the_ledger_is_never_rewritten(database, dsn):
    give(database, "ann", 100)
    for statement in ("UPDATE credit_transactions SET amount = 1", "DELETE FROM credit_transactions", "TRUNCATE credit_transactions"):
        with pytest.raises(psycopg.errors.IntegrityError):
            as_owner(dsn, statement)

    assert rows(database, "SELECT amount FROM credit_transactions") == [{"amount": 100}]


def test_without_its_trigger_the_ledger_is_rewritten_and_the_books_notice(database, dsn):
    give(database, "ann", 100)
    as_owner(dsn, "DROP TRIGGER tg_credit_transactions_is_append_only ON credit_transactions")
    as_owner(dsn, "UPDATE credit_transactions SET amount = 1")

    assert drift(database) != []


def test_a_refund_takes_what_is_there_and_the_rest_when_the_job_lets_go(database):
    give(database, "ann", 100, reference="pack")
    hold(database, "ann", 30)
    [item] = hold(database, "ann", 40)
    taken = take_back(database, 100)
    before = parts(database)
    run(database, item, 10)
    end(database, item, "completed")

    assert (taken.first, taken.taken, taken.owed) == (True, 30, 70)
    assert before == {"held": 70, "revoked": 30, "owed": 70}
    assert parts(database) == {"held": 30, "consumed": 10, "revoked": 60, "owed": 30}
    assert remaining(database, "ann") == 0
    assert drift(database) == []


def test_a_refund_forgives_what_was_used(database):
    give(database, "ann", 100, reference="pack")
    [item] = hold(database, "ann", 60)
    run(database, item, 60)
    end(database, item, "completed")
    taken = take_back(database, 100)

    assert (taken.taken, taken.owed) == (40, 0)
    assert parts(database) == {"consumed": 60, "revoked": 40}


def test_a_refund_counts_once(database):
    give(database, "ann", 100, reference="pack")
    first, second = take_back(database, 30), take_back(database, 30)

    assert (first.first, second.first, second.taken) == (True, False, 30)
    assert remaining(database, "ann") == 70


def test_a_refund_of_nothing_that_was_granted_is_not_found(database):
    with pytest.raises(NoSuchGrant):
        take_back(database, 30, reference="no-such-pack")


def test_a_dispute_that_was_won_brings_everything_back_once(database):
    give(database, "ann", 100, reference="pack")
    [item] = hold(database, "ann", 40)
    take_back(database, 100)
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", item)
    lost = parts(database)

    assert lost == {"revoked": 100}
    assert [give_back(database), give_back(database)] == [100, 0]
    assert parts(database) == {"available": 100}
    assert drift(database) == []


def test_what_comes_back_after_the_end_is_recorded_as_expired(database, dsn):
    give(database, "ann", 100, reference="pack")
    [item] = hold(database, "ann", 40)
    take_back(database, 10)
    as_owner(dsn, ENDED)
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", item)
    give_back(database)

    assert upkeep.expire_due(database) == 1
    assert parts(database) == {"expired": 100}
    assert drift(database) == []


def test_grants_that_have_ended_expire_once_and_what_is_held_stays(database, dsn):
    give(database, "ann", 100)
    hold(database, "ann", 40)
    as_owner(dsn, ENDED)

    assert [upkeep.expire_due(database), upkeep.expire_due(database)] == [1, 0]
    assert parts(database) == {"held": 40, "expired": 60}
    assert rows(database, "SELECT amount FROM credit_transactions WHERE transaction_type = 'expiry'") == [{"amount": -60}]


def test_a_grant_that_somebody_works_with_expires_the_next_time(database, dsn):
    give(database, "ann", 100)
    as_owner(dsn, ENDED)
    with psycopg.connect(dsn) as working:
        working.execute("SELECT 1 FROM credits FOR UPDATE")
        busy = upkeep.expire_due(database)

    assert (busy, upkeep.expire_due(database)) == (0, 1)


def test_a_hold_whose_job_is_gone_goes_back_and_is_an_error(database, dsn, caplog):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 40)
    as_owner(
        dsn, "ALTER TABLE session_queue DISABLE TRIGGER USER; DELETE FROM session_queue; ALTER TABLE session_queue ENABLE TRIGGER USER"
    )
    early = upkeep.release_orphans(database)
    with caplog.at_level(logging.ERROR):
        late = upkeep.release_orphans(database, older_than=timedelta(0))

    assert (early, late) == (0, 1)
    assert remaining(database, "ann") == 100
    assert rows(database, "SELECT reason FROM credit_holds WHERE item_id = %s", item) == [{"reason": "orphaned"}]
    assert "released 1 holds" in caplog.text


def test_a_hold_whose_job_waits_is_nobodys_orphan(database):
    give(database, "ann", 100)
    hold(database, "ann", 40)

    assert upkeep.release_orphans(database, older_than=timedelta(0)) == 0


def test_seconds_after_a_cancel_reach_the_usage_record_and_no_charge(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 40)
    run(database, item, 5)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", item)
    rows(database, "UPDATE job_attempts SET gpu_seconds = 9, heartbeat_at = clock_timestamp()")
    upkeep.run(database)

    assert rows(database, "SELECT compute_seconds, credits_consumed FROM usage_records") == [
        {"compute_seconds": 9.0, "credits_consumed": 5}
    ]
    assert drift(database) == []


DAMAGE = {
    "grant does not add up": "UPDATE credits SET held_credits = held_credits + 1",
    "ledger and grant differ": "INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description)"
    " SELECT user_id, credit_id, 5, 'purchase', 'd' FROM credits",
    "consumed credits and ledger differ": "UPDATE credits SET consumed_credits = consumed_credits + 1,"
    " available_credits = available_credits - 1",
    "expired credits and ledger differ": "UPDATE credits SET expired_credits = 1, available_credits = available_credits - 1",
    "held credits and holds differ": "UPDATE credits SET held_credits = held_credits - 1, available_credits = available_credits + 1",
    "ledger line without a grant": "INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description)"
    " VALUES ('ann', gen_random_uuid(), 5, 'purchase', 'd')",
    "hold draws another amount": "UPDATE credit_holds SET amount = amount + 1 WHERE state = 'held'",
    "charge and ledger differ": "UPDATE credit_holds SET captured = captured + 1 WHERE state = 'captured'",
    "charge and usage record differ": "DELETE FROM usage_records",
    "hold without a job": "ALTER TABLE session_queue DISABLE TRIGGER USER; DELETE FROM session_queue",
}


@pytest.fixture
def busy(database):
    """Books with a bit of everything, and right."""
    give(database, "ann", 100)
    [done] = hold(database, "ann", 30)
    hold(database, "ann", 20)
    run(database, done, 10)
    end(database, done, "completed")
    assert reconcile(database).problems == ()
    return database


@pytest.mark.parametrize("problem", DAMAGE)
def test_every_kind_of_drift_is_named(busy, dsn, problem):
    as_owner(dsn, "ALTER TABLE credits DISABLE TRIGGER USER; ALTER TABLE credit_holds DISABLE TRIGGER USER")
    as_owner(dsn, DAMAGE[problem])

    assert problem in {found.problem for found in reconcile(busy).problems}


def test_parts_that_do_not_add_up_are_refused_by_the_table(busy, dsn):
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        as_owner(dsn, "UPDATE credits SET consumed_credits = consumed_credits + 1")

    assert refused.value.diag.constraint_name == "credits_add_up"


def test_the_check_raises_the_alarm_and_ends_it(busy, dsn, caplog):
    registry = CollectorRegistry()
    check = BooksCheck(busy, registry=registry)
    check.run()
    calm = registry.get_sample_value("invokeai_credits_drift")
    as_owner(dsn, "DELETE FROM usage_records")
    with caplog.at_level(logging.ERROR):
        check.run()

    assert (calm, registry.get_sample_value("invokeai_credits_drift")) == (0, 1)
    assert "charge and usage record differ" in caplog.text


def test_the_command_says_what_does_not_agree(busy, dsn, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///?{dsn.replace(' ', '&')}")
    right = main(["credits", "reconcile"])
    said = capsys.readouterr().out
    as_owner(dsn, "DELETE FROM usage_records")
    wrong = main(["credits", "reconcile"])

    assert (right, wrong) == (0, 1)
    assert "granted 100" in said and "the books agree" in said
    assert "charge and usage record differ" in capsys.readouterr().out


def test_the_command_speaks_json(busy, dsn, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///?{dsn.replace(' ', '&')}")
    main(["credits", "reconcile", "--json"])
    answer = json.loads(capsys.readouterr().out)

    assert (answer["totals"]["consumed"], answer["problems"]) == (10, [])
