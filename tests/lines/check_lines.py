"""Our trigger and output on a real kernel's lines, by the real gpiod; run by tools/test-gpio in a virtual machine.

The machine's chip is a PL061 of eight lines. Line 3 is its power button: `KEYS n` on the console makes whoever runs the
machine press it n times, 0.8 s apart.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.config import GpioOutputConfig, GpioTriggerConfig
from agent.errors import ConfigError
from agent.frame import Fault, Part, Stamp
from agent.outputs import FastPath
from agent.outputs.gpio import GpioOutput, set_inactive
from agent.triggers.gpio import GpioTrigger
from tests.kit.waiting import wait_until

CHIP, BUTTON = "/dev/gpiochip0", 3
LINES: dict[str, Any] = {"ok": 0, "not_ok": 1, "valid": 2, "ready": 4, "busy": 5, "alive": 6, "strobe": 7}
KERNEL = Path("/sys/kernel/debug/gpio")


def press(times: int) -> None:
    """Ask for the button."""
    print(f"KEYS {times}", flush=True)


def active() -> set[str]:
    """Output lines that the kernel says are high; only those that somebody holds."""
    text = KERNEL.read_text()
    first = re.search(r"GPIOs (\d+)-", text)
    assert first is not None
    high = {int(number) - int(first[1]) for number in re.findall(r"gpio-(\d+) .* out hi", text)}
    return {name for name, number in LINES.items() if number in high}


def left_behind() -> dict[str, str]:
    """Levels of lines that nobody holds, as they are."""
    package = importlib.import_module("gpiod")
    with package.request_lines(CHIP, {tuple(LINES.values()): None}) as request:
        values = request.get_values(list(LINES.values()))
    return {name: value.name for name, value in zip(LINES, values, strict=True)}


def show(output: GpioOutput, sequence: int, decision: str) -> None:
    """One part's way."""
    part = Part(id=f"p{sequence}", trigger="test", sequence=sequence, triggered=Stamp.now())
    output.expect(part)
    output.result(part, decision, "reason")


@pytest.mark.parametrize("debounce_us", [0, 2_000])
def test_each_press_is_a_part_with_the_kernels_time(debounce_us: int) -> None:
    """On CLOCK_MONOTONIC; nothing more comes, and nothing less."""
    trigger = GpioTrigger(GpioTriggerConfig(kind="gpio", line=BUTTON, debounce_us=debounce_us, waiting=10))
    trigger.next(0)
    before = time.monotonic_ns()
    press(3)
    parts: list[Part | Fault | None] = [trigger.next(60) for _ in range(3)]
    last = trigger.next(2)
    trigger.close()
    times = [part.triggered.mono_ns for part in parts if isinstance(part, Part)]

    assert len(times) == 3
    assert before < times[0] < times[1] < times[2] < time.monotonic_ns()
    assert last is None


def test_the_kernel_throws_the_oldest_edges_away_and_numbers_all() -> None:
    """What the stand-in does, and what the trigger counts by."""
    package: Any = importlib.import_module("gpiod")
    wanted = package.LineSettings(direction=package.line.Direction.INPUT, edge_detection=package.line.Edge.RISING)
    with package.request_lines(CHIP, {BUTTON: wanted}, event_buffer_size=2) as request:
        press(5)
        wait_until(lambda: request.get_value(BUTTON).value, 60)  # the first press
        numbers: list[int] = []
        watched = 0
        while watched < 4:  # the other four, by level: the events stay unread
            wait_until(lambda: not request.get_value(BUTTON).value, 60)
            wait_until(lambda: request.get_value(BUTTON).value, 60)
            watched += 1
        numbers = [event.line_seqno for event in request.read_edge_events(64)]

    assert numbers == [4, 5]


def test_what_can_not_be_had_is_told() -> None:
    """By the real errors."""
    held = GpioTrigger(GpioTriggerConfig(kind="gpio", line=BUTTON))
    for config, words in (
        (GpioTriggerConfig(kind="gpio", line=BUTTON), "has a line that is in use already"),
        (GpioTriggerConfig(kind="gpio", line=99), "has no such line"),
        (GpioTriggerConfig(kind="gpio", line=1, chip="/dev/gpiochip9"), "is not there"),
        (GpioTriggerConfig(kind="gpio", line=1, chip="/dev/null"), "is no GPIO chip"),
    ):
        with pytest.raises(ConfigError, match=words):
            GpioTrigger(config)
    held.close()


def test_results_stand_on_the_lines_and_go() -> None:
    """Through the fast path."""
    output = GpioOutput(GpioOutputConfig(**LINES, hold_ms=3_000.0))
    wait_until(lambda: active() == {"alive"})
    fast = FastPath([output], deadline_ms=None)
    for sequence, (decision, line) in enumerate((("ok", "ok"), ("defect", "not_ok")), 1):
        part = Part(id=decision, trigger="test", sequence=sequence, triggered=Stamp.now())
        fast.begin(part)
        fast.finish(part, decision, "reason")
        wait_until(lambda line=line: active() == {"alive", "valid", line})  # type: ignore[misc]
        wait_until(lambda: active() == {"alive"})
    fast.close()

    assert set(left_behind().values()) == {"INACTIVE"}


def test_the_button_acknowledges() -> None:
    """An edge of the input takes the result."""
    output = GpioOutput(GpioOutputConfig(**LINES, ack=BUTTON, hold_ms=60_000.0))
    show(output, 1, "ok")
    wait_until(lambda: active() == {"alive", "valid", "ok"})
    press(1)
    wait_until(lambda: active() == {"alive"})
    trouble = output.trouble
    output.close()

    assert trouble is None


def test_after_a_kill_the_lines_can_be_set_inactive() -> None:
    """This driver leaves them as they were, a result included."""
    code = (
        "from tests.lines.check_lines import *; output = GpioOutput(GpioOutputConfig(**LINES, hold_ms=60_000.0));"
        "show(output, 1, 'ok'); wait_until(lambda: 'valid' in active()); print('shown', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "shown\n"
        child.kill()
    after_kill = {name for name, level in left_behind().items() if level == "ACTIVE"}
    set_inactive(GpioOutputConfig(**LINES))

    assert after_kill == {"ok", "valid", "alive"}
    assert set(left_behind().values()) == {"INACTIVE"}
