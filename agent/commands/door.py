"""Commands: takes what the publisher's thread has read, does it on a thread of its own, and gives the replies back."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from agent.commands.decode import Asked, Command, Incoming, Refused, decoded
from agent.commands.messages import ReplyMessage, TriggerCommand
from agent.frame import Fault, Part, Stamp
from agent.log import log_event

__all__ = ["Commands", "Outgoing", "TakesTriggers"]

MAX_WAITING = 256
"""Commands that may wait; what comes beyond is dropped, and that is told."""

MAX_REPLIES = 1_024
"""Replies that may wait for the broker, and those that are kept for a repeat of their command."""

PER_SECOND = 200.0
"""Commands that are done, beside triggers, whose queue has a limit of its own."""

OFTEN = f"more than {PER_SECOND:g} commands a second"

REPEAT_S = 10.0
"""Who got no answer asks again sooner; and a counter that begins again takes longer."""

CLOSE_S = 2.0
"""Longest time that `close` waits; a thread that is held back by refusals is left behind as a daemon."""

MAX_LAY_S = 0.5
"""A trigger that may have lain longer, because this process stood still, is an error: another part may be there."""

TELL_EVERY_S = 60.0

Status = Literal["ok", "refused", "error"]
_Key = tuple[tuple[str, bytes | str], Command]

log = logging.getLogger("agent.commands")


class TakesTriggers(Protocol):
    """What makes parts of commands; see `TriggerQueue`."""

    @property
    def is_closed(self) -> bool:
        """The line has stopped."""

    def offer(self, part_id: str | None, at: Stamp) -> Part | Fault:
        """A part is there."""

    def refuse(self, part_id: str | None, at: Stamp, reason: str) -> Fault:
        """A part is there, or was, and can't be judged."""

    def lose(self, count: int, at: Stamp, reason: str) -> None:
        """So many parts are there, or were, of which nothing is known."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A reply on its way.

    Attributes:
        topic: complete.
        payload: JSON.
        correlation: as the command had it (MQTT 5).
    """

    topic: str
    payload: bytes
    correlation: bytes | None = None


class Commands:
    """The door. `take` and `replies` are the publisher's thread's; the thread `commands` does the rest.

    A `trigger` command that can be read is a part that lies there: it is one to the trigger whatever else is wrong, so
    it gets its verdict. Those that were dropped unread are counted to it as errors.

    Args:
        station: ROOT.
        trigger: what makes parts of `trigger` commands; None where another trigger does.
        tell_event: `Journal.event`.
        ring: wakes the publisher's thread: a reply waits.
        repeat_s: so soon a command with the same id is the same one again.
        tell_every_s: between two events of one kind.
    """

    def __init__(
        self,
        station: str,
        trigger: TakesTriggers | None,
        *,
        tell_event: Callable[..., object],
        ring: Callable[[], None],
        repeat_s: float = REPEAT_S,
        tell_every_s: float = TELL_EVERY_S,
    ) -> None:
        self._station, self._trigger, self._tell_event, self._ring = station, trigger, tell_event, ring
        self._repeat_s, self._tell_every_s = repeat_s, tell_every_s
        self._waiting: collections.deque[Incoming] = collections.deque()
        self._replies: collections.deque[Outgoing] = collections.deque(maxlen=MAX_REPLIES)
        self._done: collections.OrderedDict[_Key, tuple[float, bytes]] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._dropped = self._dropped_triggers = self._untold = 0
        self._told_at: dict[str, float] = {}
        self._tokens, self._tokens_at = PER_SECOND, time.monotonic()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    @property
    def topic(self) -> str:
        """What to subscribe to."""
        return f"{self._station}/cmd/+"

    def start(self) -> None:
        """Begin to do what is taken."""
        self._thread.start()

    def take(self, incoming: Incoming) -> None:
        """Queue one message; never waits."""
        with self._changed:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(incoming)
            else:
                self._dropped += 1
                self._dropped_triggers += incoming.topic == f"{self._station}/cmd/trigger" and not incoming.retain
            self._changed.notify_all()

    def replies(self) -> list[Outgoing]:
        """Take the replies that wait; one that the broker does not get is asked for again, by the same id."""
        taken = []
        while self._replies:
            taken.append(self._replies.popleft())
        return taken

    def close(self) -> None:
        """Take nothing any more, and answer what waits. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._dropped or self._is_closed)
                if self._is_closed and not self._waiting:
                    return
                incoming = self._waiting.popleft() if self._waiting else None
                dropped, self._dropped = self._dropped, 0
                triggers, self._dropped_triggers = self._dropped_triggers, 0
            try:
                self._lose(dropped, triggers)
                if incoming is not None:
                    self._answer(incoming)
            except Exception:  # our bug: the next command is done all the same
                log.exception("bug")

    def _lose(self, dropped: int, triggers: int) -> None:
        if triggers and self._trigger is not None:
            reason = f"a trigger command was dropped unread: more than {MAX_WAITING} commands waited"
            self._trigger.lose(triggers, Stamp.now(), reason)
        self._untold += dropped
        if self._untold:
            text = f"{self._untold} commands were dropped: more than {MAX_WAITING} waited"
            if self._tell("commands_flooded", text, dropped=self._untold):
                self._untold = 0

    def _answer(self, incoming: Incoming) -> None:
        asked = decoded(incoming, self._station)
        if isinstance(asked, Refused):
            self._send(asked.reply_topic, _payload(self._refuse(asked)), incoming)
            return
        key = None if asked.key is None else (asked.key, dataclasses.replace(asked.command, time_ms=None))
        before = None if key is None else self._done.get(key)
        if before is not None and time.monotonic() < before[0] + self._repeat_s:
            payload = before[1]
        else:
            payload = _payload(self._do(asked, incoming, objection=None if before is None else _again(asked)))
            if key is not None:
                self._done[key] = time.monotonic(), payload
                if len(self._done) > MAX_REPLIES:
                    self._done.popitem(last=False)
        self._send(asked.reply_topic, payload, incoming)

    def _do(self, asked: Asked, incoming: Incoming, *, objection: str | None) -> ReplyMessage:
        command = asked.command
        if not isinstance(command, TriggerCommand):
            return (
                self._reply(asked.name, command.id, "ok") if self._has_token() else self._refuse(_refused(asked, OFTEN))
            )
        if self._trigger is None:
            return self._refuse(_refused(asked, "this station has another trigger (trigger.kind)"))
        if self._trigger.is_closed:
            return self._refuse(_refused(asked, "the line has stopped"))
        if incoming.lay_s > MAX_LAY_S:
            objection = f"it lay unread for up to {incoming.lay_s * 1000:.0f} ms: its picture can't be told"
        made: Part | Fault
        if objection is not None:
            made = self._trigger.refuse(command.part, incoming.at, objection)
        else:
            made = self._trigger.offer(command.part, incoming.at)
        if isinstance(made, Fault):
            return self._reply(asked.name, command.id, "error", made.reason, part=made.part.id)
        return self._reply(asked.name, command.id, "ok", part=made.id)

    def _refuse(self, refused: Refused) -> ReplyMessage:
        self._tell("command_refused", f"command {refused.name}: {refused.reason}", command=refused.name)
        return self._reply(refused.name, refused.id, "refused", refused.reason)

    def _reply(
        self, name: str, id_: str | None, status: Status, reason: str = "", *, part: str | None = None
    ) -> ReplyMessage:
        now_ms = Stamp.now().utc_ms
        return ReplyMessage(
            station=self._station, command=name, id=id_, status=status, reason=reason, part=part, time_ms=now_ms
        )

    def _send(self, topic: str | None, payload: bytes, incoming: Incoming) -> None:
        if topic is not None:
            self._replies.append(Outgoing(topic=topic, payload=payload, correlation=incoming.correlation))
            self._ring()

    def _has_token(self) -> bool:
        now = time.monotonic()
        self._tokens = min(PER_SECOND, self._tokens + (now - self._tokens_at) * PER_SECOND)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _tell(self, name: str, text: str, **data: str | int) -> bool:
        """Whether it was told: each kind now and then, as nonsense must not fill the disk and the plant's network."""
        now = time.monotonic()
        if now - self._told_at.get(name, float("-inf")) < self._tell_every_s:
            return False
        self._told_at[name] = now
        self._tell_event(name, "warning", text, **data)
        log_event(log, name, logging.WARNING, reason=text)
        return True


def _payload(reply: ReplyMessage) -> bytes:
    return json.dumps(dataclasses.asdict(reply), separators=(",", ":"), ensure_ascii=False).encode()


def _refused(asked: Asked, reason: str) -> Refused:
    return Refused(name=asked.name, reason=reason, id=asked.command.id, reply_topic=asked.reply_topic)


def _again(asked: Asked) -> str:
    """Of a command that was done longer ago than a repeat comes: a counter that began again, or a very late repeat."""
    return f"the id {asked.command.id or '(correlation data)'} stood in the same command before: whose part is it?"
