"""Is the engine still what was accepted? The goldens replayed at the start and every few hours, beside the line's work.

The rule: the line's own thread replays **one golden at a time, after a step that brought no part**. So no golden ever
runs beside a part, none is lost, and a part that comes meanwhile waits for one inference at most. A line that is never
idle is let alone for `BUSY_S`; then one golden goes between two parts, at most one in `SPACING_S`. At the start, before
the first part, they go in a row, for `START_S` at most; when that is not enough, a whole pass follows in idle moments.

What is held against the engine: it is not the runtime that was accepted (or stands in for TensorRT, accepted or not);
a golden gets another verdict than at acceptance (without one: more than `max_changed` other than at the build); the
median of a pass is over `slow_factor` times the slower of the two medians at acceptance, twice in a row, so that one
busy moment is no alarm. While something is held against it a pass comes every `RECHECK_S`: the fault ends by itself
when its cause does.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable

from agent.acceptance.file import Acceptance
from agent.acceptance.replay import Answer, GoldenReplay
from agent.config import AcceptanceConfig
from agent.engines import Engine, fell_back
from agent.log import log_event

__all__ = ["EngineWatch"]

START_S = 3.0
BUSY_S = 60.0
SPACING_S = 1.0
RECHECK_S = 60.0
ENOUGH = 3
"""Goldens that take all of `START_S` and are slow: that is no busy moment any more."""

log = logging.getLogger("agent.acceptance")


class EngineWatch:
    """Replays goldens between parts, and says what is wrong with the engine; it belongs to the line's thread.

    Args:
        replay: of the engine that runs the line.
        engine: that engine.
        accepted: what was accepted of this bundle on this device; None when nothing was.
        config: limits, and how often.
        changed: told the fault in words when there is another one, and None when there is none any more.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        replay: GoldenReplay,
        engine: Engine,
        accepted: Acceptance | None,
        config: AcceptanceConfig,
        *,
        changed: Callable[[str | None], None] = lambda _fault: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replay = replay
        self._accepted = accepted
        self._config = config
        self._changed = changed
        self._clock = clock
        self._runtime_fault = _runtime_fault(engine, accepted)
        self._answers: list[Answer] = []
        self._was_slow = False
        self._due: float = clock()
        self._last = -math.inf
        self._fault: str | None = None
        self._kinds: tuple[bool, ...] = (False, False, False)

    @property
    def fault(self) -> str | None:
        """What is held against the engine, in words; None when it is as accepted."""
        return self._fault

    def start(self) -> None:
        """The replay before the first part: every golden once, or as many as there is time for; twice when slow."""
        end = self._clock() + START_S
        if not len(self._replay):
            self._conclude([])
            return
        while self._clock() >= self._due and self._clock() < end:
            self._play_one()
        if self._answers:  # no time for all: say what is known, and begin again when the line is idle
            answers, self._answers, self._was_slow = self._answers, [], len(self._answers) >= ENOUGH
            self._conclude(answers)
            self._due = self._clock()

    def turn(self, *, judged: bool) -> None:
        """Do what is due after one step of the line.

        Args:
            judged: whether the step brought a part.
        """
        now = self._clock()
        if not len(self._replay) or now < self._due:
            return
        if judged and (now < self._due + BUSY_S or now < self._last + SPACING_S):
            return
        self._play_one()

    def _play_one(self) -> None:
        self._answers.append(self._replay.play(len(self._answers)))
        self._last = self._clock()
        if len(self._answers) == len(self._replay):
            answers, self._answers = self._answers, []
            self._conclude(answers)

    def _conclude(self, answers: list[Answer]) -> None:
        """A pass is over: what does it say, and when is the next one?"""
        slow = self._slow(answers)
        again = slow is not None and not self._was_slow
        self._was_slow = slow is not None
        faults = [self._runtime_fault, self._other_verdicts(answers), None if again else slow]
        fault = "; ".join(words for words in faults if words is not None) or None
        if any(words is not None for words in faults[1:]):  # another runtime stays one until the next start
            wait_s = RECHECK_S
        elif again:
            wait_s = 0.0
        else:
            wait_s = self._config.replay_hours * 3600 or math.inf
        self._due = self._clock() + wait_s
        log_event(
            log,
            "goldens_replayed",
            goldens=len(answers),
            median_ms=round(statistics.median(a.ms for a in answers), 2) if answers else None,
            fault=fault,
        )
        self._fault = fault
        # By kind, not by words: those hold figures, which never stand still.
        kinds = tuple(words is not None for words in faults)
        if kinds != self._kinds:
            self._kinds = kinds
            self._changed(fault)

    def _other_verdicts(self, answers: list[Answer]) -> str | None:
        then = self._accepted
        if then is not None:
            others = [(a, then.verdicts[a.file]) for a in answers if a.verdict != then.verdicts.get(a.file, a.verdict)]
            since, allowed = "at acceptance", 0
        else:
            others = [(a, a.expected) for a in answers if a.changed]
            since, allowed = "at the build", self._config.max_changed
        if len(others) <= allowed:
            return None
        answer, before = others[0]
        more = f"; {len(others) - 1} more" if len(others) > 1 else ""
        return f"the engine answers otherwise than {since}: {answer.file} is {answer.verdict}, was {before}{more}"

    def _slow(self, answers: list[Answer]) -> str | None:
        if self._accepted is None or not answers or not self._accepted.p50_ms > 0:
            return None
        now_ms, then_ms = statistics.median(answer.ms for answer in answers), self._accepted.p50_ms
        if now_ms <= self._config.slow_factor * then_ms:
            return None
        return f"the engine is slow: {now_ms:.1f} ms per inference, at acceptance {then_ms:.1f} ms"


def _runtime_fault(engine: Engine, accepted: Acceptance | None) -> str | None:
    if fell_back(engine):
        return f"the engine is {engine.name}"
    if accepted is not None and engine.kind != accepted.kind:
        return f"the engine is {engine.name}, accepted was {accepted.engine}"
    return None
