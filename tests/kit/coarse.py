"""A stand-in for an emitter: the float graph with the weights of every layer rounded, layers given in float left."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["CoarseEmitter"]


class CoarseEmitter:
    """Makes graphs whose named layers compute with rounded weights; the noise per layer is known beforehand.

    Args:
        graph: a float graph.
        levels: layer (node name) to how many steps its largest weight has; fewer is noisier.
    """

    def __init__(self, graph: bytes, levels: dict[str, int]) -> None:
        self._graph = graph
        self._levels = levels
        self.asked: list[frozenset[str]] = []

    def __call__(self, in_float: frozenset[str]) -> bytes:
        self.asked.append(in_float)
        model = onnx.load_model_from_string(self._graph)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.name in self._levels and node.name not in in_float:
                tensor = constants[node.input[1]]
                coarse = _rounded(numpy_helper.to_array(tensor), self._levels[node.name])
                tensor.CopyFrom(numpy_helper.from_array(coarse, tensor.name))
        return bytes(model.SerializeToString(deterministic=True))


def _rounded(weights: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    step = np.abs(weights).max() / levels
    return np.asarray(np.rint(weights / step) * step, dtype=np.float32)
