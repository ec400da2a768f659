"""Outputs: the fast result lines, beside MQTT, which no broker and no disk can delay."""

from __future__ import annotations

from typing import Protocol

from agent.frame import Part

__all__ = ["Output"]


class Output(Protocol):
    """One way to tell a PLC the result of a part. Its methods are called from one thread and must return at once."""

    def ready(self, *, is_ready: bool) -> None:
        """Whether a trigger will be taken now."""

    def busy(self, part: Part) -> None:
        """This part is being judged."""

    def exposing(self, *, is_exposing: bool) -> None:
        """The camera is about to expose (strobe on), or has exposed (off)."""

    def result(self, part: Part, decision: str, reason: str) -> None:
        """The one result of a part: `ok`, `defect`, `review` or `error`, with the reason in words."""

    def fault(self, reason: str | None) -> None:
        """The line can't judge parts, or can again (None)."""

    def close(self) -> None:
        """Leave all lines as power loss would: not ok, not ready."""
