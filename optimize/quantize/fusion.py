"""What ONNX Runtime really makes of an INT8 graph: which layers it runs in integers, and which stay float."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.quantize.graph import COMPUTE, HEAD_REASON, Graph

if TYPE_CHECKING:
    import onnx

__all__ = ["HEAD_REASON", "FloatLayer", "Fusion", "fuse"]

NO_KERNEL_REASON = "ONNX Runtime did not fuse it into an integer kernel: a neighbour has none"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayer:
    """A layer with weights that computes in float32.

    Attributes:
        name: its name in the float graph.
        op: its operator.
        why: the reason, in words.
    """

    name: str
    op: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What became of a Q/DQ graph.

    Attributes:
        operators: how many of each operator are left after ONNX Runtime's optimization.
        float_layers: layers with weights that stay float, in graph order.
        reads_bytes: whether an integer convolution reads the camera's bytes directly.
    """

    operators: Mapping[str, int]
    float_layers: tuple[FloatLayer, ...]
    reads_bytes: bool


def fuse(graph: bytes, *, source: str, head: frozenset[str]) -> Fusion:
    """Let ONNX Runtime optimize a Q/DQ graph, and look at what it would run.

    Args:
        graph: the bytes of a Q/DQ graph.
        source: the graph's uint8 input.
        head: first outputs of the nodes that were left in float on purpose.
    """
    optimized = Graph(_optimized(graph))
    layers = [
        FloatLayer(name=node.name or node.output[0], op=node.op_type.removeprefix("Fused"), why=_why(node, head))
        for node in optimized.nodes
        if node.op_type in COMPUTE
    ]
    return Fusion(
        operators=dict(sorted(Counter(node.op_type for node in optimized.nodes).items())),
        float_layers=tuple(layers),
        reads_bytes=_reads_bytes(optimized, source),
    )


def _optimized(graph: bytes) -> onnx.ModelProto:
    """The graph after fusion, before layouts of one CPU: portable names, same decisions."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return onnx.load(str(path))


def _why(node: onnx.NodeProto, head: frozenset[str]) -> str:
    return HEAD_REASON if node.output[0] in head else NO_KERNEL_REASON


def _reads_bytes(graph: Graph, source: str) -> bool:
    """Whether everything that reads the input, through transposes alone, is an integer convolution."""
    waiting, found = [source], False
    while waiting:
        for node in graph.readers(waiting.pop()):
            if node.op_type == "Transpose":
                waiting.append(node.output[0])
            elif node.op_type == "QLinearConv":
                found = True
            else:
                return False
    return found
