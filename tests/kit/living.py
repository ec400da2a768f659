"""Networks as after training, without training them: every norm has statistics and factors of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agent.bundle.manifest import InputSpec
from optimize.networks import build_network
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector, build_detector
from optimize.trained import Trained

__all__ = ["classifier", "detector", "noise", "trained_pair"]

N = TypeVar("N", bound=nn.Module)

CLASSES = ("ok", "scratch", "spot")


def classifier(
    arch: str,
    *,
    attention: str = "none",
    until: str | None = None,
    width: float | None = None,
    channels: int = 3,
    side_px: int = 32,
) -> Classifier:
    """A classifier of three classes that says different things of different pictures."""
    torch.manual_seed(5)
    made = build_network(arch, 3, in_channels=channels, attention=attention, until=until, width=width)
    with torch.no_grad():
        made.head.weight.mul_(50)
    return _lived(made, channels, side_px)


def detector(arch: str, *, finest: int = 16, channels: int = 3, side_px: int = 64) -> Detector:
    """A detector of two classes."""
    torch.manual_seed(5)
    return _lived(build_detector(arch, 2, finest=finest, in_channels=channels), channels, side_px)


def noise(count: int, side_px: int = 32, channels: int = 3, *, seed: int = 1) -> NDArray[np.uint8]:
    """(count, side_px, side_px, channels) uint8."""
    shape = (count, side_px, side_px, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def trained_pair(
    network: Classifier | Detector, arch: str, *, side_px: int = 32, recipe: dict[str, str] | None = None
) -> Trained:
    """What `load_trained` would say of a network, for `save_trained`."""
    spec = InputSpec(width_px=side_px, height_px=side_px)
    is_detector = isinstance(network, Detector)
    return Trained(
        path=Path("unsaved.onnx"),
        sha256="",
        network=network,
        spec=spec,
        classes=("scratch", "spot") if is_detector else CLASSES,
        arch=arch,
        channels=next(m for m in network.modules() if isinstance(m, nn.Conv2d)).in_channels,
        task="detect" if is_detector else "classify",
        recipe={"arch": arch, **(recipe or {})},
        detection=network.spec(side_px, side_px) if isinstance(network, Detector) else None,
    )


def _lived(made: N, channels: int, side_px: int) -> N:
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d) and module.num_features > 1:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        made(torch.randn(4, channels, side_px, side_px))
    return made.eval()
