"""Queue rows in, items out, also for a graph that this InvokeAI cannot read: a node that is no longer installed, a field that changed.

InvokeAI reads the whole graph to list, cancel or delete an item, and one row that it cannot read fails all of that, for everybody. Here
such an item comes with an empty graph, which only who would run or repeat it must not take for the real one (`is_readable`).
"""

import json
import logging
import math
from collections.abc import Callable
from typing import Any

from invokeai.app.services.session_queue import session_queue_common
from invokeai.app.services.session_queue.session_queue_common import SessionQueueItem
from invokeai.app.services.shared.graph import Graph, GraphExecutionState

from invokeai_saas.errors import SaasError

MESSAGE = "expected a graph that can be read, got one with nodes or fields that are not installed"
logger = logging.getLogger(__name__)


class UnreadableItem(SaasError):
    """An item whose graph cannot be read was to run again."""

    status = 409

    def __init__(self, item_id: int) -> None:
        super().__init__(f"item {item_id}: {MESSAGE}")


class UnreadSession(GraphExecutionState):
    """In place of a session that cannot be read."""


def is_readable(item: SessionQueueItem) -> bool:
    """Whether the item's graph is the one that was enqueued."""
    return not isinstance(item.session, UnreadSession)


def install() -> None:
    """Have InvokeAI's services read rows this way; a second call changes nothing."""
    SessionQueueItem.queue_item_from_dict = classmethod(_item_of)


def _item_of(cls: type[SessionQueueItem], row: dict[str, Any]) -> SessionQueueItem:
    """As upstream's queue_item_from_dict, for every row."""
    parts: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[], Any]]] = {
        "session": (_session, lambda: UnreadSession(id=row["session_id"], graph=Graph())),
        "field_values": (_field_values, lambda: None),
        "workflow": (session_queue_common.get_workflow, lambda: None),
    }
    read: dict[str, Any] = {}
    for name, (reader, otherwise) in parts.items():
        try:
            read[name] = reader(row)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # Whatever a node's own checks raise when they meet what they did not expect.
            logger.debug("the %s of item %s cannot be read: %s", name, row.get("item_id"), type(error).__name__)
            read[name] = otherwise()
    if isinstance(read["session"], UnreadSession) and not row.get("error_message"):
        read["error_message"] = MESSAGE
    return cls(**{**row, **read})


def _session(row: dict[str, Any]) -> GraphExecutionState:
    raw = row.get("session", "{}")
    if "NaN" in raw or "Infinity" in raw:
        # In a prompt they are words.
        json.loads(raw, parse_constant=_no_number)
    session: GraphExecutionState = session_queue_common.get_session(row)
    return session


def _no_number(constant: str) -> None:
    # It could be read, but no answer could be written that holds it.
    raise ValueError(f"expected numbers that JSON has, got {constant}")


def _field_values(row: dict[str, Any]) -> Any:
    values = session_queue_common.get_field_values(row)
    if any(isinstance(each.value, float) and not math.isfinite(each.value) for each in values or ()):
        raise ValueError("expected numbers that JSON has")
    return values
