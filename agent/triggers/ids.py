"""Part ids and moments: made up where the trigger has none, cleaned where it has one."""

from __future__ import annotations

import datetime as dt

from agent.frame import Stamp

__all__ = ["ID_BYTES", "cleaned_id", "made_up_id", "stamp_of"]

ID_BYTES = 240
"""Longest part id that a trigger may give, in UTF-8; a longer one is cut. Verdicts have room for 256."""


def made_up_id(prefix: str, at: Stamp, count: int) -> str:
    """An id such as `part-20260131T091403127-17`: UTC to the millisecond, and the number within this run.

    Both together keep it apart from the ids of this run and of earlier ones.
    """
    moment = dt.datetime.fromtimestamp(at.utc_ms / 1000, dt.timezone.utc)
    return f"{prefix}-{moment:%Y%m%dT%H%M%S}{at.utc_ms % 1000:03d}-{count}"


def cleaned_id(text: str) -> str:
    """What a trigger said, as an id that can stand in a message, a log and a line of text.

    Printable characters stay as they are. White space inside becomes `_`, as our own lines of text are told apart by
    it; what can't be printed becomes `?`. Cut to `ID_BYTES`. Empty where nothing is left.
    """
    printable = "".join(c if c.isprintable() else "?" for c in "_".join(text[: 4 * ID_BYTES].split()))
    return printable.encode()[:ID_BYTES].decode(errors="ignore")


def stamp_of(mono_ns: int) -> Stamp:
    """A moment of CLOCK_MONOTONIC on both clocks; UTC is what the clock would have said, as it goes now."""
    now = Stamp.now()
    return Stamp(now.utc_ms - (now.mono_ns - mono_ns) // 1_000_000, mono_ns)
