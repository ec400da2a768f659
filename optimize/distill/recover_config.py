"""How a damaged network is brought back to what its teacher says; checked before a picture is looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from agent.bundle import InputSpec
from agent.bundle.manifest import Task
from optimize.augment import Augmentation
from optimize.errors import OptimizeError

__all__ = ["BATCH", "RecoverConfig", "passes_for"]

Optimizer = Literal["sgd", "adamw"]

BATCH: Mapping[Task, int] = MappingProxyType({"classify": 16, "detect": 8})
"""Pictures per step."""

FEWEST_PASSES = 10


def passes_for(steps: int, count: int, task: Task) -> int:
    """How many passes over so many pictures make so many steps; ten at the least."""
    return max(FEWEST_PASSES, -(-steps * BATCH[task] // count))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoverConfig:
    """The recipe of a recovery.

    Attributes:
        spec: the network's input; square. Pictures are augmented at this size and by its resize rule.
        epochs: passes over the pictures, at least 1.
        batch: pictures per step, at least 2.
        peak_lr: highest learning rate; a short warm-up before it, a cosine to 0 behind it.
        optimizer: `sgd` (with Nesterov momentum) or `adamw`.
        weight_decay: on weights, not on norms and biases.
        temperature: of the comparison, see `optimize.distill.loss.divergence`.
        label_weight: share of the labels' loss where some are given.
        feature_weight: of the distance of the pooled features; 0 compares none. Classifiers only.
        held_out: share of the pictures that is not trained on, to choose the best epoch by.
        average: how much the running average of the weights keeps per step.
        clip: longest gradient of a step, 0 for any.
        patience: epochs without a better agreement before stopping.
        seed: decides what is held out, order and augmentation.
        augmentation: how pictures are changed.
        minutes: time budget; the schedule is shortened to end within it. None: no limit.
    """

    spec: InputSpec
    epochs: int = 20
    batch: int = 32
    peak_lr: float = 0.02
    optimizer: Optimizer = "sgd"
    weight_decay: float = 5e-4
    temperature: float = 4.0
    label_weight: float = 0.1
    feature_weight: float = 0.0
    held_out: float = 0.15
    average: float = 0.99
    clip: float = 0.0
    patience: int = 30
    seed: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.spec.width_px != self.spec.height_px:
            raise OptimizeError(
                f"recover: the input is {self.spec.width_px} x {self.spec.height_px}, expected a square",
                hint="train the network with --size",
            )
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise OptimizeError(f"recover: {name.replace('_', '-')}: got {value}, expected {low:g} to {high:g}")
        if self.optimizer not in get_args(Optimizer):
            raise OptimizeError(f"recover: optimizer: got {self.optimizer!r}, expected sgd or adamw")
        if self.minutes is not None and not self.minutes > 0:
            raise OptimizeError(f"recover: minutes: got {self.minutes}, expected more than 0")

    @property
    def schedule(self) -> int:
        """Length in epochs."""
        return self.epochs

    @property
    def size(self) -> int:
        """Input width and height in pixels."""
        return self.spec.width_px

    @property
    def small_until(self) -> float:
        """Pictures are of full size all the time: what is recovered is how the network sees at that size."""
        return 0.0


_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 100_000),
    ("batch", 2, 4096),
    ("peak_lr", 1e-8, 100),
    ("weight_decay", 0, 1e30),
    ("temperature", 0.5, 50),
    ("label_weight", 0, 1),
    ("feature_weight", 0, 1000),
    ("held_out", 0.01, 0.5),
    ("average", 0, 0.99999),
    ("clip", 0, 1e6),
    ("patience", 1, 100_000),
    ("seed", 0, 2**31 - 1),
)
