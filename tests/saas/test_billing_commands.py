"""`invokeai-saas billing ...` against a database and the double over HTTP, as an operator runs it; and settings that become billing."""

from datetime import timedelta

import pytest
from saas.billed import open_shop, pack_for, totals
from saas.people import rows
from saas.stripe_double import KEY
from saas.stripe_serving import SECRET, serving

from invokeai_saas import cli
from invokeai_saas.billing import inbox, service
from invokeai_saas.billing.setup import billing_of
from invokeai_saas.settings import load_settings


@pytest.fixture
def shop(accounts):
    return open_shop(accounts)


@pytest.fixture
def operator(shop, dsn, monkeypatch, tmp_path):
    """The command line of a server whose Stripe is the double."""
    monkeypatch.setenv("DATABASE_URL", "postgresql:///?" + "&".join(f"{key}={value}" for key, value in parts(dsn).items()))
    monkeypatch.setenv("SAAS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", f"{SECRET},whsec_next")
    with serving(shop.double) as address:
        monkeypatch.setenv("STRIPE_API_BASE", address)
        yield lambda *words: cli.main(["billing", *words])


def parts(dsn):
    from psycopg.conninfo import conninfo_to_dict

    return {key: str(value).replace("/", "%2F") for key, value in conninfo_to_dict(dsn).items()}


def test_what_no_webhook_brought_is_reconciled_once(shop, operator, ann, capsys):
    shop.double.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s").session_id)
    codes = [operator("reconcile"), operator("reconcile", "--days", "30"), operator("reconcile", "--all")]
    said = capsys.readouterr().out.splitlines()

    assert codes == [0, 0, 0]
    assert "0 of them new" not in said[0] and "0 of them new" in said[1] and "1 customers asked about" in said[2]
    assert totals(shop, ann.user_id) == [("subscription", 5000, 0)]


@pytest.mark.parametrize("days", ["0", "-5", "999", "365.5", "nan", "soon"])
def test_a_look_back_that_nobody_can_mean_is_bad_input(operator, shop, capsys, days):
    with pytest.raises(SystemExit) as ended:
        operator("reconcile", f"--days={days}")

    assert (ended.value.code, f"expected 1 to 365 days, got {days}" in capsys.readouterr().err) == (2, True)
    assert shop.double.requests.count("GET events") == 0


def test_what_is_stuck_is_shown_and_tried_again(shop, operator, ann, capsys):
    product = "UPDATE subscription_plans SET stripe_product = %s, stripe_price_monthly = %s WHERE slug = 'starter'"
    sold = shop.double.all("price")[0]
    shop.double.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s").session_id)
    rows(shop.billing.database, product, None, None)
    for event in shop.events():
        inbox.record(shop.billing, event)
    rows(shop.billing.database, "UPDATE stripe_events SET attempts = 15")
    failing = operator("retry")
    waiting = operator("inbox")
    shown = capsys.readouterr().out
    rows(shop.billing.database, product, sold["product"], sold["id"])
    done, after = operator("retry"), operator("inbox")

    assert (failing, done, after) == (1, 0, 0)
    assert waiting in (0, 1) and "belongs to no plan" in shown
    assert totals(shop, ann.user_id) == [("subscription", 5000, 0)]


def test_one_event_is_processed_again_by_its_id_and_changes_nothing_twice(shop, operator, ann):
    shop.pay(pack_for(shop, ann, "small"))
    name = rows(shop.billing.database, "SELECT event_id FROM stripe_events WHERE type = 'payment_intent.succeeded'")[0]["event_id"]

    assert (operator("retry", name), operator("retry", "evt_none")) == (0, 1)
    assert totals(shop, ann.user_id) == [("purchase", 1000, 0)]


def test_upkeep_says_what_it_did(operator, capsys):
    assert operator("upkeep") == 0
    assert "trials ended: 0" in capsys.readouterr().out


def test_without_keys_the_command_says_so(operator, monkeypatch, capsys):
    for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"):
        monkeypatch.delenv(name)

    assert operator("reconcile") == 1
    assert "billing is not set up" in capsys.readouterr().err


def test_settings_become_billing(operator, accounts, monkeypatch):
    monkeypatch.setenv("SAAS_GRACE_DAYS", "3")
    test = billing_of(load_settings(), accounts)
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_live_x")
    live = billing_of(load_settings(), accounts)

    assert (test.policy.grace, test.policy.webhook_secrets) == (timedelta(days=3), (SECRET, "whsec_next"))
    assert (test.policy.livemode, live.policy.livemode) == (False, True)
    assert KEY not in repr(test) and SECRET not in repr(test)
