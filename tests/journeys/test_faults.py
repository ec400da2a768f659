"""Triggers at random moments, a camera, an engine and a broker that fail at random: every part is accounted for.

Everything is real but the camera and the PLC: queue, reader, guard, engine, policy, fast path, journal, publisher,
mosquitto. Nothing waits for a clock but what the faults themselves are (a frame that does not come in time).
"""

from __future__ import annotations

import collections
import json
import logging
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.cameras.guard import FrameGuard, GuardedCamera
from agent.cameras.triggered import Moment, TriggeredCamera
from agent.config import EvidenceConfig, LineConfig, MqttConfig
from agent.messages import MetricsMessage, StatusMessage, rfc3339
from agent.publisher import Publisher
from tests.kit.broker import Mosquitto
from tests.kit.chaos import Book, ChaosEngine, Plant, Tap
from tests.kit.contract import breaches
from tests.kit.lines import HandTrigger, RealLine
from tests.kit.live import LiveCamera
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.verdicts import STATION
from tests.kit.waiting import wait_until

SEED = 9
DEADLINE_MS = 25.0
PATIENCE_MS = 8.0
WAITING = 8

pytestmark = pytest.mark.mosquitto


@pytest.mark.parametrize(
    ("triggers", "ahead"),
    [
        (3_000, 1),
        pytest.param(100_000, 1, marks=[pytest.mark.faults, pytest.mark.slow]),
    ],
)
def test_every_trigger_is_answered_once_in_time_or_marked_and_never_ok_by_a_guess(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, triggers: int, ahead: int
) -> None:
    """The must-show: exactly one verdict each, none late without a mark, none ok without a fresh frame of its own."""
    caplog.set_level(logging.CRITICAL, "agent")
    live, trigger, book = LiveCamera(), HandTrigger(waiting=WAITING), Book()
    tap = Tap(TriggeredCamera(GuardedCamera(live, FrameGuard()), Moment(timeout_ms=PATIENCE_MS)))
    plant = Plant(live, trigger.queue, seed=SEED)
    line = RealLine(
        tmp_path,
        tap,
        trigger=trigger,
        line=LineConfig(deadline_ms=DEADLINE_MS, ahead=ahead),
        engine=ChaosEngine(SEED, slow_s=1.2 * DEADLINE_MS / 1000),
        plc=book,
        journal={"evidence": EvidenceConfig(keep="none")},
    )
    with Mosquitto(tmp_path, ("max_queued_messages 0", "max_inflight_messages 0")) as broker, line:
        scada = Scada(broker.port, tmp_path / "scada.jsonl")
        with TcpProxy(broker.port) as network, scada:
            publisher = publisher_of(line, network.port)
            line.start()
            dice, burst = random.Random(SEED), 0
            for number in range(1, triggers + 1):
                plant.pull()
                if dice.random() < 20 / triggers:
                    network.cut()
                burst = burst - 1 if burst else 40 * (dice.random() < 0.005)
                if not burst:
                    book.wait_for(number - dice.randint(0, 6))
            plant.mend()
            line.end()
            line.journal.flush()
            wait_until(lambda: line.journal.outbox.depth() == 0, 120, what="an empty outbox")
            publisher.stop(5)
            verdicts = [json.loads(stored.body) for stored in line.journal.read()]
            keys = sequences(line)
            stats = line.journal.stats()
            scada.wait_for(triggers)

    # exactly one verdict each, in the record, on the fast line, and at the plant
    assert sorted(keys.values()) == list(range(1, triggers + 1))
    assert stats.ledger.triggers == triggers
    assert (stats.ledger.pending, stats.ledger.closes) == (0, True)
    assert {sequence: len(told) for sequence, told in book.told.items()} == dict.fromkeys(keys.values(), 1)
    assert scada.heard == {verdict["rec"]: {verdict["decision"]} for verdict in verdicts}
    judged = {keys[v["rec"]]: v for v in verdicts if v["decision"] != "error"}
    assert_of_their_own_frames(judged, tap, plant)
    assert_in_time_or_marked({keys[verdict["rec"]]: verdict for verdict in verdicts}, book)
    # what was thrown at it really was
    reasons = collections.Counter(fault_of(verdict["reason"]) for verdict in verdicts if verdict["decision"] == "error")
    wanted = {"frozen", "black", "torn", "size", "unplugged", "no frame", "refused", "over-exposed", "again", "engine"}
    assert wanted <= reasons.keys(), reasons
    assert network.connections > 1
    assert any(verdict["late_ms"] is not None for verdict in verdicts)
    assert len(judged) > triggers // 2


def assert_of_their_own_frames(judged: dict[int, dict[str, Any]], tap: Tap, plant: Plant) -> None:
    """None ok, or anything but error, without a sound frame, exposed after its trigger, that no other part had."""
    used = [tap.frames[sequence][0] for sequence in judged]
    assert len(set(used)) == len(used)
    for sequence, verdict in judged.items():
        number, triggered_ns = tap.frames[sequence]
        shown = plant.shown[number]
        assert shown.is_sound
        assert shown.exposed_ns >= triggered_ns
        assert verdict["decision"] == ("ok" if shown.is_good else "defect")


def assert_in_time_or_marked(verdicts: dict[int, dict[str, Any]], book: Book) -> None:
    """None late without a mark, and what is marked was an error on the fast line at its deadline."""
    for sequence, verdict in verdicts.items():
        ((told, reason),) = book.told[sequence]
        if verdict["late_ms"] is None:
            assert verdict["ms"]["total"] <= DEADLINE_MS or verdict["reason"].startswith("trigger: ")
            assert told == verdict["decision"]
        else:
            assert (told, reason.split(":")[0]) in {("error", "deadline"), ("error", "trigger")}


def fault_of(reason: str) -> str:
    words = {
        "frozen": "frozen",
        "black": "black",
        "torn": "torn",
        "expected 32 x 32": "size",
        "unplugged": "unplugged",
        "no frame within": "no frame",
        "refused": "refused",
        "over-exposed": "over-exposed",
        "again": "again",
        "out of memory": "engine",
    }
    return next((fault for word, fault in words.items() if word in reason), reason)


def sequences(line: RealLine) -> dict[int, int]:
    """Record number to the number of its trigger."""
    reader = line.journal._parts.reader
    return dict(reader._all("SELECT rec, trigger_sequence FROM verdicts"))


def publisher_of(line: RealLine, port: int) -> Publisher:
    """The agent's own, as fast as it can, through a network that is cut."""
    status = StatusMessage(
        station=STATION,
        state="online",
        reason="running",
        since=rfc3339(0),
        time=rfc3339(0),
        boot=line.journal.boot,
        version="test",
        bundle=None,
        bundle_digest=None,
        engine=None,
        counters={},
    )

    def metrics() -> MetricsMessage:
        raise AssertionError("metrics_s is 0")

    config = MqttConfig(port=port, backlog_rate_hz=100_000, metrics_s=0, reconnect_max_s=0.1, inflight=100)
    publisher = Publisher(
        config, line.journal.outbox, station=STATION, status=lambda: status, metrics=metrics,
        tell_event=line.journal.event,
    )  # fmt: skip
    publisher.start()
    return publisher


class Scada:
    """A subscriber in a process of its own, written in C, so that it costs the line nothing; a context manager."""

    def __init__(self, port: int, path: Path) -> None:
        self._path, self._port = path, port

    def _command(self, *arguments: str) -> list[str]:
        session = ["-i", "scada", "-c", "-q", "1", "-t", f"{STATION}/verdict"]
        return ["mosquitto_sub", "-p", str(self._port), *session, *arguments]

    @property
    def heard(self) -> dict[int, set[str]]:
        """Decisions by record number: more than one would be two verdicts."""
        found: dict[int, set[str]] = collections.defaultdict(set)
        for text in self._path.read_text().splitlines():
            message: dict[str, Any] = json.loads(text)
            found[message["rec"]].add(message["decision"])
        return dict(found)

    def wait_for(self, count: int) -> None:
        """Until it has heard so many different records."""
        wait_until(
            lambda: self._path.read_bytes().count(b"\n") >= count and len(self.heard) >= count,
            60,
            what=f"{count} verdicts at the plant",
        )

    def __enter__(self) -> Scada:  # noqa: PYI034 - Self needs Python 3.11
        subprocess.run(self._command("-E"), check=True, timeout=30)  # from here on the broker keeps them for us
        with self._path.open("wb") as out:
            self._process = subprocess.Popen(self._command(), stdout=out)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        whole = self._path.read_bytes().rpartition(b"\n")[0].splitlines()
        assert [b for line in whole for b in breaches(f"{STATION}/verdict", line, None, ())][:3] == []
