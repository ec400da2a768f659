"""A progress bar on standard error: redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Bar"]

WIDTH = 24
REDRAW_S, LINE_S = 0.1, 2.0


class Bar:
    """Shows how far something is; call it with what is done, steps done and steps in all (0: nobody knows).

    May be called from any thread, one at a time. Leave it with `done`.

    Args:
        stream: where it is drawn.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._next = 0.0
        self._is_open = False

    def __call__(self, what: str, step: int, steps: int) -> None:
        """Show it, unless something was shown a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (REDRAW_S if self._is_terminal else LINE_S)
        filled = round(WIDTH * min(step / steps, 1.0)) if steps else 0
        counted = f" {step}/{steps}" if steps else ""
        text = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {now - self._started:5.1f} s  {what}{counted}"
        if self._is_terminal:
            print(f"\r{text[:110]:110}", end="", file=self._stream, flush=True)
            self._is_open = True
        else:
            print(text, file=self._stream, flush=True)

    def done(self) -> None:
        """End the line that is being redrawn."""
        if self._is_open:
            print(file=self._stream, flush=True)
            self._is_open = False
