"""A PLC triggers over TCP and hears each result there, whatever the broker does; the plant hears the same over MQTT."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.journal import Journal
from tests.kit.broker import Listener, Mosquitto, free_port
from tests.kit.commands import run_command
from tests.kit.line_plc import LinePlc
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.tcp_proxy import TcpProxy

pytestmark = pytest.mark.mosquitto

DECISIONS = ("ok", "defect", "defect")
"""Of `make_parts`, in turn; the fourth one is undecided, and a defect too."""


@contextlib.contextmanager
def station(folder: Path, *, broker: int, deadline_ms: float = 60_000) -> Iterator[tuple[AgentProcess, LinePlc]]:
    """An agent on pictures of a folder, for ever, one per trigger; and the PLC that pulls it."""
    port = free_port()
    make_parts(folder / "parts", 4)
    config = make_station(
        folder,
        port=broker,
        camera={"loop": True, "resume": False},
        trigger={"kind": "tcp", "port": port, "waiting": 50},
        outputs={"tcp": {"port": port}},
        line={"deadline_ms": deadline_ms},
        mqtt={"reconnect_max_s": 0.2, "backlog_rate_hz": 10_000.0},
    )
    with AgentProcess(config) as agent, LinePlc(port) as plc:
        yield agent, plc


def verdicts(listener: Listener) -> list[dict[str, Any]]:
    return [json.loads(message.payload) for message in listener.messages("/verdict")]


def test_a_plc_triggers_and_hears_what_the_plant_hears(tmp_path: Path) -> None:
    """Trigger with a part id in, RESULT out on the same connection, the same verdict over MQTT under the same id."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with station(tmp_path, broker=broker.port) as (agent, plc):
            for number, part in enumerate(("4011", "4012", "4013"), start=1):
                plc.trigger(part)
                plc.wait_for("RESULT", number)
            results = plc.said("RESULT")
            plant.wait_for(lambda ms: len(ms) >= 3, topic_end="/verdict")
            code = agent.terminate()
        told = verdicts(plant)
        status = [json.loads(message.payload) for message in plant.messages("/status")]

    assert code == 0, agent.log()
    assert [line[1:4] for line in plc.said("PART")] == [["1", "4011"], ["2", "4012"], ["3", "4013"]]
    assert [(line[2], line[3]) for line in results] == list(zip(("4011", "4012", "4013"), DECISIONS, strict=True))
    assert [(v["part"], v["decision"]) for v in told] == [(line[2], line[3]) for line in results]
    assert {v["late_ms"] for v in told} == {None}
    ledger = status[-1]["ledger"]
    assert ledger["triggers"] == 3 == sum(ledger[name] for name in ("ok", "defect", "review", "error", "pending"))


@pytest.mark.slow
def test_a_broker_that_is_away_for_five_seconds_costs_no_part_and_no_result(tmp_path: Path) -> None:
    """The must-show: 20 parts per second, the network cut for 5 s: 0 lost, 0 late on the fast line."""
    parts = [f"P{number}" for number in range(1, 161)]
    pace = threading.Event()
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant, TcpProxy(broker.port) as network:
        with station(tmp_path, broker=network.port, deadline_ms=2_000) as (agent, plc):
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/status")
            for number, part in enumerate(parts):
                if number == 30:
                    network.refuse()
                    network.cut()
                if number == 130:
                    answered, heard = len(plc.said("RESULT")), len({v["rec"] for v in verdicts(plant)})
                    network.ok()
                plc.trigger(part)
                pace.wait(0.05)  # 20 parts per second is what is tested
            results = plc.wait_for("RESULT", len(parts))
            plant.wait_for(lambda ms: len({json.loads(m.payload)["rec"] for m in ms}) >= 160, topic_end="/verdict")
            assert agent.terminate() == 0, agent.log()
        told = {v["rec"]: v for v in verdicts(plant)}
        with Journal.open_readonly(tmp_path / "state") as journal:
            unsent = journal.stats().outbox
        verified = run_command("agent.cli.journal", "verify", "--state", tmp_path / "state")

    assert [line[2] for line in results] == parts
    assert not [line for line in results if line[3] == "error"]
    assert heard <= 30 < answered
    assert [told[rec]["part"] for rec in sorted(told)] == parts
    assert {v["late_ms"] for v in told.values()} == {None}
    assert unsent == 0
    assert verified.code == 0, verified.out


def test_a_clock_triggers_until_the_pictures_end(tmp_path: Path) -> None:
    """One picture per tick; the line ends with its source, and every tick has its verdict."""
    make_parts(tmp_path / "parts", 10)
    config = make_station(
        tmp_path,
        port=None,
        trigger={"kind": "interval", "period_ms": 20, "part_prefix": "cap"},
        line={"pin_cores": [min(os.sched_getaffinity(0))]},
    )
    with AgentProcess(config) as agent:
        assert agent.wait() == 0, agent.log()
    with Journal.open_readonly(tmp_path / "state") as journal:
        judged = [stored for stored in journal.read() if stored.code != 4]
        ledger, faults = journal.ledger(), journal.ledger_faults()

    assert len(judged) == 10
    assert all(stored.part.startswith("cap-") for stored in judged)
    assert (ledger.pending, ledger.closes, faults) == (0, True, [])
