"""Agent and broker are killed at random moments, many times over; no part is lost and none is judged twice."""

from __future__ import annotations

import collections
import json
import random
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.journal import Journal
from tests.kit.broker import Mosquitto, free_port
from tests.kit.commands import run_command
from tests.kit.contract import breaches
from tests.kit.line_plc import LinePlc
from tests.kit.station import ROOT, AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

PARTS = 2_000
KILLS = 24

# What a plant sets when it wants messages to outlive its broker: sessions and queues on disk after every change.
LASTING = (
    "persistence true",
    "autosave_on_changes true",
    "autosave_interval 1",
    "max_queued_messages 100000",
)


class Scada:
    """A subscriber with a lasting session that files each verdict under its record number."""

    def __init__(self, port: int) -> None:
        self.by_rec: dict[int, set[str]] = collections.defaultdict(set)
        self.received = 0
        self.breaches: list[str] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="scada", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{ROOT}/verdict", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._file
        self._client.connect_async("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        assert self._subscribed.wait(20)

    def _file(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        verdict = json.loads(message.payload)
        self.breaches += breaches(message.topic, bytes(message.payload), None, ())
        self.received += 1
        self.by_rec[verdict["rec"]].add(verdict["part"])

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        assert self.breaches == []


@pytest.mark.mosquitto
@pytest.mark.slow
def test_nothing_is_lost_and_nothing_judged_twice_when_agent_and_broker_are_killed(tmp_path: Path) -> None:
    """2,000 parts: one verdict each in the journal and, once repeats are removed by `rec`, at the subscriber."""
    dice = random.Random(3)
    names = make_parts(tmp_path / "parts", PARTS, side_px=16)
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(tmp_path, (*LASTING, f"persistence_location {tmp_path / 'broker'}/")).start()
    scada = Scada(broker.port)
    config = make_station(tmp_path, port=broker.port, camera={"rate_hz": 60}, journal={"evidence": {"keep": "none"}})
    killed = 0
    try:
        while True:
            with AgentProcess(config) as agent:
                for _ in range(dice.randint(1, 3)):
                    threading.Event().wait(dice.uniform(0.1, 0.9))  # the moment of the kill is the thing tested
                    if killed < KILLS and dice.random() < 0.5:
                        broker.kill()
                        killed += 1
                        threading.Event().wait(dice.uniform(0, 0.5))
                        broker.start()
                if killed < KILLS:
                    threading.Event().wait(dice.uniform(0.3, 1.2))
                    agent.kill()
                    killed += 1
                else:
                    assert agent.wait() == 0, agent.log()
                    break
        wait_until(lambda: len(scada.by_rec) >= PARTS, 60, what=f"{len(scada.by_rec)} of {PARTS} verdicts")
    finally:
        scada.close()
        broker.stop()

    with Journal.open_readonly(tmp_path / "state") as journal:
        recorded = {v.rec: v.part for v in journal.read()}
        stats = journal.stats()
    assert sorted(recorded) == list(range(1, PARTS + 1))
    assert sorted(recorded.values()) == names
    assert stats.pending == 0
    assert {rec: {part} for rec, part in recorded.items()} == dict(scada.by_rec)


@pytest.mark.slow
def test_what_the_plc_heard_stays_true_and_the_ledger_closes_whenever_the_agent_is_killed(tmp_path: Path) -> None:
    """With `result: durable` a result on the fast line is on the disk; parts cut short are errors at the next start."""
    dice, port = random.Random(4), free_port()
    make_parts(tmp_path / "parts", 4)
    config = make_station(
        tmp_path,
        port=None,
        camera={"loop": True, "resume": False},
        trigger={"kind": "tcp", "port": port, "waiting": 3},
        outputs={"tcp": {"port": port}},
        line={"result": "durable", "ahead": 1},
    )
    heard: dict[str, str] = {}
    for start in range(8):
        with AgentProcess(config) as agent, LinePlc(port) as plc:
            for number in range(dice.randint(20, 120)):
                plc.trigger(f"S{start}-{number}")
                if dice.random() < 0.7:
                    plc.wait_for("RESULT", number - 2)
            agent.kill()
        heard |= {line[2]: line[3] for line in plc.said("RESULT")}
        verified = run_command("agent.cli.journal", "verify", "--state", tmp_path / "state", "--json")
        assert verified.code == 0, verified.out
    with AgentProcess(config) as agent:
        with LinePlc(port):
            pass
        assert agent.terminate() == 0, agent.log()

    with Journal.open_readonly(tmp_path / "state") as journal:
        recorded = {stored.part: json.loads(stored.body)["decision"] for stored in journal.read()}
        ledger, faults = journal.ledger(), journal.ledger_faults()
    assert len(heard) > 100
    assert {part: recorded.get(part) for part, decision in heard.items() if decision != "error"} == {
        part: decision for part, decision in heard.items() if decision != "error"
    }
    assert (ledger.pending, ledger.closes, faults) == (0, True, [])
