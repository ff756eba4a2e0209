"""Every way a job can end, and what it costs (decision 14)."""

import psycopg
import pytest
from saas.books import as_owner, drift, end, give, hold, new_item, picture, remaining, run, settled
from saas.people import rows

from invokeai_saas.credits import service
from invokeai_saas.credits.model import JobHold
from invokeai_saas.db import tenancy
from invokeai_saas.jobs import reaper
from invokeai_saas.jobs.lost import Patience


@pytest.mark.parametrize(("seconds", "credits"), [(0.0, 1), (0.2, 1), (80.0, 80), (80.1, 81), (200.0, 100)])
def test_a_completed_job_costs_its_seconds_and_never_more_than_its_price(database, seconds, credits):
    give(database, "ann", 500)
    [item] = hold(database, "ann", 100)
    run(database, item, seconds)
    end(database, item, "completed")

    assert settled(database, item) == ("captured", credits, "completed")
    assert remaining(database, "ann") == 500 - credits
    assert drift(database) == []


@pytest.mark.parametrize(("price", "seconds", "back"), [(84, 80, 4), (96, 82, 14), (25, 22, 3)])
def test_what_a_job_did_not_use_comes_back(database, price, seconds, back):
    give(database, "ann", 100)
    [item] = hold(database, "ann", price)
    before = remaining(database, "ann")
    run(database, item, seconds)
    end(database, item, "completed")

    assert remaining(database, "ann") - before == back


def test_a_job_that_was_canceled_while_it_ran_costs_its_seconds(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 7.4)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", item)

    assert settled(database, item) == ("captured", 8, "canceled")
    assert remaining(database, "ann") == 92


def test_a_job_that_never_started_costs_nothing(database):
    give(database, "ann", 100)
    canceled, deleted = hold(database, "ann", 30, 20)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", canceled)
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", deleted)

    assert [settled(database, item) for item in (canceled, deleted)] == [("released", 0, "not_started")] * 2
    assert remaining(database, "ann") == 100


def test_a_running_job_that_its_owner_deletes_costs_its_seconds(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 12.0)
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", item)

    assert settled(database, item) == ("captured", 12, "deleted")
    assert drift(database) == []


def test_a_graph_that_fails_and_leaves_nothing_costs_nothing(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 25)
    run(database, item, 9.0)
    picture(database, item, intermediate=1)
    end(database, item, "failed", error="ValueError")

    assert settled(database, item) == ("released", 0, "failed_empty")
    assert remaining(database, "ann") == 100


@pytest.mark.parametrize("table", ["image", "video"])
def test_a_graph_that_fails_after_it_left_something_costs_its_seconds(database, table):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 25)
    run(database, item, 9.0)
    picture(database, item, kind=table)
    end(database, item, "failed", error="ValueError")

    assert settled(database, item) == ("captured", 9, "failed_with_outputs")


def test_more_than_five_empty_failures_an_hour_cost_their_seconds(database, dsn):
    give(database, "ann", 100)
    items = hold(database, "ann", *[10] * 8)
    for item in items[:6]:
        run(database, item, 3.0)
        end(database, item, "failed", error="ValueError")
    reasons = [settled(database, item)[1:] for item in items[:6]]
    rows(database, "UPDATE session_queue SET status = 'in_progress' WHERE item_id = ANY(%s)", items[6:])
    as_owner(dsn, "UPDATE usage_records SET created_at = created_at - interval '61 minutes'")
    run(database, items[6], 3.0)
    end(database, items[6], "failed", error="ValueError")

    assert reasons == [(0, "failed_empty")] * 5 + [(3, "failed_too_often")]
    assert settled(database, items[6]) == ("released", 0, "failed_empty")


def test_several_failures_in_one_statement_are_counted_one_by_one(database):
    give(database, "ann", 100)
    items = hold(database, "ann", *[10] * 7)
    for item in items:
        run(database, item, 3.0)
    rows(database, "UPDATE session_queue SET status = 'failed', error_type = 'ValueError' WHERE user_id = 'ann'")

    assert [settled(database, item)[1] for item in items] == [0, 0, 0, 0, 0, 3, 3]
    assert drift(database) == []


def test_a_lost_worker_costs_nothing_and_what_it_left_goes(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 40.0)
    picture(database, item)
    rows(database, "UPDATE job_attempts SET lease_until = now() - interval '1 second'")
    ended = reaper.reap(database, patience=Patience(losses=1))

    assert ended == {item: "failed"}
    assert settled(database, item) == ("released", 0, "operator_failed")
    assert rows(database, "SELECT image_name FROM images") == []
    assert rows(database, "SELECT state FROM stored_objects") == [{"state": "purge"}]


@pytest.mark.parametrize("error", ["StorageUnavailable", "ImageFileSaveException", "DatabaseUnavailable"])
def test_a_store_that_is_down_costs_nothing(database, error):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 40.0)
    picture(database, item)
    end(database, item, "failed", error=error)

    assert settled(database, item) == ("released", 0, "operator_failed")
    assert rows(database, "SELECT image_name FROM images") == []


def test_attempts_that_were_lost_or_given_back_do_not_count(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 20.0, state="lost")
    run(database, item, 20.0, state="revoked")
    run(database, item, 4.0)
    end(database, item, "completed")

    assert settled(database, item) == ("captured", 4, "completed")


def test_a_job_that_was_given_back_and_canceled_while_it_waited_costs_nothing(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 20.0, state="revoked")
    rows(database, "UPDATE session_queue SET status = 'pending' WHERE item_id = %s", item)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", item)

    assert settled(database, item) == ("released", 0, "not_started")


def test_a_job_that_goes_back_to_the_queue_keeps_its_hold(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 20.0, state="lost")
    rows(database, "UPDATE session_queue SET status = 'pending' WHERE item_id = %s", item)

    assert settled(database, item) == ("held", 0, None)
    assert remaining(database, "ann") == 50


def test_a_job_that_was_settled_cannot_run_again(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 5.0)
    end(database, item, "completed")
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        rows(database, "UPDATE session_queue SET status = 'pending' WHERE item_id = %s", item)

    assert refused.value.diag.constraint_name == "credit_holds_settled_once"


def test_a_settled_hold_cannot_be_settled_again(database, dsn):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 50)
    run(database, item, 5.0)
    end(database, item, "completed")
    rows(database, "UPDATE session_queue SET status = 'failed' WHERE item_id = %s", item)
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", item)
    with psycopg.connect(dsn) as owner, pytest.raises(psycopg.errors.IntegrityError):
        owner.execute("UPDATE credit_holds SET state = 'released', captured = 0")

    assert settled(database, item) == ("captured", 5, "completed")
    assert remaining(database, "ann") == 95


def test_called_workflows_are_paid_from_their_roots_hold(database):
    give(database, "ann", 100)
    [root] = hold(database, "ann", 50)
    run(database, root, 3.0, state="finished")
    rows(database, "UPDATE session_queue SET status = 'waiting' WHERE item_id = %s", root)
    for seconds in (4.0, 5.5):
        child = new_item(database, "ann", root=root)
        run(database, child, seconds)
        end(database, child, "completed")
    still = settled(database, root)
    run(database, root, 1.0)
    end(database, root, "completed")

    assert still == ("held", 0, None)
    assert settled(database, root) == ("captured", 14, "completed")


@pytest.mark.parametrize("statement", ["UPDATE session_queue SET status = 'canceled'", "DELETE FROM session_queue"])
def test_a_chain_that_ends_in_one_statement_is_charged_for_what_ran(database, statement):
    give(database, "ann", 100)
    [root] = hold(database, "ann", 50)
    run(database, root, 3.0, state="finished")
    rows(database, "UPDATE session_queue SET status = 'waiting' WHERE item_id = %s", root)
    child = new_item(database, "ann", root=root)
    run(database, child, 4.0)
    rows(database, statement + " WHERE user_id = 'ann'")

    assert settled(database, root)[:2] == ("captured", 7)


def test_a_root_that_ends_first_is_charged_for_the_children_that_run(database):
    give(database, "ann", 100)
    [root] = hold(database, "ann", 50)
    run(database, root, 3.0, state="finished")
    rows(database, "UPDATE session_queue SET status = 'waiting' WHERE item_id = %s", root)
    child = new_item(database, "ann", root=root)
    run(database, child, 4.0)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", root)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", child)

    assert settled(database, root)[:2] == ("captured", 7)


def test_a_called_workflow_that_the_operator_lost_makes_the_whole_chain_free(database):
    give(database, "ann", 100)
    [root] = hold(database, "ann", 50)
    run(database, root, 3.0, state="finished")
    child = new_item(database, "ann", root=root)
    run(database, child, 4.0, state="lost")
    picture(database, child)
    end(database, child, "failed", error="WorkerLost")
    end(database, root, "failed", error="ValueError")

    assert settled(database, root) == ("released", 0, "operator_failed")
    assert rows(database, "SELECT image_name FROM images") == []


def test_providers_are_paid_as_shown_when_a_job_completes(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", JobHold(50, provider_credits=40))
    run(database, item, 30.0)
    end(database, item, "completed")

    assert settled(database, item) == ("captured", 50, "completed")


def test_providers_are_paid_for_the_calls_that_were_made_when_a_job_is_canceled(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", JobHold(50, provider_credits=40))
    run(database, item, 2.0)
    with tenancy.as_user("ann"), database.postgres() as cursor:
        service.provider_called(cursor, item_id=item, credits=20)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", item)

    assert settled(database, item) == ("captured", 22, "canceled")


def test_every_settled_job_has_one_usage_record(database):
    give(database, "ann", 100)
    detail = {"action_type": "txt2vid", "model_used": "svd", "steps": 20, "width": 512, "height": 1e300, "batch_size": "x"}
    one, other = hold(database, "ann", JobHold(50, gpu_tier="basic", detail=detail), 5)
    run(database, one, 70.5)
    end(database, one, "completed")
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", other)
    columns = "job_id, action_type, model_used, gpu_tier, steps, width, height, batch_size, compute_seconds, credits_consumed, outcome"
    found = [tuple(row.values()) for row in rows(database, f"SELECT {columns} FROM usage_records ORDER BY job_id")]

    assert found == [
        (str(one), "txt2vid", "svd", "basic", 20, 512, None, None, 70.5, 50, "completed"),
        (str(other), "other", "unknown", "unknown", None, None, None, None, 0.0, 0, "not_started"),
    ]


def test_items_from_before_the_metering_end_without_a_hold(database):
    item = new_item(database, "ann")
    run(database, item, 5.0)
    end(database, item, "completed")

    assert rows(database, "SELECT count(*) AS n FROM usage_records") == [{"n": 0}]
