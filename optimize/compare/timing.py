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
    """

    median: float
    low: float
    high: float
    count: int

    def is_apart_from(self, other: Latency) -> bool:
        """Whether the middle halves of the two do not overlap: what differs less is no reason to choose."""
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
    return Latency(median=median, low=low, high=high, count=len(taken))
