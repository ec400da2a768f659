"""Seven plain convolutions: small enough to commit to a repository, strong enough for clear defects.

The stride is 8 only, so that the activation map is fine enough to outline a scratch.
"""

from __future__ import annotations

from torch import nn

from optimize.networks.classifier import Classifier, conv_norm

__all__ = ["tiny"]

# channels, stride
LAYERS = ((16, 2), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 1))


def tiny(n_classes: int, in_channels: int) -> Classifier:
    """Build the network with fresh weights."""
    layers: list[nn.Module] = []
    channels = in_channels
    for width, stride in LAYERS:
        layers += [*conv_norm(channels, width, 3, stride), nn.ReLU(inplace=True)]
        channels = width
    return Classifier(nn.Sequential(*layers), channels, n_classes)
