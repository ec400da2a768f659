"""From bytes to a command, or to why it is none. Pure, and total: whatever comes in, nothing is raised."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from agent.commands.messages import PingCommand, TriggerCommand
from agent.frame import Stamp

__all__ = ["MAX_BYTES", "Asked", "Command", "Incoming", "Refused", "decoded"]

MAX_BYTES = 4_096
"""A command is a few names and numbers."""

STALE_MS = 5_000
"""What somebody wanted longer ago has passed."""

TRIGGER_STALE_MS = 1_000
"""A part of longer ago has gone, and another one is there: as `agent.triggers.queue.STALE_S`."""

EARLY_MS = 5_000
"""Clocks that time servers set differ by less."""

MAX_ID_BYTES, MAX_PART_BYTES = 64, 240
"""UTF-8; of a part as `agent.triggers.ids.ID_BYTES`, as a name that is cut is another part's, too."""

_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)

Command = PingCommand | TriggerCommand
_KINDS: dict[str, type[PingCommand | TriggerCommand]] = {"ping": PingCommand, "trigger": TriggerCommand}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A message as it came.

    Attributes:
        topic: complete.
        payload: its bytes; of one that is too large only the first.
        at: when it was read.
        retain: it was kept by the broker, and nobody knows for how long.
        response_topic: of MQTT 5.
        correlation: of MQTT 5.
        lay_s: how long it may have lain unread, as this process stood still; 0 when it did not.
    """

    topic: str
    payload: bytes
    at: Stamp
    retain: bool = False
    lay_s: float = 0.0
    response_topic: str | None = None
    correlation: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A command that may be done.

    Attributes:
        name: of the command.
        command: what is wanted.
        key: tells it from others: its correlation data, or its id with who asks; None where it has neither.
        reply_topic: where the reply goes; None for none.
    """

    name: str
    command: Command
    key: tuple[str, bytes | str] | None
    reply_topic: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A command that is not done.

    Attributes:
        name: of the command, as far as it has one.
        reason: in words.
        id: as far as it could be read.
        reply_topic: where that is told; None where nobody may be told.
    """

    name: str
    reason: str
    id: str | None = None
    reply_topic: str | None = None


def decoded(incoming: Incoming, station: str) -> Asked | Refused:
    """Read one message.

    Args:
        incoming: on `ROOT/cmd/…`.
        station: ROOT.
    """
    name = incoming.topic.removeprefix(f"{station}/cmd/")
    shown = name if _NAME.fullmatch(name) else "?"
    topic, problem = _response_topic(incoming, station)
    if problem is None:
        problem = _outer_problem(incoming, shown)
    if problem is not None:
        return Refused(name=shown, reason=problem, reply_topic=topic)
    try:
        text = incoming.payload.decode()
        fields = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return Refused(name=shown, reason=f"no JSON: {str(error)[:100]}", reply_topic=topic)
    return _checked(shown, fields, incoming, topic, station)


def _response_topic(incoming: Incoming, station: str) -> tuple[str | None, str | None]:
    """Where MQTT 5 wants the reply: nobody makes us speak anywhere else than to those who listen for replies."""
    wanted = incoming.response_topic
    if wanted is None:
        return None, None
    prefix = f"{station}/reply/"
    if wanted.startswith(prefix) and _NAME.fullmatch(wanted.removeprefix(prefix)):
        return wanted, None
    return None, f"response topic: expected {prefix} and one name"


def _outer_problem(incoming: Incoming, name: str) -> str | None:
    if incoming.retain:
        return "a retained command is not done: nobody knows how old it is; send it without retain"
    if name not in _KINDS:
        return f"no such command; there are {', '.join(sorted(_KINDS))}"
    if not incoming.payload:  # what clears a retained command looks like this to who has subscribed already
        return "empty: expected JSON, {} at least"
    if len(incoming.payload) > MAX_BYTES:
        return f"got more than {MAX_BYTES} bytes"
    return None


def _checked(name: str, fields: Any, incoming: Incoming, topic: str | None, station: str) -> Asked | Refused:
    if not isinstance(fields, dict):
        return Refused(name=name, reason="expected a JSON object", reply_topic=topic)
    id_, reply_to = fields.get("id"), fields.get("reply_to")
    if isinstance(reply_to, str) and _NAME.fullmatch(reply_to) and topic is None:
        topic = f"{station}/reply/{reply_to}"
    known_id = id_ if _text_problem("id", id_, MAX_ID_BYTES) is None else None
    stale_ms = TRIGGER_STALE_MS if name == "trigger" else STALE_MS
    problem = _field_problem(name, fields) or _time_problem(fields.get("time_ms"), incoming.at, stale_ms)
    if problem is not None:
        return Refused(name=name, reason=problem, id=known_id, reply_topic=topic)
    key: tuple[str, bytes | str] | None = None
    if incoming.correlation:
        key = topic or "", incoming.correlation
    elif known_id is not None:
        key = topic or "", known_id
    return Asked(name=name, command=_KINDS[name](**fields), key=key, reply_topic=topic)


def _field_problem(name: str, fields: dict[str, Any]) -> str | None:
    known = {field.name for field in dataclasses.fields(_KINDS[name])}
    unknown = sorted(str(key)[:40] for key in fields.keys() - known)
    if unknown:
        return f"{unknown[0]}: no such field; {name} has {', '.join(sorted(known))}"
    for key, longest in (("id", MAX_ID_BYTES), ("part", MAX_PART_BYTES)):
        if (problem := _text_problem(key, fields.get(key), longest)) is not None:
            return problem
    reply_to = fields.get("reply_to")
    if reply_to is not None and not (isinstance(reply_to, str) and _NAME.fullmatch(reply_to)):
        return "reply_to: expected 1 to 64 letters, digits, `_`, `.` or `-`"
    return None


def _time_problem(time_ms: Any, at: Stamp, stale_ms: int) -> str | None:
    if time_ms is None:
        return None
    if isinstance(time_ms, bool) or not isinstance(time_ms, int):
        return "time_ms: expected whole UTC milliseconds, or null"
    age_ms = at.utc_ms - time_ms
    if age_ms > stale_ms:
        return f"stale: sent {min(age_ms, 10**12) / 1000:.1f} s ago, expected at most {stale_ms / 1000:g} s"
    if age_ms < -EARLY_MS:
        return (
            f"from the future: sent {min(-age_ms, 10**12) / 1000:.1f} s ahead of this clock; set both by a time server"
        )
    return None


def _text_problem(key: str, value: Any, longest: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return f"{key}: expected text, or null"
    if not value.isprintable():  # which half a surrogate pair is not
        return f"{key}: expected printable characters"
    return None if 0 < len(value.encode()) <= longest else f"{key}: expected 1 to {longest} bytes"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:40]} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
