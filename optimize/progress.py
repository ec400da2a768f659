"""How a long command says where it is: on standard error, a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

__all__ = ["Progress", "SilentProgress", "open_progress"]

T = TypeVar("T")


class Progress(Protocol):
    """Where a command is."""

    def step(self, text: str) -> None:
        """A new step begins."""
        ...

    def track(self, items: Sequence[T], text: str) -> Iterable[T]:
        """The same items, counted as they are taken."""
        ...


class SilentProgress:
    """Says nothing."""

    def step(self, text: str) -> None:
        """Say nothing."""

    def track(self, items: Sequence[T], text: str) -> Iterable[T]:  # noqa: ARG002 - the protocol's signature
        """The same items."""
        return items


class _Lines:
    """One line per step: for logs, and where rich is not installed."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", file=sys.stderr, flush=True)

    def track(self, items: Sequence[T], text: str) -> Iterable[T]:
        self.step(f"{text} ({len(items)})")
        return items


@contextlib.contextmanager
def open_progress() -> Iterator[Progress]:
    """Progress for the command that runs, until it ends."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ModuleNotFoundError:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """Rich's bars, one per step, gone at the end."""

    def __init__(self, bars: object) -> None:
        from rich.progress import Progress as Bars

        assert isinstance(bars, Bars)
        self._bars = bars

    def step(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)

    def track(self, items: Sequence[T], text: str) -> Iterable[T]:
        return self._bars.track(items, description=text)
