"""The shape that all our networks have: features, pooling, one linear layer."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from optimize.errors import OptimizeError

__all__ = ["Classifier", "Pooling", "SetsOut", "conv_norm", "cut_after"]

Pooling = Literal["mean", "peak", "both"]
"""How places become a picture: their mean, the strongest one, or half of each."""


@runtime_checkable
class SetsOut(Protocol):
    """A module that knows better than the general rule which weights to start with."""

    def start(self) -> None:
        """Overwrite its first weights; called once, after the general rule."""


class Classifier(nn.Module):
    """A feature extractor with a pooling + linear head, whose class activation map is exact.

    Args:
        features: (N, in_channels, H, W) float32 to (N, channels, h, w); its children are the stages.
        channels: how many channels `features` gives.
        n_classes: how many classes.

    Attributes:
        pooling: how the places of the map become logits. A defect of a few pixels vanishes in a mean, not in a peak.
        background: the class of good parts, or None. Where pooling takes peaks, good is the absence of defects: its map
            is taken off all others, so that it is 0 everywhere (which changes no softmax).
    """

    def __init__(self, features: nn.Sequential, channels: int, n_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, n_classes)
        self.pooling: Pooling = "mean"
        self.background: int | None = None
        _init(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the features' parts, from the picture to the head: what is frozen, or cut after."""
        return tuple(name for name, _ in self.features.named_children())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of normalized images (N, in_channels, H, W)."""
        features = self.features(images)
        if self.pooling != "mean":
            return self.pooled(self.mapped(features))
        logits: Tensor = self.head(torch.flatten(self.pool(features), 1))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features (N, channels)."""
        return torch.flatten(self.pool(self.features(images)), 1)

    def activation_map(self, images: Tensor) -> Tensor:
        """Class activation maps (N, C, h, w); pooled over h and w, plus the bias, they are the logits.

        Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.
        """
        return self.mapped(self.features(images))

    def mapped(self, features: Tensor) -> Tensor:
        """The head at every place: (N, channels, h, w) to (N, C, h, w), without the bias."""
        return nn.functional.conv2d(features, self.places()[0][:, :, None, None])

    def pooled(self, maps: Tensor) -> Tensor:
        """Logits (N, C) of activation maps (N, C, h, w)."""
        bias = self.places()[1]
        if self.pooling == "peak":
            return maps.amax((2, 3)) + bias
        mean = maps.mean((2, 3))
        return mean + bias if self.pooling == "mean" else 0.5 * (mean + maps.amax((2, 3))) + bias

    def places(self) -> tuple[Tensor, Tensor]:
        """Weight (C, channels) and bias (C,) of the head as they act at each place."""
        weight, bias = self.head.weight, self.head.bias
        if self.background is None or self.pooling == "mean":
            return weight, bias
        return weight - weight[self.background], bias - bias[self.background]


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias and the batch norm behind it, which the export folds into it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def cut_after(features: nn.Sequential, until: str | None) -> nn.Sequential:
    """The stages up to one, that one included; all of them for None.

    Raises:
        OptimizeError: there is no such stage.
    """
    if until is None:
        return features
    stages = dict(features.named_children())
    if until not in stages:
        raise OptimizeError(f"until: got {until!r}, expected one of {', '.join(stages)}")
    return features[: list(stages).index(until) + 1]


def _init(network: nn.Module) -> None:
    """He et al. (ICCV 2015), fan out; the head starts near zero so that no class is preferred."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, SetsOut):
            module.start()
