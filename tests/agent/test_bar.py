"""The progress bar on a terminal and in a log file."""

from __future__ import annotations

import io

from agent.cli.bar import Bar


class Terminal(io.StringIO):
    """A stream that says that somebody is looking."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_redrawn_and_then_ended() -> None:
    """A pile of lines would push the errors out of sight."""
    stream = Terminal()
    bar = Bar(stream)
    bar("Tactics", 6, 24)
    bar.done()
    bar.done()

    assert stream.getvalue().startswith("\r[######")
    assert "Tactics 6/24" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_in_a_log_file_a_line_now_and_then_is_enough() -> None:
    """TensorRT's builder has hundreds of phases."""
    stream = io.StringIO()
    bar = Bar(stream)
    for step in range(500):
        bar(f"phase {step}", step, 500)
    bar.done()

    assert 1 <= stream.getvalue().count("\n") < 100
    assert "\r" not in stream.getvalue()


def test_a_phase_without_a_number_of_steps_is_shown_too() -> None:
    """TensorRT 8.6 tells of none."""
    stream = io.StringIO()
    Bar(stream)("build", 0, 0)

    assert stream.getvalue().rstrip().endswith("build")
