"""Decision 27: video_frame_progress, video_generation_complete, _failed and _canceled, beside InvokeAI's own events."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from invokeai.app.services.events.events_common import EventBase, InvocationProgressEvent
from invokeai.app.services.session_queue.session_queue_common import Batch
from saas.books import give, picture
from saas.people import rows
from saas.plan_graphs import graph, model
from saas.stepping import Server

from invokeai_saas.credits import service
from invokeai_saas.db import tenancy
from invokeai_saas.events.relay import ToldUser
from invokeai_saas.jobs.stopping import stop_work_of
from invokeai_saas.swaps.events import CommittedEvents
from invokeai_video_nodes.nodes.progress import StepPreview, frame_progress

TRANSFORMER = {"transformer": model("z-image-video"), "loras": []}
VIDEO = {"id": "d", "type": "z_image_video_denoise", "transformer": TRANSFORMER, "steps": 8, "num_frames": 5}
PICTURE = {"id": "d", "type": "blank_image"}


class Told(CommittedEvents):
    """What this process' sockets would hear."""

    def __init__(self, database: Any) -> None:
        self.loop = asyncio.new_event_loop()
        super().__init__(database, 1, self.loop)
        self.sent: list[EventBase] = []

    def close(self) -> None:
        self.stop()
        self.loop.run_until_complete(asyncio.sleep(0))
        for task in list(self._background_tasks):
            self.loop.run_until_complete(task)
        self.loop.close()

    def dispatch_here(self, event: EventBase) -> None:
        self._database.on_commit(lambda: self.sent.append(event))

    def videos(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [(event.user_id, event.name, event.data) for event in self.sent if isinstance(event, ToldUser)]


@pytest.fixture
def server(database) -> Iterator[Server]:
    made = Server(database, "worker")
    made.events = made.invoker.services.events = Told(database)
    with tenancy.as_system("a worker in a test"):
        yield made
    made.events.close()


def enqueue(server: Server, *nodes: dict[str, Any], runs: int = 1) -> list[int]:
    with tenancy.as_user("ann"):
        return sorted(server.queue._enqueue_batch("default", Batch(graph=graph(*nodes), runs=runs), False, "ann").item_ids)


def run(server: Server, seconds: float = 6.3) -> Any:
    """Claim the next item and let it have worked."""
    item = server.queue.dequeue()
    rows(server.database, "UPDATE job_attempts SET gpu_seconds = %s WHERE item_id = %s", seconds, item.item_id)
    return item


def progress(item: Any, node: Any, message: str, percentage: float | None = None) -> InvocationProgressEvent:
    return InvocationProgressEvent(
        queue_id="default", item_id=item.item_id, batch_id="b", user_id="ann", session_id="s", invocation=node, invocation_source_id="d",
        message=message, percentage=percentage,
    )  # fmt: skip


def test_the_end_of_a_video_is_told_with_its_place_and_price(server):
    give(server.database, "ann", 100)
    [item_id] = enqueue(server, VIDEO)
    with tenancy.as_user("ann"), server.database.postgres() as cursor:
        service.hold(cursor, user_id="ann", amounts={item_id: 50})
    item = run(server)
    picture(server.database, item_id, kind="video")
    [video] = rows(server.database, "SELECT video_name FROM videos")
    server.queue.complete_queue_item(item.item_id)

    url = f"/api/v1/videos/i/{video['video_name']}/full"
    told = {"job_id": item_id, "credits_consumed": 7, "video_id": video["video_name"], "video_url": url}
    assert server.events.videos() == [("ann", "video_generation_complete", told)]
    assert [event.__event_name__ for event in server.events.sent][-2:] == ["queue_item_status_changed", "saas_told_user"]


def test_a_failed_one_is_told_with_the_reason(server):
    [item_id] = enqueue(server, VIDEO)
    run(server)
    server.queue.fail_queue_item(item_id, "OutOfMemoryError", "too large", "trace")

    told = {"job_id": item_id, "credits_consumed": 0, "error_type": "OutOfMemoryError", "error_message": "too large"}
    assert server.events.videos() == [("ann", "video_generation_failed", told)]


def test_canceled_ones_are_told_one_by_one_or_together(server):
    first, second, third = enqueue(server, VIDEO, runs=3)
    item = run(server)
    with tenancy.as_user("ann"):
        server.queue.cancel_queue_item(item.item_id)
        server.queue.cancel_by_batch_ids("default", [item.batch_id], "ann")

    told = [(name, data) for _user, name, data in server.events.videos()]
    assert told == [("video_generation_canceled", {"job_id": each, "credits_consumed": 0}) for each in (first, second, third)]


def test_an_administrator_s_stop_is_told_to_the_owner(server):
    [item_id] = enqueue(server, VIDEO)
    with tenancy.as_user("root"):
        stop_work_of(server.queue, "ann")

    assert server.events.videos() == [("ann", "video_generation_canceled", {"job_id": item_id, "credits_consumed": 0})]


def test_what_is_rolled_back_is_not_told(server):
    [item_id] = enqueue(server, VIDEO)
    with pytest.raises(RuntimeError), tenancy.as_user("ann"), server.database.postgres():
        server.queue.cancel_queue_item(item_id)
        raise RuntimeError

    assert server.events.videos() == []


def test_pictures_are_no_videos(server):
    [item_id] = enqueue(server, PICTURE)
    run(server)
    server.queue.complete_queue_item(item_id)

    assert server.events.videos() == []


def test_a_called_workflow_s_video_is_its_caller_s(server):
    [item_id] = enqueue(server, PICTURE)
    [child_id] = enqueue(server, VIDEO)
    rows(server.database, "UPDATE session_queue SET parent_item_id = %s, root_item_id = %s WHERE item_id = %s", item_id, item_id, child_id)
    picture(server.database, child_id, kind="video")
    for each in (item_id, child_id):
        run(server)
        if each == child_id:
            node = server.queue.get_queue_item(child_id).session.graph.nodes["d"]
            server.events.dispatch(progress(server.queue.get_queue_item(child_id), node, "Denoising step 1/8", 0.125))
    server.queue.complete_queue_item(child_id)
    assert [name for _user, name, _data in server.events.videos()] == ["video_frame_progress"]
    server.queue.complete_queue_item(item_id)

    assert [(name, data["job_id"]) for _user, name, data in server.events.videos()] == [
        ("video_frame_progress", item_id), ("video_generation_complete", item_id),
    ]  # fmt: skip


def test_progress_says_step_of_steps_and_frame_of_frames_in_the_nodes_own_words(server):
    """The words are those of nodes/progress.py, said here by it."""
    [item_id] = enqueue(server, VIDEO)
    item = run(server)
    nodes = {"d": item.session.graph.nodes["d"], "p": graph(PICTURE).nodes["d"]}
    said: list[tuple[Any, ...]] = []
    context = SimpleNamespace(util=SimpleNamespace(signal_progress=lambda *what: said.append(what)))
    preview = StepPreview(context, size=(16, 16), factors=None)  # type: ignore[arg-type]
    preview(3, 6, None, None)  # type: ignore[arg-type]
    frame_progress(context, "Decoding")(2, 5)  # type: ignore[arg-type]
    server.events.dispatch(progress(item, nodes["d"], "Looking at the start image"))
    server.events.dispatch(progress(item, nodes["d"], *said[0][:2]))
    server.events.dispatch(progress(item, nodes["p"], "Decoding latent frame 1/2", 0.5))
    server.events.dispatch(progress(item, nodes["p"], *said[1][:2]))

    told = [data for _user, name, data in server.events.videos() if name == "video_frame_progress"]
    assert [tuple(data.values()) for data in told] == [(item_id, 0, 5, 3, 6), (item_id, 2, 5, 3, 6)]
    assert list(told[0]) == ["job_id", "current_frame", "total_frames", "current_step", "total_steps"]


def test_nodes_that_only_say_how_far_they_are_have_their_steps_counted(server):
    [item_id] = enqueue(server, VIDEO)
    item = run(server)
    server.events.dispatch(progress(item, item.session.graph.nodes["d"], "Denoising", 0.5))

    [(_user, _name, data)] = server.events.videos()
    assert (data["current_step"], data["total_steps"]) == (4, 8)


def test_progress_of_pictures_is_none_of_videos(server):
    enqueue(server, PICTURE)
    item = run(server)
    server.events.dispatch(progress(item, item.session.graph.nodes["d"], "Denoising step 1/8", 0.1))

    assert server.events.videos() == []


def test_what_cannot_be_found_out_stops_nobody(server, monkeypatch):
    [item_id] = enqueue(server, VIDEO)
    run(server)
    monkeypatch.setattr("invokeai_saas.events.video.ENDED", "SELECT nonsense %(item_ids)s %(user_id)s %(makers)s")
    server.queue.complete_queue_item(item_id)

    assert rows(server.database, "SELECT status FROM session_queue") == [{"status": "completed"}]
    assert server.events.sent[-1].status == "completed"
