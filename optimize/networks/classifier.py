"""The shape that all our networks have: features, pooling, one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Classifier", "conv_norm"]


class Classifier(nn.Module):
    """A feature extractor with a pooling + linear head, whose class activation map is exact.

    Args:
        features: (N, in_channels, H, W) float32 to (N, channels, h, w).
        channels: how many channels `features` gives.
        n_classes: how many classes.
    """

    def __init__(self, features: nn.Sequential, channels: int, n_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, n_classes)
        _init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of normalized images (N, in_channels, H, W)."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features (N, channels)."""
        return torch.flatten(self.pool(self.features(images)), 1)

    def activation_map(self, images: Tensor) -> Tensor:
        """Class activation maps (N, C, h, w); their mean over h and w, plus the head's bias, is the logits.

        Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.
        """
        weight = self.head.weight[:, :, None, None]
        return nn.functional.conv2d(self.features(images), weight)


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias and the batch norm behind it, which the export folds into it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def _init(network: nn.Module) -> None:
    """He et al. (ICCV 2015), fan out; the head starts near zero so that no class is preferred."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
