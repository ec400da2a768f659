"""An output that remembers what it was told."""

from __future__ import annotations

import threading
from typing import Any

from agent.frame import Part

__all__ = ["Recorder"]


class Recorder:
    """An `Output`.

    Attributes:
        told: names of the methods with what they were given, in their order.
        trouble: what it says of itself.
        fails: it raises in these methods, after it has remembered the call.
        gate: every call waits for it.
    """

    def __init__(self, *fails: str) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.trouble: str | None = None
        self.fails = fails
        self.gate = threading.Event()
        self.gate.set()

    @property
    def results(self) -> list[tuple[str, str, str]]:
        """Part, decision and reason of each result."""
        return [(one[1], one[2], one[3]) for one in self.told if one[0] == "result"]

    @property
    def is_closed(self) -> bool:
        """Whether the last call was `close`."""
        return bool(self.told) and self.told[-1] == ("close",)

    def ready(self, *, is_ready: bool) -> None:
        """See `Output`."""
        self._add("ready", is_ready)

    def expect(self, part: Part) -> None:
        """See `Output`."""
        self._add("expect", part.id)

    def busy(self, part: Part) -> None:
        """See `Output`."""
        self._add("busy", part.id)

    def exposing(self, *, is_exposing: bool) -> None:
        """See `Output`."""
        self._add("exposing", is_exposing)

    def result(self, part: Part, decision: str, reason: str) -> None:
        """See `Output`."""
        self._add("result", part.id, decision, reason)

    def fault(self, reason: str | None) -> None:
        """See `Output`."""
        self._add("fault", reason)

    def close(self) -> None:
        """See `Output`."""
        self._add("close")

    def _add(self, *told: Any) -> None:
        self.gate.wait(30)
        self.told.append(told)
        if told[0] in self.fails:
            raise RuntimeError(f"{told[0]} failed")
