"""import-sqlite: what an InvokeAI root holds is in our database and storage afterwards, once, whoever's it was; the root is only read."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from saas import import_library as library
from saas.people import rows
from saas.stock_root import PASSWORD, StockRoot, change_database, fingerprint
from saas.stored_rows import delete_row, objects
from saas.stores import disk_store, moto_server, s3_store

from invokeai_saas.accounts import operator, service
from invokeai_saas.db import tenancy
from invokeai_saas.importing.run import count_root
from invokeai_saas.importing.source import ImportRefused
from invokeai_saas.storage.errors import StorageUnavailable
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName


@pytest.fixture(scope="module")
def moto_url():
    with moto_server() as (url, _):
        yield url


@pytest.fixture(params=["disk"])
def files(request, database, tmp_path):
    store = disk_store(tmp_path) if request.param == "disk" else s3_store(request.getfixturevalue("moto_url"), tmp_path)
    yield Files(database, store)
    store.delete([found.key for found in store.list("")])


@pytest.fixture
def bring(accounts, files):
    return library.bringing(accounts, files)


@pytest.fixture
def services(files, database, tmp_path) -> SimpleNamespace:
    return library.our_services(files, database, tmp_path)


@pytest.fixture(scope="module")
def shared_single(tmp_path_factory):
    return library.furnish_one_user(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def shared_multi(tmp_path_factory):
    return library.furnish_users(tmp_path_factory.mktemp("multi"))


@pytest.fixture
def single(shared_single, tmp_path):
    """A copy that a test may change."""
    root, names = shared_single
    return Path(shutil.copytree(root, tmp_path / "root")), names


@pytest.fixture
def multi(shared_multi, tmp_path):
    root, users, names = shared_multi
    return Path(shutil.copytree(root, tmp_path / "root")), users, names


@pytest.mark.parametrize("files", ["disk", "s3"], indirect=True)
def test_a_root_of_one_user_is_all_there_for_its_owner_byte_for_byte(bring, services, files, database, accounts, single):
    root, names = single
    before = fingerprint(root)
    report = bring(root, owner=library.ANN)

    library.demand_library(services, root, names, 10, library.user_id_of(accounts, library.ANN))
    library.demand_whole_with_videos(files, database)
    assert (report.left, fingerprint(root)) == ([], before)
    assert {kind: tally.brought for kind, tally in report.tallies.items()} == {
        "model": 2, "model relationship": 1, "image": 3, "video": 1, "board": 1, "image on a board": 1, "video on a board": 1,
        "workflow": 1, "style preset": 1, "system prompt": 1, "interface state": 1, "picture of a workflow": 1,
        "picture of a style preset": 1, "picture of a model": 2,
    }  # fmt: skip


def test_users_of_a_root_see_their_own_and_log_in_with_their_passwords(bring, services, files, database, accounts, multi):
    root, users, names = multi
    report = bring(root)

    assert report.left == []
    for number, (email, user_id) in enumerate(users.items()):
        library.demand_library(services, root, names[email], 100 * number, user_id)
        account, _ = service.login(accounts, email=email, password=PASSWORD)[:2]
        assert (account.user_id, account.role) == (user_id, "super_admin" if email == library.BOSS else "user")
    with tenancy.as_user(users[library.BOSS]):
        assert services.images.get_dto(names["system"].starred).starred
    with tenancy.as_user(users[library.ANN]):
        seen = {record.image_name for record in services.image_records.get_many(limit=100).items}
        assert seen == {names[library.ANN].on_board, names[library.ANN].starred, names[library.ANN].intermediate}
    shared = {"board_id": names[library.ANN].board, "user_id": users[library.BOB]}
    assert rows(database, "SELECT board_id, user_id FROM shared_boards") == [shared]


def test_times_are_the_roots_own(bring, database, single):
    root, names = single
    change_database(root, f"UPDATE images SET created_at = '2023-01-02 03:04:05.678' WHERE image_name = '{names.starred}'")
    bring(root, owner=library.ANN)

    assert rows(database, "SELECT created_at FROM images WHERE image_name = %s", names.starred) == [
        {"created_at": "2023-01-02 03:04:05.678"}
    ]


def test_run_twice_nothing_is_doubled_or_changed(bring, files, database, single):
    root, _ = single
    first = bring(root, owner=library.ANN)
    before, there = library.content(database), objects(files)
    second = bring(root, owner=library.ANN)

    assert (library.content(database), objects(files), second.left) == (before, there, [])
    assert {kind: tally.brought for kind, tally in second.tallies.items() if tally.brought} == {}
    assert {kind: t.there for kind, t in second.tallies.items()} == {kind: t.brought for kind, t in first.tallies.items()}


def test_what_users_changed_or_deleted_since_is_neither_overwritten_nor_brought_back(
    bring, services, files, database, accounts, multi
):
    root, users, names = multi
    bring(root)
    ann, mine = users[library.ANN], names[library.ANN]
    with tenancy.as_user(ann):
        services.images.delete(mine.starred)
        services.workflow_records.delete(mine.workflow, user_id=ann)
        services.board_records.delete(mine.board)
        services.client_state_persistence.set_by_key(ann, "params", "changed")
    operator.delete(accounts, email=library.BOB)
    files.recover(older_than_seconds=0)
    before = library.content(database)
    report = bring(root)

    assert (library.content(database), report.left) == (before, [])


def test_what_changed_in_the_root_since_is_reported_and_left_alone(bring, files, database, single):
    root, names = single
    bring(root, owner=library.ANN)
    before, there = library.content(database), objects(files)
    change_database(root, f"UPDATE boards SET board_name = 'renamed' WHERE board_id = '{names.board}'")
    other = next(root.rglob(names.starred))
    other.write_bytes(next(root.rglob(names.on_board)).read_bytes())
    report = bring(root, owner=library.ANN)

    assert (library.content(database), objects(files)) == (before, there)
    assert {(item.kind, item.name) for item in report.left} == {("image", names.starred), ("board", names.board)}


def test_names_that_somebody_else_has_here_are_reported_and_left_alone(bring, services, files, database, accounts, single):
    root, names = single
    operator.add(accounts, email=library.BOB, password=PASSWORD)
    bob = library.user_id_of(accounts, library.BOB)
    with tenancy.as_user(bob):
        with database.transaction() as cursor:
            columns = "image_name, image_origin, image_category, width, height, user_id"
            cursor.execute(f"INSERT INTO images ({columns}) VALUES (?, 'internal', 'general', 1, 1, ?)", (names.starred, bob))
            cursor.execute("INSERT INTO boards (board_id, board_name, user_id) VALUES (?, 'mine', ?)", (names.board, bob))
            workflow = '{"name": "n", "description": "d", "meta": {"category": "user"}}'
            insert = "INSERT INTO workflow_library (workflow_id, workflow, user_id) VALUES (?, ?, ?)"
            cursor.execute(insert, (names.workflow, workflow, bob))
        files.save("image", names.starred, {"file": b"bob's", "thumbnail": b"t"})
    report = bring(root, owner=library.ANN)

    left = {(item.kind, item.name) for item in report.left}
    assert left == {
        ("image", names.starred), ("board", names.board), ("workflow", names.workflow), ("picture of a workflow", names.workflow),
    }  # fmt: skip
    with tenancy.as_user(bob):
        assert files.path(ObjectName("image", names.starred)).read_bytes() == b"bob's"
        assert services.board_records.get(names.board).board_name == "mine"


def test_a_store_that_goes_away_stops_the_run_and_the_next_one_goes_on(bring, services, files, database, accounts, single, monkeypatch):
    root, names = single
    puts, put = [], files.store.put

    def away(key: str, data: bytes, content_type: str) -> None:
        puts.append(key)
        if len(puts) > 4:
            raise StorageUnavailable("away")
        put(key, data, content_type)

    with monkeypatch.context() as patch, pytest.raises(StorageUnavailable):
        patch.setattr(files.store, "put", away)
        bring(root, owner=library.ANN)
    report = bring(root, owner=library.ANN)

    assert report.left == []
    library.demand_library(services, root, names, 10, library.user_id_of(accounts, library.ANN))
    files.recover(older_than_seconds=0)
    library.demand_whole_with_videos(files, database)


def test_writes_that_recovery_took_back_meanwhile_begin_again(bring, services, files, database, accounts, single, monkeypatch):
    root, names = single

    def away(key: str, data: bytes, content_type: str) -> None:
        raise StorageUnavailable("away")

    with monkeypatch.context() as patch, pytest.raises(StorageUnavailable):
        patch.setattr(files.store, "put", away)
        bring(root, owner=library.ANN)
    assert rows(database, "SELECT count(*) AS n FROM images") == [{"n": 3}]
    files.recover(older_than_seconds=0)
    assert rows(database, "SELECT count(*) AS n FROM images") == [{"n": 0}]
    bring(root, owner=library.ANN)

    library.demand_library(services, root, names, 10, library.user_id_of(accounts, library.ANN))


def test_writes_that_another_process_finished_meanwhile_keep_their_files(bring, services, files, database, accounts, single, monkeypatch):
    root, names = single
    puts, put = [], files.store.put

    def hurried(key: str, data: bytes, content_type: str) -> None:
        put(key, data, content_type)
        puts.append(key)
        if len(puts) == 6:  # the files and thumbnails of the three pictures
            files.recover(older_than_seconds=0)

    with monkeypatch.context() as patch:
        patch.setattr(files.store, "put", hurried)
        first = bring(root, owner=library.ANN)
    second = bring(root, owner=library.ANN)

    assert (first.of("image").left, second.left) == (3, [])
    library.demand_library(services, root, names, 10, library.user_id_of(accounts, library.ANN))
    library.demand_whole_with_videos(files, database)


def test_files_that_are_missing_or_point_elsewhere_are_reported_and_their_rows_stay_behind(bring, files, database, single, tmp_path):
    root, names = single
    next(root.rglob(names.starred)).unlink()
    (tmp_path / "secret.png").write_bytes(b"secret")
    change_database(
        root,
        f"UPDATE images SET image_subfolder = '../../..' WHERE image_name = '{names.intermediate}'",
        "INSERT INTO images (image_name, image_origin, image_category, width, height) VALUES ('../a.png', 'internal', 'general', 1, 1)",
    )
    shutil.copy(tmp_path / "secret.png", tmp_path / names.intermediate)
    report = bring(root, owner=library.ANN)

    assert {item.name: item.reason for item in report.left} == {
        names.starred: "its file is missing in the root",
        names.intermediate: "its name is no plain file name",
        "../a.png": "its name is no plain file name",
    }
    assert rows(database, "SELECT image_name FROM images") == [{"image_name": names.on_board}]
    library.demand_whole_with_videos(files, database)


def test_a_missing_thumbnail_is_made_anew(bring, services, accounts, single):
    root, names = single
    thumbnail = next(root.rglob(f"{names.starred.removesuffix('.png')}.webp"))
    before = library.sha256(thumbnail)
    thumbnail.unlink()
    bring(root, owner=library.ANN)

    with tenancy.as_user(library.user_id_of(accounts, library.ANN)):
        assert library.sha256(services.image_files.get_path(names.starred, thumbnail=True)) == before


def test_models_stay_where_they_are_and_missing_ones_are_named(bring, database, single):
    root, _ = single
    report = bring(root, owner=library.ANN)

    paths = {row["id"]: row["path"] for row in rows(database, "SELECT id, path FROM models")}
    assert paths == {name: str(root / "models" / name / "model.safetensors") for name in ("there", "gone")}
    assert [note for note in report.notes if "model" in note] == [
        f"model gone: expected its file at {root}/models/gone/model.safetensors, there is none"
    ]


def test_folders_that_the_settings_name_are_where_files_are_looked_for(bring, services, accounts, single, tmp_path):
    root, names = single
    shutil.move(root / "outputs", tmp_path / "elsewhere")
    (root / "invokeai.yaml").write_text(f"schema_version: 4.0.3\noutputs_dir: {tmp_path}/elsewhere\n")
    report = bring(root, owner=library.ANN)

    assert report.left == []
    with tenancy.as_user(library.user_id_of(accounts, library.ANN)):
        assert library.same_file(services.image_files.get_path(names.starred), tmp_path / "elsewhere", names.starred)


def test_commits_that_are_only_in_the_log_come_along_and_the_root_stays_as_it_is(bring, database, tmp_path):
    stock = StockRoot(tmp_path / "live")
    board = stock.services.board_records.save("late", "system").board_id
    assert (tmp_path / "live" / "databases" / "invokeai.db-wal").stat().st_size > 0
    before = fingerprint(tmp_path / "live")
    bring(tmp_path / "live", owner=library.ANN)
    after = fingerprint(tmp_path / "live")
    stock.close()

    assert rows(database, "SELECT board_id FROM boards") == [{"board_id": board}]
    shared_memory = "databases/invokeai.db-shm"
    assert {k: v for k, v in after.items() if k != shared_memory} == {k: v for k, v in before.items() if k != shared_memory}


def test_a_user_whose_address_has_an_account_here_is_joined_to_it(bring, services, accounts, multi):
    root, users, names = multi
    operator.add(accounts, email=library.ANN.upper(), password="Another1password")
    here = library.user_id_of(accounts, library.ANN)
    first, second = bring(root), bring(root)

    assert (here != users[library.ANN], first.left, second.left) == (True, [], [])
    library.demand_library(services, root, names[library.ANN], 100, here)


def test_two_people_of_a_root_are_never_merged_into_one(bring, database, multi):
    root, users, _ = multi
    change_database(root, f"UPDATE users SET email = 'ANN@example.com' WHERE user_id = '{users[library.BOB]}'")
    report = bring(root)

    assert {item.name for item in report.left if item.kind == "user"} == {users[library.BOB]}
    assert rows(database, "SELECT count(*) AS n FROM images WHERE user_id = %s", users[library.ANN]) == [{"n": 3}]
    assert {item.reason for item in report.left if item.kind == "image"} == {"its id or address belongs to somebody else here"}


def test_rows_of_nobody_need_an_owner_and_one_that_is_made_gets_a_password(bring, database, accounts, single):
    root, _ = single
    with pytest.raises(ImportRefused, match="--owner: expected whose the root's 9 rows"):
        bring(root)
    assert rows(database, "SELECT count(*) AS n FROM users WHERE user_id <> 'system'") == [{"n": 0}]
    made = [line for line in bring(root, owner=library.ANN).said if "password" in line]

    password = made[0].rpartition(" ")[2]
    assert service.login(accounts, email=library.ANN, password=password)[0].role == "super_admin"


@pytest.mark.parametrize(
    "newer",
    [
        "INSERT INTO applied_migrations (migration_id) VALUES ('2099_01_01_of_tomorrow')",
        "INSERT INTO migrations (version) VALUES (99)",
    ],
)
def test_a_root_newer_than_our_invokeai_is_refused_and_nothing_is_written(bring, database, single, newer):
    root, _ = single
    change_database(root, newer)

    with pytest.raises(ImportRefused, match="newer than the installed InvokeAI 6.14"):
        bring(root, owner=library.ANN)
    assert rows(database, "SELECT count(*) AS n FROM imported") == [{"n": 0}]


def test_what_is_no_root_is_refused_by_name(bring, tmp_path):
    with pytest.raises(ImportRefused, match="found none"):
        bring(tmp_path)
    (tmp_path / "databases").mkdir()
    (tmp_path / "databases" / "invokeai.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(ImportRefused, match="expected an SQLite database"):
        bring(tmp_path)
    (tmp_path / "databases" / "invokeai.db").unlink()
    change_database(tmp_path, "CREATE TABLE other (a)")
    with pytest.raises(ImportRefused, match="lacks board_images, boards, images, migrations"):
        bring(tmp_path)


def test_a_dry_run_counts_and_writes_nothing(accounts, database, single):
    root, _ = single
    before = library.content(database)
    report = count_root(root, accounts=accounts, owner_email=library.ANN)

    assert library.content(database) == before
    assert (report.of("image").brought, report.of("video").brought, report.of("board").brought) == (3, 1, 1)
    assert report.of("image").bytes > 0
    assert "1 queue items stay in the root" in report.summary()[-1]


def test_deleting_here_frees_what_was_counted(bring, files, database, accounts, single):
    root, names = single
    bring(root, owner=library.ANN)
    ann = library.user_id_of(accounts, library.ANN)
    with tenancy.as_user(ann):
        before = files.used_bytes(ann)
    delete_row(database, ann, names.starred)
    with tenancy.as_user(ann):
        files.purge("image", [names.starred])
        freed = before - files.used_bytes(ann)

    stem = names.starred.removesuffix(".png")
    assert freed == sum(path.stat().st_size for path in root.rglob(f"{stem}.*"))
