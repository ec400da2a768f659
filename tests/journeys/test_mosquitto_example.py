"""configs/mosquitto as it is: nobody without a certificate gets in, and nobody writes what is not his."""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.kit.broker import free_port
from tests.kit.commands import run_command
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt install openssl"),
]

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "mosquitto"
ROOT = "acme/plant1/finishing/line3/cam1"
NOT_AUTHORIZED = 0x87


class Example:
    """The example's broker, on another port and beside no other one; nothing else is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder / "mosquitto", free_port()
        shutil.copytree(EXAMPLE, self.folder)
        subprocess.run(["./make-certificates"], cwd=self.folder, check=True, capture_output=True)
        config = self.folder / "mosquitto.conf"
        text = config.read_text()
        assert text.count("listener 8883\n") == 1
        config.write_text(text.replace("listener 8883\n", f"listener {self.port} 127.0.0.1\nuser root\n"))
        self.log = self.folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["mosquitto", "-c", "mosquitto.conf"], cwd=self.folder, stdout=log, stderr=log
            )
        wait_until(lambda: "running" in self.log.read_text(), 30, what=self.log.read_text())

    def file(self, name: str) -> str:
        return str(self.folder / "certificates" / name)

    def tls(self, who: str) -> dict[str, str]:
        """Of a station's configuration."""
        return {
            "ca_file": self.file("ca.pem"),
            "cert_file": self.file(f"{who}.pem"),
            "key_file": self.file(f"{who}.key"),
        }


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    made = Example(tmp_path_factory.mktemp("example"))
    yield made
    made.process.terminate()
    made.process.wait(10)


class Client:
    """Any MQTT 5 client with one of the certificates."""

    def __init__(self, example: Example, who: str | None) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.acks: dict[int, int] = {}
        self.connected = False
        context = ssl.create_default_context(cafile=example.file("ca.pem"))
        if who is not None:
            context.load_cert_chain(example.file(f"{who}.pem"), example.file(f"{who}.key"))
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.tls_set_context(context)
        self.client.on_connect = self._connected
        self.client.on_message = lambda _c, _d, message: self.got.append((message.topic, bytes(message.payload)))
        self.client.on_publish = lambda _c, _d, mid, reason, _p: self.acks.update({mid: reason.value})
        self.client.connect("localhost", example.port)
        self.client.loop_start()

    def _connected(self, *_: Any) -> None:
        self.connected = True

    def publish(self, topic: str, payload: bytes = b"{}") -> int:
        """The broker's reason code."""
        wait_until(lambda: self.connected, 20)
        mid = self.client.publish(topic, payload, qos=1).mid
        wait_until(lambda: mid in self.acks, 20)
        return self.acks[mid]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_a_station_publishes_and_scada_reads_and_triggers(tmp_path: Path, example: Example) -> None:
    """With the certificates of the example, over TLS, both sides."""
    make_parts(tmp_path / "parts", 4)
    config = make_station(
        tmp_path,
        port=example.port,
        station=ROOT,
        camera={"loop": True, "resume": False},
        trigger={"kind": "mqtt"},
        mqtt={"host": "localhost", "tls": example.tls("line3-cam1")},
    )
    scada = Client(example, "scada")
    wait_until(lambda: scada.connected, 20)
    scada.client.subscribe("acme/plant1/#", qos=1)
    with AgentProcess(config):
        wait_until(lambda: any(topic == f"{ROOT}/status" for topic, _ in scada.got), 30)
        assert scada.publish(f"{ROOT}/cmd/trigger", b'{"part": "A1", "id": "1", "reply_to": "scada"}') < 0x80
        wait_until(lambda: {f"{ROOT}/verdict", f"{ROOT}/reply/scada"} <= {topic for topic, _ in scada.got}, 30)
        checked = run_command("agent.cli.check", "--config", config, "--no-camera")
    scada.close()
    (verdict,) = [json.loads(payload) for topic, payload in scada.got if topic == f"{ROOT}/verdict"]

    assert verdict["part"] == "A1"
    assert "broker" in checked.out


@pytest.mark.parametrize(
    ("who", "topic"),
    [
        ("scada", f"{ROOT}/verdict"),
        ("scada", f"{ROOT}/status"),
        ("historian", f"{ROOT}/cmd/trigger"),
        ("line3-cam1", "acme/plant1/finishing/line4/cam1/verdict"),
        ("line3-cam1", f"{ROOT}/cmd/trigger"),
    ],
)
def test_nobody_writes_what_is_not_his(example: Example, who: str, topic: str) -> None:
    """SCADA makes no verdicts, and a station none of its neighbour's."""
    client, scada = Client(example, who), Client(example, "scada")
    wait_until(lambda: scada.connected, 20)
    scada.client.subscribe("acme/plant1/#", qos=1)
    code = client.publish(topic, b"forged")
    allowed = scada.publish(f"{ROOT}/cmd/ping", b"after")
    wait_until(lambda: any(payload == b"after" for _, payload in scada.got), 20)
    client.close()
    scada.close()

    assert code == NOT_AUTHORIZED
    assert allowed < 0x80
    assert all(payload != b"forged" for _, payload in scada.got)


def _turned_away(context: ssl.SSLContext, port: int) -> None:
    """Try to connect until the broker has closed: in the handshake (TLS 1.2), or at the first read (TLS 1.3)."""
    lost = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.tls_set_context(context)

    def note(*_: Any) -> None:
        lost.set()

    client.on_disconnect = note
    client.on_connect_fail = note
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        client.connect("localhost", port)
        client.loop_start()
        assert lost.wait(20)
    client.loop_stop()


def test_without_a_certificate_nobody_gets_in(example: Example) -> None:
    """Nor with one that another authority has signed."""
    folder = example.folder / "other"
    folder.mkdir()
    shutil.copy(EXAMPLE / "make-certificates", folder)
    subprocess.run(["./make-certificates"], cwd=folder, check=True, capture_output=True)
    foreign = ssl.create_default_context(cafile=example.file("ca.pem"))
    foreign.load_cert_chain(folder / "certificates" / "scada.pem", folder / "certificates" / "scada.key")
    bare = ssl.create_default_context(cafile=example.file("ca.pem"))
    before = example.log.read_text().count("New client connected")
    for context in (bare, foreign):
        _turned_away(context, example.port)

    assert example.log.read_text().count("New client connected") == before


def test_a_further_client_gets_its_own_and_the_others_keep_theirs(tmp_path: Path) -> None:
    """The plant grows; and a name that would leave the folder is refused."""
    shutil.copy(EXAMPLE / "make-certificates", tmp_path)
    subprocess.run(["./make-certificates"], cwd=tmp_path, check=True, capture_output=True)
    before = (tmp_path / "certificates" / "scada.pem").read_bytes()
    subprocess.run(["./make-certificates", "--client", "line4-cam1"], cwd=tmp_path, check=True, capture_output=True)
    refused = subprocess.run(
        ["./make-certificates", "--client", "../x"], cwd=tmp_path, check=False, capture_output=True
    )

    assert (tmp_path / "certificates" / "line4-cam1.pem").is_file()
    assert (tmp_path / "certificates" / "scada.pem").read_bytes() == before
    assert (tmp_path / "certificates" / "scada.key").stat().st_mode & 0o077 == 0
    assert refused.returncode == 2
