"""The fast path: each part's one result to each output, at the latest at its deadline."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from agent.frame import Fault, Part

if TYPE_CHECKING:
    from agent.outputs import Output

__all__ = ["FastPath"]

CLOSE_S = 2.0
"""Longest time that `close` waits for the thread; one that hangs in an output is left behind as a daemon."""

STOPPED = "the line was stopped before this part was judged"

log = logging.getLogger("agent.outputs")


@dataclasses.dataclass(slots=True)
class _Open:
    """A part that the station has not finished."""

    part: Part
    is_expected: bool = False
    is_told: bool = False
    is_late: bool = False


class FastPath:
    """What the station speaks to; its thread `fast` speaks to the outputs. Any thread may call any method.

    A part is known from `offered`, `refused` or `begin` on, whichever comes first, and until its `finish`. Of the
    decision, the deadline, the refusal and the end of the line the first one gives the result, and no other does.
    No method waits for an output. Without outputs there is no thread, and the deadline alone is looked at.

    It is a `TriggerWatcher`: `trigger.watch(fast)`.

    Args:
        outputs: opened ones; `close` closes them.
        deadline_ms: from a part's trigger to its `error`; None sets none.
        durable: the outputs are told of a part only once its trigger is `on_disk`, or with its result.
    """

    def __init__(self, outputs: Sequence[Output], *, deadline_ms: float | None, durable: bool = False) -> None:
        self._outputs = tuple(outputs)
        self._durable = durable
        self._deadline_ns = None if deadline_ms is None else int(deadline_ms * 1e6)
        self._changed = threading.Condition()
        self._calls: collections.deque[Callable[[Output], None]] = collections.deque()
        self._open: dict[int, _Open] = {}
        self._due: list[tuple[float, int]] = []
        self._seen = 0
        self._is_closed = False
        self._broken: dict[int, str] = {}
        self._thread: threading.Thread | None = None
        if self._outputs:
            self._thread = threading.Thread(target=self._run, name="fast", daemon=True)
            self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why results may not reach the PLC, in words; None while they do."""
        if not self._outputs:
            return None
        told = [self._broken.get(i) or output.trouble for i, output in enumerate(self._outputs)]
        if self._thread is not None and not self._thread.is_alive() and not self._is_closed:
            told.append("the thread of the fast outputs has ended")
        return "; ".join(reason for reason in told if reason is not None) or None

    def offered(self, part: Part) -> None:
        """The part was triggered: its deadline counts although the line has not begun with it."""
        if self._outputs:
            with self._changed:
                self._know(part)

    def on_disk(self, sequences: Iterable[int]) -> None:
        """The triggers of these parts are on the disk."""
        if self._outputs and self._durable:
            with self._changed:
                for sequence in sequences:
                    entry = self._open.get(sequence)
                    if entry is not None:
                        self._expect(entry)

    def refused(self, fault: Fault) -> None:
        """The part was triggered and will not be judged: its result is `error`, now. The station finishes it later."""
        if self._outputs:
            with self._changed:
                self._know(fault.part)
                entry = self._open.get(fault.part.sequence)
                if entry is not None and not entry.is_told:
                    self._tell(entry, "error", f"{fault.stage}: {fault.reason}")

    def ready(self, *, is_ready: bool) -> None:
        """Whether a trigger will be taken now."""
        self._call(lambda output: output.ready(is_ready=is_ready))

    def begin(self, part: Part) -> None:
        """The line begins with this part."""
        if self._outputs:
            with self._changed:
                self._know(part)
            self._call(lambda output: output.busy(part))

    def exposing(self, *, is_exposing: bool) -> None:
        """The camera is about to expose, or has exposed."""
        self._call(lambda output: output.exposing(is_exposing=is_exposing))

    def finish(self, part: Part, decision: str, reason: str) -> bool:
        """The line is done with this part.

        Args:
            part: which was begun, or refused. One that is not known, or is finished already, gets no result.
            decision: `ok`, `defect`, `review` or `error`.
            reason: in words.

        Returns:
            False when its deadline had passed: the outputs were told `error`, whatever the decision.
        """
        with self._changed:
            is_late = self._due_ns(part) <= time.monotonic_ns()
            if not self._outputs:
                return not is_late
            entry = self._open.pop(part.sequence, None)
            if entry is None:
                log.error("bug", extra={"fields": {"reason": f"part {part.id}: finished twice, or never begun"}})
                return False
            if not entry.is_told:
                self._expire(entry) if is_late else self._tell(entry, decision, reason)
            return not entry.is_late

    def fault(self, reason: str | None) -> None:
        """The line can't judge parts, or can again (None)."""
        self._call(lambda output: output.fault(reason))

    def close(self) -> None:
        """Give `error` to the parts that are open, and close the outputs. May be called twice."""
        with self._changed:
            for entry in self._open.values():
                if not entry.is_told:
                    self._tell(entry, "error", STOPPED)
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def _call(self, call: Callable[[Output], None]) -> None:
        if self._outputs:
            with self._changed:
                self._calls.append(call)
                self._changed.notify_all()

    def _know(self, part: Part) -> None:
        """Expect a result, once; triggers come in the order of their sequence. The lock is held."""
        if part.sequence <= self._seen or self._is_closed:
            return
        self._seen = part.sequence
        entry = self._open[part.sequence] = _Open(part)
        if not self._durable:
            self._expect(entry)
        if self._deadline_ns is not None:
            heapq.heappush(self._due, (self._due_ns(part), part.sequence))
        self._changed.notify_all()

    def _expect(self, entry: _Open) -> None:
        if not entry.is_expected:
            entry.is_expected = True
            self._calls.append(lambda output: output.expect(entry.part))
            self._changed.notify_all()

    def _due_ns(self, part: Part) -> float:
        return float("inf") if self._deadline_ns is None else part.triggered.mono_ns + self._deadline_ns

    def _tell(self, entry: _Open, decision: str, reason: str) -> None:
        self._expect(entry)
        entry.is_told = True
        part = entry.part
        self._calls.append(lambda output: output.result(part, decision, reason))
        self._changed.notify_all()

    def _expire(self, entry: _Open) -> None:
        assert self._deadline_ns is not None
        entry.is_late = True
        self._tell(entry, "error", f"deadline: no verdict within {self._deadline_ns / 1e6:g} ms (line.deadline_ms)")

    def _run(self) -> None:
        while (call := self._next_call()) is not None:
            for number in range(len(self._outputs)):
                self._speak(number, call)
        for number in range(len(self._outputs)):
            self._speak(number, lambda output: output.close())

    def _speak(self, number: int, call: Callable[[Output], None]) -> None:
        output = self._outputs[number]
        try:
            call(output)
        except Exception as error:  # our bug: it keeps nothing from the other outputs, and is told
            if number not in self._broken:
                log.exception("bug")
            self._broken[number] = f"{type(output).__name__}: unexpected {type(error).__name__}: {error}"

    def _next_call(self) -> Callable[[Output], None] | None:
        """Wait for the next thing to tell the outputs; None at the end. Parts expire here."""
        with self._changed:
            while True:
                wait_s = self._expire_due()
                if self._calls:
                    return self._calls.popleft()
                if self._is_closed:
                    return None
                self._changed.wait(wait_s)

    def _expire_due(self) -> float | None:
        """Give `error` to the parts whose deadline has passed; the seconds to the next one. The lock is held."""
        while self._due:
            due_ns, sequence = self._due[0]
            entry = self._open.get(sequence)
            if entry is not None and not entry.is_told:
                left_ns = due_ns - time.monotonic_ns()
                if left_ns > 0:
                    return left_ns / 1e9
                self._expire(entry)
            heapq.heappop(self._due)
        return None
