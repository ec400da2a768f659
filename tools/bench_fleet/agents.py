"""Many simulated agents in one process: each its own connection, client id, will, retained status, and verdicts.

usage: agents.py PORT FIRST COUNT RATE_HZ SECONDS; prints "ready", waits for a line, then prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import random
import selectors
import sys
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from agent.messages import ImageRef, Milliseconds, StatusMessage, VerdictMessage, rfc3339, to_json  # noqa: E402

ACK_S = 60.0


def station_name(number: int) -> str:
    """Five levels: 4 plants, 5 areas, 10 lines, 5 cameras."""
    camera, line, area = number % 5, number // 5 % 10, number // 50 % 5
    return f"acme/plant{number // 250 + 1}/area{area + 1}/line{line + 1}/cam{camera + 1}"


class Agent:
    """One connection, driven from outside, as the real publisher drives its own."""

    def __init__(self, number: int) -> None:
        self.station = station_name(number)
        self.rec = 0
        self.acked = 0
        self.ready = False
        self.lost_connections = 0
        self._next = _verdict(self.station)
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.station.replace("/", "-"),
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        self.client.will_set(f"{self.station}/status", _status(self.station, "offline"), qos=1, retain=True)
        self.client.on_connect = self._on_connect
        self.client.on_publish = self._on_publish
        self.client.on_disconnect = self._on_disconnect

    def _on_connect(self, *_: Any) -> None:
        self.ready = True

    def _on_publish(self, *_: Any) -> None:
        self.acked += 1

    def _on_disconnect(self, *_: Any) -> None:
        self.lost_connections += 1

    def tell_status(self) -> None:
        """The birth: retained, so it counts as one more acknowledgement."""
        self.acked -= 1
        self.client.publish(f"{self.station}/status", _status(self.station, "online"), qos=1, retain=True)

    def tell_verdict(self) -> int:
        """One verdict with the current moment; gives its size in bytes."""
        self.rec += 1
        now_ms = time.time_ns() // 1_000_000
        message = dataclasses.replace(
            self._next, rec=self.rec, time=rfc3339(now_ms), time_ms=now_ms, mono_ns=time.monotonic_ns()
        )
        payload = to_json(message)
        self.client.publish(f"{self.station}/verdict", payload, qos=1)
        return len(payload)


def _verdict(station: str) -> VerdictMessage:
    return VerdictMessage(
        rec=1, boot="00000000", id="019dd000-0000-7000-8000-000000000000", part="SN-00412", station=station,
        time=rfc3339(0), time_ms=0, mono_ns=0, clock="synced", decision="defect", code=2, quality=192,
        reason="scratch 0.91: defect score 0.97 reaches the limit 0.50", class_="scratch", score=0.97, threshold=0.5,
        uncertainty=0.1, recipe="cap-blue", bundle="cap-blue-1.4.0", bundle_digest="0" * 64, engine="simulated",
        n_findings=0, findings=(),
        image=ImageRef(id="019dd000", sha256="0" * 64, bytes=48_213, topic=f"{station}/image/019dd000"),
        ms=Milliseconds(capture=4.0, preprocess=1.0, infer=5.0, decide=0.1, total=10.3),
    )  # fmt: skip


def _status(station: str, state: Any) -> bytes:
    return to_json(
        StatusMessage(
            station=station,
            state=state,
            reason="simulated",
            since=rfc3339(0),
            time=rfc3339(0),
            boot="00000000",
            version="simulated",
            bundle=None,
            bundle_digest=None,
            engine=None,
            counters={},
        )
    )


class Fleet:
    """All agents of this process on one selector."""

    def __init__(self, port: int, first: int, count: int) -> None:
        self.agents = [Agent(first + index) for index in range(count)]
        self._selector = selectors.DefaultSelector()
        self._served_at = time.monotonic()
        for agent in self.agents:
            agent.client.connect("127.0.0.1", port, keepalive=60)
            sock: Any = agent.client.socket()
            self._selector.register(sock, selectors.EVENT_READ, agent)
            self.serve(0.0)
        self.serve_until(lambda: all(agent.ready for agent in self.agents), ACK_S)

    def serve(self, timeout_s: float) -> None:
        """Read what came, and keep connections alive."""
        for key, _ in self._selector.select(timeout_s):
            agent: Agent = key.data
            if agent.client.loop_read() != mqtt.MQTT_ERR_SUCCESS or agent.client.socket() is None:
                self._selector.unregister(key.fileobj)
            while agent.client.want_write() and agent.client.loop_write() == mqtt.MQTT_ERR_SUCCESS:
                pass
        if time.monotonic() - self._served_at > 5.0:
            self._served_at = time.monotonic()
            for agent in self.agents:
                agent.client.loop_misc()

    def serve_until(self, condition: Any, timeout_s: float) -> None:
        """Serve until a condition holds or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.serve(0.05)

    def judge(self, rate_hz: float, seconds: float) -> dict[str, Any]:
        """Every agent publishes at its rate, its phase by chance; then all acknowledgements are awaited."""
        for agent in self.agents:
            agent.tell_status()
        begun = time.monotonic()
        dice = random.Random(self.agents[0].station)
        due = [(begun + dice.random() / rate_hz, index) for index in range(len(self.agents))]
        heapq.heapify(due)
        late_s, sizes = 0.0, 0
        while due[0][0] < begun + seconds:
            at, index = due[0]
            wait = at - time.monotonic()
            if wait > 0:
                self.serve(wait)
                continue
            late_s = max(late_s, -wait)
            sizes += self.agents[index].tell_verdict()
            heapq.heapreplace(due, (at + 1.0 / rate_hz, index))
            self.serve(0.0)
        took = time.monotonic() - begun
        self.serve_until(lambda: all(agent.acked >= agent.rec for agent in self.agents), ACK_S)
        sent = sum(agent.rec for agent in self.agents)
        return {
            "sent": sent,
            "acked": sum(agent.acked for agent in self.agents),
            "bytes": sizes,
            "seconds": took,
            "late_s": late_s,
            "lost_connections": sum(agent.lost_connections for agent in self.agents),
        }

    def leave(self) -> None:
        """Politely, so that no will is published."""
        for agent in self.agents:
            agent.client.disconnect()


def main() -> None:
    port, first, count = map(int, sys.argv[1:4])
    fleet = Fleet(port, first, count)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(fleet.judge(float(sys.argv[4]), float(sys.argv[5]))), flush=True)
    sys.stdin.readline()
    fleet.leave()


if __name__ == "__main__":
    main()
