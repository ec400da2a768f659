"""The real agent in a process of its own, with frames in memory in the camera's place; driven over a pipe.

Everything behind the camera is `agent.app.run_station`: trigger, inspector, policy, journal, publisher, the log's line
per part, the watchdog's beat. Only `open_camera` is exchanged for one whose frames are there already, and which gives
as many parts as it is told, at a rate if one is asked for.

Orders come as JSON lines on standard input, answers go as JSON lines to the file descriptor given; standard output is
the agent's log. Run as `python -m tools.bench_line.agent_worker CONFIG WIDTH HEIGHT [stamps] FD`; with `stamps` it
tells when each verdict was on the disk.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agent.app
from agent.config import read_config
from agent.frame import Frame, Part, Stamp
from agent.journal import Receipt
from agent.log import start_logging
from tools.bench_line.frames import frames_of
from tools.bench_line.process_facts import facts_of_process, seconds_of_threads

if TYPE_CHECKING:
    from agent.journal import Journal

POLL_S = 0.002


class MemoryCamera:
    """Frames that are there already, as many as were ordered; behaves as the port asks."""

    name = "memory"
    upcoming = None
    lost = None

    def __init__(self, width_px: int, height_px: int) -> None:
        self._frames = frames_of(width_px, height_px)
        self._state = threading.Condition()
        self._left = 0
        self._given = 0
        self._interval_s = 0.0
        self._due = 0.0
        self.late_ms: list[float] = []
        self.given_all = threading.Event()
        self.ended = False

    def order(self, parts: int, rate_hz: float) -> None:
        """Let so many parts come, each when it is due, or all as fast as they are taken."""
        with self._state:
            self.given_all.clear()
            self._left, self._interval_s = parts, 1.0 / rate_hz if rate_hz else 0.0
            self._due = time.monotonic()
            self.late_ms = []
            self._state.notify_all()

    def poll(self, timeout_s: float) -> bool:
        """Wait for an ordered part to be due."""
        until = time.monotonic() + timeout_s
        with self._state:
            if not self._left:
                self._state.wait_for(lambda: self._left or self.ended, timeout_s)
            if not self._left:
                return False
            wait_s = min(self._due, until) - time.monotonic() if self._interval_s else 0.0
        if wait_s > 0:
            time.sleep(wait_s)
        return not self._interval_s or self._due <= time.monotonic()

    def read(self, part: Part) -> Frame:
        """The next frame."""
        now = Stamp.now()
        with self._state:
            self._left -= 1
            self._given += 1
            if self._interval_s:
                self.late_ms.append((now.mono_ns / 1e9 - self._due) * 1e3)
                self._due += self._interval_s
            if not self._left:
                self.given_all.set()
        image = self._frames[self._given % len(self._frames)]
        return Frame(part=part, image=image, camera=self.name, source="memory", sequence=self._given, captured=now)

    def close(self) -> None:
        """End."""
        with self._state:
            self.ended = True
            self._state.notify_all()


class Control(threading.Thread):
    """Takes orders, waits until their parts are acknowledged by the broker, answers with what it took."""

    def __init__(self, camera: MemoryCamera, stop: threading.Event, answers: int) -> None:
        super().__init__(name="bench-control", daemon=True)
        self.journal: Journal | None = None
        self.durable_at: dict[int, float] = {}
        self._camera, self._stop, self._answers = camera, stop, answers

    def note_durable(self) -> None:
        """From now on note when each verdict is on the disk (CLOCK_MONOTONIC, seconds)."""
        keep, noted = Receipt.keep, self.durable_at

        def keep_and_note(receipt: Receipt, rec: int) -> None:
            noted[rec] = time.monotonic()
            keep(receipt, rec)

        Receipt.keep = keep_and_note  # type: ignore[method-assign,assignment]

    def run(self) -> None:
        """Until standard input ends; a failure ends the process, so that nobody waits for its answer."""
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        self._stop.set()
        self._camera.close()

    def _serve(self) -> None:
        self._answer({"ready": True, **facts_of_process()})
        for line in sys.stdin:
            order = json.loads(line)
            answer = self._done(int(order["parts"]), float(order.get("rate_hz", 0)))
            if order.get("worked"):
                answer["ms"] = self._worked(int(order["parts"]))
            self._answer(answer)

    def _done(self, parts: int, rate_hz: float) -> dict[str, Any]:
        journal = self.journal
        assert journal is not None
        self.durable_at.clear()
        started, cpu, before = time.monotonic(), time.process_time(), seconds_of_threads()
        self._camera.order(parts, rate_hz)
        self._camera.given_all.wait()
        while journal.pending():
            time.sleep(POLL_S)
        durable = time.monotonic()
        while journal.outbox.depth():
            time.sleep(POLL_S)
        return {
            "seconds": time.monotonic() - started,
            "durable_s": durable - started,
            "cpu_s": time.process_time() - cpu,
            "threads_s": _less(seconds_of_threads(), before),
            "late_ms": self._camera.late_ms,
            "durable_at": self.durable_at,
            "last_rec": journal.last_rec,
            **facts_of_process(),
        }

    def _worked(self, parts: int) -> list[float]:
        """What the last parts took, in milliseconds: preparing, inference and decision, without waiting for a turn."""
        journal = self.journal
        assert journal is not None
        rows = journal.read(first=journal.last_rec - parts + 1)
        return [sum(json.loads(row.body)["ms"][name] for name in ("preprocess", "infer", "decide")) for row in rows]

    def _answer(self, answer: dict[str, Any]) -> None:
        os.write(self._answers, (json.dumps(answer) + "\n").encode())


def _less(now: dict[str, tuple[float, float]], then: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    zero = (0.0, 0.0)
    return {name: [a - b for a, b in zip(spent, then.get(name, zero), strict=True)] for name, spent in now.items()}


def main() -> None:
    """Run the station until standard input ends."""
    config = read_config(Path(sys.argv[1]))
    camera = MemoryCamera(int(sys.argv[2]), int(sys.argv[3]))
    stop = threading.Event()
    control = Control(camera, stop, int(sys.argv[-1]))
    if "stamps" in sys.argv[4:-1]:
        control.note_durable()

    def in_memory(_config: object, *, is_judged: Any, **_more: object) -> MemoryCamera:
        control.journal = is_judged.__self__  # the journal's own method: the one handle on it that a camera gets
        control.start()
        return camera

    wiring: Any = agent.app
    assert callable(wiring.open_camera)
    wiring.open_camera = in_memory
    start_logging(config.log, stream=sys.stdout)
    agent.app.run_station(config, stop=stop)
    os._exit(0)  # not held up by the control, which may still read


if __name__ == "__main__":
    main()
