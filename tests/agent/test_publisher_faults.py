"""The publisher when network and broker fail: nothing is lost, the order holds, and it comes back by itself."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from agent.publisher import Publisher
from tests.kit.broker import Listener, Mosquitto
from tests.kit.publishing import STATION, Line, decoded, recs
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.mosquitto

ROOMY = ("max_queued_messages 10000",)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, ROOMY) as running:
        yield running


@pytest.fixture
def proxy(broker: Mosquitto) -> Iterator[TcpProxy]:
    with TcpProxy(broker.port) as between:
        yield between


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with Line(tmp_path / "state") as made:
        yield made


def emptied(line: Line) -> None:
    wait_until(lambda: line.journal.outbox.depth() == 0, within_s=60, what="an empty outbox")


def test_killed_broker_loses_nothing_that_it_had_not_acknowledged(
    broker: Mosquitto, proxy: TcpProxy, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """`kill -9` in the middle of a run; the answers are held back, so that the state at the kill is known."""
    caplog.set_level(logging.INFO, "agent.publisher")
    with Listener(broker.port) as listener:
        publisher = line.publisher(proxy.port, reconnect_max_s=0.3)
        line.good(50)
        emptied(line)
        proxy.deafen()
        line.good(50)
        listener.wait_for(lambda m: len(m) > 50, topic_end="/verdict")
        broker.kill()
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not publisher.connected, within_s=30, what="a lost connection")
        assert publisher.link.problem is not None
        broker.start()
        wait_until(lambda: listener.subscriptions == 2, within_s=30, what="the listener's second subscription")
        before = len(listener.messages("/verdict"))
        proxy.ok()
        emptied(line)

        again = listener.wait_for(lambda m: recs(m)[-1] == 100, topic_end="/verdict")[before:]
        # 51 to 100 were never acknowledged; 1 to 50 were, a moment before it died, and go once more
        assert [decoded(message)["rec"] for message in again] == list(range(1, 101))
        said = [record.message for record in caplog.records if record.message.startswith("broker_")]
        assert said == ["broker_connected", "broker_lost", "broker_connected"]
        assert publisher.link.counters["reconnects"] == 1


def test_cut_between_publish_and_puback_sends_again(broker: Mosquitto, proxy: TcpProxy, line: Line) -> None:
    """The broker has it, we don't know that: a repeat is right, and a consumer removes it by `rec`."""
    with Listener(broker.port) as listener:
        line.publisher(proxy.port)
        line.good(20)
        emptied(line)
        proxy.deafen()
        line.good(10)
        listener.wait_for(lambda m: len(m) == 30, topic_end="/verdict")
        assert line.journal.outbox.depth() == 10
        proxy.cut()
        proxy.ok()
        emptied(line)

        received = listener.wait_for(lambda m: len(m) >= 60, topic_end="/verdict")
        assert [decoded(message)["rec"] for message in received] == [*range(1, 31), *range(1, 31)]


def test_resets_every_few_kilobytes_lose_nothing_and_set_nothing_aside(
    broker: Mosquitto, proxy: TcpProxy, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad cable is no fault of the message that happened to be under way; and it must not fill the log."""
    caplog.set_level(logging.INFO, "agent.publisher")
    with Listener(broker.port) as listener:
        proxy.cut_after(6_000)
        publisher = line.publisher(proxy.port, reconnect_max_s=0.2)
        line.good(40)
        emptied(line)

        received = listener.wait_for(lambda m: len(recs(m)) == 40, topic_end="/verdict")
        assert recs(received) == list(range(1, 41))
        assert publisher.link.counters["reconnects"] > 4
        assert publisher.link.counters["set_aside"] == 0
        said = [record.message for record in caplog.records if record.message == "broker_lost"]
        assert len(said) <= 4


def test_slow_link_gets_everything_through(broker: Mosquitto, proxy: TcpProxy, line: Line) -> None:
    """1 kB/s: what takes long is not what is lost."""
    proxy.slow(1_000)
    with Listener(broker.port) as listener:
        line.good(5)
        publisher = line.publisher(proxy.port)
        emptied(line)

        assert recs(listener.wait_for(lambda m: len(m) == 5, topic_end="/verdict")) == [1, 2, 3, 4, 5]
        assert publisher.link.counters["reconnects"] == 0


def test_half_open_link_is_noticed(proxy: TcpProxy, broker: Mosquitto, line: Line) -> None:
    """A frozen link answers nothing and breaks nothing; only the keep-alive tells."""
    with Listener(broker.port) as listener:
        publisher = line.publisher(proxy.port, keepalive_s=2, reconnect_max_s=0.2)
        wait_until(lambda: publisher.connected, within_s=30, what="a connection")
        listener.wait_for(bool, topic_end="/status")
        proxy.stall()
        line.good(30)
        wait_until(lambda: not publisher.connected, within_s=30, what="a dead link to be noticed")
        assert publisher.link.error == "the broker did not answer for 4 s"
        proxy.cut()
        proxy.ok()
        emptied(line)

        received = listener.wait_for(lambda m: len(recs(m)) == 30, topic_end="/verdict")
        assert recs(received) == list(range(1, 31))
        assert publisher.link.counters["set_aside"] == 0


def test_picture_too_large_for_a_slow_link_lets_verdicts_pass(broker: Mosquitto, proxy: TcpProxy, line: Line) -> None:
    """A picture that takes longer than the keep-alive allows would otherwise block every verdict behind it."""
    with Listener(broker.port) as listener:
        line.flagged(side_px=500)
        line.good(3)
        proxy.slow(20_000)
        publisher = line.publisher(proxy.port, keepalive_s=2, reconnect_max_s=0.2)
        received = listener.wait_for(lambda m: len(recs(m)) == 4, topic_end="/verdict", timeout_s=60)

        assert recs(received) == [1, 2, 3, 4]
        assert publisher.link.counters["set_aside"] == 0
        wait_until(lambda: line.journal.outbox.depth() == 1, what="only the picture is left")


def test_stop_does_not_wait_for_a_dead_broker(proxy: TcpProxy, line: Line) -> None:
    """SIGTERM ends the agent in five seconds whatever the network does; what was not sent is still there."""
    publisher = line.publisher(proxy.port)
    wait_until(lambda: publisher.connected, within_s=30, what="a connection")
    proxy.stall()
    line.good(30)

    assert publisher.stop(2.0)
    assert line.journal.outbox.depth() == 30


def test_stop_while_the_broker_never_answers(proxy: TcpProxy, line: Line) -> None:
    """The same between CONNECT and CONNACK."""
    proxy.stall()
    publisher = line.publisher(proxy.port)
    wait_until(lambda: proxy.connections, within_s=30, what="a connection attempt")

    assert publisher.stop(2.0)


def test_frozen_broker_keeps_the_thread_alive(broker: Mosquitto, line: Line) -> None:
    """SIGSTOP: TCP stays, MQTT is silent; afterwards everything flows again."""
    with Listener(broker.port) as listener:
        publisher = line.publisher(broker.port, keepalive_s=2, reconnect_max_s=0.2)
        listener.wait_for(bool, topic_end="/status")
        broker.freeze()
        line.good(10)
        wait_until(lambda: not publisher.connected, within_s=30, what="a silent broker to be noticed")
        assert publisher.alive()
        broker.thaw()
        emptied(line)

        received = listener.wait_for(lambda m: len(recs(m)) == 10, topic_end="/verdict")
        assert recs(received) == list(range(1, 11))


def test_second_client_with_our_id_is_named(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Two devices from one cloned SD card throw each other off for ever; the log has to say so.

    mosquitto 2.0 says nothing to the one that it throws off; brokers that do send this DISCONNECT.
    """
    caplog.set_level(logging.INFO, "agent.publisher")
    with Talker(b"\x20\x03\x00\x00\x00\xe0\x06\x8e\x04\x1f\x00\x01x") as talker:  # paho 2.0 wants more than a code
        publisher = line.publisher(talker.port, protocol="5", reconnect_max_s=0.1)
        wait_until(lambda: publisher.link.error, within_s=30, what="the first to be thrown off")

        assert publisher.link.error == "another client connected with our client id"
        assert publisher.stop(2.0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        b"\x20\x03\x00\x77\x00",  # CONNACK with a reason code that doesn't exist
        b"\x20\x05\x00\x00\x02\x99\x99",  # CONNACK with a property that doesn't exist
        b"\x20\x03\x00\x00\x00\x40\x01\x00",  # accepted, then a PUBACK that is too short
        b"\x20\x03\x00\x00\x00\xf0\xff\xff\xff\xff\xff",  # accepted, then a length of five bytes
        b"\x20\x03\x00\x00\x00\xe0\x01\x77",  # accepted, then a DISCONNECT for no known reason
    ],
)
def test_nonsense_from_the_other_side_is_survived(line: Line, answer: bytes) -> None:
    """A wrong port may be anything; whatever it answers, the thread lives on and tries again."""
    with Talker(answer) as talker:
        publisher = line.publisher(talker.port, protocol="5", reconnect_max_s=0.1)
        wait_until(lambda: talker.connections > 3, within_s=30, what="several tries")

        assert publisher.alive()
        assert publisher.link.error
        assert publisher.stop(2.0)


class Talker:
    """Sends the same bytes to whoever connects, and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self.connections = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self.connections += 1
                client.recv(65_536)
                client.sendall(self._answer)

    def __enter__(self) -> Talker:  # noqa: PYI034 - Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def test_answer_that_never_comes_ends_the_connection(line: Line) -> None:
    """Pings are answered, messages are not: to the keep-alive all is well, and nothing would ever leave again."""
    with Forgetful() as broker:
        publisher = line.publisher(broker.port, protocol="3.1.1", keepalive_s=2, reconnect_max_s=0.1)
        line.good(3)
        wait_until(lambda: publisher.link.counters["reconnects"], within_s=60, what="another connection")

        assert publisher.link.error == "the broker acknowledged nothing for 10 s"
        assert line.journal.outbox.depth() == 3
        assert publisher.stop(2.0)


class Forgetful:
    """Takes MQTT 3.1.1 connections, acknowledges the first message of each (the status), and answers pings."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError, IndexError):
                self._talk(client, client.makefile("rb"))

    @staticmethod
    def _talk(client: socket.socket, stream: BinaryIO) -> None:
        acknowledged = False
        with stream:
            while True:
                kind = stream.read(1)[0] & 0xF0
                length = shift = 0
                while True:
                    byte = stream.read(1)[0]
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
                body = stream.read(length)
                if kind == 0x10:
                    client.sendall(b"\x20\x02\x00\x00")
                elif kind == 0xC0:
                    client.sendall(b"\xd0\x00")
                elif kind == 0x30 and not acknowledged:
                    acknowledged = True
                    topic = int.from_bytes(body[:2], "big")
                    client.sendall(b"\x40\x02" + body[2 + topic : 4 + topic])

    def __enter__(self) -> Forgetful:  # noqa: PYI034 - Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def test_our_own_bug_does_not_end_the_thread(tmp_path: Path) -> None:
    """An exception that nobody thought of is logged and counted, and the connection is made anew."""

    def broken(_name: str, _severity: str, _text: str, /, **_data: object) -> None:
        raise RuntimeError("nobody thought of this")

    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    with Line(tmp_path / "state") as line, Mosquitto(tmp_path, [f"acl_file {acl}"]) as strict:
        publisher = Publisher(
            line.config(strict.port, reconnect_max_s=0.2),
            line.journal.outbox,
            station=STATION,
            status=lambda: line.state,
            metrics=line.metrics,
            tell_event=broken,
        )
        publisher.start()
        line.good(5)
        wait_until(lambda: publisher.link.counters["bugs"], within_s=30, what="the bug")
        acl.write_text("topic readwrite #\n")
        strict.reload()
        emptied(line)

        assert publisher.alive()
        assert publisher.stop(5.0)


def test_status_is_published_again_after_a_loss(broker: Mosquitto, proxy: TcpProxy, line: Line) -> None:
    """The broker published our will; if the birth did not follow, the station would show offline for good."""
    with Listener(broker.port, f"{STATION}/status") as listener:
        line.publisher(proxy.port)
        listener.wait_for(lambda m: [decoded(x)["state"] for x in m] == ["online"])
        proxy.cut()

        listener.wait_for(lambda m: [decoded(x)["state"] for x in m] == ["online", "offline", "online"])
    with Listener(broker.port, f"{STATION}/status") as late:
        assert decoded(late.wait_for(bool)[0])["state"] == "online"
