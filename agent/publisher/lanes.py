"""What to do with messages that the broker does not take, so that nothing is lost and nothing blocks the rest.

A refusal is about the message, or about all of its kind (an access list, a quota), and the broker rarely says which.
So the messages tell: each kind (verdict, image, event) has a lane, and

- a refused message steps aside and tries again later, alone; meanwhile its lane sends one message at a time;
- two refusals in a row with nothing accepted in between: the lane is *held*. Its messages wait, only the oldest tries
  again, with growing delays. When it is accepted, all of them follow;
- a message that failed three times, while others of its kind were accepted in between, is the trouble itself: it is
  set aside. So a broker that takes nothing never empties the journal. For a picture, that a verdict or the status was
  accepted is proof enough, unless the broker gave a reason that may concern all pictures: pictures go before verdicts.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import defaultdict
from typing import Literal

from agent.journal import OutboxRow

__all__ = ["Admission", "Failure", "Lanes", "Outcome"]

Failure = Literal["refused", "refused alone", "cut", "silent"]
"""How a message failed: refused for a reason that may concern all, refused for one that concerns this message, the
connection was cut when only this message was under way, or nothing came back."""

FAILURES_TO_SET_ASIDE = 3
REFUSALS_TO_HOLD = 2
DELAYS_S: dict[Failure, tuple[float, float]] = {
    "refused": (1.0, 30.0),
    "refused alone": (1.0, 30.0),
    "cut": (1.0, 300.0),
    "silent": (10.0, 300.0),
}
"""First and longest wait. A try that costs the connection also publishes the will, and one that ends in silence keeps
everything waiting for twice the keep-alive: both become rare."""


class Outcome(enum.Enum):
    """What follows from a failure."""

    TRY_LATER = enum.auto()
    LANE_HELD = enum.auto()
    SET_ASIDE = enum.auto()


class Admission(enum.Enum):
    """Whether a message may go now."""

    GO = enum.auto()
    WAIT = enum.auto()
    SKIP = enum.auto()


@dataclasses.dataclass(slots=True)
class _Suspect:
    """A message that failed, and when it may try again."""

    row: OutboxRow
    retry_at: float
    failures: int = 0
    proven: int = 0
    seen_of_kind: int = 0
    seen_of_all: int = 0


@dataclasses.dataclass(slots=True)
class _Lane:
    """One kind of message. Times are monotonic seconds."""

    accepted: int = 0
    refusals: int = 0
    held_since: float | None = None
    reason: str = ""
    retry_at: float = 0.0
    delay_s: float = 0.0
    first_waiting: int | None = None


class Lanes:
    """The lanes and the messages that failed."""

    def __init__(self) -> None:
        self._lanes: defaultdict[str, _Lane] = defaultdict(_Lane)
        self._suspects: dict[int, _Suspect] = {}
        self._accepted = 0
        self._rewind: int | None = None

    @property
    def held(self) -> dict[str, str]:
        """Kinds that the broker does not take now, with its reason."""
        return {kind: lane.reason for kind, lane in self._lanes.items() if lane.held_since is not None}

    @property
    def suspected(self) -> set[int]:
        """Sequence numbers of the messages that failed and try again by `due`."""
        return set(self._suspects)

    def admit(self, row: OutboxRow, *, in_flight: bool) -> Admission:
        """Say whether a message may go now.

        Args:
            row: the message.
            in_flight: whether another one of its kind is under way.
        """
        lane = self._lanes[row.kind]
        if row.seq in self._suspects:
            return Admission.SKIP
        if lane.held_since is not None:
            lane.first_waiting = row.seq if lane.first_waiting is None else min(lane.first_waiting, row.seq)
            return Admission.SKIP
        return Admission.WAIT if lane.refusals and in_flight else Admission.GO

    def cautious(self, kind: str) -> bool:
        """Whether a lane sends one message at a time."""
        return self._lanes[kind].refusals > 0

    def due(self, now: float) -> OutboxRow | None:
        """The oldest message whose time to try again has come; it goes alone."""
        if not self._suspects:
            return None
        return next((s.row for s in self._candidates() if self._retry_at(s) <= now), None)

    def next_due(self) -> float | None:
        """When `due` will give something, or None."""
        return min((self._retry_at(s) for s in self._candidates()), default=None)

    def _candidates(self) -> list[_Suspect]:
        """All suspects of open lanes, and the oldest one of each held lane, in order."""
        found, seen = [], set()
        for suspect in sorted(self._suspects.values(), key=lambda s: s.row.seq):
            kind = suspect.row.kind
            if self._lanes[kind].held_since is None or kind not in seen:
                found.append(suspect)
            seen.add(kind)
        return found

    def _retry_at(self, suspect: _Suspect) -> float:
        lane = self._lanes[suspect.row.kind]
        return suspect.retry_at if lane.held_since is None else lane.retry_at

    def accepted(self, row: OutboxRow) -> bool:
        """Note that the broker took a message; True when that opens a held lane."""
        lane = self._lanes[row.kind]
        lane.accepted += 1
        self._accepted += 1
        if not lane.refusals and not self._suspects:
            return False
        lane.refusals = 0
        self._suspects.pop(row.seq, None)
        return self._open(lane)

    def birth_accepted(self) -> None:
        """Note that the broker took a status on this connection: it is alive and takes something of ours."""
        self._accepted += 1

    def forget(self, row: OutboxRow) -> None:
        """A message is out of the way (set aside, or its picture evicted): if it tried for a held lane, others must."""
        self._suspects.pop(row.seq, None)
        lane = self._lanes[row.kind]
        if lane.held_since is not None and not any(s.row.kind == row.kind for s in self._suspects.values()):
            lane.refusals = REFUSALS_TO_HOLD - 1
            self._open(lane)

    def _open(self, lane: _Lane) -> bool:
        if lane.held_since is None:
            return False
        if lane.first_waiting is not None:
            self._rewind = lane.first_waiting if self._rewind is None else min(self._rewind, lane.first_waiting)
        lane.first_waiting = lane.held_since = None
        for suspect in self._suspects.values():  # of all kinds: whoever mended this list may have mended all of it
            suspect.retry_at = 0.0
        return True

    def take_rewind(self) -> int | None:
        """The sequence number from which messages were skipped that may go now, once; or None."""
        first, self._rewind = self._rewind, None
        return first

    def suspect(self, row: OutboxRow) -> None:
        """Let a message go alone from now on: it was the oldest under way at several losses of the connection."""
        self._suspects.setdefault(row.seq, _Suspect(row, 0.0))

    def failed(self, row: OutboxRow, how: Failure, reason: str, now: float) -> Outcome:
        """Note that a message failed, and say what follows.

        Args:
            row: the message.
            how: see `Failure`.
            reason: in words.
            now: monotonic seconds.
        """
        lane = self._lanes[row.kind]
        suspect = self._suspects.setdefault(row.seq, _Suspect(row, 0.0))
        self._count(suspect, lane, how)
        if suspect.proven >= FAILURES_TO_SET_ASIDE:
            self.forget(row)
            return Outcome.SET_ASIDE
        first_s, longest_s = DELAYS_S[how]
        suspect.retry_at = now + min(longest_s, first_s * 2.0 ** (suspect.failures - 1))
        return self._slow_down(lane, how, reason, now)

    def _count(self, suspect: _Suspect, lane: _Lane, how: Failure) -> None:
        others = lane.accepted > suspect.seen_of_kind
        if suspect.row.kind == "image" and how != "refused":
            others = others or self._accepted > suspect.seen_of_all
        if how != "silent" and (suspect.failures == 0 or others):
            suspect.proven += 1
        suspect.failures += 1
        suspect.seen_of_kind, suspect.seen_of_all = lane.accepted, self._accepted

    def _slow_down(self, lane: _Lane, how: Failure, reason: str, now: float) -> Outcome:
        lane.refusals += 1
        first_s, longest_s = DELAYS_S[how]
        if lane.held_since is not None:
            if now >= lane.retry_at:  # the one that tries; others were under way when the lane was held
                lane.delay_s = min(longest_s, 2 * lane.delay_s)
                lane.retry_at = now + lane.delay_s
            return Outcome.TRY_LATER
        if lane.refusals < REFUSALS_TO_HOLD:
            return Outcome.TRY_LATER
        lane.held_since, lane.reason = now, reason
        lane.delay_s, lane.retry_at = first_s, now + first_s
        return Outcome.LANE_HELD
