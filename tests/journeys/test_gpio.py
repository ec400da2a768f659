"""A PLC on electrical lines alone: it triggers by an edge, reads the result lines, and acknowledges by a line.

The whole agent runs in this process; the chip is the stand-in's, as no line of a kernel is here.
"""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.app import Summary, run_station
from agent.config import read_config
from agent.journal import Journal
from tests.kit.gpiod import Board, SimChip, installed
from tests.kit.station import make_parts, make_station
from tests.kit.waiting import wait_until

OUT = {"ok": 1, "not_ok": 2, "valid": 3, "ready": 4, "busy": 5, "alive": 6}
ACK, TRIGGER = 8, 17
PARTS, BROKEN = 20, 6


class Levels(NamedTuple):
    """What a voltmeter shows on the result lines."""

    ok: bool
    not_ok: bool
    valid: bool
    ready: bool
    busy: bool
    alive: bool


class Wires:
    """A machine's lines and the PLC's program on them.

    Attributes:
        seen: the levels after each change.
    """

    def __init__(self, board: Board) -> None:
        self.chip: SimChip = board.add_chip()
        self.seen: list[Levels] = []
        board.watch(lambda: self.seen.append(self.levels))

    @property
    def levels(self) -> Levels:
        return Levels(*(self.chip.level(number) for number in OUT.values()))

    def part(self) -> bool:
        """One part, as PLCs do it: ready, trigger, busy, valid, read, acknowledge, gone. Whether it is ok."""
        wait_until(lambda: self.levels.ready and self.levels.alive and not self.levels.valid, 60, what="ready")
        before = len(self.seen)
        self.chip.pulse(TRIGGER)
        wait_until(lambda: self.levels.valid, 60, what="valid")
        assert any(levels.busy for levels in self.seen[before:])
        read = self.levels
        assert read.ok != read.not_ok
        self.chip.drive(ACK, level=True)
        wait_until(lambda: not self.levels.valid, 60, what="valid off after the acknowledge")
        self.chip.drive(ACK, level=False)
        wait_until(lambda: not (self.levels.ok or self.levels.not_ok), 60, what="the result to go")
        return read.ok


@pytest.fixture
def wires() -> Iterator[Wires]:
    """On the stand-in's chip."""
    with installed() as board:
        yield Wires(board)


class Running:
    """The agent on a thread; a context manager that stops it."""

    def __init__(self, config: Path) -> None:
        self._config, self._stop = read_config(config), threading.Event()
        self.summary: Summary | None = None
        self._thread = threading.Thread(target=self._run, name="agent")

    def _run(self) -> None:
        self.summary = run_station(self._config, stop=self._stop)

    def __enter__(self) -> Running:  # noqa: PYI034 - Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def station(folder: Path) -> Path:
    """Twenty pictures for ever, one of which is no picture."""
    names = make_parts(folder / "parts", PARTS)
    (folder / "parts" / names[BROKEN]).write_bytes(b"no picture")
    return make_station(
        folder,
        port=None,
        camera={"loop": True, "resume": False},
        trigger={"kind": "gpio", "line": TRIGGER, "debounce_us": 0},
        outputs={"gpio": {**OUT, "ack": ACK, "hold_ms": 60_000, "setup_ms": 0.2, "gap_ms": 0.2}},
    )


def test_twenty_parts_by_wires_alone(wires: Wires, tmp_path: Path) -> None:
    """Each edge has one result on the lines, the journal's own; what is no picture is not ok; none is ok between."""
    config = station(tmp_path)
    with Running(config) as running:
        read = [wires.part() for _ in range(PARTS)]
        wait_until(lambda: wires.levels.ready, 60)
    with Journal.open_readonly(tmp_path / "state") as journal:
        decisions = [json.loads(stored.body)["decision"] for stored in journal.read()]
        ledger = journal.ledger()
    shown = [after for before, after in zip(wires.seen, wires.seen[1:], strict=False) if after.valid > before.valid]

    assert running.summary is not None
    assert running.summary.judged == PARTS
    assert decisions[BROKEN] == "error"
    assert collections.Counter(decisions)["ok"] > 2
    assert read == [decision == "ok" for decision in decisions]
    assert [levels.ok for levels in shown] == read
    assert (ledger.triggers, ledger.pending, ledger.closes) == (PARTS, 0, True)
    assert not any(levels.ok and levels.not_ok for levels in wires.seen)
    assert wires.levels == Levels(ok=False, not_ok=False, valid=False, ready=False, busy=False, alive=False)


def test_nothing_reads_ok_from_the_start_on_and_after_the_end(wires: Wires, tmp_path: Path) -> None:
    """A process that died has left `ok` and `valid` on: both go at the start, and come for a part only."""
    for name in ("ok", "valid", "ready"):
        wires.chip.driven[OUT[name]] = True
    wires.seen.clear()
    with Running(station(tmp_path)):
        wait_until(lambda: wires.levels.ready and wires.levels.alive, 60, what="ready and alive")
        before_any = list(wires.seen)
        judged = wires.part()
        wait_until(lambda: wires.levels.ready, 60)
        count = len(wires.seen)
    went = next(number for number, levels in enumerate(before_any) if not (levels.ok or levels.valid or levels.ready))

    assert judged
    assert not any(levels.ok or levels.valid for levels in before_any[went:])
    assert not any(levels.ok or levels.valid for levels in wires.seen[count:])
    assert wires.levels == Levels(ok=False, not_ok=False, valid=False, ready=False, busy=False, alive=False)
