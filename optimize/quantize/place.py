"""Where the quantizers stand: which layers compute in integers on each target, and which tensors they read as integers.

ONNX Runtime on a CPU wants every tensor between integer kernels quantized, whatever makes it; the ReLU or ReLU6 behind
a layer disappears into the rounding of an asymmetric quantizer. TensorRT wants quantizers on the inputs of
convolutions only, and of a residual addition only on the skip input, so that Conv + Add + ReLU becomes one kernel;
the rest is FP16. What lies behind the last convolution stays float on both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from optimize.quantize.graph import HEAD_REASON, Graph, Zones, shape_of
from optimize.quantize.layers import Layer, attribute, find_layers

if TYPE_CHECKING:
    import onnx

__all__ = ["ASKED_REASON", "Plan", "Target", "place"]

Target = Literal["cpu", "trt"]

PASSES = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "DepthToSpace"}
)
"""Operators that move values but never change them: output and input share one scale. So does Resize to the nearest."""

ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that an asymmetric quantizer with the right range computes by itself."""

CPU_KERNELS = (
    PASSES
    | ABSORBED
    | {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}
)
"""Operators with a quantized kernel, or none needed, in ONNX Runtime's CPU provider since 1.17."""

ASKED_REASON = "put back to float to hold the accuracy"
SQUEEZE_REASON = "squeeze of an attention block: one pixel, no speed to gain, and accuracy to lose"
WEIGHTS_REASON = "its weights are not constant"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where quantizers stand in one target's graph.

    Attributes:
        target: whose graph.
        layers: names of the layers that compute in integers.
        tensors: every quantized tensor to the tensor whose range it takes: itself, or what a pooling or reshape reads.
        reads: node name and input number of every reader that gets the quantized tensor.
        float_layers: names of the layers that stay float, to the reason in words.
    """

    target: Target
    layers: frozenset[str]
    tensors: Mapping[str, str]
    reads: frozenset[tuple[str, int]]
    float_layers: Mapping[str, str]


def place(graph: Graph, zones: Zones, target: Target, in_float: frozenset[str] = frozenset()) -> Plan:
    """Decide where quantizers stand.

    Args:
        graph: a prepared float graph with inferred shapes.
        zones: its preamble and head.
        target: `cpu` or `trt`.
        in_float: names of layers that must stay float.
    """
    layers = find_layers(graph)
    reasons = {
        name: why for name, layer in layers.items() if (why := _why_float(graph, zones, layer, target, in_float))
    }
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.name not in layers:
            reasons[node.name] = zones.reasons.get(node.output[0], WEIGHTS_REASON)
    integer = frozenset(layers) - frozenset(reasons)
    reads = frozenset(_cpu_reads(graph, zones, integer) if target == "cpu" else _trt_reads(graph, zones, integer))
    by_name = {node.name: node for node in graph.nodes}
    quantized = {by_name[name].input[slot] for name, slot in reads}
    return Plan(
        target=target,
        layers=integer,
        tensors={tensor: _range_of(graph, tensor, quantized) for tensor in sorted(quantized)},
        reads=reads,
        float_layers={name: reasons[name] for node in graph.nodes if (name := node.name) in reasons},
    )


def _why_float(graph: Graph, zones: Zones, layer: Layer, target: Target, in_float: frozenset[str]) -> str:
    if layer.output in zones.head:
        return zones.reasons.get(layer.output, HEAD_REASON)
    if layer.output in zones.preamble:
        return WEIGHTS_REASON
    if layer.name in in_float:
        return ASKED_REASON
    shape = shape_of(graph.model, layer.output)
    if target == "trt" and layer.op == "Conv" and shape is not None and shape[2:] == (1, 1):
        return SQUEEZE_REASON
    return ""


def _cpu_reads(graph: Graph, zones: Zones, integer: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Every input of every integer kernel, and every other reader of what such a kernel makes."""
    kernels = _with_layers(graph, {n.name for n in graph.nodes if _is_cpu_kernel(n, zones, integer)}, integer)
    quantized: set[str] = set()
    for node in graph.nodes:
        if node.name in kernels:
            quantized.update(name for _, name in _data_inputs(graph, node))
            quantized.update(name for name in node.output if name not in graph.outputs)
    quantized -= {tensor for tensor in quantized if _is_absorbed(graph, tensor, kernels)}
    for node in graph.nodes:
        for slot, name in _data_inputs(graph, node):
            if name in quantized:
                yield node.name, slot


def _is_cpu_kernel(node: onnx.NodeProto, zones: Zones, integer: frozenset[str]) -> bool:
    if node.output[0] in zones.head | zones.preamble:
        return False
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return node.name in integer
    return node.op_type in CPU_KERNELS or _passes(node)


def _with_layers(graph: Graph, kernels: set[str], integer: frozenset[str]) -> set[str]:
    """Those kernels that are joined to an integer layer, through kernels: the others would only round for nothing."""
    kept: set[str] = set()
    waiting = [node for node in graph.nodes if node.name in integer]
    while waiting:
        node = waiting.pop()
        if node.name in kept or node.name not in kernels:
            continue
        kept.add(node.name)
        waiting.extend(maker for name in node.input if (maker := graph.maker(name)) is not None)
        waiting.extend(reader for name in node.output for reader in graph.readers(name))
    return kept


def _passes(node: onnx.NodeProto) -> bool:
    """Whether it moves values and never changes them."""
    return node.op_type in PASSES or (node.op_type == "Resize" and attribute(node, "mode", b"nearest") == b"nearest")


def _is_absorbed(graph: Graph, tensor: str, kernels: set[str]) -> bool:
    """Whether an activation behind it takes the quantizer in its place."""
    maker, readers = graph.maker(tensor), graph.readers(tensor)
    if maker is None or _passes(maker) or maker.op_type == "Concat" or tensor in graph.outputs:
        return False
    return len(readers) == 1 and readers[0].op_type in ABSORBED and readers[0].name in kernels


def _trt_reads(graph: Graph, zones: Zones, integer: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Inputs of integer layers, the skip input of additions behind them, and both inputs of a gate."""
    for node in graph.nodes:
        if node.name in integer:
            yield node.name, 0
        elif node.output[0] in zones.head | zones.preamble or len(node.input) != 2:
            continue
        elif node.op_type == "Add":
            skip = _skip_input(graph, node, integer)
            if skip is not None:
                yield node.name, skip
        elif node.op_type == "Mul" and all(graph.constant(name) is None for name in node.input):
            yield from ((node.name, slot) for slot in (0, 1))


def _skip_input(graph: Graph, add: onnx.NodeProto, integer: frozenset[str]) -> int | None:
    """The input of a residual addition that does not come from the convolution to fuse with; None when there is none.

    Where both come from convolutions, the one on the longer way stays unquantized, as TensorRT fuses the last one.
    """
    fusable = [slot for slot, name in enumerate(add.input) if _is_fusable(graph, name, integer)]
    if not fusable or any(graph.constant(name) is not None for name in add.input):
        return None
    main = max(fusable, key=lambda slot: (len(graph.upstream([add.input[slot]])), -slot))
    return 1 - main


def _is_fusable(graph: Graph, tensor: str, integer: frozenset[str]) -> bool:
    maker = graph.maker(tensor)
    return maker is not None and maker.name in integer and len(graph.readers(tensor)) == 1


def _data_inputs(graph: Graph, node: onnx.NodeProto) -> Iterator[tuple[int, str]]:
    """The inputs that are activations: of a layer the first, of others all that are not constant."""
    for slot, name in enumerate(node.input):
        if name and graph.constant(name) is None and (slot == 0 or node.op_type not in ("Conv", "Gemm", "MatMul")):
            yield slot, name


def _range_of(graph: Graph, tensor: str, quantized: set[str]) -> str:
    """Through pooling and reshapes back to the tensor whose range it takes, as far as that is quantized too."""
    node = graph.maker(tensor)
    while node is not None and _passes(node) and node.input[0] in quantized:
        tensor = node.input[0]
        node = graph.maker(tensor)
    return tensor
