"""How fast: live messages at once, a backlog at a limited rate, reconnects with growing pauses.

A backlog sent as fast as a broker takes it is lost behind it: a default queue of 1,000 messages per subscriber dropped
three quarters of 20,000 messages that were all acknowledged (measured; shared notes on MQTT, section 0).
"""

from __future__ import annotations

import random
import time

__all__ = ["Backoff", "Pace"]

BACKLOG_AGE_MS = 3_000
BACKLOG_ROWS = 500
"""Half a broker's default queue: that many may go in one burst even when all of them are young."""

MEASURE_S = 1.0
LIVE_SMOOTHING = 0.3


class Pace:
    """A token bucket for what is old, or for everything while a lot waits.

    What comes in live is let through on top of the limited rate, or else a line that is faster than the limit would
    never catch up.

    Args:
        backlog_rate_hz: messages per second.
    """

    def __init__(self, backlog_rate_hz: float) -> None:
        self._rate_hz = backlog_rate_hz
        self._live_hz = 0.0
        self._tokens = 1.0
        self._filled_at = time.monotonic()
        self._crowded = False
        self._depth: int | None = None
        self._left = 0
        self.measure_at = 0.0

    def left(self, count: int = 1) -> None:
        """Note that messages left the outbox."""
        self._left += count

    def measure(self, depth: int, now: float) -> None:
        """Take in how many messages wait; call it when `measure_at` has come.

        Args:
            depth: messages in the outbox.
            now: monotonic seconds.
        """
        if self._depth is not None:
            seconds = now - self.measure_at + MEASURE_S
            live_hz = max(0, depth - self._depth + self._left) / max(seconds, MEASURE_S)
            self._live_hz += LIVE_SMOOTHING * (live_hz - self._live_hz)
        self._depth, self._left = depth, 0
        self._crowded = depth > BACKLOG_ROWS
        self.measure_at = now + MEASURE_S

    def allows(self, created_ms: int, now: float) -> bool:
        """Whether a message may go now; takes a token when it needs one.

        Args:
            created_ms: when it was made, milliseconds since 1970.
            now: monotonic seconds.
        """
        if not self._crowded and time.time() * 1000 - created_ms <= BACKLOG_AGE_MS:
            return True
        rate = self._rate_hz + self._live_hz
        self._tokens = min(max(1.0, rate / 20), self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def next_token_at(self, now: float) -> float:
        """When `allows` will say yes to something old."""
        return now + max(0.0, 1.0 - self._tokens) / (self._rate_hz + self._live_hz)


class Backoff:
    """Pauses between tries: they double, and are spread so that a plant's stations don't come back all at once.

    Args:
        first_s: the first pause.
        longest_s: no pause is longer.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = min(first_s, longest_s)
        self._longest_s = longest_s
        self._next_s = self._first_s

    def reset(self) -> None:
        """It works again: start with the first pause next time."""
        self._next_s = self._first_s

    def take(self, *, longest: bool = False) -> float:
        """The next pause in seconds: half to all of it, at random."""
        if longest:
            self._next_s = self._longest_s
        pause, self._next_s = self._next_s, min(self._longest_s, 2 * self._next_s)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret hangs on it
