"""`--set NODE.FIELD=VALUE`: find the node, read the value as the field's schema wants it, put it into the draft."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_graph import NODE_ATTRIBUTES, WorkflowDraft, nearest_word
from invokeai_video_nodes.workflow_models import chosen_loras, find_named_model, identity, takes_loras, takes_model

_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of")
# A gallery field's class -> the key under which it holds the file's name.
_MEDIA_KEYS = {"ImageField": "image_name", "VideoField": "video_name"}


class Setting(NamedTuple):
    """One `--set`, taken apart but not yet read."""

    node: str
    field: str
    text: str


def parse_setting(text: str) -> Setting:
    """Split NODE.FIELD=VALUE at the first '=' and at the last '.' before it; labels may hold dots and blanks."""
    target, equals, value = text.partition("=")
    node, dot, field = target.rpartition(".")
    if not (equals and dot and node and field):
        raise BadInput.expected("--set", "NODE.FIELD=VALUE", f"'{text}'")
    return Setting(node, field, value)


def apply_settings(
    draft: WorkflowDraft,
    settings: Sequence[Setting],
    *,
    classes: Mapping[str, Any],
    installed: Sequence[Mapping[str, str]],
    import_media: Callable[[str, Path], str],
) -> None:
    """Put the values into the draft.

    `import_media(key, path)` copies a file into the gallery and returns its name there; key is "image_name" or
    "video_name". BadInput for an unknown or ambiguous node, an unknown field, or a value that the field does not take.
    """
    for setting in settings:
        node_id = find_node(draft, setting.node, classes)
        node = draft.nodes[node_id]
        cls = classes[node["type"]]
        field = _find_field(draft, node_id, cls, setting.field)
        where = f"{draft.title(node_id)}.{setting.field}"
        if takes_model(field):
            node[setting.field] = identity(find_named_model(setting.text, installed, what=where))
        elif takes_loras(field):
            loras = chosen_loras(where, _json_or(setting.text, list | dict), installed)
            node[setting.field] = _validated(where, cls, setting.field, [loras], setting.text)
        elif media := _media_key(field):
            node[setting.field] = _media_value(where, field, media, setting.text, import_media)
        else:
            node[setting.field] = _read_value(where, cls, setting.field, setting.text)
        _cut_wires(draft, node_id, setting.field)


def find_node(draft: WorkflowDraft, name: str, classes: Mapping[str, Any]) -> str:
    """The id of the node that `name` means: an id, else a label, else a type, else a title; ties are an error."""
    if name in draft.nodes:
        return name
    wanted = name.casefold()
    names_of = {
        "label": {node_id: draft.labels.get(node_id, "") for node_id in draft.nodes},
        "type": {node_id: node["type"] for node_id, node in draft.nodes.items()},
        "title": {node_id: classes[node["type"]].UIConfig.title or "" for node_id, node in draft.nodes.items()},
    }
    for kind, names in names_of.items():
        found = [node_id for node_id, candidate in names.items() if candidate.casefold() == wanted]
        if len(found) > 1:
            listing = ", ".join(draft.title(node_id) for node_id in found)
            raise BadInput.expected("node", "a name that only one node has", f"the {kind} '{name}' of {listing}")
        if found:
            return found[0]
    known = [candidate for names in names_of.values() for candidate in names.values() if candidate]
    listing = ", ".join(draft.title(node_id) for node_id in draft.nodes)
    raise BadInput.expected("node", f"one of {listing}", f"'{name}'", nearest_word(name, known))


def _find_field(draft: WorkflowDraft, node_id: str, cls: Any, name: str) -> Any:
    fields = {key: field for key, field in cls.model_fields.items() if key not in ("id", "type")}
    if name in fields:
        return fields[name]
    inputs = [key for key in fields if key not in NODE_ATTRIBUTES]
    what = f"field of {draft.title(node_id)}"
    raise BadInput.expected(what, f"one of {', '.join(inputs)}", f"'{name}'", nearest_word(name, fields))


def _read_value(where: str, cls: Any, name: str, text: str) -> Any:
    """The value as the field's own validator accepts it: as text where text fits, else as JSON.

    So a prompt of digits stays a prompt, and `true`, `12` or `[1, 2]` become what they look like elsewhere.
    """
    return _validated(where, cls, name, [text, _json_or(text)], text)


def _validated(where: str, cls: Any, name: str, readings: Sequence[Any], text: str) -> Any:
    """The first reading that the field's own validator accepts, as plain data; BadInput where it accepts none."""
    from pydantic import ValidationError
    from pydantic_core import to_jsonable_python

    problem: Any = None
    for value in readings:
        probe = cls.model_construct()
        try:
            cls.__pydantic_validator__.validate_assignment(probe, name, value)
        except ValidationError as error:
            problem = error
        else:
            return to_jsonable_python(getattr(probe, name))
    raise value_error(where, cls.model_fields[name], problem, text) from problem


def value_error(where: str, field: Any, problem: Any, got: Any) -> BadInput:
    """A pydantic complaint about one field as one line with the nearest valid value where there is one."""
    details = [error for error in problem.errors() if error["type"] != "none_required"] or problem.errors()
    own = details[0].get("ctx", {}).get("error")
    if isinstance(own, BadInput):  # from a check of the node's own, which names what is right by itself
        return BadInput(f"{where}: {str(own).removeprefix(where.rpartition('.')[2] + ': ')}")
    message = details[0]["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return BadInput.expected(where, message, f"'{got}'", nearest=_nearest(field, got))


def _nearest(field: Any, got: Any) -> Any:
    """The value nearest to `got` that a bounded number or a choice of words allows, or None where that is not known."""
    choices = [value for value in _literals(field.annotation) if isinstance(value, str)]
    if choices:
        return nearest_word(str(got), choices)
    numbers = {kind for kind in (int, float) if kind in _plain_types(field.annotation)}
    if not numbers:
        return None
    whole = float not in numbers
    try:
        number = float(got)
    except (TypeError, ValueError):
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    bounds = {name: getattr(item, name) for item in field.metadata for name in _BOUNDS if hasattr(item, name)}
    step = bounds.get("multiple_of") or (1 if whole else 0)
    lowest = bounds.get("ge", bounds["gt"] + step if step and "gt" in bounds else None)
    highest = bounds.get("le", bounds["lt"] - step if step and "lt" in bounds else None)
    if step:
        number = round(number / step) * step
    if lowest is not None:
        number = max(number, -(-lowest // step) * step if step else lowest)
    if highest is not None:
        number = min(number, highest // step * step if step else highest)
    # A bound that the value itself does not reach, or that lies inside a union, is not known here.
    return None if number == float(got) else int(number) if whole else number


def _plain_types(annotation: Any) -> set[Any]:
    """The annotation itself, or what its unions are made of: {int, None} for `int | None`, {list[int]} for a list."""
    from types import UnionType
    from typing import Annotated, Union, get_args, get_origin

    if get_origin(annotation) is Annotated:
        return _plain_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for inner in get_args(annotation) for kind in _plain_types(inner)}
    return {annotation}


def _literals(annotation: Any) -> list[Any]:
    """Every literal or enum value inside an annotation."""
    from enum import Enum
    from typing import Literal, get_args, get_origin

    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    return [value for inner in get_args(annotation) for value in _literals(inner)]


def _media_key(field: Any) -> str | None:
    """The key of the gallery's name for a field that holds gallery files, one or a list of them; None for others."""
    text = str(field.annotation)
    return next((key for cls, key in _MEDIA_KEYS.items() if f".{cls}" in text and "Union" not in text), None)


def _media_value(where: str, field: Any, key: str, text: str, import_media: Callable[[str, Path], str]) -> Any:
    """A gallery field from a name in the gallery or a path on disk; a list field takes a JSON list of them."""
    several = "list[" in str(field.annotation)
    names = _json_or(text, list) if several else text
    values = []
    for name in names if isinstance(names, list) and names else [text]:
        path = Path(str(name)).expanduser()
        if path.is_file():
            try:
                values.append({key: import_media(key, path)})
            except BadInput as error:
                raise BadInput(f"{where}: {error}") from error
        elif path.suffix and path.name == str(name):
            values.append({key: name})
        else:
            raise BadInput.expected(where, "a file or the name of one in the gallery", f"'{name}'")
    return values if several else values[0]


def _json_or(text: str, kinds: Any = object) -> Any:
    """What `text` spells in JSON where that is one of the `kinds`, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, kinds) else text


def _cut_wires(draft: WorkflowDraft, node_id: str, field: str) -> None:
    """A value that was set by hand replaces what was wired in; the person is told."""
    for link in [link for link in draft.links if (link.target, link.target_field) == (node_id, field)]:
        draft.links.remove(link)
        draft.remarks.append(f"--set {field} replaces the wire from {draft.title(link.source)}.{link.source_field}")
