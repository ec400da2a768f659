"""What to know of each detector before training it; needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from optimize.errors import OptimizeError

__all__ = ["DETECTORS", "DetectorCard", "Family", "detector_card"]

Family = Literal["yolo", "ssd"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectorCard:
    """What to know of a detector before training it.

    Attributes:
        name: as `--arch` takes it: the family and the backbone.
        family: `yolo` (anchor-free, aligned assignment) or `ssd` (anchors, multibox loss).
        backbone: a name from `optimize.networks.ARCHITECTURES`, whose published weights fit.
        size_px: input width and height in pixels unless told otherwise.
        channels: of the feature pyramid.
        epochs: passes over the images unless told otherwise.
        lr: highest learning rate unless told otherwise.
        advice: when to choose it, one line.
    """

    name: str
    family: Family
    backbone: str
    size_px: int = 320
    channels: int = 96
    epochs: int = 40
    lr: float = 1e-3
    advice: str


DETECTORS: Mapping[str, DetectorCard] = MappingProxyType(
    {
        card.name: card
        for card in (
            DetectorCard(
                name="yolo-lite0",
                family="yolo",
                backbone="efficientnet-lite0",
                advice="The default: anchor-free; boxes of any shape, fewest settings. Give it ImageNet --weights.",
            ),
            DetectorCard(
                name="yolo-resnet18",
                family="yolo",
                backbone="resnet18",
                advice="Plain convolutions: gains most from INT8 and from a GPU.",
            ),
            DetectorCard(
                name="yolo-mobilenetv2",
                family="yolo",
                backbone="mobilenetv2",
                advice="Smallest of the YOLO family on a Raspberry Pi.",
            ),
            DetectorCard(
                name="ssd-lite0",
                family="ssd",
                backbone="efficientnet-lite0",
                advice="Anchors on the same backbone: the second opinion that `defect-opt compare` wants.",
            ),
            DetectorCard(
                name="ssd-resnet18",
                family="ssd",
                backbone="resnet18",
                advice="Anchors on plain convolutions: gains most from INT8 and from a GPU.",
            ),
            DetectorCard(
                name="ssd-mobilenetv2",
                family="ssd",
                backbone="mobilenetv2",
                advice="The classic small one.",
            ),
        )
    }
)
"""By name."""


def detector_card(arch: str) -> DetectorCard:
    """The card of a detector.

    Raises:
        OptimizeError: there is no such detector.
    """
    if arch not in DETECTORS:
        expected = ", ".join(DETECTORS)
        raise OptimizeError(f"arch: got {arch!r}, expected one of {expected}", hint="--task detect --arch list")
    return DETECTORS[arch]
