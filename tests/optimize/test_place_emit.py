"""Where quantizers stand on each target; the graphs that come of it are valid, fuse, and keep what is float."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from optimize.quantize.emit import emit
from optimize.quantize.fusion import fuse
from optimize.quantize.graph import Graph, zones
from optimize.quantize.grid import MIN_SCALE, Affine, affine_of
from optimize.quantize.lint import lint
from optimize.quantize.model import read_model
from optimize.quantize.place import ASKED_REASON, SQUEEZE_REASON, Plan, Target, place
from optimize.quantize.prepare import prepare
from optimize.quantize.quantizer import QuantizeOptions, Quantizer
from optimize.quantize.ranges import candidates, collect
from optimize.quantize.reconstruct import Solution, Tuning, solve
from tests.kit.detectors import v8_like
from tests.kit.topologies import SIDE, TOPOLOGIES, WIDTH, Net, pictures, prepared, run, saved, snr

STEM = {"stem": [0]}
READS: dict[str, dict[Target, dict[str, list[int]]]] = {
    "plain": {"cpu": STEM | {"middle": [0], "last": [0], "pooled": [0]}, "trt": STEM | {"middle": [0], "last": [0]}},
    "residual": {
        "cpu": STEM
        | {"one_a": [0], "one_b": [0], "one_add": [0, 1], "two_a": [0], "two_b": [0], "two_add": [0, 1], "pooled": [0]},
        "trt": STEM | {"one_a": [0], "one_b": [0], "one_add": [1], "two_a": [0], "two_b": [0], "two_add": [1]},
    },
    "downsample": {
        "cpu": STEM | {"main_a": [0], "main_b": [0], "short": [0], "add": [0, 1], "pooled": [0]},
        "trt": STEM | {"main_a": [0], "main_b": [0], "short": [0], "add": [1]},
    },
    "concat": {
        "cpu": STEM | {"left": [0], "right": [0], "joined": [0, 1], "last": [0], "pooled": [0]},
        "trt": STEM | {"left": [0], "right": [0], "last": [0]},
    },
    "joined_relu": {
        "cpu": STEM | {"left": [0], "right": [0], "joined": [0, 1], "joined_relu": [0], "last": [0], "pooled": [0]},
        "trt": STEM | {"left": [0], "right": [0], "last": [0]},
    },
    "depthwise": {
        "cpu": STEM
        | {"expand0": [0], "deep0": [0], "project0": [0], "expand1": [0], "deep1": [0], "project1": [0], "pooled": [0]},
        "trt": STEM | {"expand0": [0], "deep0": [0], "project0": [0], "expand1": [0], "deep1": [0], "project1": [0]},
    },
    "relu6": {"cpu": STEM | {"deep": [0], "last": [0], "pooled": [0]}, "trt": STEM | {"deep": [0], "last": [0]}},
    "gate": {
        "cpu": STEM
        | {
            "wide": [0],
            "squeeze": [0],
            "reduce": [0],
            "expand": [0],
            "excite": [0],
            "gated": [0, 1],
            "last": [0],
            "pooled": [0],
        },
        "trt": STEM | {"wide": [0], "gated": [0, 1], "last": [0]},
    },
    "pooled": {"cpu": STEM | {"small": [0], "last": [0], "pooled": [0]}, "trt": STEM | {"last": [0]}},
    "resized": {"cpu": STEM | {"large": [0], "last": [0], "pooled": [0]}, "trt": STEM | {"last": [0]}},
}
"""Readers of quantized tensors, and which of their inputs; written by hand from each target's rules."""

TARGETS: tuple[Target, ...] = ("cpu", "trt")
FLOAT_OPERATORS = {"Conv", "FusedConv", "Relu", "Clip", "Add", "Mul", "Concat", "Sigmoid", "MaxPool", "Resize"}
"""What would be left of the body if something did not become an integer kernel (MaxPool and Resize read bytes too)."""


def plan_of(graph: Graph, target: Target, in_float: frozenset[str] = frozenset()) -> Plan:
    return place(graph, zones(graph, graph.outputs[0]), target, in_float)


def grids_of(graph: Graph, plan: Plan) -> dict[str, Affine]:
    """Minimum and maximum of a few pictures."""
    stats = collect(graph.model, "image", pictures(6), sorted(set(plan.tensors.values())))
    spans = {n: candidates(found, symmetric=plan.target == "trt")["minmax"] for n, found in stats.items()}
    return {name: affine_of(span.low, span.high, plan.target) for name, span in spans.items()}


def solved(graph: Graph, plan: Plan) -> Solution:
    return solve(graph, plan, grids_of(graph, plan), (), Tuning(correction="none"))


@functools.cache
def emitted(name: str, target: Target) -> tuple[Graph, Plan, bytes]:
    """Float graph, plan and integer graph of a topology, rounded to nearest."""
    graph = prepared(TOPOLOGIES[name]())
    plan = plan_of(graph, target)
    return graph, plan, emit(graph, plan, solved(graph, plan)).SerializeToString()


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", READS)
def test_who_reads_integers(name: str, target: Target) -> None:
    """One quantizer too many is a kernel in the way of fusion; one too few is a layer in float."""
    plan = plan_of(prepared(TOPOLOGIES[name]()), target)

    assert plan.reads == {(node, slot) for node, slots in READS[name][target].items() for slot in slots}


@pytest.mark.parametrize(
    ("name", "made", "source"), [("pooled", "small", "stem_relu"), ("resized", "large", "stem_relu")]
)
def test_what_only_moves_values_keeps_their_scale(name: str, made: str, source: str) -> None:
    """A second scale would be a second rounding, and ONNX Runtime would not run the operator on bytes."""
    plan = plan_of(prepared(TOPOLOGIES[name]()), "cpu")

    assert plan.tensors[made] == plan.tensors[source] == source


def test_a_joined_relu_does_not_share_a_quantizer_with_the_concat() -> None:
    """A Concat fuses only with a quantizer of its own behind it."""
    plan = plan_of(prepared(TOPOLOGIES["joined_relu"]()), "cpu")

    assert {"joined", "joined_relu"} <= set(plan.tensors)
    assert plan.tensors["joined"] == "joined"


def test_the_squeeze_stays_float_for_tensorrt_only() -> None:
    """One pixel: nothing to gain there, but accuracy to lose."""
    graph = prepared(TOPOLOGIES["gate"]())

    cpu, trt = (plan_of(graph, target) for target in TARGETS)

    assert {"reduce", "expand"} <= cpu.layers
    assert {"reduce", "expand"}.isdisjoint(trt.layers)
    assert trt.float_layers["reduce"] == SQUEEZE_REASON


@pytest.mark.parametrize("target", TARGETS)
def test_output_layers_of_a_detector_stay_float(target: Target) -> None:
    """Boxes in pixels and scores on one grid would leave no scores."""
    graph = Graph(prepare(v8_like(), "v8"))
    plan = place(graph, zones(graph, "output0"), target)

    outputs = {n.name for n in graph.nodes if n.op_type == "Conv" and n.name.startswith(("out_", "decode_"))}
    assert outputs
    assert set(plan.float_layers) == outputs
    assert {name for name, _ in plan.reads if name.startswith("decode_")} == set()
    assert {"stem", "neck_fine", "neck_box0"} <= plan.layers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_graphs_are_valid_and_near_the_float_one(name: str, target: Target) -> None:
    """Checked by ONNX, opened by ONNX Runtime, and about as near as 8 bits are."""
    graph, _, data = emitted(name, target)
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)

    fresh = pictures(12, seed=5)

    assert snr(run(graph.model.SerializeToString(), fresh), run(data, fresh)) > 18


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_a_cpu_runs_all_of_the_body_in_integers(name: str) -> None:
    """No layer falls back to float, and no activation or addition stands between integer kernels as float."""
    graph, plan, data = emitted(name, "cpu")

    found = fuse(data, source="image", head=zones(graph, "logits").head)

    assert [layer.name for layer in found.float_layers if layer.name in plan.layers] == []
    kernels = found.operators.get("QLinearConv", 0)
    assert kernels == len(plan.layers)
    assert {op: n for op, n in found.operators.items() if op in FLOAT_OPERATORS} == _beside_kernels(name)


def _beside_kernels(name: str) -> dict[str, int]:
    """Float names that are meant: the normalization's Mul, and operators that take bytes by their ordinary names."""
    own = {"pooled": {"MaxPool": 1}, "resized": {"Resize": 1}}
    return {"Mul": 1} | own.get(name, {})


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_a_fused_cpu_graph_is_within_a_few_steps_of_the_standard(name: str) -> None:
    """The same numbers whichever way it is run; a requantization may round one step the other way."""
    _, _, data = emitted(name, "cpu")
    fresh = pictures(8, seed=6)

    standard, fused = (run(data, fresh, is_optimized=on) for on in (False, True))

    assert np.abs(standard - fused).max() < 0.02 * np.abs(standard).max()


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_tensorrt_graphs_pass_the_lint_and_are_symmetric(name: str) -> None:
    """All that TensorRT refuses, or silently computes in float."""
    _, plan, data = emitted(name, "trt")
    model = onnx.load_model_from_string(data)
    values = constants(model)

    assert [f for f in lint(model, targets=("trt",)) if f.severity == "error"] == []
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(values[n.input[2]].dtype == np.int8 and not values[n.input[2]].any() for n in pairs)
    for layer in plan.layers:
        reader = node_of(model, node_of(model, layer).input[1])
        assert reader.op_type == "DequantizeLinear"
        assert onnx.helper.get_attribute_value(reader.attribute[0]) == 0
        assert values[reader.input[1]].ndim == 1


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_tensorrts_float_part_fits_fp16(name: str) -> None:
    """Engines hold the rest in FP16: a scale that becomes 0 makes every value NaN, a constant above 65,504 infinite."""
    _, _, data = emitted(name, "trt")
    model = onnx.load_model_from_string(data)
    values = constants(model)
    scales = {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}

    with np.errstate(over="ignore"):
        assert all(np.isfinite(v.astype(np.float16)).all() for v in values.values() if v.dtype == np.float32)
    assert all(float(values[scale].min()) >= 0.999 * MIN_SCALE for scale in scales)
    assert all((values[scale].astype(np.float16) > 0).all() for scale in scales)


def test_weights_for_tensorrt_lie_on_their_grid() -> None:
    """Quantizing them there gives these integers again, on whichever version."""
    _, plan, data = emitted("residual", "trt")
    model = onnx.load_model_from_string(data)
    values = constants(model)

    for layer in plan.layers:
        quantizer = next(
            n for n in model.graph.node if n.output[0] == node_of(model, layer).input[1][:-4] + "quantized"
        )
        steps = values[quantizer.input[0]] / values[quantizer.input[1]][:, None, None, None]
        assert np.abs(steps - np.rint(steps)).max() < 1e-4
        assert np.abs(steps).max() <= 127.001


@pytest.mark.parametrize("name", ["plain", "residual", "downsample", "joined_relu", "depthwise"])
def test_activations_before_a_symmetric_quantizer_are_still_there(name: str) -> None:
    """An asymmetric grid from 0 computes a ReLU by itself, a symmetric one lets negative values through."""
    graph, _, data = emitted(name, "trt")

    counts = [
        sum(n.op_type == "Relu" for n in model.graph.node) for model in (graph.model, onnx.load_from_string(data))
    ]

    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("target", TARGETS)
def test_layers_asked_in_float_are_float_and_the_others_stay_as_they_were(tmp_path: Path, target: Target) -> None:
    """A ranking compares graphs one layer apart; other weights must not move under it."""
    quantizer = Quantizer(saved(TOPOLOGIES["residual"](), tmp_path / "m.onnx"), pictures(12), QuantizeOptions())

    asked = frozenset({"one_b", "two_a"})
    whole, partly = (quantizer.quantize(target, in_float, is_fitted=False) for in_float in (frozenset(), asked))

    assert whole.plan.layers - partly.plan.layers == {"one_b", "two_a"}
    assert {f.name: f.why for f in partly.float_layers if f.name in ("one_b", "two_a")} == dict.fromkeys(
        ("one_b", "two_a"), ASKED_REASON
    )
    before, after = (onnx.load_model_from_string(found.graph) for found in (whole, partly))
    for name in partly.plan.layers:
        assert integer_parts(before, name) == integer_parts(after, name)
    floats = constants(quantizer.graph.model)
    for name in ("one_b", "two_a"):
        weights = constants(after)[node_of(after, name).input[1]]
        assert weights.dtype == np.float32
        assert np.array_equal(weights, floats[node_of(quantizer.graph.model, name).input[1]])
    onnx.checker.check_model(after, full_check=True)


def integer_parts(model: onnx.ModelProto, layer: str) -> Mapping[str, bytes]:
    """Every constant of a layer's weights and bias, as bytes."""
    values = constants(model)
    names = [name.removesuffix("/read") for name in node_of(model, layer).input[1:]]
    return {key: value.tobytes() for key, value in values.items() if any(key.startswith(name) for name in names)}


def test_all_layers_in_float_is_the_float_graph(tmp_path: Path) -> None:
    """The far end of every search."""
    quantizer = Quantizer(saved(TOPOLOGIES["plain"](), tmp_path / "m.onnx"), pictures(8), QuantizeOptions())
    found = quantizer.quantize("trt", frozenset(quantizer.layers))
    fresh = pictures(4, seed=3)

    assert found.plan.layers == frozenset()
    wanted = run(quantizer.graph.model.SerializeToString(), fresh)
    assert run(found.graph, fresh) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def with_bad_channels() -> onnx.ModelProto:
    """A channel of zeros with a large bias, one of tiny weights, and a dead tensor between two layers."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    weights = net.value("stem.weight").copy()
    weights[0] = 0
    weights[1] *= 1e-9
    net.constant("stem.weight", weights)
    bias = np.zeros(WIDTH)
    bias[:3] = 5000.0, 300.0, -3.0
    net.constant("stem.bias", bias)
    dead = net.feature(last, "dead", (WIDTH, WIDTH))
    net.constant("dead.bias", np.full(WIDTH, -1e6))
    behind = net.conv(dead, "behind", (WIDTH, WIDTH))
    net.constant("behind.bias", np.full(WIDTH, 4.0))
    return net.classify(net.add("Relu", net.add("Add", [behind, last], "add"), "out"))


@pytest.mark.parametrize("correction", ["none", "weights"])
def test_a_bias_never_overflows_32_bits(tmp_path: Path, correction: Any) -> None:
    """It counts in steps of input scale times weight scale, both of which are tiny where nothing is said."""
    options = QuantizeOptions(correction=correction, equalize="none")
    quantizer = Quantizer(saved(with_bad_channels(), tmp_path / "m.onnx"), pictures(12), options)
    graph = quantizer.quantize("cpu").graph
    fresh = pictures(6, seed=4)

    biases = [v for v in constants(onnx.load_model_from_string(graph)).values() if v.dtype == np.int32]
    wanted = run(quantizer.graph.model.SerializeToString(), fresh)
    standard, fused = (run(graph, fresh, is_optimized=on) for on in (False, True))

    assert max(int(np.abs(b.astype(np.int64)).max()) for b in biases) <= 2**30
    for found in (standard, fused):
        assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_outputs_and_opset_are_the_float_graphs(target: Target) -> None:
    """Whoever runs it knows it by them."""
    graph, _, data = emitted("gate", target)
    model = onnx.load_model_from_string(data)

    assert list(model.graph.input) == list(graph.model.graph.input)
    assert list(model.graph.output) == list(graph.model.graph.output)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, SIDE, SIDE, 3]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 6.0), (0.0, 1e-9), (-1.0, 3.0), (-2.0, 0.0), (0.0, 0.3), (-1e-12, 0.0), (0.0, 1e30)]
)
@pytest.mark.parametrize("target", TARGETS)
def test_every_grid_holds_zero_and_its_range(low: float, high: float, target: Target) -> None:
    """Padding is 0, and so is what a ReLU cuts: both must be exact."""
    grid = affine_of(low, high, target)
    step = grid.scale

    assert np.float32(step) == step
    assert step >= 0.999 * MIN_SCALE
    assert grid.low <= grid.zero_point <= grid.high
    assert (grid.low - grid.zero_point) * step <= low + 0.51 * step
    assert (grid.high - grid.zero_point) * step >= high - 0.51 * step
    if target == "trt":
        assert grid.zero_point == 0


def test_a_graph_that_only_this_plan_quantizes_gets_its_grids(tmp_path: Path) -> None:
    """With a layer in float, what pooling made of its integers can need a range of its own."""
    quantizer = Quantizer(saved(TOPOLOGIES["pooled"](), tmp_path / "m.onnx"), pictures(8), QuantizeOptions())

    for target in TARGETS:
        for layer in quantizer.layers:
            found = quantizer.quantize(target, frozenset({layer}))
            onnx.checker.check_model(onnx.load_model_from_string(found.graph), full_check=True)
            assert layer not in found.plan.layers


def test_a_read_model_is_not_changed_by_quantizing(tmp_path: Path) -> None:
    """The float graph goes into the bundle as well."""
    path = tmp_path / "m.onnx"
    model = saved(TOPOLOGIES["plain"](), path)

    Quantizer(model, pictures(8), QuantizeOptions()).quantize("cpu")

    assert model.proto == read_model(path).proto
