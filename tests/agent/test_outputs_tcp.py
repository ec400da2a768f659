"""Results as lines of text: each once to everybody who is there, and never later because a PLC is slow or dead."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent.config import FreeRunConfig, OutputsConfig, TcpOutputConfig, TcpTriggerConfig
from agent.errors import ConfigError
from agent.frame import Fault, Part, Stamp
from agent.outputs import FastPath, open_outputs
from agent.outputs.tcp import TcpOutput, open_tcp_output
from agent.triggers import Trigger, lines, open_trigger, tcp
from agent.triggers.peer import Peer
from agent.triggers.tcp import TcpTrigger
from tests.kit.cameras import HandCamera
from tests.kit.plc import Plc
from tests.kit.waiting import wait_until

HELLO = ["HELLO defect-agent 1", "READY 0", "FAULT 0"]


def is_troubled(output: TcpOutput) -> bool:
    """Whether it says that results may not arrive."""
    return output.trouble is not None


def part_at(sequence: int, name: str | None = None) -> Part:
    """A part triggered now."""
    return Part(id=name or f"p{sequence}", trigger="test", sequence=sequence, triggered=Stamp.now())


class Opened:
    """Opens outputs, triggers and clients, and closes them."""

    def __init__(self) -> None:
        self._opened: list[TcpOutput | FastPath | Trigger | Plc] = []

    def output(self, trigger: Trigger | None = None, **changes: Any) -> TcpOutput:
        """An output on a port of its own, unless the trigger is where it wants to be."""
        config = TcpOutputConfig(**{"port": 0, **changes})
        self._opened.append(made := open_tcp_output(config, trigger or self.free()))
        return made

    def free(self) -> Trigger:
        """A trigger without TCP."""
        return open_trigger(FreeRunConfig(kind="free"), HandCamera())

    def trigger(self, **changes: Any) -> TcpTrigger:
        """A TCP trigger, whose line is asking for a part."""
        trigger = open_trigger(TcpTriggerConfig(**{"kind": "tcp", "port": 0, **changes}), HandCamera())
        assert isinstance(trigger, TcpTrigger)
        trigger.next(0)
        self._opened.append(trigger)
        return trigger

    def fast(self, *outputs: TcpOutput) -> FastPath:
        """The fast path to outputs."""
        self._opened.append(made := FastPath(outputs, deadline_ms=None))
        return made

    def plc(self, output: TcpOutput, **changes: Any) -> Plc:
        """A connection that has been greeted."""
        self._opened.append(made := Plc(output.server.port, **changes))
        greeting = made.lines_until("FAULT")
        assert greeting[0] == HELLO[0]
        return made

    def close(self) -> None:
        """All of them."""
        for one in self._opened[::-1]:
            one.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test machine that is busy elsewhere is no process that was stopped."""
    monkeypatch.setattr(tcp, "UNREAD_S", 60.0)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Closed with the test."""
    made = Opened()
    yield made
    made.close()


def test_one_who_connects_hears_how_things_are(opened: Opened) -> None:
    """A PLC that was restarted needs no memory."""
    output = opened.output()
    with Plc(output.server.port) as plc:
        first = plc.lines_until("FAULT")
    output.ready(is_ready=True)
    output.fault("camera lost: no frame\nfor 2000 ms")
    with Plc(output.server.port) as plc:
        second = plc.lines_until("FAULT")

    assert first == HELLO
    assert second == ["HELLO defect-agent 1", "READY 1", "FAULT 1 camera lost: no frame for 2000 ms"]


def test_what_changes_while_one_is_greeted_is_heard_last(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A READY of before must not be the last word: the PLC would wait for ever."""
    output = opened.output()
    say = output.server.say
    other = threading.Thread(target=lambda: output.ready(is_ready=True))

    def say_slowly(peer: Peer, text: str) -> None:
        say(peer, text)
        if text == HELLO[0]:
            other.start()
            other.join(0.2)  # without an order it is through by now

    monkeypatch.setattr(output.server, "say", say_slowly)
    with Plc(output.server.port) as plc:
        heard = plc.lines_until("FAULT")
        other.join()
        output.fault("end")
        heard += plc.lines_until("FAULT 1")

    assert heard[:3] == HELLO
    assert [line for line in heard if line.startswith("READY")][-1] == "READY 1"


def test_each_result_goes_once_to_each_connection(opened: Opened) -> None:
    """With its number, its part, its code and why."""
    output = opened.output()
    plcs = [opened.plc(output) for _ in range(3)]
    reasons = {
        "ok": "good: defect score 0.02 under 0.30",
        "defect": "scratch 0.91: reaches the limit 0.50",
        "review": "",
        "error": "capture: no frame\r\nRESULT 9 p9 ok 1 ",
    }
    for number, (decision, reason) in enumerate(reasons.items(), 1):
        output.expect(part_at(number))
        output.result(part_at(number), decision, reason)
    heard = [plc.lines_until("RESULT 4") for plc in plcs]

    assert heard[0] == [
        "PART 1 p1",
        "RESULT 1 p1 ok 1 good: defect score 0.02 under 0.30",
        "PART 2 p2",
        "RESULT 2 p2 defect 2 scratch 0.91: reaches the limit 0.50",
        "PART 3 p3",
        "RESULT 3 p3 review 3",
        "PART 4 p4",
        "RESULT 4 p4 error 4 capture: no frame  RESULT 9 p9 ok 1",
    ]
    assert heard[1] == heard[0] == heard[2]


@pytest.mark.parametrize(
    ("name", "word"), [("lot 7/img 2.png", "lot_7/img_2.png"), ("a\r\nRESULT 1", "a_RESULT_1"), (" ", "?")]
)
def test_an_id_is_one_word(opened: Opened, name: str, word: str) -> None:
    """A folder's file names have spaces; none may end a line, or look like another word."""
    output = opened.output()
    plc = opened.plc(output)
    output.result(part_at(1, name), "ok", "good")

    assert plc.line() == f"RESULT 1 {word} ok 1 good"


def test_a_long_line_is_cut_and_stays_a_line(opened: Opened) -> None:
    """512 bytes, whole characters, with its end."""
    output = opened.output()
    plc = opened.plc(output)
    output.result(part_at(1), "error", "€" * 1_000)
    output.result(part_at(2), "ok", "good")
    long = plc.line()

    assert long is not None
    assert 500 < len(long.encode()) <= 510
    assert plc.line() == "RESULT 2 p2 ok 1 good"


def test_trigger_and_result_share_a_connection(opened: Opened) -> None:
    """One socket at the PLC: TRIGGER, PART, RESULT."""
    trigger = opened.trigger(port=0)
    output = opened.output(trigger)
    fast = opened.fast(output)
    trigger.watch(fast)
    plc, listener = opened.plc(output), opened.plc(output)
    plc.say("TRIGGER A1")
    part = trigger.next(10)
    assert isinstance(part, Part)
    fast.begin(part)
    fast.finish(part, "ok", "good")
    heard = [plc.lines_until("RESULT"), listener.lines_until("RESULT")]
    told = [[line for line in to_one if not line.startswith("READY")] for to_one in heard]

    assert output.server is trigger.server
    assert told == [["PART 1 A1", "RESULT 1 A1 ok 1 good"]] * 2


def test_a_refused_trigger_is_answered_at_once(opened: Opened) -> None:
    """While the line still judges the part before."""
    trigger = opened.trigger(waiting=0)
    output = opened.output(trigger)
    fast = opened.fast(output)
    trigger.watch(fast)
    plc = opened.plc(output)
    plc.say("A1")
    judged = trigger.next(10)
    assert isinstance(judged, Part)
    plc.say("A2")
    early = plc.lines_until("RESULT")
    fast.begin(judged)
    fast.finish(judged, "ok", "good")
    late = plc.lines_until("RESULT")
    refused = trigger.next(0)

    assert early[-1] == (
        "RESULT 2 A2 error 4 trigger: refused: a part is being judged, and none may wait (trigger.waiting: 0)"
    )
    assert late[-1] == "RESULT 1 A1 ok 1 good"
    assert isinstance(refused, Fault)


def test_one_who_has_said_all_still_hears_the_result(opened: Opened) -> None:
    """`printf 'TRIGGER A\\n' | nc HOST PORT`: its end of input is no hanging up. Then we hang up."""
    trigger = opened.trigger()
    output = opened.output(trigger)
    fast = opened.fast(output)
    trigger.watch(fast)
    plc = opened.plc(output)
    plc.say("TRIGGER A1", "TRIGGER A2")
    plc.finish()
    parts = [trigger.next(10), trigger.next(10)]
    with opened.plc(output) as other:  # by now the server has seen the end, in whatever order it looked
        other.say("PING")
        other.lines_until("PONG")
    for part in parts:
        assert isinstance(part, Part)
        fast.begin(part)
        fast.finish(part, "ok", "good")

    assert [line for line in plc.rest() if line.startswith("RESULT")] == [
        "RESULT 1 A1 ok 1 good",
        "RESULT 2 A2 ok 1 good",
    ]


def test_one_who_has_said_all_is_not_kept_for_ever(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that nobody answers holds no connection, and the place of the one who triggered is free at once."""
    monkeypatch.setattr(lines, "ANSWERS_S", 0.2)
    trigger = opened.trigger(waiting=8)
    output = opened.output(trigger)
    plc = opened.plc(output)
    plc.say("TRIGGER A1")
    plc.finish()
    first = trigger.next(10)
    heard = plc.rest()
    after = opened.plc(output, address="127.0.0.2")
    after.say("TRIGGER A2")
    second = trigger.next(10)

    assert isinstance(first, Part)
    assert not [line for line in heard if line.startswith("RESULT")]
    assert isinstance(second, Part)


def test_one_who_listens_may_be_silent(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A display only hears results: it is not closed for its silence."""
    monkeypatch.setattr(lines, "SILENT_S", 0.0)
    output = opened.output()
    display, plc = opened.plc(output), opened.plc(output)
    for _ in range(3):  # so often the server has looked at everybody
        plc.say("PING")
        plc.lines_until("PONG")
    output.result(part_at(1), "ok", "good")

    assert display.line() == "RESULT 1 p1 ok 1 good"


@pytest.mark.parametrize("no_line", [b"\xff\xfe\r\n", b"x" * 600 + b"\r\n", b"TRIG A2\r\n"])
def test_what_is_no_line_costs_the_part_before_it_no_answer(opened: Opened, no_line: bytes) -> None:
    """The part was taken: its PLC hears what became of it before we hang up. What comes after is not heard."""
    trigger = opened.trigger()
    output = opened.output(trigger)
    fast = opened.fast(output)
    trigger.watch(fast)
    plc = opened.plc(output)
    plc.send(b"TRIGGER A1\r\n" + no_line + b"TRIGGER A3\r\n")
    heard = plc.lines_until("REFUSED")
    part = trigger.next(10)
    assert isinstance(part, Part)
    fast.begin(part)
    fast.finish(part, "ok", "good")
    heard += plc.rest()
    told = [line for line in heard if not line.startswith(("READY", "REFUSED"))]

    assert told == ["PART 1 A1", "RESULT 1 A1 ok 1 good"]
    assert trigger.next(0) is None


def test_outputs_on_another_port_have_a_server_of_their_own(opened: Opened) -> None:
    """Results to a display, triggers from a bar code reader that reads nothing."""
    trigger = opened.trigger()
    output = opened.output(trigger, host="127.0.0.2")

    assert output.server is not trigger.server
    with Plc(trigger.server.port) as reader:
        reader.say("A1", "PING")
        assert reader.line() == "PONG"


def test_an_output_alone_takes_no_triggers(opened: Opened) -> None:
    """Silence would be taken for a part."""
    plc = opened.plc(opened.output())
    plc.say("TRIGGER A1")

    assert plc.rest() == ["REFUSED unknown line: TRIGGER A1"]


def test_an_acknowledged_result_is_no_trouble(opened: Opened) -> None:
    """`ack_ms`: the PLC says that it has it."""
    output = opened.output(ack_ms=60_000.0)
    plc = opened.plc(output)
    output.result(part_at(1), "ok", "good")
    plc.lines_until("RESULT")
    plc.say("ACK 1", "ack 1", "PING")

    assert plc.line() == "PONG"
    assert output.trouble is None


def test_a_missing_ack_is_told_until_one_comes(opened: Opened) -> None:
    """The line goes on, and somebody is told which result nobody took."""
    output = opened.output(ack_ms=1.0)
    output.result(part_at(1), "ok", "good")
    wait_until(lambda: output.trouble)
    trouble = output.trouble
    slow = opened.plc(output)
    slow.say("ACK 1", "PING")
    assert slow.line() == "PONG"
    still = output.trouble
    output._ack_ns = 60_000_000_000  # from here on the PLC is fast enough
    output.result(part_at(2), "ok", "good")
    slow.say("ACK 2")
    wait_until(lambda: output.trouble is None)

    assert trouble == still == "outputs.tcp: no ACK 1 (part p1) within 1 ms of its result"


@pytest.mark.parametrize("line", ["ACK", "ACK one", "ACK -1", "ACK 1.5", "ACK ٣", "ACK " + "9" * 400])
def test_an_ack_of_nothing_is_refused(opened: Opened, line: str) -> None:
    """A programmer's mistake is told."""
    plc = opened.plc(opened.output(ack_ms=1_000.0))
    plc.say(line)

    assert plc.rest()[0].startswith("REFUSED expected ACK and a number")


def test_an_ack_of_a_result_that_nobody_waits_for_is_nothing(opened: Opened) -> None:
    """After a restart, or twice."""
    output = opened.output(ack_ms=1_000.0)
    plc = opened.plc(output)
    plc.say("ACK 999", "PING")

    assert plc.line() == "PONG"
    assert output.trouble is None


def test_results_that_nobody_acknowledges_do_not_pile_up(opened: Opened) -> None:
    """No PLC is connected for a week."""
    output = opened.output(ack_ms=60_000.0)
    for number in range(1, 3_000):
        output.result(part_at(number), "ok", "good")

    assert len(output._awaited) <= 1_000
    assert output.trouble is not None


def test_a_plc_that_does_not_read_delays_nobody_and_is_told(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results are lost to it line by line, never half of one; it goes on when it reads again."""
    monkeypatch.setattr(lines, "OUT_BYTES", 2_000)
    output = opened.output()
    deaf, other = opened.plc(output, reads=2_048), opened.plc(output)
    number = 0
    while not is_troubled(output):
        number += 1
        output.result(part_at(number), "ok", "x" * 400)
        assert other.line() == f"RESULT {number} p{number} ok 1 {'x' * 400}"
    trouble = output.trouble
    read: list[str] = []
    while is_troubled(output):
        line = deaf.line()
        assert line is not None
        read.append(line)
    output.result(part_at(number + 1), "ok", "again")
    read += deaf.lines_until(f"RESULT {number + 1} ")
    numbers = [int(line.split()[1]) for line in read]

    assert trouble is not None
    assert trouble.startswith("results are not read, and were lost to: 127.0.0.1:")
    assert numbers == [*range(1, len(numbers)), number + 1]
    assert number not in numbers


def test_a_plc_that_is_gone_costs_nothing(opened: Opened) -> None:
    """Its connection is forgotten; the others hear on."""
    output = opened.output()
    gone, stays = opened.plc(output), opened.plc(output)
    gone.close()
    for number in range(1, 200):
        output.result(part_at(number), "ok", "good")
    wait_until(lambda: len(output.server._peers) == 1)

    assert stays.lines_until("RESULT 199 ")[-1] == "RESULT 199 p199 ok 1 good"
    assert output.trouble is None


def test_close_says_that_no_trigger_is_taken_and_hangs_up_when_both_are_done(opened: Opened) -> None:
    """Trigger and output share a server: the last of them ends it, in whichever order."""
    for trigger_first in (True, False):
        trigger = opened.trigger()
        output = opened.output(trigger)
        plc = opened.plc(output)
        output.ready(is_ready=True)
        first, last = (trigger, output) if trigger_first else (output, trigger)
        first.close()
        first.close()
        plc.say("PING")
        assert plc.lines_until("PONG")
        last.close()

        assert [line for line in plc.rest() if line != "READY 0"] == []
        with pytest.raises(ConnectionRefusedError):
            Plc(output.server.port)


def test_a_port_in_use_is_told(opened: Opened) -> None:
    """Before the line starts."""
    port = opened.output().server.port
    with pytest.raises(ConfigError, match=rf"outputs\.tcp: 127\.0\.0\.1 port {port} is in use"):
        open_outputs(OutputsConfig(tcp=TcpOutputConfig(port=port)), opened.free())


def test_a_port_that_our_own_trigger_has_is_told_as_ours(opened: Opened) -> None:
    """Two spellings of one address: no other program is to be looked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    trigger = opened.trigger(host="0.0.0.0", port=port)
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {port} is in use by our own trigger") as caught:
        opened.output(trigger, host="127.0.0.1", port=port)

    assert caught.value.hint == "give trigger.host and outputs.tcp.host the same address: they share the port then"
