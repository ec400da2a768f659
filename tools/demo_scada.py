"""The other end of the wire: a subscriber that knows MQTT and the messages, and nothing else of the agent."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import queue
import threading
import time
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.errors import AgentError

__all__ = ["DemoError", "Received", "Scada"]


class DemoError(AgentError):
    """Something that the demo needs does not work here."""


@dataclasses.dataclass(slots=True)
class Received:
    """What came over the wire; repeats are counted once, by `rec`.

    Attributes:
        verdicts: record number to verdict.
        pictures: topic of a flagged part's picture to its bytes.
        damaged: parts whose picture does not match its SHA-256, or is none.
    """

    verdicts: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def picture_of(self, verdict: dict[str, Any]) -> bytes | None:
        """The whole picture of a flagged part, or None when none was announced or it has not come."""
        return None if verdict["image"] is None else self.pictures.get(verdict["image"]["topic"])

    @property
    def awaited(self) -> list[dict[str, Any]]:
        """Verdicts whose picture was announced and has not come yet."""
        flagged = [v for v in self.verdicts.values() if v["image"] is not None]
        return [v for v in flagged if v["image"]["topic"] not in self.pictures]

    @property
    def damaged(self) -> list[str]:
        """Parts whose picture is not the one that the verdict names, or can't be decoded."""
        return [v["part"] for v in self.verdicts.values() if not _is_sound(v, self.picture_of(v))]


def _is_sound(verdict: dict[str, Any], picture: bytes | None) -> bool:
    if picture is None:
        return True
    if hashlib.sha256(picture).hexdigest() != verdict["image"]["sha256"]:
        return False
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) is not None


class Scada:
    """Subscribes to everything below a station's root; a context manager that is subscribed once it is entered.

    Args:
        host: the broker's.
        port: the broker's.
        root: the station.
    """

    def __init__(self, host: str, port: int, root: str) -> None:
        self._address, self._root = (host, port), root
        self._arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{root}/#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _client, _data, message: self._arrived.put(
            (message.topic, bytes(message.payload))
        )

    def __enter__(self) -> Scada:  # noqa: PYI034 - Self needs Python 3.11
        host, port = self._address
        try:
            self._client.connect(host, port, keepalive=30)
        except (OSError, ValueError) as error:
            hint = "start one (mosquitto -p 1883), or leave --broker out"
            raise DemoError(f"no MQTT broker answers on {host}:{port} ({error})", hint=hint) from error
        self._client.loop_start()
        if not self._subscribed.wait(10):
            self._client.loop_stop()
            raise DemoError(f"the broker on {host}:{port} does not let us subscribe to {self._root}/# (10 s)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A retained status of a station that is gone would stay on somebody's broker for ever.
        with contextlib.suppress(RuntimeError, ValueError):
            self._client.publish(f"{self._root}/status", b"", qos=1, retain=True).wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def receive(self, into: Received, timeout_s: float) -> dict[str, Any] | None:
        """Take one message; gives it back when it is a verdict that was not there yet."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                topic, payload = self._arrived.get(timeout=left)
            except queue.Empty:
                break
            if topic.startswith(f"{self._root}/image/"):
                into.pictures[topic] = payload
            elif topic == f"{self._root}/verdict":
                verdict: dict[str, Any] = json.loads(payload)
                if into.verdicts.setdefault(verdict["rec"], verdict) is verdict:
                    return verdict
        return None
