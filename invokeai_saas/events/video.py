"""Decision 27: what InvokeAI's events mean for the making of a video, to its owner's room.

    invocation_progress of a video's nodes ─► video_frame_progress: step of steps, frame of frames
    queue item or its last called workflow ends, within its transaction ─► video_generation_complete | _failed | _canceled

InvokeAI's own events go on unchanged beside them. A job is the item that the user enqueued; what it called belongs to it.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from invokeai.app.services.events.events_common import (
    EventBase,
    InvocationProgressEvent,
    QueueItemsCanceledEvent,
    QueueItemStatusChangedEvent,
)

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.events.relay import ToldUser
from invokeai_saas.plans.nodes import RULES

MAKERS = frozenset(name for name, rule in RULES.items() if rule.role == "job" and rule.kind == "video")
# "Denoising step 3/8", "Decoding frame 5/17", "Decoding latent frame 2/5": what the nodes say of themselves (nodes/progress.py).
SAID = re.compile(r"\b(step|(?<!latent )frame) (\d+)/(\d+)")
MOST_JOBS = 256
URL = "/api/v1/videos/i/{}/full"
ROOT = "SELECT COALESCE(root_item_id, item_id) AS job_id FROM session_queue WHERE item_id = %s"
# Ended jobs that make videos, what they left and what they cost: the settlement is part of the same transaction.
ENDED = """
SELECT item.item_id, item.status, COALESCE(usage.credits_consumed, 0) AS credits_consumed, (
    SELECT video.video_name FROM videos AS video
    WHERE video.user_id = item.user_id AND video.is_intermediate = 0 AND video.session_id IN (
        SELECT part.session_id FROM session_queue AS part WHERE part.item_id = item.item_id OR part.root_item_id = item.item_id)
    ORDER BY video.created_at DESC, video.video_name DESC LIMIT 1
) AS video_id
FROM session_queue AS item LEFT JOIN usage_records AS usage ON usage.job_id = item.item_id::text AND usage.user_id = item.user_id
WHERE item.item_id = ANY(%(item_ids)s) AND item.user_id = %(user_id)s AND item.root_item_id IS NULL
  AND item.status IN ('completed', 'failed', 'canceled')
  AND EXISTS (SELECT FROM session_queue AS part
      WHERE (part.item_id = item.item_id OR part.root_item_id = item.item_id) AND part.session ~ %(makers)s)
ORDER BY item.item_id
"""
ENDINGS = {"failed": "video_generation_failed", "canceled": "video_generation_canceled"}
REASON = "the owner of a video is told how its making goes"
logger = logging.getLogger(__name__)


@dataclass
class _Clip:
    """How far a job is; 0 is what nobody said yet."""

    job_id: int
    step: int = 0
    steps: int = 0
    frame: int = 0
    frames: int = 0


class VideoEvents:
    """Events in, those of videos out."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._clips: dict[int, _Clip] = {}

    def of(self, event: EventBase) -> list[EventBase]:
        """What `event` means for videos; nothing when that cannot be found out: it must not stop what it tells of."""
        try:
            return list(self._of(event))
        except Exception:
            logger.exception("an event %s could not be told as one of videos", event.__event_name__)
            return []

    def _of(self, event: EventBase) -> Iterator[EventBase]:
        if isinstance(event, InvocationProgressEvent):
            yield from self._progress(event)
        elif isinstance(event, QueueItemStatusChangedEvent) and event.status in ("completed", "failed", "canceled"):
            self._clips.pop(event.item_id, None)
            yield from self._endings(event.user_id, [event.item_id], error_type=event.error_type, error_message=event.error_message)
        elif isinstance(event, QueueItemsCanceledEvent):
            for user_id, item_ids in event.canceled_item_ids_by_user.items():
                yield from self._endings(user_id, item_ids)

    def _progress(self, event: InvocationProgressEvent) -> Iterator[EventBase]:
        clip = self._clips.get(event.item_id)
        is_maker = event.invocation.get_type() in MAKERS
        if clip is None and not is_maker:
            return
        if clip is None:
            clip = self._begin(event.item_id)
        if is_maker:
            clip.frames = int(getattr(event.invocation, "num_frames", None) or clip.frames)
        if not _note(clip, event):
            return
        data = {"job_id": clip.job_id, "current_frame": clip.frame, "total_frames": clip.frames}
        data |= {"current_step": clip.step, "total_steps": clip.steps}
        yield ToldUser(user_id=event.user_id, name="video_frame_progress", data=data, replaces=f"frames {event.item_id}")

    def _begin(self, item_id: int) -> _Clip:
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            row = cursor.execute(ROOT, (item_id,)).fetchone()
        while len(self._clips) >= MOST_JOBS:
            self._clips.pop(next(iter(self._clips)))
        clip = self._clips[item_id] = _Clip(item_id if row is None else row["job_id"])
        return clip

    def _endings(self, user_id: str, item_ids: Iterable[int], **error: str | None) -> Iterator[EventBase]:
        makers = '"type": ?"(' + "|".join(sorted(MAKERS)) + ')"'
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            rows = cursor.execute(ENDED, {"item_ids": list(item_ids), "user_id": user_id, "makers": makers}).fetchall()
        for row in rows:
            told = _ending(row, error)
            if told is not None:
                yield ToldUser(user_id=user_id, name=told[0], data=told[1])


def _note(clip: _Clip, event: InvocationProgressEvent) -> bool:
    """Whether the event says how far the clip is."""
    said = SAID.search(event.message)
    if said is not None and said[1] == "step":
        clip.step, clip.steps = int(said[2]), int(said[3])
    elif said is not None:
        clip.frame, clip.frames = int(said[2]), int(said[3])
    elif event.percentage is not None and (steps := getattr(event.invocation, "steps", None)):
        # InvokeAI's own video nodes say how far they are, not where.
        clip.step, clip.steps = round(event.percentage * int(steps)), int(steps)
    else:
        return False
    return True


def _ending(row: dict[str, Any], error: dict[str, str | None]) -> tuple[str, dict[str, Any]] | None:
    data = {"job_id": row["item_id"], "credits_consumed": row["credits_consumed"]}
    if row["status"] in ENDINGS:
        return ENDINGS[row["status"]], data | (error if row["status"] == "failed" else {})
    if row["video_id"] is None:
        # It made latents, or a picture of them.
        return None
    return "video_generation_complete", data | {"video_id": row["video_id"], "video_url": URL.format(row["video_id"])}
