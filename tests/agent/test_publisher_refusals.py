"""The publisher and a broker that says no: told once, nothing lost, and one bad message never blocks the rest."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.broker import Listener, Message, Mosquitto
from tests.kit.publishing import STATION, Line, decoded, recs
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with Line(tmp_path / "state") as made:
        yield made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "agent.publisher")
    return caplog


def emptied(line: Line) -> None:
    wait_until(lambda: line.journal.outbox.depth() == 0, within_s=60, what="an empty outbox")


def events(said: pytest.LogCaptureFixture, name: str) -> int:
    return sum(record.message == name for record in said.records)


def about_verdicts(messages: list[Message]) -> list[str]:
    """The events among these that are about verdicts."""
    events = [decoded(message) for message in messages]
    return [event["event"] for event in events if event["data"]["kind"] == "verdict"]


def kinds(said: pytest.LogCaptureFixture, name: str) -> list[str]:
    """The kind of message that each log line of this name is about."""
    return [record.__dict__["fields"]["kind"] for record in said.records if record.message == name]


def test_access_list_that_denies_everything_loses_nothing(
    line: Line, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """MQTT 5 tells by reason code only. Said once, degraded, and all of it flows when the list is mended."""
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    with (
        Mosquitto(tmp_path, [f"acl_file {acl}", "max_queued_messages 10000"]) as broker,
        Listener(broker.port) as listener,
    ):
        publisher = line.publisher(broker.port)
        line.good(50)
        wait_until(
            lambda: "does not take verdicts: not authorized" in str(publisher.link.problem), 30, what="a refusal"
        )
        acl.write_text("topic readwrite #\n")
        broker.reload()
        emptied(line)

        received = listener.wait_for(lambda m: len(m) >= 50, topic_end="/verdict")
        assert [decoded(message)["rec"] for message in received] == list(range(1, 51))
        assert publisher.link.counters["set_aside"] == 0
        assert publisher.link.problem is None
        assert kinds(said, "publishing_refused").count("verdict") == 1
        assert kinds(said, "publishing_resumed").count("verdict") == 1
        told = listener.wait_for(lambda m: "publishing_resumed" in about_verdicts(m), topic_end="/event")
        assert about_verdicts(told) == ["publishing_refused", "publishing_resumed"]


def test_access_list_that_denies_pictures_lets_verdicts_pass(line: Line, tmp_path: Path) -> None:
    """One forgotten line in an access list must not silence the line; the pictures come when it is added."""
    acl = tmp_path / "acl"
    allowed = [f"topic write {STATION}/{name}" for name in ("verdict", "status", "event", "metrics")]
    acl.write_text("\n".join(["topic read #", *allowed, ""]))
    with Mosquitto(tmp_path, [f"acl_file {acl}"]) as broker, Listener(broker.port) as listener:
        publisher = line.publisher(broker.port)
        line.flagged(side_px=32, count=5)
        line.good(20)
        received = listener.wait_for(lambda m: len(recs(m)) == 25, topic_end="/verdict")
        assert recs(received) == list(range(1, 26))
        status = listener.wait_for(lambda m: decoded(m[-1])["state"] == "degraded", topic_end="/status")[-1]
        assert decoded(status)["reason"].startswith("the broker does not take images: not authorized")
        acl.write_text("topic readwrite #\n")
        broker.reload()
        emptied(line)

        pictures = listener.wait_for(lambda m: sum("/image/" in x.topic for x in m) == 5)
        order = [message.topic for message in pictures if "/image/" in message.topic]
        assert order == [decoded(message)["image"]["topic"] for message in received[:5]]
        assert publisher.link.counters["set_aside"] == 0
        listener.wait_for(lambda m: decoded(m[-1])["state"] == "online", topic_end="/status")


@pytest.mark.parametrize(
    ("protocol", "limit"), [("5", "max_packet_size"), ("3.1.1", "max_packet_size"), ("5", "message_size_limit")]
)
def test_picture_over_the_broker_s_limit_is_set_aside(line: Line, tmp_path: Path, protocol: str, limit: str) -> None:
    """Some brokers name their limit, some close the link, and mosquitto's answer to the third breaks MQTT 5 itself."""
    with Mosquitto(tmp_path, [f"{limit} 4000"]) as broker, Listener(broker.port) as listener:
        publisher = line.publisher(broker.port, protocol=protocol, reconnect_max_s=0.2)
        line.good(10)
        line.flagged(side_px=64)
        line.good(10)
        line.flagged(side_px=16)
        emptied(line)

        received = listener.wait_for(lambda m: len(recs(m)) == 22, topic_end="/verdict")
        assert recs(received) == list(range(1, 23))
        assert publisher.link.counters["set_aside"] == 1
        named = (protocol, limit) == ("5", "max_packet_size")
        assert (publisher.link.counters["reconnects"] == 0) == named
        told = listener.wait_for(
            lambda m: any(decoded(x)["event"] == "message_set_aside" for x in m), topic_end="/event"
        )
        assert all(decoded(event)["severity"] != "info" for event in told)
        small = decoded(received[-1])["image"]["topic"]
        listener.wait_for(bool, topic_end=small)


def test_two_pictures_over_the_limit_in_a_row(line: Line, tmp_path: Path) -> None:
    """The second one is as bad as the first: it is no proof that the broker takes nothing."""
    with Mosquitto(tmp_path, ["max_packet_size 4000"]) as broker, Listener(broker.port) as listener:
        publisher = line.publisher(broker.port, protocol="3.1.1", reconnect_max_s=0.1)
        line.flagged(side_px=64, count=2)
        line.good(5)
        emptied(line)

        received = listener.wait_for(lambda m: len(recs(m)) == 7, topic_end="/verdict")
        assert recs(received) == list(range(1, 8))
        assert publisher.link.counters["set_aside"] == 2


def test_wrong_password_is_said_in_words_and_only_once(
    line: Line, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """It stays wrong until a person mends it: what to do is in the log, the password is not."""
    users = tmp_path / "users"
    users.write_text("cam1:right\n")
    subprocess.run(["mosquitto_passwd", "-U", str(users)], check=True)
    secret = tmp_path / "password"
    secret.write_text("wrong-and-secret\n")
    secret.chmod(0o600)
    with Mosquitto(tmp_path, [f"password_file {users}"], anonymous=False) as broker:
        publisher = line.publisher(broker.port, username="cam1", password_file=secret, reconnect_max_s=0.1)
        line.good(1)
        wait_until(lambda: broker.log().count("not authorised") > 3, within_s=30, what="several tries")
        assert "authori" in publisher.link.error or "password" in publisher.link.error
        assert events(said, "broker_lost") == 1
        secret.write_text("right\n")
        emptied(line)

        assert publisher.connected
        everything = "".join(str(vars(record)) for record in said.records)
        assert "wrong-and-secret" not in everything
        assert "mqtt.password_file" in everything or "mqtt.username" in everything


def test_nobody_listening_is_told(line: Line, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """MQTT 5 says when no subscriber matched: verdicts that nobody gets are worth a line, once."""
    with Mosquitto(tmp_path) as broker:
        publisher = line.publisher(broker.port)
        line.good(20)
        emptied(line)

        assert publisher.link.counters["unheard"] == 20
        assert events(said, "nobody_listens") == 1
