"""Intake: the one queue in front of the writer, with its limits and its end.

Producers block when the disk can't keep up (a line that waits is better than memory that runs out); they get a
`JournalError` once the writer has failed.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Union

from agent.errors import JournalError
from agent.frame import Part
from agent.journal.compose import Draft
from agent.messages import EventMessage

__all__ = [
    "Acknowledged",
    "Flushed",
    "Intake",
    "Item",
    "Missing",
    "Noted",
    "Receipt",
    "Recorded",
    "SetAside",
    "Told",
    "Triggered",
]

MAX_BATCH = 512
"""Items per transaction; group commit gains little beyond (measured: 24,000 rows/s in hundreds)."""

MAX_BATCH_PICTURES = 8
"""Pictures per transaction: verdicts in the same group wait for their encoding."""

MAX_PICTURE_BYTES = 256 << 20
"""Uncompressed pictures that may wait for the disk: seven of 12 MP."""

ACK_WINDOW_S = 0.05
"""Acknowledgements alone wait this long for company: losing one only means sending again, an fsync wears the card."""


SPACING_S = 0.003
"""From one transaction to the next while items come fast: a part's trigger and verdict, and those of its neighbours,
then share one, which costs less of the processor and of the card. What comes alone is written at once."""

SPACING_ITEMS = 64
"""So many items are worth a transaction of their own whenever they are there."""


class Receipt:
    """The promise of one verdict's record number; kept once the verdict is on the disk."""

    def __init__(self) -> None:
        self._gate = threading.Lock()  # a tenth of an Event's cost, and one is made per part
        self._gate.acquire()
        self._done = False
        self._rec: int | None = None
        self._error: JournalError | None = None

    def done(self) -> bool:
        """Whether the verdict is durable, or has failed to become so."""
        return self._done

    def wait(self, timeout_s: float) -> int:
        """Wait until the verdict is on the disk.

        Returns:
            Its record number.

        Raises:
            JournalError: it could not be written, or not within the time (it may still come then).
        """
        if not self._gate.acquire(timeout=timeout_s):
            raise JournalError(
                f"the verdict is not on the disk after {timeout_s:g} s", hint="check the disk: iostat -x 1, dmesg"
            )
        self._gate.release()
        if self._error is not None or self._rec is None:
            raise _again(self._error)
        return self._rec

    def keep(self, rec: int) -> None:
        """The verdict is durable as `rec` (called by the writer)."""
        self._rec = rec
        self._finish()

    def fail(self, error: JournalError) -> None:
        """The verdict can't be made durable (called by the writer); one that is durable already stays so."""
        if not self._done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self._done = True
        self._gate.release()


@dataclasses.dataclass(frozen=True, slots=True)
class Triggered:
    """A part now exists."""

    part: Part


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """A part has its verdict; `held`: somebody waits for it to be on the disk, and it is published only once `Told`."""

    draft: Draft
    receipt: Receipt
    held: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """The PLC has heard of a held verdict; where that was `error` at the deadline, it is marked late."""

    sequence: int
    rec: int
    late_ms: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Noted:
    """An event to publish."""

    message: EventMessage


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledged:
    """Outbox rows that arrived."""

    seqs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class SetAside:
    """An outbox row that can't be sent."""

    seq: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """A picture whose file is not there or not whole any more; its number in `images`."""

    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Flushed:
    """Someone waits for everything before this."""

    receipt: Receipt


Item = Union[Triggered, Recorded, Told, Noted, Acknowledged, SetAside, Missing, Flushed]  # noqa: UP007 - Python 3.10
BOUNDED = (Triggered, Recorded)
"""Events and acknowledgements never wait: the publisher's thread has a link to keep alive."""


class Intake:
    """A first-in first-out queue, bounded per kind, that ends in order (`close`) or with an error (`fail`).

    Args:
        max_pending: items of each bounded kind that may wait for the disk, those being written included.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._items: collections.deque[Item] = collections.deque()
        self._waiting: collections.Counter[type[Item]] = collections.Counter()
        self._picture_bytes = 0
        self._queued_acks = self._queued_at_once = 0
        self._next_s = 0.0
        self._hurry = threading.Event()
        self._changed = threading.Condition()
        self._closing = False
        self._error: JournalError | None = None

    def put(self, item: Item) -> None:
        """Queue an item; blocks while too many of its kind wait for the disk.

        Raises:
            JournalError: the writer has failed, or the journal is closed.
        """
        with self._changed:
            pictures = _picture_bytes(item)
            if isinstance(item, BOUNDED) and not self._has_room(item, pictures):
                self._changed.wait_for(lambda: self._refused() or self._has_room(item, pictures))
            self._append(item, pictures)

    def put_if_room(self, item: Item) -> bool:
        """Queue an item unless too many of its kind wait for the disk; never blocks.

        Returns:
            Whether it was queued.

        Raises:
            JournalError: the writer has failed, or the journal is closed.
        """
        with self._changed:
            pictures = _picture_bytes(item)
            if isinstance(item, BOUNDED) and not self._refused() and not self._has_room(item, pictures):
                return False
            self._append(item, pictures)
            return True

    def take(self, timeout_s: float) -> list[Item] | None:
        """What waits, up to one transaction's worth, in order.

        Returns:
            An empty list when nothing came in time; None when closed and everything was taken.
        """
        if (early_s := self._next_s - time.monotonic()) > 0:
            self._hurry.wait(early_s)  # without the lock: who puts something meanwhile wakes nobody
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closing, timeout_s)
            if self._items and not self._urgent():
                self._changed.wait_for(lambda: self._urgent() or self._closing, ACK_WINDOW_S)
            if not self._items:
                return None if self._closing else []
            batch = self._batch()
            self._hurry.clear()
            self._hurry_if_wanted()
            return batch

    def settle(self, items: Sequence[Item]) -> None:
        """These are on the disk: their places are free."""
        self._next_s = time.monotonic() + SPACING_S
        with self._changed:
            for item in items:
                self._waiting[type(item)] -= 1
                self._picture_bytes -= _picture_bytes(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more; what is queued is still given out."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._hurry_if_wanted()

    def fail(self, error: JournalError) -> list[Item]:
        """End with an error: nothing is taken or given out any more.

        Returns:
            What was still queued.
        """
        with self._changed:
            self._error = error
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return left

    def depth(self) -> int:
        """Items that wait."""
        with self._changed:
            return sum(self._waiting.values())

    def _append(self, item: Item, pictures: int) -> None:
        """The lock is held, and there is room."""
        if self._error is not None:
            raise _again(self._error)
        if self._closing:
            raise JournalError("the journal is closed", hint="this is our bug: nothing may be recorded any more")
        self._items.append(item)
        self._waiting[type(item)] += 1
        self._picture_bytes += pictures
        self._queued_acks += isinstance(item, Acknowledged)
        self._queued_at_once += _is_at_once(item)
        self._changed.notify_all()
        self._hurry_if_wanted()

    def _refused(self) -> bool:
        return self._closing or self._error is not None

    def _has_room(self, item: Item, pictures: int) -> bool:
        fits = not pictures or not self._picture_bytes or self._picture_bytes + pictures <= MAX_PICTURE_BYTES
        return fits and self._waiting[type(item)] < self._max_pending

    def _urgent(self) -> bool:
        return len(self._items) > self._queued_acks

    def _hurry_if_wanted(self) -> None:
        if self._closing or self._queued_at_once > 0 or len(self._items) >= SPACING_ITEMS:
            self._hurry.set()

    def _batch(self) -> list[Item]:
        batch: list[Item] = []
        pictures = 0
        while self._items and len(batch) < MAX_BATCH:
            pictures += _pictures(self._items[0])
            if batch and pictures > MAX_BATCH_PICTURES:
                break
            item = self._items.popleft()
            self._queued_acks -= isinstance(item, Acknowledged)
            self._queued_at_once -= _is_at_once(item)
            batch.append(item)
        return batch


def _is_at_once(item: Item) -> bool:
    return isinstance(item, (Flushed, Told)) or (isinstance(item, Recorded) and item.held)


def _pictures(item: Item) -> int:
    return len(item.draft.exposures) if isinstance(item, Recorded) else 0


def _picture_bytes(item: Item) -> int:
    """Of all its pictures: several where several cameras see a part."""
    return sum(each.image.nbytes for each in item.draft.exposures) if isinstance(item, Recorded) else 0


def _again(error: JournalError | None) -> JournalError:
    """A fresh error for each caller: one exception raised in several threads would share its traceback."""
    if error is None:
        return JournalError("the verdict was not written")
    fresh = JournalError(error.message, hint=error.hint)
    fresh.__cause__ = error
    return fresh
