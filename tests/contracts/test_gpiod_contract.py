"""The stand-in for gpiod is what it claims to be: the real package's names, and the kernel's behaviour."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.config import GpioOutputConfig, GpioTriggerConfig
from agent.errors import ConfigError
from agent.outputs.gpio import GpioOutput
from agent.triggers.gpio import GpioTrigger
from tests.kit.gpiod import NAMES, Board, SimChip, described, installed

CHIP = "/dev/gpiochip0"


def settings(**changes: Any) -> Any:
    """Line settings of the package that is installed."""
    package: Any = importlib.import_module("gpiod")
    return package.LineSettings(**changes)


def enum_of(name: str) -> Any:
    """`gpiod.line.NAME`."""
    return getattr(importlib.import_module("gpiod").line, name)


def edges_of(request: Any) -> list[tuple[str, int, int]]:
    """What waits: kind, time and number of the line."""
    if not request.wait_edge_events(0):
        return []
    return [(e.event_type.name, e.timestamp_ns, e.line_seqno) for e in request.read_edge_events(1_024)]


def input_of(board: Board, edge: str = "BOTH", *, events: int | None = None, **changes: Any) -> tuple[SimChip, Any]:
    """Line 4 of a chip, as an input."""
    chip, package = board.add_chip(CHIP), importlib.import_module("gpiod")
    wanted = settings(direction=enum_of("Direction").INPUT, edge_detection=enum_of("Edge")[edge], **changes)
    return chip, package.request_lines(CHIP, {4: wanted}, consumer="test", event_buffer_size=events)


def output_of(board: Board, *offsets: int, **changes: Any) -> tuple[SimChip, Any]:
    """Lines of a chip, as outputs."""
    chip, package = board.add_chip(CHIP), importlib.import_module("gpiod")
    wanted = settings(direction=enum_of("Direction").OUTPUT, **changes)
    return chip, package.request_lines(CHIP, {tuple(offsets): wanted})


# Names


def offers(package: dict[str, Any]) -> dict[str, Any]:
    """A described package without what the stand-in leaves out of its classes."""
    with installed():
        stand_in = described(importlib.import_module("gpiod"))
    return {
        name: {key: package[name].get(key, "absent") for key in members} if isinstance(members, dict) else package[name]
        for name, members in stand_in.items()
    }


def test_its_names_parameters_and_enums_are_those_of_the_real_package() -> None:
    """The table was made from gpiod 2.5.0."""
    with installed():
        stand_in = described(importlib.import_module("gpiod"))

    assert stand_in == offers(NAMES)


def test_its_errors_are_those_of_the_real_package() -> None:
    """Both derive from Exception alone: who catches OSError misses them."""
    with installed():
        package: Any = importlib.import_module("gpiod")

    assert str(package.RequestReleasedError()) == "GPIO lines have been released"
    assert str(package.ChipClosedError()) == "I/O operation on closed chip"


@pytest.fixture
def real() -> Any:
    """The real package, where it is installed."""
    if importlib.util.find_spec("gpiod") is None:
        pytest.skip("gpiod is not installed (pip install defect-agent[gpio])")
    return importlib.import_module("gpiod")


def test_the_real_package_has_what_we_use(real: Any) -> None:
    """Whichever version of it is here."""
    with installed():
        stand_in = described(importlib.import_module("gpiod"))

    assert offers(described(real)) == stand_in


@pytest.mark.parametrize(("path", "code"), [("/nowhere", errno.ENOENT), ("/dev/null", errno.ENODEV)])
def test_the_real_package_fails_as_we_expect(real: Any, path: str, code: int) -> None:
    """The errors that we have words for."""
    with pytest.raises(OSError) as caught:
        real.request_lines(path, {1: None})

    assert caught.value.errno == code


def test_the_real_package_takes_our_settings(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its C code checks them first when a chip is there: they are translated here as it would do it."""
    seen: list[dict[int, Any]] = []
    request_lines = real.request_lines

    def listen(path: str, config: dict[int, Any], **others: Any) -> Any:
        seen.append(config)
        return request_lines(path, config, **others)

    monkeypatch.setattr(real, "request_lines", listen)
    trigger = GpioTriggerConfig(kind="gpio", chip="/dev/null", line=3, edge="falling", bias="pull-up")
    output = GpioOutputConfig(chip="/dev/null", ok=1, valid=2, ack=3, active_low=True)
    for opening in (lambda: GpioTrigger(trigger), lambda: GpioOutput(output)):
        with pytest.raises(ConfigError, match="/dev/null is no GPIO chip"):
            opening()

    translate = importlib.import_module("gpiod.line_settings")._line_settings_to_ext
    assert len([translate(settings) for config in seen for settings in config.values()]) == 4


def test_the_kernels_simulator(real: Any) -> None:
    """gpio-sim, a chip in memory with the real driver's interface."""
    configfs = Path("/sys/kernel/config/gpio-sim")
    if not configfs.is_dir() or os.geteuid() != 0:
        pytest.skip("needs root and the kernel's gpio-sim (modprobe gpio-sim, configfs mounted)")
    device = configfs / f"defect-agent-{os.getpid()}"
    bank = device / "bank0"
    bank.mkdir(parents=True)
    try:
        (bank / "num_lines").write_text("8")
        (device / "live").write_text("1")
        chip = (bank / "chip_name").read_text().strip()
        platform = Path("/sys/devices/platform") / (device / "dev_name").read_text().strip() / chip / "sim_gpio4"
        wanted = real.LineSettings(direction=real.line.Direction.INPUT, edge_detection=real.line.Edge.BOTH)
        with real.request_lines(f"/dev/{chip}", {4: wanted}, event_buffer_size=16) as request:
            for _ in range(20):
                (platform / "pull").write_text("pull-up")
                (platform / "pull").write_text("pull-down")
            assert request.wait_edge_events(10)
            numbers = [event.line_seqno for event in request.read_edge_events(64)]
        assert numbers == list(range(25, 41))  # the oldest are thrown away, as in the stand-in
    finally:
        (device / "live").write_text("0")
        bank.rmdir()
        device.rmdir()


# Behaviour


def test_what_is_not_there_not_allowed_or_taken() -> None:
    """As the real one: OSError of the kernel, and ValueError for a line that the chip does not have."""
    with installed() as board:
        board.add_chip(CHIP, lines=8)
        board.add_chip("/dev/gpiochip1")
        board.forbidden.add("/dev/gpiochip1")
        package = importlib.import_module("gpiod")
        held = package.request_lines(CHIP, {1: None})
        with pytest.raises(FileNotFoundError):
            package.request_lines("/dev/gpiochip9", {1: None})
        with pytest.raises(PermissionError):
            package.request_lines("/dev/gpiochip1", {1: None})
        with pytest.raises(OSError, match="busy"):
            package.request_lines(CHIP, {(0, 1): None})
        with pytest.raises(ValueError, match="line offset of out range"):
            package.request_lines(CHIP, {8: None})
        held.release()
        held.release()
        package.request_lines(CHIP, {1: None}).release()
        with pytest.raises(package.RequestReleasedError):
            held.get_value(1)


def test_edges_are_numbered_and_bear_the_kernels_time() -> None:
    """CLOCK_MONOTONIC, in nanoseconds; the numbers of a line begin at 1."""
    with installed() as board:
        chip, request = input_of(board, "RISING")
        chip.play(4, [(0, True), (10, False), (20, True)], at_ns=1_000_000)

        assert edges_of(request) == [("RISING_EDGE", 1_000_000, 1), ("RISING_EDGE", 1_020_000, 2)]
        assert edges_of(request) == []


def test_a_low_line_rises_when_it_becomes_active() -> None:
    """Edges are logical."""
    with installed() as board:
        chip, request = input_of(board, "RISING", active_low=True)
        chip.drive(4, level=True)
        chip.drive(4, level=False)

        assert [edge[0] for edge in edges_of(request)] == ["RISING_EDGE"]
        assert bool(request.get_value(4))


def test_bouncing_is_one_edge_when_the_level_has_stood() -> None:
    """Its time is the end of the debounce period, as with the kernel's own debouncer."""
    with installed() as board:
        chip, request = input_of(board, debounce_period=timedelta(milliseconds=1))
        chip.play(4, [(0, True), (100, False), (250, True), (300, False), (420, True)], at_ns=0)
        chip.play(4, [(0, False), (10, True)], at_ns=5_000_000)

        assert edges_of(request) == [("RISING_EDGE", 1_420_000, 1)]


def test_a_full_buffer_throws_the_oldest_edges_away() -> None:
    """What is missing is missing in the numbers."""
    with installed() as board:
        chip, request = input_of(board, "RISING", events=4)
        chip.pulse(4, 10)

        assert [edge[2] for edge in edges_of(request)] == [7, 8, 9, 10]


def test_outputs_begin_inactive_and_levels_are_logical() -> None:
    """With `active_low` the voltmeter shows the opposite."""
    with installed() as board:
        chip, request = output_of(board, 1, 2, active_low=True)
        value = enum_of("Value")
        seen = [(chip.level(1), chip.level(2))]
        request.set_values({1: value.ACTIVE})
        seen.append((chip.level(1), chip.level(2)))

        assert seen == [(True, True), (False, True)]
        assert request.get_values([1, 2]) == [value.ACTIVE, value.INACTIVE]


def test_a_dead_process_leaves_its_lines_to_the_driver() -> None:
    """The kernel promises neither: tests must hold with both."""
    levels = {}
    for after_death in ("keep", "input"):
        with installed(after_death=after_death) as board:
            chip, request = output_of(board, 1)
            request.set_value(1, enum_of("Value").ACTIVE)
            board.kill_processes()
            levels[after_death] = chip.level(1)

    assert levels == {"keep": True, "input": False}


def test_without_power_all_lines_read_low() -> None:
    """Whatever they were."""
    with installed() as board:
        chip, request = output_of(board, 1)
        request.set_value(1, enum_of("Value").ACTIVE)
        board.power_off()

        assert not chip.level(1)


def test_an_unplugged_chip_is_no_device() -> None:
    """The waiting ends, and every call says so."""
    with installed() as board:
        chip, request = input_of(board)
        chip.unplug()

        assert request.wait_edge_events(10)
        for call in (request.read_edge_events, lambda: request.get_value(4), lambda: request.set_values({})):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.ENODEV
