"""The handshake on electrical lines: whatever a PLC sees, whenever we die, it takes no part for ok that is not.

The wires change one at a time, in the order that would do most harm, and a PLC that follows the README watches each
change.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.config import GpioOutputConfig
from agent.outputs import handshake
from agent.outputs.handshake import Handshake

MS = 1_000_000
LINES: dict[str, Any] = {"ok": 1, "not_ok": 2, "valid": 3, "ready": 4, "busy": 5, "alive": 6, "strobe": 7}
SAFE = ("valid", "ok", "not_ok", "ready", "busy", "alive", "strobe")


class Wires:
    """Lines that follow a handshake, and the time.

    Attributes:
        now: nanoseconds.
        levels: what a voltmeter shows.
        seen: each change in its order: `+ok`, `-ok`, and `=5` for five milliseconds between them.
        watch: called after each.
    """

    def __init__(self, rules: Handshake, *, is_shuffled: bool = False) -> None:
        self.rules, self.is_shuffled = rules, is_shuffled
        self.now = 1_000 * MS
        self.levels = dict.fromkeys(LINES, False)
        self.seen: list[str] = []
        self.watch: Callable[[], None] = lambda: None
        self._last = self.now

    def settle(self) -> None:
        """All that is to be done now."""
        while (change := self.rules.step(self.now)) is not None:
            pairs = list(change.items())
            for name, level in reversed(pairs) if self.is_shuffled else pairs:
                self.set(name, level=level)

    def set(self, name: str, *, level: bool) -> None:
        """One wire."""
        if self.levels[name] is not level:
            if self.now > self._last:
                self.seen.append(f"={(self.now - self._last) / MS:g}")
                self._last = self.now
            self.seen.append(("+" if level else "-") + name)
            self.levels[name] = level
            self.watch()

    def wait(self, ms: float) -> None:
        """Let time go by, as the output's thread does: from one due moment to the next."""
        until = self.now + int(ms * MS)
        self.settle()
        while (due := self.rules.due_ns(self.now)) <= until:
            self.now = int(due)
            self.settle()
        self.now = until

    def told(self, *names: str) -> str:
        """What was seen of some wires since the last time; all of them without names."""
        kept = [one for one in self.seen if not names or one[0] == "=" or one[1:] in names]
        self.seen.clear()
        return " ".join(kept)


def wires_of(*, ack: bool = False, **changes: Any) -> Wires:
    """The usual times: 1 ms setup, 50 ms hold, 5 ms gap."""
    wires = Wires(Handshake(GpioOutputConfig(**{**LINES, "ack": 8 if ack else None, **changes})))
    wires.settle()
    wires.told()
    return wires


def test_a_result_stands_between_two_others_with_time_on_each_side() -> None:
    """`ok` before `valid`, `valid` away before `ok`, and all off before the next one."""
    wires = wires_of()
    for number, decision in enumerate(("ok", "defect", "review", "error"), 1):
        wires.rules.expect(number)
        wires.rules.result(number, decision)
    wires.wait(1_000)

    assert wires.told("ok", "not_ok", "valid") == (
        "+ok =1 +valid =50 -valid =1 -ok "
        "=5 +not_ok =1 +valid =50 -valid =1 -not_ok "
        "=5 +not_ok =1 +valid =50 -valid =1 -not_ok "
        "=5 +not_ok =1 +valid =50 -valid =1 -not_ok"
    )


def test_busy_is_active_from_the_trigger_until_the_result_stands() -> None:
    """A PLC that lost track waits until `busy` and `valid` are off: then nothing is due any more."""
    wires = wires_of()
    wires.rules.expect(1)
    wires.wait(10)
    wires.rules.result(1, "ok")
    wires.wait(1_000)

    assert wires.told() == "+busy =10 +ok =1 +valid -busy =50 -valid =1 -ok"


def test_results_are_shown_in_the_order_of_their_triggers() -> None:
    """There is no id on a wire: a refusal that is known at once waits for the part before it."""
    wires = wires_of()
    for number in (1, 2, 3):
        wires.rules.expect(number)
    wires.rules.result(3, "error")
    wires.wait(500)
    early = wires.told("ok", "not_ok", "valid")
    wires.rules.result(1, "ok")
    wires.rules.result(2, "defect")
    wires.wait(500)

    assert early == ""
    assert wires.told("ok", "not_ok", "valid").count("+valid") == 3
    assert not wires.levels["busy"]


def test_an_acknowledged_result_goes_at_once_and_the_next_waits_for_the_ack_to_go() -> None:
    """Four steps: valid, ack, valid off, ack off."""
    wires = wires_of(ack=True)
    for number in (1, 2):
        wires.rules.expect(number)
        wires.rules.result(number, "ok")
    wires.wait(10)
    wires.rules.ack(is_active=True)
    wires.wait(20)
    first = wires.told("ok", "valid")
    wires.rules.ack(is_active=False)
    wires.wait(2)

    assert first == "+ok =1 +valid =9 -valid =1 -ok"
    assert wires.told("ok", "valid") == "=19 +ok =1 +valid"
    assert wires.rules.trouble is None


def test_a_result_that_is_not_acknowledged_is_trouble_until_one_is() -> None:
    """The line goes on; somebody is told."""
    wires = wires_of(ack=True)
    for number in (1, 2):
        wires.rules.expect(number)
        wires.rules.result(number, "ok")
    wires.wait(52)
    unacked = wires.rules.trouble
    wires.wait(10)
    wires.rules.ack(is_active=True)
    wires.wait(5)

    assert unacked == "outputs.gpio.ack did not come within 50 ms of a result"
    assert wires.rules.trouble is None


def test_an_ack_that_does_not_go_is_trouble() -> None:
    """A broken wire at 24 V would take each result before the PLC has seen it."""
    wires = wires_of(ack=True)
    for number in (1, 2):
        wires.rules.expect(number)
        wires.rules.result(number, "ok")
    wires.wait(10)
    wires.rules.ack(is_active=True)
    wires.wait(1_000)

    assert wires.told("valid").count("+valid") == 1
    assert wires.rules.trouble == "outputs.gpio.ack is active although no result stands: the next result waits for it"


def test_an_ack_before_the_result_takes_nothing() -> None:
    """Only what comes while a result stands acknowledges it."""
    wires = wires_of(ack=True)
    wires.rules.ack(is_active=True)
    wires.rules.expect(1)
    wires.rules.result(1, "ok")
    wires.wait(10)
    early = wires.told("ok", "valid")
    wires.rules.ack(is_active=False)
    wires.wait(60)

    assert early == ""
    assert wires.told("ok", "valid") == "=10 +ok =1 +valid =50 -valid =1 -ok"


def test_an_ack_that_comes_before_valid_takes_nothing_and_valid_waits_for_it_to_go() -> None:
    """The PLC can't have read what did not stand: a level that is left on, or an early pulse, is no answer to it."""
    wires = wires_of(ack=True, setup_ms=10.0)
    wires.rules.expect(1)
    wires.rules.result(1, "ok")
    wires.wait(5)
    wires.rules.ack(is_active=True)
    wires.wait(20)
    wires.rules.ack(is_active=True)  # the level, each time that somebody looks
    wires.wait(100)
    early, trouble = wires.told("ok", "valid"), wires.rules.trouble
    wires.rules.ack(is_active=False)
    wires.wait(10)
    wires.rules.ack(is_active=True)
    wires.wait(0)

    assert early == "+ok"
    assert trouble == "outputs.gpio.ack is active although no result stands: the next result waits for it"
    assert wires.told("ok", "valid") == "=125 +valid =10 -valid"
    assert wires.rules.trouble is None


def test_an_early_pulse_is_not_kept_for_the_result_that_comes() -> None:
    """It stands for as long as one that nobody acknowledged, and that is told."""
    wires = wires_of(ack=True, setup_ms=10.0)
    wires.rules.expect(1)
    wires.rules.result(1, "ok")
    wires.wait(5)
    wires.rules.ack(is_active=True)
    wires.rules.ack(is_active=False)
    wires.wait(1_000)

    assert wires.told("ok", "valid") == "+ok =10 +valid =50 -valid =10 -ok"
    assert wires.rules.trouble == "outputs.gpio.ack did not come within 50 ms of a result"


@pytest.mark.parametrize("is_shuffled", [False, True], ids=["in order", "shuffled"])
def test_ready_comes_last_and_goes_first(*, is_shuffled: bool) -> None:
    """Who brings a trigger when `ready` comes has seen `alive`: at the start, after a failure, and at the end."""
    wires = Wires(Handshake(GpioOutputConfig(**LINES)), is_shuffled=is_shuffled)
    wires.rules.ready(is_ready=True)
    wires.settle()
    start = wires.told()
    wires.rules.failed(wires.now, "EIO")
    for name in SAFE:
        wires.set(name, level=False)
    wires.told()
    wires.wait(600)
    again = wires.told("ready", "alive")
    wires.rules.close()
    wires.settle()

    assert start == "+alive +ready"
    assert again == "=500 +alive +ready"
    assert wires.told("ready", "alive").endswith("-ready -alive")


def test_a_fault_is_shown_before_ready_comes() -> None:
    """A PLC that triggers at `ready` must not see the `alive` of before."""
    wires = wires_of()
    wires.rules.ready(is_ready=True)
    wires.rules.fault("camera lost")
    wires.settle()

    assert wires.told() == "-alive +ready"


def test_alive_and_ready_say_what_they_are_called() -> None:
    """A fault takes `alive`, not the results: each part still gets its own."""
    wires = wires_of()
    wires.rules.ready(is_ready=True)
    wires.settle()
    wires.rules.fault("camera lost")
    wires.settle()
    wires.rules.expect(1)
    wires.rules.result(1, "error")
    wires.wait(10)
    wires.rules.fault(None)
    wires.settle()
    wires.rules.close()
    wires.settle()

    assert wires.told("ready", "alive", "not_ok", "valid") == (
        "+ready -alive +not_ok =1 +valid =9 +alive -ready -alive"
    )


def test_the_strobe_is_first() -> None:
    """Light is needed now; a result may wait a step."""
    wires = wires_of()
    wires.rules.expect(1)
    wires.rules.result(1, "ok")
    wires.rules.exposing(is_exposing=True)
    first = wires.rules.step(wires.now)

    assert first is not None
    assert first["strobe"]
    assert "ok" not in first


def test_a_heartbeat_changes_alive_until_there_is_a_fault() -> None:
    """A line that a dead process left active does not beat."""
    wires = wires_of(heartbeat_ms=100.0)
    wires.wait(400)
    beats = wires.told("alive")
    wires.rules.fault("camera lost")
    wires.wait(1_000)
    wires.told("alive")
    wires.wait(1_000)

    assert beats.count("alive") == 4
    assert not wires.levels["alive"]
    assert "alive" not in wires.told("alive")


def test_results_that_come_faster_than_they_can_be_shown_are_shown_as_not_ok() -> None:
    """An ok that comes seconds late belongs to a part that is gone; the count stays right."""
    wires = wires_of()
    for number in range(1, 201):
        wires.rules.expect(number)
        wires.rules.result(number, "ok")
    late = wires.rules.trouble
    wires.wait(201 * 57)
    seen = wires.told("ok", "not_ok", "valid")
    wires.rules.expect(201)
    wires.rules.result(201, "ok")
    wires.wait(60)

    assert late == "outputs.gpio: over 64 results waited for their turn and are shown as not ok"
    assert seen.count("+valid") == 200
    assert seen.count("+not_ok") == 200
    assert wires.told("ok").count("+ok") == 1
    assert wires.rules.trouble is None


def test_noise_on_a_trigger_line_ends_in_memory_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that nobody can wait for are given up, and `alive` says that the count is lost."""
    monkeypatch.setattr(handshake, "MAX_OWED", 100)
    wires = wires_of()
    for number in range(1, 1_000):
        wires.rules.expect(number)
    wires.settle()
    lost = wires.told("alive")
    for number in range(1, 1_000):
        wires.rules.result(number, "ok")
    wires.wait(100_000)
    seen = wires.told()

    assert lost == "-alive"
    assert wires.rules.trouble is None
    assert seen.count("+valid") <= 100
    assert "+ok" not in seen or seen.count("+ok") <= 64
    assert wires.levels["alive"]
    assert not wires.levels["busy"]


@pytest.mark.parametrize("sequence", [1, 7])
def test_a_second_result_and_one_for_nobody_are_left_alone(sequence: int) -> None:
    """Nothing is shown for what nobody triggered."""
    wires = wires_of()
    wires.rules.expect(1)
    wires.rules.result(1, "defect")
    wires.rules.result(sequence, "ok")
    wires.wait(1_000)

    assert "+ok" not in wires.told()


def test_lines_that_failed_are_cleared_and_what_was_due_is_not_ok() -> None:
    """A PLC may have lost count: `alive` goes for half a second, and no ok from before comes after."""
    wires = wires_of()
    for number in (1, 2):
        wires.rules.expect(number)
        wires.rules.result(number, "ok")
    wires.wait(10)
    wires.rules.failed(wires.now, "EIO")
    for name in SAFE:
        wires.set(name, level=False)
    wires.told()
    trouble = wires.rules.trouble
    wires.wait(1_000)

    assert trouble == "EIO"
    assert wires.told("ok", "not_ok", "valid", "alive") == ("=5 +not_ok =1 +valid =50 -valid =1 -not_ok =443 +alive")
    assert wires.rules.trouble is None


def test_an_idle_line_is_never_due() -> None:
    """The thread sleeps until something is told."""
    wires = wires_of()

    assert wires.rules.due_ns(wires.now) == math.inf
    assert wires.rules.is_idle


class Plc:
    """A PLC that follows the README: it counts triggers and results, and starts anew where the count may be lost.

    Attributes:
        waiting: parts whose result it waits for.
        current: the part whose result stands, or stood last.
        taken_ok: parts for which it has ever seen `ok` while `valid` was active.
        sampled_ok: parts that were ok at the moment when `valid` came.
        strays: results that came when it waited for none.
        in_step: it counts.
    """

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.waiting: collections.deque[int] = collections.deque()
        self.current: int | None = None
        self.taken_ok: set[int] = set()
        self.sampled_ok: set[int] = set()
        self.strays = 0
        self.in_step = True
        self._was = dict(wires.levels)

    def trigger(self, sequence: int) -> None:
        """A part passes the light barrier."""
        if self.in_step:
            self.waiting.append(sequence)

    def look(self) -> None:
        """After each single change of a wire."""
        now, was, self._was = self.wires.levels, self._was, dict(self.wires.levels)
        if not now["alive"]:
            self.in_step = False
            self.waiting.clear()
        elif not self.in_step and not now["busy"] and not now["valid"]:
            self.in_step = True
        if now["valid"] and not was["valid"] and self.in_step:
            self.strays += not self.waiting
            self.current = self.waiting.popleft() if self.waiting else None
            if self.current is not None and now["ok"]:
                self.sampled_ok.add(self.current)
        if now["valid"] and now["ok"] and self.in_step and self.current is not None:
            self.taken_ok.add(self.current)


class Handshaking(RuleBasedStateMachine):
    """Triggers, decisions, acks, time, failing lines and death, in any order."""

    @initialize(
        has_ack=st.booleans(), is_shuffled=st.booleans(), is_calm=st.booleans(), setup=st.sampled_from([0.0, 1.0])
    )
    def start(self, *, has_ack: bool, is_shuffled: bool, is_calm: bool, setup: float) -> None:
        self.config = GpioOutputConfig(**LINES, ack=8 if has_ack else None, setup_ms=setup, gap_ms=setup)
        self.wires = Wires(Handshake(self.config), is_shuffled=is_shuffled)
        self.wires.settle()
        self.decided: dict[int, str] = {}
        self.count = 0
        self.plc = Plc(self.wires)
        self.plc.look()
        self.wires.watch = self.look
        self.is_calm, self.is_dead = is_calm, False

    def look(self) -> None:
        self.plc.look()
        self.nothing_is_ok_that_is_not()

    @rule()
    def trigger(self) -> None:
        self.count += 1
        self.plc.trigger(self.count)
        if not self.is_dead:
            self.wires.rules.expect(self.count)
            self.wires.settle()

    @precondition(lambda self: self.count)
    @rule(data=st.data(), decision=st.sampled_from(["ok", "ok", "defect", "review", "error"]))
    def decide(self, data: st.DataObject, decision: str) -> None:
        sequence = data.draw(st.integers(1, self.count))
        if not self.is_dead:
            self.decided.setdefault(sequence, decision)
            self.wires.rules.result(sequence, decision)
            self.wires.settle()

    @rule(ms=st.sampled_from([0.3, 1, 3, 7, 60, 600]))
    def wait(self, ms: float) -> None:
        if self.is_dead:
            self.wires.now += int(ms * MS)
        else:
            self.wires.wait(ms)

    @rule(is_active=st.booleans())
    def ack(self, *, is_active: bool) -> None:
        if self.config.ack is not None and not self.is_dead:
            self.wires.rules.ack(is_active=is_active)
            self.wires.settle()

    @precondition(lambda self: not self.is_calm)
    @rule(fault=st.sampled_from([None, "camera lost"]), is_ready=st.booleans())
    def say(self, fault: str | None, *, is_ready: bool) -> None:
        if not self.is_dead:
            self.wires.rules.fault(fault)
            self.wires.rules.ready(is_ready=is_ready)
            self.wires.settle()

    @precondition(lambda self: not self.is_calm)
    @rule(was_set=st.booleans(), ms=st.sampled_from([0, 100]))
    def lines_fail(self, ms: float, *, was_set: bool) -> None:
        """A call of the kernel fails, with its change made or not; nothing can be set for a while."""
        if self.is_dead:
            return
        change = self.wires.rules.step(self.wires.now) or {}
        if was_set:
            for name, level in change.items():
                self.wires.set(name, level=level)
        self.wires.rules.failed(self.wires.now, "EIO")
        self.wires.now += int(ms * MS)
        for name in SAFE:
            self.wires.set(name, level=False)
        self.wires.settle()

    @precondition(lambda self: not self.is_calm)
    @rule(keeps=st.booleans())
    def die(self, *, keeps: bool) -> None:
        """SIGKILL: the driver leaves the lines as they are, or lets them go."""
        self.is_dead = True
        if not keeps:
            for name in SAFE[::-1]:
                self.wires.set(name, level=False)

    @precondition(lambda self: self.is_dead)
    @rule()
    def come_back(self) -> None:
        """systemd starts it again: the lines are requested inactive, the parts of before are known to nobody."""
        for name in SAFE:
            self.wires.set(name, level=False)
        self.wires.rules = Handshake(self.config)
        self.wires.settle()
        self.is_dead = False

    @precondition(lambda self: not self.is_calm)
    @rule()
    def power_off(self) -> None:
        """All lines read 0 V, in whatever order they fall; the machine boots."""
        for name in ("not_ok", "valid", "alive", "ok", "busy", "ready", "strobe"):
            self.wires.set(name, level=False)
        self.is_dead = True

    @invariant()
    def nothing_is_ok_that_is_not(self) -> None:
        """What the PLC took for ok was decided so, after it was triggered; nothing came for nobody."""
        if not hasattr(self, "plc"):
            return
        assert not [part for part in self.plc.taken_ok if self.decided.get(part) != "ok"]
        assert self.plc.strays == 0
        assert not (self.wires.levels["ok"] and self.wires.levels["not_ok"])

    def teardown(self) -> None:
        """Where nothing went wrong, no good part was lost either: its ok stood when `valid` came."""
        if not hasattr(self, "plc") or not self.is_calm:
            return
        self.wires.rules.ack(is_active=False)
        self.wires.wait(70 * (self.count + 1))
        undecided = min(set(range(1, self.count + 2)) - self.decided.keys())
        assert self.plc.sampled_ok == {part for part in range(1, undecided) if self.decided[part] == "ok"}


TestHandshaking = Handshaking.TestCase
TestHandshaking.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
