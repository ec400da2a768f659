"""A real mosquitto on a loopback port of its own, who listens to it, and a wire that can be looked at."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Broker", "Listener", "Wire", "find_mosquitto"]

START_S = 10.0


def find_mosquitto() -> str:
    """Where mosquitto is.

    Raises:
        OptimizeError: it is not installed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise OptimizeError("this bench needs mosquitto", hint="apt install mosquitto")
    return found


class Broker:
    """One broker process; a context manager. It keeps sessions on the disk, and may be killed and started again.

    Args:
        folder: for its configuration, log and sessions.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port: int = server.getsockname()[1]
        self._command = [find_mosquitto(), "-c", str(folder / "mosquitto.conf")]
        self._log = folder / "mosquitto.log"
        lines = (
            f"listener {self.port} 127.0.0.1", "allow_anonymous true", "user root", "max_queued_messages 100000",
            "persistence true", f"persistence_location {folder}/", "autosave_interval 1",
        )  # fmt: skip
        (folder / "mosquitto.conf").write_text("\n".join([*lines, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.01)
        raise OptimizeError(f"mosquitto did not start: {self._log.read_text(errors='replace')[-300:]}")

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Broker:  # noqa: PYI034 - Self needs Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)


class Listener:
    """A subscriber whose session outlives the broker; notes when each verdict came.

    Args:
        port: the broker's.
        topic: of verdicts.

    Attributes:
        came: record number to the moment (CLOCK_MONOTONIC, seconds) and the message; the first of repeats.
        repeats: messages that came again.
    """

    def __init__(self, port: int, topic: str) -> None:
        self.came: dict[int, tuple[float, dict[str, Any]]] = {}
        self.repeats = 0
        self._subscribed = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id="bench-listener",
            clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._heard
        self._port = port

    def _heard(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        now = time.monotonic()
        verdict = json.loads(message.payload)
        if verdict["rec"] in self.came:
            self.repeats += 1
        else:
            self.came[verdict["rec"]] = (now, verdict)

    def wait_for(self, count: int, within_s: float) -> int:
        """Wait for so many different verdicts; gives how many came."""
        until = time.monotonic() + within_s
        while len(self.came) < count and time.monotonic() < until:
            time.sleep(0.05)
        return len(self.came)

    def __enter__(self) -> Listener:  # noqa: PYI034 - Self needs Python 3.11
        self._client.connect("127.0.0.1", self._port, keepalive=10)
        self._client.loop_start()
        if not self._subscribed.wait(START_S):
            raise OptimizeError("mosquitto did not confirm a subscription")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Wire:
    """A loopback port in front of the broker's; shows what the agent sends before it is sent on.

    Args:
        port: the broker's.
        look: called with the bytes, in the thread that then sends them on.
    """

    def __init__(self, port: int, look: Callable[[bytes], None]) -> None:
        self._target, self._look = port, look
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, broker]
                threading.Thread(target=self._pump, args=(client, broker, self._look), daemon=True).start()
                threading.Thread(target=self._pump, args=(broker, client, lambda _data: None), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, look: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                look(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Wire:  # noqa: PYI034 - Self needs Python 3.11
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._server, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.close()
