"""A fleet as configs/fleet has it: a site's broker with a bridge to a central one, and the bench that measures it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.conftest import ROOT
from tests.kit.broker import Listener, Mosquitto
from tests.kit.publishing import STATION, Line, recs
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.waiting import wait_until
from tools.bench_fleet.agents import station_name

pytestmark = pytest.mark.mosquitto


def _bridge(port: int) -> list[str]:
    """The example as it is, with the tests' address and without TLS."""
    lines = (ROOT / "configs" / "fleet" / "bridge.conf").read_text().splitlines()
    tls = ("bridge_cafile", "bridge_certfile", "bridge_keyfile")
    lines = [line for line in lines if line and not line.startswith(("#", *tls))]
    return [f"address 127.0.0.1:{port}" if line.startswith("address ") else line for line in lines]


def _bridged(centre: Mosquitto) -> bool:
    return "site-plant1" in centre.log()


@contextmanager
def _sender(port: int) -> Iterator[mqtt.Client]:
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def test_verdicts_go_up_and_commands_come_down_and_pictures_stay(tmp_path: Path) -> None:
    """What the example's topic lines promise, with a real publisher at the site's broker."""
    with Mosquitto(tmp_path) as centre, Mosquitto(tmp_path, _bridge(centre.port)) as site:
        wait_until(lambda: _bridged(centre), 30, what="the bridge")
        with (
            Listener(centre.port) as up,
            Listener(site.port, documented=False) as down,
            Line(tmp_path / "journal") as line,
            _sender(centre.port) as office,
        ):
            line.flagged(64)
            line.publisher(site.port, metrics_s=0.1)
            down.wait_for(lambda ms: any("/image/" in m.topic for m in ms))
            down.wait_for(lambda ms: len(ms) >= 1, topic_end="/metrics")
            line.good(5)
            up.wait_for(lambda ms: len(ms) >= 6, topic_end="/verdict")
            up.wait_for(lambda ms: len(ms) >= 1, topic_end="/status")
            office.publish(f"{STATION}/cmd/ping", '{"id":"1"}', qos=1)
            down.wait_for(lambda ms: len(ms) >= 1, topic_end="/cmd/ping")
            topics = {
                m.topic.removeprefix(f"{STATION}/").partition("/")[0] for m in up.messages() if STATION in m.topic
            }

    assert topics <= {"verdict", "status", "event", "cmd"}


def test_what_is_said_while_the_wide_area_is_cut_comes_when_it_is_back(tmp_path: Path) -> None:
    """The site goes on alone; the bridge keeps verdicts and hands them on in order."""
    with (
        Mosquitto(tmp_path) as centre,
        Listener(centre.port) as up,
        TcpProxy(centre.port) as wide_area,
        Mosquitto(tmp_path, _bridge(wide_area.port)) as site,
        Line(tmp_path / "journal") as line,
    ):
        wait_until(lambda: _bridged(centre), 30, what="the bridge")
        line.publisher(site.port)
        line.good(5)
        up.wait_for(lambda ms: len(ms) >= 5, topic_end="/verdict")
        wide_area.refuse()
        wide_area.cut()
        line.good(50)
        wait_until(lambda: line.journal.outbox.depth() == 0, 30, what="the site's broker has all")
        wide_area.ok()
        came = up.wait_for(lambda ms: len(recs(ms)) >= 55, topic_end="/verdict", timeout_s=90)
    assert recs(came) == list(range(1, 56))


def test_the_bench_of_a_fleet_loses_nothing_and_says_what_it_measured(tmp_path: Path) -> None:
    """`tools/bench fleet --quick --json` is one document, with and without a bridge."""
    done = subprocess.run(
        [str(ROOT / "tools" / "bench"), "fleet", "--quick", "--json", "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DEFECT_AGENT_VENV": sys.prefix},
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["checks"]["fleet_lost"]["value"] == 0
    assert [row["part"] for row in document["rows"]] == ["site", "bridge"]
    for row in document["rows"]:
        assert row["received"] - row["repeated"] == row["sent"] == row["acked"] > 0
        assert all(row["shares"]), "the shared subscription gave one consumer nothing"


def test_a_thousand_simulated_agents_are_a_thousand_stations() -> None:
    """Two of one name would throw each other off."""
    names = {station_name(number) for number in range(1_000)}
    assert len(names) == 1_000
    assert all(name.count("/") == 4 for name in names)
