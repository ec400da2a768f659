"""The station as a Sparkplug host sees it: a real broker, and a decoder that is not ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.frame import Stamp
from agent.sparkplug import Door
from agent.sparkplug.memory import FILE_NAME
from agent.sparkplug.payload import DataType, Value, decode
from agent.sparkplug.tags import DEVICE, NODE
from tests.kit.broker import Listener, Mosquitto, free_port
from tests.kit.sparkplug_host import SparkplugHost, TahuCodec, why_no_tahu
from tests.kit.sparkplug_line import DCMD, DDATA, NCMD, Plant
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.mosquitto, pytest.mark.skipif(bool(why_no_tahu()), reason=why_no_tahu())]

GROUP = "spBv1.0/acme-plant1-finishing-line3"


@pytest.fixture(scope="module")
def tahu() -> Iterator[TahuCodec]:
    """Eclipse Tahu's decoder."""
    with TahuCodec() as codec:
        yield codec


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A real broker."""
    with Mosquitto(tmp_path) as started:
        yield started


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """A journal, without a node yet."""
    with Plant(tmp_path / "state") as made:
        yield made


def bdseqs(host: SparkplugHost, kind: str) -> list[int]:
    return [message.values["bdSeq"] for message in host.heard(kind)]


# A session from birth to death


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_host_sees_births_then_each_part_then_the_death(
    plant: Plant, broker: Mosquitto, tahu: TahuCodec, protocol: str
) -> None:
    """What an operator sees in the tree of tags, and what a historian files."""
    plant.line.good(3)
    with SparkplugHost(broker.port, tahu) as host:
        node = plant.node(broker.port, broker={"protocol": protocol})
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.flagged(8, 2)
        plant.line.good(1)
        host.wait_for(lambda: host.records() == [4, 5, 6], "three live parts")
        assert node.stop(2.0)
        host.wait_for(lambda: host.heard("NDEATH"), "the death")

        kinds = [message.kind for message in host.heard()]
        nbirth, dbirth = host.heard("NBIRTH")[0], host.heard("DBIRTH")[0]
        defect = next(message for message in host.heard("DDATA") if message.values.get("Part/Record") == 4)
        death = host.heard("NDEATH")[0]

    assert kinds[:2] == ["NBIRTH", "DBIRTH"]
    assert kinds[-1] == "NDEATH"
    assert nbirth.topic == f"{GROUP}/NBIRTH/cam1"
    assert dbirth.topic == f"{GROUP}/DBIRTH/cam1/inspection"
    assert death.topic == f"{GROUP}/NDEATH/cam1"
    assert nbirth.values["Properties/Station"] == "acme/plant1/finishing/line3/cam1"
    assert (nbirth.values["State/Code"], nbirth.values["Bundle/Name"]) == (1, "test-1.0.0")
    assert (dbirth.values["Part/Record"], dbirth.values["Part/Id"]) == (3, "part-3")
    assert (defect.values["Part/Decision"], defect.values["Part/Code"]) == ("defect", 2)
    assert defect.values["Part/Reason"] == "a test"
    assert not defect.historical
    assert nbirth.values["bdSeq"] == death.values["bdSeq"] == 0


def test_every_tag_is_in_the_births_with_its_type_and_unit(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """A host builds its tags from the births alone."""
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        metrics = {
            metric["name"]: metric for kind in ("NBIRTH", "DBIRTH") for metric in host.heard(kind)[0].payload["metrics"]
        }

    expected = {tag.name: tag for tag in (*NODE, *DEVICE)}
    assert metrics.keys() == expected.keys() | {"bdSeq", "Node Control/Rebirth"}
    for name, tag in expected.items():
        found = metrics[name]
        unit = found.get("properties", {}).get("engUnit", {}).get("value", "")
        assert (found["alias"], found["type"].upper(), unit) == (tag.alias, tag.datatype.name, tag.unit)


def test_before_the_first_part_nothing_means_ok(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Code 0 is no result; score and class are null."""
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        values = host.heard("DBIRTH")[0].values

    shown = [values[name] for name in ("Part/Code", "Part/Record", "Part/Decision", "Part/Score")]
    assert shown == [0, 0, None, None]


def test_sequence_numbers_wrap_after_255(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """The host counts along; 600 parts wrap twice."""
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(600)
        host.wait_for(lambda: len(host.records()) == 600, "600 parts")

        assert host.records() == list(range(1, 601))
        assert {message.payload["seq"] for message in host.heard()} == set(range(256))


def test_status_and_counters_go_out_when_they_change(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Report by exception: what stays the same is not sent again."""
    with SparkplugHost(broker.port, tahu) as host:
        node = plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.degrade("camera cam1: no frame for 2 s")
        node.status_changed()
        host.wait_for(lambda: any(m.values.get("State/Code") == 2 for m in host.heard("NDATA")), "degraded")
        plant.line.good(2)
        host.wait_for(lambda: any(m.values.get("Count/OK") == 2 for m in host.heard("DDATA")), "the counter")
        told = [set(message.values) for message in host.heard("NDATA")]

    assert {"State/Code", "State/Name", "State/Reason"} in told
    assert not any("Bundle/Name" in names for names in told)


def test_data_without_types_are_an_option(plant: Plant, broker: Mosquitto) -> None:
    """The specification's recommendation, for hosts that go by the births."""
    with Listener(broker.port, "spBv1.0/#", documented=False) as host:
        plant.node(broker.port, datatype_in_data=False)
        host.wait_for(lambda ms: len(ms) >= 2)
        plant.line.good(1)
        data = host.wait_for(bool, topic_end="/DDATA/cam1/inspection")

    assert {metric.datatype for metric in decode(data[0].payload).metrics} == {None}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_broker_itself_sees_will_session_and_subscriptions_as_they_are_to_be(
    plant: Plant, tmp_path: Path, protocol: str
) -> None:
    """From mosquitto's own log: a clean session, the will, commands subscribed at QoS 1, and only then the births."""
    with Mosquitto(tmp_path, ["log_type all"]) as broker:
        node = plant.node(broker.port, broker={"protocol": protocol})
        wait_until(lambda: node.born, what="births")
        plant.line.good(1)
        wait_until(lambda: "/DDATA/" in broker.log(), what="a part")
        assert node.stop(2.0)
        wait_until(lambda: "Received DISCONNECT" in broker.log(), what="a goodbye")
        lines = [
            line.split(": ", 1)[-1]
            for line in broker.log().splitlines()
            if "-spb" in line or "spBv1.0" in line or "Will" in line
        ]

    def first(*words: str) -> int:
        return next(i for i, line in enumerate(lines) if all(word in line for word in words))

    assert first("connected", "c1") < first("Will message specified", "r0, q1")
    assert first("/NDEATH/cam1") < first("/NCMD/cam1 (QoS 1)") < first("/DCMD/cam1/inspection (QoS 1)")
    assert first("/DCMD/cam1/inspection (QoS 1)") < first("Received PUBLISH", "q0, r0", "/NBIRTH/cam1")
    assert first("/NBIRTH/cam1") < first("q0, r0", "/DBIRTH/") < first("q0, r0", "/DDATA/")
    assert first("Received PUBLISH", "q1, r0", "/NDEATH/cam1") < first("Received DISCONNECT")
    assert len({line.split("from ")[1].split()[0] for line in lines if "Received PUBLISH from" in line}) == 1


# bdSeq


def test_bdseq_grows_with_each_connection_and_outlives_the_process(
    plant: Plant, broker: Mosquitto, tahu: TahuCodec
) -> None:
    """Births and deaths of one session have one number; the host tells sessions apart by it."""
    with SparkplugHost(broker.port, tahu) as host, TcpProxy(broker.port) as proxy:
        for session in range(3):
            node = plant.node(proxy.port)
            host.wait_for(lambda n=session: len(host.heard("DBIRTH")) > 2 * n, "births")  # type: ignore[misc]
            proxy.cut()
            host.wait_for(lambda n=session: len(host.heard("DBIRTH")) > 2 * n + 1, "births again")  # type: ignore[misc]
            assert node.stop(2.0)
        host.wait_for(lambda: len(host.heard("NDEATH")) == 6, "six deaths")

        assert bdseqs(host, "NBIRTH") == bdseqs(host, "NDEATH") == list(range(6))
    assert json.loads((plant.folder / FILE_NAME).read_text())["next_bdseq"] == 6


def test_bdseq_wraps_after_255(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """It is a number of 0 to 255."""
    (plant.folder / FILE_NAME).write_text('{"next_bdseq": 255, "last": 0, "unsent": []}')
    with SparkplugHost(broker.port, tahu) as host:
        for _ in range(2):
            node = plant.node(broker.port)
            host.wait_for(lambda: host.is_alive, "births")
            assert node.stop(2.0)
            host.wait_for(lambda: not host.is_alive, "the death")

        assert bdseqs(host, "NBIRTH") == [255, 0]


def test_a_connection_that_never_stood_uses_no_number(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """A broker that is away for a night is no session."""
    with SparkplugHost(broker.port, tahu) as host:
        node = plant.node(free_port())
        wait_until(lambda: node._told, what="the broker is missed")
        assert node.stop(2.0)
        plant.node(broker.port)
        host.wait_for(lambda: host.is_alive, "births")

        assert bdseqs(host, "NBIRTH") == [0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"next_bdseq": -1}', b"\xff", b'{"next_bdseq": 1, "last": 3, "unsent": [[9, 2]]}']
)
def test_a_damaged_memory_starts_anew(plant: Plant, broker: Mosquitto, tahu: TahuCodec, content: bytes) -> None:
    """A power cut in the wrong moment, or somebody's editor."""
    (plant.folder / FILE_NAME).write_bytes(content)
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.is_alive, "births")


# Rebirth


def test_a_host_that_comes_late_asks_for_a_rebirth(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Births are not retained: who missed them asks. bdSeq stays, sequence numbers begin again, no death between."""
    node = plant.node(broker.port)
    wait_until(lambda: node.born, what="births that nobody hears")
    with SparkplugHost(broker.port, tahu) as first:
        first.ask_rebirth(NCMD)
        first.wait_for(lambda: first.heard("DBIRTH"), "births")
        plant.line.good(5)
        first.wait_for(lambda: len(first.records()) == 5, "parts")
        first.ask_rebirth(NCMD)
        first.wait_for(lambda: len(first.heard("DBIRTH")) == 2, "births again")
        plant.line.good(1)
        first.wait_for(lambda: len(first.records()) == 6, "the next part")

        assert bdseqs(first, "NBIRTH") == [0, 0]
        assert not first.heard("NDEATH")
        assert first.heard("DBIRTH")[1].values["Part/Record"] == 5
        assert first.records() == [1, 2, 3, 4, 5, 6]


def test_a_storm_of_rebirth_requests_makes_few_births(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Two hosts, or two nodes with one name, ask without end: parts go on all the same."""
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port, rebirth_s=30.0)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        for _ in range(200):
            host.ask_rebirth(NCMD)
        plant.line.good(20)
        host.wait_for(lambda: len(host.records()) == 20, "parts")

        assert len(host.heard("NBIRTH")) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\x00", b"\xff" * 100, b'{"online": true}', b"\x12\x05abc", b"\x12\x02\x10\x01",
        b"\x12\x18\x0a\x14Node Control/Rebirth\x70\x00", b"\x12\x1c\x0a\x14Node Control/Rebirth\x7a\x04true",
        b"\x12\x16\x0a\x14Node Control/Rebirth", b"\x12" * 70_000,
    ],
)  # fmt: skip
def test_what_asks_for_nothing_sound_changes_nothing(
    plant: Plant, broker: Mosquitto, tahu: TahuCodec, payload: bytes
) -> None:
    """False, text, an alias, no value, no payload, too much: no birth, and the node goes on."""
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        host.send(NCMD, payload)
        host.send(DCMD, payload)
        plant.line.good(1)
        host.wait_for(lambda: host.records() == [1], "the next part")

        assert len(host.heard("NBIRTH")) == 1


def test_a_retained_request_is_not_done(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """It would cause a rebirth at every connection, for ever."""
    with SparkplugHost(broker.port, tahu) as host:
        rebirth = tahu.encode({"metrics": [{"name": "Node Control/Rebirth", "type": "Boolean", "value": True}]})
        host.send(NCMD, rebirth, retain=True)
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(1)
        host.wait_for(lambda: host.records() == [1], "a part")

        assert len(host.heard("NBIRTH")) == 1
        host.send(NCMD, b"", retain=True)


# Commands


class Writes:
    """Takes what hosts write."""

    def __init__(self, *, fails: bool = False) -> None:
        self.taken: list[tuple[str, Value]] = []
        self._fails = fails
        self._lock = threading.Lock()

    def __call__(self, name: str, value: Value, /) -> str:
        with self._lock:
            self.taken.append((name, value))
        if self._fails:
            raise RuntimeError("a bug")
        return "ok"


def test_what_a_host_writes_comes_to_the_door_of_the_commands(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """By name and by alias; the answer is a tag too."""
    writes = Writes()
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port, door=Door(on_command=writes, writable=("Control/Trigger", "Control/Pause")))
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        births = {metric["name"]: metric for metric in host.heard("DBIRTH")[0].payload["metrics"]}
        host.write(DCMD, {"name": "Control/Trigger", "type": "String", "value": "A17"})
        host.write(DCMD, {"alias": births["Control/Pause"]["alias"], "type": "Boolean", "value": True})
        host.wait_for(lambda: len(writes.taken) == 2, "both writes")
        host.wait_for(lambda: any("Control/Reply" in m.values for m in host.heard("DDATA")), "a reply")
        replies = [m.values["Control/Reply"] for m in host.heard("DDATA") if "Control/Reply" in m.values]

    assert writes.taken == [("Control/Trigger", "A17"), ("Control/Pause", True)]
    assert replies[0] == "Control/Trigger: ok"
    assert "Control/Recipe" not in births


def test_what_does_not_fit_is_refused_and_told(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Wrong types, read-only tags, unknown ones: nothing is done, and the plant hears of it once."""
    writes = Writes()
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port, door=Door(on_command=writes, writable=("Control/Trigger", "Control/Pause")))
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        host.write(DCMD, {"name": "Control/Pause", "type": "String", "value": "yes"})
        host.write(DCMD, {"name": "Part/Code", "type": "Int32", "value": 1})
        host.write(DCMD, {"name": "Control/Reply", "type": "String", "value": "x"})
        host.write(DCMD, {"name": "Control/Trigger", "type": "String", "value": "a\nb"})
        host.write(DCMD, {"name": "Control/Trigger", "type": "String", "value": "x" * 300})
        host.write(DCMD, {"name": "nothing", "type": "Int32", "value": 1})
        host.write(DCMD, {"name": "Control/Trigger", "type": "String", "value": "good"})
        host.wait_for(lambda: writes.taken, "the good one")
        plant.line.journal.flush()
        rows = plant.line.journal.outbox.pending(limit=100)

    assert writes.taken == [("Control/Trigger", "good")]
    refusals = [json.loads(row.body or b"") for row in rows if row.kind == "event"]
    assert [event["event"] for event in refusals] == ["command_refused"]
    assert "Control/Pause" in refusals[0]["text"]


def test_a_command_that_fails_by_a_bug_ends_nothing(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Whatever the command stumbled over, parts go on."""
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port, door=Door(on_command=Writes(fails=True), writable=("Control/Trigger",)))
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        host.write(DCMD, {"name": "Control/Trigger", "type": "String", "value": "A17"})
        host.wait_for(lambda: any("bug" in str(m.values.get("Control/Reply")) for m in host.heard("DDATA")), "a reply")
        plant.line.good(1)
        host.wait_for(lambda: host.records() == [1], "a part")


def test_a_flood_of_writes_is_limited(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """A script that went wild must not trigger a thousand parts a second."""
    writes = Writes()
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port, door=Door(on_command=writes, writable=("Control/Trigger",)))
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        payload = tahu.encode({"metrics": [{"name": "Control/Trigger", "type": "String", "value": "A"}] * 40})
        host.send(DCMD, payload)
        host.wait_for(
            lambda: any("refused" in str(m.values.get("Control/Reply")) for m in host.heard("DDATA")), "refusal"
        )

    assert 20 <= len(writes.taken) < 40


# What was stored meanwhile


def test_what_was_recorded_while_the_node_was_away_comes_as_historical(
    plant: Plant, broker: Mosquitto, tahu: TahuCodec
) -> None:
    """In order, once, marked; and what is live is not marked and does not wait."""
    with SparkplugHost(broker.port, tahu) as host:
        node = plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(5)
        host.wait_for(lambda: len(host.records()) == 5, "live parts")
        assert node.stop(2.0)
        plant.line.good(700)
        plant.node(broker.port)
        host.wait_for(lambda: len(host.heard("DBIRTH")) == 2, "births")
        plant.line.good(3)
        host.wait_for(lambda: len(host.records()) == 708, "all parts")

        assert host.records(historical=False) == [*range(1, 6), *range(706, 709)]
        assert host.records(historical=True) == list(range(6, 706))


def test_a_broken_connection_loses_no_part(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """QoS 0 tells nobody what arrived: what may be lost is sent once more, as historical, and removed by its record."""
    with SparkplugHost(broker.port, tahu) as host, TcpProxy(broker.port) as proxy:
        plant.node(proxy.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        for round_ in range(4):
            plant.line.good(50)
            proxy.cut_after(3_000 if round_ % 2 else 0)
            plant.line.good(50)
            proxy.cut_after(0)
            proxy.cut()
        host.wait_for(lambda: set(host.records()) == set(range(1, 401)), "every part at least once")

        late = host.records(historical=True)
        assert len(host.heard("NBIRTH")) > 1
        assert late


def test_a_half_open_connection_loses_no_part(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """A cable pulled behind a switch: nothing fails for a while, and nothing arrives."""
    with SparkplugHost(broker.port, tahu) as host, TcpProxy(broker.port) as proxy:
        plant.node(proxy.port, broker={"keepalive_s": 2})
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(5)
        host.wait_for(lambda: len(host.records()) == 5, "live parts")
        proxy.stall()
        plant.line.good(20)
        host.wait_for(lambda: host.heard("NDEATH"), "the broker misses the node")
        proxy.ok()
        host.wait_for(lambda: set(host.records()) == set(range(1, 26)), "every part")

        assert set(range(6, 26)) <= set(host.records(historical=True))


def test_of_a_long_outage_the_newest_are_sent_and_the_rest_is_told(
    plant: Plant, broker: Mosquitto, tahu: TahuCodec
) -> None:
    """Days of outage: bounded, and said; the journal keeps all of them."""
    with SparkplugHost(broker.port, tahu) as host:
        node = plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        assert node.stop(2.0)
        plant.line.good(300)
        plant.node(broker.port, history_limit=100)
        host.wait_for(lambda: len(host.records()) == 100, "the newest")
        plant.line.journal.flush()
        told = [
            json.loads(row.body or b"") for row in plant.line.journal.outbox.pending(limit=1_000) if row.kind == "event"
        ]

        assert host.records(historical=True) == list(range(201, 301))
        assert [(event["event"], event["data"]["skipped"]) for event in told] == [("sparkplug_history_skipped", 200)]
        assert host.heard("NBIRTH")[-1].values["Queue/Skipped"] == 200


def test_live_parts_do_not_wait_for_history(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """One old verdict a second beside a live line: the operator sees the part of now."""
    plant.line.good(1)
    (plant.folder / FILE_NAME).write_text('{"next_bdseq": 0, "last": 0, "unsent": []}')
    plant.line.good(200)
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port, history_rate_hz=0.1)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(50)
        host.wait_for(lambda: len(host.records(historical=False)) == 50, "the live ones")

        assert len(host.records(historical=True)) <= 5


def test_a_new_station_sends_no_history_of_before(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Sparkplug is switched on after a year: the year is not for this host."""
    plant.line.good(50)
    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(1)
        host.wait_for(lambda: host.records() == [51], "the first")


def test_a_verdict_that_the_plc_was_not_told_is_not_shown(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """`line.result: durable`: on the disk, then told to the PLC, then to everybody else."""
    from tests.kit.verdicts import make_part, make_verdict

    with SparkplugHost(broker.port, tahu) as host:
        plant.node(broker.port)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        part = make_part(1_000, triggered=Stamp.now())
        plant.line.journal.trigger(part)
        verdict = make_verdict(part)
        rec = plant.line.journal.record(verdict, held=True).wait(5)
        host.ask_rebirth(NCMD)
        host.wait_for(lambda: len(host.heard("DBIRTH")) == 2, "the node is awake")
        assert host.records() == []
        plant.line.journal.told(verdict, rec)
        host.wait_for(lambda: host.records() == [rec], "now")


# The primary host


def test_births_wait_for_the_primary_host(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Nothing is published for nobody; what is recorded meanwhile is history."""
    with SparkplugHost(broker.port, tahu, host_id="scada") as host:
        host.tell_state(online=False)
        with Listener(broker.port, "$SYS/broker/clients/connected", documented=False):
            plant.node(broker.port, primary_host_id="scada")
            plant.line.good(4)
        host.tell_state(online=True)
        host.wait_for(lambda: len(host.records()) == 4, "history")
        plant.line.good(1)
        host.wait_for(lambda: len(host.records()) == 5, "live")

        assert host.records(historical=True) == [1, 2, 3, 4]
        assert host.records(historical=False) == [5]


def test_a_host_that_goes_is_left_and_found_again(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Offline: the death, a new session, and no birth until it is back; then all that it missed."""
    with SparkplugHost(broker.port, tahu, host_id="scada") as host:
        plant.node(broker.port, primary_host_id="scada")
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(3)
        host.wait_for(lambda: len(host.records()) == 3, "live")
        host.tell_state(online=False)
        host.wait_for(lambda: host.heard("NDEATH"), "the death")
        plant.line.good(10)
        assert len(host.heard("NBIRTH")) == 1
        host.tell_state(online=True)
        host.wait_for(lambda: set(host.records(historical=True)) >= set(range(4, 14)), "what it missed")

        assert bdseqs(host, "NBIRTH") == [0, 1]
        assert bdseqs(host, "NDEATH") == [0]


def test_states_that_are_old_or_broken_change_nothing(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """The will of a host's old session comes after its new birth, with the older time."""
    with SparkplugHost(broker.port, tahu, host_id="scada") as host:
        plant.node(broker.port, primary_host_id="scada")
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        host.tell_state(online=False, timestamp_ms=1_000)
        for payload in (b"OFFLINE", b"{}", b"[]", b"\xff", b'{"online": 0, "timestamp": 9e15}', b"[" * 100_000):
            host.send("spBv1.0/STATE/scada", payload)
        host.send("spBv1.0/STATE/other", json.dumps({"online": False, "timestamp": 9_000_000_000_000}).encode())
        plant.line.good(1)
        host.wait_for(lambda: host.records() == [1], "the next part")

        assert not host.heard("NDEATH")


def test_hosts_of_2_2_are_understood_by_option(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Their STATE is a word on another topic."""
    with SparkplugHost(broker.port, tahu) as host:
        host.send("STATE/scada", b"OFFLINE", retain=True)
        plant.node(broker.port, primary_host_id="scada", primary_host_form="2.2")
        plant.line.good(1)
        host.send("STATE/scada", b"ONLINE", retain=True)
        host.wait_for(lambda: host.records(historical=True) == [1], "history")
        host.send("STATE/scada", b"OFFLINE", retain=True)
        host.wait_for(lambda: host.heard("NDEATH"), "the death")


# Brokers


def test_the_broker_is_killed_and_comes_back(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """Nothing of it is left, not even the host's STATE: the node waits until the host is back, and sends all."""
    with SparkplugHost(broker.port, tahu, host_id="scada") as host:
        plant.node(broker.port, primary_host_id="scada")
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(10)
        host.wait_for(lambda: len(host.records()) == 10, "live")
        broker.kill()
        plant.line.good(10)
        broker.start()
        host.wait_for(lambda: set(host.records()) == set(range(1, 21)), "what was recorded meanwhile")

        assert set(range(11, 21)) <= set(host.records(historical=True))
        assert bdseqs(host, "NBIRTH") == [0, 1]


def test_nothing_is_retained_and_no_session_is_left(plant: Plant, broker: Mosquitto, tahu: TahuCodec) -> None:
    """A subscriber that comes after the end hears nothing of an old session."""
    node = plant.node(broker.port)
    wait_until(lambda: node.born, what="births that nobody hears")
    with SparkplugHost(broker.port, tahu) as host:
        host.ask_rebirth(NCMD)
        host.wait_for(lambda: host.heard("DBIRTH"), "births")
        plant.line.good(3)
        host.wait_for(lambda: len(host.records()) == 3, "parts")
        assert node.stop(2.0)
        host.wait_for(lambda: host.heard("NDEATH"), "the death")
        host.ask_rebirth(NCMD)
    with Listener(broker.port, "spBv1.0/#", documented=False) as late:
        plant.node(broker.port)
        messages: list[Any] = late.wait_for(lambda ms: any("DBIRTH" in m.topic for m in ms))

    assert [message.topic.split("/")[2] for message in messages][:2] == ["NBIRTH", "DBIRTH"]
    assert not any(message.retain for message in messages)
    assert DDATA not in [message.topic for message in messages[:2]]


def test_ids_have_no_slash_plus_or_hash() -> None:
    """Shown in full by `test_config`; here the names that follow from a station's path."""
    from agent.config import SparkplugConfig
    from agent.sparkplug import topics_of

    topics = topics_of(SparkplugConfig(), "acme/plant1/cam1")
    alone = topics_of(SparkplugConfig(), "cam1")
    named = topics_of(SparkplugConfig(group_id="G 1", edge_node_id="N", device_id="D"), "acme/plant1/cam1")

    assert topics.of_device("DDATA") == "spBv1.0/acme-plant1/DDATA/cam1/inspection"
    assert alone.of_node("NBIRTH") == "spBv1.0/defect-agent/NBIRTH/cam1"
    assert named.of_device("DCMD") == "spBv1.0/G 1/DCMD/N/D"
    assert int(DataType.DATETIME) == 13
