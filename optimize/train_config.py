"""The recipe of a training run, checked before an image is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agent.bundle.manifest import InputSpec
from optimize.augment import Augmentation
from optimize.errors import OptimizeError
from optimize.networks import architecture

__all__ = ["TrainConfig"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The recipe; the defaults are the one that was measured on NEU steel.

    Attributes:
        arch: a name from `optimize.networks.ARCHITECTURES`.
        epochs: passes over the training images, at least 1; None takes the architecture's.
        batch: images per step, at least 2.
        lr: highest learning rate, reached after the warm-up; it then falls to 0 along a cosine. None takes the
            architecture's.
        size_px: input width and height; None takes the architecture's.
        seed: decides weights, order and augmentation.
        minutes: time budget; the schedule is shortened to end within it. None: no limit. A run that had to be shortened
            depends on the machine's speed, not on the seed alone.
        threads: CPU threads; 0 is one per core (or OMP_NUM_THREADS). Weights depend on it in their last bits.
        patience: epochs without a better val result before stopping.
        weight_decay: on convolutions and the linear layer, not on norms and biases.
        label_smoothing: share of each target that is spread over all classes.
        mixup: half of the batches are blended, by a share from beta(mixup, mixup); 0 blends none.
        average: how much the running average of the weights keeps per step.
        small_until: share of the schedule that runs at three quarters of the size, in half the time per epoch.
        augmentation: how pictures are changed.
        weights: published weights to start from, see `optimize.pretrained.read_weights`; None starts from scratch.
    """

    arch: str = "resnet18"
    epochs: int | None = None
    batch: int = 32
    lr: float | None = None
    size_px: int | None = None
    seed: int = 0
    minutes: float | None = None
    threads: int = 0
    patience: int = 30
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    mixup: float = 0.2
    average: float = 0.99
    small_until: float = 0.45
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    weights: Path | None = None

    def __post_init__(self) -> None:
        _at_least("epochs", self.schedule, 1)
        _at_least("batch", self.batch, 2)
        _at_least("size", self.size, 32, 4096)
        _at_least("seed", self.seed, 0)
        _at_least("threads", self.threads, 0)
        _at_least("patience", self.patience, 1)
        if not 0 < self.peak_lr <= 100:
            raise OptimizeError(f"lr: got {self.lr}, expected more than 0, at most 100", hint="0.1 is a good start")
        if self.minutes is not None and not self.minutes > 0:
            raise OptimizeError(f"minutes: got {self.minutes}, expected more than 0")

    @property
    def schedule(self) -> int:
        """Length of the schedule in epochs."""
        return architecture(self.arch).epochs if self.epochs is None else self.epochs

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""
        return architecture(self.arch).lr if self.lr is None else self.lr

    @property
    def size(self) -> int:
        """Input width and height in pixels."""
        return architecture(self.arch).size_px if self.size_px is None else self.size_px

    @property
    def spec(self) -> InputSpec:
        """The exported graph's input."""
        return InputSpec(width_px=self.size, height_px=self.size, resize="stretch")


def _at_least(name: str, value: int, lowest: int, highest: int = 2**31 - 1) -> None:
    if not lowest <= value <= highest:
        raise OptimizeError(f"{name}: got {value}, expected {lowest} to {highest}")
