"""The publisher on a real mosquitto when all is well: order, completeness, birth, will, goodbye."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from agent.publisher import Publisher
from tests.kit.broker import Listener, Message, Mosquitto
from tests.kit.publishing import STATION, Line, decoded, recs
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.mosquitto

ROOT = Path(__file__).resolve().parents[2]
ROOMY = ("max_queued_messages 10000",)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, ROOMY) as running:
        yield running


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with Line(tmp_path / "state") as made:
        yield made


def statuses(messages: list[Message]) -> list[str]:
    return [decoded(message)["state"] for message in messages if message.topic == f"{STATION}/status"]


def emptied(line: Line) -> None:
    wait_until(lambda: line.journal.outbox.depth() == 0, within_s=60, what="an empty outbox")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_every_verdict_arrives_once_and_in_order(broker: Mosquitto, line: Line, protocol: str) -> None:
    """The whole purpose."""
    with Listener(broker.port) as listener:
        line.good(200)
        publisher = line.publisher(broker.port, protocol=protocol)
        line.good(100)
        emptied(line)

        received = listener.wait_for(lambda m: len(m) >= 300, topic_end="/verdict")
        assert [decoded(message)["rec"] for message in received] == list(range(1, 301))
        assert publisher.link.protocol == protocol
        assert publisher.link.counters["published"] == 300


def test_messages_say_what_they_are(broker: Mosquitto, line: Line) -> None:
    """MQTT 5 consumers route by content type; nobody may get a result or picture retained."""
    with Listener(broker.port) as listener:
        line.publisher(broker.port)
        line.flagged(side_px=64)
        emptied(line)
        verdict = listener.wait_for(bool, topic_end="/verdict")[0]
        image_ref = decoded(verdict)["image"]
        image = listener.wait_for(bool, topic_end=image_ref["topic"])[0]

        assert (verdict.content_type, verdict.user, verdict.qos) == ("application/json", (("schema", "1"),), 1)
        assert (image.content_type, image.qos, len(image.payload)) == ("image/jpeg", 1, image_ref["bytes"])
        assert image.payload[:2] == b"\xff\xd8"
    with Listener(broker.port) as late:
        late.wait_for(bool, topic_end="/status")

        assert [message.topic for message in late.messages() if message.retain] == [f"{STATION}/status"]


def test_birth_comes_before_the_first_verdict(broker: Mosquitto, line: Line) -> None:
    """A consumer that learns of a station by its status must not see results of one that it does not know."""
    line.good(5)
    with Listener(broker.port) as listener:
        line.publisher(broker.port)
        listener.wait_for(lambda m: len(m) == 5, topic_end="/verdict")

        assert listener.messages()[0].topic == f"{STATION}/status"


def test_live_verdicts_are_not_held_back(broker: Mosquitto, line: Line) -> None:
    """The rate limit is for a backlog; with one message per second the twenty here would never come in time."""
    with Listener(broker.port) as listener:
        line.publisher(broker.port, backlog_rate_hz=1.0)
        for _ in range(20):
            line.good(1)

        listener.wait_for(lambda m: recs(m) == list(range(1, 21)), topic_end="/verdict", timeout_s=10)


def test_retained_status_follows_the_station(broker: Mosquitto, line: Line) -> None:
    """SCADA reads the retained status: online while it runs, degraded when it says so, offline after a stop."""
    with Listener(broker.port, f"{STATION}/status") as listener:
        publisher = line.publisher(broker.port)
        listener.wait_for(lambda m: statuses(m) == ["online"])
        line.degrade("camera cam1: no frame for 2 s")
        publisher.status_changed()
        listener.wait_for(lambda m: statuses(m) == ["online", "degraded"])
        assert publisher.stop(5.0)

        last = listener.wait_for(lambda m: statuses(m) == ["online", "degraded", "offline"])[-1]
        assert decoded(last)["reason"] == "stopped"
        assert not publisher.connected
        assert not publisher.alive()
    with Listener(broker.port, f"{STATION}/status") as late:
        assert statuses(late.wait_for(bool)) == ["offline"]


def test_will_says_offline_when_the_agent_is_killed(broker: Mosquitto, tmp_path: Path) -> None:
    """`kill -9` leaves no time for a goodbye; the broker says it in our place, retained."""
    program = (
        "import sys, threading; from pathlib import Path; from tests.kit.publishing import Line\n"
        "line = Line(Path(sys.argv[1])); line.publisher(int(sys.argv[2])); threading.Event().wait()"
    )
    with Listener(broker.port, f"{STATION}/status") as listener:
        command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(broker.port)]
        agent = subprocess.Popen(command, cwd=ROOT)
        try:
            listener.wait_for(lambda m: statuses(m) == ["online"])
        finally:
            agent.kill()
            agent.wait()

        last = listener.wait_for(lambda m: statuses(m) == ["online", "offline"])[-1]
        assert decoded(last)["reason"] == "the connection was lost"
    with Listener(broker.port, f"{STATION}/status") as late:
        assert statuses(late.wait_for(bool)) == ["offline"]


def test_metrics_carry_the_link_s_counters(broker: Mosquitto, line: Line) -> None:
    """Whoever watches the plant sees refusals without reading logs."""
    with Listener(broker.port) as listener:
        line.publisher(broker.port, metrics_s=0.2)
        line.good(3)
        emptied(line)

        sent = listener.wait_for(
            lambda m: any(decoded(x)["counters"].get("mqtt_published") == 3 for x in m), topic_end="/metrics"
        )
        assert {message.qos for message in sent} == {0}


def test_broker_may_come_later(line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away at the start costs one line in the log and nothing else."""
    caplog.set_level(logging.INFO, "agent.publisher")
    broker = Mosquitto(tmp_path, ROOMY)
    publisher = line.publisher(broker.port, reconnect_max_s=0.3)
    line.good(20)
    wait_until(lambda: publisher.link.error, within_s=30, what="a first failure")
    broker.start()
    try:
        emptied(line)

        said = [record.message for record in caplog.records if record.message.startswith("broker_")]
        assert said == ["broker_lost", "broker_connected"]
        assert "nothing listens on" in publisher.link.error
        assert publisher.link.problem is None
    finally:
        publisher.stop(5.0)
        broker.stop()


def test_stop_sends_what_waits(broker: Mosquitto, line: Line) -> None:
    """SIGTERM with a live broker loses no time and no message."""
    with Listener(broker.port) as listener:
        publisher = line.publisher(broker.port)
        line.good(300)
        assert publisher.stop(5.0)

        assert line.journal.outbox.depth() == 0
        assert recs(listener.wait_for(lambda m: len(m) >= 300, topic_end="/verdict")) == list(range(1, 301))
        assert statuses(listener.wait_for(lambda m: len(m) >= 2, topic_end="/status"))[-1] == "offline"


def test_stop_before_start_and_twice_is_harmless(broker: Mosquitto, line: Line) -> None:
    """A start that fails half way still closes everything."""
    publisher = line.publisher(broker.port)
    assert publisher.stop(5.0)
    assert publisher.stop(5.0)
    publisher.status_changed()
    idle = Publisher(
        line.config(broker.port), line.journal.outbox, station=STATION, status=lambda: line.state, metrics=line.metrics
    )

    assert idle.stop(1.0)


def test_failing_status_and_metrics_do_not_stop_verdicts(broker: Mosquitto, line: Line) -> None:
    """A disk that can't be asked for its free space must not silence the line."""

    def broken() -> None:
        raise OSError(5, "Input/output error")

    with Listener(broker.port) as listener:
        publisher = Publisher(
            line.config(broker.port, metrics_s=0.1),
            line.journal.outbox,
            station=STATION,
            status=broken,  # type: ignore[arg-type]
            metrics=broken,  # type: ignore[arg-type]
        )
        publisher.start()
        line.good(10)
        listener.wait_for(lambda m: len(m) == 10, topic_end="/verdict")

        assert publisher.alive()
        assert publisher.link.counters["bugs"] > 0
        assert publisher.stop(5.0)


def test_a_subscriber_with_a_default_queue_survives_a_backlog(tmp_path: Path, line: Line) -> None:
    """A backlog at full speed overflows the broker's queue of 1,000 per client; at the limited rate none is lost."""
    line.good(1_500)
    with Mosquitto(tmp_path) as broker, Listener(broker.port, protocol=MQTTProtocolVersion.MQTTv311) as listener:
        line.publisher(broker.port, backlog_rate_hz=500.0)

        listener.wait_for(lambda m: recs(m) == list(range(1, 1_501)), topic_end="/verdict")
