"""TensorRT's graph in FP16: the same numbers as near as FP16 is, uint8 in and float32 out, and what FP16 can't hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from optimize.errors import ModelError
from optimize.halved import ByOperator, halved
from optimize.quantize import QuantizeOptions, Quantizer
from optimize.quantize.graph import metadata_of
from optimize.quantize.half import halve, magnitudes
from tests.kit.planted_detectors import planted
from tests.kit.topologies import TOPOLOGIES, Net, pictures, saved
from tests.kit.trt_parser import TrtError, build_plan, int8_share

OPTIONS = QuantizeOptions(method="minmax", equalize="none", correction="none")
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def qdq(model: Any, folder: Path) -> bytes:
    return Quantizer(saved(model, folder / "m.onnx"), pictures(4), OPTIONS).quantize("trt").graph


def plain() -> Any:
    return TOPOLOGIES["plain"]()


def outputs(graph: bytes, picture: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Operator by operator: ONNX Runtime leaves out the rounding between two FP16 operators, and every overflow."""
    names = [output.name for output in onnx.load_model_from_string(graph).graph.output]
    return dict(zip(names, ByOperator(graph).run(names, picture), strict=True))


def kinds(graph: bytes) -> Mapping[str, int]:
    """Every tensor's type."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph), strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    found = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def operators(graph: bytes, kind: str) -> list[str]:
    return [n.output[0] for n in onnx.load_model_from_string(graph).graph.node if n.op_type == kind]


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_it_computes_what_the_float32_form_does(name: str, tmp_path: Path) -> None:
    """Within what FP16's eleven bits and a step of INT8 here and there make of random weights: over 40 dB."""
    graph = qdq(TOPOLOGIES[name](), tmp_path)

    found = halved(graph, pictures(4))

    assert found.graph is not None
    assert found.snr_db is not None
    assert 40 < found.snr_db < 100
    assert found.warnings == ()
    assert len(found.graph) < 0.8 * len(graph)


def test_the_camera_and_the_agent_notice_nothing(tmp_path: Path) -> None:
    """uint8 in, float32 out, under the same names; the metadata stay, but for the structure's own digest."""
    graph = qdq(plain(), tmp_path)
    half = halve(graph).graph
    before, after = onnx.load_model_from_string(graph), onnx.load_model_from_string(half)

    assert [(v.name, v.type) for v in after.graph.input] == [(v.name, v.type) for v in before.graph.input]
    assert [(v.name, v.type) for v in after.graph.output] == [(v.name, v.type) for v in before.graph.output]
    assert {**metadata_of(after), "structure": ""} == {**metadata_of(before), "structure": ""}
    assert outputs(half, pictures(1)[0])["logits"].dtype == np.float32


def test_everything_between_is_fp16_or_int8(tmp_path: Path) -> None:
    """A float32 tensor left over would run its layer at half the speed; only the output itself is one."""
    half = halve(qdq(plain(), tmp_path)).graph
    found = kinds(half)
    model = onnx.load_model_from_string(half)
    scales = {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}

    assert {name for name, kind in found.items() if kind == SINGLE} == {"logits"}
    assert {found[name] for name in scales} == {HALF}
    assert {v.version for v in model.opset_import if v.domain == ""} == {19}


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    """Bundles are compared by their hash."""
    graph = qdq(plain(), tmp_path)

    assert halve(graph).graph == halve(graph).graph


def test_weights_stand_on_the_same_steps(tmp_path: Path) -> None:
    """The quantizer chose each one; FP16 must not move a weight to its neighbour."""
    graph = qdq(TOPOLOGIES["residual"](), tmp_path)
    half = halve(graph).graph
    steps = [name for name in operators(graph, "QuantizeLinear") if "weight" in name]

    assert len(steps) == 5
    for name in steps:
        assert np.array_equal(tensor_of(graph, name), tensor_of(half, name))


def tensor_of(graph: bytes, name: str) -> NDArray[Any]:
    model = onnx.load_model_from_string(graph)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.INT8, [None] * 4))
    return outputs(model.SerializeToString(), pictures(1)[0])[name]


# What FP16 can't hold


def test_a_layer_with_a_scale_too_small_for_fp16_gives_float32_and_still_multiplies_in_int8(tmp_path: Path) -> None:
    """A channel that hardly says anything, as batch norms leave them; FP16 would make its scale 0 or a third off."""
    graph = qdq(with_quiet_channel(1e-5), tmp_path)
    found = halve(graph)
    expected, seen = (outputs(g, pictures(1)[0])["logits"] for g in (graph, found.graph))

    assert list(found.in_float32) == ["conv2"]
    assert "too few digits in FP16" in found.in_float32["conv2"]
    assert kinds(found.graph)["conv2"] == SINGLE
    assert np.abs(seen - expected).max() < 0.01 * np.abs(expected).max()


def with_quiet_channel(loudness: float) -> Any:
    """Weights of one channel of conv2 are tiny, and so is their scale."""
    net = Net()
    source = "x"
    for i in (1, 2):
        channels = 3 if i == 1 else 8
        weight = net.rng.normal(0, 0.3, (8, channels, 3, 3))
        weight[0] *= loudness if i == 2 else 1.0
        names = [net.constant(f"conv{i}.weight", weight), net.constant(f"conv{i}.bias", net.rng.normal(0, 0.1, 8))]
        source = net.add("Relu", net.add("Conv", [source, *names], f"conv{i}", pads=[1] * 4), f"relu{i}")
    return net.classify(source)


def test_a_channel_of_zeros_keeps_its_layer_in_fp16(tmp_path: Path) -> None:
    """Pruned networks have them; whatever its scale is, it gives nothing."""
    graph = qdq(with_quiet_channel(0.0), tmp_path)
    found = halve(graph)

    assert found.in_float32 == {}
    expected, seen = (outputs(g, pictures(1)[0])["logits"] for g in (graph, found.graph))
    assert np.abs(seen - expected).max() < 0.01 * np.abs(expected).max()


def test_values_beyond_fp16_stay_float32(tmp_path: Path) -> None:
    """Infinity in the middle of a network is no rounding error; calibration pictures show how far values go."""
    net = Net()
    names = [net.constant("conv1.weight", net.rng.normal(0, 1, (8, 3, 3, 3))), net.constant("conv1.bias", np.zeros(8))]
    seen = net.add("Relu", net.add("Conv", ["x", *names], "conv1", pads=[1] * 4), "relu1")
    loud = net.add("Mul", [seen, net.constant("gain", 6e4)], "loud")
    quiet = net.add("Mul", [loud, net.constant("loss", 1 / 6e4)], "quiet")
    graph = qdq(net.classify(quiet), tmp_path)

    blind = outputs(halve(graph).graph, pictures(1)[0])["logits"]
    found = halve(graph, magnitudes(graph, pictures(4)))
    expected, made = (outputs(g, pictures(1)[0])["logits"] for g in (graph, found.graph))

    assert not np.isfinite(blind).all()
    assert list(found.in_float32) == ["loud", "quiet"]
    assert "on calibration pictures, FP16 ends at 65504" in found.in_float32["loud"]
    assert np.abs(made - expected).max() < 0.01 * np.abs(expected).max()


def test_a_constant_beyond_fp16_keeps_its_operator_in_float32(tmp_path: Path) -> None:
    """Without any picture: it would be infinity."""
    net = Net()
    names = [net.constant("conv1.weight", net.rng.normal(0, 1, (8, 3, 3, 3))), net.constant("conv1.bias", np.zeros(8))]
    seen = net.add("Relu", net.add("Conv", ["x", *names], "conv1", pads=[1] * 4), "relu1")
    loud = net.add("Mul", [seen, net.constant("gain", 1e5)], "loud")
    graph = qdq(net.classify(net.add("Div", [loud, net.constant("loss", 1e5)], "quiet")), tmp_path)

    found = halve(graph)

    assert set(found.in_float32) == {"loud", "quiet"}
    assert "a constant of 1e+05 is beyond FP16's largest number, 65504" in found.in_float32["loud"]


def test_a_sum_on_the_way_to_a_mean_may_not_overflow(tmp_path: Path) -> None:
    """A mean that FP16 holds comes of a sum that it may not hold."""
    graph = qdq(plain(), tmp_path)
    pooled = operators(graph, "GlobalAveragePool")[0]

    found = halve(graph, {**magnitudes(graph, pictures(2)), pooled: 2e4})

    assert list(found.in_float32) == [pooled]
    assert "the sum on the way to its mean" in found.in_float32[pooled]


def test_a_guard_against_zero_is_not_lost(tmp_path: Path) -> None:
    """1e-12 is 0 in FP16, and x / (x + 0) of a black picture is no number."""
    net = Net()
    names = [net.constant("conv1.weight", net.rng.normal(0, 1, (8, 3, 3, 3))), net.constant("conv1.bias", np.zeros(8))]
    seen = net.add("Relu", net.add("Conv", ["x", *names], "conv1", pads=[1] * 4), "relu1")
    guarded = net.add("Add", [seen, net.constant("epsilon", 1e-12)], "guarded")
    graph = qdq(net.classify(net.add("Div", [seen, guarded], "ratio")), tmp_path)

    found = halve(graph)

    assert {"guarded", "ratio"} <= set(found.in_float32)
    assert "a constant of 1e-12 would be 0 in FP16" in found.in_float32["guarded"]
    assert np.isfinite(outputs(found.graph, np.full((1, 16, 16, 3), 128, np.uint8))["logits"]).all()


def test_boxes_are_decoded_in_float32(tmp_path: Path) -> None:
    """Eleven bits are half a pixel at 600; scores and boxes come from what the last convolutions gave."""
    model = saved(planted("own"), tmp_path / "m.onnx")
    side = model.input.height_px
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8) for _ in range(4)]
    graph = Quantizer(model, views, OPTIONS).quantize("trt").graph
    found = halve(graph, magnitudes(graph, views))
    seen = kinds(found.graph)

    assert {seen[name] for name in operators(graph, "Conv")} == {HALF}
    assert {seen[name] for name in operators(graph, "Concat")} == {SINGLE}
    expected, made = (outputs(g, views[0])["boxes"] for g in (graph, found.graph))
    assert np.abs(made - expected).max() < 0.25


def layer(net: Net, source: str, name: str, channels: int = 3) -> str:
    """A convolution without a bias to speak of, and a ReLU."""
    names = [net.constant(f"{name}.weight", net.rng.normal(0, 0.3, (8, channels, 3, 3)))]
    names.append(net.constant(f"{name}.bias", np.zeros(8)))
    return net.add("Relu", net.add("Conv", [source, *names], name, pads=[1] * 4), f"{name}_relu")


def test_a_quantizer_with_a_scale_too_small_for_fp16_reads_float32(tmp_path: Path) -> None:
    """In FP16 its scale would be half a digit, and 1 / scale infinite."""
    net = Net()
    small = net.add("Mul", [layer(net, "x", "conv1"), net.constant("loss", 1e-4)], "small")
    back = net.add("Mul", [layer(net, small, "conv2", 8), net.constant("gain", 1e4)], "back")
    graph = qdq(net.classify(back), tmp_path)

    found = halve(graph)
    expected, seen = (outputs(g, pictures(1)[0])["logits"] for g in (graph, found.graph))

    assert set(found.in_float32) == {"small/quantized", "conv2"}
    assert "too few digits in FP16" in found.in_float32["small/quantized"]
    assert np.abs(seen - expected).max() < 0.01 * np.abs(expected).max()


def test_weights_beyond_fp16_stay_on_their_steps(tmp_path: Path) -> None:
    """Their scale is a number of FP16, but they are not: infinity would be the last step for all of them."""
    graph = qdq(with_quiet_channel(1e6), tmp_path)

    found = halve(graph)

    assert found.in_float32 == {"conv2": "FP16 would move its weights to other steps"}
    (steps,) = (name for name in operators(found.graph, "QuantizeLinear") if name.startswith("conv2.weight"))
    assert np.array_equal(tensor_of(graph, "conv2.weight/quantized"), tensor_of(found.graph, steps))


@pytest.mark.parametrize(("value", "kind"), [(0.5, HALF), (None, SINGLE)])
def test_a_filled_tensor_becomes_fp16(tmp_path: Path, value: float | None, kind: int) -> None:
    """Its type stands in an attribute, and no cast is needed behind it; without one it is zeros in float32."""
    model = onnx.load_model_from_string(qdq(plain(), tmp_path))
    place, relu = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "Relu")
    made, relu.output[0] = relu.output[0], "before"
    filling = {} if value is None else {"value": onnx.helper.make_tensor("value", SINGLE, [1], [value])}
    more = (
        onnx.helper.make_node("Shape", ["before"], ["sides"], name="sides"),
        onnx.helper.make_node("ConstantOfShape", ["sides"], ["filled"], name="filled", **filling),
        onnx.helper.make_node("Add", ["before", "filled"], [made], name="raised"),
    )
    for i, node in enumerate(more):
        model.graph.node.insert(place + 1 + i, node)
    graph = model.SerializeToString()

    found = halved(graph, pictures(2))

    assert found.graph is not None
    assert found.snr_db is not None
    assert found.snr_db > 40
    assert kinds(found.graph)["filled"] == kind


@pytest.mark.parametrize("change", ["sub-graph", "foreign operator"])
def test_what_can_not_be_cast_leaves_the_bundle_without_it(change: str, tmp_path: Path) -> None:
    """One sentence; TensorRT then takes the graph in float32."""
    model = onnx.load_model_from_string(qdq(plain(), tmp_path))
    if change == "foreign operator":
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type, node.domain = "Gelu", "com.microsoft"
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    else:
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", [relu.input[0]], ["inside"])],
            "body",
            [],
            [onnx.ValueInfoProto(name="inside")],
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        relu.op_type, relu.input[:] = "If", ["yes"]
        relu.attribute.extend(onnx.helper.make_attribute(name, body) for name in ("then_branch", "else_branch"))
    graph = model.SerializeToString()
    with pytest.raises(ModelError):
        halve(graph)

    found = halved(graph, pictures(2))

    assert found.graph is None
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("no FP16 form of TensorRT's graph")


def test_an_opset_that_can_not_be_raised_is_refused_with_what_to_export(tmp_path: Path) -> None:
    """A sparse constant is in the standard, and not in what onnx converts."""
    model = onnx.load_model_from_string(qdq(plain(), tmp_path))
    values, places = np.array([0.5], np.float32), np.array([0], np.int64)
    sparse = onnx.helper.make_sparse_tensor(
        numpy_helper.from_array(values, "values"), numpy_helper.from_array(places, "places"), [1]
    )
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["sparse"], name="sparse", sparse_value=sparse))
    onnx.checker.check_model(model)

    with pytest.raises(ModelError, match="opset 17 can't be converted to 19") as refused:
        halve(model.SerializeToString())

    assert refused.value.hint == "export the float graph in opset 19 or 20"


def test_a_network_whose_values_vanish_in_fp16_has_no_such_graph(tmp_path: Path) -> None:
    """Each constant is one of FP16, their product is not: 0 / 0 where float32 has a ratio of small numbers."""
    net = Net()
    small = net.add("Mul", [layer(net, "x", "conv1"), net.constant("first", 1e-4)], "small")
    tiny = net.add("Mul", [small, net.constant("second", 1e-4)], "tiny")
    ratio = net.add("Div", [tiny, net.add("GlobalAveragePool", tiny, "mean")], "ratio")
    graph = qdq(net.classify(ratio), tmp_path)
    assert np.isfinite(outputs(graph, pictures(1)[0])["logits"]).all()

    found = halved(graph, pictures(4))

    assert (found.graph, found.snr_db) == (None, None)
    assert found.to_json()["made"] is False
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("no FP16 form of TensorRT's graph")
    assert found.warnings[0].endswith("FP16 gives values that are no numbers")


@pytest.mark.parametrize(("distance", "is_told"), [(500.0, False), (2000.0, True)])
def test_what_fp16_changes_by_more_than_int8_does_is_said(distance: float, is_told: bool, tmp_path: Path) -> None:
    """Far from 0 FP16 has steps of a half, and of two: the graph is made, and the user hears of it."""
    net = Net()
    far = net.add("Add", [layer(net, "x", "conv1"), net.constant("there", distance)], "far")
    back = net.add("Sub", [far, net.constant("back_again", distance)], "back")

    found = halved(qdq(net.classify(back), tmp_path), pictures(4))

    assert found.graph is not None
    assert found.snr_db is not None
    assert (found.snr_db < 25) == is_told
    told = f"TensorRT's graph in FP16 lies {found.snr_db:.1f} dB from its float32 form"
    assert found.warnings == ((told,) if is_told else ())


# The real TensorRT


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_tensorrt_runs_every_layer_of_it_in_int8(name: str, tmp_path: Path) -> None:
    """A cast between a dequantizer and its convolution, or a scale of another type, would end it without a word."""
    graph = qdq(TOPOLOGIES[name](), tmp_path)

    share = int8_share(halve(graph, magnitudes(graph, pictures(4))).graph)

    assert share.meant == int8_share(graph).meant > 0
    assert share.int8 == share.meant, share.floats


@pytest.mark.tensorrt
@pytest.mark.parametrize("loudness", [1.0, 1e-3, 1e-5, 1e-9, 0.0])
def test_tensorrt_takes_layers_of_any_loudness_in_int8(loudness: float, tmp_path: Path) -> None:
    """Also one that gives float32 between FP16 layers, and scales that are 0 in FP16."""
    share = int8_share(halve(qdq(with_quiet_channel(loudness), tmp_path)).graph)

    assert (share.int8, share.meant) == (2, 2)


@pytest.mark.tensorrt
def test_tensorrt_refuses_a_scale_of_another_type_than_its_input(tmp_path: Path) -> None:
    """The planted mistake: the check above can fail."""
    half = halve(qdq(plain(), tmp_path)).graph
    model = onnx.load_model_from_string(half)
    quantizer = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and "weight" not in n.output[0])
    scale = next(t for t in model.graph.initializer if t.name == quantizer.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale).astype(np.float32), scale.name))

    with pytest.raises(TrtError):
        build_plan(model.SerializeToString())
