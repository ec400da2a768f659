"""A whole agent beside a Sparkplug host: every part arrives, through kills of agent and broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.broker import Listener, Mosquitto
from tests.kit.sparkplug_host import SparkplugHost, TahuCodec, why_no_tahu
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.mosquitto, pytest.mark.skipif(bool(why_no_tahu()), reason=why_no_tahu())]

SPARKPLUG = {"metrics_s": 0.5, "history_rate_hz": 5_000.0, "primary_host_id": "scada"}
RECONNECT = {"reconnect_max_s": 0.3}


def test_each_part_reaches_the_host_and_the_json_consumer(tmp_path: Path) -> None:
    """200 parts, both views, the same records and decisions; a death at the end."""
    make_parts(tmp_path / "parts", 200)
    with Mosquitto(tmp_path) as broker, TahuCodec() as codec, Listener(broker.port, "acme/#") as consumer:
        config = make_station(tmp_path, port=broker.port, mqtt=RECONNECT, sparkplug=SPARKPLUG)
        with SparkplugHost(broker.port, codec, host_id="scada") as host, AgentProcess(config) as agent:
            assert agent.wait() == 0, agent.log()
            host.wait_for(lambda: host.heard("NDEATH"), "the death")
            shown = {
                m.values["Part/Record"]: m.values["Part/Decision"]
                for m in host.heard("DBIRTH", "DDATA")
                if m.values.get("Part/Record")
            }
        verdicts = consumer.wait_for(lambda ms: len(ms) >= 200, topic_end="/verdict")
    decided = {body["rec"]: body["decision"] for body in map(json.loads, (message.payload for message in verdicts))}
    left = json.loads((tmp_path / "state" / "sparkplug.json").read_text())

    owed = {rec for start, end in left["unsent"] for rec in range(start, end + 1)}
    owed |= set(range(left["last"] + 1, 201))
    assert shown.items() <= decided.items()
    assert shown.keys() | owed == decided.keys() == set(range(1, 201))


def test_kills_of_the_agent_and_of_the_broker_lose_no_part(tmp_path: Path) -> None:
    """What the host has after five kills of the agent and two of the broker is every part; sessions are told apart."""
    make_parts(tmp_path / "parts", 40)
    camera = {"loop": True, "resume": False, "rate_hz": 100}
    with Mosquitto(tmp_path) as broker, TahuCodec() as codec:
        config = make_station(tmp_path, port=broker.port, camera=camera, mqtt=RECONNECT, sparkplug=SPARKPLUG)
        with SparkplugHost(broker.port, codec, host_id="scada") as host:
            for turn in range(5):
                seen = len(host.heard("DDATA"))
                with AgentProcess(config) as agent:
                    host.wait_for(lambda n=seen: len(host.heard("DDATA")) > n + 30, "parts", 60)  # type: ignore[misc]
                    if turn in (1, 3):
                        broker.kill()
                        broker.start()
                        births = len(host.heard("NBIRTH"))
                        host.wait_for(lambda n=births: len(host.heard("NBIRTH")) > n, "births again", 60)  # type: ignore[misc]
                    agent.kill()
            with AgentProcess(config, ["--max-parts", "20"]) as agent:
                assert agent.wait() == 0, agent.log()
            with AgentProcess(config) as agent:
                host.wait_for(lambda: _all_but_the_newest(host), "every part", 60)
                agent.kill()
            wait_until(lambda: not host.is_alive, 30, what="the last death")
            numbers = [message.values["bdSeq"] for message in host.heard("NBIRTH")]

    assert numbers == sorted(set(numbers)), "each session has a number of its own"


def _all_but_the_newest(host: SparkplugHost) -> bool:
    """No gap below the newest record that came, once history is through."""
    records = set(host.records())
    owed = [m.values["Queue/Historical"] for m in host.heard("NBIRTH", "NDATA") if "Queue/Historical" in m.values]
    return bool(records) and owed[-1] == 0 and records == set(range(1, max(records) + 1))
