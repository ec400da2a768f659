"""What a training run tells: while it runs, and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from optimize.export import Parity
from optimize.pretrained import WeightsOrigin
from optimize.train.learner import StepProgress
from optimize.train_config import TrainConfig
from optimize.validation import Validation

__all__ = ["EpochRecord", "Progress", "TrainResult"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        position: where in the schedule it ended, of `config.schedule`; more than `epoch` when time was short.
        size_px: width and height of the training pictures.
        lr: learning rate at its end.
        train_loss: mean loss, on augmented and mixed pictures.
        val_loss: mean cross-entropy on `val`.
        val_accuracy: share right on `val`.
        val_balanced_recall: what the best epoch is chosen by.
        seconds: wall time.
    """

    epoch: int
    position: float
    size_px: int
    lr: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_balanced_recall: float
    seconds: float


Progress: TypeAlias = StepProgress[EpochRecord]
"""Where a run is; given to the caller after each step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What came out.

    Attributes:
        config: the recipe.
        classes: in the order of the logits.
        onnx: the exported model.
        sha256: of that file.
        size_bytes: of that file.
        parameters: weights of the network.
        counts: training images of each class, in the same order.
        history: one record per epoch.
        best_epoch: whose weights were kept, from 1.
        val: how they did.
        parity: how far ONNX Runtime and torch are apart.
        stopped: `finished`, `patience` or `minutes`.
        data_sha256: over the train and val images, see `optimize.dataset.data_digest`.
        files: the images that were used, by split.
        notices: what the user should know, in sentences.
        seconds: wall time of all epochs, those before an interruption too.
        resumed_at: the epoch that an earlier run had reached, 0 for a fresh start.
        origin: the published weights that it started from; None from scratch.
        attention: a picture of where the network looked, for networks with spatial attention; else None.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    onnx: Path
    sha256: str
    size_bytes: int
    parameters: int
    counts: tuple[int, ...]
    history: tuple[EpochRecord, ...]
    best_epoch: int
    val: Validation
    parity: Parity
    stopped: str
    data_sha256: str
    files: Mapping[str, tuple[str, ...]]
    notices: tuple[str, ...]
    seconds: float
    resumed_at: int
    origin: WeightsOrigin | None
    attention: bytes | None = None
