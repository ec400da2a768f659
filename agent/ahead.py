"""Ahead: the next part's frame is taken while this part is judged; with a depth of 0 one thing is done at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Ahead"]

CLOSE_S = 1.0
"""Longest time that the end waits for the thread; one that hangs in a camera is left behind as a daemon."""

Taken = TypeVar("Taken")


class Ahead(Generic[Taken]):
    """What is taken of parts (frames, or why there are none), in the order of their triggers; a context manager.

    With a depth the thread `ahead` takes them, and holds back while so many wait. It ends when no part will come any
    more, or with an exception, which `next` then raises. Without, `next` takes them itself.

    Args:
        take: waits for the next part and takes its frame; None when none came within its poll time.
        is_over: whether no part will ever come again.
        close: lets no part come any more.
        depth: frames that may wait.
        limit: so many are taken, then `close` is called; None has no limit.
    """

    def __init__(
        self,
        take: Callable[[], Taken | None],
        *,
        is_over: Callable[[], bool],
        close: Callable[[], None],
        depth: int,
        limit: int | None = None,
    ) -> None:
        self._take, self._is_over, self._close = take, is_over, close
        self._depth, self._limit = depth, limit
        self._count = 0
        self._turns = self._turns_seen = 0
        # Queues without locks of Python's own: a hand-over costs a tenth of a Condition's, and there is one per part.
        self._queue: queue.SimpleQueue[Taken | None] = queue.SimpleQueue()  # None is its end
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopped = self._is_empty = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True) if depth else None

    @property
    def ended(self) -> bool:
        """No part will ever come again, and all were given."""
        return self._is_over() if self._thread is None else self._is_empty

    def next(self, timeout_s: float) -> Taken | None:
        """The next frame, or why there is none; None when no part came in time.

        Raises:
            JournalError: of `take`.
        """
        if self._thread is None:
            return self._take_one()
        try:
            taken = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if taken is not None:
            self._room.put(None)
        elif self._error is not None:
            raise self._error
        else:
            self._is_empty = True
        return taken

    def is_moving(self) -> bool:
        """Whether parts are still being taken: not since the last question means that a camera or trigger hangs."""
        if self._thread is None:
            return True
        turns, before = self._turns, self._turns_seen
        self._turns_seen = turns
        return turns != before or self._queue.qsize() >= self._depth or not self._thread.is_alive()

    def __enter__(self) -> Ahead[Taken]:
        if self._thread is not None:
            for _ in range(self._depth):
                self._room.put(None)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopped = True
        self._room.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            while not self._is_over() and self._wait_for_room():
                taken = None
                while taken is None and not self._is_over() and not self._is_stopped:
                    taken = self._take_one()
                    self._turns += 1
                if taken is not None:
                    self._queue.put(taken)
        except BaseException as error:  # the line raises it
            self._error = error
        self._queue.put(None)

    def _take_one(self) -> Taken | None:
        taken = self._take()
        self._count += taken is not None
        if self._count == self._limit:
            self._close()
        return taken

    def _wait_for_room(self) -> bool:
        self._room.get()
        return not self._is_stopped
