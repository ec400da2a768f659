"""Damping: what is lost and found again and again is told once, and once when it holds.

```text
lost ─ found ─ lost ─ found ─ lost ─ found ─ lost ─ found ─ lost ─ … ─ found ─── 60 s ──▶
told   told    told   told    told   told    unsteady    (counted only)          found, with the count
```

Only what is told to people and to the plant's software is damped. The verdict of every part still has its own reason,
and the fast outputs follow the thing itself.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Literal

__all__ = ["STEADY_S", "UNSTEADY_LOSSES", "UNSTEADY_WINDOW_S", "Damping"]

UNSTEADY_LOSSES = 4
"""So many losses within `UNSTEADY_WINDOW_S` are unsteady: three are told, as the publisher does with its broker."""

UNSTEADY_WINDOW_S = 60.0

STEADY_S = 60.0
"""So long it must be there, or away, without a change until it counts as steady."""


class Damping:
    """Whether a change of one thing is to be told; one thread at a time.

    Args:
        clock: monotonic seconds.

    Attributes:
        losses: since it began to be unsteady, those before that was told included; of a steady thing those of late.
        reason: why it is lost; None while it is there.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: collections.deque[float] = collections.deque(maxlen=UNSTEADY_LOSSES)
        self._changed_s = self._began_s = float("-inf")
        self._is_unsteady = False
        self.losses = 0
        self.reason: str | None = None

    @property
    def seconds(self) -> float:
        """How long it was unsteady: from the first of its losses to the last change."""
        return self._changed_s - self._began_s

    def changed(self, reason: str | None) -> Literal["tell", "unsteady", "count"]:
        """It is lost for this reason, or is back (None).

        Returns:
            `tell`: tell it. `unsteady`: tell in its place that it does not hold. `count`: tell nothing.
        """
        self.reason, self._changed_s = reason, self._clock()
        if reason is not None:
            self.losses += 1
            self._recent.append(self._changed_s)
        if self._is_unsteady:
            return "count"
        if len(self._recent) == UNSTEADY_LOSSES and self._recent[-1] - self._recent[0] < UNSTEADY_WINDOW_S:
            self._is_unsteady, self._began_s, self.losses = True, self._recent[0], UNSTEADY_LOSSES
            return "unsteady"
        return "tell"

    def is_steady_again(self) -> bool:
        """True once, when what was unsteady has not changed for `STEADY_S`: tell then how it is."""
        if not self._is_unsteady or self._clock() - self._changed_s < STEADY_S:
            return False
        self._is_unsteady = False
        self._recent.clear()
        return True
