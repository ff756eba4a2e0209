"""Plans in the database."""

from invokeai_saas.db import tenancy
from invokeai_saas.plans import catalog


def test_the_six_plans_are_there(database):
    with tenancy.as_system("test"), database.postgres() as cursor:
        plans = catalog.list_active(cursor)

    assert [plan.slug for plan in plans] == ["tester", "trial", "starter", "pro", "studio", "enterprise"]


def test_nobody_has_a_plan_at_first(database, ann):
    with tenancy.as_user(ann.user_id), database.postgres() as cursor:
        found = catalog.entitlement_of(cursor, ann.user_id)

    assert (found.plan, found.status, found.suspended) == (None, "none", False)
    assert len(found.catalog) == 6
