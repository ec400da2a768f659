"""The line: every trigger one verdict and one result, in order, in time or marked late, whatever fails on the way."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bundle import Tensor
from agent.cameras.folder import FolderCamera
from agent.cameras.guard import FrameGuard, GuardedCamera
from agent.cameras.triggered import Moment, TriggeredCamera
from agent.config import FolderCameraConfig, LineConfig
from agent.engines import Engine
from agent.errors import EngineError
from agent.frame import Fault, Frame, Part, Stamp
from agent.triggers.frame import EachFrame
from agent.verdict import Verdict
from tests.kit.frames import BLACK, WHITE, plain_image
from tests.kit.lines import HandTrigger, RealLine
from tests.kit.live import LiveCamera, noisy
from tests.kit.pictures import encoded
from tests.kit.waiting import wait_until

OK, DEFECT, REVIEW, ERROR = 1, 2, 3, 4
BOTH_WAYS = pytest.mark.parametrize("ahead", [0, 1])


class Gate:
    """A real engine behind a gate, which may also fail."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        self.fails = False
        if is_open:
            self.opened.set()

    def __call__(self, engine: Engine) -> Engine:
        self._engine = engine
        self.name, self.kind = engine.name, engine.kind
        return self

    def infer(self, tensor: Tensor) -> Mapping[str, Any]:
        self.entered.release()
        assert self.opened.wait(60)
        if self.fails:
            raise EngineError("out of memory")
        return self._engine.infer(tensor)

    def close(self) -> None:
        self._engine.close()


class Snapshots:
    """A camera that gives each part a picture of its own at once, counts them, and raises when told."""

    def __init__(self, colour: tuple[int, int, int] = WHITE) -> None:
        self.name, self.upcoming, self.ended, self.lost = "snap", None, False, None
        self.taken: list[str] = []
        self.raises: Exception | None = None
        self._image = plain_image(colour)

    def poll(self, timeout_s: float) -> bool:
        return True

    def read(self, part: Part) -> Frame | Fault:
        self.taken.append(part.id)
        if self.raises is not None:
            raise self.raises
        number = len(self.taken)
        return Frame(part=part, image=self._image, camera="snap", source="kit", sequence=number, captured=Stamp.now())

    def close(self) -> None:
        self.ended = True


def offer(line: RealLine, *names: str) -> None:
    for name in names:
        line.trigger.queue.offer(name, Stamp.now())


@BOTH_WAYS
def test_each_trigger_gets_one_verdict_and_one_result_in_order(tmp_path: Path, ahead: int) -> None:
    """The same on the fast line and in the record."""
    names = [f"P{i}" for i in range(40)]
    with RealLine(tmp_path, Snapshots(), line=LineConfig(ahead=ahead)) as line:
        line.start()
        offer(line, *names)
        wait_until(lambda: len(line.plc.results) == 40, 30)
        judged = line.end()

        assert judged == 40
        assert line.verdicts() == [(name, OK) for name in names]
        assert [(part, decision) for part, decision, _ in line.plc.results] == [(name, "ok") for name in names]


@BOTH_WAYS
def test_a_refused_trigger_is_journalled_and_an_error_at_once(tmp_path: Path, ahead: int) -> None:
    """Never silence: the PLC hears it while the part before is still being judged."""
    gate, camera = Gate(is_open=False), Snapshots()
    trigger = HandTrigger(waiting=0)
    with RealLine(tmp_path, camera, trigger=trigger, line=LineConfig(ahead=ahead), engine=gate) as line:
        line.start()
        taken = wait_for_room(line)
        for _ in range(ahead):
            wait_for_room(line)
        wait_until(lambda: len(camera.taken) == 1 + ahead, 30)
        offer(line, "late")
        wait_until(lambda: [r[:2] for r in line.plc.results] == [("late", "error")])
        assert line.journal.stats().ledger.closes
        gate.opened.set()
        line.end()

        assert dict(line.verdicts())["late"] == ERROR
        assert dict(line.verdicts())[taken] == OK
        assert line.journal.stats().ledger.refused == 1
        assert line.journal.stats().ledger.triggers == 2 + ahead


def wait_for_room(line: RealLine) -> str:
    """Offer a part as soon as the line takes one; its name."""
    queue = line.trigger.queue
    wait_until(lambda: queue._was_ready, 30, what="a line that takes a part")
    name = f"P{queue._count + 1}"
    assert isinstance(queue.offer(name, Stamp.now()), Part)
    return name


def test_a_part_exists_on_the_disk_before_anything_is_done_with_it(tmp_path: Path) -> None:
    """Triggers that wait are written ahead too: a power cut answers them at the next start."""
    gate = Gate(is_open=False)
    with RealLine(tmp_path, Snapshots(), engine=gate, line=LineConfig(ahead=0)) as line:
        line.start()
        wait_for_room(line)
        assert gate.entered.acquire(timeout=30)
        offer(line, "waits", "too")
        line.journal.flush()
        ledger = line.journal.stats().ledger
        gate.opened.set()

        assert (ledger.triggers, ledger.pending) == (3, 3)


def test_a_disk_that_hangs_keeps_no_trigger_from_its_answer(tmp_path: Path) -> None:
    """Who brings triggers never waits for the disk: deadlines, refusals and PONG come from that thread too."""
    trigger, gate = HandTrigger(waiting=0), Gate(is_open=False)
    names = [f"P{number}" for number in range(20)]
    with RealLine(tmp_path, Snapshots(), trigger=trigger, engine=gate, journal={"max_pending": 2}) as line:
        line.start()
        wait_until(lambda: trigger.queue._was_ready, 30)
        blocker = sqlite3.connect(line.state_dir / "journal.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        plant = threading.Thread(target=offer, args=(line, *names), daemon=True)
        plant.start()
        wait_until(lambda: {part for part, _, _ in line.plc.results} >= set(names[3:]), 3, what="an answer to each")
        blocker.execute("ROLLBACK")
        blocker.close()
        gate.opened.set()
        plant.join(30)
        line.end()

        assert sorted(part for part, _ in line.verdicts()) == sorted(names)
        assert sorted(part for part, _, _ in line.plc.results) == sorted(names)
        assert line.journal.stats().ledger.closes


def test_a_late_part_is_error_on_the_fast_line_at_its_deadline_and_true_in_the_record(tmp_path: Path) -> None:
    """The PLC must move on; the record must not lie."""
    gate = Gate(is_open=False)
    with RealLine(tmp_path, Snapshots(BLACK), engine=gate, line=LineConfig(deadline_ms=30)) as line:
        line.start()
        offer(line, "slow")
        wait_until(lambda: line.plc.results, 30)
        told = list(line.plc.results)
        gate.opened.set()
        line.end()
        line.journal.flush()
        (stored,) = line.journal.read()

        assert [(part, decision) for part, decision, _ in told] == [("slow", "error")]
        assert "deadline" in told[0][2]
        assert line.plc.results == told
        body = json.loads(stored.body)
        assert (body["decision"], body["class"]) == ("defect", "scratch")
        assert body["late_ms"] > 0
        assert line.station.late == 1


def test_a_part_in_time_is_not_marked(tmp_path: Path) -> None:
    """A mark that is always there says nothing."""
    with RealLine(tmp_path, Snapshots(), line=LineConfig(deadline_ms=3_600_000)) as line:
        line.start()
        offer(line, "fast")
        wait_until(lambda: line.plc.results, 30)
        line.end()
        line.journal.flush()
        (stored,) = line.journal.read()

        assert json.loads(stored.body)["late_ms"] is None
        assert line.station.late == 0


def test_durable_tells_the_plc_only_what_is_on_the_disk(tmp_path: Path) -> None:
    """With `result: durable` a result that was heard is never forgotten."""
    seen: list[int] = []
    with RealLine(tmp_path, Snapshots(), line=LineConfig(result="durable")) as line:
        tell = line.plc.result

        def result(part: Part, decision: str, reason: str) -> None:
            seen.append(line.journal.last_rec)
            tell(part, decision, reason)

        vars(line.plc)["result"] = result  # the PLC looks at the disk when it hears
        line.start()
        for number in range(1, 6):
            offer(line, f"P{number}")
            wait_until(lambda: len(line.plc.results) == number, 30)  # noqa: B023 - used within this turn
        line.end()

        assert seen == [1, 2, 3, 4, 5]


def disk_that_takes_nothing(line: RealLine) -> sqlite3.Connection:
    """Another program holds the database: nothing gets onto the disk until it rolls back."""
    lock = sqlite3.connect(line.state_dir / "journal.db", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    return lock


def test_durable_tells_the_plc_of_a_part_once_its_trigger_is_on_the_disk(tmp_path: Path) -> None:
    """What the PLC knows of a part outlives the machine."""
    camera = Snapshots()
    with RealLine(tmp_path, camera, line=LineConfig(result="durable")) as line:
        line.start()
        lock = disk_that_takes_nothing(line)
        offer(line, "P1")
        wait_until(lambda: camera.taken, 30)
        heard = [name for name, *_ in line.plc.told if name in {"expect", "result"}]
        lock.rollback()
        wait_until(lambda: line.plc.results, 30)
        line.end()

        assert heard == []
        assert [name for name, *_ in line.plc.told if name in {"expect", "result"}] == ["expect", "result"]


def test_a_durable_verdict_that_the_disk_made_late_is_published_as_late(tmp_path: Path) -> None:
    """The PLC heard `error` at the deadline: what SCADA reads must not look as if it had heard `ok`."""
    with RealLine(tmp_path, Snapshots(), line=LineConfig(result="durable", deadline_ms=300)) as line:
        line.start()
        lock = disk_that_takes_nothing(line)
        offer(line, "P1")
        wait_until(lambda: line.plc.results, 30)
        lock.rollback()
        wait_until(lambda: line.journal.outbox.pending(limit=1), 30)
        (row,) = line.journal.outbox.pending(limit=1)
        line.end()

        (part, decision, reason), *more = line.plc.results
        assert (part, decision, more) == ("P1", "error", [])
        assert "deadline" in reason
        assert json.loads(row.body or b"")["decision"] == "ok"
        assert json.loads(row.body or b"")["late_ms"] > 0
        assert line.station.late == 1


@BOTH_WAYS
def test_whatever_raises_is_an_error_verdict_with_its_reason_and_the_line_goes_on(tmp_path: Path, ahead: int) -> None:
    """A part is never passed, and never lost, because software failed."""
    camera, gate = Snapshots(), Gate()
    with RealLine(tmp_path, camera, engine=gate, line=LineConfig(ahead=ahead)) as line:
        line.start()
        for name, raises, fails in (("A", RuntimeError("driver"), False), ("B", None, True), ("C", None, False)):
            camera.raises, gate.fails = raises, fails
            offer(line, name)
            wait_until(lambda: [r[0] for r in line.plc.results][-1:] == [name], 30)  # noqa: B023
        line.end()

        results = line.plc.results
        assert [(part, decision) for part, decision, _ in results] == [("A", "error"), ("B", "error"), ("C", "ok")]
        assert "capture: unexpected RuntimeError: driver" in results[0][2]
        assert "out of memory" in results[1][2]


def test_the_next_part_is_captured_while_this_one_is_judged(tmp_path: Path) -> None:
    """That is what running ahead means, and no further than it says."""
    gate, camera = Gate(is_open=False), Snapshots()
    with RealLine(tmp_path, camera, engine=gate, line=LineConfig(ahead=1)) as line:
        line.start()
        offer(line, *(f"P{i}" for i in range(6)))
        wait_until(lambda: len(camera.taken) == 2, 30)
        assert gate.entered.acquire(timeout=30)
        held_back = list(camera.taken)
        gate.opened.set()
        wait_until(lambda: len(line.plc.results) == 6, 30)

        assert held_back == ["P0", "P1"]
        assert camera.taken == [f"P{i}" for i in range(6)]


@BOTH_WAYS
def test_a_stop_answers_every_part_that_was_triggered(tmp_path: Path, ahead: int) -> None:
    """The part at hand is judged; those that wait are told that the line has stopped."""
    gate = Gate(is_open=False)
    with RealLine(tmp_path, Snapshots(), engine=gate, line=LineConfig(ahead=ahead)) as line:
        line.start()
        offer(line, *(f"P{i}" for i in range(10)))
        assert gate.entered.acquire(timeout=30)
        line.stop.set()
        gate.opened.set()
        judged = line.wait()
        line.journal.flush()
        ledger = line.journal.stats().ledger
        told = {part: decision for part, decision, _ in line.plc.results}

        assert judged == len(line.plc.results) == 10
        assert (ledger.triggers, ledger.pending, ledger.closes) == (10, 0, True)
        assert told.keys() == {f"P{i}" for i in range(10)}
        assert (told["P0"], told["P9"]) == ("ok", "error")


@BOTH_WAYS
def test_max_parts_takes_no_part_that_nobody_judges(tmp_path: Path, ahead: int) -> None:
    """A folder goes on where it was left: a picture that was taken and not judged would be an error then."""
    parts = tmp_path / "parts"
    parts.mkdir()
    for i in range(9):
        (parts / f"{i}.png").write_bytes(encoded(plain_image(WHITE)))
    camera = FolderCamera(FolderCameraConfig(kind="folder", path=parts), is_judged=lambda _part: False)
    trigger = EachFrame(camera, kind="frame", prefix="x")
    with RealLine(tmp_path / "line", camera, trigger=trigger, line=LineConfig(ahead=ahead)) as line:
        assert line.start(max_parts=4).wait() == 4
        assert line.verdicts() == [(f"{i}.png", OK) for i in range(4)]
        assert line.journal.stats().ledger.triggers == 4


@BOTH_WAYS
def test_a_source_that_ends_ends_the_line_after_its_last_part(tmp_path: Path, ahead: int) -> None:
    """Also with a trigger that would go on: those that wait are answered."""
    camera = Snapshots()
    with RealLine(tmp_path, camera, line=LineConfig(ahead=ahead)) as line:
        line.start()
        offer(line, "A")
        wait_until(lambda: line.plc.results, 30)
        camera.ended = True

        assert line.wait() == 1


def test_a_camera_that_hangs_ahead_of_the_line_stops_the_heartbeat(tmp_path: Path) -> None:
    """The watchdog must see through a line that idles happily while its camera hangs."""
    beats: list[float] = []
    hung, back = threading.Event(), threading.Event()

    class Hanging(Snapshots):
        def read(self, part: Part) -> Frame | Fault:
            hung.set()
            back.wait(60)
            return super().read(part)

    with RealLine(tmp_path, Hanging(), line=LineConfig(ahead=1), beat=lambda: beats.append(time.monotonic())) as line:
        steps: list[Verdict | None] = []
        line.station._between = steps.append
        line.start()
        wait_until(lambda: len(beats) >= 2, 30)
        offer(line, "A")
        assert hung.wait(30)
        seen = len(steps)
        wait_until(lambda: len(steps) >= seen + 2, 30)
        count = len(beats)
        wait_until(lambda: len(steps) >= seen + 5, 30)
        stopped = len(beats) == count
        back.set()
        wait_until(lambda: len(beats) > count, 30)

        assert stopped


def test_what_is_lost_is_told_once_and_once_that_it_is_back(tmp_path: Path) -> None:
    """Camera, trigger and output alike."""
    told: list[tuple[str, bool]] = []
    camera = Snapshots()
    with RealLine(tmp_path, camera, changed=lambda what, reason: told.append((what, reason is None))) as line:
        line.start()
        for reason in ("gone", "still gone", None):
            camera.lost = reason  # type: ignore[assignment]
            line.trigger.lost = line.plc.trouble = reason
            wait_until(lambda: line.station._lost[2] == reason, 30)  # noqa: B023

        assert told == [(what, back) for back in (False, True) for what in ("camera", "trigger", "output")]


def test_a_bad_frame_of_a_live_camera_is_an_error_and_never_a_guess(tmp_path: Path) -> None:
    """Through guard, reader, line and record: each trigger in between is answered with the reason."""
    live = LiveCamera()
    camera = TriggeredCamera(GuardedCamera(live, FrameGuard()), Moment(timeout_ms=20_000))
    first = noisy(230)
    with RealLine(tmp_path, camera) as line:
        line.start()
        for name, image in (("A", first), ("B", first.copy()), ("C", noisy(2)), ("D", noisy(230))):
            live.wait_until_idle()
            wait_until(lambda: name != "D" or camera.lost, 30)  # noqa: B023
            if name == "D":
                live.show(noisy(220))
                wait_until(lambda: camera.lost is None, 30)
            part = line.trigger.queue.offer(name, Stamp.now())
            live.show(image)
            wait_until(lambda: [r[0] for r in line.plc.results][-1:] == [name], 30)  # noqa: B023
            assert isinstance(part, Part)
        line.end()

        reasons = {part: (decision, reason) for part, decision, reason in line.plc.results}
        assert [decision for decision, _ in reasons.values()] == ["ok", "error", "error", "ok"]
        assert "frozen" in reasons["B"][1]


def test_a_disk_that_fails_stops_the_line(tmp_path: Path) -> None:
    """A part is never judged in vain: the error comes out of `run`, from whichever thread met it."""
    from agent.errors import JournalError

    for ahead in (0, 1):
        with RealLine(tmp_path / str(ahead), Snapshots(), line=LineConfig(ahead=ahead)) as line:
            line.start()
            offer(line, "A")
            wait_until(lambda: line.plc.results, 30)
            line.journal._parts.intake.fail(JournalError("the disk is gone"))
            offer(line, "B")
            with pytest.raises(JournalError, match="disk is gone"):
                line.wait()
            line.journal._closed = True  # it has failed: closing it would say so again
            line.journal._parts.intake.close()
            line.journal._parts.writer.join(5)


def test_buffers_are_bounded_and_nothing_of_a_part_stays(tmp_path: Path) -> None:
    """A line runs for years: what was judged is let go of."""
    import gc
    import weakref

    kept: list[weakref.ref[Any]] = []

    class Noted(Snapshots):
        def read(self, part: Part) -> Frame | Fault:
            self._image = np.ascontiguousarray(plain_image(WHITE))
            kept.append(weakref.ref(self._image))
            return super().read(part)

    with RealLine(tmp_path, Noted()) as line:
        line.start()
        offer(line, *(f"P{i}" for i in range(50)))
        wait_until(lambda: len(line.plc.results) == 50, 30)
        line.end()
        line.journal.flush()
        gc.collect()

        assert sum(ref() is not None for ref in kept) <= 2
