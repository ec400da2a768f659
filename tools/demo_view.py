"""How the demo shows itself: a live table in a terminal, plain lines elsewhere, nothing but steps with `--json`."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["View", "open_view"]

ROWS = 14
COLUMNS = (("part", 13), ("decision", 8), ("class", 7), ("score", 5), ("ms", 6), ("in truth", 8), ("reason", 20))
WIDE = 100
"""Terminal columns from which the reason has room."""


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
        part, decision, class_, score, ms, true_class, reason = _cells(verdict, truth)
        row = f"{part:<14}  {decision:<8}{class_:<9}{score:>5}{ms:>7} ms  in truth {true_class:<8}  {reason}"
        print(row, flush=True)


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
        table = Table(title=f"{verdict['station']}/verdict: {self._count} received", title_justify="left")
        is_wide = self._live.console.width >= WIDE
        for name, width in COLUMNS:
            if name != "reason" or is_wide:
                is_number = name in ("score", "ms")
                table.add_column(name, justify="right" if is_number else "left", no_wrap=True, min_width=width)
        for row, true_class in self._rows:
            cells = _cells(row, true_class)
            table.add_row(*(cells if is_wide else cells[:-1]), style=_STYLES[row["decision"]])
        self._live.update(table)


_STYLES = {"ok": "green", "defect": "bold red", "review": "yellow", "error": "magenta"}


def _cells(verdict: dict[str, Any], truth: str) -> tuple[str, ...]:
    score = "" if verdict["score"] is None else f"{verdict['score']:.2f}"
    return (
        verdict["part"],
        verdict["decision"],
        verdict["class"] or "-",
        score,
        f"{verdict['ms']['total']:.1f}",
        truth,
        verdict["reason"],
    )
