"""Results on electrical lines: what a voltmeter shows, also when a driver fails, a process dies or the power goes."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.config import FreeRunConfig, GpioOutputConfig, OutputsConfig, TcpOutputConfig, config_from_mapping
from agent.errors import ConfigError, MissingExtra
from agent.frame import Part, Stamp
from agent.outputs import FastPath, gpio, open_outputs
from agent.outputs.gpio import GpioOutput
from agent.triggers import open_trigger
from tests.kit.cameras import HandCamera
from tests.kit.commands import run_command
from tests.kit.gpiod import Board, installed, replaced
from tests.kit.waiting import wait_until

CHIP = "/dev/gpiochip0"
LINES: dict[str, Any] = {"ok": 1, "not_ok": 2, "valid": 3, "ready": 4, "busy": 5, "alive": 6, "strobe": 7}


def part_at(sequence: int) -> Part:
    """A part triggered now."""
    return Part(id=f"p{sequence}", trigger="test", sequence=sequence, triggered=Stamp.now())


class Bench:
    """A machine with one chip, an output on it, and a voltmeter on each line.

    Attributes:
        seen: each change of a result line, with all three levels after it: `ok`, `not_ok`, `valid`.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self.chip = board.add_chip(CHIP)
        self.seen: list[tuple[bool, bool, bool]] = []
        self._outputs: list[GpioOutput] = []
        board.watch(self._look)

    def open(self, **changes: Any) -> GpioOutput:
        """An output; all lines but `ack`, results stand for a minute unless asked otherwise."""
        config = GpioOutputConfig(**{**LINES, "hold_ms": 60_000.0, "setup_ms": 0.0, "gap_ms": 0.0, **changes})
        self._outputs.append(GpioOutput(config))
        return self._outputs[-1]

    def active(self, *, low: bool = False) -> set[str]:
        """Names of the lines that are active."""
        return {name for name, number in LINES.items() if self.chip.level(number) != low}

    def close(self) -> None:
        """All outputs."""
        for output in self._outputs:
            output.close()

    def _look(self) -> None:
        levels = self.chip.level(1), self.chip.level(2), self.chip.level(3)
        if not self.seen or self.seen[-1] != levels:
            self.seen.append(levels)


@pytest.fixture(params=[False, True], ids=["in order", "shuffled"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Lines of one call change in the order given, and in the reverse; a stop does not wait for results of minutes."""
    monkeypatch.setattr(gpio, "CLOSE_S", 0.05)
    with installed(shuffled=request.param) as board:
        made = Bench(board)
        yield made
        for chip in board.chips.values():
            chip.refuse_sets = 0
        made.close()


def show(output: GpioOutput, sequence: int, decision: str) -> None:
    """A part's way through the output."""
    part = part_at(sequence)
    output.expect(part)
    output.busy(part)
    output.result(part, decision, "reason")


def test_lines_are_inactive_from_the_first_moment_but_alive(bench: Bench) -> None:
    """Requesting a line must not pulse it."""
    bench.open()
    wait_until(lambda: bench.active() == {"alive"})

    assert set(bench.seen) <= {(False, False, False)}


@pytest.mark.parametrize(
    ("decision", "line"), [("ok", "ok"), ("defect", "not_ok"), ("review", "not_ok"), ("error", "not_ok")]
)
def test_a_result_stands_on_its_line_with_valid(bench: Bench, decision: str, line: str) -> None:
    """Only `ok` is ok."""
    output = bench.open()
    show(output, 1, decision)
    wait_until(lambda: "valid" in bench.active() and "busy" not in bench.active())

    assert bench.active() == {"alive", "valid", line}


def test_results_follow_one_another_without_overlap(bench: Bench) -> None:
    """Between two of them everything is off, and `valid` never stands while the others change."""
    output = bench.open(hold_ms=1.0)
    for number, decision in enumerate(("ok", "defect", "ok"), 1):
        show(output, number, decision)
    wait_until(lambda: sum(seen[2] for seen in bench.seen) == 3 and bench.active() == {"alive"})
    off, ok, defect = (False, False, False), (True, False, False), (False, True, False)

    assert [seen for seen in bench.seen if seen != off or seen is bench.seen[0]] == [
        *([off] if bench.seen[0] == off else []),
        *(ok, (True, False, True), ok),
        *(defect, (False, True, True), defect),
        *(ok, (True, False, True), ok),
    ]


def test_ready_busy_alive_and_strobe(bench: Bench) -> None:
    """Each follows what it is told."""
    output = bench.open()
    output.ready(is_ready=True)
    wait_until(lambda: bench.active() == {"alive", "ready"})
    output.exposing(is_exposing=True)
    wait_until(lambda: "strobe" in bench.active())
    output.exposing(is_exposing=False)
    wait_until(lambda: "strobe" not in bench.active())
    output.expect(part_at(1))
    wait_until(lambda: "busy" in bench.active())
    output.fault("camera lost")
    wait_until(lambda: "alive" not in bench.active())
    output.fault(None)
    wait_until(lambda: bench.active() == {"alive", "ready", "busy"})


def test_active_low_turns_all_levels(bench: Bench) -> None:
    """For optocouplers that sink: 0 V is active, and a line that nobody drives is pulled up."""
    output = bench.open(active_low=True)
    wait_until(lambda: bench.active(low=True) == {"alive"})
    show(output, 1, "ok")
    wait_until(lambda: bench.active(low=True) == {"alive", "ok", "valid"})


def test_an_ack_takes_the_result_at_once(bench: Bench) -> None:
    """And the next one waits until the ack is gone."""
    output = bench.open(ack=9)
    show(output, 1, "ok")
    show(output, 2, "defect")
    wait_until(lambda: "valid" in bench.active())
    bench.chip.drive(9, level=True)
    wait_until(lambda: not bench.active() & {"ok", "valid", "not_ok"})
    bench.chip.drive(9, level=False)
    wait_until(lambda: {"not_ok", "valid"} <= bench.active())

    assert output.trouble is None


def test_an_ack_pulse_shorter_than_a_thread_needs_is_seen(bench: Bench) -> None:
    """The kernel keeps its edges."""
    output = bench.open(ack=9)
    show(output, 1, "ok")
    wait_until(lambda: "valid" in bench.active())
    with bench.board.lock:
        bench.chip.pulse(9)
    wait_until(lambda: not bench.active() & {"ok", "valid"})


def test_a_missing_ack_is_told(bench: Bench) -> None:
    """The result has stood for its time; the line goes on."""
    output = bench.open(ack=9, hold_ms=5.0)
    show(output, 1, "ok")
    wait_until(lambda: output.trouble)

    assert output.trouble == "outputs.gpio.ack did not come within 5 ms of a result"


def test_close_shows_what_waits_and_leaves_all_lines_inactive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part's result is not cut short; then the lines are given back."""
    monkeypatch.setattr(gpio, "CLOSE_S", 30)
    output = bench.open(hold_ms=2.0)
    for number in (1, 2, 3):
        show(output, number, "ok")
    output.close()
    output.close()
    output.ready(is_ready=True)
    show(output, 4, "ok")

    assert sum(seen[2] for seen in bench.seen) == 3
    assert bench.active() == set()
    assert bench.chip.requests == []


def test_close_does_not_wait_for_a_plc_that_is_away(bench: Bench) -> None:
    """Results that would stand for minutes are cut, `valid` first."""
    output = bench.open(ack=9)
    show(output, 1, "ok")
    show(output, 2, "ok")
    wait_until(lambda: "valid" in bench.active())
    output.close()

    assert bench.active() == set()
    assert bench.seen[-3:] == [(True, False, True), (True, False, False), (False, False, False)]


def test_without_power_nothing_is_ok(bench: Bench) -> None:
    """Whatever stood there."""
    show(bench.open(), 1, "ok")
    wait_until(lambda: {"ok", "valid"} <= bench.active())
    bench.board.power_off()

    assert bench.active() == set()


@pytest.mark.parametrize("after_death", ["keep", "input"])
def test_after_a_kill_no_new_result_appears_and_a_restart_clears_the_lines(
    bench: Bench, after_death: Literal["keep", "input"]
) -> None:
    """A driver may leave a result standing: `valid` rises no more, so it is nobody's; a restart takes it away."""
    bench.board.after_death = after_death
    show(bench.open(), 1, "ok")
    wait_until(lambda: {"ok", "valid"} <= bench.active())
    bench.board.kill_processes()
    after_kill = bench.active() & {"ok", "not_ok", "valid"}
    bench.seen.clear()
    bench.open()
    wait_until(lambda: not bench.active() & {"ok", "not_ok", "valid"})

    assert after_kill == ({"ok", "valid"} if after_death == "keep" else set())
    assert not [seen for before, seen in itertools.pairwise(bench.seen) if seen[2] and not before[2]]


@pytest.mark.parametrize("active_low", [False, True])
def test_a_dead_ones_lines_are_set_inactive_without_a_start(bench: Bench, *, active_low: bool) -> None:
    """The service manager does it at once; a restart takes as long as the engine takes to load."""
    config = GpioOutputConfig(**{**LINES, "active_low": active_low, "hold_ms": 60_000.0})
    output = bench.open(active_low=active_low)
    show(output, 1, "ok")
    wait_until(lambda: {"ok", "valid"} <= bench.active(low=active_low))
    with pytest.raises(ConfigError, match="in use already"):
        gpio.set_inactive(config)
    bench.board.kill_processes()
    gpio.set_inactive(config)
    gpio.set_inactive(GpioOutputConfig())

    assert bench.active(low=active_low) == set()
    assert bench.chip.requests == []


def test_the_command_sets_a_dead_ones_lines_inactive(bench: Bench, tmp_path: Path) -> None:
    """As the service manager calls it; a station without lines has nothing to do."""
    station = "station: a/b\nstate_dir: s\nbundle: b.defect\ncamera: {kind: folder, path: p}\n"
    with_lines, without = tmp_path / "with.yaml", tmp_path / "without.yaml"
    with_lines.write_text(station + "outputs: {gpio: {ok: 1, not_ok: 2, valid: 3, hold_ms: 60000.0}}\n")
    without.write_text(station)
    show(bench.open(hold_ms=60_000.0), 1, "ok")
    wait_until(lambda: {"ok", "valid"} <= bench.active())

    alive = run_command("agent.cli.lines", "--off", "--config", with_lines)
    bench.board.kill_processes()
    dead = run_command("agent.cli.lines", "--off", "--config", with_lines)

    assert (alive.code, "in use already" in alive.err) == (2, True)
    assert (dead.code, bench.active() & {"ok", "not_ok", "valid"}) == (0, set())
    assert run_command("agent.cli.lines", "--off", "--config", without).code == 0


def test_lines_that_can_not_be_set_are_told_and_cleared_before_anything_else(bench: Bench) -> None:
    """An expander with a loose plug: the result that was due is not shown as ok later."""
    output = bench.open(hold_ms=1.0)
    show(output, 1, "ok")
    wait_until(lambda: bench.active() == {"alive"} and sum(seen[2] for seen in bench.seen) == 1)
    bench.seen.clear()
    with bench.board.lock:  # both are told before the first change fails
        bench.chip.refuse_sets = errno.EIO
        show(output, 2, "ok")
        show(output, 3, "ok")
    wait_until(lambda: output.trouble)
    trouble = output.trouble
    bench.chip.refuse_sets = 0
    wait_until(lambda: bench.active() == {"alive"} and sum(seen[2] for seen in bench.seen) == 2)
    show(output, 4, "ok")
    wait_until(lambda: (True, False, True) in bench.seen)

    assert trouble == "outputs.gpio: /dev/gpiochip0: Input/output error"
    assert [seen for seen in bench.seen if seen[2]][:2] == [(False, True, True)] * 2
    assert output.trouble is None


def test_a_chip_that_comes_back_is_taken_again(bench: Bench) -> None:
    """Unplugged with a result on it; the new one starts inactive."""
    output = bench.open(ack=9)
    show(output, 1, "ok")
    wait_until(lambda: "valid" in bench.active())
    bench.chip.unplug()
    wait_until(lambda: output.trouble)
    trouble = output.trouble
    bench.chip = bench.board.add_chip(CHIP)
    wait_until(lambda: "alive" in bench.active())
    show(output, 2, "ok")
    wait_until(lambda: {"ok", "valid"} <= bench.active())

    assert trouble == "outputs.gpio: /dev/gpiochip0: No such device"


def test_close_ends_while_the_lines_fail(bench: Bench) -> None:
    """A stop must not wait for a plug."""
    output = bench.open()
    show(output, 1, "ok")
    wait_until(lambda: "valid" in bench.active())
    bench.chip.refuse_sets = errno.EIO
    output.ready(is_ready=True)
    wait_until(lambda: output.trouble)
    output.close()

    assert bench.chip.requests == []


def test_only_the_lines_that_are_named_are_taken(bench: Bench) -> None:
    """Others belong to somebody else."""
    output = bench.open(not_ok=None, ready=None, busy=None, alive=None, strobe=None)
    output.ready(is_ready=True)
    output.exposing(is_exposing=True)
    show(output, 1, "ok")
    wait_until(lambda: {"ok", "valid"} <= bench.active())

    assert set(bench.chip.requests[0].wanted) == {1, 3}
    assert bench.active() == {"ok", "valid"}


def test_many_threads_and_a_thousand_parts_give_each_result_once_and_in_order(bench: Bench) -> None:
    """Through the fast path, as the station does; decisions come from several threads, in any order."""
    output = bench.open(hold_ms=1.0, ready=None, busy=None, alive=None, strobe=None)
    fast = FastPath([output], deadline_ms=None)
    parts = [part_at(number) for number in range(1, 41)]
    decisions = ["ok" if number % 3 else "defect" for number in range(1, 41)]
    for part in parts:
        fast.begin(part)
    lots = [list(zip(parts, decisions, strict=True))[start::4][::-1] for start in range(4)]

    def finish(lot: list[tuple[Part, str]]) -> None:
        for part, decision in lot:
            fast.finish(part, decision, "reason")

    threads = [threading.Thread(target=finish, args=(lot,)) for lot in lots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len([seen for seen in bench.seen if seen[2]]) == 40, 30)
    fast.close()

    assert ["ok" if seen[0] else "defect" for seen in bench.seen if seen[2]] == decisions


# Configuration


def refusal(**changes: Any) -> str:
    """What the user reads."""
    with pytest.raises(ConfigError) as caught:
        GpioOutputConfig(**changes)
    assert caught.value.hint is not None
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ack": 4}, "outputs.gpio: got ack 4, expected both ok and valid"),
        ({"ok": 4}, "outputs.gpio: got ok 4, expected both ok and valid"),
        ({"valid": 4}, "outputs.gpio: got valid 4, expected both ok and valid"),
        ({"not_ok": 4, "valid": 5}, "outputs.gpio: got not_ok 4, valid 5, expected both ok and valid"),
        ({"alive": 3, "ack": 4}, "outputs.gpio: got alive 3, ack 4, expected both ok and valid"),
        ({"ok": 4, "valid": 4}, "outputs.gpio: got ok 4, valid 4, expected different lines"),
    ],
)
def test_lines_that_could_pass_a_bad_part_are_refused(changes: dict[str, int], problem: str) -> None:
    """A PLC that reads the absence of `not_ok` as ok passes everything when the wire breaks."""
    assert refusal(**changes) == problem


def test_no_line_at_all_is_refused(bench: Bench) -> None:
    """Somebody forgot the numbers."""
    with pytest.raises(ConfigError, match=r"outputs\.gpio: got no line, expected at least one"):
        opened(OutputsConfig(gpio=GpioOutputConfig()))


def test_a_station_may_have_no_result_line() -> None:
    """Only a strobe, say."""
    assert GpioOutputConfig(strobe=4).ok is None


def test_the_configuration_names_the_block(tmp_path: Path) -> None:
    """From YAML, with the file in front."""
    with pytest.raises(ConfigError, match=r"line1\.yaml: outputs\.gpio: got ok 4, expected both ok and valid"):
        config_from_mapping(OutputsConfig, {"gpio": {"ok": 4}}, source=tmp_path / "line1.yaml")


def opened(config: OutputsConfig) -> None:
    """Open outputs as the station does."""
    open_outputs(config, open_trigger(FreeRunConfig(kind="free"), HandCamera()))


def test_lines_in_use_and_missing_libraries_are_told(bench: Bench) -> None:
    """What was opened before is closed again."""
    bench.open()
    config = GpioOutputConfig(ok=3, valid=20)
    with pytest.raises(ConfigError, match=r"outputs\.gpio: /dev/gpiochip0 has a line that is in use already"):
        opened(OutputsConfig(gpio=config))
    with replaced(None), pytest.raises(MissingExtra, match="GPIO lines need gpiod"):
        opened(OutputsConfig(gpio=config))


def test_an_output_that_can_not_be_opened_closes_the_others(bench: Bench) -> None:
    """Nothing is left half open."""
    config = GpioOutputConfig(ok=1, valid=2)
    with pytest.raises(ConfigError, match=r"outputs\.tcp: 203\.0\.113\.1 port 5020 is no address of this machine"):
        opened(OutputsConfig(gpio=config, tcp=TcpOutputConfig(host="203.0.113.1")))

    assert bench.chip.requests == []
