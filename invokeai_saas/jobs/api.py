"""Routes of the queue that answer with what went wrong: InvokeAI's turn every exception into a 500.

Same paths, models and operation ids. The application takes InvokeAI's own away first (`REPLACED`), and answers our errors with the status
that their class names.
"""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, HTTPException, Path, Request
from invokeai.app.api.auth_dependencies import CurrentUserOrDefault
from invokeai.app.services.session_queue.session_queue_common import (
    Batch,
    CancelByBatchIDsResult,
    EnqueueBatchResult,
    RetryItemsResult,
    SessionQueueItem,
    SessionQueueItemNotFoundError,
    SessionQueueItemSummary,
)
from pydantic import Field

from invokeai_saas.accounts.api import Caller
from invokeai_saas.closed.nodes import demand_open
from invokeai_saas.jobs import queue_rows
from invokeai_saas.jobs.waiting import QueuePosition, Waiting
from invokeai_saas.swaps.session_queue import PostgresSessionQueue
from invokeai_saas.web.idempotency import OnceDep

# InvokeAI's routes that these replace: (method, path under /api).
REPLACED = (
    ("POST", "/v1/queue/{queue_id}/enqueue_batch"),
    ("PUT", "/v1/queue/{queue_id}/retry_items_by_id"),
    ("PUT", "/v1/queue/{queue_id}/cancel_by_batch_ids"),
    ("POST", "/v1/queue/{queue_id}/items_by_ids"),
    ("POST", "/v1/queue/{queue_id}/item_summaries_by_ids"),
    ("GET", "/v1/queue/{queue_id}/i/{item_id}"),
    ("PUT", "/v1/queue/{queue_id}/i/{item_id}/cancel"),
    ("DELETE", "/v1/queue/{queue_id}/i/{item_id}"),
)
queue_router = APIRouter(prefix="/v1/queue", tags=["queue"])
jobs_router = APIRouter(prefix="/v1/jobs", tags=["queue"])
QueueId = Annotated[str, Path(description="The queue id to perform this operation on")]
ItemId = Annotated[int, Path(description="The queue item", ge=0, lt=2**63)]
ItemIds = list[Annotated[int, Field(ge=0, lt=2**63)]]
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A number is over the plan's limit, or cannot be told beforehand, or the graphs are too large together"},
    402: {"description": "Not enough credits"},
    403: {"description": "The plan does not have the feature or the model, or the storage is full"},
    409: {"description": "More than the queue takes, or an Idempotency-Key with another body"},
}
# More than anybody has on screen; InvokeAI has the same limit where it has one.
MOST_IDS = 1000


def _queue() -> PostgresSessionQueue:
    from invokeai.app.api.dependencies import ApiDependencies

    return cast(PostgresSessionQueue, ApiDependencies.invoker.services.session_queue)


@jobs_router.get("/position", operation_id="get_queue_position")
def get_queue_position(caller: Caller, request: Request) -> QueuePosition:
    """The caller's places among the turns of all users, and an estimate of how long they wait."""
    waiting: Waiting = request.app.state.saas_waiting
    return waiting.of(caller.user_id)


@queue_router.post(
    "/{queue_id}/enqueue_batch",
    operation_id="enqueue_batch",
    response_model=EnqueueBatchResult,
    responses={201: {"model": EnqueueBatchResult}, **REFUSALS},
)
def enqueue_batch(
    current_user: CurrentUserOrDefault,
    queue_id: QueueId,
    batch: Annotated[Batch, Body(description="Batch to process")],
    once: OnceDep,
    prepend: Annotated[bool, Body(description="Ignored: whose turn it is depends on who waits")] = False,
) -> Any:
    """Enqueue all graphs of a batch, or none: 402 when the credits do not suffice for all, 409 when they are more than the queue takes."""
    demand_open(batch)
    return once.in_transaction(
        lambda: _queue().enqueue(queue_id=queue_id, batch=batch, prepend=prepend, user_id=current_user.user_id)
    )


@queue_router.put(
    "/{queue_id}/retry_items_by_id",
    operation_id="retry_items_by_id",
    response_model=RetryItemsResult,
    responses={200: {"model": RetryItemsResult}, **REFUSALS},
)
def retry_items_by_id(
    current_user: CurrentUserOrDefault,
    queue_id: QueueId,
    item_ids: Annotated[ItemIds, Body(description="The queue item ids to retry", max_length=MOST_IDS)],
    once: OnceDep,
) -> Any:
    """Retry one's own items, all or none: 402 without the credits, 409 when they are too many. Foreign and missing ids are passed over."""
    _queue().demand_items_fit(queue_rows.REPEATED, queue_id, item_ids)
    mine = [item_id for item_id in dict.fromkeys(item_ids) if _found(queue_id, item_id) is not None]
    return once.in_transaction(lambda: _queue().retry_items_by_id(queue_id=queue_id, item_ids=mine))


@queue_router.put(
    "/{queue_id}/cancel_by_batch_ids", operation_id="cancel_by_batch_ids", responses={200: {"model": CancelByBatchIDsResult}}
)
def cancel_by_batch_ids(
    current_user: CurrentUserOrDefault,
    queue_id: QueueId,
    batch_ids: Annotated[
        list[str], Body(embed=True, max_length=MOST_IDS, description="The list of batch_ids to cancel all queue items for")
    ],
) -> CancelByBatchIDsResult:
    """Cancel one's own items of these batches; of none, none."""
    if not batch_ids:
        return CancelByBatchIDsResult(canceled=0)
    return _queue().cancel_by_batch_ids(queue_id=queue_id, batch_ids=batch_ids, user_id=current_user.user_id)


@queue_router.post(
    "/{queue_id}/items_by_ids",
    operation_id="get_queue_items_by_item_ids",
    responses={200: {"model": list[SessionQueueItem]}, 400: {"description": "More than fits into one answer"}},
)
def get_queue_items_by_item_ids(
    current_user: CurrentUserOrDefault,
    queue_id: QueueId,
    item_ids: Annotated[ItemIds, Body(embed=True, max_length=MOST_IDS, description="Object containing list of queue item ids to fetch")],
) -> list[SessionQueueItem]:
    """One's own items in the order that is asked for, each with its graph. Foreign and missing ids are passed over."""
    _queue().demand_items_fit(queue_rows.NAMED, queue_id, item_ids)
    return [item for item_id in item_ids if (item := _found(queue_id, item_id)) is not None]


@queue_router.post(
    "/{queue_id}/item_summaries_by_ids",
    operation_id="get_queue_item_summaries_by_ids",
    responses={200: {"model": list[SessionQueueItemSummary]}, 400: {"description": "More than fits into one answer"}},
)
def get_queue_item_summaries_by_ids(
    current_user: CurrentUserOrDefault,
    queue_id: QueueId,
    item_ids: Annotated[ItemIds, Body(embed=True, max_length=MOST_IDS, description="Object containing list of queue item ids to fetch")],
) -> list[SessionQueueItemSummary]:
    """One's own items without their graphs, in the order that is asked for. A summary holds the batch's values: these may be large too."""
    _queue().demand_items_fit(queue_rows.SUMMARIES, queue_id, item_ids)
    return cast(list[SessionQueueItemSummary], _queue().get_queue_item_summaries_by_ids(queue_id=queue_id, item_ids=item_ids))


@queue_router.get(
    "/{queue_id}/i/{item_id}",
    operation_id="get_queue_item",
    responses={200: {"model": SessionQueueItem}},
    response_model_exclude_none=True,
)
def get_queue_item(current_user: CurrentUserOrDefault, queue_id: QueueId, item_id: ItemId) -> SessionQueueItem:
    """Get one's own queue item; 404 for a foreign one as for a missing one."""
    return _existing(queue_id, item_id)


@queue_router.delete("/{queue_id}/i/{item_id}", operation_id="delete_queue_item")
def delete_queue_item(current_user: CurrentUserOrDefault, queue_id: QueueId, item_id: ItemId) -> None:
    """Delete one's own queue item with the chain of workflow calls that it belongs to."""
    _existing(queue_id, item_id)
    try:
        _queue().delete_queue_item(item_id)
    except SessionQueueItemNotFoundError as error:
        raise _missing(queue_id, item_id) from error


@queue_router.put("/{queue_id}/i/{item_id}/cancel", operation_id="cancel_queue_item", responses={200: {"model": SessionQueueItem}})
def cancel_queue_item(current_user: CurrentUserOrDefault, queue_id: QueueId, item_id: ItemId) -> SessionQueueItem:
    """Cancel one's own queue item; a worker in any process stops at its next step."""
    _existing(queue_id, item_id)
    try:
        return cast(SessionQueueItem, _queue().cancel_queue_item(item_id))
    except SessionQueueItemNotFoundError as error:
        raise _missing(queue_id, item_id) from error


def _found(queue_id: str, item_id: int) -> SessionQueueItem | None:
    """The policies of the database answer for foreign items: they are not there."""
    try:
        item: Any = _queue().get_queue_item(item_id)
    except SessionQueueItemNotFoundError:
        return None
    return cast(SessionQueueItem, item) if item.queue_id == queue_id else None


def _existing(queue_id: str, item_id: int) -> SessionQueueItem:
    item = _found(queue_id, item_id)
    if item is None:
        raise _missing(queue_id, item_id)
    return item


def _missing(queue_id: str, item_id: int) -> HTTPException:
    return HTTPException(status_code=404, detail=f"Queue item with id {item_id} not found in queue {queue_id}")
