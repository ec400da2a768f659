"""The recipe of a training run, checked before an image is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from agent.bundle.manifest import InputSpec, Resize
from optimize.augment import Augmentation
from optimize.errors import OptimizeError
from optimize.networks import architecture

__all__ = ["Attention", "ClassWeights", "Device", "Loss", "Optimizer", "Pooling", "Sampler", "TrainConfig"]

Loss = Literal["cross-entropy", "focal"]
ClassWeights = Literal["none", "sqrt", "inverse", "effective"]
Sampler = Literal["shuffled", "balanced"]
Attention = Literal["none", "se", "cbam"]
Device = Literal["auto", "cpu", "cuda"]
Optimizer = Literal["sgd", "adamw"]
Pooling = Literal["mean", "peak", "both"]

GAMMA = 2.0
"""What Lin et al. found best (ICCV 2017, section 4.1)."""

_CHOICES: dict[str, Any] = {
    "loss": Loss,
    "class_weights": ClassWeights,
    "sampler": Sampler,
    "attention": Attention,
    "device": Device,
    "pooling": Pooling,
    "optimizer": Optimizer,
    "resize": Resize,
}


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
        mixup: half of the batches are blended, by a share from beta(mixup, mixup); 0 blends none. None is 0.2, and 0
            with masks.
        average: how much the running average of the weights keeps per step.
        small_until: share of the schedule that runs at three quarters of the size, in half the time per epoch.
        augmentation: how pictures are changed.
        resize: `stretch` to the input's square, or `letterbox`: aspect kept, the rest padded.
        width: of ResNet-18 and MobileNetV2, as a share of the published one; None takes the architecture's.
        until: the last stage that is kept: a smaller network with a finer map; None keeps all.
        pooling: how the places of the activation map become a picture's logits: their `mean`, the strongest one
            (`peak`), or half of `both`.
        attention: `se` weighs channels, `cbam` channels and places; `none` neither.
        weights: published weights to start from, a file or `imagenet`, see `optimize.pretrained.read_weights`; None
            starts from scratch.
        freeze_until: the last stage that keeps its published weights; None freezes none.
        unfreeze_every: epochs after which one more frozen stage wakes, the deepest first; 0 wakes none.
        features_lr: the features learn at so many times the head's rate.
        stage_lr: each stage learns at so many times the rate of the stage behind it; 1 is one rate for all.
        freeze_norms: batch norms keep their published statistics in all stages.
        optimizer: `sgd` (with Nesterov momentum) or `adamw`.
        loss: `cross-entropy`, or `focal`, in which what is sure already counts little.
        focal_gamma: how little; 0 is cross-entropy.
        class_weights: `none`, `inverse` to the class's images, to their `effective` number or to their square root.
        sampler: `shuffled`: each image once per epoch; `balanced`: as many of each class.
        logit_adjustment: strength of the correction for class frequencies inside the loss; 0 is none, 1 the paper's.
        masks: folder with a mask for each defect picture (white on the defect, the picture's own path and size,
            `.png`): the activation map then learns where the defect is; None learns from labels alone.
        mask_weight: of that lesson in the loss.
        window_px: train on windows of this size, cut at the scale of the whole input (those of defects around the
            defect), and judge whole pictures; None trains on whole pictures. Needs masks.
        clip: longest gradient of a step, 0 for any.
        device: `auto` takes a GPU where there is one.
        tensorboard: folder for TensorBoard's event files; None writes none.
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
    mixup: float | None = None
    average: float = 0.99
    small_until: float = 0.45
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    resize: Resize = "stretch"
    width: float | None = None
    until: str | None = None
    pooling: Pooling = "mean"
    attention: Attention = "none"
    weights: Path | Literal["imagenet"] | None = None
    freeze_until: str | None = None
    unfreeze_every: int = 0
    features_lr: float = 1.0
    stage_lr: float = 1.0
    freeze_norms: bool = False
    optimizer: Optimizer = "sgd"
    loss: Loss = "cross-entropy"
    focal_gamma: float = GAMMA
    class_weights: ClassWeights = "inverse"
    sampler: Sampler = "shuffled"
    logit_adjustment: float = 0.0
    masks: Path | None = None
    mask_weight: float = 1.0
    window_px: int | None = None
    clip: float = 0.0
    device: Device = "auto"
    tensorboard: Path | None = None

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
        _at_least("unfreeze-every", self.unfreeze_every, 0)
        for name, low, high in _SHARES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptimizeError(f"{_flag(name)}: got {value}, expected {low:g} to {high:g}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise OptimizeError(f"{_flag(name)}: got {getattr(self, name)!r}, expected one of {expected}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Refuse what would quietly do something else than it says."""
        if self.freeze_until is not None and self.weights is None:
            raise OptimizeError(
                "freeze-until: got no published weights, so it would freeze random ones",
                hint="give --weights FILE (or imagenet) too",
            )
        if self.freeze_norms and self.weights is None:
            raise OptimizeError(
                "freeze-norms: got no published weights, so there are no statistics to keep",
                hint="give --weights FILE (or imagenet) too",
            )
        if self.unfreeze_every and self.freeze_until is None:
            raise OptimizeError("unfreeze-every: nothing is frozen", hint="give --freeze-until STAGE too")
        if self.focal_gamma != GAMMA and self.loss != "focal":
            raise OptimizeError("focal-gamma: is of the focal loss", hint="add --loss focal")
        if self.mask_weight != 1 and self.masks is None:
            raise OptimizeError("mask-weight: there are no masks", hint="give --masks DIR too")
        if self.window_px is not None:
            _at_least("window", self.window_px, 32, self.size)
            if self.masks is None:
                raise OptimizeError(
                    "window: without masks nobody knows whether a window shows the defect", hint="give --masks DIR too"
                )
        if self.masks is not None and self.mixup:
            raise OptimizeError("mixup: blended pictures have no mask", hint="leave --mixup out, or --masks")
        if self.logit_adjustment and (self.class_weights != "none" or self.sampler != "shuffled"):
            raise OptimizeError(
                "logit-adjust: corrects for class frequencies, and so do the class weights or the balanced sampler",
                hint="add --class-weights none --sampler shuffled",
            )

    @property
    def schedule(self) -> int:
        """Length of the schedule in epochs."""
        return architecture(self.arch).epochs if self.epochs is None else self.epochs

    @property
    def blend(self) -> float:
        """Strength of the mix-up."""
        if self.mixup is None:
            return 0.2 if self.masks is None else 0.0
        return self.mixup

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
        return InputSpec(width_px=self.size, height_px=self.size, resize=self.resize)


_SHARES: tuple[tuple[str, float, float], ...] = (
    ("weight_decay", 0, 1e30),
    ("label_smoothing", 0, 0.9),
    ("mixup", 0, 10),
    ("average", 0, 0.99999),
    ("small_until", 0, 1),
    ("width", 0.1, 4),
    ("stage_lr", 0.01, 1),
    ("features_lr", 0.0001, 1),
    ("focal_gamma", 0, 10),
    ("logit_adjustment", 0, 4),
    ("mask_weight", 0, 100),
    ("clip", 0, 1e6),
)


def _flag(name: str) -> str:
    """An attribute as the command line calls it."""
    return {"average": "ema", "logit_adjustment": "logit-adjust"}.get(name, name.replace("_", "-"))


def _at_least(name: str, value: int, lowest: int, highest: int = 2**31 - 1) -> None:
    if not lowest <= value <= highest:
        raise OptimizeError(f"{name}: got {value}, expected {lowest} to {highest}")
