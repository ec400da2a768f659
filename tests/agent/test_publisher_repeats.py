"""What a broker acknowledged and took into its grave is sent once more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.broker import Listener, Mosquitto
from tests.kit.publishing import STATION, Line, decoded, recs
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.mosquitto


def test_what_a_dying_broker_had_acknowledged_and_not_delivered_arrives_after_it(tmp_path: Path) -> None:
    """Acknowledged, nobody there yet, `kill -9`, an empty broker comes back: the plant misses nothing."""
    with Mosquitto(tmp_path) as broker, TcpProxy(broker.port) as proxy, Line(tmp_path / "state") as line:
        line.publisher(proxy.port, reconnect_max_s=0.3)
        line.good(20)
        line.flagged(48)
        wait_until(lambda: line.journal.outbox.depth() == 0, what="everything acknowledged")
        proxy.refuse()  # so that the plant is back before the publisher is
        broker.kill()
        broker.start()
        with Listener(broker.port) as plant:
            line.good(5)
            proxy.ok()
            plant.wait_for(lambda m: len(recs(m)) >= 26, topic_end="/verdict")
            verdicts, images = plant.messages("/verdict"), [m for m in plant.messages() if "/image/" in m.topic]

    assert recs(verdicts) == list(range(1, 27))
    assert [m.topic for m in images] == [decoded(verdicts[20])["image"]["topic"]]


def test_a_link_that_breaks_again_and_again_still_gets_on(tmp_path: Path) -> None:
    """Each message is repeated at most once, so the repeats never eat the whole connection."""
    with (
        Mosquitto(tmp_path, ("max_queued_messages 10000",)) as broker,
        TcpProxy(broker.port) as proxy,
        Line(tmp_path / "state") as line,
        Listener(broker.port, f"{STATION}/verdict") as plant,
    ):
        line.good(100)
        proxy.cut_after(9_000)
        line.publisher(proxy.port, reconnect_max_s=0.1)
        plant.wait_for(lambda m: len(recs(m)) >= 100, timeout_s=60)
        received = plant.messages("/verdict")

    assert recs(received) == list(range(1, 101))
    assert len(received) > 100


def test_an_orderly_stop_repeats_nothing(tmp_path: Path) -> None:
    """Only a broken connection leaves doubt."""
    with Mosquitto(tmp_path) as broker, Line(tmp_path / "state") as line, Listener(broker.port) as plant:
        assert line.publisher(broker.port).stop(5.0)
        for _ in range(2):
            line.good(5)
            publisher = line.publisher(broker.port)
            wait_until(lambda: line.journal.outbox.depth() == 0)
            publisher.stop(5.0)
        received = plant.wait_for(lambda m: len(m) >= 10, topic_end="/verdict")

    assert [decoded(m)["rec"] for m in received] == list(range(1, 11))
