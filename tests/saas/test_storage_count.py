"""What a user holds is counted exactly, whatever happens at once, and not by themself."""

import random
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from saas.stored_rows import add_workflow_row, delete_row, demand_whole, journal_states, save_image
from saas.stores import disk_store
from saas.unsteady import Unsteady

from invokeai_saas.db import tenancy
from invokeai_saas.storage.errors import StorageUnavailable
from invokeai_saas.storage.files import Files


def test_the_count_equals_the_store_after_random_saves_and_deletes_at_once(open_database, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    database = open_database(pool_size=6)
    files = Files(database, Unsteady(tmp_path, chance=0.1, seed=seed))
    for user in ("ann", "bob", "eve"):
        with tenancy.as_user(user):
            add_workflow_row(database, user, f"{user}-w")

    def works(worker: int) -> int:
        rng, failures = random.Random(seed + worker), 0
        mine: list[tuple[str, str]] = []
        for number in range(40):
            user = rng.choice(("ann", "bob", "eve"))
            try:
                if rng.random() < 0.2:
                    with tenancy.as_user(user):
                        files.save("workflow", f"{user}-w", {"file": b"p" * rng.randrange(1, 300)})
                elif mine and rng.random() < 0.4:
                    owner, name = mine.pop(rng.randrange(len(mine)))
                    delete_row(database, owner, name)
                    with tenancy.as_user(owner):
                        files.purge("image", [name])
                else:
                    name = f"{worker}-{number}.png"
                    save_image(files, database, user, name, size=rng.randrange(1, 9000))
                    mine.append((user, name))
            except StorageUnavailable:
                failures += 1
        return failures

    with ThreadPoolExecutor(6) as pool:
        failures = sum(pool.map(works, range(6)))
    files.store._chance = 0.0
    files.recover(older_than_seconds=0)

    assert failures > 0
    assert journal_states(database)["stored"] > 20
    demand_whole(files, database)


def test_a_count_that_reads_before_it_writes_is_noticed(dsn, open_database, tmp_path):
    """The lock of the row is what keeps the count: without it, the sentence that the tests demand is false."""
    with psycopg.connect(dsn) as connection:
        body = connection.execute("SELECT pg_get_functiondef('storage_count'::regproc)").fetchone()[0]
        careless = body.replace("DECLARE", "DECLARE seen bigint;", 1).replace(
            "UPDATE public.storage_used AS used SET bytes = used.bytes + after - before",
            "SELECT bytes INTO seen FROM public.storage_used AS used WHERE used.user_id = whose; PERFORM pg_sleep(0.05);"
            " UPDATE public.storage_used AS used SET bytes = seen + after - before",
        )
        assert "seen + after" in careless
        connection.execute(careless)
    database = open_database()
    files = Files(database, disk_store(tmp_path))
    save_image(files, database, "ann", "first.png")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: save_image(files, database, "ann", f"{number}.png", size=1000), range(8)))

    with pytest.raises(AssertionError):
        demand_whole(files, database)


def test_a_tenant_cannot_change_what_they_are_counted_for(database, tmp_path):
    files = Files(database, disk_store(tmp_path))
    save_image(files, database, "ann", "a.png")

    for attack in ("UPDATE storage_used SET bytes = 0", "DELETE FROM stored_objects", "UPDATE stored_objects SET bytes = 0"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), tenancy.as_user("ann"), database.postgres() as cursor:
            cursor.execute(attack)
