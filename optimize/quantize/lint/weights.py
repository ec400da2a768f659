"""Weights that quantization can't take as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.quantize.graph import COMPUTE
from optimize.quantize.lint.finding import Finding
from optimize.quantize.lint.network import Layer, Network, name_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["channel_ranges", "non_finite", "unequal_channels"]

DEAD = 1e-5
"""A channel below this share of its layer's largest weight is dead: its scale is so small that the bias, stored as
int32 in steps of input scale times weight scale, overflows (microsoft/onnxruntime#25278, over 51 % accuracy lost)."""

DISPARITY = 100.0
"""With one scale for all channels, a channel so many times smaller than the largest is left with one step or none."""

ARITHMETIC = COMPUTE | {"BatchNormalization", "LayerNormalization", "Add", "Mul", "Sub", "Div"}


def non_finite(network: Network) -> Iterator[Finding]:
    """`non-finite-weights`: NaN or infinity among the weights."""
    for node in network.graph.nodes:
        if node.op_type not in ARITHMETIC:
            continue
        for name in node.input:
            value = network.graph.constant(name)
            if value is None or value.dtype.kind != "f" or np.isfinite(value).all():
                continue
            count = int((~np.isfinite(value)).sum())
            yield Finding(
                rule="non-finite-weights",
                severity="error",
                target="both",
                layer=name_of(node),
                message=f"{count} of the {value.size} values of {name} are NaN or infinite: no range can be found",
                remedy="train it again with a smaller learning rate, or take an earlier checkpoint",
            )


def unequal_channels(network: Network) -> Iterator[Finding]:
    """`dead-channel` and `channel-disparity`."""
    for layer in network.layers:
        ranges = channel_ranges(layer)
        if not np.isfinite(ranges).all() or not ranges.any():
            continue
        dead = np.flatnonzero(ranges <= DEAD * ranges.max())
        if dead.size:
            yield _dead(layer, dead)
        live = ranges[ranges > DEAD * ranges.max()]
        ratio = float(live.max() / live.min())
        if layer.is_convolution and ratio > DISPARITY:
            yield Finding(
                rule="channel-disparity",
                severity="note",
                target="both",
                layer=layer.name,
                message=f"its largest channel's weights are {ratio:,.0f} times its smallest's: one scale for all "
                "channels would leave the small ones nothing",
                remedy="quantize its weights per channel, and equalize it with its neighbours; `defect-opt build` "
                "does both",
            )


def channel_ranges(layer: Layer) -> NDArray[Any]:
    """The largest absolute weight of each output channel (of one group, for a transposed convolution)."""
    others = tuple(i for i in range(layer.weights.ndim) if i != layer.axis)
    return np.asarray(np.abs(layer.weights.astype(np.float64)).max(axis=others))


def _dead(layer: Layer, dead: NDArray[Any]) -> Finding:
    shown = ", ".join(map(str, dead[:5])) + (", ..." if dead.size > 5 else "")
    return Finding(
        rule="dead-channel",
        severity="warning",
        target="both",
        layer=layer.name,
        message=f"{dead.size} output channels have no weights to speak of ({shown}): their scale is so small that an "
        "int32 bias overflows, and a wrong constant takes the channel's place",
        remedy="prune these channels, or floor their scale as `defect-opt build` does",
    )
