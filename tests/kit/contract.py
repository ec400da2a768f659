"""Whether what came over the wire is what configs/asyncapi.yaml says: every message, by its topic."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import jsonschema

from tools import message_schemas

__all__ = ["breaches", "validator"]

KNOWN = re.compile(r"/(?P<name>verdict|status|event|metrics|config|image/[^/]+|reply/[^/]+|check)$")


@functools.cache
def validator(path: str, *, closed: bool) -> Any:
    """The validator of `ROOT/path`; `closed` also refuses fields that no type has. None for an unknown path."""
    for kind in message_schemas.message_types():
        topic = message_schemas.topic_of(kind)
        if topic is not None and topic.path == path:
            schema = message_schemas.standalone_schema(kind)
            if closed:
                for each in (schema, *schema.get("$defs", {}).values()):
                    each["additionalProperties"] = False
            jsonschema.Draft202012Validator.check_schema(schema)
            return jsonschema.Draft202012Validator(schema)
    return None


def breaches(topic: str, payload: bytes, content_type: str | None, user: tuple[tuple[str, str], ...]) -> list[str]:
    """What is wrong with a message of a station; topics of other kinds are nobody's business here.

    Args:
        topic: with ROOT.
        payload: as it came.
        content_type: with MQTT 5, else None.
        user: user properties, with MQTT 5.
    """
    known = KNOWN.search(topic)
    if known is None or not payload:  # an empty retained message clears a topic; `check` is empty
        return []
    name = known["name"].partition("/")[0]
    name = "reply/CLIENT" if name == "reply" else name
    expected = "image/jpeg" if name == "image" else "application/json"
    if content_type is not None and (content_type != expected or ("schema", "1") not in user):
        return [f"{topic}: content type {content_type}, user properties {user}; expected {expected}, schema 1"]
    if name == "image":
        return [] if payload[:2] == b"\xff\xd8" else [f"{topic}: no JPEG"]
    return [f"{topic}: {problem}" for problem in _problems(name, payload)]


def _problems(name: str, payload: bytes) -> list[str]:
    found = validator(name, closed=True)
    if found is None:
        return ["no type in agent/messages.py has this topic"]
    try:
        message = json.loads(payload)
    except ValueError as error:
        return [f"no JSON: {error}"]
    return [f"{error.json_path}: {error.message[:200]}" for error in found.iter_errors(message)]
