"""A clip's latents in a file of their own while they are decoded, so that no failure costs the render that made them.

InvokeAI's tensor store is a temporary folder: it is deleted when the server stops and, after a crash, when it starts again. So a
decode first writes `outputs/video-latents/clip-HASH.safetensors`, and takes the file away when the video is in the gallery. Where
the decode fails, or the process dies, or the server is stopped meanwhile, the file stays; the message of the failure names it, and
the node "Load Video Latents" reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from invokeai.app.invocations.fields import LatentsField
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.session_queue.session_queue_common import SessionQueueItemNotFoundError
from invokeai.app.services.shared.invocation_context import InvocationContext
from safetensors import SafetensorError, safe_open

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, facts_from, load_clip, require_family
from invokeai_video_nodes.nodes.save_video import outputs_folder, unfinished_folder
from invokeai_video_nodes.pipelines.errors import BadInput, OutOfMemory, OutputError
from invokeai_video_nodes.pipelines.mp4 import temporary_name
from invokeai_video_nodes.pipelines.shapes import check_latents

_NAME = re.compile(r"clip-[0-9a-f]{32}\.safetensors")
_EXPECTED = "the name of a file in the folder video-latents of InvokeAI's outputs, clip-….safetensors, as the failed decode told it"
# Raised on as what they are, with more words: their names tell the interface and the command line what to do.
_NAMED = (BadInput, OutputError, OutOfMemory, torch.OutOfMemoryError)


class DecodeFailed(RuntimeError):
    """A decode ended early; the message says why, and where the latents are."""


@dataclass(frozen=True)
class _Kept:
    """The latents' `file`; `is_new` where this decode made it; where it could not be written, `problem` says why."""

    file: Path
    is_new: bool = False
    problem: str | None = None

    def remove(self) -> None:
        """Take away what this decode wrote."""
        if self.is_new:
            self.file.unlink(missing_ok=True)

    def how_to_go_on(self) -> str:
        """What the artist can do after a failure."""
        if self.problem is not None:
            return f"The clip's latents could not be kept, so the clip has to be made anew ({self.problem})."
        return f"The clip's latents are kept in {self.file}: give that name to 'Load Video Latents' and decode from there."


def kept_folder() -> Path:
    """Where latents lie while they are decoded, and afterwards where that failed."""
    return outputs_folder() / "video-latents"


@contextmanager
def kept_while_decoding(
    context: InvocationContext, field: LatentsField, *, family: str | None = None
) -> Iterator[tuple[torch.Tensor, ClipFacts]]:
    """`with kept_while_decoding(context, field) as (latents, facts):` decode and save; the latents are on disk before it begins.

    After success, or where the artist canceled, the file is gone, unless it was there before. Any other exception leaves
    it and comes out with words that say where it is; of another class than our own or torch's out-of-memory, as DecodeFailed.
    Latents of another `family` than the caller decodes are refused first, see `require_family`.
    """
    latents, facts = load_clip(context, field)
    require_family(facts, family)
    kept = _keep(context, latents, facts)
    try:
        yield latents, facts
    except CanceledException:
        if _canceled_by_the_artist(context):
            kept.remove()
        else:
            context.logger.warning(f"The decode was stopped. {kept.how_to_go_on()}")
        raise
    except Exception as error:
        words = f"{str(error).removesuffix('.')}. {kept.how_to_go_on()}"
        if isinstance(error, _NAMED):
            raise type(error)(words) from error
        raise DecodeFailed(f"{type(error).__name__}: {words}") from error
    kept.remove()


def load_kept(name: str) -> tuple[torch.Tensor, ClipFacts]:
    """Latents [1, C, T, h, w] and their facts from the file of that name, or of that full path, in `kept_folder()`.

    Raises BadInput for any other place, and where the file is missing or damaged.
    """
    path = _kept_path(name)
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_tensor("latents")
            facts = facts_from(json.loads((file.metadata() or {}).get("clip_facts", "{}")))
    except (SafetensorError, ValueError, TypeError) as error:
        raise BadInput.expected("latents file", "a file that a decode of this pack wrote", f"{path.name} ({error})") from error
    check_latents(latents)
    return latents, facts


def _kept_path(name: str) -> Path:
    given, folder = Path(name.strip()), kept_folder()
    # A bare name, or exactly that name in our folder: nothing else is looked at, so no graph can ask what else is on the disk.
    if not _NAME.fullmatch(given.name) or (str(given) != given.name and given.parent != folder):
        raise BadInput.expected("latents file", _EXPECTED, repr(name))
    path = folder / given.name
    if not path.is_file() or path.is_symlink():
        raise BadInput.expected("latents file", "a file that is still there", f"no {path.name} in {folder}")
    return path


def _keep(context: InvocationContext, latents: torch.Tensor, facts: ClipFacts) -> _Kept:
    """Write the latents' file, unless it is there; where it cannot be written the decode goes on all the same."""
    told = json.dumps(dataclasses.asdict(facts))
    content = safetensors.torch.save({"latents": latents.contiguous()}, metadata={"clip_facts": told})
    # Named by what is in it, so that decoding the same latents again after a failure leaves one file and not two.
    path = kept_folder() / f"clip-{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    if path.is_file():
        return _Kept(path)
    try:
        _write(path, content)
    except OSError as error:
        # Going on is the best chance that these latents have.
        context.logger.warning(f"The latents could not be kept on disk while they are decoded: {error}")
        return _Kept(path, problem=f"{kept_folder()}: {error.strerror or error}")
    return _Kept(path, is_new=True)


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, even where the power fails; what a killed process leaves is removed with unfinished videos."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished_folder().mkdir(parents=True, exist_ok=True)
    growing = unfinished_folder() / temporary_name()
    try:
        with growing.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        growing.replace(path)
    finally:
        growing.unlink(missing_ok=True)


def _canceled_by_the_artist(context: InvocationContext) -> bool:
    """False where the server is being stopped: that raises the same flag, but the queue does not list the item as canceled."""
    item_id = context._data.queue_item.item_id
    try:
        return bool(context._services.session_queue.get_queue_item(item_id).status == "canceled")
    except SessionQueueItemNotFoundError:
        return False
