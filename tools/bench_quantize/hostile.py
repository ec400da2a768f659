"""A net that naive quantization ruins: a trained MobileNetV2 whose channels were scaled apart, the same function.

Between a convolution and the depthwise one after it, and between that and the projection, each channel is multiplied by
10^U(-1.5, 1.5), and the next layer divides by it. A ReLU lets any positive factor through. ReLU6 does not, so each
Clip(0, 6) between two such layers becomes a ReLU first; that net's own float accuracy is what a drop is measured from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DECADES", "hostile", "unclipped"]

DECADES = 1.5
SEED = 60
ACTIVATIONS = ("Relu", "Clip")


def unclipped(graph: bytes) -> bytes:
    """The graph with every Clip as a ReLU."""
    import onnx

    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Relu"
            del node.input[1:]
            del node.attribute[:]
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return bytes(model.SerializeToString(deterministic=True))


def hostile(graph: bytes, decades: float = DECADES) -> bytes:
    """The same function with channels scaled apart.

    Args:
        graph: a float graph without Clip, batch norms folded.
        decades: factors are 10^U(-decades, decades).

    Raises:
        ValueError: no convolution is followed by a depthwise one, or by a projection behind a depthwise one.
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    constants = _Constants(model)
    rng = np.random.default_rng(SEED)
    pairs = 0
    for first in [node for node in model.graph.node if node.op_type == "Conv"]:
        second = _only_reader(model, first)
        if second is None or not (_is_depthwise(constants, first) or _is_depthwise(constants, second)):
            continue
        factors = 10 ** rng.uniform(-decades, decades, len(constants[first.input[1]]))
        _scale(constants, first, second, factors)
        pairs += 1
    if not pairs:
        raise ValueError("no pair of a convolution and a depthwise one found")
    constants.write()
    return bytes(model.SerializeToString(deterministic=True))


class _Constants:
    """A model's initializers as arrays, written back at the end."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, NDArray[Any]] = {}
        self._array = numpy_helper.to_array

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._values:
            self._values[name] = self._array(self._tensors[name]).astype(np.float64)
        return self._values[name]

    def __setitem__(self, name: str, value: NDArray[Any]) -> None:
        self._values[name] = value

    def write(self) -> None:
        from onnx import numpy_helper

        for name, value in self._values.items():
            self._tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def _only_reader(model: Any, node: Any) -> Any:
    """The convolution that alone reads this one's output, through a ReLU or directly; None where there is none."""
    if node.output[0] in {value.name for value in model.graph.output}:
        return None
    readers = [other for other in model.graph.node if node.output[0] in other.input]
    if len(readers) != 1:
        return None
    if readers[0].op_type == "Relu":
        return _only_reader(model, readers[0])
    return readers[0] if readers[0].op_type == "Conv" else None


def _is_depthwise(constants: _Constants, node: Any) -> bool:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return bool(groups > 1 and groups == len(constants[node.input[1]]))


def _scale(constants: _Constants, first: Any, second: Any, factors: NDArray[np.float64]) -> None:
    constants[first.input[1]] = constants[first.input[1]] * factors[:, None, None, None]
    if len(first.input) > 2:
        constants[first.input[2]] = constants[first.input[2]] * factors
    shape = (-1, 1, 1, 1) if _is_depthwise(constants, second) else (1, -1, 1, 1)
    constants[second.input[1]] = constants[second.input[1]] / factors.reshape(shape)
