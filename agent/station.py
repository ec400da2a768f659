"""THE LINE: trigger → frame → inspection → verdict → result → journal. Read me first.

```text
trigger.next ─▶ journal.trigger ─▶ camera.read ─▶ prepare ─▶ inspect ─▶ policy.judge ─▶ fast.finish ─▶ journal.record
 a part           it now exists      its frame,     the        what the   ok, defect,      the PLC        one transaction:
 exists           on disk            or a fault     input      model saw  review, error    knows          verdict, messages
└─────────────────── the next part ────────────────────┘└──────────────────── this part ───────────────────────────────┘
```

The left half may run ahead (`line.ahead`): while a part is judged, the next one is captured and prepared. The order of
the parts stays, and no more wait than that.

Threads of the process, all of them:

| thread | owns | may block on | ends |
| --- | --- | --- | --- |
| main, the line | inspector, policy; trigger and camera too with `ahead: 0` | camera, engine, a full journal | stop, or the source's end |
| `ahead` (`line.ahead`) | trigger and camera; fills a bounded queue | the camera, a full queue | the trigger is closed |
| `camera` (free run, triggered) | the camera; fills one slot, or the last few frames | the camera | the camera is closed |
| `view-NAME` (several cameras) | one further camera | the camera | the cameras are closed |
| `trigger` (interval, gpio, tcp) | what makes parts; fills the trigger's queue | its source | the trigger is closed |
| `fast` (with outputs) | the fast results and their deadlines | nothing | closed: open parts get `error` first |
| `journal` | the writing connection, evidence files | the disk | the journal is closed: drains first |
| `publisher` | the MQTT socket, a reading connection | the network | stopped, after a bounded drain |
| `gpio` (result lines), `tcp` (line server) | the lines; the sockets | the chip's edges; the network | outputs and trigger are closed |
| `commands` (MQTT trigger) | commands that wait, and their replies | nothing | the publisher is stopped |
| `reopen`, `NAME-close` (GenICam, Pi) | a camera that is opened again, or let go of | the driver | the driver returns |
| `cuda-context` (PyCUDA only) | the GPU's primary context | the driver | the engine is closed |

The watchdog has no thread: the line itself feeds it, so a line that is stuck is a line that is restarted.
"""  # noqa: E501 - a drawing and a table

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Union

from agent.ahead import Ahead
from agent.cameras import Camera
from agent.config import LineConfig
from agent.errors import JournalError
from agent.frame import Fault, Frame, Part, Stage
from agent.inspection import Inspector, Prepared
from agent.journal import Journal
from agent.log import log_event
from agent.outputs import FastPath
from agent.triggers import Trigger
from agent.verdict import Policy, Verdict
from agent.views import ViewCameras, ViewJudge

__all__ = ["Station"]

Seen = Union[Prepared, tuple[Union[Frame, Fault], ...]]  # noqa: UP007 - read at run time on Python 3.10
"""Of one part: its frame, fit to the model's input, or why there is none; or the frames of all its views."""

POLL_S = 0.25
"""How long one step waits for a part: bounds the reaction to a stop and the watchdog's feeding while idle."""

DURABLE_S = 60.0
"""How long `line.result: durable` waits for the disk; long before that the watchdog takes the line for stuck."""

log = logging.getLogger("agent.station")


class Station:
    """The line assembled.

    Args:
        trigger: makes parts.
        camera: takes their pictures; or all cameras of a part together.
        inspector: looks at them.
        policy: decides.
        views: looks and decides in their place where several cameras see a part.
        journal: remembers.
        fast: tells the PLC, at the latest at the deadline.
        line: how the line keeps its pace.
        beat: called after every step, idle ones too; feeds the watchdog.
        changed: told `camera`, `trigger` or `output` with the reason when it is lost, and with None when it is back.
        between: called after every step with the verdict of its part, None without one; what it does keeps the next
            part waiting.

    Attributes:
        late: parts of this run that were decided after their deadline.
    """

    def __init__(  # noqa: PLR0913 - everything of the line meets here
        self,
        *,
        trigger: Trigger,
        camera: Camera | ViewCameras,
        inspector: Inspector,
        policy: Policy,
        views: ViewJudge | None = None,
        journal: Journal,
        fast: FastPath,
        line: LineConfig = LineConfig(),  # noqa: B008 - frozen
        beat: Callable[[], None] = lambda: None,
        changed: Callable[[str, str | None], None] = lambda _what, _reason: None,
        between: Callable[[Verdict | None], None] = lambda _verdict: None,
    ) -> None:
        self.late = 0
        self._trigger = trigger
        self._camera = camera
        self._inspector = inspector
        self._policy = policy
        self._views = views
        self._journal = journal
        self._fast = fast
        self._line = line
        self._beat = beat
        self._changed = changed
        self._between = between
        self._lost: tuple[str | None, str | None, str | None] = (None, None, None)
        trigger.watch(_Doorbell(journal, fast))
        journal.tell_recorded(_log_verdict)
        if line.result == "durable":
            journal.tell_triggered(fast.on_disk)

    def run(self, stop: threading.Event, max_parts: int | None = None) -> int:
        """Step until asked to stop, or until no part will ever come again; then answer the parts that still wait.

        Returns:
            How many parts got a verdict.

        Raises:
            JournalError: a verdict could not be made durable; the station stops, a part is never judged in vain.
        """
        judged, trigger = 0, self._trigger
        taking: Ahead[Seen] = Ahead(
            self._take, is_over=lambda: trigger.ended, close=trigger.close, depth=self._line.ahead, limit=max_parts
        )
        if stop.is_set():  # before the first part: none is begun
            trigger.close()
        with taking as ahead:
            while not ahead.ended:
                if stop.is_set() or self._camera.ended:
                    trigger.close()  # what came before is still given, and gets its verdict
                seen = ahead.next(POLL_S)
                verdict = None if seen is None else self._judge_and_tell(seen)
                judged += verdict is not None
                self._watch()
                self._between(verdict)
                if ahead.is_moving():
                    self._beat()
        return judged

    def _take(self) -> Seen | None:
        """The next part's frame, or why there is none; None when no part came within the poll time.

        From its trigger on a part exists: it is in the journal before anything is done with it.

        Raises:
            JournalError: the journal can't be written.
        """
        part = self._trigger.next(POLL_S)
        if part is None:
            return None
        if isinstance(part, Fault):  # refused: too many waited
            self._journal.trigger(part.part)
            self._fast.refused(part)
            return self._inspector.prepare(part)
        self._journal.trigger(part)
        self._fast.begin(part)
        try:
            if isinstance(self._camera, ViewCameras):
                views = self._camera.capture(part)
                self._fast.exposing(is_exposing=False)  # only now have all of them exposed
                return views
            return self._inspector.prepare(self._camera.read(part))
        except Exception as error:  # our bug: it is shown as one, and the part still gets its verdict
            return self._inspector.prepare(_bug(part, "capture", error))

    def _judge_and_tell(self, seen: Seen) -> Verdict:
        """Take one part from its frame to a verdict on its way to the PLC and to the disk.

        Whatever fails after the trigger becomes `Decision.ERROR` with its reason: a part is never passed, and never
        lost, because software failed. The journal commits in groups; it publishes nothing before it is durable.

        Raises:
            JournalError: the journal can't be written.
        """
        verdict = self._judge(seen)
        return self._record_and_tell(verdict) if self._line.result == "durable" else self._tell_and_record(verdict)

    def _judge(self, seen: Seen) -> Verdict:
        try:
            if isinstance(seen, tuple):
                assert self._views is not None
                return self._views.judge(seen)
            return self._policy.judge(self._inspector.inspect(seen))
        except Exception as error:  # our bug: it is shown as one, and the part still gets its verdict
            part = seen[0].part if isinstance(seen, tuple) else seen.part
            return self._policy.judge(self._inspector.inspect(_bug(part, "infer", error)))

    def _tell_and_record(self, verdict: Verdict) -> Verdict:
        """The PLC first. After the deadline it knows `error` already; the journal gets the true verdict, marked."""
        in_time = self._finish(verdict)
        verdict = verdict if in_time else self._as_late(verdict)
        self._journal.record(verdict)
        return verdict

    def _record_and_tell(self, verdict: Verdict) -> Verdict:
        """The disk first: what the PLC hears is never forgotten. Nothing is published that it was not told."""
        verdict = self._as_late(verdict) if self._late_ms(verdict) > 0 else verdict
        rec = self._journal.record(verdict, held=True).wait(DURABLE_S)
        if not self._finish(verdict) and verdict.late_ms is None:  # decided in time, but on the disk after its deadline
            verdict = self._as_late(verdict)
            log_event(log, "result_late", logging.WARNING, rec=rec, part=verdict.inspection.part.id)
        self._journal.told(verdict, rec)
        return verdict

    def _finish(self, verdict: Verdict) -> bool:
        return self._fast.finish(verdict.inspection.part, verdict.decision.value, verdict.reason)

    def _as_late(self, verdict: Verdict) -> Verdict:
        self.late += 1
        return dataclasses.replace(verdict, late_ms=max(0.0, self._late_ms(verdict)))

    def _late_ms(self, verdict: Verdict) -> float:
        """How long ago the part's deadline was; negative before it."""
        if self._line.deadline_ms is None:
            return float("-inf")
        return (time.monotonic_ns() - verdict.inspection.part.triggered.mono_ns) / 1e6 - self._line.deadline_ms

    def _watch(self) -> None:
        """Tell once what is lost, and once that it is back."""
        now = self._camera.lost, self._trigger.lost, self._fast.trouble
        if now == self._lost:
            return
        for what, reason, before in zip(("camera", "trigger", "output"), now, self._lost, strict=True):
            if (reason is None) != (before is None):
                self._changed(what, reason)
        self._lost = now


class _Doorbell:
    """Hears of a trigger when it comes, before the line does: its deadline counts, and it is written ahead.

    It is written where the end of the process does not reach it before the PLC hears of it. Nothing here waits for the
    disk, as the trigger's thread serves the PLC too, and its queue is locked meanwhile: so the line can't have taken,
    let alone recorded, the part before. Where too many triggers wait for the disk, the line queues this one's row when
    it takes it.
    """

    def __init__(self, journal: Journal, fast: FastPath) -> None:
        self._journal = journal
        self._fast = fast

    def offered(self, part: Part) -> None:
        self._write_ahead(part)
        self._fast.offered(part)

    def refused(self, fault: Fault) -> None:
        self._write_ahead(fault.part)
        self._fast.refused(fault)

    def ready(self, *, is_ready: bool) -> None:
        self._fast.ready(is_ready=is_ready)

    def _write_ahead(self, part: Part) -> None:
        """A journal that has failed stops the line by itself; the trigger's thread goes on."""
        with contextlib.suppress(JournalError):
            self._journal.trigger_if_room(part)


def _bug(part: Part, stage: Stage, error: Exception) -> Fault:
    log.error("bug", exc_info=error)
    return Fault(part=part, stage=stage, reason=f"unexpected {type(error).__name__}: {error}")


def _log_verdict(verdict: Verdict, rec: int) -> None:
    """The canonical line: one per part, once it is on the disk, and on the thread that put it there."""
    inspection = verdict.inspection
    ms = inspection.ms
    late = {} if verdict.late_ms is None else {"late_ms": round(verdict.late_ms, 1)}
    log_event(
        log,
        "verdict",
        logging.WARNING if verdict.decision.value == "error" or late else logging.INFO,
        rec=rec,
        part=inspection.part.id,
        decision=verdict.decision.value,
        **{"class": verdict.top.class_name if verdict.top else None},
        score=None if verdict.score is None else round(verdict.score, 4),
        reason=verdict.reason,
        capture_ms=round(ms.capture, 2),
        preprocess_ms=round(ms.preprocess, 2),
        infer_ms=round(ms.infer, 2),
        bundle=inspection.bundle.name,
        **late,
    )
