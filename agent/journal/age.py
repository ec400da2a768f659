"""Age: the journal's own clock, by which retention counts.

Wall clocks of devices are wrong in both directions: 1970 until the first time server answers, an hour back in autumn, a
year ahead by a slip. A verdict must not be deleted for that. The journal's age grows with the monotonic clock while an
agent runs, and by the wall clock's difference between two runs, but never backwards and by at most a week. It errs on
the side of keeping, and it grows with `rec`, so retention removes from the front.
"""

from __future__ import annotations

from agent.frame import Stamp

__all__ = ["Age"]

MAX_ABSENCE_MS = 7 * 86_400_000


class Age:
    """The journal's age in milliseconds, never going back.

    Args:
        lived_ms: as of the last transaction.
        utc_ms: wall clock of the last transaction; 0 for a new journal.
        now: the present moment.
    """

    def __init__(self, *, lived_ms: int, utc_ms: int, now: Stamp) -> None:
        absent_ms = now.utc_ms - utc_ms if utc_ms else 0
        self._at_open_ms = lived_ms + min(max(0, absent_ms), MAX_ABSENCE_MS)
        self._opened_ns = now.mono_ns

    def at(self, now: Stamp) -> int:
        """The age at a moment of this run, in milliseconds."""
        return self._at_open_ms + max(0, now.mono_ns - self._opened_ns) // 1_000_000
