"""Triggers that come when they want: between a source's thread and the line, with a limit that is never silent."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from agent.frame import Fault, Part, Stamp
from agent.log import log_event
from agent.triggers.ids import cleaned_id, made_up_id

__all__ = ["TriggerQueue", "TriggerWatcher"]

MAX_REFUSALS = 10_000
"""Refusals that may wait for the line; from there on whoever offers waits, and its own source holds back."""

REFUSALS_IN_A_ROW = 16
"""So many are given before a part that waits: noise on a trigger line must not keep the parts from being judged."""

STALE_S = 1.0
"""A trigger that is brought later than this after it came (the process stood still) has nothing to show any more."""

STOPPED = "the line was stopped before this part was judged"

log = logging.getLogger("agent.triggers")


class TriggerWatcher(Protocol):
    """Hears of each trigger when it comes, in the order of their sequence, from the thread that brings it.

    Its methods return at once and call nothing of the queue: they run while it is locked.
    """

    def offered(self, part: Part) -> None:
        """The part was taken; the line will judge it."""

    def refused(self, fault: Fault) -> None:
        """The part will not be judged: its result is `error` with this reason, and stands already."""

    def ready(self, *, is_ready: bool) -> None:
        """Whether a trigger that comes now will be taken."""


class TriggerQueue:
    """Parts that wait for the line, and those that were refused because too many did.

    Any thread may `offer`; the line's thread calls `next`. Every trigger that comes while the queue is open leaves by
    `next` exactly once: as a part, or as a fault which becomes its `error` verdict. One part may always be on its way
    to a free line; `waiting` more may wait while it is judged. The line counts as free from a call of `next` until
    `next` has given it a part.

    Args:
        kind: the trigger's name in verdicts.
        prefix: of the ids that are made up.
        waiting: parts that may wait while one is judged; 0 refuses whatever comes meanwhile.
    """

    def __init__(self, *, kind: str, prefix: str, waiting: int) -> None:
        self._kind, self._prefix, self._waiting = kind, prefix, waiting
        self._changed = threading.Condition()
        self._parts: collections.deque[Part] = collections.deque()
        self._refusals: collections.deque[Fault] = collections.deque()
        self._watcher: TriggerWatcher | None = None
        self._count = 0
        self._in_a_row = 0
        self._is_free = self._is_started = self._is_closed = False
        self._was_ready = False

    @property
    def ended(self) -> bool:
        """Closed, and everything that came was given."""
        with self._changed:
            return self._is_closed and not self._parts and not self._refusals

    @property
    def is_closed(self) -> bool:
        """No trigger is taken any more; what came before may still wait to be given."""
        with self._changed:
            return self._is_closed

    @property
    def is_held_back(self) -> bool:
        """`offer` would wait now: the line has not yet taken all the refusals it may owe."""
        with self._changed:
            return len(self._refusals) >= MAX_REFUSALS and not self._is_closed

    def watch(self, watcher: TriggerWatcher) -> None:
        """Tell one watcher of every trigger from now on, and at once whether one would be taken."""
        with self._changed:
            self._watcher = watcher
            watcher.ready(is_ready=self._was_ready)

    def offer(self, part_id: str | None, at: Stamp) -> Part | Fault:
        """Bring a trigger; from any thread.

        Waits only while `MAX_REFUSALS` are still to be given to the line.

        Args:
            part_id: the plant's name for the part, cleaned here; None or an empty one is made up.
            at: when it came; one that came more than `STALE_S` ago is refused.

        Returns:
            The part, which the line will judge; or the fault of one that it will not, which `next` gives as well.
            After `close`, a fault that nobody else hears of.
        """
        with self._changed:
            part = self._part(part_id, at)
            if self._is_closed:
                return Fault(part=part, stage="trigger", reason="refused: the line has stopped")
            late_ms = (time.monotonic_ns() - at.mono_ns) / 1e6
            if late_ms > STALE_S * 1_000:
                return self._refuse(part, f"the trigger was noticed {late_ms:.0f} ms late: the process stood still")
            if len(self._parts) < self._waiting + self._is_free:
                self._parts.append(part)
                self._inform(lambda watcher: watcher.offered(part))
                self._tell()
                return part
            return self._refuse(part, self._full(), is_refusal=True)

    def refuse(self, part_id: str | None, at: Stamp, reason: str) -> Fault:
        """Bring a trigger that must not be judged: its verdict is `error` with this reason. Waits as `offer` does."""
        with self._changed:
            part = self._part(part_id, at)
            if self._is_closed:
                return Fault(part=part, stage="trigger", reason=reason)
            return self._refuse(part, reason)

    def lose(self, count: int, at: Stamp, reason: str) -> None:
        """Triggers that came and of which only the number is known: each becomes an `error` verdict.

        Args:
            count: how many; waits as `offer` does.
            at: when it was found out.
            reason: in words.
        """
        for _ in range(count):
            if self.is_closed:
                return
            self.refuse(None, at, reason)

    def next(self, timeout_s: float) -> Part | Fault | None:
        """Wait for a part, or for a refusal, which comes first; None when neither came in time."""
        with self._changed:
            self._is_free = self._is_started = True
            self._tell()
            self._changed.wait_for(lambda: self._parts or self._refusals or self._is_closed, timeout_s)
            if self._refusals and (self._in_a_row < REFUSALS_IN_A_ROW or not self._parts):
                self._in_a_row += 1
                fault = self._refusals.popleft()
                self._changed.notify_all()  # one who waits with another refusal
                return fault
            self._in_a_row = 0
            if not self._parts:
                return None
            part = self._parts.popleft()
            self._is_free = False
            self._tell()
            return part

    def close(self) -> None:
        """Take nothing any more. Parts that wait become faults, which `next` goes on giving; may be called twice."""
        with self._changed:
            self._is_closed = True
            self._tell()
            while self._parts:
                self._refusals.append(self._fault(self._parts.popleft(), STOPPED))

    def _part(self, part_id: str | None, at: Stamp) -> Part:
        """The next in sequence; the lock is held. A number is used up only by what `next` will give."""
        count = self._count + 1
        self._count += not self._is_closed
        name = cleaned_id(part_id or "") or made_up_id(self._prefix, at, count)
        return Part(id=name, trigger=self._kind, sequence=count, triggered=at)

    def _refuse(self, part: Part, reason: str, *, is_refusal: bool = False) -> Fault:
        fault = self._fault(part, reason, is_refusal=is_refusal)
        if len(self._refusals) == MAX_REFUSALS:
            log_event(log, "triggers_held_back", logging.ERROR, refusals=MAX_REFUSALS)
        self._changed.wait_for(lambda: len(self._refusals) < MAX_REFUSALS or self._is_closed)
        self._refusals.append(fault)
        self._changed.notify_all()
        return fault

    def _fault(self, part: Part, reason: str, *, is_refusal: bool = False) -> Fault:
        fault = Fault(part=part, stage="trigger", reason=reason, is_refusal=is_refusal)
        self._inform(lambda watcher: watcher.refused(fault))
        return fault

    def _full(self) -> str:
        if not self._is_started:
            return "refused: the line is not running yet"
        if not self._waiting:
            return "refused: a part is being judged, and none may wait (trigger.waiting: 0)"
        return f"refused: a part is being judged, and {self._waiting} more wait already (trigger.waiting)"

    def _tell(self) -> None:
        """Wake the line, and tell the watcher when a trigger is taken from now on, or no longer."""
        self._changed.notify_all()
        room = len(self._parts) < self._waiting + self._is_free
        is_ready = room and self._is_started and not self._is_closed
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            self._inform(lambda watcher: watcher.ready(is_ready=is_ready))

    def _inform(self, tell: Callable[[TriggerWatcher], None]) -> None:
        """Whatever the watcher does, the trigger goes its way to the line. The lock is held."""
        if self._watcher is not None:
            try:
                tell(self._watcher)
            except Exception:
                log.exception("bug")
