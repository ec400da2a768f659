"""Ahead: the next part's frame is taken while this part is judged; with a depth of 0 one thing is done at a time."""

from __future__ import annotations

import collections
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
        self._queue: collections.deque[Taken] = collections.deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True) if depth else None

    @property
    def ended(self) -> bool:
        """No part will ever come again, and all were given."""
        if self._thread is None:
            return self._is_over()
        with self._changed:
            return not self._thread.is_alive() and not self._queue and self._error is None

    def next(self, timeout_s: float) -> Taken | None:
        """The next frame, or why there is none; None when no part came in time.

        Raises:
            JournalError: of `take`.
        """
        if self._thread is None:
            return self._take_one()
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._error is not None or self._is_stopped, timeout_s)
            taken = self._queue.popleft() if self._queue else None
            self._changed.notify_all()
        if taken is None and self._error is not None:
            raise self._error
        return taken

    def is_moving(self) -> bool:
        """Whether parts are still being taken: not since the last question means that a camera or trigger hangs."""
        if self._thread is None:
            return True
        with self._changed:
            moved = self._turns != self._turns_seen or len(self._queue) >= self._depth or not self._thread.is_alive()
            self._turns_seen = self._turns
            return moved

    def __enter__(self) -> Ahead[Taken]:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            while not self._is_over() and self._wait_for_room():
                taken = self._take_one()
                with self._changed:
                    self._turns += 1
                    if taken is not None:
                        self._queue.append(taken)
                        self._changed.notify_all()
        except BaseException as error:  # the line raises it
            with self._changed:
                self._error = error
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _take_one(self) -> Taken | None:
        taken = self._take()
        self._count += taken is not None
        if self._count == self._limit:
            self._close()
        return taken

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) < self._depth or self._is_stopped)
            return not self._is_stopped
