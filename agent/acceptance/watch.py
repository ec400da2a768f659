"""Is the engine still what was accepted? The goldens replayed at the start and every few hours, beside the line's work.

The rule: the line's own thread replays **one golden at a time, after a step that brought no part**. So no golden ever
runs beside a part, none is lost, and a part that comes meanwhile waits for one inference at most. A line that is never
idle is let alone for `BUSY_S`; then one golden goes between two parts, at most one in `SPACING_S`. At the start, before
the first part, they go in a row, for `START_S` at most; when that is not enough, a whole pass follows in idle moments.

What is held against the engine: it is not the runtime that was accepted (or stands in for TensorRT, accepted or not);
a golden gets another verdict than at acceptance (without one: more than `max_changed` other than at the build); the
median of a pass is over `slow_factor` times the slower of the two medians at acceptance, twice in a row, so that one
busy moment is no alarm; `FAILING` parts in a row got no answer from it, or `LOST` of the last `WINDOW` that it was
asked about. While something is held against it a pass comes every `RECHECK_S`: the fault ends by itself when its cause
does. An engine that fails is tried at once, also between two parts: they lose nothing by the wait. It is back when
every golden got an answer, no part was without one since that pass began, and fewer than `LOST` of the last `WINDOW`
parts are without one.

The share finds a GPU that fails now and then, so that never `FAILING` parts in a row are lost: of one that loses every
second part it is told at the ninth or tenth, of one that loses a third at about the fifteenth. Its false alarms: if
single parts got no answer for their own sake, independently and at a rate r, a part would end in an alarm with the
probability r P(X >= LOST - 1), X binomial of WINDOW - 1 parts and r. At a part a second that is once in 150 years for
r = 0.1 %, and about once a day for r = 1 %: who loses every hundredth part is to hear of it.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from agent.acceptance.file import Acceptance
from agent.acceptance.replay import Answer, GoldenReplay
from agent.config import AcceptanceConfig
from agent.engines import Engine, fell_back
from agent.inspection import Inspection
from agent.log import log_event

__all__ = ["EngineWatch", "Told"]

Told = Callable[[str | None, bool], None]
"""Told the fault in words, None when there is none any more; and whether the engine fails, not only differs."""

START_S = 3.0
BUSY_S = 60.0
SPACING_S = 1.0
RECHECK_S = 60.0
ENOUGH = 3
"""Goldens that take all of `START_S` and are slow: that is no busy moment any more."""
FAILING = 3
"""Parts without an answer, one after the other, until it is the engine and not the part."""
WINDOW, LOST = 50, 5
"""Of so many parts that the engine was asked about, so many without an answer are the engine's fault, too."""

log = logging.getLogger("agent.acceptance")


class EngineWatch:
    """Replays goldens between parts, and says what is wrong with the engine; it belongs to the line's thread.

    Args:
        replay: of the engine that runs the line.
        engine: that engine.
        accepted: what was accepted of this bundle on this device; None when nothing was.
        config: limits, and how often.
        changed: told when there is another fault, and when there is none any more.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        replay: GoldenReplay,
        engine: Engine,
        accepted: Acceptance | None,
        config: AcceptanceConfig,
        *,
        changed: Told = lambda _fault, _fails: None,
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
        self._kinds: tuple[bool, ...] = (False, False, False, False)
        self._unanswered = 0
        self._answered = 0
        self._window: deque[bool] = deque(maxlen=WINDOW)  # whether each of the last parts got no answer
        self._failing: str | None = None
        self._is_proven = False  # every golden got an answer, and no part was without one since that pass began
        self._is_clean = True
        self._pass_faults: tuple[str | None, ...] = (self._runtime_fault, None, None)

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

    def hear(self, *views: Inspection) -> None:
        """What became of a part: whether the engine gave an answer to each view that it was asked about."""
        fault, is_answered = None, False
        for view in views:
            if view.fault is None:
                is_answered = is_answered or view.not_found is None
            elif view.fault.stage in ("infer", "decode"):
                fault = fault or view.fault
        if fault is None and is_answered:
            self._unanswered, self._answered = 0, self._answered + 1
            self._window.append(False)
            if self._failing is not None:
                self._heard_again()
        elif fault is not None:
            self._unanswered, self._answered = self._unanswered + 1, 0
            self._is_clean = self._is_proven = False
            self._window.append(True)
            if self._failing is None:
                self._blame(fault.reason)

    def _blame(self, reason: str) -> None:
        """Whether too many parts are without an answer by now: then it is the engine."""
        lost = sum(self._window)
        if self._unanswered >= FAILING:
            words = f"{FAILING} parts in a row got no answer"
        elif lost >= LOST:
            words = f"{lost} of the last {len(self._window)} parts got no answer"
        else:
            return
        self._failing = f"the engine fails: {words} ({reason})"
        self._answers, self._due, self._last = [], self._clock(), -math.inf
        self._tell()

    def _heard_again(self) -> None:
        """The goldens say whether that lasts, once for all; without any, some parts do."""
        if not len(self._replay):
            self._is_proven = self._answered >= FAILING
        elif not self._is_proven:
            self._due = min(self._due, self._clock())
        self._recover()
        if self._failing is None:
            self._tell()

    def _recover(self) -> None:
        if self._is_proven and sum(self._window) < LOST:
            self._failing, self._unanswered = None, 0

    def turn(self, *, judged: bool) -> None:
        """Do what is due after one step of the line.

        Args:
            judged: whether the step brought a part.
        """
        now = self._clock()
        if not len(self._replay) or now < self._due:
            return
        patience_s = 0.0 if self._failing is not None else BUSY_S
        if judged and (now < self._due + patience_s or now < self._last + SPACING_S):
            return
        self._play_one()

    def _play_one(self) -> None:
        if not self._answers:
            self._is_clean = True
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
        answered = [answer for answer in answers if not answer.verdict.startswith("error: ")]
        self._is_proven = self._is_clean and len(answered) == len(answers)
        self._recover()
        others = self._other_verdicts(answers if self._failing is None else answered)
        faults = (self._runtime_fault, others, None if again else slow)
        # Another runtime stays one until the next start.
        if self._failing is not None or any(words is not None for words in faults[1:]):
            wait_s = RECHECK_S
        elif again:
            wait_s = 0.0
        else:
            wait_s = self._config.replay_hours * 3600 or math.inf
        self._due = self._clock() + wait_s
        self._pass_faults = faults
        self._tell(replayed=answers)

    def _tell(self, replayed: list[Answer] | None = None) -> None:
        """Say what is held against the engine now, when that is something else than before."""
        faults = (*self._pass_faults, self._failing)
        self._fault = "; ".join(words for words in faults if words is not None) or None
        if replayed is not None:
            self._log(replayed)
        # By kind, not by words: those hold figures, which never stand still.
        kinds = tuple(words is not None for words in faults)
        if kinds != self._kinds:
            self._kinds = kinds
            self._changed(self._fault, self._failing is not None)

    def _log(self, answers: list[Answer]) -> None:
        log_event(
            log,
            "goldens_replayed",
            goldens=len(answers),
            median_ms=round(statistics.median(a.ms for a in answers), 2) if answers else None,
            fault=self._fault,
        )

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
