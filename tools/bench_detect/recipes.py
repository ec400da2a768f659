"""The two detectors: trained once, kept with their checkpoint, so that a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.detect.card import report_from_detector
from optimize.detect.config import BOX_AUGMENTATION, DetectConfig
from optimize.detect.training import train_detector
from optimize.files import write_atomically
from tools.bench_frame import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimize.dataset import Dataset
    from optimize.detect.result import DetectProgress

__all__ = ["RECIPES", "Trained", "trained"]

_NEU = DetectConfig(
    features_lr=0.4,
    augmentation=dataclasses.replace(BOX_AUGMENTATION, is_turned=False, min_area=0.5, light=0.7, cutout=0.2),
)
"""Pictures of 200 px of rolled steel, which has a direction. With the backbone's first stages frozen an epoch takes two
thirds of the time. Milder augmentation and 22 epochs reached 0.84 on train and 0.61 on val: they overfitted."""

RECIPES: Mapping[str, DetectConfig] = {
    "yolo": dataclasses.replace(_NEU, arch="yolo-lite0", size_px=320, epochs=30, small_until=0.7),
    "ssd": dataclasses.replace(_NEU, arch="ssd-lite0", size_px=256, epochs=36, small_until=0.4),
}
"""At 224 px the classes were right and the boxes loose (yolo's AP on val 0.81 at an IoU of 0.3, 0.62 at 0.5). Larger
pictures mended that: yolo's mAP50 on val, from a score of 0.001 as `scoring.py` has it on test, was 0.655 at 256 px (36
epochs) and 0.663 at 320 px; from the bundle's own 0.01, by which the best epoch is chosen, 0.645 and 0.653."""

FROZEN = "block2"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A detector as it was trained.

    Attributes:
        name: `yolo` or `ssd`.
        onnx: its float file.
        arch: the network.
        epochs: that were trained.
        minutes: wall time, other work on the machine included.
        cpu_minutes: of one CPU; half of it at best on two cores.
        val_map50: what the best epoch was chosen by.
    """

    name: str
    onnx: Path
    arch: str
    epochs: int
    minutes: float
    cpu_minutes: float
    val_map50: float


def trained(name: str, dataset: Dataset, weights: Path, work: Path, *, threads: int, is_quick: bool) -> Trained:
    """Train, or go on, or take what is there.

    Args:
        name: of the recipe.
        dataset: NEU-DET with its boxes.
        weights: the backbone's published ones.
        work: what is kept between runs.
        threads: for the training.
        is_quick: one epoch.
    """
    config = dataclasses.replace(RECIPES[name], weights=weights, freeze_until=FROZEN, threads=threads)
    if is_quick:
        config = dataclasses.replace(config, epochs=1, size_px=96)

    def show(progress: DetectProgress) -> None:
        if (record := progress.record) is not None:
            say(f"{name}: epoch {record.epoch}, loss {record.train_loss:.2f}, val mAP50 {record.map50:.3f}")

    say(f"{name}: training {config.arch} (a finished run is taken as it is)")
    result = train_detector(config, dataset, work / f"{name}.onnx", show)
    text = json.dumps(report_from_detector(result), indent=1)
    write_atomically(work / f"{name}.onnx.json", text.encode())
    return Trained(
        name=name,
        onnx=result.onnx,
        arch=config.arch,
        epochs=len(result.history),
        minutes=result.seconds / 60,
        cpu_minutes=result.cpu_seconds / 60,
        val_map50=result.val.map50,
    )
