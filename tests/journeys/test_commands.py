"""Parts that the plant triggers over MQTT: one verdict per command, whatever is sent beside."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.kit.broker import Listener, Mosquitto
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.mosquitto


def run(folder: Path, broker: int, **keys: Any) -> AgentProcess:
    make_parts(folder / "parts", 4)
    config = make_station(
        folder,
        port=broker,
        camera={"loop": True, "resume": False},
        trigger={"kind": "mqtt", "waiting": 500},
        mqtt={"reconnect_max_s": 0.2, **keys},
    )
    return AgentProcess(config)


class Plant:
    """Sends commands, with MQTT 5 or 3.1.1."""

    def __init__(self, port: int, root: str) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._root = root

    def send(self, name: str, payload: object, *, retain: bool = False) -> None:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._client.publish(f"{self._root}/cmd/{name}", raw, qos=1, retain=retain).wait_for_publish(20)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_each_command_is_one_part_and_nonsense_is_none(tmp_path: Path, protocol: str) -> None:
    """200 parts; each id once more; retained, stale and broken ones between them."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with run(tmp_path, broker.port, protocol=protocol):
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/status")
            root = plant.messages("/status")[0].topic.removesuffix("/status")
            sender = Plant(broker.port, root)
            for number in range(200):
                command = {"part": f"P{number}", "id": f"c{number}", "reply_to": "plc"}
                sender.send("trigger", command)
                sender.send("trigger", command)
                if number % 20 == 0:
                    sender.send("trigger", {"part": "old", "time_ms": 1_000})
                    sender.send("trigger", b"\xff\x00 not JSON")
                plant.wait_for(lambda ms, n=number: len(ms) >= n + 1, topic_end="/verdict")  # type: ignore[misc]
            plant.wait_for(lambda ms: len(ms) >= 400, topic_end="/reply/plc")
            sender.close()
        verdicts = [json.loads(message.payload) for message in plant.messages("/verdict")]
        replies = [json.loads(message.payload) for message in plant.messages("/reply/plc")]
        events = [json.loads(message.payload) for message in plant.messages("/event")]

    assert [verdict["part"] for verdict in verdicts] == [f"P{number}" for number in range(200)]
    assert {verdict["decision"] for verdict in verdicts} <= {"ok", "defect", "review"}
    assert [reply["part"] for reply in replies] == [f"P{number}" for number in range(200) for _ in range(2)]
    assert replies[0::2] == replies[1::2]
    assert [event["event"] for event in events].count("command_refused") == 1, "the second within a minute is not told"


def test_a_trigger_from_before_a_standstill_gets_no_picture_of_after_it(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT, as a machine that hangs: the part of then is an error, the next one is judged."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with run(tmp_path, broker.port) as agent:
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/status")
            root = plant.messages("/status")[0].topic.removesuffix("/status")
            sender = Plant(broker.port, root)
            sender.send("ping", {"id": "1", "reply_to": "plc"})
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/reply/plc")
            os.kill(agent.process.pid, signal.SIGSTOP)
            sender.send("trigger", {"part": "then", "id": "2", "reply_to": "plc"})
            threading.Event().wait(2.5)  # it is the time that matters here
            os.kill(agent.process.pid, signal.SIGCONT)
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/verdict")
            sender.send("trigger", {"part": "now"})
            plant.wait_for(lambda ms: len(ms) >= 2, topic_end="/verdict")
            sender.close()
        verdicts = [json.loads(message.payload) for message in plant.messages("/verdict")]

    assert [(v["part"], v["decision"] == "error") for v in verdicts] == [("then", True), ("now", False)]
    assert "lay unread" in verdicts[0]["reason"]


def test_a_retained_command_makes_no_part(tmp_path: Path) -> None:
    """It lies there since the night shift: at the next start it must not trigger anything."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with run(tmp_path, broker.port, protocol="3.1.1"):
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/status")
            root = plant.messages("/status")[0].topic.removesuffix("/status")
        sender = Plant(broker.port, root)
        sender.send("trigger", {"part": "ghost"}, retain=True)
        with run(tmp_path, broker.port, protocol="3.1.1"):
            plant.wait_for(
                lambda ms: any(json.loads(m.payload)["event"] == "command_refused" for m in ms), topic_end="/event"
            )
            sender.send("trigger", {"part": "real"})
            plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/verdict")
        sender.close()
        parts = [json.loads(message.payload)["part"] for message in plant.messages("/verdict")]

    assert parts == ["real"]


def logged(agent: AgentProcess, event: str) -> list[str]:
    """Why, as often as it stands in the agent's log."""
    lines = [json.loads(line) for line in agent.log().splitlines()]
    return [line.get("reason", "") for line in lines if line["event"] == event]


def test_a_start_is_no_alarm_and_a_broker_that_is_gone_is_one(tmp_path: Path) -> None:
    """Without it no trigger comes: the PLC hears of it at once, SCADA afterwards."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant, run(tmp_path, broker.port) as agent:
        plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/status")
        root = plant.messages("/status")[0].topic.removesuffix("/status")
        sender = Plant(broker.port, root)
        sender.send("trigger", {"part": "A1"})
        plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/verdict")
        sender.close()
        at_start = logged(agent, "trigger_lost")
        broker.kill()
        wait_until(lambda: logged(agent, "trigger_lost"), 30)
        broker.start()
        wait_until(lambda: logged(agent, "trigger_found"), 30)

        assert at_start == []
        assert len(logged(agent, "trigger_lost")) == 1
        assert "no connection to the broker" in logged(agent, "trigger_lost")[0]
