"""Our workflow files -> InvokeAI's workflow library, each of them once.

A record is ours when it carries our tag and the name of one of our files. Records may come from here or from the node
manager, which imports every workflow of a pack that it installs and adds a tag `node-pack:<folder>`. Its records stay
(it deletes them by id when the pack is removed); a second, unedited copy goes. Nothing that a person may have edited
is overwritten or deleted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

OUR_TAG = "invokeai-video"
_PACK_TAG = "node-pack:"
# What a person can change in the editor; id, tags and category differ between the file and its record anyway.
_CONTENT = ("name", "description", "notes", "version", "nodes", "edges", "form", "exposedFields")


class Change(NamedTuple):
    """What happened to one workflow, in words."""

    name: str
    action: str


def install_into(records: Any, files: Sequence[Path]) -> list[Change]:
    """Bring InvokeAI's workflow records (its service) to one record per file; calling again changes nothing.

    New records are public user workflows (InvokeAI refuses `default` ones). A record of an older version stays, since
    it may hold a person's changes; the answer says so.
    """
    from invokeai.app.services.workflow_records.workflow_records_common import WorkflowWithoutIDValidator

    changes: list[Change] = []
    for path in files:
        shipped = WorkflowWithoutIDValidator.validate_python(json.loads(path.read_text(encoding="utf-8")))
        present = _ours(records, shipped.name)
        if not present:
            records.create(shipped, is_public=True)
            changes.append(Change(shipped.name, "added"))
            continue
        keep = next((record for record in present if _PACK_TAG in record.workflow.tags), present[0])
        if keep.workflow.version == shipped.version:
            changes.append(Change(shipped.name, "already there"))
        else:
            hint = f"delete it in the library and run this again for version {shipped.version}"
            changes.append(Change(shipped.name, f"already there as version {keep.workflow.version}; {hint}"))
        changes += _remove_doubles(records, shipped, [record for record in present if record is not keep])
    return changes


def _ours(records: Any, name: str) -> list[Any]:
    """Every user record with our tag and this name, oldest first."""
    from invokeai.app.services.shared.sqlite.sqlite_common import SQLiteDirection
    from invokeai.app.services.workflow_records.workflow_records_common import WorkflowCategory, WorkflowRecordOrderBy

    found = records.get_many(
        order_by=WorkflowRecordOrderBy.CreatedAt,
        direction=SQLiteDirection.Ascending,
        categories=[WorkflowCategory.User],
        tags=[OUR_TAG],
    )
    tagged = [item for item in found.items if OUR_TAG in [tag.strip() for tag in item.tags.split(",")]]
    return [records.get(item.workflow_id) for item in tagged if item.name == name]


def _remove_doubles(records: Any, shipped: Any, doubles: Sequence[Any]) -> list[Change]:
    changes: list[Change] = []
    for record in doubles:
        if _content(record.workflow) == _content(shipped):
            records.delete(record.workflow_id)
            changes.append(Change(shipped.name, "second copy removed"))
        else:
            changes.append(Change(shipped.name, "second copy kept, it was edited"))
    return changes


def _content(workflow: Any) -> dict[str, Any]:
    values = workflow.model_dump(mode="json")
    return {name: values[name] for name in _CONTENT}
