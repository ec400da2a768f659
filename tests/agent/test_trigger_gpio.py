"""An edge of an electrical line is a part: every edge, no bounce, and lost ones are errors, never silence."""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from agent.config import GpioTriggerConfig
from agent.errors import ConfigError, MissingExtra
from agent.frame import Fault, Part
from agent.triggers import gpio, open_trigger
from agent.triggers.gpio import GpioTrigger
from tests.kit.cameras import HandCamera
from tests.kit.gpiod import Board, SimChip, installed, replaced
from tests.kit.waiting import wait_until

CHIP = "/dev/gpiochip0"
LINE = 17


@pytest.fixture
def board() -> Iterator[Board]:
    """A machine with one chip."""
    with installed() as made:
        made.add_chip(CHIP)
        yield made


@pytest.fixture
def chip(board: Board) -> SimChip:
    """That chip."""
    return board.chips[CHIP]


class Triggers:
    """Opens them, and closes them at the end."""

    def __init__(self) -> None:
        self._opened: list[GpioTrigger] = []

    def open(self, **changes: Any) -> GpioTrigger:
        """As the station does; its line is asking for a part."""
        trigger = open_trigger(GpioTriggerConfig(**{"kind": "gpio", "line": LINE, **changes}), HandCamera())
        assert isinstance(trigger, GpioTrigger)
        self._opened.append(trigger)
        trigger.next(0)
        return trigger

    def close(self) -> None:
        """All of them."""
        for trigger in self._opened:
            trigger.close()


@pytest.fixture
def triggers(board: Board) -> Iterator[Triggers]:
    """Closed before the board goes."""
    made = Triggers()
    yield made
    made.close()


def taken(trigger: GpioTrigger, count: int) -> list[Part | Fault]:
    """So many parts and refusals."""
    given: list[Part | Fault] = []
    while len(given) < count:
        one = trigger.next(10)
        assert one is not None, f"{len(given)} of {count} came"
        given.append(one)
    return given


def test_an_edge_is_a_part_at_the_kernels_time(chip: SimChip, triggers: Triggers) -> None:
    """Not at the time when a busy process got round to it."""
    trigger = triggers.open(debounce_us=0, part_prefix="belt")
    at_ns = time.monotonic_ns() - 20_000_000
    chip.drive(LINE, level=True, at_ns=at_ns)
    part = trigger.next(10)

    assert isinstance(part, Part)
    assert part.triggered.mono_ns == at_ns
    assert abs(part.triggered.utc_ms - (time.time_ns() // 1_000_000 - 20)) < 10_000
    assert part.id.startswith("belt-20")
    assert part.trigger == "gpio"


@pytest.mark.parametrize(("edge", "levels"), [("rising", [True, False, True]), ("falling", [True, False, True, False])])
def test_only_the_edge_that_was_asked_for_is_a_part(
    chip: SimChip, triggers: Triggers, edge: str, levels: list[bool]
) -> None:
    """Part and gap are two edges."""
    trigger = triggers.open(edge=edge, waiting=5)
    for level in levels:
        chip.drive(LINE, level=level)

    assert len(taken(trigger, 2)) == 2
    assert trigger.next(0) is None


def test_a_bouncing_contact_is_one_part(chip: SimChip, triggers: Triggers) -> None:
    """Edges that stand shorter than `debounce_us` are noise; the time is that at which the level had stood so long."""
    trigger = triggers.open(debounce_us=1_000, waiting=5)
    start = time.monotonic_ns() - 50_000_000
    bounces = [(0.0, True), (200.0, False), (350.0, True), (500.0, False), (900.0, True)]
    chip.play(LINE, bounces, at_ns=start)
    chip.play(LINE, [(0.0, False), (400.0, True), (700.0, False)], at_ns=start + 20_000_000)
    part = trigger.next(10)

    assert isinstance(part, Part)
    assert part.triggered.mono_ns == start + 1_900_000
    assert trigger.next(0) is None


def test_edges_that_the_kernel_threw_away_are_errors(chip: SimChip, triggers: Triggers) -> None:
    """A thousand and more came at once: those that its buffer could not hold are known by number."""
    trigger = triggers.open(debounce_us=0, waiting=10_000)
    with chip.board.lock:  # the thread can't read meanwhile
        chip.pulse(LINE, gpio.KERNEL_EVENTS + 100)
    given = taken(trigger, gpio.KERNEL_EVENTS + 100)
    lost = [one for one in given if isinstance(one, Fault)]
    sequences = sorted(one.part.sequence if isinstance(one, Fault) else one.sequence for one in given)

    assert sequences == list(range(1, gpio.KERNEL_EVENTS + 101))
    assert {one.reason for one in lost} == {"edge lost: more came than the kernel's 1024 could wait"}
    assert [one.part.sequence for one in lost] == list(range(1, 101))
    assert trigger.next(0) is None


def test_a_flood_is_counted_to_the_last_edge(chip: SimChip, triggers: Triggers) -> None:
    """Parts, refusals and losses together are as many as there were edges."""
    trigger = triggers.open(debounce_us=0, waiting=1)
    flood = threading.Thread(target=chip.pulse, args=(LINE, 3_000))
    flood.start()
    given = taken(trigger, 3_000)
    flood.join()

    assert len(given) == 3_000
    assert trigger.next(0) is None


def test_an_edge_that_is_read_too_late_is_an_error(chip: SimChip, triggers: Triggers) -> None:
    """The process stood still for seconds: a picture of now would be one of another part."""
    trigger = triggers.open(debounce_us=0)
    chip.drive(LINE, level=True, at_ns=time.monotonic_ns() - 3_000_000_000)
    fault = trigger.next(10)

    assert isinstance(fault, Fault)
    assert fault.reason.startswith("the trigger was noticed 30")


def test_a_chip_that_goes_is_told_and_opened_again(board: Board, chip: SimChip, triggers: Triggers) -> None:
    """Expanders on USB and I2C do."""
    trigger = triggers.open(debounce_us=0)
    before = trigger.lost
    chip.unplug()
    wait_until(lambda: trigger.lost)
    lost = trigger.lost
    back = board.add_chip(CHIP)
    wait_until(lambda: trigger.lost is None)
    back.pulse(LINE)

    assert before is None
    assert lost == "/dev/gpiochip0 line 17: No such device"
    assert isinstance(trigger.next(10), Part)


def test_a_closed_trigger_gives_its_line_back(chip: SimChip, triggers: Triggers) -> None:
    """The next station can have it."""
    triggers.open().close()

    assert chip.requests == []
    triggers.open()


def refusal(**changes: Any) -> tuple[str, str | None]:
    """What the user reads."""
    with pytest.raises(ConfigError) as caught:
        GpioTrigger(GpioTriggerConfig(**{"kind": "gpio", "line": LINE, **changes}))
    return caught.value.message, caught.value.hint


def test_a_missing_chip_is_named(board: Board) -> None:
    """The number differs from board to board."""
    message, hint = refusal(chip="/dev/gpiochip4")

    assert message == "trigger: /dev/gpiochip4 is not there (line 17)"
    assert hint == "`ls /dev/gpiochip*` or gpiodetect shows the chips of this machine"


def test_a_line_that_is_in_use_is_named(chip: SimChip, triggers: Triggers) -> None:
    """By another program, or by another key of this configuration."""
    triggers.open()
    message, hint = refusal()

    assert message == "trigger: /dev/gpiochip0 has a line that is in use already (line 17)"
    assert hint is not None
    assert "gpioinfo" in hint


def test_a_user_without_permission_reads_what_to_do(board: Board) -> None:
    """The group is called gpio on Raspberry Pi OS and Jetson Linux."""
    board.forbidden.add(CHIP)
    message, hint = refusal()

    assert message == "trigger: /dev/gpiochip0 may not be opened by this user (line 17)"
    assert hint is not None
    assert "usermod -aG gpio" in hint


def test_a_line_that_the_chip_does_not_have_is_named(board: Board) -> None:
    """Numbers of the chip, not of the connector."""
    message, _ = refusal(line=99)

    assert message == "trigger: /dev/gpiochip0 has no such line (line 99: line offset of out range)"


def test_without_gpiod_the_user_reads_what_to_install() -> None:
    """The extra is not installed by default."""
    with replaced(None), pytest.raises(MissingExtra, match="GPIO lines need gpiod") as caught:
        GpioTrigger(GpioTriggerConfig(kind="gpio", line=LINE))

    assert caught.value.hint is not None
    assert "pip install 'defect-agent[gpio]'" in caught.value.hint


def test_version_1_of_gpiod_is_told_from_version_2() -> None:
    """Debian 12's python3-libgpiod has the same name and another interface."""
    old = types.ModuleType("gpiod")
    with replaced(old, types.ModuleType("gpiod.line")), pytest.raises(MissingExtra, match="version 1"):
        GpioTrigger(GpioTriggerConfig(kind="gpio", line=LINE))
