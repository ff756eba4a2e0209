"""The meter of the item that a runner works on, in memory that its supervisor reads: no lock, no message, also while the runner's Python
stands still in the middle of a kernel.

    runner: node begins, pauses, ends ─► one record with its checksum ─► supervisor: seconds up to this moment, against the limit

Both read CLOCK_MONOTONIC, which is one clock for all processes of a machine. A record that was torn by a kill, or is just being written,
fails its checksum: the last whole one counts. Imports no InvokeAI.
"""

import mmap
import os
import struct
import tempfile
import time
import zlib
from dataclasses import dataclass
from threading import Lock

from invokeai_saas.jobs.metering import Meter

# item, since, a node runs, pauses, seconds, worked seconds, limit (negative: none).
_RECORD = struct.Struct("<qdqqddd")
_CHECKSUM = struct.Struct("<I")
_SIZE = 4096
_TRIES = 50


def new_memory() -> int:
    """A file descriptor of memory that two processes can share."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("invokeai-saas-meter")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _SIZE)
    return descriptor


class SharedMeter(Meter):
    """A Meter that writes down each of its changes, for one item. One thread at a time changes it, as Meter's lock sees to."""

    def __init__(self, memory: mmap.mmap, item_id: int) -> None:
        super().__init__()
        self._memory, self._item_id = memory, item_id
        self._changed()

    def _changed(self) -> None:
        limit = -1.0 if self.limit_seconds is None else self.limit_seconds
        record = _RECORD.pack(self._item_id, self._since, int(self._node_runs), self._pauses, self._seconds, self._worked, limit)
        self._memory[: len(record) + _CHECKSUM.size] = record + _CHECKSUM.pack(zlib.crc32(record))


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter shows: charged seconds, all seconds in nodes, and how many of those are allowed (None: any)."""

    seconds: float = 0.0
    worked_seconds: float = 0.0
    limit_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the item worked for longer than its price allows."""
        return self.limit_seconds is not None and self.worked_seconds > self.limit_seconds


class MeterReader:
    """The supervisor's side. What was read of an item never grows less, whatever happens to the runner."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._lock, self._item_id, self._last = Lock(), 0, Reading()

    def close(self) -> None:
        """Let go of the memory; what was read last stays."""
        with self._lock:
            self._memory.close()

    def watch(self, item_id: int) -> None:
        """From now on this item's seconds are asked for; none are there until its runner begins."""
        with self._lock:
            self._item_id, self._last = item_id, Reading()

    def read(self) -> Reading:
        """The item's seconds up to this moment."""
        with self._lock:
            fresh = self._fresh()
            if fresh is not None and fresh.worked_seconds >= self._last.worked_seconds:
                self._last = fresh
            return self._last

    def _fresh(self) -> Reading | None:
        if self._memory.closed:
            return None
        for _ in range(_TRIES):
            record, checksum = self._memory[: _RECORD.size], self._memory[_RECORD.size : _RECORD.size + _CHECKSUM.size]
            if zlib.crc32(record) == _CHECKSUM.unpack(checksum)[0]:
                break
        else:
            return None
        item_id, since, node_runs, pauses, seconds, worked, limit = _RECORD.unpack(record)
        if item_id != self._item_id:
            return None
        passed = time.monotonic() - since if node_runs else 0.0
        return Reading(seconds + (0.0 if pauses else passed), worked + passed, None if limit < 0 else limit)


def open_memory(descriptor: int) -> mmap.mmap:
    """The runner's side of new_memory()."""
    return mmap.mmap(descriptor, _SIZE)
