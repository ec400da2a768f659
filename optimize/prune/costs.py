"""Multiplications per picture: as they are, and as they would be with fewer channels.

What is counted: every convolution and linear layer, once per use. Norms, activations and additions are left out, as in
`optimize.networks.cards`; behind the export they are folded or nearly free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.prune.graph import ChannelGroup, traced_outputs

__all__ = ["Costs", "costs_of", "count_macs"]


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Multiplications for one picture.

    Args:
        network: any; it is run once, in evaluation mode.
        example: (1, C, H, W) float32 of the size that counts.
    """
    layers = dict(network.named_modules())
    return sum(uses * layers[name].get_parameter("weight").numel() for name, uses in _uses(network, example).items())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Costs:
    """How multiplications depend on the widths of groups.

    Attributes:
        factor: (L,) float64: uses of a layer, times its kernel's places.
        outputs: (L,) float64: a layer's outputs.
        inputs: (L,) float64: inputs that each output reads.
        of_outputs: (L, G) float64: outputs of a layer that go with one channel of a group.
        of_inputs: (L, G) float64: the same of its inputs.
    """

    factor: NDArray[np.float64]
    outputs: NDArray[np.float64]
    inputs: NDArray[np.float64]
    of_outputs: NDArray[np.float64]
    of_inputs: NDArray[np.float64]

    def without(self, gone: NDArray[np.int64]) -> float:
        """Multiplications when so many channels of each group (G,) are gone."""
        outputs, inputs = self.outputs - self.of_outputs @ gone, self.inputs - self.of_inputs @ gone
        return float((self.factor * outputs * inputs).sum())

    def savings(self, gone: NDArray[np.int64], step: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each group (G,) would save alone if `step` (G,) more of its channels went."""
        outputs, inputs = self.outputs - self.of_outputs @ gone, self.inputs - self.of_inputs @ gone
        left = (outputs[:, None] - self.of_outputs * step) * (inputs[:, None] - self.of_inputs * step)
        return np.asarray(self.factor @ ((outputs * inputs)[:, None] - left))


def costs_of(network: nn.Module, groups: Sequence[ChannelGroup], example: Tensor) -> Costs:
    """The costs of a network as it is.

    Args:
        network: any; it is run once, in evaluation mode.
        groups: all its channels.
        example: (1, C, H, W) float32 of the size that counts.
    """
    uses, layers = _uses(network, example), dict(network.named_modules())
    names = {name: i for i, name in enumerate(uses)}
    shapes = [layers[name].get_parameter("weight").shape for name in names]
    of_outputs, of_inputs = np.zeros((len(names), len(groups))), np.zeros((len(names), len(groups)))
    for i, group in enumerate(groups):
        for part in group.parts:
            if part.name in names:
                side = of_outputs if part.is_output else of_inputs
                side[names[part.name], i] += len(part.positions) / group.width
    return Costs(
        factor=np.array([uses[name] * float(np.prod(shape[2:])) for name, shape in zip(names, shapes, strict=True)]),
        outputs=np.array([float(shape[0]) for shape in shapes]),
        inputs=np.array([float(shape[1]) for shape in shapes]),
        of_outputs=of_outputs,
        of_inputs=of_inputs,
    )


def _uses(network: nn.Module, example: Tensor) -> dict[str, int]:
    """For each layer that multiplies, how often one picture uses each of its weights."""
    uses: dict[str, int] = {}
    names: dict[nn.Module, str] = {
        module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places = output[0, 0].numel() if output.ndim == 4 else 1
        uses[names[module]] = uses.get(names[module], 0) + places

    hooks = [module.register_forward_hook(count) for module in names]
    was_training = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            traced_outputs(network, example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, trains in was_training.items():
            module.training = trains
    return uses
