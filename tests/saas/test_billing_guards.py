"""What the database itself refuses of money, and that a test notices when it no longer does. Each guard is taken away once."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from saas.billed import POLICY, open_shop, pack_for, totals
from saas.people import rows

from invokeai_saas.billing import inbox, process, service

PAID = (
    "INSERT INTO payments"
    " (user_id, kind, stripe_payment_intent_id, stripe_invoice_id, amount, status, credits, description, amount_refunded)"
)
EVENT = "INSERT INTO stripe_events (event_id, type, object_kind, object_id, happened_at, state) VALUES ('e', 't',"
GUARDS = {
    "payments_kind_is_known": f"{PAID} VALUES ('u', 'gift', 'pi', 'in', 5, 'succeeded', 0, 'd', 0)",
    "payments_status_is_known": f"{PAID} VALUES ('u', 'pack', 'pi', NULL, 5, 'lost', 0, 'd', 0)",
    "payments_credits_not_negative": f"{PAID} VALUES ('u', 'pack', 'pi', NULL, 5, 'succeeded', -1, 'd', 0)",
    # Nothing below 0 either: neither the amount nor what went back of it.
    "payments_refunded_within_amount": f"{PAID} VALUES ('u', 'pack', 'pi', NULL, 5, 'succeeded', 0, 'd', 6)",
    "payments_of_something": f"{PAID} VALUES ('u', 'pack', NULL, 'in', 5, 'succeeded', 0, 'd', 0)",
    "payments_grant_when_paid": f"{PAID} VALUES ('u', 'pack', 'pi', NULL, 5, 'failed', 1000, 'd', 0)",
    "stripe_events_state_is_known": f"{EVENT} 'invoice', 'i', now(), 'odd')",
    "stripe_events_kind_is_known": f"{EVENT} 'gift', 'i', now(), 'waiting')",
    "stripe_events_failed_with_error": f"{EVENT} 'invoice', 'i', now(), 'failed')",
    "stripe_events_processed_when": f"{EVENT} 'invoice', 'i', now(), 'done')",
    "trials_mark_is_sha256": "INSERT INTO trials (mark) VALUES ('ann@example.com')",
}  # fmt: skip


@pytest.fixture
def shop(accounts):
    return open_shop(accounts)


@pytest.fixture
def owner(dsn):
    """The server's owner, who may take guards away."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("name", list(GUARDS))
def test_the_database_refuses_what_makes_no_sense_and_only_by_this_constraint(owner, name):
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        owner.execute(GUARDS[name].encode())
    table = GUARDS[name].split()[2]
    owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
    owner.execute(GUARDS[name].encode())

    assert refused.value.diag.constraint_name == name


def one_customer_each(connection):
    """Whether a user may have two customers that count."""
    try:
        connection.execute(
            "INSERT INTO billing_customers (stripe_customer_id, user_id) SELECT 'cus_second', user_id FROM billing_customers"
        )
    except psycopg.errors.UniqueViolation:
        return True
    return False


def test_a_user_has_one_customer_that_counts(shop, ann, owner):
    pack_for(shop, ann, "small")
    kept = one_customer_each(owner)
    owner.execute("DROP INDEX billing_customers_one_counts")

    assert (kept, one_customer_each(owner)) == (True, False)


def brought_twice(shop, ann):
    """An event of a paid pack, twice, with processing in between; how often the pack was granted."""
    shop.double.pay(pack_for(shop, ann, "small").session_id)
    events = shop.events()
    for _ in range(2):
        for each in events:
            inbox.record(shop.billing, each)
        rows(shop.billing.database, "UPDATE stripe_events SET state = 'waiting', processed_at = NULL")
        process.process_waiting(shop.billing)
    return len(totals(shop, ann.user_id))


def test_a_pack_is_granted_once_even_when_its_event_is_processed_twice(shop, ann):
    assert brought_twice(shop, ann) == 1


def test_without_its_memory_of_payments_and_references_it_would_be_granted_twice(shop, ann, owner, monkeypatch):
    """Lago #5870: a top-up sent twice credits twice."""
    from invokeai_saas.billing import apply

    real = apply.credits.grant
    monkeypatch.setattr(apply, "PACK_BEFORE", "SELECT status, credits FROM payments WHERE stripe_payment_intent_id = %s AND false")
    with_reference = brought_twice(shop, ann)
    monkeypatch.setattr(apply.credits, "grant", lambda cursor, **values: real(cursor, **{**values, "reference_id": None}))
    rows(shop.billing.database, "UPDATE stripe_events SET state = 'waiting', processed_at = NULL")
    process.process_waiting(shop.billing)

    assert (with_reference, len(totals(shop, ann.user_id))) == (1, 2)


def racers(shop, customer):
    """Eight who take one customer at once; how many got it."""
    with ThreadPoolExecutor(4) as pool:
        return sum(taken is not None for taken in pool.map(lambda _: inbox.take(shop.billing, customer), range(8)))


def test_one_of_eight_gets_a_customer_and_without_the_condition_more_would(shop, monkeypatch):
    one = racers(shop, "cus_1")
    monkeypatch.setattr(inbox, "LEASE", inbox.LEASE.replace("WHERE held.leased_until <= clock_timestamp()", ""))

    assert (one, racers(shop, "cus_2")) == (1, 8)


def test_an_inserted_event_wins_once_and_without_its_key_it_would_not(shop, ann, owner):
    shop.double.pay(pack_for(shop, ann, "small").session_id)
    event = shop.events()[0]
    first, second = inbox.record(shop.billing, event), inbox.record(shop.billing, event)
    owner.execute("ALTER TABLE stripe_events DROP CONSTRAINT stripe_events_pkey")

    assert (first, second) == ("waiting", "known")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        inbox.record(shop.billing, event)


def test_a_tenant_reads_their_own_payments_and_writes_none(shop, ann, owner):
    shop.pay(pack_for(shop, ann, "small"))
    owner.execute("SET ROLE invokeai_app")
    owner.execute("SELECT set_config('app.current_user_id', %s, false)", (ann.user_id,))
    own = owner.execute("SELECT count(*) FROM payments").fetchone()
    owner.execute("SELECT set_config('app.current_user_id', 'somebody', false)")
    others = owner.execute("SELECT count(*) FROM payments").fetchone()

    assert (own, others) == ((1,), (0,))
    for table in ("billing_customers", "stripe_events", "trials", "customer_leases", "billing_marks"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute(f"SELECT * FROM {table}".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute("UPDATE payments SET credits = 1000000")


def test_the_inbox_keeps_no_address_and_no_name(shop, ann):
    shop.double.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s").session_id)
    for each in shop.events():
        each["data"]["object"]["customer_email"] = "ann@example.com"
        inbox.record(shop.billing, each)

    assert "ann@" not in json.dumps(rows(shop.billing.database, "SELECT * FROM stripe_events"), default=str)


def test_a_lease_that_ran_out_is_taken_over_with_a_higher_fence(shop):
    billing = replace(shop.billing, policy=replace(POLICY, lease=timedelta(0)))
    fences = [inbox.take(billing, "cus_1").fence for _ in range(3)]

    assert fences == [1, 2, 3]


def test_grace_of_more_than_ten_days_is_no_setting():
    with pytest.raises(ValueError, match="0 to 10 days"):
        replace(POLICY, grace=timedelta(days=11))
