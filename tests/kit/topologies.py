"""Small networks by the way their layers are joined, with a camera's bytes in front: one for each rule of quantizing.

Weights are random and nothing is trained. Nodes are called by what they make, so that tests can name layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from optimize.quantize.graph import Graph
from optimize.quantize.interpret import session_of
from optimize.quantize.model import FloatModel, read_model
from optimize.quantize.prepare import prepare
from tests.kit.detectors import GraphBuilder

__all__ = ["SIDE", "TOPOLOGIES", "Net", "pictures", "prepared", "run", "saved", "snr"]

SIDE = 16
WIDTH = 8


class Net(GraphBuilder):
    """A network that takes `image` (1, SIDE, SIDE, 3) uint8 and, unless told otherwise, ends in `logits` (1, 4)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.rng = np.random.default_rng(seed + 100)
        self.add("Cast", "image", "float", to=TensorProto.FLOAT)
        self.add("Sub", ["float", self.constant("offset", 128.0)], "centred")
        self.add("Mul", ["centred", self.constant("unit", 1 / 128)], "scaled")
        self.add("Transpose", "scaled", "x", perm=[0, 3, 1, 2])

    def clip(self, source: str, name: str, limit: float = 6.0) -> str:
        """ReLU6 and its like."""
        low, high = self.constant(f"{name}.low", 0.0), self.constant(f"{name}.high", limit)
        return self.add("Clip", [source, low, high], name)

    def unlike(self, layer: str, decades: float) -> NDArray[np.float64]:
        """Make a layer's rows differ in size by 10 ** U(-decades, decades); gives the factors."""
        count = self.value(f"{layer}.weight").shape[0]
        factor: NDArray[np.float64] = np.power(10.0, self.rng.uniform(-decades, decades, count))
        self.scale_rows(layer, factor)
        return factor

    def scale_rows(self, layer: str, factor: NDArray[np.float64]) -> None:
        """Multiply rows and biases."""
        weights = self.value(f"{layer}.weight")
        self.constant(f"{layer}.weight", weights * factor.reshape(-1, *(1 for _ in weights.shape[1:])))
        self.constant(f"{layer}.bias", self.value(f"{layer}.bias") * factor)

    def scale_columns(self, layer: str, factor: NDArray[np.float64]) -> None:
        """Multiply what a layer without groups does to each channel that it reads."""
        weights = self.value(f"{layer}.weight")
        self.constant(f"{layer}.weight", weights * factor.reshape(1, -1, *(1 for _ in weights.shape[2:])))

    def value(self, name: str) -> NDArray[Any]:
        """A constant as it is now."""
        return onnx.numpy_helper.to_array(self.constants[name])

    def classify(self, source: str, channels: int = WIDTH) -> onnx.ModelProto:
        """Pooling and a linear layer."""
        self.add("Flatten", self.add("GlobalAveragePool", source, "pooled"), "flat")
        kernel = self.constant("linear.weight", self.rng.normal(0, 1, (4, channels)))
        self.add("Gemm", ["flat", kernel, self.constant("linear.bias", self.rng.normal(0, 1, 4))], "logits", transB=1)
        return self.finish({"logits": [1, 4]})

    def finish(self, outputs: dict[str, Sequence[int | str]]) -> onnx.ModelProto:
        """The graph with other outputs, with a byte input."""
        model: onnx.ModelProto = self.model(outputs, {"image": [1, SIDE, SIDE, 3]})
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        onnx.checker.check_model(model, full_check=True)
        return model


def saved(model: onnx.ModelProto, path: Path) -> FloatModel:
    """Through a file, as users give it."""
    path.write_bytes(model.SerializeToString())
    return read_model(path)


def prepared(model: onnx.ModelProto) -> Graph:
    """As quantization works on it."""
    return Graph(prepare(model, "test"))


def pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Smooth random pictures (1, SIDE, SIDE, 3) that use all of a byte."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3))
    fine = np.kron(coarse, np.ones((1, SIDE // 4, SIDE // 4, 1))) + rng.normal(0, 12, (count, SIDE, SIDE, 3))
    return [np.clip(picture, 0, 255).astype(np.uint8)[None] for picture in fine]


def run(
    graph: bytes, images: Sequence[NDArray[Any]], *, output: str = "logits", is_optimized: bool = False
) -> NDArray[np.float32]:
    """A graph's output for every picture, in one array."""
    session = session_of(graph, is_optimized=is_optimized)
    source = session.get_inputs()[0].name
    return np.concatenate([session.run([output], {source: image})[0] for image in images])


def snr(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Signal to noise in dB, the signal without its mean over the pictures."""
    signal = reference - reference.mean(axis=0)
    return float(10 * np.log10(np.square(signal).sum() / max(float(np.square(reference - found).sum()), 1e-20)))


def plain() -> onnx.ModelProto:
    """Three convolutions with ReLU."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    last = net.feature(last, "middle", (WIDTH, WIDTH))
    return net.classify(net.feature(last, "last", (WIDTH, WIDTH)))


def residual() -> onnx.ModelProto:
    """Two additions in one stream."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    for block in ("one", "two"):
        inner = net.feature(last, f"{block}_a", (WIDTH, WIDTH))
        inner = net.conv(inner, f"{block}_b", (WIDTH, WIDTH))
        last = net.add("Relu", net.add("Add", [inner, last], f"{block}_add"), f"{block}_out")
    return net.classify(last)


def downsample() -> onnx.ModelProto:
    """An addition with convolutions on both ways."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH))
    inner = net.conv(net.feature(last, "main_a", (WIDTH, WIDTH), stride=2), "main_b", (WIDTH, WIDTH))
    short = net.conv(last, "short", (WIDTH, WIDTH), kernel=1, stride=2)
    return net.classify(net.add("Relu", net.add("Add", [inner, short], "add"), "out"))


def concat() -> onnx.ModelProto:
    """Two ways side by side, of different loudness."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    left, right = net.feature(last, "left", (WIDTH, WIDTH)), net.feature(last, "right", (WIDTH, WIDTH), stride=1)
    joined = net.add("Concat", [left, right], "joined", axis=1)
    return net.classify(net.feature(joined, "last", (2 * WIDTH, WIDTH)))


def joined_relu() -> onnx.ModelProto:
    """A ReLU that stands behind a Concat, and so behind no layer."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    parts = [net.conv(last, "left", (WIDTH, WIDTH)), net.conv(last, "right", (WIDTH, WIDTH), kernel=1)]
    joined = net.add("Relu", net.add("Concat", parts, "joined", axis=1), "joined_relu")
    return net.classify(net.feature(joined, "last", (2 * WIDTH, WIDTH)))


def depthwise(decades: float = 0.0) -> onnx.ModelProto:
    """Pointwise, depthwise, pointwise with ReLU; with `decades` channels are unlike, the function stays the same."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    for block in range(2):
        wide = net.feature(last, f"expand{block}", (WIDTH, 2 * WIDTH))
        filtered = net.conv(wide, f"deep{block}", (2 * WIDTH, 2 * WIDTH), group=2 * WIDTH)
        last = net.conv(net.add("Relu", filtered, f"deep{block}_relu"), f"project{block}", (2 * WIDTH, WIDTH), kernel=1)
        if decades:
            net.scale_rows(f"deep{block}", 1 / net.unlike(f"expand{block}", decades))
            net.scale_columns(f"project{block}", 1 / net.unlike(f"deep{block}", decades))
    return net.classify(last)


def relu6() -> onnx.ModelProto:
    """ReLU, a depthwise layer, ReLU6, a convolution."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    net.unlike("stem", 0.5)
    deep = net.clip(net.conv(last, "deep", (WIDTH, WIDTH), group=WIDTH), "deep_clip")
    net.scale_rows("deep", np.geomspace(0.3, 30, WIDTH))
    return net.classify(net.feature(deep, "last", (WIDTH, WIDTH)))


def gate() -> onnx.ModelProto:
    """Squeeze and excite."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    wide = net.feature(last, "wide", (WIDTH, WIDTH))
    small = net.feature(net.add("GlobalAveragePool", wide, "squeeze"), "reduce", (WIDTH, 4))
    strong = net.add("Sigmoid", net.conv(small, "expand", (4, WIDTH), kernel=1), "excite")
    gated = net.add("Mul", [wide, strong], "gated")
    return net.classify(net.feature(gated, "last", (WIDTH, WIDTH)))


def grouped() -> onnx.ModelProto:
    """A convolution of two groups between two others."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    middle = net.add("Relu", net.conv(last, "halves", (WIDTH, WIDTH), group=2), "halves_relu")
    return net.classify(net.feature(middle, "last", (WIDTH, WIDTH)))


def pooled() -> onnx.ModelProto:
    """MaxPool between two convolutions."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH))
    small = net.add("MaxPool", last, "small", kernel_shape=[2, 2], strides=[2, 2])
    return net.classify(net.feature(small, "last", (WIDTH, WIDTH)))


def resized() -> onnx.ModelProto:
    """Twice as large by the nearest."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    scales = net.constant("scales", [1, 1, 2, 2])
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    large = net.add("Resize", [last, "", scales], "large", **how)
    return net.classify(net.feature(large, "last", (WIDTH, WIDTH)))


def two_filters() -> onnx.ModelProto:
    """A layer of groups of one channel that makes two of each."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    deep = net.add("Relu", net.conv(last, "deep", (WIDTH, 2 * WIDTH), group=WIDTH), "deep_relu")
    return net.classify(net.feature(deep, "last", (2 * WIDTH, WIDTH)))


TOPOLOGIES: dict[str, Callable[[], onnx.ModelProto]] = {
    function.__name__: function
    for function in (
        plain,
        residual,
        downsample,
        concat,
        joined_relu,
        depthwise,
        relu6,
        gate,
        grouped,
        pooled,
        resized,
        two_filters,
    )
}
"""By name."""
