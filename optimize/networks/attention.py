"""Attention that integers can compute: gates on channels (SE), and on channels and places (CBAM).

Hu, Shen and Sun, "Squeeze-and-excitation networks", CVPR 2018. Woo, Park, Lee and Kweon, "CBAM: convolutional block
attention module", ECCV 2018. Both papers gate by a sigmoid, for which no runtime has an integer kernel. Here it is the
hard sigmoid, `clip(x / 6 + 1/2, 0, 1)` (Howard et al., "Searching for MobileNetV3", ICCV 2019, 5.2): behind a
convolution the export makes it that convolution and a Clip, and a quantizer takes the Clip in.

A gate starts at 5/6 everywhere, with room to learn in both directions, so that a network with attention starts close
to the one without.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from optimize.errors import OptimizeError

__all__ = ["ATTENTIONS", "Attention", "ChannelGate", "SpatialGate", "attention_layer", "spatial_map"]

Attention = Literal["none", "se", "cbam"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)

REDUCTION = 16  # of both papers
LEAST = 8  # channels of the squeeze: fewer fill no vector register
KERNEL = 7  # of the spatial gate: CBAM, table 2
OPEN = 2.0  # hard_sigmoid(2) = 5/6


class ChannelGate(nn.Module):
    """Weigh each channel by what all places of all channels say.

    Args:
        channels: that come in and go out.
        with_max: look at each channel's largest value too, through the same layers (CBAM, equation 2). The second
            layer is linear, so it is computed once, on the sum.
    """

    def __init__(self, channels: int, *, with_max: bool = False) -> None:
        super().__init__()
        squeezed = max(LEAST, channels // REDUCTION)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.highest = nn.AdaptiveMaxPool2d(1) if with_max else None
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        hidden = self.relu(self.squeeze(self.mean(inputs)))
        if self.highest is not None:
            hidden = hidden + self.relu(self.squeeze(self.highest(inputs)))
        gated: Tensor = inputs * self.gate(self.excite(hidden))
        return gated

    def start(self) -> None:
        """Near open: see the module."""
        nn.init.zeros_(_bias(self.squeeze))
        nn.init.normal_(self.excite.weight, std=0.01)
        nn.init.constant_(_bias(self.excite), OPEN)


class SpatialGate(nn.Module):
    """Weigh each place by the mean and the largest value of its channels around it (CBAM, equation 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)
        self.gate = nn.Hardsigmoid()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return inputs * self.weights(inputs)

    def weights(self, inputs: Tensor) -> Tensor:
        """The gates (N, 1, H, W) in [0, 1]."""
        summary = torch.cat([inputs.mean(1, keepdim=True), inputs.amax(1, keepdim=True)], 1)
        gates: Tensor = self.gate(self.norm(self.conv(summary)))
        return gates

    def start(self) -> None:
        """Near open: see the module."""
        nn.init.constant_(self.norm.weight, 0.5)
        nn.init.constant_(self.norm.bias, OPEN)


def attention_layer(kind: str, channels: int) -> nn.Sequential:
    """The gates of one kind; nothing for `none`.

    Raises:
        OptimizeError: there is no such kind.
    """
    if kind == "se":
        return nn.Sequential(ChannelGate(channels))
    if kind == "cbam":
        return nn.Sequential(ChannelGate(channels, with_max=True), SpatialGate())
    if kind != "none":
        raise OptimizeError(f"attention: got {kind!r}, expected one of {', '.join(ATTENTIONS)}")
    return nn.Sequential()


def spatial_map(network: nn.Module, images: Tensor) -> Tensor:
    """Where the last spatial gate lets features through.

    Args:
        network: one with `cbam`, in evaluation mode.
        images: (N, C, H, W) float32, normalized as the network takes them.

    Returns:
        (N, h, w) float32 in [0, 1]: 1 is open.

    Raises:
        OptimizeError: the network has no spatial gate.
    """
    gates = [module for module in network.modules() if isinstance(module, SpatialGate)]
    if not gates:
        raise OptimizeError("attention: the network has no spatial gates", hint="train it with --attention cbam")
    found: list[Tensor] = []
    hook = gates[-1].gate.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        with torch.no_grad():
            network(images)
    finally:
        hook.remove()
    return found[-1][:, 0]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
