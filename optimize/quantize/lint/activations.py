"""Activations that ONNX Runtime has no INT8 CPU kernel for: they compute in float, between two conversions.

ONNX Runtime's quantized kernels are Relu and Clip (absorbed in the layer before them), LeakyRelu and Sigmoid; it has
none for the rest. Measured on one thread (random weights, 224 px): from INT8 MobileNetV2 gained 1.6x to 1.8x with
ReLU6, 1.2x to 1.3x with SiLU, 1.1x with HardSwish; with HardSwish and squeeze-and-excite it lost, 0.8x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optimize.quantize.lint.finding import Finding
from optimize.quantize.lint.network import Network, name_of

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT_ACTIVATIONS", "activation_nodes", "slow_activations"]

FLOAT_ACTIVATIONS = {
    "HardSwish": "HardSwish",
    "HardSigmoid": "HardSigmoid",
    "Swish": "SiLU",
    "Gelu": "GELU",
    "Erf": "GELU",
    "Mish": "Mish",
    "Softplus": "Softplus",
    "Elu": "ELU",
    "Selu": "SELU",
    "Celu": "CELU",
    "PRelu": "PReLU",
    "Softsign": "Softsign",
    "Tanh": "Tanh",
}
"""Operators without an INT8 CPU kernel, and what their users call them."""

REMEDY = "train it with ReLU or ReLU6, which cost nothing in INT8"
GATE_REMEDY = "use Sigmoid for the gate, which has an INT8 kernel"


def slow_activations(network: Network) -> Iterator[Finding]:
    """`no-int8-activation`: SiLU, HardSwish, HardSigmoid, GELU, Mish, Softplus and their like, in the body."""
    for node, kind in activation_nodes(network):
        if node.output[0] in network.head | network.preamble:
            continue
        yield Finding(
            rule="no-int8-activation",
            severity="warning",
            target="cpu",
            layer=name_of(node),
            message=_why(kind),
            remedy=GATE_REMEDY if kind == "HardSigmoid" else REMEDY,
        )


def _why(kind: str) -> str:
    if kind == "SiLU":
        return (
            "SiLU has no INT8 kernel of its own in ONNX Runtime: it is a Sigmoid and a Mul, two more passes over the "
            "tensor, where ReLU is part of the convolution before it"
        )
    return f"{kind} has no INT8 kernel in ONNX Runtime: it computes in float, between two conversions"


def activation_nodes(network: Network) -> Iterator[tuple[onnx.NodeProto, str]]:
    """The node that each such activation ends or stands for, and its kind; patterns of several nodes count once."""
    inner: set[str] = set()
    found: list[tuple[onnx.NodeProto, str]] = []
    for node in network.graph.nodes:
        pattern = _pattern(network, node)
        if pattern is not None:
            kind, names = pattern
            inner |= names
            found.append((node, kind))
    patterned = {id(node) for node, _ in found}
    found.extend(
        (node, FLOAT_ACTIVATIONS[node.op_type])
        for node in network.graph.nodes
        if node.op_type in FLOAT_ACTIVATIONS and node.output[0] not in inner and id(node) not in patterned
    )
    order = {id(node): i for i, node in enumerate(network.graph.nodes)}
    yield from sorted(found, key=lambda pair: order[id(pair[0])])


def _pattern(network: Network, node: onnx.NodeProto) -> tuple[str, set[str]] | None:
    """The kind of `x * f(x)` that a Mul ends, and the first outputs of the nodes inside."""
    if node.op_type != "Mul" or len(node.input) != 2:
        return None
    for gate, value in (tuple(node.input), tuple(reversed(node.input))):
        maker = network.graph.maker(gate)
        if maker is None:
            continue
        if maker.op_type == "Sigmoid" and maker.input[0] == value:
            return "SiLU", {gate}
        if maker.op_type == "HardSigmoid" and maker.input[0] == value:
            return "HardSwish", {gate}
        plus = network.graph.maker(maker.input[0]) if maker.op_type == "Tanh" else None
        if plus is not None and plus.op_type == "Softplus" and plus.input[0] == value:
            return "Mish", {gate, plus.output[0]}
        if (inside := _clipped_hard_swish(network, gate, value)) is not None:
            return "HardSwish", inside
    return None


def _clipped_hard_swish(network: Network, gate: str, value: str) -> set[str] | None:
    """Whether `gate` is Clip(value + 3) or that divided by 6: HardSwish as exporters before opset 14 wrote it."""
    inside: set[str] = set()
    maker = network.graph.maker(gate)
    if maker is not None and maker.op_type in ("Div", "Mul"):
        inside.add(gate)
        maker = network.graph.maker(maker.input[0])
    if maker is None or maker.op_type != "Clip":
        return None
    plus = network.graph.maker(maker.input[0])
    if plus is None or plus.op_type != "Add" or value not in plus.input:
        return None
    return inside | {maker.output[0], plus.output[0]}
