"""What a workflow is in our own words: nodes, wires and the form that an artist sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """One node on the canvas, in a column counted from the left; `values` are the inputs that differ from the default."""

    id: str
    type: str
    column: int
    label: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    input_labels: Mapping[str, str] = field(default_factory=dict)
    makes_result: bool = False


@dataclass(frozen=True)
class Field:
    """An input in the form: "node.input", under the words that an artist reads."""

    target: str
    label: str
    component: str = ""
    shuffle: bool = False


@dataclass(frozen=True)
class Recipe:
    """A workflow in our own words. `form` holds headings (str starting with "# "), texts (str), fields and rows of fields."""

    name: str
    description: str
    notes: str
    tags: Sequence[str]
    nodes: Sequence[Node]
    wires: Sequence[str]
    form: Sequence[str | Field | Sequence[Field]]
