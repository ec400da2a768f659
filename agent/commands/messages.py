"""The commands and their reply, as they stand on the wire."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["PingCommand", "ReplyMessage", "TriggerCommand"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PingCommand:
    """`ROOT/cmd/ping`, QoS 1: asks for a reply, and for nothing else.

    Attributes:
        id: the asker's name for this command, or null; the same one again within 10 s gets the same reply.
        reply_to: who asks; the reply goes to `ROOT/reply/` with this. Null on MQTT 5, or where no reply is wanted.
        time_ms: when it was sent, UTC milliseconds; one of more than 5 s ago, or of the future, is refused. Null from
            who has no clock.
    """

    id: str | None = None
    reply_to: str | None = None
    time_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TriggerCommand:
    """`ROOT/cmd/trigger`, QoS 1: a part is there; for stations with `trigger.kind: mqtt`.

    Attributes:
        part: the plant's name for the part, 240 bytes of printable text at most, or null for one that is made up.
        id: the asker's name for this command, or null. The same command again within 10 s makes no second part, and
            gets the same reply; later it is a part whose verdict is error, as nobody knows which part is meant.
        reply_to: who asks; the reply goes to `ROOT/reply/` with this. Null on MQTT 5, or where no reply is wanted.
        time_ms: when it was sent, UTC milliseconds; one of more than 1 s ago, or of the future, is refused. Null from
            who has no clock.
    """

    part: str | None = None
    id: str | None = None
    reply_to: str | None = None
    time_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplyMessage:
    """`ROOT/reply/CLIENT`, QoS 1: what became of a command.

    Attributes:
        schema: of this message.
        station: ROOT.
        command: its name.
        id: as the command had it, or null.
        status: `ok`; `refused`: nothing was done; `error`: a part was triggered, and its verdict is error.
        reason: in words; empty when all went well.
        part: of `trigger`: the part's name, as its verdict will have it, or null.
        time_ms: of the reply, UTC milliseconds.
    """

    schema: int = 1
    station: str
    command: str
    id: str | None
    status: Literal["ok", "refused", "error"]
    reason: str
    part: str | None = None
    time_ms: int
