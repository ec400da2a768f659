"""The last resort when INT8 costs too much: weights that were learned while every layer rounded.

A network whose layers round as the integer graph does (`optimize.quantize`): weights to 255 levels per output channel,
symmetric, and what a layer reads to 256 levels per tensor. Rounding has no gradient; where a value is inside its range
it is passed through as if nothing had happened (Bengio et al., "Estimating or propagating gradients through stochastic
neurons", 2013), which is what PyTorch's fake quantization does. What is learned are float weights that lose little when
they are rounded: they are exported and built like any others.

Batch norm behind a convolution is folded later; per output channel that is one factor, under which symmetric levels
stay the same, so the weights are rounded here as they will be there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.bundle import fit
from optimize.distill.recover import Recovered, RecoverProgress, recover
from optimize.distill.recover_config import RecoverConfig
from optimize.distill.teacher import Teacher
from optimize.export import normalize
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector

__all__ = ["recover_rounded", "round_like_int8", "rounded", "unrounded"]

N = TypeVar("N", Classifier, Detector)

CALIBRATION = 64
"""Pictures that ranges are read off."""

MIN_SCALE = 1e-6
"""Of one step, as in `optimize.quantize.grid`."""


class _Rounds:
    """What a layer that rounds knows: the range of what it reads, once it has seen some."""

    low: float = 0.0
    high: float = 0.0
    is_watching: bool = False

    def entering(self, values: Tensor) -> Tensor:
        """What the layer reads of these values."""
        if self.is_watching:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            return values
        return round_like_int8(values, self.low, self.high)


class _RoundedConv(nn.Conv2d, _Rounds):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own)
        found: Tensor = self._conv_forward(self.entering(input), _rounded_weights(self.weight), self.bias)
        return found


class _RoundedLinear(nn.Linear, _Rounds):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own)
        return nn.functional.linear(self.entering(input), _rounded_weights(self.weight), self.bias)


FLOAT: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {_RoundedConv: nn.Conv2d, _RoundedLinear: nn.Linear}
)
"""What a layer that rounds was before."""


def round_like_int8(values: Tensor, low: float, high: float) -> Tensor:
    """What is left of values after quantizing to 0 ... 255 and back, as `optimize.quantize.grid` does it for a CPU.

    Args:
        values: float32.
        low: smallest value of the range, at most 0; smaller ones are cut off.
        high: largest, at least 0.
    """
    scale = max(high - low, 255 * MIN_SCALE) / 255
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)


def rounded(network: N, pictures: NDArray[np.uint8]) -> N:
    """A copy whose convolutions and linear layers round.

    Args:
        network: float.
        pictures: (n, S, S, C) uint8 at the network's size, in its channels: ranges are read off them.
    """
    copied = copy.deepcopy(network).eval()
    layers = [module for module in copied.modules() if type(module) in {nn.Conv2d, nn.Linear}]
    for layer in layers:
        layer.__class__ = _RoundedConv if isinstance(layer, nn.Conv2d) else _RoundedLinear
    _watch(copied, is_watching=True)
    device = next(copied.parameters()).device
    with torch.no_grad():
        for start in range(0, len(pictures), 16):
            copied(normalize(pictures[start : start + 16]).to(device))
    _watch(copied, is_watching=False)
    return copied


def unrounded(network: N) -> N:
    """The same network with layers that do not round; changed in place."""
    for module in network.modules():
        kind = FLOAT.get(type(module))
        if kind is not None:
            module.__class__ = kind
    return network


def recover_rounded(
    network: N,
    teacher: Teacher,
    images: Sequence[NDArray[np.uint8]],
    config: RecoverConfig,
    progress: Callable[[RecoverProgress], None] | None = None,
    *,
    labels: NDArray[np.int64] | None = None,
) -> Recovered[N]:
    """Fine-tune a network until it agrees with its teacher while it rounds; arguments and errors as of `recover`.

    Args:
        network: float; it stays as it is.
        teacher: what it should agree with, as a rule the network itself.
        images: each (H, W, 3) uint8 RGB, any size.
        config: the recipe; a low rate and few epochs, since little has to change.
        progress: called after each step.
        labels: see `recover`.

    Returns:
        A float network; `before` and `after` are of the rounding one.
    """
    channels = next(module for module in network.modules() if isinstance(module, nn.Conv2d)).in_channels
    seen = [images[i] for i in np.linspace(0, len(images) - 1, min(CALIBRATION, len(images))).astype(int).tolist()]
    fitted = [fit(np.ascontiguousarray(image[:, :, ::-1]), config.spec)[:, :, :channels] for image in seen]
    learning = rounded(network, np.stack(fitted)) if fitted else network
    recovered = recover(learning, teacher, images, config, progress, labels=labels)
    unrounded(recovered.network)
    return recovered


def _rounded_weights(weights: Tensor) -> Tensor:
    """(O, ...) with 255 levels per output channel, -127 to 127."""
    scales = (weights.detach().flatten(1).abs().amax(1) / 127).clamp_min(torch.finfo(weights.dtype).tiny)
    zeros = torch.zeros(len(weights), dtype=torch.int32, device=weights.device)
    return torch.fake_quantize_per_channel_affine(weights, scales, zeros, 0, -127, 127)


def _watch(network: nn.Module, *, is_watching: bool) -> None:
    for module in network.modules():
        if isinstance(module, _Rounds):
            module.is_watching = is_watching
