"""Which records the host has still to get: those stored while nobody listened, and those that may have been lost.

Sparkplug's data go out with QoS 0, so nobody says that they arrived. What was sent within twice the keep-alive before a
connection broke may lie in a dead socket; it counts as unsent again, and the host removes what it has twice by
`Part/Record`.
"""

from __future__ import annotations

import collections

__all__ = ["Backlog"]

Range = tuple[int, int]


class Backlog:
    """Record numbers, no data; used by one thread.

    Args:
        unsent: ranges of an earlier run, both ends included.
        last: up to here records have been looked at: each one after it is neither sent nor in a range.
        limit: records that are kept to be sent late; of more the newest.
        doubt_s: how long what was sent may still turn out to be lost.
    """

    def __init__(self, *, unsent: list[Range], last: int, limit: int, doubt_s: float) -> None:
        self._unsent = _joined(unsent)
        self.last = last
        self._limit, self._doubt_s = limit, doubt_s
        self._doubtful: collections.deque[tuple[float, int]] = collections.deque()

    @property
    def first(self) -> Range | None:
        """The oldest records that have to go out late."""
        return self._unsent[0] if self._unsent else None

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(end - start + 1 for start, end in self._unsent)

    def born(self, upto: int) -> int:
        """A host begins to listen: what was recorded until now is history. Gives how many are too old to be sent."""
        if upto < self.last:  # another journal than before
            self._unsent, self.last = [], upto
        if upto > self.last:
            self._unsent = _joined([*self._unsent, (self.last + 1, upto)])
            self.last = upto
        dropped = excess = max(0, self.size - self._limit)
        while excess > 0:
            start, end = self._unsent[0]
            gone = min(excess, end - start + 1)
            excess -= gone
            self._unsent[:1] = [(start + gone, end)] if start + gone <= end else []
        return dropped

    def sent_live(self, rec: int, now: float) -> None:
        """The record after `last` went out."""
        self.last = rec
        self._doubtful.append((now, rec))

    def sent_late(self, rec: int, now: float) -> None:
        """A record of the first range went out."""
        self.skip(rec)
        self._doubtful.append((now, rec))

    def skip(self, rec: int) -> None:
        """What the first range has up to this record is done with."""
        start, end = self._unsent[0]
        self._unsent[:1] = [(rec + 1, end)] if start <= rec < end else ([(start, end)] if rec < start else [])

    def trust(self, now: float) -> None:
        """The connection lives: what was sent long enough ago arrived."""
        while self._doubtful and now - self._doubtful[0][0] > self._doubt_s:
            self._doubtful.popleft()

    def lost(self, now: float) -> None:
        """The connection broke."""
        self.trust(now)
        self._unsent = self.unsent()
        self._doubtful.clear()

    def arrived(self) -> None:
        """The broker acknowledged something that was sent after everything else."""
        self._doubtful.clear()

    def unsent(self) -> list[Range]:
        """Ranges as they are to be kept on the disk: as if the connection broke now."""
        return _joined([*self._unsent, *((rec, rec) for _, rec in self._doubtful)])


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
