"""A line of text is a part; what is no line harms nobody: binary, endless, slow, a thousand at once, or half dead."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import TcpTriggerConfig
from agent.errors import ConfigError
from agent.frame import Fault, Part, Stamp
from agent.triggers import lines, open_trigger, queue, tcp
from agent.triggers.peer import Peer
from agent.triggers.tcp import UNREAD_S, TcpTrigger
from tests.kit.cameras import HandCamera
from tests.kit.plc import Plc
from tests.kit.waiting import wait_until


class Opened:
    """Opens triggers and clients, and closes them."""

    def __init__(self) -> None:
        self._opened: list[TcpTrigger | Plc] = []

    def trigger(self, **changes: Any) -> TcpTrigger:
        """As the station opens it; its line is asking for a part."""
        config = TcpTriggerConfig(**{"kind": "tcp", "port": 0, "waiting": 10_000, **changes})
        trigger = open_trigger(config, HandCamera())
        assert isinstance(trigger, TcpTrigger)
        trigger.next(0)
        self._opened.append(trigger)
        return trigger

    def plc(self, trigger: TcpTrigger, **changes: Any) -> Plc:
        """A connection; the server knows it when it answers."""
        self._opened.append(made := Plc(trigger.server.port, **changes))
        made.say("PING")
        assert made.line() == "PONG"
        return made

    def close(self) -> None:
        """All of them."""
        for one in self._opened[::-1]:
            one.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test machine that is busy elsewhere is no process that was stopped."""
    monkeypatch.setattr(tcp, "UNREAD_S", 60.0)
    monkeypatch.setattr(queue, "STALE_S", 60.0)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Closed with the test."""
    made = Opened()
    yield made
    made.close()


def taken(trigger: TcpTrigger, count: int) -> list[Part | Fault]:
    """So many parts and refusals."""
    given: list[Part | Fault] = []
    while len(given) < count:
        one = trigger.next(10)
        assert one is not None, f"{len(given)} of {count} came"
        given.append(one)
    return given


def open_files() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def stopped(server: lines.LineServer) -> Iterator[None]:
    """Its thread stands still as a stopped process does, for longer than is bearable."""
    standing, go_on = threading.Event(), threading.Event()

    def stand(peer: Peer, rest: str, at: Stamp) -> bool:
        standing.set()
        return go_on.wait(30)

    server.hear("STAND", stand)
    with Plc(server.port) as other:
        other.say("STAND")
        assert standing.wait(30)
        since = time.monotonic()
        yield
        wait_until(lambda: time.monotonic() - since > 2 * UNREAD_S)
        go_on.set()


def ids(parts: list[Part | Fault]) -> list[str]:
    """Of parts; a fault is a failure."""
    assert not [one for one in parts if isinstance(one, Fault)]
    return [one.id for one in parts if isinstance(one, Part)]


@pytest.mark.parametrize(
    ("sent", "parts"),
    [
        (b"TRIGGER A1\r\n", ["A1"]),
        (b"trigger A1\n", ["A1"]),
        (b"A1\r", ["A1"]),
        (b"\x02A1\x03\r\n", ["A1"]),
        (b"  TRIGGER   lot 7/3  \r\n", ["lot_7/3"]),
        (b"0104012345678901\x1d21ABC\r", ["0104012345678901_21ABC"]),
        ("Öse-7\n".encode(), ["Öse-7"]),
        (b"A1\r\nA2\nA3\r\r\n\nTRIGGER A4\r\n", ["A1", "A2", "A3", "A4"]),
        (b"TRIGGER PING\n", ["PING"]),
        (b"x" * 512 + b"\n", ["x" * 240]),
    ],
)
def test_a_line_is_a_part(opened: Opened, sent: bytes, parts: list[str]) -> None:
    """With a word in front as a PLC sends it, or alone as a bar code reader does, with any of the usual ends."""
    trigger = opened.trigger()
    opened.plc(trigger).send(sent)

    assert ids(taken(trigger, len(parts))) == parts


def test_a_trigger_without_an_id_gets_one(opened: Opened) -> None:
    """The PLC reads it in PART and RESULT."""
    trigger = opened.trigger(part_prefix="belt")
    opened.plc(trigger).say("TRIGGER")
    part = taken(trigger, 1)[0]

    assert isinstance(part, Part)
    assert part.id.startswith("belt-20")
    assert (part.trigger, part.sequence) == ("tcp", 1)


def test_a_line_may_come_byte_by_byte(opened: Opened) -> None:
    """TCP has no lines; a serial gateway sends single bytes."""
    trigger = opened.trigger()
    plc = opened.plc(trigger)
    for byte in b"TRIGGER A1\r\nTRIGGER A2\r\n":
        plc.send(bytes([byte]))

    assert ids(taken(trigger, 2)) == ["A1", "A2"]


@pytest.mark.parametrize(
    "sent",
    [
        bytes(range(256)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
        b"GET / HTTP/1.1\r\nHost: line3\r\n\r\n",
        b"TRIG A1\n",
        b"\xff\xfe\n",
        b"\x00\x01\n",
        b"PUT A\x1bB\n",
        b"x" * 513 + b"\n",
    ],
    ids=["bytes", "tls", "http", "typo", "utf-8", "nul", "escape", "long"],
)
def test_what_is_no_line_of_ours_is_refused_and_hung_up(opened: Opened, sent: bytes) -> None:
    """A browser and a port scanner make no parts; a programmer's mistake is told."""
    trigger = opened.trigger()
    stranger = opened.plc(trigger)
    stranger.send(sent)
    answer = stranger.rest()
    opened.plc(trigger).say("A1")

    assert len(answer) == 1
    assert answer[0].startswith(("REFUSED expected lines of text of at most 512 bytes", "REFUSED unknown line: "))
    assert ids(taken(trigger, 1)) == ["A1"]
    assert trigger.next(0) is None


def test_ten_megabytes_without_an_end_are_cut_short(opened: Opened) -> None:
    """Memory is for pictures."""
    trigger = opened.trigger()
    stranger = opened.plc(trigger)
    stranger.send(b"x" * 10_000_000)
    opened.plc(trigger, address="127.0.0.2").say("A1")

    assert ids(taken(trigger, 1)) == ["A1"]
    assert set(stranger.rest()) <= {"REFUSED a line of more than 512 bytes"}  # or nothing: the reset overtakes it


def test_a_line_that_does_not_end_is_given_up(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow loris holds no connection, and a reader without an end-of-line setting is told."""
    monkeypatch.setattr(lines, "PARTIAL_S", 0.05)
    trigger = opened.trigger()
    slow = opened.plc(trigger)
    slow.send(b"TRIGGER A")

    assert slow.rest() == ["REFUSED a line without its end for 0.05 s"]
    assert trigger.next(0) is None


def test_half_a_line_of_one_that_hangs_up_is_no_part(opened: Opened) -> None:
    """Half an id is another part's."""
    trigger = opened.trigger()
    plc = opened.plc(trigger)
    plc.send(b"A1\nA12")
    plc.close()
    opened.plc(trigger).say("A2")

    assert ids(taken(trigger, 2)) == ["A1", "A2"]


def test_a_thousand_connections_cost_nobody_the_line(opened: Opened) -> None:
    """From one address only so many are held; the PLC's own, from another one, stands; files do not run out."""
    trigger = opened.trigger()
    plc = opened.plc(trigger, address="127.0.0.2")
    plc.say("A1")
    address, before = ("127.0.0.1", trigger.server.port), open_files()
    crowd = [socket.create_connection(address, timeout=20) for _ in range(1_000)]
    opened.plc(trigger).say("A2")  # itself one of the crowd's address: a newcomer gets in, a silent one goes
    plc.say("A3")
    parts = taken(trigger, 3)
    held = open_files() - before - len(crowd)
    for one in crowd:
        one.close()

    assert {one.id for one in parts if isinstance(one, Part)} == {"A1", "A3"}
    assert held <= lines.PEERS_PER_ADDRESS + 1


def test_silent_connections_of_many_addresses_keep_no_plc_out(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """All places are taken by those who never said a line: the oldest of them goes, and that is told once."""
    caplog.set_level(logging.WARNING, "agent.tcp")
    trigger = opened.trigger()
    silent = [
        Plc(trigger.server.port, address=f"127.0.1.{number // lines.PEERS_PER_ADDRESS + 1}")
        for number in range(lines.PEERS)
    ]
    plcs = [opened.plc(trigger, address=f"127.0.2.{number}") for number in (1, 2)]
    plcs[0].say("A1")
    told = [one.rest() for one in silent[:2]]
    crowded = [record for record in caplog.records if record.getMessage() == "tcp_crowded"]
    for one in silent:
        one.close()

    assert ids(taken(trigger, 1)) == ["A1"]
    assert told == [["REFUSED too many connections"]] * 2
    assert len(crowded) == 1


def test_a_crowd_of_newcomers_sends_no_plc_away(opened: Opened) -> None:
    """Whoever has said a line keeps its place, from whatever addresses the crowd comes."""
    trigger = opened.trigger()
    plc = opened.plc(trigger, address="127.0.2.1")
    crowd = [Plc(trigger.server.port, address=f"127.0.1.{number % 9 + 1}") for number in range(200)]
    plc.say("PING still here")
    answer = plc.line()
    for one in crowd:
        one.close()

    assert answer == "PONG still here"


def test_a_connection_that_says_nothing_is_closed_after_its_time(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody is told results, one who never speaks is of no use; one who has spoken may be silent for ever."""
    trigger = opened.trigger()
    plc = opened.plc(trigger)
    monkeypatch.setattr(lines, "SILENT_S", 0.05)
    with Plc(trigger.server.port) as silent:
        told = silent.rest()
    plc.say("PING still here")

    assert told == ["REFUSED no line for 0.05 s"]
    assert plc.line() == "PONG still here"


def test_those_who_speak_are_not_sent_away_for_a_newcomer(opened: Opened) -> None:
    """Only connections that never said a line make room."""
    trigger = opened.trigger()
    speaking = [opened.plc(trigger) for _ in range(lines.PEERS_PER_ADDRESS)]
    with Plc(trigger.server.port) as newcomer:
        answer = newcomer.rest()
    for plc in speaking:
        plc.say("PING still here")

    assert answer == ["REFUSED too many connections"]
    assert [plc.line() for plc in speaking] == ["PONG still here"] * len(speaking)


def test_only_one_plc_triggers_and_another_ones_trigger_is_an_error(opened: Opened) -> None:
    """Parts of two belts would be taken for each other; the part that came all the same gets its verdict."""
    trigger = opened.trigger()
    plc, other = opened.plc(trigger), opened.plc(trigger, address="127.0.0.2")
    plc.say("A1")
    mine = taken(trigger, 1)
    other.say("B1")
    refused = taken(trigger, 1)[0]
    plc.say("A2")

    assert ids(mine) == ["A1"]
    assert isinstance(refused, Fault)
    assert refused.part.id == "B1"
    assert refused.reason.startswith("refused: 127.0.0.2:")
    assert refused.reason.endswith("(trigger.senders: 1)")
    assert ids(taken(trigger, 1)) == ["A2"]


def test_as_many_may_trigger_as_are_configured(opened: Opened) -> None:
    """Two bar code readers at one belt."""
    trigger = opened.trigger(senders=2)
    for number, address in enumerate(("127.0.0.1", "127.0.0.2"), 1):
        opened.plc(trigger, address=address).say(f"A{number}")

    assert sorted(ids(taken(trigger, 2))) == ["A1", "A2"]


def test_a_plc_that_comes_back_takes_its_place_again(opened: Opened) -> None:
    """It was switched off: its old connection looks alive for seconds yet."""
    trigger = opened.trigger()
    before = opened.plc(trigger)
    before.say("A1")
    taken(trigger, 1)
    after = opened.plc(trigger)
    after.say("A2")

    assert ids(taken(trigger, 1)) == ["A2"]
    gone = before.rest()
    assert len(gone) == 1
    assert gone[0].endswith(" triggers in its place")


def test_a_place_is_free_when_its_plc_hangs_up(opened: Opened) -> None:
    """The next one, from wherever, may trigger."""
    trigger = opened.trigger()
    before = opened.plc(trigger)
    before.say("A1")
    taken(trigger, 1)
    before.close()
    after = opened.plc(trigger, address="127.0.0.2")
    after.say("A2")

    assert ids(taken(trigger, 1)) == ["A2"]


def test_a_flood_of_triggers_is_answered_to_the_last(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may wait, more than refusals are kept: the sender is held back, and none is lost."""
    monkeypatch.setattr(queue, "MAX_REFUSALS", 50)
    trigger = opened.trigger(waiting=1)
    plc = opened.plc(trigger)
    flood = threading.Thread(target=plc.say, args=[f"A{number}" for number in range(5_000)])
    flood.start()
    with opened.plc(trigger, address="127.0.0.2") as other:
        given = taken(trigger, 2_500)
        other.say("PING")  # the server is awake for others
        assert other.line() == "PONG"
        given += taken(trigger, 2_500)
    flood.join()
    names = [one.part.id if isinstance(one, Fault) else one.id for one in given]

    assert sorted(names) == sorted(f"A{number}" for number in range(5_000))
    assert trigger.next(0) is None


def test_several_senders_at_once_lose_nothing(opened: Opened) -> None:
    """Each connection's lines stay in their order."""
    trigger = opened.trigger(senders=4)
    plcs = [opened.plc(trigger, address=f"127.0.0.{number}") for number in range(2, 6)]
    with ThreadPoolExecutor(4) as pool:
        for number, plc in enumerate(plcs):
            pool.submit(plc.say, *[f"{number}-{count}" for count in range(500)])
        names = ids(taken(trigger, 2_000))

    for number in range(4):
        assert [name for name in names if name.startswith(f"{number}-")] == [f"{number}-{n}" for n in range(500)]


def test_after_the_line_has_stopped_triggers_are_refused(opened: Opened) -> None:
    """The server may live on, for results; what was taken before is still given."""
    trigger = opened.trigger()
    plc = opened.plc(trigger)
    plc.say("A1")
    wait_until(lambda: not trigger.ended and trigger.next(0))
    trigger.server.hold()
    trigger.close()
    plc.say("A2")

    assert plc.line() == "REFUSED the line has stopped"
    assert trigger.ended
    trigger.server.close()
    assert plc.line() is None


def test_a_trigger_that_may_have_lain_unread_is_an_error(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process stood still: the part is gone from under the camera, and a picture of now is another one's."""
    monkeypatch.setattr(tcp, "UNREAD_S", UNREAD_S)
    trigger = opened.trigger()
    plc = opened.plc(trigger)
    with stopped(trigger.server):
        plc.say(*[f"A{number:04}" for number in range(2_000)])  # more than one reading takes
    given = taken(trigger, 2_000)
    monkeypatch.setattr(tcp, "UNREAD_S", 60.0)
    plc.say("PING")
    assert plc.line() == "PONG"
    plc.say("B1")

    assert all(isinstance(one, Fault) for one in given)
    assert {re.sub(r"\d+ ms", "N ms", one.reason) for one in given if isinstance(one, Fault)} == {
        "it lay unread for up to N ms: its picture can't be told"
    }
    assert ids(taken(trigger, 1)) == ["B1"]


def test_a_connection_that_waited_to_be_taken_is_no_better(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trigger may be as old as the wait."""
    monkeypatch.setattr(tcp, "UNREAD_S", UNREAD_S)
    trigger = opened.trigger()
    with stopped(trigger.server):
        plc = Plc(trigger.server.port)
        plc.say("A1")
    with plc:
        one = taken(trigger, 1)[0]

    assert isinstance(one, Fault)
    assert one.reason.startswith("it lay unread for up to ")


@pytest.mark.parametrize("line", ["TRIGGER A\x07", "A\x07", "trigger A\x1bB", "A\x00B", "TRIGGER \x07"])
def test_an_id_that_can_be_none_is_an_error_among_its_neighbours(opened: Opened, line: str) -> None:
    """A part lies there: it is neither passed in silence nor does it cost the others theirs."""
    trigger = opened.trigger(part_prefix="belt")
    plc = opened.plc(trigger)
    plc.say("TRIGGER A1", line, "TRIGGER A3", "A4", "PING")
    assert plc.line() == "PONG"
    given = taken(trigger, 4)
    faults = [one for one in given if isinstance(one, Fault)]

    assert ids([one for one in given if isinstance(one, Part)]) == ["A1", "A3", "A4"]
    assert [one.part.sequence for one in faults] == [2]
    assert faults[0].part.id.startswith("belt-20")
    assert faults[0].reason.startswith("refused: no id has control characters (")
    assert faults[0].reason.isprintable()


@given(data=st.lists(st.binary(max_size=200) | st.sampled_from([b"\r", b"\n", b"PING\n", b"TRIGGER \n", b"ACK 1\n"])))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_keep_the_server_from_the_next_one(opened: Opened, data: list[bytes]) -> None:
    """Whatever came before, from whomever."""
    trigger = opened.trigger(senders=16)
    with Plc(trigger.server.port) as stranger:
        stranger.send(b"".join(data))
        with Plc(trigger.server.port) as plc:
            plc.say("PING x")
            assert plc.line() == "PONG x"
    trigger.close()


def test_a_dead_connection_is_noticed(opened: Opened) -> None:
    """A PLC without power says nothing: the kernel asks it, and gives it up after ten seconds."""
    trigger = opened.trigger()
    opened.plc(trigger)
    peer = next(iter(trigger.server._peers.values()))

    assert peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    probes = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    idle, interval, count = (peer.sock.getsockopt(socket.IPPROTO_TCP, option) for option in probes)
    assert idle + interval * count == 10


def test_an_address_that_can_not_be_had_is_told(opened: Opened) -> None:
    """Before the line starts."""
    port = opened.trigger().server.port
    with pytest.raises(ConfigError, match=rf"trigger: 127\.0\.0\.1 port {port} is in use") as caught:
        opened.trigger(port=port)
    assert caught.value.hint is not None
    with pytest.raises(ConfigError, match=r"trigger: 203\.0\.113\.1 port 0 is no address of this machine"):
        opened.trigger(host="203.0.113.1")
    with pytest.raises(ConfigError, match=r"trigger: 1\.2\.3\.4\.5 port 0 can't be used"):
        opened.trigger(host="1.2.3.4.5")


def test_a_restart_has_its_port_at_once(opened: Opened) -> None:
    """Connections of before may still be dying."""
    first = opened.trigger()
    plc = opened.plc(first)
    first.close()
    assert plc.line() is None
    second = opened.trigger(port=first.server.port)

    assert second.server.port == first.server.port


def test_ipv6(opened: Opened) -> None:
    """`host: "::1"`."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        trigger = opened.trigger(host="::1")
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6 loopback ({error.message})")
    with socket.create_connection(("::1", trigger.server.port), timeout=20) as plc:
        plc.sendall(b"A1\n")
        parts = taken(trigger, 1)

    assert ids(parts) == ["A1"]
