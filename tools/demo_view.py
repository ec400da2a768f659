"""How the demo shows itself: a live table in a terminal, plain lines elsewhere, nothing but steps with `--json`."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["View", "open_view"]

ROWS = 14


class View(Protocol):
    """Where the demo says what happens."""

    def step(self, text: str) -> None:
        """The next thing begins."""
        ...

    def verdict(self, verdict: dict[str, Any], truth: str) -> None:
        """One verdict came."""
        ...


def open_view(*, as_json: bool) -> contextlib.AbstractContextManager[View]:
    """The view for this terminal, file or pipe."""
    if as_json:
        return contextlib.nullcontext(_Steps())
    return _table() if sys.stdout.isatty() else contextlib.nullcontext(_Lines())


class _Steps:
    def step(self, text: str) -> None:
        print(f"demo: {text}", file=sys.stderr, flush=True)

    def verdict(self, verdict: dict[str, Any], truth: str) -> None:
        pass


class _Lines:
    def step(self, text: str) -> None:
        print(f"demo: {text}", flush=True)

    def verdict(self, verdict: dict[str, Any], truth: str) -> None:
        print("  ".join(_cells(verdict, truth)), flush=True)


@contextlib.contextmanager
def _table() -> Iterator[View]:
    from rich.live import Live

    with Live(refresh_per_second=12, vertical_overflow="visible") as live:
        yield _Table(live)


class _Table:
    """The last verdicts; older ones scroll out of it."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._rows: deque[tuple[dict[str, Any], str]] = deque(maxlen=ROWS)
        self._count = 0

    def step(self, text: str) -> None:
        self._live.console.print(f"demo: {text}", highlight=False)

    def verdict(self, verdict: dict[str, Any], truth: str) -> None:
        from rich.table import Table

        self._count += 1
        self._rows.append((verdict, truth))
        table = Table(title=f"{verdict['station']}/verdict   {self._count} received", title_justify="left")
        for name in ("part", "decision", "class", "score", "ms", "in truth", "reason"):
            table.add_column(name, justify="right" if name in ("score", "ms") else "left", no_wrap=True)
        for row, true_class in self._rows:
            table.add_row(*_cells(row, true_class), style=_STYLES[row["decision"]])
        self._live.update(table)


_STYLES = {"ok": "green", "defect": "bold red", "review": "yellow", "error": "magenta"}


def _cells(verdict: dict[str, Any], truth: str) -> tuple[str, ...]:
    score = "" if verdict["score"] is None else f"{verdict['score']:.2f}"
    return (
        f"{verdict['part']:<14}",
        f"{verdict['decision']:<8}",
        f"{verdict['class'] or '-':<8}",
        f"{score:>5}",
        f"{verdict['ms']['total']:6.1f}",
        f"{truth:<8}",
        verdict["reason"],
    )
