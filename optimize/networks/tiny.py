"""Seven plain convolutions: small enough to commit to a repository, strong enough for clear defects.

The stride is 8 only, so that the activation map is fine enough to outline a scratch.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from optimize.networks.attention import attention_layer
from optimize.networks.classifier import conv_norm

__all__ = ["tiny"]

# channels, stride, whether attention follows
LAYERS = (
    (16, 2, False),
    (16, 1, True),
    (32, 2, False),
    (32, 1, True),
    (64, 2, False),
    (64, 1, True),
    (128, 1, True),
)


def tiny(in_channels: int, attention: str) -> nn.Sequential:
    """The features, in the stages layer1 to layer7; attention stands where a width ends."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for width, stride, is_last in LAYERS:
        layers = [*conv_norm(channels, width, 3, stride), nn.ReLU(inplace=True)]
        gates = list(attention_layer(attention if is_last else "none", width))
        stages[f"layer{len(stages) + 1}"] = nn.Sequential(*layers, *gates)
        channels = width
    return nn.Sequential(stages)
