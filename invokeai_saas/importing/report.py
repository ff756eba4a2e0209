"""What an import did: counts per kind, what was left behind and why, notes; and the lines that are said on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

_LINE_SECONDS = 2.0
_LISTED = 100
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass
class Tally:
    """Of one kind: brought over now, there from an earlier run, left behind, bytes of files brought."""

    brought: int = 0
    there: int = 0
    left: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Left:
    """Something that did not come over."""

    kind: str
    name: str
    reason: str


@dataclass
class Report:
    """Collects; `say` gets each line."""

    say: Callable[[str], None] = print
    tallies: dict[str, Tally] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    heading: tuple[str, str, str] = ("brought", "there", "left")
    _said_at: float = 0.0

    def of(self, kind: str) -> Tally:
        """The tally of a kind."""
        return self.tallies.setdefault(kind, Tally())

    def leave(self, kind: str, name: str, reason: str) -> None:
        """Something stays behind."""
        self.of(kind).left += 1
        self.left.append(Left(kind, name, reason))

    def progress(self, kind: str, total: int) -> None:
        """A line `images 120/4500, 1.2 GiB`, every two seconds and at the end of a kind."""
        tally = self.of(kind)
        done = tally.brought + tally.there + tally.left
        if done >= total or time.monotonic() - self._said_at >= _LINE_SECONDS:
            self._said_at = time.monotonic()
            self.say(f"{kind}: {done}/{total}" + (f", {in_words(tally.bytes)}" if tally.bytes else ""))

    @property
    def complete(self) -> bool:
        """True when nothing was left behind."""
        return not self.left

    def summary(self) -> list[str]:
        """Lines to end with."""
        first, second, third = self.heading
        lines = [f"{'':28}{first:>12}{second:>12}{third:>12}"]
        lines += [f"{kind:28}{tally.brought:>12}{tally.there:>12}{tally.left:>12}" for kind, tally in self.tallies.items()]
        lines.append(f"{in_words(sum(tally.bytes for tally in self.tallies.values()))} of files")
        lines += [f"left behind: {item.kind} {item.name}: {item.reason}" for item in self.left[:_LISTED]]
        if len(self.left) > _LISTED:
            lines.append(f"left behind: {len(self.left) - _LISTED} more")
        return lines + self.notes


def in_words(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
