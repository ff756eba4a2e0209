"""What was patched in this process: an in-memory report that `invokeai-video doctor` prints.

Every patch reports exactly once through `applied` or `fell_back`; a fallback writes one log line and nothing else.
"""

import logging
from dataclasses import dataclass, field

logger = logging.getLogger("InvokeAI")


@dataclass(frozen=True)
class Entry:
    """One patch: its name, whether it stands, and details or the reason in plain words."""

    name: str
    ok: bool
    detail: str


@dataclass
class Report:
    """All entries of this process, by patch name; the newest wins."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def as_dict(self) -> dict[str, dict[str, object]]:
        """The report as plain data, for `doctor --json`."""
        return {name: {"ok": entry.ok, "detail": entry.detail} for name, entry in self.entries.items()}


report = Report()


def applied(name: str, detail: str = "") -> None:
    """Record that a patch stands."""
    report.entries[name] = Entry(name, True, detail)


def fell_back(name: str, reason: str) -> None:
    """Record that a patch does not stand and log one line, the first time only."""
    known = report.entries.get(name)
    report.entries[name] = Entry(name, False, reason)
    if known is None or known.ok or known.detail != reason:
        logger.warning("invokeai-video: %s: falling back to stock InvokeAI: %s", name, reason)


def patched_early() -> bool:
    """True when the import hooks have brought in our model types before anyone took the old ones."""
    entry = report.entries.get("model identification")
    return entry is not None and entry.ok
