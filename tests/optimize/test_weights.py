"""Integer weights: no pair that a CPU's 16-bit sums can't hold, and no larger output error than rounding to nearest."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.machine import int8_flags
from optimize.quantize.graph import Graph
from optimize.quantize.grid import Affine
from optimize.quantize.interpret import session_of
from optimize.quantize.layers import find_layers
from optimize.quantize.place import Plan
from optimize.quantize.reconstruct import Tuning, solve
from optimize.quantize.weights import PAIR_LIMIT, IntWeights, column_order, paired_columns, round_weights

SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "1x1": (32, 24, 1, 1, 1),
    "1x1 of odd channels": (33, 24, 1, 1, 1),
    "3x3": (16, 16, 3, 1, 1),
    "3x3 of 5 channels": (5, 8, 3, 1, 1),
    "3x3 of 12 channels": (12, 12, 3, 1, 1),
    "3x3 of one channel": (1, 8, 3, 1, 1),
    "first layer, 7x7 with stride 2": (3, 16, 7, 1, 2),
    "grouped": (16, 16, 3, 2, 1),
    "grouped, odd channels per group": (15, 6, 3, 3, 1),
    "depthwise": (32, 32, 3, 32, 1),
    "depthwise 5x5": (8, 8, 5, 8, 1),
    "depthwise, two filters per channel": (8, 16, 3, 8, 1),
}
"""Input channels, output channels, kernel, groups, stride."""

PATTERNS = ("random", "all equal and large", "large with one sign per channel", "grey")


def pattern(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Weights that are hard to keep from saturating; `grey` filters are the same for red, green and blue."""
    signs = rng.choice([-1.0, 1.0], (shape[0], *(1 for _ in shape[1:])))
    if kind == "random":
        values = rng.normal(0, 1, shape)
    elif kind == "all equal and large":
        values = np.ones(shape)
    elif kind == "grey":
        values = np.repeat(rng.uniform(0.5, 1, (shape[0], 1, *shape[2:])), shape[1], axis=1) * signs
    else:
        values = rng.uniform(0.9, 1, shape) * signs
    return np.asarray(values, dtype=np.float32)


def float_layer(shape: tuple[int, int, int, int, int] | None, weights: NDArray[np.float32]) -> onnx.ModelProto:
    """One layer from `x` to `y`: a Conv, or a Gemm where there is no shape."""
    bias = numpy_helper.from_array(np.zeros(len(weights), np.float32), "b")
    constants = [numpy_helper.from_array(weights, "w"), bias]
    if shape is None:
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=1)
        sides = [16, weights.shape[1]]
    else:
        channels, _, kernel, groups, stride = shape
        pads = [kernel // 2] * 4
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], name="layer", pads=pads, group=groups, strides=[stride] * 2
        )
        sides = [1, channels, 14, 14]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def solved(model: onnx.ModelProto) -> IntWeights:
    """The layer's weights as the CPU's graph gets them, without calibration."""
    plan = Plan(
        target="cpu", layers=frozenset({"layer"}), tensors={"x": "x"}, reads=frozenset({("layer", 0)}), float_layers={}
    )
    grids = {"x": Affine(scale=1 / 255, zero_point=0, low=0, high=255)}
    return solve(Graph(model), plan, grids, (), Tuning(correction="none")).weights["layer"]


def steps_apart(model: onnx.ModelProto, steps: NDArray[np.int8], rng: np.random.Generator) -> int:
    """How many output steps the fused kernel is away from the standard, on inputs near the top of their range."""
    layer = find_layers(Graph(model))["layer"]
    sides = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = rng.uniform(0.75, 1, sides).astype(np.float32)
    x[..., ::3] = 1.0
    weights = layer.from_rows(steps)
    real = weights.astype(np.float32) / 127
    largest = float(np.abs(_reference(model, {"w": real, "b": np.zeros(layer.channels, np.float32), "x": x})).max())
    graph = _with_pairs(model, weights, largest / 127)
    fused, standard = (session_of(graph, is_optimized=on).run(None, {"x": x})[0] for on in (True, False))
    return int(np.rint(np.abs(fused - standard).max() / (largest / 127)))


def _reference(model: onnx.ModelProto, values: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return np.asarray(session_of(copy.SerializeToString()).run(None, {"x": values["x"]})[0])


def _with_pairs(model: onnx.ModelProto, weights: NDArray[np.int8], out_scale: float) -> bytes:
    """The layer with quantizers around it, as ONNX Runtime fuses them."""
    layer = model.graph.node[0]
    count = weights.shape[0]
    step = np.float32(1 / 127)
    constants: dict[str, NDArray[Any] | np.generic] = {
        "x.s": np.float32(1 / 255),
        "x.z": np.uint8(0),
        "w.q": weights,
        "w.s": np.full(count, step, np.float32),
        "w.z": np.zeros(count, np.int8),
        "b.q": np.zeros(count, np.int32),
        "b.s": np.full(count, np.float32(1 / 255) * step, np.float32),
        "b.z": np.zeros(count, np.int32),
        "y.s": np.float32(out_scale),
        "y.z": np.uint8(128),
    }
    copy = onnx.NodeProto()
    copy.CopyFrom(layer)
    copy.input[:] = ["x.d", "w.d", "b.d"]
    copy.output[:] = ["y.f"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x.s", "x.z"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "x.s", "x.z"], ["x.d"]),
        helper.make_node("DequantizeLinear", ["w.q", "w.s", "w.z"], ["w.d"], axis=0),
        helper.make_node("DequantizeLinear", ["b.q", "b.s", "b.z"], ["b.d"], axis=0),
        copy,
        helper.make_node("QuantizeLinear", ["y.f", "y.s", "y.z"], ["y.q"]),
        helper.make_node("DequantizeLinear", ["y.q", "y.s", "y.z"], ["y"]),
    ]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    return bytes(result.SerializeToString())


def weights_of(name: str, kind: str, rng: np.random.Generator) -> onnx.ModelProto:
    channels, out, kernel, groups, _ = SHAPES[name]
    return float_layer(SHAPES[name], pattern(kind, (out, channels // groups, kernel, kernel), rng))


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("name", SHAPES)
def test_fused_kernels_compute_what_the_standard_says(name: str, kind: str) -> None:
    """A pair of products that saturates is wrong by dozens of steps, on some CPUs only, and on bright pictures only."""
    rng = np.random.default_rng(7)
    model = weights_of(name, kind, rng)

    found = solved(model)

    assert int(np.abs(found.steps.astype(int)).max()) > 60
    assert steps_apart(model, found.steps, rng) <= 1


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("inputs", [64, 65])
def test_a_fused_linear_layer_computes_what_the_standard_says(inputs: int, kind: str) -> None:
    """Its kernel adds pairs as well."""
    rng = np.random.default_rng(7)
    model = float_layer(None, pattern(kind, (24, inputs), rng))

    assert steps_apart(model, solved(model).steps, rng) <= 1


@pytest.mark.parametrize("name", ["1x1", "3x3", "first layer, 7x7 with stride 2", "grouped"])
def test_unbounded_weights_do_saturate(name: str) -> None:
    """That the test above can fail: the same kernels with weights at their limit."""
    flags = int8_flags()
    if flags is None or flags:
        pytest.skip(f"this CPU adds bytes' products in 32 bits ({', '.join(sorted(flags or ())) or 'it does not say'})")
    rng = np.random.default_rng(7)
    model = weights_of(name, "all equal and large", rng)
    layer = find_layers(Graph(model))["layer"]

    assert steps_apart(model, np.full(layer.rows().shape, 127, np.int8), rng) > 5


@pytest.mark.parametrize("shape", [(4, 3, 3), (3, 7, 7), (5, 3, 3), (1, 3, 3), (64,), (65,), (33, 1, 1)])
@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("with_moments", [False, True])
def test_neighbours_never_exceed_what_16_bits_hold(shape: tuple[int, ...], kind: str, with_moments: bool) -> None:
    """255 * 129 does not fit; whichever way weights were rounded, in every channel."""
    rng = np.random.default_rng(3)
    products = int(np.prod(shape))
    rows = pattern(kind, (12, products), rng).astype(np.float64)[None]
    pairs = paired_columns(shape)

    found = round_weights(
        rows, correlated(products, rng) if with_moments else None, pairs=pairs, floor=np.zeros((1, 12))
    )

    steps = found.steps.astype(int)
    sums = steps[:, 1:] + steps[:, :-1]
    assert np.abs(sums[:, pairs[1:]]).max() <= PAIR_LIMIT
    assert np.abs(steps).max() > PAIR_LIMIT // 2 - 1


def test_columns_go_from_place_to_place_with_channels_together() -> None:
    """In ONNX the kernel's places are innermost; a channels-last convolution has channels there."""
    assert column_order((2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert column_order((4,)).tolist() == [0, 1, 2, 3]
    assert sorted(column_order((3, 5, 5)).tolist()) == list(range(75))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 1, 2), [1, 3, 5, 7]),
        ((3, 1, 2), [1, 3, 4, 5]),  # 4 is the second channel of the second place
        ((1, 1, 4), [1, 3]),
        ((5,), [1, 3]),
    ],
)
def test_pairs_hold_for_kernels_that_go_by_patch_and_by_place(shape: tuple[int, ...], expected: list[int]) -> None:
    """Which kernel ONNX Runtime takes depends on sizes and CPUs; weights must be right for both."""
    assert np.flatnonzero(paired_columns(shape)).tolist() == expected


@functools.cache
def _mixer(products: int) -> NDArray[np.float64]:
    return np.random.default_rng(11).normal(0, 1, (products, max(products // 4, 1)))


def correlated(products: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Second moments (1, products, products) of inputs that mostly say the same things."""
    mixer = _mixer(products)
    x = rng.normal(0, 1, (2000, mixer.shape[1])) @ mixer.T + 0.1 * rng.normal(0, 1, (2000, products))
    return np.asarray(x.T @ x / len(x))[None]


@pytest.mark.parametrize("products", [16, 72, 200])
@pytest.mark.parametrize("limit", [7, 127])
def test_outputs_are_nearer_than_with_every_weight_at_its_nearest_step(products: int, limit: int) -> None:
    """What it is for: errors that correlated inputs can cancel do cancel; 200 columns are more than one block."""
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 1, (1, 20, products))
    moments = correlated(products, rng)
    floor = np.zeros((1, 20))

    nearest, fitted = (round_weights(rows, m, pairs=None, floor=floor, limit=limit) for m in (None, moments))

    lost = [output_error(found, rows, moments) for found in (nearest, fitted)]
    assert lost[1].sum() < 0.5 * lost[0].sum()
    assert (lost[1] < lost[0]).mean() > 0.6


def output_error(found: IntWeights, rows: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error of each output."""
    wrong = found.rows().astype(np.float64) - rows.reshape(found.steps.shape)
    return np.asarray(((wrong @ moments[0]) * wrong).sum(axis=1))


def test_unrelated_inputs_leave_each_weight_within_half_a_step() -> None:
    """There is nothing to make up for."""
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 1, (1, 6, 30))

    found = round_weights(rows, np.eye(30)[None], pairs=None, floor=np.zeros((1, 6)), limit=127)

    inside = np.abs(found.steps) < 127
    wrong = np.abs(found.rows() - rows[0]) / found.scale[:, None]
    assert wrong[inside].max() <= 0.5 + 1e-3


@pytest.mark.parametrize("moments", [None, "zero", "one"])
def test_channels_of_zeros_and_inputs_that_are_never_seen_give_numbers(moments: str | None) -> None:
    """Pruned channels and dead inputs are common; a division by their zero is a NaN in every output."""
    rows = np.random.default_rng(1).normal(0, 1, (2, 3, 8))
    rows[0, 1] = 0
    second = None if moments is None else np.zeros((2, 8, 8)) if moments == "zero" else np.ones((2, 8, 8))

    found = round_weights(rows, second, pairs=paired_columns((2, 2, 2)), floor=np.full((2, 3), 1e-6))

    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    assert not found.steps[1].any()
    assert found.steps.shape == (6, 8)


def test_one_column_has_no_neighbour() -> None:
    """A depthwise 1x1 convolution."""
    rows = np.array([[[0.5], [-2.0], [0.0]]])

    found = round_weights(rows, np.full((1, 1, 1), 3.0), pairs=paired_columns((1, 1, 1)), floor=np.zeros((1, 3)))

    assert found.rows()[:, 0] == pytest.approx([0.5, -2.0, 0.0], rel=0.01)


def test_no_scale_is_below_what_the_bias_can_live_with() -> None:
    """A 32-bit bias counts in steps of input scale times weight scale."""
    rows = np.random.default_rng(4).normal(0, 1e-5, (1, 4, 9))
    floor = np.array([[1e-3, 1e-6, 1e-9, 1e-4]])

    found = round_weights(rows, None, pairs=None, floor=floor)

    assert (found.scale >= floor[0].astype(np.float32)).all()
    assert not found.steps[0].any()
    assert found.steps[2].any()
