"""Sizes and versions: channel widths, groups, dynamic shapes, operator sets, single rows.

Widths and groups follow what NVIDIA's Model-Optimizer leaves in float because INT8 gains nothing there
(`find_nodes_from_convs_to_exclude`, `find_nodes_from_matmul_to_exclude` in modelopt/onnx/quantization/graph_utils.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from optimize.quantize.graph import opset_of
from optimize.quantize.lint.finding import Finding
from optimize.quantize.lint.network import Layer, Network
from optimize.quantize.onnx_file import OPSETS

__all__ = ["dynamic_shapes", "opset", "single_rows", "widths"]

STEP = 8
NARROW = 16
ANSWERS = frozenset({"Sigmoid", "Softmax", "Concat", "ArgMax", "Shape"})
"""What reads the last layer of a head, whose width is the number of classes and can't be chosen."""


def widths(network: Network) -> Iterator[Finding]:
    """`width-not-multiple-of-8`, `narrow-conv`, `grouped-conv` and `depthwise-no-gain` on TensorRT."""
    first = network.layers[0] if network.layers else None
    for layer in network.layers:
        if not layer.is_convolution or layer.node.output[0] in network.head | network.preamble:
            continue
        if layer.group > 1:
            yield from _grouped(layer)
        else:
            yield from _dense(layer, is_first=layer is first, is_last=_is_answer(network, layer))


def _is_answer(network: Network, layer: Layer) -> bool:
    """Whether nothing but the head's own operators reads it."""
    return all(reader.op_type in ANSWERS for reader in network.readers_through(layer.node.output[0]))


def _dense(layer: Layer, *, is_first: bool, is_last: bool) -> Iterator[Finding]:
    chosen = [() if is_first else (layer.inputs,), () if is_last else (layer.outputs,)]
    odd = [width for widths_of in chosen for width in widths_of if width % STEP]
    if odd:
        yield Finding(
            rule="width-not-multiple-of-8",
            severity="warning",
            target="trt",
            layer=layer.name,
            message=f"{layer.inputs} channels in, {layer.outputs} out: INT8 kernels are padded to multiples of {STEP}, "
            "so the odd channels cost as much as full ones",
            remedy=f"use multiples of {STEP}, better 16 or 32 (a pruned network can be slower than the whole one)",
        )
    elif not (is_first or is_last) and min(layer.inputs, layer.outputs) < NARROW and not _gains(layer):
        yield Finding(
            rule="narrow-conv",
            severity="note",
            target="trt",
            layer=layer.name,
            message=f"{layer.inputs} channels in, {layer.outputs} out: below {NARROW}, INT8 gains nothing over FP16",
            remedy=f"use {NARROW} channels or more, or leave it",
        )


def _gains(layer: Layer) -> bool:
    is_square = len(set(layer.kernel)) <= 1
    return is_square and max(layer.inputs, layer.outputs) >= NARROW


def _grouped(layer: Layer) -> Iterator[Finding]:
    if layer.outputs % STEP or min(layer.kernel, default=1) < 3:
        yield Finding(
            rule="grouped-conv",
            severity="warning",
            target="trt",
            layer=layer.name,
            message=f"{layer.group} groups, {layer.outputs} channels out, kernel {'x'.join(map(str, layer.kernel))}: "
            "TensorRT has fast grouped INT8 kernels only for multiples of 8 and kernels of 3x3 and more",
            remedy="use multiples of 8 channels and 3x3, or an ordinary convolution",
        )
    elif layer.is_depthwise:
        yield Finding(
            rule="depthwise-no-gain",
            severity="note",
            target="trt",
            layer=layer.name,
            message="a depthwise convolution waits for memory, so INT8 gains little over FP16 on a GPU "
            "(MobileNetV3: 1280 queries per second in INT8, 1286 in FP16, NVIDIA/TensorRT#2197)",
            remedy="for a GPU take a network of ordinary convolutions, such as resnet18; on a CPU this one is fine",
        )


def dynamic_shapes(network: Network) -> Iterator[Finding]:
    """`dynamic-batch` and `dynamic-shape`."""
    for value in network.graph.inputs():
        shape = network.shape(value.name) or ()
        free = [i for i, side in enumerate(shape) if not isinstance(side, int) or side <= 0]
        if any(i > 0 for i in free):
            yield Finding(
                rule="dynamic-shape",
                severity="warning",
                target="both",
                layer=value.name,
                message=f"the input's shape is {_shown(shape)}: no kernel can be chosen, no memory planned and no "
                "layout kept before the first picture; TensorRT refuses it without an optimization profile",
                remedy="export it with the size that the station sends, such as [1, 3, 224, 224]",
            )
        elif free:
            yield Finding(
                rule="dynamic-batch",
                severity="note",
                target="trt",
                layer=value.name,
                message=f"the input's shape is {_shown(shape)}: TensorRT needs an optimization profile for the batch",
                remedy="export it with batch 1: a line judges one part at a time",
            )


def opset(network: Network) -> Iterator[Finding]:
    """`opset-too-old` and `opset-too-new`."""
    version = opset_of(network.model)
    layer = f"opset {version}"
    if version < OPSETS[0]:
        yield Finding(
            rule="opset-too-old",
            severity="warning",
            target="both",
            layer=layer,
            message=f"quantization per channel needs opset {OPSETS[0]} (DequantizeLinear's axis), so the graph must be "
            "converted first, which not every operator survives",
            remedy="export it again with opset_version=17",
        )
    elif version > OPSETS[1]:
        yield Finding(
            rule="opset-too-new",
            severity="warning",
            target="cpu",
            layer=layer,
            message=f"ONNX Runtime 1.17, the oldest on devices, ends at opset {OPSETS[1]} and can't open it",
            remedy="export it again with opset_version=17",
        )


def single_rows(network: Network) -> Iterator[Finding]:
    """`matmul-one-row`: a product with one row or column uses no tensor core."""
    for layer in network.layers:
        if layer.is_convolution:
            continue
        shape = network.shape(layer.node.output[0])
        if shape is not None and len(shape) >= 2 and 1 in shape[-2:]:
            yield Finding(
                rule="matmul-one-row",
                severity="note",
                target="trt",
                layer=layer.name,
                message=f"its result is {_shown(shape)}: with one row or column it uses no tensor core, so INT8 gains "
                "nothing",
                remedy="leave it in float, as a classifier's last layer is anyway",
            )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
