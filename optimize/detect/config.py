"""The recipe of a detector's training, checked before an image is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from agent.bundle.detection import TILE_PX
from agent.bundle.manifest import InputSpec, Resize
from optimize.augment import Augmentation
from optimize.errors import OptimizeError
from optimize.networks.detectors import detector_card

__all__ = ["BOX_AUGMENTATION", "DetectConfig"]

BOX_AUGMENTATION = Augmentation(min_area=0.8, light=0.4, blur=0.0, noise=0.0, cutout=0.0)
"""Milder than a classifier's: a crop cuts boxes and makes defects larger than the device will see them, noise drowns
fine ones, and a covered square hides whole ones. With a classifier's, NEU's crazing stayed at an AP50 of 0.15."""

FINEST = (4, 8, 16)
"""Strides that the finest level may have, in pixels of the input."""

LARGEST = 2**31 - 1
"""What a count may be where nothing else bounds it; more is a slip of the finger."""

Device = Literal["auto", "cpu", "cuda"]
Weighting = Literal["none", "sqrt", "inverse", "effective"]

_CHOICES: dict[str, Any] = {"device": Device, "resize": Resize, "class_weights": Weighting}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig:
    """The recipe; the one that was measured on NEU steel stands in `tools/bench_detect/recipes.py`.

    Attributes:
        arch: a name from `optimize.networks.detectors.DETECTORS`.
        epochs: passes over the training images, at least 1; None takes the architecture's.
        batch: images per step, at least 2.
        lr: highest learning rate (AdamW), reached after the warm-up; it then falls to 0 along a cosine. None takes the
            architecture's.
        size_px: input width and height, a multiple of 32; None takes the architecture's.
        seed: decides weights, order and augmentation.
        minutes: time budget; the schedule is shortened to end within it. None: no limit. A run that had to be shortened
            depends on the machine's speed, not on the seed alone.
        threads: CPU threads; 0 is one per core (or OMP_NUM_THREADS). Weights depend on it in their last bits.
        patience: epochs without a better val result before stopping.
        weight_decay: on convolutions, not on norms and biases.
        average: how much the running average of the weights keeps per step.
        small_until: share of the schedule that runs at three quarters of the size, in half the time per epoch.
        augmentation: how pictures are changed.
        resize: `stretch` to the input's square, or `letterbox`: aspect kept, the rest padded.
        weights: published weights of the backbone to start from, a file or `imagenet`; None starts from scratch.
        freeze_until: the backbone's last stage that keeps its published weights; None freezes none.
        features_lr: the backbone learns at so many times the head's rate.
        finest: stride of the finest level in pixels: 8, or 4 for defects of a few pixels; 16 for large ones only.
        tile_px: train on windows of this many pixels of the picture, and let the device look at pictures in tiles of
            this size; None looks at whole pictures.
        tile_overlap: share of a tile's side that it has in common with its neighbour, on the device.
        class_weights: how much more a box of a rare class counts.
        clip: longest gradient of a step, 0 for any.
        device: `auto` takes a GPU where there is one.
        tensorboard: folder for TensorBoard's event files; None writes none.
    """

    arch: str = "yolo-lite0"
    epochs: int | None = None
    batch: int = 8
    lr: float | None = None
    size_px: int | None = None
    seed: int = 0
    minutes: float | None = None
    threads: int = 0
    patience: int = 30
    weight_decay: float = 0.05
    average: float = 0.998
    small_until: float = 0.0
    augmentation: Augmentation = BOX_AUGMENTATION
    resize: Resize = "stretch"
    weights: Path | Literal["imagenet"] | None = None
    freeze_until: str | None = None
    features_lr: float = 1.0
    finest: int = 8
    tile_px: int | None = None
    tile_overlap: float = 0.2
    class_weights: Weighting = "none"
    clip: float = 10.0
    device: Device = "auto"
    tensorboard: Path | None = None

    def __post_init__(self) -> None:
        _at_least("epochs", self.schedule, 1)
        _at_least("batch", self.batch, 2)
        _at_least("size", self.size, 64, 4096)
        if self.size % 32:
            raise OptimizeError(
                f"size: got {self.size}, expected a multiple of 32", hint=f"--size {round(self.size / 32) * 32}"
            )
        for name in ("seed", "threads"):
            _at_least(name, getattr(self, name), 0)
        _at_least("patience", self.patience, 1)
        if not 0 < self.peak_lr <= 1:
            raise OptimizeError(f"lr: got {self.lr}, expected more than 0, at most 1", hint="0.001 is a good start")
        if self.minutes is not None and not self.minutes > 0:
            raise OptimizeError(
                f"minutes: got {self.minutes}, expected more than 0", hint="--minutes 60, or leave it out for no limit"
            )
        if self.finest not in FINEST:
            raise OptimizeError(
                f"finest: got a stride of {self.finest} px, expected 4, 8 or 16",
                hint="--finest 4 for defects of a few pixels; leave it out otherwise",
            )
        if self.tile_px is not None:
            _at_least("tile", self.tile_px, *TILE_PX)
        self._check_shares_and_choices()

    def _check_shares_and_choices(self) -> None:
        for name, low, high in _SHARES:
            if not low <= getattr(self, name) <= high:
                got = f"{_flag(name)}: got {getattr(self, name)}, expected {low:g} to {high:g}"
                raise OptimizeError(got, hint=_range_hint(_flag(name)))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise OptimizeError(
                    f"{_flag(name)}: got {getattr(self, name)!r}, expected one of {expected}",
                    hint=f"leave --{_flag(name)} out for the default",
                )
        if self.freeze_until is not None and self.weights is None:
            raise OptimizeError(
                "freeze-until: got no published weights, so it would freeze random ones",
                hint="give --weights FILE (or imagenet) too",
            )

    @property
    def schedule(self) -> int:
        """Length of the schedule in epochs."""
        return detector_card(self.arch).epochs if self.epochs is None else self.epochs

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""
        return detector_card(self.arch).lr if self.lr is None else self.lr

    @property
    def size(self) -> int:
        """Input width and height in pixels."""
        return detector_card(self.arch).size_px if self.size_px is None else self.size_px

    @property
    def spec(self) -> InputSpec:
        """The exported graph's input."""
        return InputSpec(width_px=self.size, height_px=self.size, resize=self.resize)


_SHARES: tuple[tuple[str, float, float], ...] = (
    ("weight_decay", 0, 10),
    ("average", 0, 0.99999),
    ("small_until", 0, 1),
    ("features_lr", 0.0001, 1),
    ("tile_overlap", 0, 0.5),
    ("clip", 0, 1e6),
)


def _flag(name: str) -> str:
    """An attribute as the command line calls it."""
    return {"average": "ema", "clip": "clip-grad"}.get(name, name.replace("_", "-"))


def _range_hint(flag: str) -> str:
    return f"give --{flag} a value in that range, or leave it out for the default"


def _at_least(name: str, value: int, lowest: int, highest: int | None = None) -> None:
    if value < lowest or value > (highest or LARGEST):
        expected = f"at least {lowest}" if highest is None and value < lowest else f"{lowest} to {highest or LARGEST}"
        raise OptimizeError(f"{name}: got {value}, expected {expected}", hint=_range_hint(name))
