"""Plans as rows: what is seeded, which one counts for whom, what admins may change, and that the database itself refuses nonsense."""

from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from saas.people import rows
from saas.subscribed import entitled, grant, subscribe, told, turn

from invokeai_saas.accounts import audit
from invokeai_saas.accounts.errors import BadAccountInput, NotAllowed
from invokeai_saas.db import tenancy
from invokeai_saas.plans import catalog
from invokeai_saas.plans.errors import BadPlanInput, NoSuchPlan, PlanExists
from invokeai_saas.plans.forms import PlanCreate

NEW = PlanCreate(
    slug="team", name="Team", plan_type="paid", gpu_tier="basic", model_access="sd_only", monthly_price=Decimal("99.50"),
    price_per_gpu_second=Decimal("0.005"), cost_per_gpu_second=Decimal("0.0014"), features={"seats": 5},
).values()  # fmt: skip


class Counting:
    """A cursor that counts what is sent."""

    def __init__(self, cursor):
        self._cursor, self.statements = cursor, 0

    def execute(self, *arguments):
        self.statements += 1
        return self._cursor.execute(*arguments)


def by_slug(database, slug):
    with tenancy.as_system("test"), database.postgres() as cursor:
        return catalog.plan_by_slug(cursor, slug)


# slug: price, credits, tier, queues, storage, access, third party, LoRA, collaboration, API, video, frames, sides, families (S3-028..033).
SEEDED = {
    "trial": (0, 500, "basic", 1, 5, "sd_only", False, False, False, False, False, 0, 0, 0, ()),
    "starter": (25, 5000, "basic", 1, 20, "sd_only", False, False, False, False, True, 16, 512, 512, ("animatediff",)),
    "pro": (75, 15000, "high_performance", 1, 100, "flux_included", True, False, False, True, True, 48, 1280, 720,
            ("animatediff", "svd", "z-image-video")),
    "studio": (150, 30000, "high_performance", 3, 200, "flux_included", True, False, False, True, True, 48, 1280, 720,
               ("animatediff", "svd", "z-image-video")),
    "enterprise": (None, None, "dedicated", None, None, "full", True, True, True, True, True, 128, 1920, 1088, None),
    "tester": (0, 50000, "basic", 1, 20, "flux_included", True, False, False, True, True, 48, 1280, 720,
               ("animatediff", "svd", "z-image-video")),
}  # fmt: skip


@pytest.mark.parametrize("slug", SEEDED)
def test_a_plan_is_as_the_requirements_say(database, slug):
    plan = by_slug(database, slug)

    assert SEEDED[slug] == (
        plan.monthly_price, plan.monthly_credits, plan.gpu_tier, plan.max_queues, plan.max_storage_gb, plan.model_access,
        plan.third_party_api_access, plan.lora_training, plan.collaboration, plan.api_access, plan.can_generate_video,
        plan.max_video_frames, plan.max_video_long_side, plan.max_video_short_side, plan.video_bases,
    )  # fmt: skip
    assert (plan.node_editor_access, plan.validity_days) == (True, 7 if slug == "trial" else 30)
    assert plan.plan_priority == {"enterprise": 20, "studio": 10}.get(slug, 0)


# Which plan counts.


@pytest.mark.parametrize(("held", "expected"), [
    ({"slug": "trial", "status": "trialing"}, ("trial", "trialing", False)),
    ({"slug": "trial", "status": "trialing", "trial": "-1 second"}, (None, "expired", True)),
    ({"slug": "trial", "status": "expired"}, (None, "expired", True)),
    ({"slug": "pro", "status": "active"}, ("pro", "active", False)),
    ({"slug": "pro", "status": "active", "ends": True}, ("pro", "active", False)),
    ({"slug": "pro", "status": "active", "ends": True, "period": "-1 second", "stripe": "s"}, (None, "canceled", True)),
    # A renewal whose webhook is late.
    ({"slug": "pro", "status": "active", "period": "-1 hour", "stripe": "s"}, ("pro", "active", False)),
    ({"slug": "enterprise", "status": "active", "period": "-1 hour"}, (None, "expired", True)),
    ({"slug": "pro", "status": "past_due"}, ("pro", "past_due", False)),
    ({"slug": "pro", "status": "past_due", "grace": "-1 second"}, ("pro", "past_due", True)),
    ({"slug": "pro", "status": "canceled"}, (None, "canceled", True)),
])  # fmt: skip
def test_what_counts_follows_status_and_clock(database, ann, held, expected):
    subscribe(database, ann.user_id, held.pop("slug"), **held)

    assert told(database, ann.user_id) == expected


def test_nobody_has_a_plan_at_first(database, ann):
    found = entitled(database, ann.user_id)

    assert (found.plan, found.status, found.suspended) == (None, "none", False)
    assert [plan.slug for plan in found.catalog] == ["tester", "trial", "starter", "pro", "studio", "enterprise"]


def test_the_running_subscription_counts_and_not_one_that_ended(database, ann):
    subscribe(database, ann.user_id, "starter", status="active")
    subscribe(database, ann.user_id, "trial", status="expired")
    subscribe(database, ann.user_id, "studio", status="canceled")

    assert told(database, ann.user_id) == ("starter", "active", False)


@pytest.mark.parametrize(("held", "expected"), [
    (None, "tester"),
    ({"slug": "trial", "status": "trialing"}, "tester"),
    ({"slug": "trial", "status": "expired"}, "tester"),
    ({"slug": "pro", "status": "canceled"}, "tester"),
    ({"slug": "pro", "status": "past_due", "grace": "-1 second"}, "tester"),
    ({"slug": "pro", "status": "past_due"}, "pro"),
    ({"slug": "starter", "status": "active"}, "starter"),
])  # fmt: skip
def test_a_testers_window_goes_before_nothing_and_a_trial_but_not_before_what_is_paid(database, ann, held, expected):
    if held is not None:
        subscribe(database, ann.user_id, held.pop("slug"), **held)
    grant(database, ann.user_id)
    plan, status, suspended = told(database, ann.user_id)

    assert (plan, suspended) == (expected, False)
    assert status == ("active" if expected == "tester" else status)


@pytest.mark.parametrize("window", [{"begins": "1 hour"}, {"ends": "-1 second"}])
def test_a_testers_window_counts_while_it_is_open_only(database, ann, window):
    grant(database, ann.user_id, **window)

    assert told(database, ann.user_id) == (None, "none", False)


def test_a_revoked_window_ends_at_once(database, ann):
    given = grant(database, ann.user_id)
    rows(database, "UPDATE tester_plan_grants SET revoked_at = now(), revoked_by = 'clerk' WHERE grant_id = %s", given)

    assert told(database, ann.user_id) == (None, "none", False)
    assert rows(database, "SELECT revoked FROM tester_plan_grants")[0]["revoked"] is True


def test_nobody_learns_which_plan_another_user_is_on(database, ann, clerk):
    subscribe(database, clerk.user_id, "studio")
    with tenancy.as_user(ann.user_id), database.postgres() as cursor:
        found = catalog.entitlement_of(cursor, clerk.user_id)

    assert (found.plan, found.status) == (None, "none")


def test_a_plan_that_is_no_longer_sold_stays_with_who_has_it(accounts, database, ann, clerk):
    subscribe(database, ann.user_id, "pro")
    catalog.change(accounts, clerk.principal, by_slug(database, "pro").plan_id, {"is_active": False})
    found = entitled(database, ann.user_id)

    assert found.plan.slug == "pro"
    assert "pro" not in [plan.slug for plan in found.catalog]


def test_an_entitlement_is_one_statement(database, ann):
    with tenancy.as_user(ann.user_id), database.postgres() as cursor:
        counting = Counting(cursor)
        found = catalog.entitlement_of(counting, ann.user_id)

    assert (counting.statements, found.status) == (1, "none")


# The turn in the queue.


def test_the_queues_order_and_slots_follow_the_subscription(database, ann):
    before = turn(database, ann.user_id)
    held = subscribe(database, ann.user_id, "studio")
    on_studio = turn(database, ann.user_id)
    rows(database, "UPDATE user_subscriptions SET plan_id = (SELECT plan_id FROM subscription_plans WHERE slug = 'enterprise')"
         " WHERE subscription_id = %s", held)  # fmt: skip
    on_enterprise = turn(database, ann.user_id)
    rows(database, "UPDATE user_subscriptions SET status = 'canceled' WHERE subscription_id = %s", held)

    assert (before, on_studio, on_enterprise) == (None, (10, 3), (20, None))
    assert turn(database, ann.user_id) == (0, None)


def test_a_changed_plan_reaches_the_turns_of_those_on_it(accounts, database, ann, clerk, root):
    subscribe(database, ann.user_id, "studio")
    subscribe(database, clerk.user_id, "pro")
    grant(database, root.user_id)
    for slug, values in (("studio", {"plan_priority": 15}), ("tester", {"max_queues": 2})):
        catalog.change(accounts, clerk.principal, by_slug(database, slug).plan_id, values)

    assert [turn(database, each.user_id) for each in (ann, clerk, root)] == [(15, 3), (0, 1), (0, 2)]


def test_without_the_trigger_the_turns_stay_behind(dsn, database, ann):
    with psycopg.connect(dsn) as connection:
        connection.execute("DROP TRIGGER tg_subscription_sets_turn ON user_subscriptions")
    subscribe(database, ann.user_id, "studio")

    assert turn(database, ann.user_id) is None


# At most one.


def test_a_user_has_at_most_one_running_subscription(database, ann):
    subscribe(database, ann.user_id, "trial", status="trialing")

    with pytest.raises(psycopg.errors.UniqueViolation) as refused:
        subscribe(database, ann.user_id, "pro")
    assert refused.value.diag.constraint_name == "user_subscriptions_one_running"


def test_it_is_the_index_that_keeps_it_one(dsn, database, ann):
    with psycopg.connect(dsn) as connection:
        connection.execute("DROP INDEX user_subscriptions_one_running")
    subscribe(database, ann.user_id, "trial", status="trialing")

    subscribe(database, ann.user_id, "pro")


# Admins.


def test_an_admin_makes_a_plan_and_it_is_written_down(accounts, database, clerk):
    made = catalog.create(accounts, clerk.principal, NEW)
    lines = audit.read(accounts, clerk.principal, target_id=str(made.plan_id))

    assert by_slug(database, "team") == made
    assert (made.monthly_price, made.features, made.video_bases, made.max_queues) == (Decimal("99.50"), {"seats": 5}, (), 1)
    assert [(line["action"], line["actor_id"], line["details"]) for line in lines] == [("plan_created", clerk.user_id, {"slug": "team"})]


def test_an_admin_changes_a_plan_and_what_it_was_is_written_down(accounts, database, clerk):
    before = by_slug(database, "starter")
    after = catalog.change(
        accounts, clerk.principal, before.plan_id, {"monthly_price": Decimal("30.00"), "max_queues": 2, "name": "Starter"}
    )
    lines = audit.read(accounts, clerk.principal, target_id=str(before.plan_id))

    assert (after.monthly_price, after.max_queues, after.max_video_frames) == (Decimal("30.00"), 2, 16)
    assert after.updated_at > before.updated_at and after.created_at == before.created_at
    assert [line["details"]["changed"] for line in lines] == [{"max_queues": ["1", "2"], "monthly_price": ["25.00", "30.00"]}]


def test_a_change_that_changes_nothing_leaves_no_line(accounts, database, clerk):
    plan = by_slug(database, "starter")
    catalog.change(accounts, clerk.principal, plan.plan_id, {"max_queues": 1})

    assert audit.read(accounts, clerk.principal, target_id=str(plan.plan_id)) == []


@pytest.mark.parametrize(("values", "expected"), [
    ({"monthly_price": Decimal(-1)}, "prices of 0 or more"),
    ({"annual_price": Decimal("-0.01")}, "prices of 0 or more"),
    ({"monthly_credits": -1}, "monthly_credits of 0 or more"),
    ({"plan_type": "gift"}, "plan_type paid, internal or trial"),
    ({"gpu_tier": "huge"}, "gpu_tier basic"),
    ({"model_access": "all"}, "model_access sd_only"),
    ({"slug": "another"}, "the slug that the plan has"),
    ({"name": ""}, "a name of 1 to 50"),
    ({"name": "x" * 51}, "a name of 1 to 50"),
    ({"currency": "USD"}, "three lower-case letters"),
    ({"validity_days": 0}, "validity_days from 1 to 366"),
    ({"plan_priority": -1}, "plan_priority from 0"),
    ({"max_queues": 0}, "limits of 1 or more"),
    ({"max_storage_gb": -5}, "limits of 1 or more"),
    ({"max_repeats": 0}, "limits of 1 or more"),
    ({"max_image_short_side": 5000}, "max_image_short_side up to"),
    ({"max_video_frames": 0}, "positive limits"),
    ({"can_generate_video": False}, "without it 0"),
    ({"max_video_short_side": 9999}, "positive limits"),
    ({"video_bases": ()}, "positive limits"),
    ({"cost_per_gpu_second": Decimal("0.006")}, "not below cost"),
    ({"price_per_gpu_second": Decimal("0.001")}, "not below cost"),
    ({"price_per_gpu_second": None}, "a value for price_per_gpu_second"),
    ({"is_active": None}, "a value for is_active"),
    ({"monthly_price": Decimal(10**12)}, "numbers that fit"),
    ({"max_queues": 2**40}, "numbers that fit"),
    ({"video_bases": ("animatediff", "nope")}, "some of animatediff, svd, .*, got nope"),
    ({"stripe_price_monthly": "price_1", "monthly_credits": None}, "monthly_credits: expected a number for a plan that is sold"),
    ({"no_such_field": 1}, "unknown \\['no_such_field'\\]"),
    ({"plan_id": uuid4()}, "unknown \\['plan_id'\\]"),
])  # fmt: skip
def test_bad_input_is_refused_and_nothing_is_changed(accounts, database, clerk, values, expected):
    before = by_slug(database, "starter")

    with pytest.raises(BadPlanInput, match=expected):
        catalog.change(accounts, clerk.principal, before.plan_id, values)
    assert by_slug(database, "starter") == before
    assert audit.read(accounts, clerk.principal, target_id=str(before.plan_id)) == []


@pytest.mark.parametrize(("values", "refused"), [
    ({"currency": "eur"}, True), ({"stripe_price_monthly": "price_1"}, False), ({"currency": "usd"}, False), ({"max_queues": 2}, False),
])  # fmt: skip
def test_a_plan_is_sold_in_the_currency_that_stripe_is_asked_in(accounts, database, clerk, values, refused):
    plan_id = by_slug(database, "starter").plan_id
    if refused:
        with pytest.raises(BadPlanInput, match="currency: expected usd, .* got eur"):
            catalog.change(accounts, clerk.principal, plan_id, values, currency="usd")
        assert catalog.change(accounts, clerk.principal, plan_id, values).currency == "eur"
        with pytest.raises(BadPlanInput, match="currency: expected usd"):
            catalog.change(accounts, clerk.principal, plan_id, {"stripe_price_monthly": "price_1"}, currency="usd")
        assert catalog.change(accounts, clerk.principal, plan_id, {"max_queues": 3}, currency="usd").max_queues == 3
    else:
        catalog.change(accounts, clerk.principal, plan_id, values, currency="usd")


@pytest.mark.parametrize("slug", ["Has Spaces", "UPPER", "", "-x", "x" * 51, "é"])
def test_a_slug_is_plain(accounts, clerk, slug):
    with pytest.raises(BadPlanInput, match="a slug of 1 to 50"):
        catalog.create(accounts, clerk.principal, {**NEW, "slug": slug})


def test_what_is_taken_is_refused(accounts, database, clerk):
    catalog.change(accounts, clerk.principal, by_slug(database, "pro").plan_id, {"stripe_price_monthly": "price_1"})

    with pytest.raises(PlanExists, match="a slug that no other plan has, got 'pro'"):
        catalog.create(accounts, clerk.principal, {**NEW, "slug": "pro"})
    with pytest.raises(PlanExists, match="a stripe_price_monthly that no other plan has, got 'price_1'"):
        catalog.create(accounts, clerk.principal, {**NEW, "stripe_price_monthly": "price_1"})


def test_a_plan_with_something_missing_is_refused(accounts, clerk):
    with pytest.raises(BadPlanInput, match=r"missing \['slug'\]"):
        catalog.create(accounts, clerk.principal, {name: value for name, value in NEW.items() if name != "slug"})


def test_an_unknown_plan_is_not_there(accounts, database, clerk):
    with pytest.raises(NoSuchPlan):
        by_slug(database, "platinum")
    with pytest.raises(NoSuchPlan):
        catalog.change(accounts, clerk.principal, uuid4(), {"max_queues": 2})


def test_no_address_gets_into_the_audit_log_by_a_plans_name(accounts, clerk, database):
    with pytest.raises(BadAccountInput):
        catalog.change(accounts, clerk.principal, by_slug(database, "pro").plan_id, {"name": "ask ann@example.com"})

    assert by_slug(database, "pro").name == "Pro"


def test_users_neither_make_nor_change_nor_list_plans(accounts, database, ann):
    for act in (
        lambda: catalog.create(accounts, ann.principal, NEW),
        lambda: catalog.change(accounts, ann.principal, by_slug(database, "pro").plan_id, {"monthly_price": 0}),
        lambda: catalog.list_all(accounts, ann.principal),
    ):
        with pytest.raises(NotAllowed):
            act()


@pytest.mark.parametrize(("guard", "statement"), [
    ("CONSTRAINT subscription_plans_not_below_cost", "UPDATE subscription_plans SET price_per_gpu_second = 0.001 WHERE slug = 'pro'"),
    ("CONSTRAINT subscription_plans_prices_not_negative", "UPDATE subscription_plans SET annual_price = -1 WHERE slug = 'pro'"),
    ("CONSTRAINT subscription_plans_limits_are_positive", "UPDATE subscription_plans SET max_queues = 0 WHERE slug = 'pro'"),
    ("CONSTRAINT subscription_plans_video_limits_only_with_video",
     "UPDATE subscription_plans SET can_generate_video = true WHERE slug = 'trial'"),
    ("TRIGGER tg_plan_keeps_its_slug", "UPDATE subscription_plans SET slug = 'x' WHERE slug = 'pro'"),
])  # fmt: skip
def test_it_is_the_guard_that_refuses(dsn, guard, statement):
    kind, name = guard.split()
    drop = f"DROP TRIGGER {name} ON subscription_plans" if kind == "TRIGGER" else f"ALTER TABLE subscription_plans DROP CONSTRAINT {name}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.IntegrityError):
            connection.execute(statement.encode())
        connection.execute(drop.encode())
        connection.execute(statement.encode())


@pytest.mark.parametrize("values", [
    "'{u}', 'clerk', 0, now(), now() + interval '1 day', 'a good reason here'",
    "'{u}', 'clerk', 1, now(), now() - interval '1 day', 'a good reason here'",
    "'{u}', 'clerk', 1, now(), now() + interval '1 day', 'too short'",
    "'nobody', 'clerk', 1, now(), now() + interval '1 day', 'a good reason here'",
])  # fmt: skip
def test_an_absurd_grant_is_refused_by_the_database(database, ann, values):
    insert = "INSERT INTO tester_plan_grants (user_id, admin_user_id, credits_granted, valid_from, valid_until, reason) VALUES "

    with pytest.raises(psycopg.errors.IntegrityError):
        rows(database, insert + f"({values.format(u=ann.user_id)})")
