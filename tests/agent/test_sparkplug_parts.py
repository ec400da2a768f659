"""What Sparkplug is made of, without a broker: tags, commands, what is owed, what is remembered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.commands.decode import Incoming
from agent.config import SparkplugConfig, config_from_mapping
from agent.errors import ConfigError
from agent.frame import Stamp
from agent.sparkplug.backlog import Backlog
from agent.sparkplug.commands import device_command, node_command
from agent.sparkplug.payload import DataType, Metric, Payload, encode
from agent.sparkplug.primary_host import PrimaryHost
from agent.sparkplug.tags import COMMANDS, DEVICE, NODE, part_values
from agent.verdict import Decision
from tests.kit.verdicts import judge, make_image, open_journal

PACKAGE = Path(__file__).resolve().parents[2] / "agent" / "sparkplug"
TYPES = {"DATETIME": "DateTime"}


def incoming(payload: bytes, *, retain: bool = False) -> Incoming:
    return Incoming(topic="t", payload=payload, at=Stamp.now(), retain=retain, response_topic=None, correlation=None)


# Tags


def test_the_readme_holds_every_tag_as_it_is() -> None:
    """Name, alias, type and unit are a contract; the table is what people read."""
    text = (PACKAGE / "README.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    written = {(name, int(alias), kind, unit.strip()) for name, alias, kind, unit in rows}
    tags = (*NODE, *DEVICE, *COMMANDS.values())

    assert written == {
        (tag.name, tag.alias, TYPES.get(tag.datatype.name, tag.datatype.name.title()), tag.unit) for tag in tags
    }


def test_aliases_and_names_are_unique_in_any_case() -> None:
    """Hosts that do not tell upper and lower case apart would join two metrics."""
    tags = (*NODE, *DEVICE, *COMMANDS.values())

    assert len({tag.alias for tag in tags}) == len(tags)
    assert len({tag.name.lower() for tag in tags}) == len(tags)


@pytest.mark.parametrize("decision", list(Decision))
def test_a_verdict_of_the_journal_becomes_its_tags(tmp_path: Path, decision: Decision) -> None:
    """The same numbers as in the JSON message; null where there is none."""
    with open_journal(tmp_path) as journal:
        image = None if decision is Decision.ERROR else make_image()
        judge(journal, 1, decision, image=image).wait(5)
        stored = next(journal.read())
    values, message = part_values(stored.body), json.loads(stored.body)

    fields = {"Record": "rec", "Id": "part", "Time": "time_ms", "Class": "class", "Findings": "n_findings"}
    same = ("Decision", "Code", "Quality", "Reason", "Score", "Threshold", "Recipe", "Bundle")
    for name, field in [*fields.items(), *((name, name.lower()) for name in same)]:
        assert values[f"Part/{name}"] == message[field], name
    assert values["Part/Latency"] == message["ms"]["total"]
    assert values["Part/Image"] == (message["image"] or {}).get("id")
    assert values["Part/Code"] == decision.code


def test_a_clock_before_1970_is_no_reason_to_lose_the_part() -> None:
    """A Sparkplug time can't be negative; a device without a clock may be there for a moment."""
    assert part_values(b'{"rec": 7, "time_ms": -5}')["Part/Time"] == 0


# Commands


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_break_the_door(payload: bytes, retain: bool) -> None:
    """Random bytes ask for nothing: no rebirth, no write, no exception."""
    node, device = node_command(incoming(payload, retain=retain)), device_command(incoming(payload), COMMANDS)

    assert not node.rebirth
    assert not node.writes
    assert all(name in COMMANDS for name, _ in device.writes)


METRICS = st.builds(
    Metric,
    name=st.sampled_from(["", "Node Control/Rebirth", "node control/rebirth", "Control/Trigger", "Part/Code", "\x00"]),
    alias=st.none() | st.sampled_from([0, 1, 105, 301, 302, 304, 2**64 - 1]),
    datatype=st.none() | st.just(12),
    value=st.none(),
) | st.builds(
    Metric,
    name=st.sampled_from(["", "Node Control/Rebirth", "Control/Trigger", "Control/Pause", "Control/Defect Above"]),
    alias=st.sampled_from([301, 302, 303, 304, 306]),
    datatype=st.just(int(DataType.STRING)),
    value=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
) | st.builds(
    Metric,
    name=st.sampled_from(["", "Control/Defect Above", "Node Control/Rebirth"]),
    alias=st.just(304),
    datatype=st.just(int(DataType.DOUBLE)),
    value=st.floats(),
)  # fmt: skip


@given(st.lists(METRICS, max_size=5))
def test_what_gets_through_is_of_the_type_that_was_announced(metrics: list[Metric]) -> None:
    """Values of wrong types, not a number, control characters, read-only names: refused, in words."""
    raw = encode(Payload(metrics=tuple(metrics)))
    asked, node = device_command(incoming(raw), COMMANDS), node_command(incoming(raw))

    assert not node.rebirth, "it takes a Boolean that is true"
    for name, value in asked.writes:
        tag = COMMANDS[name]
        assert name != "Control/Reply"
        if tag.datatype is DataType.STRING:
            assert isinstance(value, str)
            assert value.isprintable()
            assert len(value) <= 256
        else:
            assert isinstance(value, float)
            assert abs(value) < float("inf")
    if len(raw) <= 4_096:
        assert len(asked.writes) + len(asked.refused) == len(metrics)
    else:
        assert not asked.writes


@given(st.binary(max_size=60) | st.text().map(lambda text: text.encode(errors="replace")))
def test_no_state_message_breaks_the_watch_for_the_host(payload: bytes) -> None:
    """Anybody may be allowed to write there."""
    for form in ("3.0", "2.2"):
        host = PrimaryHost(form)
        host.hear(payload)
        assert host.is_online in (None, True, False)


@pytest.mark.parametrize(
    ("states", "online"),
    [
        ([], None),
        ([(True, 5)], True),
        ([(True, 5), (False, 5)], False),
        ([(True, 5), (False, 4)], True),
        ([(False, 9), (True, 8)], False),
        ([(False, 9), (True, 9)], True),
        ([(1, 5)], None),
        ([(True, "5")], None),
        ([(True, True)], None),
        ([(True, 5), (False, float("inf"))], True),
    ],
)
def test_the_latest_state_counts(states: list[tuple[object, object]], online: bool | None) -> None:
    """By the host's own timestamps, not by the order in which they come."""
    host = PrimaryHost("3.0")
    for is_online, timestamp in states:
        host.hear(json.dumps({"online": is_online, "timestamp": timestamp}).encode())

    assert host.is_online is online


# What is owed


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("record"), st.integers(1, 5)),
            st.tuples(st.just("live"), st.integers(1, 5)),
            st.tuples(st.just("late"), st.integers(1, 5)),
            st.tuples(st.sampled_from(["lose", "leave", "wait", "restart", "kill"]), st.just(0)),
        ),
        max_size=60,
    )
)
def test_every_record_goes_out_or_is_owed(steps: list[tuple[str, int]]) -> None:
    """A model of the wire: what left less than a keep-alive before a break did not arrive."""
    backlog = Backlog(unsent=[], last=0, limit=10**6, doubt_s=10.0)
    now, recorded = 0.0, 0
    arrived: set[int] = set()
    flying: list[tuple[float, int]] = []
    kept: tuple[list[tuple[int, int]], int] = ([], 0)
    for step, count in steps:
        now += 1.0
        if step == "record":
            recorded += count
        for _ in range(count):
            if step == "live" and backlog.last < recorded:
                backlog.sent_live(backlog.last + 1, now)
                flying.append((now, backlog.last))
            elif step == "late" and backlog.first is not None:
                rec = backlog.first[0]
                backlog.sent_late(rec, now)
                flying.append((now, rec))
        if step == "wait":
            now += 11.0
        arrived |= {rec for at, rec in flying if now - at > 10.0}
        flying = [(at, rec) for at, rec in flying if now - at <= 10.0]
        if step == "leave":
            arrived |= {rec for _, rec in flying}
            flying = []
            backlog.arrived()
        backlog.trust(now)
        if step in ("lose", "restart", "kill"):
            flying = []
            if step == "lose":
                backlog.lost(now)
            else:
                unsent, last = kept if step == "kill" else (backlog.unsent(), backlog.last)
                backlog = Backlog(unsent=list(unsent), last=last, limit=10**6, doubt_s=10.0)
            backlog.born(recorded)
        if step != "record":
            kept = (backlog.unsent(), backlog.last)
        owed = {rec for start, end in backlog.unsent() for rec in range(start, end + 1)}
        later = set(range(backlog.last + 1, recorded + 1))
        assert arrived | owed | later >= set(range(1, recorded + 1))
        assert backlog.last <= recorded


def test_of_too_many_the_newest_are_owed() -> None:
    """Several ranges, the oldest first to go."""
    backlog = Backlog(unsent=[(1, 10), (21, 30)], last=40, limit=15, doubt_s=1.0)

    assert backlog.born(50) == 15
    assert backlog.unsent() == [(26, 30), (41, 50)]


def test_another_journal_than_before_owes_nothing() -> None:
    """Somebody moved a damaged one away: its record numbers begin again."""
    backlog = Backlog(unsent=[(900, 950)], last=1_000, limit=100, doubt_s=1.0)

    assert backlog.born(3) == 0
    assert (backlog.first, backlog.last) == (None, 3)


# Configuration


@pytest.mark.parametrize("key", ["group_id", "edge_node_id", "device_id", "primary_host_id"])
@pytest.mark.parametrize("name", ["a/b", "a+", "#", "a\nb", "a\x7f", "x" * 400])
def test_ids_that_make_no_topic_are_refused(tmp_path: Path, key: str, name: str) -> None:
    """A slash would be another node, a wildcard no topic at all."""
    with pytest.raises(ConfigError, match=rf"{key}: got .*, expected a name without"):
        config_from_mapping(SparkplugConfig, {key: name}, source=tmp_path / "c.yaml")


def test_a_group_called_state_is_refused(tmp_path: Path) -> None:
    """`spBv1.0/STATE/…` is where hosts tell their state."""
    with pytest.raises(ConfigError, match="group_id: got STATE"):
        config_from_mapping(SparkplugConfig, {"group_id": "STATE"}, source=tmp_path / "c.yaml")


# The specification's assertions

FOLDERS = (Path(__file__).parent, Path(__file__).parents[1] / "journeys")


def test_the_table_of_assertions_names_tests_that_exist() -> None:
    """A test that was renamed or dropped may not stand there as evidence."""
    sources = [path.read_text() for folder in FOLDERS for path in folder.glob("test_sparkplug*.py")]
    there = {name for text in sources for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (.+) \|$", (PACKAGE / "CONFORMANCE.md").read_text(), re.MULTILINE)

    assert len(rows) > 60
    assert len({assertion for assertion, _, _ in rows}) == len(rows)
    for assertion, holds, evidence in rows:
        named = set(re.findall(r"`(test_\w+)`", evidence))
        assert holds in ("yes", "partly", "no"), assertion
        assert named <= there, assertion
        assert named or holds != "yes", assertion
