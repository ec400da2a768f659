"""ResNets of any width: 18 and 34 of two 3x3 convolutions per block, 50 of bottlenecks.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, table 1; the bottleneck's stride is
in its 3x3 convolution, as torchvision has it, to whose published weights these networks' tensors are named by
`our_name`. Our ResNet-18 is half as wide unless told otherwise: that is a quarter of the operations, and a few thousand
pictures of one surface do not fill more.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from optimize.networks.attention import attention_layer
from optimize.networks.classifier import conv_norm

__all__ = ["Bottleneck", "ResidualBlock", "our_name", "resnet"]

STEM = 64
WIDTHS = (64, 128, 256, 512)
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
EXPANSION = 4  # of the bottleneck

# of torchvision to ours
LAYERS = {"bn1": "norm1", "bn2": "norm2", "bn3": "norm3", "downsample": "shortcut"}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (a 1x1 convolution where the shape changes).

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution and of the shortcut.
        attention: what gates the residual before it is added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, attention: str = "none") -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_norm(in_channels, out_channels, 3, stride)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, self.norm2 = conv_norm(out_channels, out_channels, 3)
        self.attention = attention_layer(attention, out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(inputs)))))
        outputs: Tensor = self.relu2(self.attention(residual) + self.shortcut(inputs))
        return outputs

    def start(self) -> None:
        """As its shortcut (Goyal et al. 2017, section 5.1): deep nets then train from the first step."""
        nn.init.zeros_(self.norm2.weight)


class Bottleneck(nn.Module):
    """Narrow by a 1x1 convolution, a 3x3 there, widen by a 1x1; and a shortcut around them.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out; a quarter of them in the middle.
        stride: of the 3x3 convolution and of the shortcut.
        attention: what gates the residual before it is added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, attention: str = "none") -> None:
        super().__init__()
        middle = out_channels // EXPANSION
        self.conv1, self.norm1 = conv_norm(in_channels, middle, 1)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, self.norm2 = conv_norm(middle, middle, 3, stride)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3, self.norm3 = conv_norm(middle, out_channels, 1)
        self.attention = attention_layer(attention, out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        residual = self.norm3(self.conv3(self.relu2(self.norm2(self.conv2(hidden)))))
        outputs: Tensor = self.relu3(self.attention(residual) + self.shortcut(inputs))
        return outputs

    def start(self) -> None:
        """As its shortcut, see `ResidualBlock.start`."""
        nn.init.zeros_(self.norm3.weight)


def resnet(name: str, in_channels: int, width: float, attention: str) -> nn.Sequential:
    """The features, in the stages stem and layer1 to layer4.

    Args:
        name: `resnet18`, `resnet34` or `resnet50`.
        in_channels: of the picture.
        width: share of the paper's channels, which stay multiples of 8.
        attention: in every block.
    """
    block, expansion = (Bottleneck, EXPANSION) if name == "resnet50" else (ResidualBlock, 1)
    channels = _scaled(STEM, width)
    stem = [*conv_norm(in_channels, channels, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(*stem))
    for i, (full, repeats) in enumerate(zip(WIDTHS, BLOCKS[name], strict=True)):
        out_channels = expansion * _scaled(full, width)
        blocks = []
        for j in range(repeats):
            blocks.append(block(channels, out_channels, 2 if i > 0 and j == 0 else 1, attention))
            channels = out_channels
        stages[f"layer{i + 1}"] = nn.Sequential(*blocks)
    return nn.Sequential(stages)


def our_name(published: str) -> str | None:
    """Where a tensor of torchvision's file belongs, as `layer2.0.downsample.1.bias`; None for a foreign one."""
    match published.split("."):
        case ["conv1" | "bn1" as layer, tensor]:
            return f"features.stem.{0 if layer == 'conv1' else 1}.{tensor}"
        case ["fc", tensor]:
            return f"head.{tensor}"
        case [stage, number, layer, *rest] if stage.startswith("layer"):
            return ".".join(["features", stage, number, LAYERS.get(layer, layer), *rest])
    return None


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))
