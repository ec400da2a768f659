"""EfficientNet-Lite0: the network to fine-tune from ImageNet weights, made for integers.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019, table 1, in the form
that Google published for edge devices ("EfficientNet-Lite", 2020): no squeeze-and-excitation, ReLU6 in place of swish,
stem and head not scaled. TensorFlow's padding belongs to the published weights: at stride 2 the odd pixel lies right
and below, so a 3x3 kernel gets (0, 1) and a 5x5 kernel (1, 2). That is exact while every stage's size is even, as it is
for multiples of 32.

The published weights expect RGB as `(value - 127) / 128`. Our graphs compute `(value - 128) / 128`, which is 1/128
less: too little to show.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

__all__ = ["MobileBlock", "efficientnet_lite0", "our_name"]

# kernel, stride of the first, expansion, channels, repeats: table 1, stages 2 to 8
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, LAST = 32, 1280
EPSILON = 1e-3  # of the batch norms whose statistics were published

# `name` of the published file to ours; a block's names stand behind `_blocks.N.`
OUTSIDE = {
    "_conv_stem": "features.stem.conv",
    "_bn0": "features.stem.conv_norm",
    "_conv_head": "features.last.conv",
    "_bn1": "features.last.conv_norm",
    "_fc": "head",
}
IN_BLOCK = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}


class MobileBlock(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow by a 1x1 without activation.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel: size of the filter, 3 or 5.
        stride: of the filter, 1 or 2.
        expansion: how many times wider the middle is; 1 leaves the widening out.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            layers |= _convolution("expand", in_channels, middle, 1) | {"expand_relu": nn.ReLU6(inplace=True)}
        layers |= _convolution("depthwise", middle, middle, kernel, stride, groups=middle)
        layers["depthwise_relu"] = nn.ReLU6(inplace=True)
        layers |= _convolution("project", middle, out_channels, 1)
        self.layers = nn.Sequential(layers)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.is_residual else outputs


def efficientnet_lite0(in_channels: int) -> nn.Sequential:
    """The features, in the stages stem, block0 to block15, and last."""
    stem = _convolution("conv", in_channels, STEM, 3, 2) | {"relu": nn.ReLU6(inplace=True)}
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(OrderedDict(stem)))
    channels = STEM
    for kernel, stride, expansion, width, repeats in STAGES:
        for i in range(repeats):
            block = MobileBlock(channels, width, kernel, stride if i == 0 else 1, expansion)
            stages[f"block{len(stages) - 1}"] = block
            channels = width
    last = _convolution("conv", channels, LAST, 1) | {"relu": nn.ReLU6(inplace=True)}
    stages["last"] = nn.Sequential(OrderedDict(last))
    return nn.Sequential(stages)


def our_name(published: str) -> str | None:
    """Where a tensor of the published file belongs, for example `_blocks.3._bn1.bias`; None for a foreign name."""
    match published.split("."):
        case [layer, tensor] if layer in OUTSIDE:
            return f"{OUTSIDE[layer]}.{tensor}"
        case ["_blocks", number, layer, tensor] if layer in IN_BLOCK:
            return f"features.block{number}.layers.{IN_BLOCK[layer]}.{tensor}"
    return None


def _convolution(
    name: str, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    """A convolution without bias and its batch norm; at stride 2 with the padding that TensorFlow calls SAME."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        before, after = (kernel - 2) // 2, (kernel - 1) // 2
        layers[f"{name}_pad"] = nn.ZeroPad2d((before, after, before, after))
    padding = 0 if stride == 2 else kernel // 2
    layers[name] = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    layers[f"{name}_norm"] = nn.BatchNorm2d(out_channels, eps=EPSILON)
    return layers
