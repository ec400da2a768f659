"""Where float and INT8 will meet: each border converts a whole tensor, and some cost a change of layout too.

What can be INT8 is predicted here from operators alone, as the emitters place Q/DQ. ONNX Runtime runs INT8
convolutions channels-last: a float operator in between that looks at the layout costs a Transpose before and after it.
TensorRT pays a reformat kernel at each border (NVIDIA/TensorRT#3197, #993, #4554).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from optimize.quantize.layers import attribute
from optimize.quantize.lint.finding import TARGETS, Finding, Target
from optimize.quantize.lint.network import PASSES, Network, name_of
from optimize.quantize.lint.structure import is_foldable, squeeze_gates

if TYPE_CHECKING:
    import onnx

__all__ = ["Island", "borders", "islands"]

_BOTH = PASSES | {
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool"),
    *("GlobalAveragePool", "Concat", "Resize", "DepthToSpace", "SpaceToDepth"),
}
INT8_OPERATORS: dict[Target, frozenset[str]] = {
    # The quantized kernels of ONNX Runtime's CPU provider (QLinear...), and operators around which its optimizer drops
    # the Q/DQ pairs; 1.32 keeps them around Pad, and around Resize unless its mode is nearest.
    "cpu": _BOTH | {"Softmax", "Where", "Gather"},
    # Activations are fused into the convolution before them; whatever they are, they cost no border.
    "trt": _BOTH | {"ConvTranspose", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Swish", "BatchNormalization", "Pad"},
}
LAYOUT = frozenset(
    {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"}
)
"""Float operators that look at the layout; elementwise ones take channels-last tensors as they come."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Island:
    """Float nodes between INT8 ones.

    Attributes:
        nodes: in graph order.
        before: the INT8 nodes whose results it reads.
        behind: the INT8 nodes that read its results.
    """

    nodes: tuple[onnx.NodeProto, ...]
    before: tuple[str, ...]
    behind: tuple[str, ...]

    @property
    def borders(self) -> int:
        """How many tensors change between float and INT8."""
        return len(self.before) + len(self.behind)

    @property
    def transposes(self) -> int:
        """How many changes of layout it costs on the CPU."""
        return self.borders if any(node.op_type in LAYOUT for node in self.nodes) else 0


def borders(network: Network) -> Iterator[Finding]:
    """`float-island` for each group of float nodes between INT8 ones, and `int8-borders`, their sum."""
    for target in TARGETS:
        found = list(islands(network, target))
        yield from (_island(island, target) for island in found)
        if network.layers:
            yield _sum(network, found, target)


def islands(network: Network, target: Target) -> Iterator[Island]:
    """Groups of nodes that stay float on a target and lie between INT8 nodes; those over one pixel cost nothing."""
    body = {id(node) for node in network.body}
    is_float = {id(node) for node in network.body if not (_has_kernel(node, target) or is_foldable(network, node))}
    seen: set[int] = set()
    for node in network.body:
        if id(node) not in is_float or id(node) in seen:
            continue
        members = _connected(network, node, is_float)
        seen |= set(members)
        island = _described(network, members, body)
        if island.before and island.behind and not all(network.is_one_pixel(n.output[0]) for n in island.nodes):
            yield island


def _has_kernel(node: onnx.NodeProto, target: Target) -> bool:
    if node.op_type == "Resize" and target == "cpu":
        return bool(attribute(node, "mode", b"nearest") == b"nearest")
    return node.op_type in INT8_OPERATORS[target]


def _connected(network: Network, start: onnx.NodeProto, is_float: set[int]) -> dict[int, onnx.NodeProto]:
    members: dict[int, onnx.NodeProto] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if id(node) in members or id(node) not in is_float:
            continue
        members[id(node)] = node
        waiting.extend(reader for name in node.output for reader in network.readers_through(name))
        makers = (network.graph.maker(network.source(name)) for name in node.input if name)
        waiting.extend(maker for maker in makers if maker is not None)
    return members


def _described(network: Network, members: dict[int, onnx.NodeProto], body: set[int]) -> Island:
    before: dict[str, None] = {}
    behind: dict[str, None] = {}
    nodes = tuple(node for node in network.graph.nodes if id(node) in members)
    for node in nodes:
        for name in filter(None, node.input):
            maker = network.graph.maker(network.source(name))
            if maker is not None and id(maker) in body and id(maker) not in members:
                before[name_of(maker)] = None
        for reader in (reader for name in node.output for reader in network.readers_through(name)):
            if id(reader) in body and id(reader) not in members:
                behind[name_of(reader)] = None
    return Island(nodes=nodes, before=tuple(before), behind=tuple(behind))


def _island(island: Island, target: Target) -> Finding:
    names = [name_of(node) for node in island.nodes]
    shown = ", ".join(f"{node.op_type}" for node in island.nodes[:3]) + (", ..." if len(names) > 3 else "")
    cost = f"{island.borders} borders with INT8 (behind {_shown(island.before)}; before {_shown(island.behind)})"
    if target == "cpu" and island.transposes:
        cost += f", and about {island.transposes} transposes, since it breaks the channels-last chain"
    return Finding(
        rule="float-island",
        severity="warning",
        target=target,
        layer=names[0],
        message=f"{shown} stays float between INT8 layers: {cost}",
        remedy="replace it by what has an INT8 kernel, or move it behind the last convolution",
    )


def _sum(network: Network, found: list[Island], target: Target) -> Finding:
    inside = sum(island.borders for island in found)
    gates = sum(1 for _ in squeeze_gates(network)) if target == "trt" else 0
    leaving = {
        network.source(name)
        for node in network.graph.nodes
        if node.output[0] in network.head
        for name in node.input
        if name
        and (maker := network.graph.maker(network.source(name))) is not None
        and maker.output[0] not in network.head | network.preamble
        and maker.op_type not in ("Constant", "Shape")
    }
    outside = 1 + max(len(leaving), 1)
    kind = "reformats" if target == "trt" else "conversions"
    small = f", {2 * gates} around squeeze-and-excite (one pixel each)" if gates else ""
    return Finding(
        rule="int8-borders",
        severity="note",
        target=target,
        layer=network.layers[0].name,
        message=f"{outside + inside} {kind} between float and INT8 predicted: one into the first layer, "
        f"{outside - 1} into the head, {inside} inside the body{small}",
        remedy="nothing to do" if not inside else "see float-island",
    )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
