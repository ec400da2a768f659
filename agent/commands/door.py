"""Commands: takes what the publisher's thread has read, does it on a thread of its own, and gives the replies back."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

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
"""Commands that are done; a part every 5 ms is more than a line brings."""

MAX_LAY_S = 0.5
"""A trigger that may have lain longer, because this process stood still, is an error: another part may be there."""

TELL_EVERY_S = 60.0

log = logging.getLogger("agent.commands")


class TakesTriggers(Protocol):
    """What makes parts of commands."""

    def offer(self, part_id: str | None, at: Stamp) -> Part | Fault:
        """A part is there; see `TriggerQueue.offer`."""

    def refuse(self, part_id: str | None, at: Stamp, reason: str) -> Fault:
        """A part was there, and can't be judged; see `TriggerQueue.refuse`."""


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

    Args:
        station: ROOT.
        trigger: what makes parts of `trigger` commands; None where another trigger does.
        tell_event: `Journal.event`.
        ring: wakes the publisher's thread: a reply waits.
    """

    def __init__(
        self,
        station: str,
        trigger: TakesTriggers | None,
        *,
        tell_event: Callable[..., object],
        ring: Callable[[], None],
    ) -> None:
        self._station, self._trigger, self._tell_event, self._ring = station, trigger, tell_event, ring
        self._waiting: collections.deque[Incoming] = collections.deque()
        self._replies: collections.deque[Outgoing] = collections.deque(maxlen=MAX_REPLIES)
        self._done: collections.OrderedDict[tuple[tuple[str, bytes | str], Command], bytes] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._dropped = 0
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
            if len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
            else:
                self._waiting.append(incoming)
            self._changed.notify_all()

    def replies(self) -> list[Outgoing]:
        """Take the replies that wait; one that the broker does not get is asked for again, by the same id."""
        taken = []
        while self._replies:
            taken.append(self._replies.popleft())
        return taken

    def close(self) -> None:
        """Do nothing any more; what still waits is not done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._dropped or self._is_closed)
                if self._is_closed:
                    return
                incoming = self._waiting.popleft() if self._waiting else None
                dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    text = f"{dropped} commands were dropped: more than {MAX_WAITING} waited"
                    self._tell("commands_flooded", text, dropped=dropped)
                if incoming is not None:
                    self._answer(incoming)
            except Exception:  # our bug: the next command is done all the same
                log.exception("bug")

    def _answer(self, incoming: Incoming) -> None:
        asked = decoded(incoming, self._station)
        key = (
            None
            if isinstance(asked, Refused) or asked.key is None
            else (asked.key, dataclasses.replace(asked.command, time_ms=None))
        )
        before = None if key is None else self._done.get(key)
        if before is not None:
            self._send(asked.reply_topic, before, incoming)
            return
        if isinstance(asked, Asked) and not self._has_token():
            asked = Refused(
                name=asked.name, reason=f"more than {PER_SECOND:g} commands a second",
                id=asked.command.id, reply_topic=asked.reply_topic,
            )  # fmt: skip
        reply = self._refuse(asked) if isinstance(asked, Refused) else self._do(asked, incoming)
        payload = json.dumps(dataclasses.asdict(reply), separators=(",", ":"), ensure_ascii=False).encode()
        if key is not None and isinstance(asked, Asked):
            self._done[key] = payload
            if len(self._done) > MAX_REPLIES:
                self._done.popitem(last=False)
        self._send(asked.reply_topic, payload, incoming)

    def _do(self, asked: Asked, incoming: Incoming) -> ReplyMessage:
        command = asked.command
        if not isinstance(command, TriggerCommand):
            return self._reply(asked.name, command.id, "ok", "")
        if self._trigger is None:
            return self._refuse(
                Refused(name=asked.name, id=command.id, reason="this station has another trigger (trigger.kind)")
            )
        if incoming.lay_s > MAX_LAY_S:
            reason = f"it lay unread for up to {incoming.lay_s * 1000:.0f} ms: its picture can't be told"
            made: Part | Fault = self._trigger.refuse(command.part, incoming.at, reason)
        else:
            made = self._trigger.offer(command.part, incoming.at)
        if isinstance(made, Fault):
            return self._reply(asked.name, command.id, "error", made.reason, part=made.part.id)
        return self._reply(asked.name, command.id, "ok", "", part=made.id)

    def _refuse(self, refused: Refused) -> ReplyMessage:
        self._tell("command_refused", f"command {refused.name}: {refused.reason}", command=refused.name)
        return self._reply(refused.name, refused.id, "refused", refused.reason)

    def _reply(self, name: str, id_: str | None, status: str, reason: str, part: str | None = None) -> ReplyMessage:
        return ReplyMessage(
            station=self._station, command=name, id=id_, status=status,  # type: ignore[arg-type]
            reason=reason, part=part, time_ms=Stamp.now().utc_ms,
        )  # fmt: skip

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

    def _tell(self, name: str, text: str, **data: str | int) -> None:
        """Each kind at most once a minute: who sends nonsense fills neither the disk nor the plant's network."""
        now = time.monotonic()
        if now - self._told_at.get(name, float("-inf")) >= TELL_EVERY_S:
            self._told_at[name] = now
            self._tell_event(name, "warning", text, **data)
            log_event(log, name, logging.WARNING, reason=text)
