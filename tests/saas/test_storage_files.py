"""Rows and objects together: who may read, what a delete takes, what a failure leaves, what is counted."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from saas.stored_rows import (
    add_image_row,
    add_workflow_row,
    delete_row,
    demand_whole,
    image_rows,
    objects,
    save_image,
)
from saas.stores import disk_store
from saas.unsteady import Unsteady

from invokeai_saas.db import tenancy
from invokeai_saas.storage import recovery
from invokeai_saas.storage.errors import (
    AlreadyStored,
    BadName,
    InsideTransaction,
    ObjectMissing,
    StorageUnavailable,
    WriteUndone,
)
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName

IMAGE, THUMBNAIL, PICTURE = ObjectName("image", "a.png"), ObjectName("image", "a.png", "thumbnail"), ObjectName("workflow", "w")


@pytest.fixture
def files(database, tmp_path) -> Files:
    return Files(database, disk_store(tmp_path))


@pytest.fixture
def unsteady(database, tmp_path) -> Files:
    return Files(database, Unsteady(tmp_path))


def test_a_saved_file_is_found_by_its_owner_and_counted(files, database):
    save_image(files, database, "ann", "a.png", size=100)

    with tenancy.as_user("ann"):
        assert files.path(IMAGE).read_bytes() == b"f" * 100
        assert files.path(THUMBNAIL).read_bytes() == b"t" * 10
        assert files.used_bytes("ann") == 110
    assert set(objects(files)) == {"users/ann/images/a.png", "users/ann/images/thumbnails/a.webp"}
    demand_whole(files, database)


def test_a_foreign_file_and_a_missing_one_answer_alike(files, database):
    save_image(files, database, "bob", "a.png")
    calls = [
        lambda: files.path(IMAGE),
        lambda: files.signed_url(IMAGE),
        lambda: files.save("image", "a.png", {"file": b"x"}),
        lambda: files.discard("image", "a.png"),
    ]
    answers: list[list[str]] = []

    for _ in range(2):
        answers.append([])
        with tenancy.as_user("ann"):
            assert files.locate(IMAGE) is None
            assert files.used_bytes("bob") == 0
            for call in calls:
                with pytest.raises(ObjectMissing) as refused:
                    call()
                answers[-1].append(str(refused.value))
        if len(answers) == 1:
            demand_whole(files, database)
            delete_row(database, "bob", "a.png")
    assert answers[0] == answers[1]


def test_nobody_reads_nothing(files, database):
    save_image(files, database, "ann", "a.png")

    with pytest.raises(Exception, match="tenant context"):
        files.path(IMAGE)
    with tenancy.as_system("a test"), pytest.raises(ObjectMissing):
        files.signed_url(IMAGE)


def test_an_address_is_signed_for_who_asks_and_reads_the_file(files, database):
    save_image(files, database, "ann", "a.png")
    with tenancy.as_user("ann"):
        url = files.signed_url(IMAGE, seconds=60)

    path, query = url.split("?")
    values = dict(pair.split("=") for pair in query.split("&"))
    key = files.store.signer.verify(path.removeprefix("/api/v1/stored/"), values, asking_user_id="ann")
    assert files.store.local_path(key).read_bytes() == b"f" * 100


def test_what_lies_on_a_public_board_is_read_by_others_once_sharing_is_on(open_database, tmp_path):
    database = open_database(sharing=True)
    files = Files(database, disk_store(tmp_path))
    save_image(files, database, "bob", "a.png")
    with tenancy.as_user("ann"):
        assert files.locate(IMAGE) is None
    with tenancy.as_user("bob"), database.transaction() as cursor:
        cursor.execute("INSERT INTO boards (board_id, board_name, user_id, board_visibility) VALUES ('b', 'b', 'bob', 'public')")
        cursor.execute("INSERT INTO board_images (board_id, image_name) VALUES ('b', 'a.png')")

    with tenancy.as_user("ann"):
        assert files.path(IMAGE).read_bytes() == b"f" * 100
        with pytest.raises(ObjectMissing):
            files.save("image", "a.png", {"file": b"x"})


@pytest.mark.parametrize("name", ["", "..", "../a.png", "a/b.png", "a\\b.png", ".hidden", "a\x00", "x" * 201, "\ud800"])
def test_a_name_with_tricks_is_refused_and_writes_nothing(files, database, name):
    with tenancy.as_user("ann"):
        for call in (lambda: files.save("image", name, {"file": b"x"}), lambda: ObjectName("image", name)):
            with pytest.raises(BadName):
                call()

    assert objects(files) == {}


def test_a_row_whose_name_no_store_takes_still_goes(files, database):
    with tenancy.as_user("ann"):
        add_image_row(database, "ann", "../../evil")
        with pytest.raises(BadName):
            files.save("image", "../../evil", {"file": b"x"})

    assert files.recover(older_than_seconds=0).undone == [("image", "../../evil")]
    demand_whole(files, database)


def test_a_file_without_its_row_is_not_taken(files, database):
    with tenancy.as_user("ann"), pytest.raises(ObjectMissing):
        files.save("image", "a.png", {"file": b"x"})

    demand_whole(files, database)


def test_a_picture_or_video_is_never_overwritten(files, database):
    save_image(files, database, "ann", "a.png")

    with tenancy.as_user("ann"), pytest.raises(AlreadyStored):
        files.save("image", "a.png", {"file": b"other", "thumbnail": b"x"})
    demand_whole(files, database)


def test_a_file_inside_a_transaction_is_refused(files, database):
    with tenancy.as_user("ann"), pytest.raises(InsideTransaction), database.transaction():
        files.save("image", "a.png", {"file": b"x"})


def test_a_delete_takes_the_objects_and_the_count(files, database):
    save_image(files, database, "ann", "a.png")
    save_image(files, database, "ann", "b.png")
    delete_row(database, "ann", "a.png")
    with tenancy.as_user("ann"):
        assert files.locate(IMAGE) is None
        assert files.used_bytes("ann") == 110
        files.purge("image", ["a.png", "b.png"])

    assert set(objects(files)) == {"users/ann/images/b.png", "users/ann/images/thumbnails/b.webp"}
    demand_whole(files, database)


def test_a_delete_that_is_rolled_back_takes_nothing(files, database):
    save_image(files, database, "ann", "a.png")
    with tenancy.as_user("ann"), pytest.raises(RuntimeError), database.transaction() as cursor:
        cursor.execute("DELETE FROM images")
        files.purge("image", ["a.png"])
        raise RuntimeError

    with tenancy.as_user("ann"):
        files.purge("image", ["a.png"])
    demand_whole(files, database)
    assert image_rows(database) == {"a.png"}


def test_a_purge_waits_for_the_commit_around_it(files, database):
    save_image(files, database, "ann", "a.png")
    with tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("DELETE FROM images")
        files.purge("image", ["a.png"])
        during = len(objects(files))

    assert (during, len(objects(files))) == (2, 0)
    demand_whole(files, database)


def test_whoever_deletes_the_rows_the_objects_go(files, database):
    for name in ("a.png", "b.png"):
        save_image(files, database, "ann", name)
    with tenancy.as_user("ann"):
        add_workflow_row(database, "ann", "w")
        files.save("workflow", "w", {"file": b"picture"})
    with tenancy.as_system("an account is erased"), database.transaction() as cursor:
        for table in ("images", "workflow_library"):
            cursor.execute(f"DELETE FROM {table} WHERE user_id = 'ann'")

    assert files.recover().purged == 5
    assert objects(files) == {}
    demand_whole(files, database)


def test_a_row_deleted_during_the_upload_takes_the_upload_along(files, database, monkeypatch):
    put = files.store.put

    def put_and_lose_the_row(key: str, data: bytes, content_type: str) -> None:
        put(key, data, content_type)
        if "thumbnails" in key:
            delete_row(database, "ann", "a.png")

    monkeypatch.setattr(files.store, "put", put_and_lose_the_row)
    with pytest.raises(WriteUndone):
        save_image(files, database, "ann", "a.png")

    assert objects(files) == {}
    demand_whole(files, database)


def test_an_outage_while_saving_leaves_nothing_once_the_row_is_deleted(unsteady, database):
    unsteady.store.away = 1
    with pytest.raises(StorageUnavailable):
        save_image(unsteady, database, "ann", "a.png")
    with tenancy.as_user("ann"):
        assert unsteady.locate(IMAGE) is None
    delete_row(database, "ann", "a.png")
    with tenancy.as_user("ann"):
        unsteady.purge("image", ["a.png"])

    demand_whole(unsteady, database)


def test_an_outage_while_deleting_is_made_up_for(unsteady, database):
    save_image(unsteady, database, "ann", "a.png")
    delete_row(database, "ann", "a.png")
    unsteady.store.away = 2
    with tenancy.as_user("ann"):
        unsteady.purge("image", ["a.png"])
        assert unsteady.used_bytes("ann") == 0

    assert len(objects(unsteady)) == 2
    assert (unsteady.recover().left, unsteady.recover().purged) == (2, 2)
    demand_whole(unsteady, database)


def test_a_picture_is_replaced_and_a_failed_one_leaves_the_old(unsteady, database):
    with tenancy.as_user("ann"):
        add_workflow_row(database, "ann", "w")
        for content in (b"first", b"second"):
            unsteady.save("workflow", "w", {"file": content})
        unsteady.store.away = 1
        with pytest.raises(StorageUnavailable):
            unsteady.save("workflow", "w", {"file": b"third"})

        assert unsteady.path(PICTURE).read_bytes() == b"second"
    unsteady.recover()
    demand_whole(unsteady, database)
    assert len(objects(unsteady)) == 1


def test_pictures_saved_at_once_leave_one(files, database):
    with tenancy.as_user("ann"):
        add_workflow_row(database, "ann", "w")
        with ThreadPoolExecutor(4) as pool:
            contents = [str(number).encode() for number in range(16)]
            list(pool.map(tenancy.carry(lambda content: files.save("workflow", "w", {"file": content})), contents))

        assert files.path(PICTURE).read_bytes() in contents
    files.recover()
    demand_whole(files, database)
    assert len(objects(files)) == 1


def test_a_write_that_is_still_going_on_is_left_alone(files, database):
    with tenancy.as_user("ann"):
        add_image_row(database, "ann", "a.png")

    assert files.recover(older_than_seconds=60).undone == []
    assert image_rows(database) == {"a.png"}
    assert files.recover(older_than_seconds=0).undone == [("image", "a.png")]
    assert image_rows(database) == set()


def test_a_recovery_during_an_outage_keeps_everything_for_the_next(unsteady, database, monkeypatch):
    with tenancy.as_user("ann"):
        add_image_row(database, "ann", "a.png")
        unsteady.store.away = 10**6
        with pytest.raises(StorageUnavailable):
            unsteady.save("image", "a.png", {"file": b"f", "thumbnail": b"t"})

    def away(key: str) -> int:
        raise StorageUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(unsteady.store, "size", away)
        assert unsteady.recover(older_than_seconds=0).left == 1
    assert image_rows(database) == {"a.png"}
    unsteady.store.away = 0
    unsteady.recover(older_than_seconds=0)
    demand_whole(unsteady, database)


def test_objects_that_no_row_knows_are_named(files, database):
    save_image(files, database, "ann", "a.png")
    files.store.put("users/ann/images/stray.png", b"x", "image/png")

    assert recovery.strays(database, files.store) == ["users/ann/images/stray.png"]
