"""Model fields of a workflow -> the records of this installation.

A workflow carries the key, hash, name, base and type of the model with which it was saved; keys differ between
installations. Each is looked up by key, then by hash, then by name, base and type. An empty model field takes the one
installed model that the field accepts; none or several is an error that names them, never a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_graph import WorkflowDraft, nearest_word

IDENTITY = ("key", "hash", "name", "base", "type")
# (type, format) of models that only the fields which ask for that format take: motion LoRAs and SparseCtrls.
_ON_REQUEST = (("lora", "checkpoint"), ("controlnet", "sparse_ctrl"))
# What InvokeAI's own LoRA selector gives a LoRA of which nothing else is said.
LORA_WEIGHT = 0.75
# Records what was used; a model that is gone is no reason not to run.
_RECORD_ONLY = ("core_metadata",)


def model_facts(record: Any) -> dict[str, str]:
    """What is asked of an installed model here: the five facts that identify it, and its format."""
    return {fact: _text(getattr(record, fact)) for fact in (*IDENTITY, "format")}


def identity(model: Mapping[str, str]) -> dict[str, str]:
    """The five facts that identify a model, as a model field holds them."""
    return {fact: model[fact] for fact in IDENTITY}


def resolve_models(draft: WorkflowDraft, classes: Mapping[str, Any], installed: Sequence[Mapping[str, str]]) -> None:
    """Point every model field of the draft at an installed model; one BadInput names all that are missing."""
    missing: list[str] = []
    for node_id, node in draft.nodes.items():
        if node["type"] in _RECORD_ONLY:
            continue
        for field_name, wanted in _identifiers(node):
            found = find_saved_model(wanted, installed)
            if found is None:
                missing.append(f"{draft.title(node_id)}.{field_name}, which wants {describe(wanted)} and does not find it")
            else:
                wanted.update(identity(found))
        missing += _fill_empty_fields(draft, node_id, classes[node["type"]], installed)
    if missing:
        known = f"Installed: {_listing(installed)}. Install one with --model PATH or choose one with --set NODE.FIELD=NAME"
        raise BadInput.expected("models", "an installed model in each model field", f"{'; '.join(missing)}. {known}")


def find_saved_model(wanted: Mapping[str, Any], installed: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The installed model that a saved model field means, or None."""
    for facts in (("key",), ("hash",), ("name", "base", "type")):
        if not all(wanted.get(fact) for fact in facts):
            continue
        for model in installed:
            if all(model[fact] == wanted[fact] for fact in facts):
                return model
    return None


def find_named_model(text: str, installed: Sequence[Mapping[str, str]], *, what: str = "model") -> Mapping[str, str]:
    """The installed model with this key or name; BadInput, about `what`, when there is none or more than one."""
    found = [model for model in installed if model["key"] == text] or [m for m in installed if m["name"] == text]
    if len(found) == 1:
        return found[0]
    if found:
        keys = ", ".join(f"{describe(model)} with key {model['key']}" for model in found)
        raise BadInput.expected(what, f"one of the keys ({keys})", f"the name '{text}' of {len(found)} models")
    nearest = nearest_word(text, [model["name"] for model in installed])
    none = "a model that is installed (none of this kind is; --model PATH does it)"
    known = f"a name or key of {_listing(installed)}" if installed else none
    raise BadInput.expected(what, known, f"'{text}'", nearest)


def describe(model: Mapping[str, Any]) -> str:
    """A model in words: 'name' (base type)."""
    return f"'{model.get('name')}' ({model.get('base')} {model.get('type')})"


def takes_model(field: Any) -> bool:
    """Whether a node's field holds a model identifier itself (not a list of them, nor a structure with one inside)."""
    return "ModelIdentifierField" in str(field.annotation) and "list[" not in str(field.annotation)


def takes_loras(field: Any) -> bool:
    """Whether a node's field holds LoRAs with their weights."""
    return ".LoRAField" in str(field.annotation)


def chosen_loras(where: str, value: Any, installed: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """What a LoRA field holds for a name or key, for {"lora": name, "weight": number}, or for a list of these.

    Without a weight it is LORA_WEIGHT. BadInput for another form, and for a LoRA that is not installed.
    """
    loras = [model for model in installed if model["type"] == "lora"]
    found = []
    for entry in value if isinstance(value, list) else [value]:
        facts = entry if isinstance(entry, dict) else {"lora": entry}
        lora = facts.get("lora")
        if isinstance(lora, dict):  # as a workflow file holds it
            lora = lora.get("key")
        if not isinstance(lora, str) or not facts.keys() <= {"lora", "weight"}:
            raise BadInput.expected(where, f'a LoRA\'s name, or [{{"lora": NAME, "weight": {LORA_WEIGHT}}}]', json.dumps(entry))
        weight = facts.get("weight", LORA_WEIGHT)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise BadInput.expected(f"{where}: weight of '{lora}'", "a number", json.dumps(weight), LORA_WEIGHT)
        found.append({"lora": identity(find_named_model(lora, loras, what=where)), "weight": weight})
    return found


def _identifiers(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every saved model identifier inside a node's values with the field in which it lies."""
    if isinstance(value, dict):
        if {"key", "name", "base", "type"} <= value.keys():
            yield path, value
            return
        for name, inner in value.items():
            yield from _identifiers(inner, path or name)
    elif isinstance(value, list):
        for inner in value:
            yield from _identifiers(inner, path)


def _fill_empty_fields(draft: WorkflowDraft, node_id: str, cls: Any, installed: Sequence[Mapping[str, str]]) -> list[str]:
    """Choose the only model that fits an empty required model field; what could not be chosen comes back in words."""
    node = draft.nodes[node_id]
    wired = {link.target_field for link in draft.links if link.target == node_id}
    missing: list[str] = []
    for name, field in cls.model_fields.items():
        extra = field.json_schema_extra or {}
        given = name in wired or node.get(name) is not None
        if given or not takes_model(field) or not extra.get("orig_required", True):
            continue
        fitting = [model for model in installed if _accepts(extra, model)]
        where = f"{draft.title(node_id)}.{name}"
        if len(fitting) == 1:
            node[name] = identity(fitting[0])
            draft.remarks.append(f"{where} was empty; it takes {describe(fitting[0])}, the only model that fits")
        elif fitting:
            missing.append(f"{where}, which is empty while {len(fitting)} models fit: choose {_settings(node_id, name, fitting)}")
        else:
            missing.append(f"{where}, which is empty while no installed model is of {_wish(extra)}")
    return missing


def _settings(node_id: str, field: str, models: Sequence[Mapping[str, str]]) -> str:
    """The --set of each model, by its name, or by its key where another has the same name."""
    names = [model["name"] for model in models]
    words = [model["name"] if names.count(model["name"]) == 1 else model["key"] for model in models]
    return " or ".join(f'--set "{node_id}.{field}={word}"' for word in words)


def _accepts(extra: Mapping[str, Any], model: Mapping[str, str]) -> bool:
    wishes = {fact: _texts(extra.get(f"ui_model_{fact}")) for fact in ("base", "type", "format")}
    if not wishes["format"] and (model["type"], model.get("format")) in _ON_REQUEST:
        return False
    return all(not wanted or model.get(fact) in wanted for fact, wanted in wishes.items())


def _wish(extra: Mapping[str, Any]) -> str:
    bases, types, formats = (_texts(extra.get(f"ui_model_{fact}")) for fact in ("base", "type", "format"))
    words = f"base {'/'.join(bases) or 'any'} and type {'/'.join(types) or 'any'}"
    return f"{words} and format {'/'.join(formats)}" if formats else words


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [_text(item) for item in value] if isinstance(value, list | tuple) else [_text(value)]


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _listing(models: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(describe(model) for model in models) or "none"
