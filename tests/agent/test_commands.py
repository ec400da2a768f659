"""Commands: what is none does nothing and says why; nothing is done twice; a flood holds nobody up."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.commands.decode import MAX_BYTES, Asked, Incoming, Refused, decoded
from agent.commands.door import MAX_WAITING, Commands
from agent.commands.messages import PingCommand, TriggerCommand
from agent.frame import Fault, Part, Stamp
from agent.triggers.queue import TriggerQueue
from tests.kit.waiting import wait_until

ROOT = "acme/cam1"
NOW = Stamp(1_800_000_000_000, 5_000_000_000)


def incoming(payload: object, name: str = "trigger", **keys: Any) -> Incoming:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Incoming(topic=f"{ROOT}/cmd/{name}", payload=raw, **{"at": NOW, **keys})


# Bad input


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (incoming(b"\xff\xfe{}"), "no JSON"),
        (incoming(b"{"), "no JSON"),
        (incoming(b"[" * 4_000), "no JSON"),
        (incoming(b'{"time_ms": NaN}'), "NaN is no number"),
        (incoming(b" " * (MAX_BYTES + 1)), f"got more than {MAX_BYTES} bytes"),
        (incoming([]), "expected a JSON object"),
        (incoming({"parts": "A"}), "parts: no such field; trigger has id, part, reply_to, time_ms"),
        (incoming({"part": 7}), "part: expected 1 to 256 characters"),
        (incoming({"part": ""}), "part: expected 1 to 256 characters"),
        (incoming({"part": "\ud800"}), "part: expected 1 to 256 characters"),
        (incoming({"id": "x" * 65}), "id: expected 1 to 64 characters"),
        (incoming({"reply_to": "../../status"}), "reply_to: expected 1 to 64 letters"),
        (incoming({"reply_to": "#"}), "reply_to: expected 1 to 64 letters"),
        (incoming({"time_ms": "now"}), "time_ms: expected whole UTC milliseconds"),
        (incoming({"time_ms": True}), "time_ms: expected whole UTC milliseconds"),
        (incoming({"time_ms": NOW.utc_ms - 1_001}), "stale: sent 1.0 s ago, expected at most 1 s"),
        (incoming({"time_ms": NOW.utc_ms - 5_001}, "ping"), "stale: sent 5.0 s ago, expected at most 5 s"),
        (incoming(b""), "empty: expected JSON, {} at least"),
        (incoming({"time_ms": -(10**30)}), "stale"),
        (incoming({"time_ms": NOW.utc_ms + 5_001}), "from the future"),
        (incoming({}, "selfdestruct"), "no such command; there are ping, trigger"),
        (incoming({}, "a b\n#"), "no such command"),
        (incoming({}, retain=True), "a retained command is not done"),
        (incoming({}, response_topic="acme/cam1/status"), "response topic: expected acme/cam1/reply/ and one name"),
        (incoming({}, response_topic="acme/cam1/reply/a/b"), "response topic"),
    ],
)
def test_what_is_no_command_is_refused_in_words(message: Incoming, words: str) -> None:
    """What was got, and what was expected; where nobody may be told, nobody is."""
    refused = decoded(message, ROOT)

    assert isinstance(refused, Refused)
    assert words in refused.reason
    assert refused.reply_topic is None


FIELDS = st.sampled_from(["id", "part", "reply_to", "time_ms"]) | st.text()
JSONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner),
)


@given(
    st.binary() | JSONS.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["trigger", "ping"]) | st.text(),
    st.none() | st.text(),
    st.none() | st.binary(),
)
def test_whatever_comes_in_is_a_command_or_a_reason(
    payload: bytes, name: str, response_topic: str | None, correlation: bytes | None
) -> None:
    """Never an exception; and a reply goes nowhere but to who listens for replies."""
    found = decoded(incoming(payload, name, response_topic=response_topic, correlation=correlation), ROOT)

    assert isinstance(found, (Asked, Refused))
    if found.reply_topic is not None:
        prefix, slash, client = found.reply_topic.rpartition("/")
        assert (prefix, slash) == (f"{ROOT}/reply", "/")
        assert client
        assert not set(client) & set("+#/\0")


# What a plant sends


def test_a_trigger_with_and_without_a_name() -> None:
    """A PLC that can't write JSON can still send two brackets."""
    named = decoded(incoming({"part": "A17", "id": "9", "reply_to": "plc", "time_ms": NOW.utc_ms - 40}), ROOT)
    bare = decoded(incoming(b"{}"), ROOT)

    assert named == Asked(
        name="trigger",
        command=TriggerCommand(part="A17", id="9", reply_to="plc", time_ms=NOW.utc_ms - 40),
        key=(f"{ROOT}/reply/plc", "9"),
        reply_topic=f"{ROOT}/reply/plc",
    )
    assert bare == Asked(name="trigger", command=TriggerCommand(), key=None, reply_topic=None)


def test_mqtt_5_says_where_the_reply_goes_and_which_it_is() -> None:
    """Response topic and correlation data come before what the JSON says."""
    asked = decoded(
        incoming({"reply_to": "other"}, "ping", response_topic=f"{ROOT}/reply/scada", correlation=b"\0\1"), ROOT
    )

    assert asked == Asked(
        name="ping",
        command=PingCommand(reply_to="other"),
        key=(f"{ROOT}/reply/scada", b"\0\1"),
        reply_topic=f"{ROOT}/reply/scada",
    )


class Door:
    """Commands on a trigger queue, as the publisher's thread sees them."""

    def __init__(self, *, with_trigger: bool = True) -> None:
        self.queue = TriggerQueue(kind="mqtt", prefix="part", waiting=500)
        self.queue.next(0)
        self.events: list[str] = []
        self.rung = threading.Semaphore(0)
        self.commands = Commands(
            ROOT,
            self.queue if with_trigger else None,
            tell_event=lambda name, *_args, **_data: self.events.append(name),
            ring=self.rung.release,
        )

    def __enter__(self) -> Door:  # noqa: PYI034 - Self needs Python 3.11
        self.commands.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.commands.close()

    def ask(self, payload: object, name: str = "trigger", **keys: Any) -> dict[str, Any]:
        """The reply to one command."""
        self.commands.take(incoming(payload, name, **{"at": Stamp.now(), **keys}))
        assert self.rung.acquire(timeout=30)
        (reply,) = self.commands.replies()
        answer: dict[str, Any] = json.loads(reply.payload)
        return answer

    def parts(self) -> list[str]:
        """What the line was given since."""
        found = []
        while isinstance(part := self.queue.next(0), Part):
            found.append(part.id)
        return found


def test_the_same_id_makes_no_second_part_and_gets_the_same_reply() -> None:
    """A client that heard nothing asks again; at least once becomes exactly once."""
    with Door() as door:
        first = door.ask({"part": "A1", "id": "7", "reply_to": "plc"})
        again = door.ask({"part": "A1", "id": "7", "reply_to": "plc", "time_ms": Stamp.now().utc_ms})
        other = door.ask({"part": "A2", "id": "7", "reply_to": "another"})

        assert first == again
        assert (first["status"], first["part"], other["part"]) == ("ok", "A1", "A2")
        assert door.parts() == ["A1", "A2"]


def test_the_same_id_for_another_part_is_another_command() -> None:
    """A PLC whose counter begins at 1 again: the part is there, and must get its verdict."""
    with Door() as door:
        first = door.ask({"part": "A1", "id": "1", "reply_to": "plc"})
        second = door.ask({"part": "A2", "id": "1", "reply_to": "plc"})

        assert (first["part"], second["part"]) == ("A1", "A2")
        assert door.parts() == ["A1", "A2"]


def test_a_station_with_another_trigger_says_so() -> None:
    """Nobody waits for a verdict that will never come."""
    with Door(with_trigger=False) as door:
        reply = door.ask({"id": "7", "reply_to": "plc"})

        assert (reply["status"], reply["part"]) == ("refused", None)
        assert "another trigger" in reply["reason"]


def test_a_trigger_that_lay_unread_is_an_error() -> None:
    """The process stood still: what is under the camera now is another part."""
    with Door() as door:
        reply = door.ask({"part": "A1", "id": "7", "reply_to": "plc"}, lay_s=3.5)
        fault = door.queue.next(0)

        assert isinstance(fault, Fault)
        assert (reply["status"], reply["part"], fault.part.id) == ("error", "A1", "A1")
        assert "lay unread for up to 3500 ms" in reply["reason"]


def test_a_ping_is_answered() -> None:
    """With its own id."""
    with Door() as door:
        assert door.ask({"id": "7", "reply_to": "plc"}, "ping")["status"] == "ok"


def test_a_flood_is_dropped_told_once_and_the_next_command_is_done() -> None:
    """Nobody who sends holds up the publisher's thread, and memory has an end."""
    door = Door()
    for _ in range(MAX_WAITING + 1_000):
        door.commands.take(incoming({}, "nonsense"))
    with door:
        wait_until(lambda: "commands_flooded" in door.events, 30)
        wait_until(lambda: not door.commands._waiting, 30)
        reply = door.ask({"id": "7", "reply_to": "plc"}, "ping")

        assert reply["status"] == "ok"
        assert sorted(door.events) == ["command_refused", "commands_flooded"]


def test_too_many_a_second_are_refused_and_do_nothing() -> None:
    """1,000 triggers at once: some are parts, the others are told that they are none."""
    with Door() as door:
        for sequence in range(250):
            door.commands.take(incoming({"id": str(sequence), "reply_to": "plc"}, at=Stamp.now()))
        for _ in range(250):
            assert door.rung.acquire(timeout=30)
        replies = [json.loads(reply.payload) for reply in door.commands.replies()]
        done = [reply["part"] for reply in replies if reply["status"] == "ok"]

        assert len(replies) == 250
        assert 200 <= len(done) < 250
        assert door.parts() == done
        assert {reply["reason"] for reply in replies if reply["status"] == "refused"} == {
            "more than 200 commands a second"
        }
