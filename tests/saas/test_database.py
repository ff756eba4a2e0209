"""The look-alike of SqliteDatabase: rows, nesting, errors, callbacks, locks, contexts."""

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from saas.rows import add_board, add_user

from invokeai_saas.db import tenancy
from invokeai_saas.db.sqlite_errors import NumberTooLarge
from invokeai_saas.errors import TenantContextClash, TenantContextMissing, UnknownStatement

BOARD = "INSERT INTO boards (board_id, board_name, user_id, archived) VALUES "
KILL_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
NAMES = "SELECT board_name FROM boards ORDER BY board_name"


@pytest.fixture(autouse=True)
def as_ann():
    with tenancy.as_user("ann"):
        yield


def names(database) -> list[str]:
    with database.transaction() as cursor:
        return [row["board_name"] for row in cursor.execute(NAMES).fetchall()]


def test_a_row_reads_by_position_by_name_and_as_a_dict(database):
    with database.transaction() as cursor:
        row = cursor.execute("SELECT 1 AS One, 'x' AS two").fetchone()

    assert (row[0], row["one"], row["TWO"], len(row), tuple(row)) == (1, 1, "x", 2, (1, "x"))
    assert dict(row) == {"one": 1, "two": "x"}
    with pytest.raises(IndexError):
        row["three"]


def test_what_was_committed_is_there_for_the_next_transaction(database):
    add_board(database, "ann", "first")

    assert names(database) == ["first"]


def test_an_exception_rolls_everything_back(database):
    with pytest.raises(RuntimeError), database.transaction():
        add_board(database, "ann", "lost")
        raise RuntimeError

    assert names(database) == []


def test_a_nested_transaction_commits_with_the_outer_one_only(database):
    with pytest.raises(RuntimeError):
        with database.transaction():
            with database.transaction():
                add_board(database, "ann", "inner")
            raise RuntimeError

    assert names(database) == []


def test_a_failing_inner_transaction_undoes_itself_and_the_outer_goes_on(database):
    with database.transaction():
        add_board(database, "ann", "before")
        with pytest.raises(sqlite3.OperationalError), database.transaction() as cursor:
            add_board(database, "ann", "inner")
            cursor.execute("SELECT nothing FROM nowhere")
        add_board(database, "ann", "after")

    assert names(database) == ["after", "before"]


def test_a_swallowed_error_does_not_commit_half_a_transaction(database):
    with pytest.raises(sqlite3.OperationalError, match="can commit"):
        with database.transaction() as cursor:
            add_board(database, "ann", "half")
            try:
                cursor.execute("SELECT nothing FROM boards")
            except sqlite3.OperationalError:
                pass

    assert names(database) == []


def test_another_thread_does_not_join_the_open_transaction(database):
    with database.transaction():
        add_board(database, "ann", "open")
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(tenancy.carry(names), database).result()

    assert seen == []


def test_another_task_of_the_same_thread_does_not_join_either(database):
    async def other() -> list[str]:
        return names(database)

    async def both() -> list[str]:
        with database.transaction():
            add_board(database, "ann", "open")
            return await asyncio.create_task(other())

    assert asyncio.run(both()) == []


def test_callbacks_wait_for_the_commit_and_are_dropped_by_a_rollback(database):
    heard: list[str] = []
    with database.transaction():
        database.on_commit(lambda: heard.append("outer"))
        with pytest.raises(RuntimeError), database.transaction():
            database.on_commit(lambda: heard.append("inner"))
            raise RuntimeError
        during = list(heard)
    with pytest.raises(RuntimeError), database.transaction():
        database.on_commit(lambda: heard.append("lost"))
        raise RuntimeError
    database.on_commit(lambda: heard.append("at once"))

    assert (during, heard) == ([], ["outer", "at once"])


def test_a_failing_callback_neither_hides_the_commit_nor_stops_the_others(database):
    heard: list[str] = []
    with database.transaction():
        add_board(database, "ann", "kept")
        database.on_commit(lambda: 1 / 0)
        database.on_commit(lambda: heard.append("second"))

    assert (names(database), heard) == (["kept"], ["second"])


def test_lastrowid_is_the_key_that_the_insert_was_given(database):
    insert = "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id) VALUES (?, ?, ?, ?, ?)"
    with database.transaction() as cursor:
        cursor.execute(insert, ("q", "b", "{}", "s1", "ann"))
        first = cursor.lastrowid
        cursor.execute(insert, ("q", "b", "{}", "s2", "ann"))
        keys = [row[0] for row in cursor.execute("SELECT item_id FROM session_queue ORDER BY item_id").fetchall()]

        assert keys == [first, cursor.lastrowid]


def test_a_null_key_means_the_next_number(database):
    insert = "INSERT INTO session_queue (item_id, queue_id, batch_id, session, session_id, user_id) VALUES (?, ?, ?, ?, ?, ?)"
    with database.transaction() as cursor:
        keys = []
        for number, given in enumerate((None, 70, None)):
            cursor.execute(insert, (given, "q", "b", "{}", f"s{number}", "ann"))
            keys.append(cursor.lastrowid)

    assert keys == [1, 70, 2]


def test_rowcount_counts_changed_rows(database):
    add_board(database, "ann", "a")
    add_board(database, "ann", "b")
    with database.transaction() as cursor:
        cursor.execute("UPDATE boards SET archived = ?", (True,))

        assert cursor.rowcount == 2


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        (BOARD + "('ann-a', 'again', 'ann', 0)", sqlite3.IntegrityError, "UNIQUE constraint failed: boards.pkey"),
        (BOARD + "('x', NULL, 'ann', 0)", sqlite3.IntegrityError, "NOT NULL constraint failed: boards.board_name"),
        (BOARD + "('x', 'x', 'ann', 7)", sqlite3.IntegrityError, "CHECK constraint failed: boards_archived_is_boolean"),
        ("INSERT INTO client_state (user_id, key, value) VALUES ('ann', 'k', 'v')", sqlite3.IntegrityError, "FOREIGN KEY"),
        (BOARD + "('x', 'x', 'bob', 0)", sqlite3.DatabaseError, "row-level security"),
        ("SELECT * FROM no_such_table", sqlite3.OperationalError, "no_such_table"),
        ("SELECT json_extract('{', '$.a')", sqlite3.DataError, "json"),
    ],
)
def test_errors_are_those_that_upstream_catches(database, sql, error, words):
    add_board(database, "ann", "a")
    with pytest.raises(error, match=words), database.transaction() as cursor:
        cursor.execute(sql)


def test_text_with_a_zero_byte_is_refused_as_bad_data(database):
    with pytest.raises(sqlite3.DataError), database.transaction() as cursor:
        cursor.execute("INSERT INTO boards (board_id, board_name, user_id) VALUES (?, ?, ?)", ("x", "a\x00b", "ann"))

    assert names(database) == []


def test_an_unknown_statement_is_refused_by_name_and_the_message_holds_it(database):
    with pytest.raises(UnknownStatement, match="GROUP_CONCAT.*SELECT group_concat"), database.transaction() as cursor:
        cursor.execute("SELECT group_concat(board_name) FROM boards")


def test_begin_immediate_keeps_others_out_until_the_commit(database):
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with database.transaction() as cursor:
            entered.wait()
            cursor.execute("BEGIN IMMEDIATE")
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            waiting = pool.submit(tenancy.carry(second))
            entered.set()
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            order.append("first")
        waiting.result()

    assert order == ["first", "second"]


def test_without_a_context_nothing_is_sent(database):
    def bare() -> None:
        with database.transaction() as cursor:
            cursor.execute("SELECT 1")

    with ThreadPoolExecutor(1) as pool, pytest.raises(TenantContextMissing, match="as_user"):
        pool.submit(bare).result()


def test_the_context_is_gone_when_a_connection_comes_back(database):
    add_board(database, "ann", "a")
    query = "SELECT current_user, current_setting('app.current_user_id', true), count(*) FROM boards"
    with database._pool.connection() as connection:
        role, user, count = connection.execute(query).fetchone()

    assert (role, user or "", count) == ("invokeai_app", "", 0)


def test_another_tenant_cannot_enter_a_tenants_context(database):
    with pytest.raises(TenantContextClash), tenancy.as_user("bob"):
        pass


def test_system_work_inside_a_tenants_transaction_ends_with_its_block(database):
    add_user(database, "bob")
    with tenancy.as_system("test"):
        add_board(database, "bob", "bobs")
    count = "SELECT count(*) FROM boards"
    with database.transaction() as cursor:
        before = cursor.execute(count).fetchone()[0]
        with tenancy.as_system("test"), database.transaction() as inner:
            inside = inner.execute(count).fetchone()[0]
        with pytest.raises(RuntimeError), tenancy.as_system("test"), database.transaction():
            raise RuntimeError
        after = cursor.execute(count).fetchone()[0]

    assert (before, inside, after) == (0, 1, 0)


def test_our_own_sql_joins_upstreams_transaction(database):
    with pytest.raises(psycopg.errors.UniqueViolation):
        with database.transaction():
            add_board(database, "ann", "a")
            with database.postgres() as cursor:
                assert cursor.execute("SELECT board_name FROM boards").fetchall() == [{"board_name": "a"}]
                cursor.execute("INSERT INTO boards (board_id, board_name, user_id) VALUES (%s, 'x', 'ann')", ("ann-a",))

    assert names(database) == []


def test_our_own_sql_keeps_psycopgs_types(database):
    with database.postgres() as cursor:
        row = cursor.execute("SELECT pg_typeof(%s)::text AS kind", (1,)).fetchone()

    assert row == {"kind": "smallint"}


def test_a_killed_connection_is_replaced_without_the_caller_noticing(database, dsn):
    assert names(database) == []
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(KILL_ALL)

    assert names(database) == []


def test_a_negative_limit_means_all_and_like_ignores_case_without_escapes(database):
    for name in ("Cat_1", "catX1", "dog"):
        add_board(database, "ann", name)
    with database.transaction() as cursor:
        everything = cursor.execute("SELECT board_name FROM boards LIMIT ? OFFSET ?", (-1, 0)).fetchall()
        like = cursor.execute("SELECT board_name FROM boards WHERE board_name LIKE ? ORDER BY board_name", ("CAT%",)).fetchall()
        backslash = cursor.execute("SELECT board_name FROM boards WHERE board_name LIKE ?", (r"Cat\_1",)).fetchall()

    assert (len(everything), [row[0] for row in like], backslash) == (3, ["Cat_1", "catX1"], [])


def test_a_number_beyond_the_column_is_the_askers_mistake(database):
    with pytest.raises(NumberTooLarge) as refused, tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("SELECT board_id FROM boards LIMIT ? OFFSET ?", (1, 2**63))

    assert refused.value.status == 422 and isinstance(refused.value, sqlite3.DataError)
