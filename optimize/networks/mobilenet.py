"""A MobileNetV2 at half width, with ReLU6.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, table 2. ReLU6 stays because its
fixed range quantizes without calibration trouble and runs as fast as none in INT8.
"""

from __future__ import annotations

from torch import Tensor, nn

from optimize.networks.classifier import Classifier, conv_norm

__all__ = ["InvertedResidual", "mobilenetv2"]

# expansion, channels (half of the paper's, in multiples of 8), repeats, stride of the first
STAGES = ((1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
STEM, LAST = 16, 512


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by 3x3, narrow by a 1x1 without activation.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the 3x3 convolution.
        expansion: how many times wider the middle is.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*conv_norm(in_channels, middle, 1), nn.ReLU6(inplace=True)]
        layers += [*conv_norm(middle, middle, 3, stride, groups=middle), nn.ReLU6(inplace=True)]
        layers += conv_norm(middle, out_channels, 1)
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.is_residual else outputs


def mobilenetv2(n_classes: int, in_channels: int) -> Classifier:
    """Build the network with fresh weights."""
    layers: list[nn.Module] = [*conv_norm(in_channels, STEM, 3, 2), nn.ReLU6(inplace=True)]
    channels = STEM
    for expansion, width, repeats, stride in STAGES:
        for i in range(repeats):
            layers.append(InvertedResidual(channels, width, stride if i == 0 else 1, expansion))
            channels = width
    layers += [*conv_norm(channels, LAST, 1), nn.ReLU6(inplace=True)]
    return Classifier(nn.Sequential(*layers), LAST, n_classes)
