"""How long each model takes for a picture on this machine, in turn, so that a busy moment slows all of them alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent.frame import BgrImage, Frame, Part, Stamp

if TYPE_CHECKING:
    from agent.inspection import Inspection, Inspector

__all__ = ["Latency", "interleaved_latency"]

WARM_UPS = 3
MIN_ROUNDS, MAX_ROUNDS, ROUNDS_S = 15, 200, 8.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Preprocessing, inference and decoding together, in milliseconds.

    Attributes:
        median: half of the pictures took less.
        low: a quarter took less.
        high: a quarter took more.
        count: how many pictures were timed.
        taken: each of them, in the order of the rounds.
    """

    median: float
    low: float
    high: float
    count: int
    taken: tuple[float, ...] = dataclasses.field(default=(), repr=False)

    def is_apart_from(self, other: Latency) -> bool:
        """Whether three quarters of the rounds say the same: what differs less is no reason to choose.

        A busy moment slows both of a round. Where the rounds are not known, the middle halves must not overlap.
        """
        if self.taken and len(self.taken) == len(other.taken):
            first, third = np.percentile(np.subtract(self.taken, other.taken), (25, 75))
            return bool(first > 0 or third < 0)
        return self.high < other.low or other.high < self.low


def interleaved_latency(inspectors: Mapping[str, Inspector], images: Sequence[BgrImage]) -> dict[str, Latency | None]:
    """Time every model on the same pictures, one after the other, each round in the opposite order.

    Args:
        inspectors: by any name; opened with one thread, as a device has it.
        images: real pictures, at least one.

    Returns:
        By name; None for all when no picture could be judged by every one.
    """
    names = list(inspectors)
    for name in names:
        for _ in range(WARM_UPS):
            _inspect(inspectors[name], images[0])
    taken: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.monotonic() + ROUNDS_S
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        order = names if turn % 2 == 0 else names[::-1]
        seen = {name: _inspect(inspectors[name], images[turn % len(images)]) for name in order}
        if all(found.fault is None for found in seen.values()):
            for name, found in seen.items():
                taken[name].append(found.ms.preprocess + found.ms.infer + found.ms.decode)
    return {name: _latency(values) for name, values in taken.items()}


def _inspect(inspector: Inspector, image: BgrImage) -> Inspection:
    part = Part(id="compare", trigger="compare", sequence=1, triggered=Stamp.now())
    return inspector.inspect(
        Frame(part=part, image=image, camera="compare", source="compare", sequence=1, captured=Stamp.now())
    )


def _latency(taken: Sequence[float]) -> Latency | None:
    if not taken:
        return None
    low, median, high = (float(v) for v in np.percentile(taken, (25, 50, 75)))
    return Latency(median=median, low=low, high=high, count=len(taken), taken=tuple(taken))
