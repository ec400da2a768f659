"""What the station says of itself: faults once, their end once, the ledger, and a board that is slowed down."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.board import Board
from agent.config import read_config
from agent.damping import STEADY_S
from agent.face import LOOK_S, Face, Throttling
from agent.journal import Journal
from tests.kit.bundles import make_bundle
from tests.kit.station import make_parts, make_station
from tests.kit.verdicts import events, judge, open_journal

FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "84200\n",
    FLAGS: "0\n",
}


@dataclasses.dataclass
class Rig:
    """A face, and what it says to whom."""

    face: Face
    journal: Journal
    root: Path
    told: list[str | None]
    now_s: float = 0.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A station on a Raspberry Pi that is warm."""
    for name, text in PI.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    make_parts(tmp_path / "parts", 1)
    config = read_config(make_station(tmp_path, port=None))
    told: list[str | None] = []
    with open_journal(config.state_dir) as journal:
        board = Board(tmp_path / "root")
        made: list[Rig] = []

        def clock() -> float:
            return made[0].now_s

        bundle = make_bundle(tmp_path)
        face = Face(config, bundle, "kit 1.0", journal, fault=told.append, board=board, clock=clock)
        face._throttling._clock = clock
        made.append(Rig(face, journal, tmp_path / "root", told))
        yield made[0]


def names(journal: Journal) -> list[str]:
    journal.flush()
    return [event["event"] for event in events(journal)]


def test_what_is_lost_is_an_event_a_degraded_status_and_a_fault_on_the_fast_line(rig: Rig) -> None:
    """Once, and once when it is back; several reasons stand together."""
    rig.face.changed("camera", "unplugged")
    rig.face.changed("output", "the PLC does not read")
    both = rig.face.status()
    rig.face.changed("camera", None)
    rig.face.changed("output", None)

    assert (both.state, both.reason) == ("degraded", "camera folder: unplugged; the output: the PLC does not read")
    assert rig.face.status().state == "online"
    assert rig.told == ["camera folder: unplugged", None]
    assert names(rig.journal) == ["camera_lost", "output_lost", "camera_found", "output_found"]


def test_a_camera_that_is_back_leaves_the_trigger_that_is_not(rig: Rig) -> None:
    """The fast fault goes when the last reason does."""
    rig.face.changed("trigger", "line 5 is gone")
    rig.face.changed("camera", "unplugged")
    rig.face.changed("camera", None)
    rig.face.changed("trigger", None)

    assert rig.told[-2:] == ["the trigger: line 5 is gone", None]


def flap(rig: Rig, what: str, times: int, *, every_s: float = 1.0) -> None:
    """Lost and back again."""
    for _ in range(times):
        rig.face.changed(what, "unplugged")
        rig.now_s += every_s / 2
        rig.face.changed(what, None)
        rig.now_s += every_s / 2


@pytest.mark.parametrize(("what", "shown"), [("camera", "camera folder"), ("trigger", "the trigger")])
def test_what_flaps_is_told_as_unsteady_once_and_once_when_it_holds(rig: Rig, what: str, shown: str) -> None:
    """A loose plug must not flood the plant's events: told are the first three losses, then that it does not hold."""
    told: list[str] = []
    rig.face.tell_status = lambda: told.append(rig.face.status().reason)
    flap(rig, what, 200)
    during = rig.face.status()
    rig.now_s += STEADY_S - 1.0
    rig.face.look()
    too_soon = names(rig.journal)
    rig.now_s += 1.0
    rig.face.metrics()

    assert too_soon == [f"{what}_lost", f"{what}_found"] * 3 + [f"{what}_unsteady"]
    assert names(rig.journal) == [*too_soon, f"{what}_found"]
    assert during.state == "degraded"
    assert during.reason == f"{shown}: unsteady, lost 4 times within 3 s, the last time: unplugged"
    assert told == [f"{shown}: unplugged", "running"] * 3 + [during.reason, "running"]
    unsteady, found = events(rig.journal)[-2:]
    assert (unsteady["severity"], unsteady["data"]["losses"]) == ("alarm", 4)
    assert (found["severity"], found["data"]["losses"]) == ("info", 200)
    assert found["text"] == f"{shown} is back and holds, after it was lost 200 times within 200 s"


def test_what_flaps_and_then_stays_away_is_told_as_lost(rig: Rig) -> None:
    """The last event says how it is; the status has the reason of the loss again."""
    flap(rig, "output", 5)
    rig.face.changed("output", "the PLC does not read")
    rig.now_s += STEADY_S
    rig.face.idle()

    assert names(rig.journal)[-2:] == ["output_unsteady", "output_lost"]
    assert rig.face.status().reason == "the output: the PLC does not read"
    last = events(rig.journal)[-1]
    assert last["data"]["losses"] == 6
    assert last["text"] == "the output: the PLC does not read, and stays away; lost 6 times within 5 s before"


def test_after_it_held_losses_are_told_at_once_again(rig: Rig) -> None:
    """Also where nobody looked in between; what is lost seldom is never unsteady."""
    flap(rig, "camera", 9)
    rig.now_s += STEADY_S
    flap(rig, "camera", 1, every_s=25.0)
    flap(rig, "camera", 9, every_s=25.0)

    assert names(rig.journal)[7:] == ["camera_found", *["camera_lost", "camera_found"] * 10]


def test_the_fast_outputs_follow_a_camera_that_flaps(rig: Rig) -> None:
    """A level is no flood, and the PLC must not be told that a dead camera can judge."""
    flap(rig, "camera", 9)

    assert rig.told == ["camera folder: unplugged", None] * 9


def test_one_that_flaps_hides_no_other(rig: Rig) -> None:
    """Each is damped by itself."""
    flap(rig, "camera", 9)
    rig.face.changed("trigger", "line 5 is gone")

    assert names(rig.journal)[-1] == "trigger_lost"
    assert rig.face.status().reason.endswith("the last time: unplugged; the trigger: line 5 is gone")


def test_status_and_metrics_carry_the_ledger(rig: Rig) -> None:
    """A consumer can check it: triggers are the sum of the others."""
    judge(rig.journal, 1).wait(5)
    ledger = rig.face.status().ledger

    assert ledger == {"triggers": 1, "ok": 1, "defect": 0, "review": 0, "error": 0, "pending": 0, "refused": 0}
    assert rig.face.metrics().ledger == ledger


def test_a_board_that_is_slowed_down_is_told_once_and_once_that_it_is_not(rig: Rig) -> None:
    """Between parts, every few seconds; the metrics say what and how hot."""
    rig.face.idle()
    (rig.root / FLAGS).write_text("4\n")
    rig.face.idle()
    too_soon = names(rig.journal)
    for _ in range(2):
        rig.now_s += LOOK_S
        rig.face.idle()
    metrics = rig.face.metrics()
    (rig.root / FLAGS).write_text("0\n")
    rig.now_s += LOOK_S
    rig.face.idle()

    assert too_soon == []
    assert names(rig.journal) == ["throttled", "throttled_no_more"]
    assert metrics.throttled == ("throttled",)
    assert metrics.temperature_c == 84.2
    assert rig.face.metrics().throttled == ()


def test_a_counter_that_rises_is_a_slow_down_too(tmp_path: Path) -> None:
    """A PC tells heat only by how often it had to slow down."""
    counter = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    counter.parent.mkdir(parents=True)
    told: list[tuple[str, ...]] = []
    now = 0.0
    throttling = Throttling(Board(tmp_path), told.append, clock=lambda: now)
    for count in (7, 9, 9):
        counter.write_text(f"{count}\n")
        throttling.look()
        now += LOOK_S

    assert told == [("the processor slowed down against heat",), ()]


def test_an_engine_that_changed_stops_the_line_only_where_that_is_wanted(rig: Rig) -> None:
    """Degrade is the default."""
    stop = threading.Event()
    rig.face.engine_changed("slower than accepted", False, stop=stop)
    degraded = rig.face.status()
    rig.face.engine_changed(None, False, stop=stop)

    assert (degraded.state, degraded.reason) == ("degraded", "slower than accepted")
    assert not stop.is_set()
    assert rig.face.stopped is None
    assert names(rig.journal) == ["engine_degraded", "engine_as_accepted"]
