"""Whose fault is a node's error: the graph's, or this worker's? A worker's own is no failure of the user: another worker takes the item.

error of a node ─► of(…) ─► None: the graph's  |  why: the worker's ─► the attempt counts as lost, the worker is counted
"""

import re
from dataclasses import dataclass, field

# After these the process's CUDA context is broken: every later kernel fails, too.
_SPOILED = re.compile(
    r"CUDA error|CUDA driver error|cuDNN error|CUBLAS_STATUS|device-side assert|unspecified launch failure|uncorrectable ECC"
    r"|an illegal memory access|NCCL error|HIP error"
)
_SPOILED_TYPES = ("AcceleratorError",)
# By the name of the error's class, and by what its text says. The database is everybody's.
_DATABASE = ("Unavailable", "DatabaseUnavailable", "OperationalError", "AdminShutdown", "PoolTimeout")
# Somebody else was at the same rows; InvokeAI's services make errors of their own of it, which keep it as their cause.
_BUSY = re.compile(r"\.(?:DeadlockDetected|LockNotAvailable): ")
_TYPES = {
    "ModelUnavailable": "a model could not be had",
    "ModelMissing": "a model is missing",
    "ModelCorrupt": "a model's files are damaged",
    "NoRoom": "the disk is full",
    "StorageUnavailable": "the storage does not answer",
    "StorageRefused": "the storage refuses this worker",
    "SafetensorError": "a model's files are damaged",
    "MemoryError": "the machine's memory is full",
}
_TEXTS = (
    (re.compile(r"\[Errno 28\]|No space left on device|\[Errno 122\]|Disk quota exceeded"), "the disk is full"),
    (re.compile(r"\[Errno 5\]|Input/output error|\[Errno 30\]|Read-only file system"), "the disk fails"),
    (re.compile(r"\[Errno 24\]|Too many open files"), "too many open files"),
    (re.compile(r"Error while deserializing header|PytorchStreamReader failed|invalid magic number"), "a model's files are damaged"),
    (re.compile(r"DefaultCPUAllocator: (?:not enough|can't allocate) memory|Cannot allocate memory"), "the machine's memory is full"),
    (re.compile(r"Model file not found|Missing model file|no file named .+ found in directory", re.IGNORECASE), "a model is missing"),
)

# One customer's graphs may all be of the kind that kills a process: so many times as many of them, before it must be the worker.
ONE_OWNERS = 3


class WorkerFault(Exception):
    """A node failed by the operator's fault: the attempt ends without a result, and the item goes to another worker.

    `counts`: it is this worker's own. `spoiled`: its process cannot run anything else.
    """

    def __init__(self, why: str, *, counts: bool = True, spoiled: bool = False) -> None:
        super().__init__(why)
        self.why, self.counts, self.spoiled = why, counts, spoiled


def of(error_type: str, message: str, traceback: str = "") -> WorkerFault | None:
    """What is wrong with the worker, None for the graph's own failure. A card whose memory one graph fills is the graph's."""
    if error_type in _SPOILED_TYPES or (error_type != "OutOfMemoryError" and _SPOILED.search(message)):
        return WorkerFault(f"the GPU failed: {_short(message)}", spoiled=True)
    if error_type in _DATABASE:
        return WorkerFault(f"the database does not answer: {_short(message)}", counts=False)
    if _BUSY.search(traceback):
        return WorkerFault(f"the database was busy: {_short(message)}", counts=False)
    known = _TYPES.get(error_type) or next((why for pattern, why in _TEXTS if pattern.search(message)), None)
    return None if known is None else WorkerFault(f"{known}: {_short(message)}")


def _short(message: str) -> str:
    return " ".join(message.split())[:200]


@dataclass
class InARow:
    """How many items in a row failed by the worker's fault; one item that fails again and again counts once.

    Items of one owner alone prove little: otherwise one customer's graphs would put the whole fleet out of work.
    """

    limit: int
    _owners: dict[int, str] = field(default_factory=dict)
    _starts: int = 0

    @property
    def count(self) -> int:
        """Items, and starts that failed."""
        return len(self._owners) + self._starts

    @property
    def is_too_many(self) -> bool:
        """Time for the quarantine."""
        one_owners = self._starts == 0 and len(set(self._owners.values())) == 1
        return self.count >= self.limit * (ONE_OWNERS if one_owners else 1)

    def failed(self, item_id: int, owner: str) -> None:
        """One more item."""
        self._owners[item_id] = owner

    def did_not_start(self) -> None:
        """One more runner that was not there for any item."""
        self._starts += 1

    def went_well(self) -> None:
        """An item came to its end here."""
        self._owners.clear()
        self._starts = 0
