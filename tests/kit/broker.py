"""A real mosquitto on a loopback port of its own, to be killed, stopped and brought back; and who listens to it."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.kit.contract import breaches
from tests.kit.waiting import wait_until

__all__ = ["Amqtt", "Listener", "Message", "Mosquitto", "free_port"]


def free_port() -> int:
    """A loopback port that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Mosquitto:
    """One broker process; a context manager. It may be started again on the same port.

    Args:
        folder: for its configuration and log.
        lines: configuration beside the listener, for example `max_packet_size 1000`.
        anonymous: whether clients without a user may connect.
    """

    def __init__(self, folder: Path, lines: Sequence[str] = (), *, anonymous: bool = True) -> None:
        self.port = free_port()
        self._log = folder / f"mosquitto-{self.port}.log"
        self._config = folder / f"mosquitto-{self.port}.conf"
        base = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(anonymous).lower()}", "user root"]
        self._config.write_text("\n".join([*base, *lines, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Mosquitto:
        """Start it and wait until it takes connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["mosquitto", "-c", str(self._config)], stdout=log, stderr=log)
        wait_until(self._answers, 30, what=f"mosquitto on port {self.port}: {self.log()}")
        return self

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"mosquitto ended with {self._process.returncode}: {self.log()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """`kill -9`: what it had in memory is gone."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def freeze(self) -> None:
        """Let it hang: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """End a freeze."""
        self._signal(signal.SIGCONT)

    def reload(self) -> None:
        """Let it read its access list again."""
        self._signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it politely."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            self._process.wait(10)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __enter__(self) -> Mosquitto:  # noqa: PYI034 - Self needs Python 3.11
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as a subscriber got it; `content_type` and `user` only with MQTT 5."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    content_type: str | None
    user: tuple[tuple[str, str], ...]


class Listener:
    """A subscriber that keeps all it gets, and comes back when its broker does; a context manager.

    Args:
        port: the broker's, on loopback.
        topic: what to subscribe to, QoS 1.
        protocol: MQTT 5 shows content types.
        username: for brokers that want one.
        password: its password.
        documented: at the end every message of a station must be as configs/asyncapi.yaml says; False where a test
            sends others on purpose.
    """

    def __init__(
        self,
        port: int,
        topic: str = "#",
        *,
        documented: bool = True,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        self._topic = topic
        self._documented = documented
        self._lock = threading.Lock()
        self._messages: list[Message] = []
        self._subscriptions = 0
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        self._client.reconnect_delay_set(1, 1)
        if username is not None:
            self._client.username_pw_set(username, password)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._received
        self._port = port

    def _subscribed(self, *_: Any) -> None:
        with self._lock:
            self._subscriptions += 1

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        properties = message.properties
        with self._lock:
            self._messages.append(
                Message(
                    topic=message.topic,
                    payload=bytes(message.payload),
                    qos=message.qos,
                    retain=message.retain,
                    content_type=getattr(properties, "ContentType", None),
                    user=tuple(getattr(properties, "UserProperty", ())),
                )
            )

    @property
    def subscriptions(self) -> int:
        """How often a broker has confirmed the subscription."""
        with self._lock:
            return self._subscriptions

    def messages(self, topic_end: str = "") -> list[Message]:
        """What came so far on topics with this end, in order."""
        with self._lock:
            return [message for message in self._messages if message.topic.endswith(topic_end)]

    def wait_for(
        self, condition: Callable[[list[Message]], bool], *, topic_end: str = "", timeout_s: float = 30.0
    ) -> list[Message]:
        """Wait until what came so far satisfies a condition, and give it."""
        deadline = time.monotonic() + timeout_s
        while not condition(messages := self.messages(topic_end)):
            if time.monotonic() > deadline:
                last = [(m.topic, m.payload[:80]) for m in messages[-3:]]
                raise AssertionError(f"not within {timeout_s:g} s; {len(messages)} messages, the last: {last}")
            time.sleep(0.01)
        return messages

    def __enter__(self) -> Listener:  # noqa: PYI034 - Self needs Python 3.11
        self._client.connect_async("127.0.0.1", self._port, keepalive=10)
        self._client.loop_start()
        wait_until(lambda: self.subscriptions, 30, what=f"a subscription to {self._topic}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        if kind is None and self._documented:
            broken = [breach for m in self._messages for breach in breaches(m.topic, m.payload, m.content_type, m.user)]
            assert not broken, f"{len(broken)} breaches of configs/asyncapi.yaml, the first: {broken[:3]}"


_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def main():
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Amqtt:
    """amqtt in a process of its own: a broker that speaks MQTT 3.1.1 and nothing newer; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Amqtt:  # noqa: PYI034 - Self needs Python 3.11
        with (self._folder / "amqtt.log").open("wb") as log:
            command = [sys.executable, "-c", _AMQTT, str(self.port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        wait_until(self._answers, 30, what="amqtt")
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
