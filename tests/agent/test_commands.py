"""Commands: what is none does nothing and says why; nothing is done twice; a flood holds nobody up."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
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
        (incoming({"part": 7}), "part: expected text"),
        (incoming({"part": ""}), "part: expected 1 to 240 bytes"),
        (incoming({"part": "ß" * 121}), "part: expected 1 to 240 bytes"),
        (incoming({"part": "a\x00b"}), "part: expected printable"),
        (incoming(b'{"id": "1", "id": "2"}'), "id stands twice"),
        (incoming('{"part": "A"}'.encode("utf-16")), "no JSON"),
        (incoming({"part": "\ud800"}), "part: expected printable"),
        (incoming({"id": "x" * 65}), "id: expected 1 to 64 bytes"),
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

    def __init__(self, *, with_trigger: bool = True, waiting: int = 500, **keys: float) -> None:
        self.queue = TriggerQueue(kind="mqtt", prefix="part", waiting=waiting)
        self.queue.next(0)
        self.events: list[str] = []
        self.dropped: list[int] = []
        self.rung = threading.Semaphore(0)
        self.commands = Commands(
            ROOT,
            self.queue if with_trigger else None,
            tell_event=self._told,
            ring=self.rung.release,
            **keys,
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

    def ask_all(self, payloads: Sequence[object], name: str = "trigger") -> list[dict[str, Any]]:
        """The replies to many, as they come."""
        for payload in payloads:
            self.commands.take(incoming(payload, name, at=Stamp.now()))
        for _ in payloads:
            assert self.rung.acquire(timeout=30)
        return [json.loads(reply.payload) for reply in self.commands.replies()]

    def faults(self) -> list[Fault]:
        """What the line was given as errors since."""
        found = []
        while (given := self.queue.next(0)) is not None:
            found += [given] if isinstance(given, Fault) else []
        return found

    def _told(self, name: str, *_args: object, **data: Any) -> None:
        self.events.append(name)
        self.dropped += [data["dropped"]] if "dropped" in data else []

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


def test_too_many_a_second_are_refused() -> None:
    """Who asks a thousand times a second gets no thousand answers."""
    with Door() as door:
        replies = door.ask_all([{"id": str(n), "reply_to": "scada"} for n in range(250)], "ping")

        refused = [reply["reason"] for reply in replies if reply["status"] == "refused"]
        assert 200 <= len(replies) - len(refused) < 250
        assert set(refused) == {"more than 200 commands a second"}


def test_a_burst_of_triggers_is_a_verdict_each() -> None:
    """Each of them is a part that lies there: what the line can't take is an error, never silence."""
    with Door(waiting=20) as door:
        replies = door.ask_all([{"part": f"P{n}", "id": str(n), "reply_to": "plc"} for n in range(250)])
        faults = door.faults()

        assert [reply["part"] for reply in replies] == [f"P{n}" for n in range(250)]
        assert [reply["status"] for reply in replies] == ["ok"] * 21 + ["error"] * 229
        assert [fault.part.id for fault in faults] == [f"P{n}" for n in range(21, 250)]


def test_triggers_that_are_dropped_unread_are_errors_too() -> None:
    """Nobody knows their names; their number is known."""
    door = Door()
    for _ in range(MAX_WAITING + 30):
        door.commands.take(incoming({"part": "A"}, at=Stamp.now()))
    with door:
        wait_until(lambda: len(door.queue._refusals) == 30, 30)
        reasons = {fault.reason for fault in door.faults()}

        assert reasons == {f"a trigger command was dropped unread: more than {MAX_WAITING} commands waited"}


def test_all_that_was_dropped_is_told_in_the_end() -> None:
    """An event a minute, and none forgets those in between."""
    door = Door(tell_every_s=0.0)
    for _ in range(MAX_WAITING + 7):
        door.commands.take(incoming({}, "ping"))
    with door:
        wait_until(lambda: sum(door.dropped) == 7, 30)


def test_a_repeat_much_later_is_an_error() -> None:
    """A counter that began again, or a very late repeat? Nobody knows whose part lies there: a person must look."""
    with Door(repeat_s=0.0) as door:
        first = door.ask({"id": "1", "reply_to": "plc"})
        second = door.ask({"id": "1", "reply_to": "plc"})
        (fault,) = door.faults()

        assert (first["status"], second["status"]) == ("ok", "error")
        assert fault.part.id == second["part"] != first["part"]
        assert "the id 1 stood in the same command" in second["reason"]


def test_what_waits_at_the_end_is_answered() -> None:
    """The line has stopped: there will be no verdict, and the plant is told."""
    door = Door()
    door.queue.close()
    for n in range(3):
        door.commands.take(incoming({"id": str(n), "reply_to": "plc"}, at=Stamp.now()))
    with door:
        door.commands.close()
        replies = [json.loads(reply.payload) for reply in door.commands.replies()]

    assert [(r["status"], r["part"], r["reason"]) for r in replies] == [("refused", None, "the line has stopped")] * 3
