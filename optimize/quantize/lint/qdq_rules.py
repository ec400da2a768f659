"""Rules for Q/DQ graphs: what TensorRT refuses, what it takes without a word and runs in float, what a CPU does slowly.

What TensorRT does was tried with TensorRT-RTX 1.7.1, whose networks are strongly typed as all of TensorRT 11's are;
tests/optimize/test_tensorrt_parser.py keeps the list.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optimize.quantize.graph import COMPUTE
from optimize.quantize.layers import attribute
from optimize.quantize.lint.finding import Finding, Severity
from optimize.quantize.lint.network import CONVOLUTIONS, Network, name_of
from optimize.quantize.lint.qdq import Point, dequantizer, points, quantized_weights, weight_axis

__all__ = ["activations", "halves", "loose_ends", "residuals", "saturation", "scales", "types", "weights"]

SMALLEST_SCALE = float(np.float32(1e-6))
"""Scales become FP16 where the rest does, and FP16 ends at 6e-8; below this, rounding of the scale itself counts."""

SUM_OF_TWO = 128
"""255 * 129 is more than 32767: where two adjacent weights add up to more than this, a 16-bit sum may saturate."""


def types(network: Network) -> Iterator[Finding]:
    """`zero-point`, `uint8` and `int32-bias` on TensorRT."""
    for point in points(network):
        if point.zero.any():
            yield _error(
                "zero-point",
                point,
                f"the zero point of {point.tensor} is {_most(point.zero)}: TensorRT's INT8 is symmetric and refuses "
                "every zero point but 0",
                "quantize symmetrically: scale = largest absolute value / 127, zero point 0",
            )
        if point.dtype == np.uint8:
            yield _error(
                "uint8",
                point,
                f"{point.tensor} is quantized to UINT8: TensorRT has no UINT8 kernels (it refuses the graph, or takes "
                "the values as INT8 with a warning)",
                "quantize to int8 with zero point 0 (a zero point input of type int8)",
            )
        if point.role == "bias" and point.dtype == np.int32:
            yield _error(
                "int32-bias",
                point,
                f"its bias {point.tensor} is int32 behind a DequantizeLinear: TensorRT's DequantizeLinear takes no "
                "int32 and refuses the graph",
                "leave biases in float; TensorRT adds them in the INT8 kernel (quantize_static: QuantizeBias=False)",
            )


def scales(network: Network) -> Iterator[Finding]:
    """`bad-scale`, `small-scale` and `scale-mismatch`."""
    for point in points(network):
        if point.scale is None:
            continue
        bad = ~np.isfinite(point.scale) | (point.scale <= 0)
        if bad.any():
            yield Finding(
                rule="bad-scale",
                severity="error",
                target="both",
                layer=point.layer,
                message=f"{int(bad.sum())} of {point.scale.size} scales of {point.tensor} are not above 0 "
                f"({point.scale[bad][0]:g}): the graph is refused, or computes NaN",
                remedy="calibrate it again; a channel without values gets the smallest scale, not 0",
            )
        elif point.role != "bias" and point.scale.min() < SMALLEST_SCALE:
            yield _error(
                "small-scale",
                point,
                f"the smallest scale of {point.tensor} is {point.scale.min():.3g}, below {SMALLEST_SCALE:g}: in FP16, "
                "which TensorRT runs the rest in, it turns into 0 or loses its digits",
                f"floor the scales at {SMALLEST_SCALE:g}; a tensor that small is dead",
            )
        yield from _mismatch(network, point)


def _mismatch(network: Network, point: Point) -> Iterator[Finding]:
    """A DQ must undo its Q."""
    if point.node.op_type != "QuantizeLinear":
        return
    for reader in network.graph.readers(point.node.output[0]):
        if reader.op_type != "DequantizeLinear" or point.scale is None:
            continue
        scale = network.graph.constant(reader.input[1])
        if scale is not None and not np.array_equal(scale.reshape(-1).astype(np.float64), point.scale):
            yield Finding(
                rule="scale-mismatch",
                severity="error",
                target="both",
                layer=point.layer,
                message=f"{name_of(reader)} dequantizes {point.tensor} with another scale than {name_of(point.node)} "
                "quantized it with: every value is multiplied by their ratio",
                remedy="give both nodes the same scale",
            )


def weights(network: Network) -> Iterator[Finding]:
    """`weight-axis` and `per-tensor-weights`."""
    for point in points(network):
        value = network.graph.constant(point.tensor)
        if point.role != "weights" or value is None or point.reader is None or point.reader.op_type not in COMPUTE:
            continue
        wanted = weight_axis(point.reader, value.ndim)
        if not point.is_per_channel:
            if value.shape[wanted] > 1:
                yield from _per_tensor(point)
        elif point.axis % value.ndim != wanted:
            yield _error(
                "weight-axis",
                point,
                f"the scales of {point.tensor} {list(value.shape)} lie along axis {point.axis}, its output channels "
                f"along axis {wanted}: TensorRT refuses it, or runs the layer in float",
                f"write axis={wanted} on its QuantizeLinear and DequantizeLinear (without the attribute it is 1)",
            )
        elif point.scale is not None and point.scale.size != value.shape[wanted]:
            yield _error(
                "weight-axis",
                point,
                f"{point.scale.size} scales for {value.shape[wanted]} output channels of {point.tensor}",
                "give one scale for each output channel",
            )


def _per_tensor(point: Point) -> Iterator[Finding]:
    assert point.reader is not None
    is_grouped = int(attribute(point.reader, "group", 1)) > 1
    is_convolution = point.reader.op_type in CONVOLUTIONS
    for target, severity in _per_tensor_severities(is_grouped=is_grouped, is_convolution=is_convolution):
        yield Finding(
            rule="per-tensor-weights",
            severity=severity,
            target="trt" if target == "trt" else "cpu",
            layer=point.layer,
            message=f"one scale for all channels of {point.tensor}"
            + (
                ": in a depthwise convolution, whose channels differ by orders of magnitude, the small ones are left "
                "nothing (MobileNetV2: 0.1 % top-1, arXiv 1906.04721)"
                if is_grouped
                else ": less exact than one for each output channel, and no faster"
            ),
            remedy="quantize weights per output channel (axis 0 of a convolution)",
        )


def _per_tensor_severities(*, is_grouped: bool, is_convolution: bool) -> tuple[tuple[str, Severity], ...]:
    if is_grouped:
        return ("trt", "error"), ("cpu", "warning")
    return ("trt", "warning" if is_convolution else "note"), ("cpu", "note")


def activations(network: Network) -> Iterator[Finding]:
    """`per-channel-activation` and `symmetric-s8`."""
    all_points = [point for point in points(network) if point.role == "activation"]
    for point in all_points:
        if point.is_per_channel:
            yield Finding(
                rule="per-channel-activation",
                severity="error",
                target="both",
                layer=point.layer,
                message=f"{point.tensor} is an activation and has {0 if point.scale is None else point.scale.size} "
                "scales: TensorRT takes that without a word and runs the layers around it in float, and so does a CPU",
                remedy="give each activation one scale; only weights may have one per channel",
            )
    signed = [point for point in all_points if point.dtype == np.int8]
    if signed:
        yield Finding(
            rule="symmetric-s8",
            severity="warning",
            target="cpu",
            layer=signed[0].layer,
            message=f"{len(signed)} of {len(all_points)} activations are S8: x86 has fast kernels for U8 activations "
            "with S8 weights only (ResNet-18, one thread: 27 to 31 ms against 10 in U8, 36 in float)",
            remedy="use the bundle's cpu graph on CPUs; this one is for TensorRT",
        )


def residuals(network: Network) -> Iterator[Finding]:
    """`residual-both-quantized`: Q/DQ between a convolution and the Add that it would be fused with."""
    for node in network.graph.nodes:
        if node.op_type != "Add" or len(node.input) != 2:
            continue
        pairs = [dequantizer(network, name) for name in node.input]
        if any(dq is None for dq in pairs):
            continue
        for dq in pairs:
            assert dq is not None
            quantize = network.graph.maker(dq.input[0])
            maker = network.graph.maker(quantize.input[0]) if quantize is not None else None
            if maker is None or maker.op_type != "Conv" or len(network.graph.readers(maker.output[0])) > 1:
                continue
            yield Finding(
                rule="residual-both-quantized",
                severity="warning",
                target="trt",
                layer=name_of(node),
                message=f"both inputs of this residual Add are quantized, also the one from {name_of(maker)}: that "
                "keeps TensorRT from joining the convolution, the Add and the ReLU in one INT8 kernel",
                remedy=f"quantize the skip input alone: take out the Q/DQ pair behind {name_of(maker)}",
            )
            break


def loose_ends(network: Network) -> Iterator[Finding]:
    """`dq-without-q` and `q-without-dq` on TensorRT."""
    fed = {value.name for value in network.graph.inputs()}
    for node in network.graph.nodes:
        if node.op_type == "DequantizeLinear":
            source = network.source(node.input[0])
            maker = network.graph.maker(source)
            if network.graph.constant(source) is None and (maker is None or maker.op_type != "QuantizeLinear"):
                yield _dq_without_q(name_of(node), source, is_input=source in fed)
        elif node.op_type == "QuantizeLinear":
            readers = [r for name in node.output for r in network.readers_through(name)]
            others = [r for r in readers if r.op_type != "DequantizeLinear"]
            if others or not readers:
                yield _q_without_dq(name_of(node), name_of(others[0]) if others else None)


def _dq_without_q(layer: str, source: str, *, is_input: bool) -> Finding:
    return Finding(
        rule="dq-without-q",
        severity="warning" if is_input else "error",
        target="trt",
        layer=layer,
        message=f"it dequantizes {source}, which "
        + (
            "the caller must feed in INT8: the scale stands in the graph, and nothing checks that the caller knows it"
            if is_input
            else "no QuantizeLinear made: TensorRT takes scales from pairs only"
        ),
        remedy="put a QuantizeLinear with the same scale in front of it",
    )


def _q_without_dq(layer: str, reader: str | None) -> Finding:
    who = f"{reader} reads its integers as they are, without their scale" if reader else "nothing reads it"
    return Finding(
        rule="q-without-dq",
        severity="error",
        target="trt",
        layer=layer,
        message=f"no DequantizeLinear follows it ({who}): what comes behind computes in float, and by other values",
        remedy="put a DequantizeLinear with the same scale behind it",
    )


def halves(network: Network) -> Iterator[Finding]:
    """`half-quantized-layer`: a layer that reads INT8 values and float weights, or the other way round.

    Integer kernels of a CPU give integers only, so there a float head reads rounded values, and it is no mistake.
    """
    for node in network.graph.nodes:
        if node.op_type not in COMPUTE or len(node.input) < 2:
            continue
        has_values, has_weights = (dequantizer(network, name) is not None for name in node.input[:2])
        if has_values == has_weights:
            continue
        what = (
            "its values are quantized, its weights are not"
            if has_values
            else "its weights are quantized, its values are not"
        )
        yield Finding(
            rule="half-quantized-layer",
            severity="warning",
            target="trt" if has_values else "both",
            layer=name_of(node),
            message=f"{what}: it computes in float, with the rounding of INT8",
            remedy="quantize both, or neither",
        )


def saturation(network: Network) -> Iterator[Finding]:
    """`avx2-saturation`: pairs of weights whose 16-bit sum may saturate on x86 CPUs without VNNI."""
    for point in points(network):
        node = point.reader
        if (
            point.role != "weights"
            or node is None
            or node.op_type not in COMPUTE
            or not _reads_uint8(network, node.input[0])
        ):
            continue
        value = quantized_weights(network, point)
        if value is None or int(attribute(node, "group", 1)) > 1:
            continue
        share = _saturating_share(np.moveaxis(value, weight_axis(node, value.ndim), 0))
        if share:
            yield Finding(
                rule="avx2-saturation",
                severity="note",
                target="cpu",
                layer=point.layer,
                message=f"{share:.2%} of the adjacent pairs of its weights add up to more than {SUM_OF_TWO}: on x86 "
                "CPUs without VNNI their products may saturate, and the result differs from all other CPUs",
                remedy="use 7-bit weights (`weight_bits: 7`) where such a CPU is in use",
            )


def _saturating_share(value: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> float:
    """Pairs along the input channels, in the order in which channels-last kernels add them."""
    even = value.shape[1] // 2 * 2
    pairs = value[:, 0:even:2] + value[:, 1:even:2]
    return float((np.abs(pairs) > SUM_OF_TWO).mean()) if pairs.size else 0.0


def _reads_uint8(network: Network, tensor: str) -> bool:
    dq = dequantizer(network, tensor)
    if dq is None or len(dq.input) < 3:
        return dq is not None
    zero = network.graph.constant(dq.input[2])
    return zero is not None and zero.dtype == np.uint8


def _error(rule: str, point: Point, message: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity="error", target="trt", layer=point.layer, message=message, remedy=remedy)


def _most(zero: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    return int(zero[np.abs(zero).argmax()])
