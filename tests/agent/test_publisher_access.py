"""How the publisher gets in: TLS, passwords, client ids, protocol versions; and the probe that says what is wrong."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from agent.config import MqttConfig, TlsConfig
from agent.errors import ConfigError
from agent.publisher import Publisher, client_id_for, probe
from tests.kit.broker import Amqtt, Listener, Mosquitto, free_port
from tests.kit.publishing import STATION, Line, recs
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.waiting import wait_until


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with Line(tmp_path / "state") as made:
        yield made


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, other-ca; server (localhost), elsewhere (another host), late (not valid yet), client; made by openssl."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("ca", "other-ca"):
        _openssl(folder, "req", "-x509", *_NEW_KEY, f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name, host in (("server", "localhost"), ("elsewhere", "elsewhere.example"), ("client", "cam1")):
        _openssl(folder, "req", *_NEW_KEY, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}")
        (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{host}\n")
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext",
        )  # fmt: skip
    _openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-keyout", "locked.key", "-out", "locked.pem",
             "-passout", "pass:secret", "-subj", "/CN=locked")  # fmt: skip
    return folder


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def tls_lines(pki: Path, server: str = "server", *, mutual: bool = False) -> list[str]:
    lines = [f"certfile {pki}/{server}.pem", f"keyfile {pki}/{server}.key", f"cafile {pki}/ca.pem"]
    return [*lines, "require_certificate true", "use_identity_as_username true"] if mutual else lines


@pytest.mark.mosquitto
def test_tls_carries_verdicts(line: Line, pki: Path, tmp_path: Path) -> None:
    """Small messages and large ones, all the way."""
    with Mosquitto(tmp_path, tls_lines(pki)) as broker:
        publisher = line.publisher(broker.port, host="localhost", tls=TlsConfig(ca_file=pki / "ca.pem"))
        line.good(200)
        line.flagged(side_px=200, count=3)
        wait_until(lambda: line.journal.outbox.depth() == 0, 60, what="an empty outbox")

        assert publisher.link.counters["published"] == 206
        assert publisher.stop(5.0)


def test_two_packets_in_one_tls_record_are_both_read(line: Line, pki: Path) -> None:
    """What TLS has decrypted already does not make the socket readable: the second would wait for ever."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    accepted_then_taken_over = b"\x20\x03\x00\x00\x00" + b"\xe0\x06\x8e\x04\x1f\x00\x01x"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        tls = TlsConfig(ca_file=pki / "ca.pem")
        publisher = line.publisher(listener.getsockname()[1], host="localhost", protocol="5", tls=tls)
        with context.wrap_socket(listener.accept()[0], server_side=True) as client:
            client.recv(4096)
            client.sendall(accepted_then_taken_over)
            wait_until(lambda: publisher.link.error, within_s=30, what="the second packet to be read")

        assert publisher.link.error == "another client connected with our client id"
        assert publisher.stop(5.0)


@pytest.mark.mosquitto
def test_mutual_tls(line: Line, pki: Path, tmp_path: Path) -> None:
    """The plant knows its stations by certificate; one without is told what to do."""
    config = TlsConfig(ca_file=pki / "ca.pem", cert_file=pki / "client.pem", key_file=pki / "client.key")
    with Mosquitto(tmp_path, tls_lines(pki, mutual=True)) as broker:
        publisher = line.publisher(broker.port, host="localhost", tls=config)
        line.good(10)
        wait_until(lambda: line.journal.outbox.depth() == 0, 30, what="an empty outbox")
        assert publisher.stop(5.0)
        stranger = line.publisher(broker.port, host="localhost", tls=TlsConfig(ca_file=pki / "ca.pem"))
        wait_until(lambda: stranger.link.error, within_s=30, what="a refusal")
        assert stranger.stop(5.0)

        result = probe(line.config(broker.port, host="localhost", tls=TlsConfig(ca_file=pki / "ca.pem")), STATION)
        assert not result.ok
        assert "mqtt.tls.cert_file" in str(result.hint)


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("server", "ca", "host", "words", "hint"),
    [
        ("server", "other-ca", "localhost", "not signed by a CA that we trust", "mqtt.tls.ca_file"),
        ("elsewhere", "ca", "localhost", "is for another host name", "mqtt.host"),
        ("server", "ca", "127.0.0.1", "is for another address", "mqtt.host"),
    ],
)
def test_certificate_that_does_not_fit_is_refused_in_words(
    line: Line, pki: Path, tmp_path: Path, server: str, ca: str, host: str, words: str, hint: str
) -> None:
    """Nobody may pose as the broker; and nobody should have to read OpenSSL's own words."""
    with Mosquitto(tmp_path, tls_lines(pki, server)) as broker:
        config = line.config(broker.port, host=host, tls=TlsConfig(ca_file=pki / f"{ca}.pem"))
        result = probe(config, STATION)

        assert not result.ok
        assert words in str(result.problem)
        assert hint in str(result.hint)


@pytest.mark.mosquitto
def test_tls_on_one_side_only_is_named(line: Line, pki: Path, tmp_path: Path) -> None:
    """The two usual mistakes with ports 1883 and 8883."""
    with Mosquitto(tmp_path) as plain, Mosquitto(tmp_path, tls_lines(pki)) as encrypted:
        to_plain = probe(line.config(plain.port, tls=TlsConfig(ca_file=pki / "ca.pem")), STATION)
        to_encrypted = probe(line.config(encrypted.port), STATION)

        assert not to_plain.ok
        assert not to_encrypted.ok
        assert "mqtt.tls" in str(to_plain.hint)
        assert "mqtt.tls" in str(to_encrypted.hint)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca_file": "absent.pem"}, "mqtt.tls.ca_file: .*absent.pem"),
        ({"ca_file": "ca.key"}, "mqtt.tls.ca_file: .*ca.key"),
        ({"cert_file": "client.pem", "key_file": "server.key"}, "mqtt.tls.cert_file: .*client.pem"),
        ({"cert_file": "locked.pem", "key_file": "locked.key"}, "locked with a passphrase"),
        ({"key_file": "client.key"}, "without mqtt.tls.cert_file"),
    ],
)
def test_unusable_certificate_files_are_refused_at_the_start(
    line: Line, pki: Path, files: dict[str, str], message: str
) -> None:
    """A service that asks for a passphrase on its terminal hangs; a mistake is told before the line runs."""
    tls = TlsConfig(**{"ca_file": pki / "ca.pem", **{key: pki / name for key, name in files.items()}})

    with pytest.raises(ConfigError, match=message):
        Publisher(
            line.config(1883, tls=tls), line.journal.outbox, station=STATION, status=lambda: line.state,
            metrics=line.metrics,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "mode", "username", "message"),
    [
        (b"secret", 0o640, "cam1", "others can read it"),
        (b"secret", 0o604, "cam1", "chmod 600"),
        (b"", 0o600, "cam1", "0 bytes"),
        (b"\n", 0o600, "cam1", "0 bytes"),
        (b"x" * 70_000, 0o600, "cam1", "65535"),
        (b"\xff\xfe", 0o600, "cam1", "UTF-8"),
        (b"secret", 0o600, "", "mqtt.username"),
        (None, 0o600, "cam1", "can't be read"),
    ],
)
def test_unusable_password_file_is_refused(
    tmp_path: Path, content: bytes | None, mode: int, username: str, message: str
) -> None:
    """A password that everybody on the device can read is none."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)

    with pytest.raises(ConfigError) as refused:
        probe(MqttConfig(port=free_port(), username=username, password_file=path), STATION)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_client_ids_are_fixed_and_differ_between_stations() -> None:
    """A random id leaves the old session's will to fire after the new session's birth; a shared one is a fight."""
    stations = ["acme/plant1/line3/cam1", "acme/plant1/line4/cam1", "acme/plant1/line3-cam1", "Werk Süd/Linie 3", "ü"]
    ids = [client_id_for(station) for station in stations]

    assert len(set(ids)) == len(stations)
    assert ids == [client_id_for(station) for station in stations]
    assert all(len(name) <= 40 and name.replace("-", "").isalnum() and name.isascii() for name in ids)


def test_broker_without_mqtt_5_is_spoken_to_in_3_1_1(line: Line, tmp_path: Path) -> None:
    """amqtt takes 3.1.1 only; many PLCs and vision packages are no newer."""
    with Amqtt(tmp_path) as broker, Listener(broker.port, protocol=MQTTProtocolVersion.MQTTv311) as listener:
        line.good(20)
        publisher = line.publisher(broker.port)
        received = listener.wait_for(lambda m: len(recs(m)) == 20, topic_end="/verdict", timeout_s=60)

        assert recs(received) == list(range(1, 21))
        assert publisher.link.protocol == "3.1.1"
        result = probe(line.config(broker.port), STATION)
        assert (result.ok, result.protocol) == (True, "3.1.1")
        insisting = probe(line.config(broker.port, protocol="5"), STATION)
        assert not insisting.ok
        assert "mqtt.protocol" in str(insisting.hint)


@pytest.mark.mosquitto
def test_probe_disturbs_nobody(line: Line, tmp_path: Path) -> None:
    """`check` beside a running agent: not thrown off, no retained message, nothing that looks like a verdict."""
    with Mosquitto(tmp_path, ["max_packet_size 5000"]) as broker, Listener(broker.port) as listener:
        publisher = line.publisher(broker.port)
        listener.wait_for(bool, topic_end="/status")
        result = probe(line.config(broker.port), STATION)

        assert (result.ok, result.protocol, result.max_packet_bytes) == (True, "5", 5000)
        assert result.round_trip_ms is not None
        listener.wait_for(bool, topic_end="/check")
        assert [message.topic for message in listener.messages()] == [f"{STATION}/status", f"{STATION}/check"]
        assert publisher.connected
        assert publisher.link.counters["reconnects"] == 0


@pytest.mark.mosquitto
def test_probe_says_that_the_access_list_forbids_it(line: Line, tmp_path: Path) -> None:
    """The commonest mistake of all, and on MQTT 5 it can be seen before the first part."""
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    with Mosquitto(tmp_path, [f"acl_file {acl}"]) as broker:
        result = probe(line.config(broker.port), STATION)

        assert not result.ok
        assert "not authorized" in str(result.problem)
        assert f"{STATION}/#" in str(result.hint)


def test_probe_says_when_nothing_listens(line: Line) -> None:
    """One sentence and a remedy."""
    result = probe(line.config(free_port()), STATION)

    assert not result.ok
    assert "nothing listens on 127.0.0.1" in str(result.problem)
    assert "mqtt.port" in str(result.hint)


def test_probe_says_when_the_name_is_unknown(line: Line) -> None:
    """A typing error in the host name."""
    result = probe(line.config(1883, host="no-such-host.invalid"), STATION)

    assert not result.ok
    assert "no-such-host.invalid" in str(result.problem)
    assert "mqtt.host" in str(result.hint)


@pytest.mark.mosquitto
def test_probe_of_a_frozen_broker_ends(line: Line, tmp_path: Path) -> None:
    """A check that hangs helps nobody."""
    with Mosquitto(tmp_path) as broker, TcpProxy(broker.port) as proxy:
        proxy.stall()
        result = probe(line.config(proxy.port), STATION, timeout_s=0.5)

        assert not result.ok
        assert "did not answer" in str(result.problem)
