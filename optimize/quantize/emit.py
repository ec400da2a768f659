"""From a plan and its numbers to an ONNX graph with QuantizeLinear and DequantizeLinear, one form per target.

For CPUs: U8 activations, int8 weights with one scale per channel, int32 biases; ONNX Runtime fuses each layer with its
neighbours into one integer kernel. For TensorRT: symmetric S8 pairs; weights stay float32 numbers that lie exactly on
their grid, with a pair of their own, which every TensorRT since 8.0 reads; biases stay float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.quantize.graph import Graph
from optimize.quantize.grid import Affine
from optimize.quantize.layers import Layer, find_layers
from optimize.quantize.place import Plan
from optimize.quantize.reconstruct import Solution

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["emit"]


def emit(graph: Graph, plan: Plan, solution: Solution) -> onnx.ModelProto:
    """Write one target's integer graph.

    Args:
        graph: the prepared float graph.
        plan: where its quantizers stand; its layers and tensors may be fewer than the solution's.
        solution: grids, weights and biases.

    Returns:
        A graph with the same inputs and outputs.
    """
    return _Emitter(graph, plan, solution).model()


class _Emitter:
    def __init__(self, graph: Graph, plan: Plan, solution: Solution) -> None:
        self._graph = graph
        self._plan = plan
        self._solution = solution
        self._layers = find_layers(graph)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def model(self) -> onnx.ModelProto:
        import onnx
        from onnx import numpy_helper

        for tensor in (value.name for value in self._graph.inputs()):
            self._quantize(tensor)
        for node in self._graph.nodes:
            self._nodes.append(self._rewritten(node))
            for tensor in node.output:
                self._quantize(tensor)
        result = onnx.ModelProto()
        result.CopyFrom(self._graph.model)
        read = {name for node in self._nodes for name in node.input} | set(self._graph.outputs)
        kept = [tensor for tensor in result.graph.initializer if tensor.name in read]
        made = [numpy_helper.from_array(value, name) for name, value in self._constants.items() if name in read]
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend([*kept, *made])
        return result

    def _rewritten(self, node: onnx.NodeProto) -> onnx.NodeProto:
        import onnx

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for slot, name in enumerate(node.input):
            if (node.name, slot) in self._plan.reads:
                copy.input[slot] = f"{name}/read"
        if node.name in self._plan.layers:
            self._integer_layer(copy, self._layers[node.name])
        return copy

    def _quantize(self, tensor: str) -> None:
        """Put a pair behind a tensor that someone reads as integers."""
        source = self._plan.tensors.get(tensor)
        if source is None:
            return
        grid = self._solution.grids[source]
        scale, zero = self._grid_constants(source, grid)
        self._add("QuantizeLinear", [tensor, scale, zero], f"{tensor}/quantized")
        self._add("DequantizeLinear", [f"{tensor}/quantized", scale, zero], f"{tensor}/read")

    def _integer_layer(self, node: onnx.NodeProto, layer: Layer) -> None:
        found = self._solution.weights[layer.name]
        bias = self._solution.biases[layer.name]
        name = node.input[1]
        scale = self._constant(f"{name}/scale", found.scale)
        zero = self._constant(f"{name}/zero_point", np.zeros(layer.channels, np.int8))
        if self._plan.target == "cpu":
            steps = self._constant(f"{name}/quantized", layer.from_rows(found.steps))
        else:
            exact = self._constant(f"{name}/on_grid", layer.from_rows(found.rows()))
            steps = f"{name}/quantized"
            self._add("QuantizeLinear", [exact, scale, zero], steps, axis=layer.axis)
        self._add("DequantizeLinear", [steps, scale, zero], f"{name}/read", axis=layer.axis)
        node.input[1] = f"{name}/read"
        if len(node.input) > 2:
            node.input[2] = self._bias(node.input[2], layer, found.scale, bias)

    def _bias(self, name: str, layer: Layer, scale: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        if self._plan.target == "trt":
            return self._constant(f"{name}/corrected", bias)
        grid = self._solution.grids[self._plan.tensors[layer.data]]
        step = np.float32(grid.scale) * scale
        steps = np.clip(np.rint(bias.astype(np.float64) / step), -(2**31), 2**31 - 1).astype(np.int32)
        quantized = self._constant(f"{name}/quantized", steps)
        factor = self._constant(f"{name}/scale", step)
        zero = self._constant(f"{name}/zero_point", np.zeros(len(bias), np.int32))
        self._add("DequantizeLinear", [quantized, factor, zero], f"{name}/read", axis=0)
        return f"{name}/read"

    def _grid_constants(self, tensor: str, grid: Affine) -> tuple[str, str]:
        kind = np.uint8 if self._plan.target == "cpu" else np.int8
        scale = self._constant(f"{tensor}/scale", np.array(grid.scale, np.float32))
        return scale, self._constant(f"{tensor}/zero_point", np.array(grid.zero_point, kind))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = value
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
