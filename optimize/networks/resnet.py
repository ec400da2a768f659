"""A ResNet-18 at half width: 32, 64, 128, 256 channels.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016. Half the width is a quarter of the
operations; a few thousand pictures of one surface do not fill more.
"""

from __future__ import annotations

from torch import Tensor, nn

from optimize.networks.classifier import Classifier, conv_norm

__all__ = ["ResidualBlock", "resnet18"]

WIDTHS = (32, 64, 128, 256)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (a 1x1 convolution where the shape changes).

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_norm(in_channels, out_channels, 3, stride)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, self.norm2 = conv_norm(out_channels, out_channels, 3)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(inputs)))))
        outputs: Tensor = self.relu2(residual + self.shortcut(inputs))
        return outputs


def resnet18(n_classes: int, in_channels: int) -> Classifier:
    """Build the network with fresh weights."""
    stem = [*conv_norm(in_channels, WIDTHS[0], 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks: list[nn.Module] = []
    channels = WIDTHS[0]
    for width in WIDTHS:
        blocks += [ResidualBlock(channels, width, 1 if width == channels else 2), ResidualBlock(width, width, 1)]
        channels = width
    network = Classifier(nn.Sequential(*stem, *blocks), channels, n_classes)
    for block in blocks:
        # Each block starts as its shortcut (Goyal et al. 2017, section 5.1): deep nets then train from the first step.
        if isinstance(block, ResidualBlock):
            nn.init.zeros_(block.norm2.weight)
    return network
