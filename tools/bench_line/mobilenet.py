"""MobileNetV2 with fixed random weights, as a float ONNX graph that both runtimes take: the peers' model.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2. Batch norms are folded
away, as every exporter's optimizer does. It computes what a trained one would; its answers mean nothing.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CLASSES", "SIDE_PX", "mobilenet_v2"]

SIDE_PX = 224
CLASSES = ("good", "scratch", "stain", "dent", "crack", "pit")
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats, first stride."""


class _Net:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(22)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def conv(self, source: str, width: tuple[int, int], *, kernel: int, stride: int, group: int, relu: bool) -> str:
        shape = (width[1], width[0] // group, kernel, kernel)
        weights = self._rng.standard_normal(shape) * np.sqrt((2 if relu else 1) / np.prod(shape[1:]))
        inputs = [source, self.constant(weights), self.constant(self._rng.standard_normal(width[1]) * 0.01)]
        found = self.add("Conv", inputs, strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)
        return self.add("Clip", [found, self.constant(0.0), self.constant(6.0)]) if relu else found


def mobilenet_v2() -> bytes:
    """(1, 3, 224, 224) float32 RGB, 0 to 1, in; `logits` (1, 6) out."""
    net = _Net()
    x, width = net.conv("images", (3, 32), kernel=3, stride=2, group=1, relu=True), 32
    for expansion, channels, repeats, first in BLOCKS:
        for i in range(repeats):
            x, width = _block(net, x, width, channels, expansion, first if i == 0 else 1), channels
    x = net.conv(x, (width, 1280), kernel=1, stride=1, group=1, relu=True)
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x])])
    head = np.random.default_rng(1).standard_normal((len(CLASSES), 1280)) * 0.02
    net.nodes.append(helper.make_node("Gemm", [x, net.constant(head)], ["logits"], transB=1))
    graph = helper.make_graph(
        net.nodes,
        "mobilenet_v2",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(CLASSES)])],
        net.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _block(net: _Net, x: str, before: int, channels: int, expansion: int, stride: int) -> str:
    wide = before * expansion
    y = x if expansion == 1 else net.conv(x, (before, wide), kernel=1, stride=1, group=1, relu=True)
    y = net.conv(y, (wide, wide), kernel=3, stride=stride, group=wide, relu=True)
    y = net.conv(y, (wide, channels), kernel=1, stride=1, group=1, relu=False)
    return net.add("Add", [x, y]) if stride == 1 and before == channels else y
