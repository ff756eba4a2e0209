"""One library record for each of our workflows, however often and by whichever way they came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from invokeai_video_nodes.workflow_files import workflow_files
from invokeai_video_nodes.workflow_library import install_into

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

FILES = workflow_files()


@pytest.fixture
def records(engine: Engine) -> Iterator[Any]:
    """The engine's workflow library, empty of user workflows before and after."""
    library = engine.services.workflow_records
    _clear(library)
    yield library
    _clear(library)


def _clear(library: Any) -> None:
    for item in _listed(library):
        library.delete(item.workflow_id)


def _listed(library: Any) -> list[Any]:
    from invokeai.app.services.shared.sqlite.sqlite_common import SQLiteDirection
    from invokeai.app.services.workflow_records.workflow_records_common import WorkflowCategory, WorkflowRecordOrderBy

    found = library.get_many(order_by=WorkflowRecordOrderBy.Name, direction=SQLiteDirection.Ascending, categories=[WorkflowCategory.User])
    return found.items


def _node_manager_imports(library: Any) -> list[str]:
    """What the node manager does with a pack's folder (its own function wants a running server's user)."""
    from invokeai.app.api.routers.custom_nodes import _import_workflows_from_pack

    return _import_workflows_from_pack(FILES[0].parent, "invokeai-video", "system")


def test_a_second_install_adds_nothing(records: Any) -> None:
    first = install_into(records, FILES)
    second = install_into(records, FILES)

    assert {change.action for change in first} == {"added"}
    assert {change.action for change in second} == {"already there"}
    assert Counter(item.name for item in _listed(records)) == {change.name: 1 for change in first}


def test_an_installed_workflow_is_a_public_user_workflow_with_our_tag(records: Any) -> None:
    install_into(records, FILES)

    for item in _listed(records):
        assert item.is_public
        assert "invokeai-video" in item.tags.split(", ")


def test_what_the_node_manager_imported_is_not_added_again(records: Any) -> None:
    imported = _node_manager_imports(records)

    changes = install_into(records, FILES)

    assert {change.action for change in changes} == {"already there"}
    assert sorted(imported) == sorted(item.workflow_id for item in _listed(records))


def test_of_two_copies_the_node_managers_stays_because_it_removes_it_by_id(records: Any) -> None:
    install_into(records, FILES)
    imported = _node_manager_imports(records)

    changes = install_into(records, FILES)

    assert Counter(change.action for change in changes) == dict.fromkeys(("already there", "second copy removed"), len(FILES))
    assert sorted(imported) == sorted(item.workflow_id for item in _listed(records))


def test_a_copy_that_a_person_edited_is_neither_overwritten_nor_deleted(records: Any) -> None:
    from invokeai.app.services.workflow_records.workflow_records_common import Workflow

    install_into(records, FILES)
    edited = records.get(_listed(records)[0].workflow_id).workflow
    records.update(Workflow(**{**edited.model_dump(), "notes": "mine now"}))
    _node_manager_imports(records)

    changes = install_into(records, FILES)

    assert "second copy kept, it was edited" in {change.action for change in changes}
    assert records.get(edited.id).workflow.notes == "mine now"


def test_a_record_of_another_version_stays_and_the_answer_says_how_to_renew_it(records: Any, tmp_path: Path) -> None:
    install_into(records, FILES)
    newer = {**json.loads(FILES[0].read_text(encoding="utf-8")), "version": "9.0.0"}
    (tmp_path / "newer.json").write_text(json.dumps(newer))

    [change] = install_into(records, [tmp_path / "newer.json"])

    assert "already there as version 1.0.0; delete it in the library" in change.action
    assert len(_listed(records)) == len(FILES)
