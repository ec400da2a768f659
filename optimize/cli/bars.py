"""The bar of a training: on standard error a line per epoch, and in a terminal the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["open_training"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Told(Protocol, Generic[R_co]):
    """What a training tells after each step: `optimize.train.Progress`, or a detector's."""

    @property
    def done(self) -> float:
        """Share of the schedule, 0 to 1."""

    @property
    def epoch(self) -> int:
        """The running one, from 1."""

    @property
    def loss(self) -> float:
        """Of the last step."""

    @property
    def record(self) -> R_co | None:
        """The finished epoch, at its end only."""


@contextlib.contextmanager
def open_training(line: Callable[[R], str]) -> Iterator[Callable[[Told[R]], None]]:
    """Show a training while it runs.

    Args:
        line: what is printed of a finished epoch.

    Yields:
        What to call after each step.
    """

    def plain(told: Told[R]) -> None:
        if told.record is not None:
            print(line(told.record), file=sys.stderr, flush=True)

    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ModuleNotFoundError:
        yield plain
        return
    if not sys.stderr.isatty():
        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("training", total=1.0)

        def show(told: Told[R]) -> None:
            text = f"epoch {told.epoch}, loss {told.loss:.3f}"
            bars.update(task, completed=told.done, description=text)
            if told.record is not None:
                bars.console.print(line(told.record), highlight=False)

        yield show
