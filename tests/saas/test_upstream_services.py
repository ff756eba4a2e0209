"""The same calls to InvokeAI's services answer alike on SQLite and on our Postgres: what InvokeAI's own tests leave out."""

import itertools
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from invokeai.app.services.board_image_records.board_image_records_sqlite import SqliteBoardImageRecordStorage
from invokeai.app.services.board_records.board_records_common import BoardRecordOrderBy
from invokeai.app.services.board_records.board_records_sqlite import SqliteBoardRecordStorage
from invokeai.app.services.board_video_records.board_video_records_sqlite import SqliteBoardVideoRecordStorage
from invokeai.app.services.config.config_default import InvokeAIAppConfig
from invokeai.app.services.gallery.gallery_default import SqliteGalleryService
from invokeai.app.services.image_records.image_records_common import ImageCategory, ResourceOrigin
from invokeai.app.services.image_records.image_records_sqlite import SqliteImageRecordStorage
from invokeai.app.services.model_relationship_records.model_relationship_records_sqlite import SqliteModelRelationshipRecordStorage
from invokeai.app.services.session_queue.session_queue_sqlite import SqliteSessionQueue
from invokeai.app.services.shared.sqlite.sqlite_common import SQLiteDirection
from invokeai.app.services.shared.sqlite.sqlite_util import init_db
from invokeai.app.services.urls.urls_default import LocalUrlService
from invokeai.app.services.video_records.video_records_sqlite import SqliteVideoRecordStorage
from invokeai.app.services.workflow_records.workflow_records_common import (
    WorkflowCategory,
    WorkflowMeta,
    WorkflowRecordOrderBy,
    WorkflowWithoutID,
)
from invokeai.app.services.workflow_records.workflow_records_sqlite import SqliteWorkflowRecordsStorage

from invokeai_saas.db import tenancy

DATES = {"created_at", "updated_at", "opened_at", "date", "board_name", "virtual_board_id"}
IDS = {"board_id", "workflow_id", "id"}
BOTH = (SQLiteDirection.Ascending, SQLiteDirection.Descending)
GENERAL, USER = ImageCategory.GENERAL, ImageCategory.USER


class Services:
    """InvokeAI's record services over one database, filled with the same rows."""

    def __init__(self, database: Any) -> None:
        self.database = database
        self.images, self.videos = SqliteImageRecordStorage(database), SqliteVideoRecordStorage(database)
        self.boards, self.workflows = SqliteBoardRecordStorage(database), SqliteWorkflowRecordsStorage(database)
        self.board_images, self.board_videos = SqliteBoardImageRecordStorage(database), SqliteBoardVideoRecordStorage(database)
        self.relations, self.queue = SqliteModelRelationshipRecordStorage(database), SqliteSessionQueue(database)
        self.gallery = SqliteGalleryService(database)
        self.gallery.start(SimpleNamespace(services=SimpleNamespace(urls=LocalUrlService())))
        self.board_ids = [self.boards.save(name, "ann").board_id for name in ("beta", "Alpha", "gamma")]
        self._fill()

    def _fill(self) -> None:
        for number in range(12):
            meta = {"metadata": json.dumps({"prompt": f"Cat {number}"}), "user_id": "ann" if number % 3 else "bob"}
            flags: dict[str, Any] = {"is_intermediate": number % 4 == 0, "starred": number % 5 == 0, "has_workflow": False}
            kind = GENERAL if number % 2 else USER
            self.images.save(f"i{number:02}", ResourceOrigin.INTERNAL, kind, 8, 8, **flags, **meta)
            self.videos.save(f"v{number:02}", ResourceOrigin.INTERNAL, kind, 8, 8, 1.5, None, **flags, **meta)
            if number % 3 == 1:
                self.board_images.add_image_to_board(self.board_ids[0], f"i{number:02}")
                self.board_videos.add_video_to_board(self.board_ids[1], f"v{number:02}")
            self._dated(number)
        for number, tags in enumerate(("a, b", "b", "", "shared")):
            workflow = WorkflowWithoutID(
                name=f"Flow {number}", author="", description="d" * number, version="", contact="", tags=tags, notes="",
                exposedFields=[], meta=WorkflowMeta(version="1.0.0", category=WorkflowCategory.User), nodes=[], edges=[],
            )  # fmt: skip
            self.workflows.create(workflow, user_id="ann" if number % 2 else "bob", is_public=number == 3)
        statuses = ("pending", "completed", "failed", "canceled", "completed", "waiting")
        columns = "queue_id, batch_id, session, session_id, status, destination, user_id"
        insert = f"INSERT INTO session_queue ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        session = '{"id": "s", "graph": {"id": "g", "nodes": {}, "edges": []}}'
        with self.database.transaction() as cursor:
            cursor.executemany(insert, [("q", "b", session, f"s{n}", status, "d", "ann") for n, status in enumerate(statuses)])

    def _dated(self, number: int) -> None:
        # The clock of neither database decides an order.
        with self.database.transaction() as cursor:
            for table, name in (("images", f"i{number:02}"), ("videos", f"v{number:02}")):
                day = f"2026-01-{1 + number % 3:02} 10:00:{number:02}.000"
                cursor.execute(f"UPDATE {table} SET created_at = ? WHERE {table[:-1]}_name = ?", (day, name))


def calls(s: Services) -> Iterator[tuple[str, Any]]:
    """(what, answer), in the same order for every database."""
    scopes = ({}, {"user_id": "ann"}, {"user_id": "ann", "is_admin": True})
    for scope, direction in itertools.product(scopes, BOTH):
        for more in (
            {},
            {"categories": [GENERAL, USER]},
            {"is_intermediate": False},
            {"search_term": "CAT 1"},
            {"board_id": "none"},
        ):
            for name in ("get_many", "get_image_names"):
                yield name, getattr(s.images, name)(order_dir=direction, **more, **scope)
            yield "videos.get_many", s.videos.get_many(order_dir=direction, limit=-1, **more, **scope)
            yield "gallery", s.gallery.list_items(order_dir=direction, limit=7, offset=2, **more, **scope)
        for board in s.board_ids[:2]:
            yield "gallery of a board", s.gallery.list_items(board_id=board, order_dir=direction, **scope)
        yield "dates", s.images.get_image_dates(**scope)
        yield (
            "by date",
            s.images.get_image_names_by_date("2026-01-02", order_dir=direction, categories=[GENERAL], search_term="cat", **scope),
        )
    for order, direction, admin in itertools.product(BoardRecordOrderBy, BOTH, (True, False)):
        for archived in (True, False):
            yield "boards", s.boards.get_many("ann", admin, order, direction, limit=2, include_archived=archived).total
            yield "all boards", len(s.boards.get_all("ann", admin, order, direction, include_archived=archived))
    yield (
        "by name",
        [board.board_name for board in s.boards.get_all("ann", True, BoardRecordOrderBy.Name, SQLiteDirection.Ascending)],
    )
    yield from _workflow_calls(s)
    for user in (None, "ann"):
        yield "board images", s.board_images.get_all_board_image_names_for_board(s.board_ids[0], [GENERAL], False, user)
        yield "board videos", s.board_videos.get_all_board_video_names_for_board(s.board_ids[1], [GENERAL], False, user)
        yield "none", sorted(s.board_videos.get_all_board_video_names_for_board("none", None, None, user))
        yield "intermediates", s.images.get_intermediates_count(user)
    yield "relations", s.relations.get_related_model_keys_batch(["k1", "k2"])
    yield from _queue_calls(s)
    yield "video", s.videos.get("v03")
    yield "deleted", sorted(s.images.delete_intermediates_by_names(["i00", "i01", "i04", "gone"]))
    yield "delete", (s.images.delete_many(["i01", "i02"]), s.videos.delete_many(["v01"]), s.images.delete_many([]))
    yield "left", (s.images.get_many(limit=-1), s.videos.get_many(limit=-1))


def _workflow_calls(s: Services) -> Iterator[tuple[str, Any]]:
    categories = [WorkflowCategory.User, WorkflowCategory.Default]
    for user, public, opened in itertools.product((None, "ann"), (None, True, False), (None, True, False)):
        scope: dict[str, Any] = {"user_id": user, "is_public": public}
        yield "tags", s.workflows.counts_by_tag(["a", "B", "c"], categories=categories, has_been_opened=opened, **scope)
        yield "categories", s.workflows.counts_by_category(categories, has_been_opened=opened, **scope)
        yield "all tags", sorted(s.workflows.get_all_tags(categories, **scope))
        for order in (WorkflowRecordOrderBy.Name, WorkflowRecordOrderBy.IsPublic):
            found = s.workflows.get_many(
                order, SQLiteDirection.Ascending, categories, query="FLOW", tags=["b"], has_been_opened=opened, **scope
            )
            yield "workflows", sorted(item.name for item in found.items)


def _queue_calls(s: Services) -> Iterator[tuple[str, Any]]:
    for user in (None, "ann"):
        yield "counts", s.queue.get_counts_by_destination("q", "d", user)
    for cursor, status, destination in itertools.product((None, 2), (None, "completed"), (None, "d")):
        yield "items", [item.item_id for item in s.queue.list_queue_items("q", 3, 0, cursor, status, destination).items]
    yield "kept", s.queue._prune_terminal_to_limit("q", 2)
    yield "pruned", (s.queue.prune("q", "bob"), s.queue.prune("q"))
    yield "full", (s.queue.is_empty("q"), s.queue._get_highest_priority("q"), s.queue.get_queue_item_ids("q").total_count)


def comparable(answer: Any) -> Any:
    """Without times and random ids."""
    if hasattr(answer, "model_dump"):
        answer = answer.model_dump(mode="json")
    if isinstance(answer, dict):
        return {key: comparable(value) for key, value in answer.items() if key not in DATES | IDS}
    if isinstance(answer, list | tuple):
        return [comparable(value) for value in answer]
    return answer


@pytest.fixture
def sqlite_database(tmp_path):
    config = InvokeAIAppConfig(use_memory_db=True)
    config._root = tmp_path
    return init_db(config, logging.getLogger("sqlite"), image_files=None)


def test_the_same_calls_answer_alike_on_sqlite_and_postgres(sqlite_database, database):
    with tenancy.as_system("InvokeAI's services in a test"):
        ours, theirs = calls(Services(database)), calls(Services(sqlite_database))
        compared = [
            (name, comparable(answer), comparable(expected)) for (name, answer), (_, expected) in zip(ours, theirs, strict=True)
        ]

    assert len(compared) > 200
    assert [row for row in compared if row[1] != row[2]] == []


def test_services_see_their_tenant_only_whatever_they_ask_for(database):
    with tenancy.as_system("InvokeAI's services in a test"):
        services = Services(database)
    with tenancy.as_user("ann"):
        seen = services.images.get_many(limit=-1, is_admin=True).items + services.videos.get_many(limit=-1).items
        listed = services.gallery.list_items(limit=-1, is_admin=True).total

    assert ({item.user_id for item in seen if hasattr(item, "user_id")} <= {"ann"}, len(seen), listed) == (True, 16, 16)
