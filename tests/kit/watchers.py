"""Who hears of triggers, and what it heard."""

from __future__ import annotations

import threading

from agent.frame import Fault, Part

__all__ = ["Listener"]


class Listener:
    """A `TriggerWatcher` that remembers.

    Attributes:
        heard: parts, faults, and whether a trigger would be taken, in their order.
        fails: it raises, after it has remembered.
    """

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.heard: list[Part | Fault | bool] = []
        self._lock = threading.Lock()

    def offered(self, part: Part) -> None:
        """A part."""
        self._add(part)

    def refused(self, fault: Fault) -> None:
        """A fault."""
        self._add(fault)

    def ready(self, *, is_ready: bool) -> None:
        """Whether one would be taken."""
        self._add(is_ready)

    @property
    def readiness(self) -> list[bool]:
        """Whether a trigger would be taken, from the first time on."""
        return [one for one in self.heard if isinstance(one, bool)]

    @property
    def sequences(self) -> list[int]:
        """Of the triggers, in the order in which they were told."""
        told = [one for one in self.heard if not isinstance(one, bool)]
        return [one.part.sequence if isinstance(one, Fault) else one.sequence for one in told]

    def _add(self, one: Part | Fault | bool) -> None:
        with self._lock:
            self.heard.append(one)
        if self.fails:
            raise RuntimeError("the watcher failed")
