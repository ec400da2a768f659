"""THE LINE: trigger → frame → inspection → verdict → journal. Read me first.

```text
trigger.next ─▶ journal.trigger ─▶ camera.read ─▶ inspector.inspect ─▶ policy.judge ─▶ journal.record
 a part           it now exists      a frame,        what the model      ok, defect,      one transaction:
 exists           on disk            or a fault      saw, or a fault     review, error    verdict + its messages
```

Threads of the process, all of them:

| thread | owns | may block on | ends |
| --- | --- | --- | --- |
| main, the line | trigger, camera, inspector, policy | camera, engine, a full journal | stop, or the source's end |
| `camera` (free run only) | the camera; fills one slot | the camera | the camera is closed |
| `journal` | the writing connection, evidence files | the disk | the journal is closed: drains first |
| `publisher` | the MQTT socket, a reading connection | the network | stopped, after a bounded drain |
| `cuda-context` (PyCUDA only) | the GPU's primary context | the driver | the engine is closed |

The watchdog has no thread: the line itself feeds it, so a line that is stuck is a line that is restarted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agent.cameras import Camera
from agent.frame import Fault, Part
from agent.inspection import Inspection, Inspector
from agent.journal import Journal
from agent.log import log_event
from agent.triggers import Trigger
from agent.verdict import Policy, Verdict

__all__ = ["Station"]

POLL_S = 0.25
"""How long one step waits for a part: bounds the reaction to a stop and the watchdog's feeding while idle."""

log = logging.getLogger("agent.station")


class Station:
    """The line assembled.

    Args:
        trigger: makes parts.
        camera: takes their pictures.
        inspector: looks at them.
        policy: decides.
        journal: remembers.
        beat: called after every step, idle ones too; feeds the watchdog.
        camera_changed: told the reason when the camera is lost, and None when it is back.
        between: called after every step with whether it brought a part; what it does keeps the next part waiting.
    """

    def __init__(
        self,
        *,
        trigger: Trigger,
        camera: Camera,
        inspector: Inspector,
        policy: Policy,
        journal: Journal,
        beat: Callable[[], None] = lambda: None,
        camera_changed: Callable[[str | None], None] = lambda _reason: None,
        between: Callable[[bool], None] = lambda _judged: None,
    ) -> None:
        self._trigger = trigger
        self._camera = camera
        self._inspector = inspector
        self._policy = policy
        self._journal = journal
        self._beat = beat
        self._camera_changed = camera_changed
        self._between = between
        self._lost: str | None = None

    def run(self, stop: threading.Event, max_parts: int | None = None) -> int:
        """Step until asked to stop, or until no part will ever come again.

        Returns:
            How many parts got a verdict.

        Raises:
            JournalError: a verdict could not be made durable; the station stops, a part is never judged in vain.
        """
        judged = 0
        while not stop.is_set() and not self._trigger.ended and (max_parts is None or judged < max_parts):
            has_judged = self.step() is not None
            judged += has_judged
            self._watch_camera()
            self._between(has_judged)
            self._beat()
        return judged

    def step(self) -> Verdict | None:
        """Take one triggered part from its trigger to a verdict on its way to the disk.

        Whatever fails after the trigger becomes `Decision.ERROR` with its reason: a part is never passed, and never
        lost, because software failed. The journal commits in groups; it publishes nothing before it is durable.

        Returns:
            The verdict, or None when no part came within the poll time.

        Raises:
            JournalError: the journal can't be written.
        """
        part = self._trigger.next(POLL_S)
        if part is None:
            return None
        self._journal.trigger(part)
        verdict = self._judge(part)
        self._journal.record(verdict)
        _log_verdict(verdict)
        return verdict

    def _judge(self, part: Part) -> Verdict:
        try:
            frame = self._camera.read(part)
            inspection = self._inspector.inspect(frame)
            return self._policy.judge(inspection)
        except Exception as error:  # our bug: it is shown as one, and the part still gets its verdict
            log.exception("bug")
            fault = Fault(part=part, stage="infer", reason=f"unexpected {type(error).__name__}: {error}")
            return self._policy.judge(
                Inspection(
                    part=part,
                    frame=None,
                    fault=fault,
                    bundle=self._inspector.ref,
                    engine=self._inspector.engine_name,
                )
            )

    def _watch_camera(self) -> None:
        lost = self._camera.lost
        if (lost is None) != (self._lost is None):
            self._camera_changed(lost)
        self._lost = lost


def _log_verdict(verdict: Verdict) -> None:
    """The canonical line: one per part."""
    inspection = verdict.inspection
    ms = inspection.ms
    log_event(
        log,
        "verdict",
        logging.WARNING if verdict.decision.value == "error" else logging.INFO,
        part=inspection.part.id,
        decision=verdict.decision.value,
        **{"class": verdict.top.class_name if verdict.top else None},
        score=None if verdict.score is None else round(verdict.score, 4),
        reason=verdict.reason,
        capture_ms=round(ms.capture, 2),
        preprocess_ms=round(ms.preprocess, 2),
        infer_ms=round(ms.infer, 2),
        bundle=inspection.bundle.name,
    )
