"""The float graph as quantization wants it: constants and batch norms folded, every node named, no shared weights."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import AgentError
from optimize.errors import ModelError
from optimize.quantize.graph import Graph
from optimize.quantize.model import bytes_from_model

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["prepare", "with_constants"]


def prepare(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Fold, name and separate; the graph computes the same.

    Batch norms are folded into the convolution before them and constants are computed by ONNX Runtime's own
    optimizer, at the level that keeps to standard operators. Every Conv gets a bias, because bias correction needs
    one, and weights that several nodes read are copied for each.

    Args:
        model: a float graph.
        source: what messages call it.

    Raises:
        ModelError: ONNX Runtime can't open or optimize the graph, or its weights are no numbers.
    """
    _check_finite(model, source)
    prepared = _optimized(model, source)
    _name_nodes(prepared)
    _separate_constants(prepared)
    _add_biases(prepared)
    return prepared


def with_constants(model: onnx.ModelProto, values: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy of the graph with other initializers; shapes stay.

    Args:
        model: any graph.
        values: initializer to its new value.
    """
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return copy


def _check_finite(model: onnx.ModelProto, source: str) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(
                f"{source}: {tensor.name}: holds numbers that are not finite (NaN or infinity)",
                hint="the training went wrong, or the file was damaged: train or export it again",
            )


def _optimized(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder, warnings.catch_warnings():
        # Older releases use what onnx has deprecated since; the user can do nothing about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        before, after = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        before.write_bytes(bytes_from_model(model))
        try:
            # Shapes are static here; the symbolic inference would only add sympy to what must be installed.
            quant_pre_process(str(before), str(after), skip_symbolic_shape=True)
        except AgentError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common root but this
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(
                f"{source}: ONNX Runtime can't open it ({type(error).__name__}: {first})",
                hint="`defect-opt inspect MODEL.onnx` shows what is in it",
            ) from error
        return onnx.load(str(after))


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = Counter(node.name for node in model.graph.node)
    for index, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.name or node.op_type}_{index}"


def _separate_constants(model: onnx.ModelProto) -> None:
    """One copy of its weights for every layer: equalization and correction change them layer by layer."""
    from onnx import numpy_helper

    graph = Graph(model)
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        for slot, name in enumerate(node.input):
            value = graph.constant(name) if slot else None
            if value is None:
                continue
            if name in seen or len(graph.readers(name)) > 1 or graph.maker(name) is not None:
                copy = f"{node.name}/{'weight' if slot == 1 else 'bias'}"
                model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), copy))
                node.input[slot] = copy
            seen.add(name)


def _add_biases(model: onnx.ModelProto) -> None:
    from onnx import numpy_helper

    graph = Graph(model)
    for node in model.graph.node:
        weight = graph.constant(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or (len(node.input) > 2 and node.input[2]):
            continue
        name = f"{node.name}/bias"
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(len(weight), np.float32), name))
        if len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)
