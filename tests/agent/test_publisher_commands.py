"""Whether commands can be heard: what a station with an MQTT trigger says of itself."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from agent.config import MqttConfig
from agent.publisher import Publisher
from agent.triggers.queue import TriggerQueue
from tests.kit.broker import free_port
from tests.kit.publishing import STATION, Line
from tests.kit.waiting import wait_until

CONNACK, SUBACK_REFUSED = b"\x20\x02\x00\x00", b"\x90\x03%s\x80"
SUBSCRIBE = 0x82


class RefusesSubscriptions:
    """An MQTT 3.1.1 broker that accepts everybody and lets nobody subscribe, as clouds do; mosquitto 2.0 never does."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            client.recv(65_536)
            client.sendall(CONNACK)
            while data := client.recv(65_536):
                if (at := data.find(bytes([SUBSCRIBE]))) >= 0:
                    client.sendall(SUBACK_REFUSED % data[at + 2 : at + 4])

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)


def publisher(line: Line, port: int) -> Publisher:
    return Publisher(
        MqttConfig(port=port, protocol="3.1.1", reconnect_max_s=0.1),
        line.journal.outbox,
        station=STATION,
        status=lambda: line.state,
        metrics=lambda: None,  # type: ignore[arg-type,return-value]
        trigger=TriggerQueue(kind="mqtt", prefix="part", waiting=1),
    )


def test_a_broker_that_lets_nobody_subscribe_is_told(tmp_path: Path) -> None:
    """An access list with a mistake: else the station waits for ever for parts that nobody can name."""
    broker = RefusesSubscriptions()
    with Line(tmp_path / "state") as line:
        made = publisher(line, broker.port)
        before = made.deaf
        made.start()
        wait_until(lambda: made.deaf is not None, 30)
        told = made.deaf
        made.stop(2.0)
    broker.close()

    assert before is None
    assert told is not None
    assert told.startswith("the broker does not let us subscribe to the commands")


def test_a_broker_that_is_not_there_is_told(tmp_path: Path) -> None:
    """No command comes from nowhere."""
    with Line(tmp_path / "state") as line:
        made = publisher(line, free_port())
        made.start()
        wait_until(lambda: made.deaf is not None, 30)
        made.stop(2.0)

        assert "no connection to the broker" in str(made.deaf)
