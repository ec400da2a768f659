"""JSON Schemas (2020-12) of the messages, read from the frozen dataclasses that compose them.

Types give the shape, docstrings give the words, endings of names give the units (`_ms`, `_px`). A type is a message
when its docstring begins with its topic, as in "`ROOT/verdict`, QoS 1, one per part."; others are parts of messages.
Only keywords that draft-07 knows too are used, because AsyncAPI's own tools read that draft.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Literal

from agent.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MODULES",
    "Topic",
    "message_types",
    "parts_of",
    "payload_schema",
    "standalone_schema",
    "topic_of",
    "undocumented",
]

MODULES = ("agent.messages", "agent.commands.messages")
"""Where messages are defined; a module that does not exist has none."""

RFC3339 = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
UUID7 = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
DECISIONS = [decision.value for decision in Decision]

REFINED: dict[str, dict[str, Any]] = {
    "schema": {"const": 1},
    "time": {"format": "date-time", "pattern": RFC3339},
    "since": {"format": "date-time", "pattern": RFC3339},
    "decision": {"enum": DECISIONS},
    "code": {"enum": [decision.code for decision in Decision]},
    "quality": {"enum": sorted({decision.quality for decision in Decision})},
    "clock": {"enum": ["synced", "unsynced", "unknown"]},
    "VerdictMessage.id": {"pattern": UUID7},
    "VerdictMessage.rec": {"minimum": 1},
    "n_findings": {"minimum": 0},
}
"""What a type can't say, by the field's name or by `Type.field`."""

NOTES = {
    "ImageRef.id": "of the picture; the last level of its topic",
    "ImageRef.sha256": "of the bytes that come on the topic, hex",
    "ImageRef.bytes": "its size",
    "ImageRef.topic": "where the picture itself comes",
    "Milliseconds.capture": "waiting for and reading the frame",
    "Milliseconds.preprocess": "fitting the picture to the model's input: crop, resize, colours",
    "Milliseconds.infer": "the engine alone",
    "Milliseconds.decide": "from the engine's numbers to the decision",
    "Milliseconds.total": "from the trigger to the decision",
    "StatusMessage.state": "`online`, `degraded` or `offline`",
    "StatusMessage.reason": "why it is in this state, in words",
    "StatusMessage.since": "RFC 3339 UTC: since when it is in this state",
    "StatusMessage.bundle": "name-version of what judges, or null",
    "StatusMessage.bundle_digest": "SHA-256 of its manifest, hex, or null",
    "StatusMessage.engine": "in words, or null",
    "version": "of the agent",
    "counters": "counts since the start of the agent, by name",
    "time": "RFC 3339 UTC with milliseconds, when it was written",
    "time_ms": "the same in milliseconds since 1970",
    "uptime_s": "since the start of the agent",
    "outbox": "messages that still have to go out",
    "journal_pending": "verdicts that still have to be written to the disk",
    "evidence_bytes": "what stored pictures take",
    "disk_free_bytes": "what is free beside them",
}
"""Words for fields whose docstring has none, by `Type.field` or by the field's name."""

UNITS = {"ms": "ms", "ns": "ns", "s": "s", "mm": "mm", "px": "px", "deg": "deg", "bytes": "B", "c": "Cel", "hz": "Hz"}
"""Endings of names; the values are UCUM's case-sensitive codes, and px."""

PLAIN: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
TOPIC = re.compile(r"`ROOT/(?P<path>[^`]+)`, QoS (?P<qos>[012])(?P<retain>, retained)?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """Where a message goes: `path` is what follows `ROOT/`."""

    path: str
    qos: int
    retain: bool


def message_types() -> list[type]:
    """Every type that is a whole message, in the order of its definition."""
    return [kind for kind in _types() if topic_of(kind) is not None]


def topic_of(kind: type) -> Topic | None:
    """Where the docstring says that it goes; None for a part of a message."""
    found = TOPIC.match(inspect.getdoc(kind) or "")
    return found and Topic(path=found["path"], qos=int(found["qos"]), retain=found["retain"] is not None)


def undocumented() -> list[str]:
    """Fields that nobody has described."""
    wanted = {part for kind in message_types() for part in (kind, *parts_of(kind))}
    fields = ((kind, field.name) for kind in wanted for field in dataclasses.fields(kind))
    return sorted(f"{kind.__name__}.{name}" for kind, name in fields if not _words(kind, name))


def payload_schema(kind: type, at: str = "#/$defs/") -> dict[str, Any]:
    """The schema of one type; other types are references below `at`.

    Unknown fields are allowed, because fields are only ever added. Required is what has no default: what was added
    later has one, and an older agent does not send it.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    properties = {field.name.removesuffix("_"): _property(kind, field.name, hints[field.name], at) for field in fields}
    return {
        "title": kind.__name__,
        "description": _summary(kind),
        "type": "object",
        "required": [field.name.removesuffix("_") for field in fields if field.name == "schema" or _needed(field)],
        "properties": properties,
    }


def standalone_schema(kind: type) -> dict[str, Any]:
    """A file for validators: one message with all that it refers to."""
    topic = topic_of(kind)
    name = kind.__name__ if topic is None else re.sub(r"[^A-Za-z]+", "-", topic.path).lower()
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:defect-agent:messages:1:{name}",
        **payload_schema(kind),
    }
    parts = parts_of(kind)
    return schema | ({"$defs": {part.__name__: payload_schema(part) for part in parts}} if parts else {})


def _types() -> Iterator[type]:
    for name in MODULES:
        package = name.rpartition(".")[0]
        if importlib.util.find_spec(package) is None or importlib.util.find_spec(name) is None:
            continue
        for kind in vars(importlib.import_module(name)).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == name:
                yield kind


def parts_of(kind: type) -> list[type]:
    """The types that a message is made of."""
    found: dict[type, None] = {}
    for hint in typing.get_type_hints(kind).values():
        for part in _dataclasses_in(hint):
            found.update(dict.fromkeys([part, *parts_of(part)]))
    return list(found)


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _dataclasses_in(inner)


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _property(kind: type, name: str, hint: Any, at: str) -> dict[str, Any]:
    schema = _schema(hint, at)
    words = _words(kind, name)
    if "$ref" in schema and words:
        schema = {"allOf": [schema]}  # draft-07 ignores what stands beside a reference
    unit = "ms" if kind.__name__ == "Milliseconds" else "px" if name == "box" else UNITS.get(name.rpartition("_")[2])
    refined = {**REFINED.get(name, {}), **REFINED.get(f"{kind.__name__}.{name}", {})}
    named = {"description": words} if words else {}
    return named | schema | refined | ({"x-unit": unit} if unit and "description" in named else {})


def _schema(hint: Any, at: str) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return _union([_schema(each, at) for each in inner])
    if origin is tuple:
        return _array(hint, inner, at)
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1], at)}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {"$ref": f"{at}{hint.__name__}"}
    raise TypeError(f"no JSON Schema for {hint}; teach tools/message_schemas.py")


def _array(hint: Any, inner: tuple[Any, ...], at: str) -> dict[str, Any]:
    array = {"type": "array", "items": _schema(inner[0], at)}
    if inner[-1] is Ellipsis:
        return array
    if len(set(inner)) > 1:
        raise TypeError(f"no JSON Schema for {hint}: its items differ, and draft-07 and 2020-12 say that differently")
    return array | {"minItems": len(inner), "maxItems": len(inner)}


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Of plain types a list of types, else alternatives."""
    if all(set(member) == {"type"} for member in members):
        return {"type": list(dict.fromkeys(member["type"] for member in members))}
    return {"oneOf": members}


def _words(kind: type, name: str) -> str:
    own = _attributes(kind).get(name)
    return own or NOTES.get(f"{kind.__name__}.{name}") or NOTES.get(name) or _inherited(name)


def _inherited(name: str) -> str:
    """What the verdict says of a field that others have too."""
    from agent.messages import VerdictMessage

    return _attributes(VerdictMessage).get(name, "")


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\nAttributes:")[0].split())


def _attributes(kind: type) -> dict[str, str]:
    """The lines under `Attributes:`, each joined to one."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(kind) or "").partition("\nAttributes:")[2].splitlines():
        begun = re.match(r"    (\w+): (.*)", line)
        if begun:
            name = begun[1]
            found[name] = begun[2]
        elif line.strip() and name:
            found[name] += " " + line.strip()
    return found
