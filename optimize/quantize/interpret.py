"""A graph run node by node over a few pictures, so that each layer can be met on what it will really read.

Every node is an ONNX Runtime session of its own, with its weights as inputs: the float graph and the integer one share
it. One thread: sums must come out the same whatever machine sets the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import ModelError
from optimize.quantize.graph import Graph

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Interpreter", "session_of"]


class Interpreter:
    """Runs nodes of one graph.

    Args:
        graph: a prepared float graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._sessions: dict[str, tuple[Any, tuple[str, ...]]] = {}

    def run(self, node: onnx.NodeProto, inputs: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]]:
        """Compute a node.

        Args:
            node: a node of the graph.
            inputs: one value per input; None takes the graph's constant, or leaves an optional input out.

        Returns:
            One value per output.
        """
        values = [
            self._graph.constant(name) if value is None and name else value
            for name, value in zip(node.input, inputs, strict=True)
        ]
        if node.output[0] not in self._sessions:
            self._sessions[node.output[0]] = self._open(node, values)
        session, names = self._sessions[node.output[0]]
        feed = {name: value for name, value in zip(node.input, values, strict=True) if name and name in names}
        try:
            return list(session.run(None, feed))
        except Exception as error:  # onnxruntime's exceptions have no common root but this
            raise ModelError(f"{node.name} ({node.op_type}): ONNX Runtime can't run it ({error})") from error

    def forget(self, node: onnx.NodeProto) -> None:
        """Close a node's session."""
        self._sessions.pop(node.output[0], None)

    def _open(self, node: onnx.NodeProto, values: Sequence[NDArray[Any] | None]) -> tuple[Any, tuple[str, ...]]:
        import onnx
        from onnx import helper, numpy_helper

        # Shapes, axes and limits stay constants (many operators want that); weights and activations are fed.
        is_layer = node.op_type in ("Conv", "Gemm", "MatMul")
        fed: dict[str, NDArray[Any]] = {}
        constants = []
        for slot, (name, value) in enumerate(zip(node.input, values, strict=True)):
            if not name or value is None or name in fed:
                continue
            if self._graph.constant(name) is not None and not (is_layer and slot):
                constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            else:
                fed[name] = value
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in fed.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        model = helper.make_model(
            helper.make_graph([node], "node", inputs, outputs, constants),
            opset_imports=list(self._graph.model.opset_import),
            ir_version=self._graph.model.ir_version,
        )
        return session_of(model.SerializeToString()), tuple(fed)


def session_of(graph: bytes, *, threads: int = 1, is_optimized: bool = False) -> Any:
    """Open a graph in ONNX Runtime, for computing what it says and not what is fastest.

    Args:
        graph: the bytes of an ONNX file.
        threads: of one inference.
        is_optimized: whether operators may be fused, as on a device; else each is computed by itself.

    Raises:
        ModelError: ONNX Runtime can't open it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if is_optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        raise ModelError(f"ONNX Runtime can't open the graph ({error})") from error
