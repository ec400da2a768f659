"""What the training of a detector tells: while it runs, and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from optimize.detect.config import DetectConfig
from optimize.export import Parity
from optimize.pretrained import WeightsOrigin
from optimize.train.learner import StepProgress

__all__ = ["BoxValidation", "DetectProgress", "DetectRecord", "DetectResult"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoxValidation:
    """How a detector does on `val`, by the COCO protocol.

    Attributes:
        map50: mean average precision at IoU 0.5, 0 to 1; what the best epoch is chosen by.
        map50_95: the mean over IoU 0.5 to 0.95.
        ap50: by class; None for a class without boxes.
        support: boxes of each class.
    """

    map50: float
    map50_95: float
    ap50: Mapping[str, float | None]
    support: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectRecord:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        position: where in the schedule it ended, of `config.schedule`; more than `epoch` when time was short.
        size_px: width and height of the training pictures.
        lr: learning rate at its end.
        train_loss: mean loss.
        map50: on `val`.
        map50_95: on `val`.
        seconds: wall time.
    """

    epoch: int
    position: float
    size_px: int
    lr: float
    train_loss: float
    map50: float
    map50_95: float
    seconds: float


DetectProgress: TypeAlias = StepProgress[DetectRecord]
"""Where a run is; given to the caller after each step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectResult:
    """What came out.

    Attributes:
        config: the recipe.
        classes: in the order of the scores.
        onnx: the exported model.
        sha256: of that file.
        size_bytes: of that file.
        parameters: weights of the network.
        counts: training boxes of each class, in the same order.
        empty: training images without a box: good parts.
        history: one record per epoch.
        best_epoch: whose weights were kept, from 1.
        val: how they did.
        parity: how far ONNX Runtime and torch are apart.
        stopped: `finished`, `patience` or `minutes`.
        data_sha256: over the train and val images, see `optimize.dataset.data_digest`.
        files: the images that were used, by split.
        notices: what the user should know, in sentences.
        seconds: wall time of all epochs, those before an interruption too.
        cpu_seconds: CPU time of the same; less where other work was on the machine, more with several threads.
        resumed_at: the epoch that an earlier run had reached, 0 for a fresh start.
        origin: the published weights that it started from; None from scratch.
    """

    config: DetectConfig
    classes: tuple[str, ...]
    onnx: Path
    sha256: str
    size_bytes: int
    parameters: int
    counts: tuple[int, ...]
    empty: int
    history: tuple[DetectRecord, ...]
    best_epoch: int
    val: BoxValidation
    parity: Parity
    stopped: str
    data_sha256: str
    files: Mapping[str, tuple[str, ...]]
    notices: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    resumed_at: int
    origin: WeightsOrigin | None
