"""A Sparkplug host application of the tests: it decodes with Eclipse Tahu's `sparkplug-payload` and keeps the rules."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.kit.waiting import wait_until

__all__ = ["Heard", "SparkplugHost", "TahuCodec", "why_no_tahu"]

FOLDER = Path(__file__).parent / "sparkplug"
INSTALL = "npm install --ignore-scripts --prefix tests/kit/sparkplug"


def why_no_tahu() -> str:
    """Why its decoder can't run here; empty where it can."""
    if shutil.which("node") is None:
        return "needs Node.js: apt install nodejs npm"
    if not (FOLDER / "node_modules" / "sparkplug-payload").is_dir():
        return f"needs sparkplug-payload (EPL-2.0, tests only): {INSTALL}"
    return ""


class TahuCodec:
    """`sparkplug-payload` in a process of its own; a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def decode(self, data: bytes) -> dict[str, Any]:
        """A payload as that library reads it."""
        payload: dict[str, Any] = self._ask({"decode": base64.b64encode(data).decode()})["payload"]
        return payload

    def encode(self, payload: dict[str, Any]) -> bytes:
        """A payload as that library writes it."""
        return base64.b64decode(self._ask({"encode": payload})["bytes"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            assert self._process is not None
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "problem" not in answer, answer["problem"]
        return answer

    def __enter__(self) -> TahuCodec:  # noqa: PYI034 - Self needs Python 3.11
        self._process = subprocess.Popen(
            ["node", str(FOLDER / "codec.js")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One message.

    Attributes:
        kind: `NBIRTH` and so on.
        topic: complete.
        at: monotonic seconds.
        payload: as Tahu decoded it.
        values: by name, aliases resolved by the births.
        historical: all its metrics are.
    """

    kind: str
    topic: str
    at: float
    payload: dict[str, Any]
    values: dict[str, Any]
    historical: bool


class SparkplugHost:
    """Subscribes, decodes, keeps what it heard, and notes each broken rule; a context manager.

    Args:
        port: the broker's, on loopback.
        codec: Tahu's.
        host_id: tells its STATE under this name; empty tells none.

    Attributes:
        broken: rules that the node broke, in words.
        retained: messages that came retained, which were none of this session's.
    """

    def __init__(self, port: int, codec: TahuCodec, *, host_id: str = "") -> None:
        self._port, self._codec, self._host_id = port, codec, host_id
        self._lock = threading.Lock()
        self._heard: list[Heard] = []
        self._names: dict[int, tuple[str, str]] = {}
        self._expected: int | None = None
        self._bdseq: int | None = None
        self._device_born = False
        self.broken: list[str] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        if host_id:
            self._client.will_set(f"spBv1.0/STATE/{host_id}", self._state(False), qos=1, retain=True)
        self._client.on_connect = lambda client, *_: client.subscribe("spBv1.0/#", qos=1)
        self._client.on_subscribe = self._listens
        self._client.on_disconnect = self._lost
        self._client.on_message = self._received
        self._client.reconnect_delay_set(1, 1)

    def _listens(self, *_: Any) -> None:
        """A host tells that it is there once it can hear."""
        if self._host_id:
            self._client.publish(f"spBv1.0/STATE/{self._host_id}", self._state(online=True), qos=1, retain=True)
        self._subscribed.set()

    def _lost(self, *_: Any) -> None:
        """Who has lost the broker can't know of any node that it is alive."""
        with self._lock:
            self._expected = None

    @staticmethod
    def _state(online: bool, timestamp_ms: int | None = None) -> bytes:
        stamp = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        return json.dumps({"online": online, "timestamp": stamp}).encode()

    def tell_state(self, online: bool, timestamp_ms: int | None = None) -> None:
        """Publish STATE, retained, as a host does at its start and at its end."""
        topic = f"spBv1.0/STATE/{self._host_id}"
        self._client.publish(topic, self._state(online, timestamp_ms), qos=1, retain=True).wait_for_publish(20)

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish anything."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(20)

    def write(self, topic: str, *metrics: dict[str, Any]) -> None:
        """An NCMD or DCMD with these metrics, written by Tahu's encoder."""
        self.send(topic, self._codec.encode({"timestamp": time.time_ns() // 1_000_000, "metrics": list(metrics)}))

    def ask_rebirth(self, topic: str) -> None:
        """`Node Control/Rebirth` = true."""
        self.write(topic, {"name": "Node Control/Rebirth", "type": "Boolean", "value": True})

    @property
    def is_alive(self) -> bool:
        """The node has told its birth, and not its death."""
        with self._lock:
            return self._expected is not None

    def heard(self, *kinds: str) -> list[Heard]:
        """What came so far, in order."""
        with self._lock:
            return [message for message in self._heard if not kinds or message.kind in kinds]

    def records(self, *, historical: bool | None = None) -> list[int]:
        """Record numbers of parts in data, in the order in which they came."""
        found = [m for m in self.heard("DDATA") if "Part/Record" in m.values]
        return [m.values["Part/Record"] for m in found if historical is None or m.historical is historical]

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        """Wait, and show what came if it does not come true."""
        try:
            wait_until(condition, timeout_s, what=what)
        except AssertionError as error:
            last = [(m.kind, m.payload.get("seq"), dict(list(m.values.items())[:2])) for m in self.heard()[-6:]]
            raise AssertionError(f"{error}; the last of {len(self.heard())}: {last}; broken {self.broken}") from error

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._take(message)
        except Exception as error:  # an exception here would end paho's thread, and the test only wait
            self.broken.append(f"{message.topic}: {error!r}")

    def _take(self, message: mqtt.MQTTMessage) -> None:
        kind = message.topic.split("/")[2] if not message.topic.startswith("spBv1.0/STATE/") else "STATE"
        if kind in ("STATE", "NCMD", "DCMD"):
            return
        payload = self._codec.decode(bytes(message.payload))
        metrics = payload.get("metrics", [])
        with self._lock:
            qos = 1 if kind == "NDEATH" else 0
            self._rule(message.qos == qos and not message.retain, f"{kind}: QoS {message.qos}, retain {message.retain}")
            rule = {"NBIRTH": self._nbirth, "DBIRTH": self._dbirth, "NDEATH": self._ndeath}.get(kind, self._data)
            rule(kind, payload, metrics)
            self._heard.append(
                Heard(
                    kind=kind, topic=message.topic, at=time.monotonic(), payload=payload,
                    values={self._name_of(metric): metric.get("value") for metric in metrics},
                    historical=bool(metrics) and all(metric.get("isHistorical") for metric in metrics),
                )
            )  # fmt: skip

    def _rule(self, holds: object, words: str) -> None:
        if not holds:
            self.broken.append(words)

    def _name_of(self, metric: dict[str, Any]) -> str:
        known = self._names.get(metric.get("alias", -1), ("", ""))
        return str(metric.get("name") or known[0])

    def _nbirth(self, kind: str, payload: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        self._names, self._device_born = {}, False
        found = {metric.get("name"): metric for metric in metrics}
        bdseq, rebirth = found.get("bdSeq", {}), found.get("Node Control/Rebirth", {})
        self._rule(payload.get("seq") == 0, f"NBIRTH: seq {payload.get('seq')}")
        self._rule(bdseq.get("type") == "Int64" and 0 <= bdseq.get("value", -1) <= 255, f"NBIRTH: bdSeq {bdseq}")
        self._rule(rebirth.get("type") == "Boolean" and rebirth.get("value") is False, f"NBIRTH: rebirth {rebirth}")
        self._rule("alias" not in rebirth, "NBIRTH: the rebirth has an alias")
        self._bdseq, self._expected = bdseq.get("value"), 1
        self._learn(kind, payload, metrics)

    def _dbirth(self, kind: str, payload: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        self._count(kind, payload)
        self._rule(not self._device_born, "DBIRTH: a second one")
        self._device_born = True
        self._learn(kind, payload, metrics)

    def _learn(self, kind: str, payload: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        self._rule(payload.get("timestamp"), f"{kind}: no timestamp")
        for metric in metrics:
            name, alias = metric.get("name"), metric.get("alias")
            self._rule(name and metric.get("type") and metric.get("timestamp"), f"{kind}: incomplete {metric}")
            self._rule("value" in metric, f"{kind}: no value {metric}")
            if alias is not None:
                self._rule(alias not in self._names, f"{kind}: alias {alias} again")
                self._names[alias] = (str(name), str(metric.get("type")))

    def _data(self, kind: str, payload: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        self._count(kind, payload)
        self._rule(kind != "DDATA" or self._device_born, "DDATA: before the DBIRTH")
        self._rule(payload.get("timestamp") and metrics, f"{kind}: no timestamp, or empty")
        for metric in metrics:
            name, datatype = self._names.get(metric.get("alias", -1), ("", ""))
            self._rule(name and not metric.get("name"), f"{kind}: no alias of the births: {metric}")
            self._rule(metric.get("type") == datatype, f"{kind}: {name} is {metric.get('type')}, was {datatype}")

    def _count(self, kind: str, payload: dict[str, Any]) -> None:
        self._rule(self._expected is not None, f"{kind}: before a birth, or after the death")
        self._rule(payload.get("seq") == self._expected, f"{kind}: seq {payload.get('seq')}, expected {self._expected}")
        self._expected = None if self._expected is None else (self._expected + 1) % 256

    def _ndeath(self, _kind: str, payload: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        self._rule(payload.get("seq") is None, f"NDEATH: has seq {payload.get('seq')}")
        self._rule([metric.get("name") for metric in metrics] == ["bdSeq"], f"NDEATH: {metrics}")
        if self._expected is not None:
            self._rule(metrics[0].get("value") == self._bdseq, f"NDEATH: of {metrics[0]}, born was {self._bdseq}")
            self._expected = None

    def __enter__(self) -> SparkplugHost:  # noqa: PYI034 - Self needs Python 3.11
        self._client.connect_async("127.0.0.1", self._port, keepalive=10)
        self._client.loop_start()
        assert self._subscribed.wait(30), "no subscription"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        if kind is None:
            assert not self.broken, f"{len(self.broken)} broken rules, the first: {self.broken[:5]}"
