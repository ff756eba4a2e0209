"""A worker is gone, or lets go: the item starts over as if it had never run, a chain from its root, and after three losses it fails."""

import json

import pytest
from saas.books import balance, drift, give, hold, picture, remaining, settled
from saas.chains import FRESH, attempts_of, call, claimed, item_of, pictures, suspend
from saas.people import rows
from saas.rows import AT_ONCE, add_items, status_of
from saas.stored_rows import demand_whole, objects
from saas.stores import disk_store

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease, lost
from invokeai_saas.jobs.lease import LeaseLost, claim
from invokeai_saas.jobs.lost import Patience, give_back, lose
from invokeai_saas.storage.files import Files

LOST_AT_ONCE = Patience(losses=99, first_wait_seconds=0)


def lose_one(database, attempt, patience=AT_ONCE):
    return lose(database, attempt, why="a test killed its worker", patience=patience)


def test_a_lost_item_is_as_it_was_enqueued(database):
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database)
    picture(database, item)
    picture(database, item, kind="video")
    picture(database, item, intermediate=1)

    assert lose_one(database, attempt) == {item: "pending"}
    assert (json.loads(item_of(database, item)["session"]), pictures(database)) == (FRESH, 0)
    assert (item_of(database, item)["untold"], attempts_of(database, item)) == (True, ["lost"])
    assert claim(database, worker_id="w2", lease_seconds=60).attempt_no == 2


def test_what_other_items_and_other_users_made_stays(database):
    mine, other = add_items(database, "ann", 2)
    [bobs] = add_items(database, "bob", 1)
    for item in (mine, other, bobs):
        picture(database, item)
    # Bob saved something under Ann's session: names of sessions are no secret, and no right either.
    rows(database, "UPDATE images SET session_id = (SELECT session_id FROM session_queue WHERE item_id = %s) WHERE user_id = 'bob'", mine)
    lose_one(database, claimed(database))

    assert rows(database, "SELECT user_id, session_id FROM images ORDER BY user_id") == [
        {"user_id": "ann", "session_id": item_of(database, other)["session_id"]},
        {"user_id": "bob", "session_id": item_of(database, mine)["session_id"]},
    ]


def test_a_lost_items_files_go_with_their_rows(database, tmp_path):
    files = Files(database, disk_store(tmp_path))
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database)
    insert = "INSERT INTO images (image_name, image_origin, image_category, width, height, user_id, session_id)"
    with tenancy.as_user("ann"), lease.guarding(attempt):
        with database.postgres() as cursor:
            cursor.execute(f"{insert} SELECT 'a.png', 'internal', 'general', 1, 1, user_id, session_id FROM session_queue".encode())
        files.save("image", "a.png", {"file": b"f" * 100, "thumbnail": b"t" * 10})
    before = set(objects(files))
    lose_one(database, attempt)
    files.recover()

    assert (before, objects(files)) == ({"users/ann/images/a.png", "users/ann/images/thumbnails/a.webp"}, {})
    demand_whole(files, database)


def test_each_loss_doubles_the_wait_and_the_third_is_the_end(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 40)
    waits = []
    for _ in range(2):
        assert lose(database, claimed(database), why="killed") == {item: "pending"}
        waits.append(round(item_of(database, item)["waits"]))
        assert claim(database, worker_id="w", lease_seconds=60) is None
        rows(database, "UPDATE session_queue SET not_before = now()")
    picture(database, item)
    assert lose(database, claimed(database), why="killed") == {item: "failed"}

    assert waits == [2, 4]
    assert "stopped answering, 3 times in a row" in item_of(database, item)["error_message"]
    assert (settled(database, item), remaining(database, "ann")) == (("released", 0, "operator_failed"), 100)
    assert (pictures(database), drift(database)) == (0, [])


def test_a_lost_attempt_is_lost_once(database):
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database)
    lose_one(database, attempt)
    again = claim(database, worker_id="w2", lease_seconds=60)

    assert (lose_one(database, attempt), status_of(database, item)) == ({}, "in_progress")
    assert lose_one(database, again) == {item: "pending"}


def test_a_canceled_item_stays_canceled_when_its_worker_dies(database):
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database)
    rows(database, "UPDATE session_queue SET status = 'canceled'")

    assert (lose_one(database, attempt), status_of(database, item), attempts_of(database, item)) == ({}, "canceled", ["lost"])


def test_the_attempt_of_an_item_that_is_gone_ends_too(database):
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database)
    rows(database, "DELETE FROM session_queue")

    assert (lose_one(database, attempt), attempts_of(database, item)) == ({}, ["lost"])


def test_a_hand_back_is_no_loss_and_waits_for_nothing(database):
    [item] = add_items(database, "ann", 1)
    for _ in range(5):
        picture(database, item)
        assert give_back(database, claimed(database), gpu_seconds=3.0) == {item: "pending"}
    row = item_of(database, item)

    assert (json.loads(row["session"]), row["waits"] <= 0, pictures(database)) == (FRESH, True, 0)
    assert attempts_of(database, item) == ["revoked"] * 5
    with pytest.raises(LeaseLost):
        give_back(database, lease.Attempt(item, 5, "ann", row["not_before"]))


def test_what_a_lost_attempt_and_its_provider_cost_is_the_operators(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", lost_price())
    attempt = claimed(database)
    with tenancy.as_user("ann"), database.postgres() as cursor:
        cursor.execute("SELECT credits_provider_called(%s, 15)", (item,))
    lease.heartbeat(database, attempt, lease_seconds=60, gpu_seconds=12.0)
    lose_one(database, attempt)
    spent = rows(database, "SELECT provider_spent FROM credit_holds")[0]["provider_spent"]
    rows(database, "UPDATE session_queue SET status = 'canceled'")

    assert (spent, settled(database, item)) == (0, ("released", 0, "not_started"))


def lost_price():
    from invokeai_saas.credits.model import JobHold

    return JobHold(50, 20, "basic", {})


def test_a_graph_that_is_none_keeps_nobody_from_coming_back(database):
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database)
    for session in ("key-1", "[]", '{"graph": {}}', "", "5"):
        rows(database, "UPDATE session_queue SET session = %s", session)
        lose_one(database, attempt, LOST_AT_ONCE)
        assert (item_of(database, item)["session"], status_of(database, item)) == (session, "pending")
        attempt = claim(database, worker_id="w", lease_seconds=60)


def chain(database, seconds: float = 5.0):
    """A root that called two workflows: one is done and left a picture, one runs. -> root, done, running, its attempt."""
    give(database, "ann", 100)
    [root] = hold(database, "ann", 60)
    picture(database, root)
    suspend(database, claimed(database), seconds=seconds)
    done, running = call(database, root), call(database, root)
    attempt = claimed(database)
    picture(database, done)
    rows(database, "UPDATE job_attempts SET state = 'finished', ended_at = now(), gpu_seconds = 7 WHERE item_id = %s", done)
    rows(database, "UPDATE session_queue SET status = 'completed' WHERE item_id = %s", done)
    attempt = claimed(database)
    picture(database, running)
    lease.heartbeat(database, attempt, lease_seconds=60, gpu_seconds=9.0)
    assert (attempt.item_id, pictures(database)) == (running, 3)
    return root, done, running, attempt


@pytest.mark.parametrize(("end", "counted"), [(lose_one, "lost"), (give_back, "revoked")])
def test_a_chain_starts_over_from_its_root(database, end, counted):
    root, done, running, attempt = chain(database)
    assert end(database, attempt) == {root: "pending"}
    row = item_of(database, root)

    assert [status_of(database, item) for item in (root, done, running)] == ["pending", "completed", "canceled"]
    assert (json.loads(row["session"]), row["pinned_to"], pictures(database)) == (FRESH, None, 0)
    assert [attempts_of(database, item) for item in (root, done, running)] == [[counted], ["revoked"], [counted]]
    assert item_of(database, running)["untold"] and row["untold"]


def test_what_a_chain_did_before_it_started_over_is_nobodys_charge(database):
    root, _, _, attempt = chain(database)
    lose_one(database, attempt)
    again = claimed(database)
    lease.finish(database, again, gpu_seconds=4.0)
    rows(database, "UPDATE session_queue SET status = 'completed' WHERE item_id = %s", root)

    assert (settled(database, root), remaining(database, "ann"), drift(database)) == (("captured", 4, "completed"), 96, [])


def test_a_chain_that_is_canceled_while_it_waits_to_start_over_costs_nothing(database):
    root, _, _, attempt = chain(database)
    lose_one(database, attempt)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", root)

    assert (settled(database, root), balance(database, "ann").held_credits) == (("released", 0, "not_started"), 0)


def test_the_third_loss_of_a_chain_is_the_end_of_all_of_it(database):
    give(database, "ann", 100)
    [root] = hold(database, "ann", 60)
    for times in range(1, 4):
        suspend(database, claimed(database), seconds=5.0)
        child = call(database, root)
        ended = lose_one(database, claimed(database))
        assert ended == {root: "pending" if times < 3 else "failed"}
        assert status_of(database, child) == "canceled"

    assert item_of(database, root)["error_type"] == "WorkerLost"
    assert (settled(database, root), drift(database)) == (("released", 0, "operator_failed"), [])


def test_the_calls_of_a_root_that_has_ended_end_with_it(database):
    root, _, running, attempt = chain(database)
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", root)

    assert lose_one(database, attempt) == {}
    assert [status_of(database, item) for item in (root, running)] == ["canceled", "canceled"]


# Each of these lines is there because of a test above.
WITHOUT = {
    "REMOVE_PICTURES": ("DELETE FROM images WHERE", "DELETE FROM images WHERE false AND"),
    "REMOVE_VIDEOS": ("DELETE FROM videos WHERE", "DELETE FROM videos WHERE false AND"),
    "OWE_NOTHING": ("SELECT credits_start_over(%(root)s)", "SELECT %(root)s"),
    "START_OVER": ("queue_fresh_session(session)", "session"),
    "CANCEL_CALLED": ("status = 'canceled', ", ""),
    "END_OTHERS": ("state IN ('running', 'finished')", "false"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_one_of_its_steps_a_lost_chain_is_not_as_before(database, monkeypatch, name):
    text = getattr(lost, name)
    assert WITHOUT[name][0] in text
    monkeypatch.setattr(lost, name, text.replace(*WITHOUT[name]))
    root, done, running, attempt = chain(database)
    picture(database, running, kind="video")
    lose_one(database, attempt)
    again = claimed(database) if json.loads(item_of(database, root)["session"]) == FRESH else None
    if again is not None:
        lease.finish(database, again, gpu_seconds=4.0)
        rows(database, "UPDATE session_queue SET status = 'completed' WHERE item_id = %s", root)
    right = (
        again is not None
        and status_of(database, running) == "canceled"
        and pictures(database) == 0
        and settled(database, root) == ("captured", 4, "completed")
        and attempts_of(database, done) == ["revoked"]
    )

    assert not right
