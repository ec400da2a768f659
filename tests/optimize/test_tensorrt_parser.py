"""A real TensorRT parser and builder on our Q/DQ graphs: it takes them, and runs in INT8 what is meant to be.

TensorRT-RTX 1.7.1 builds without a GPU. What it does with each planted mistake is written down in `MISTAKES`: when a
newer one does something else, the lint's messages must be looked at again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from optimize.quantize import QuantizeOptions, Quantizer, read_model
from optimize.quantize.lint import lint
from tests.kit.float_models import SIDE, write_model
from tests.kit.qdq_models import MISTAKES, node, qdq_net
from tests.kit.topologies import TOPOLOGIES, pictures, saved
from tests.kit.trt_parser import TrtError, build_plan, int8_convs, int8_share, log_lines, plan_layers

pytestmark = pytest.mark.tensorrt


def test_what_is_no_onnx_is_refused() -> None:
    """With an error, not a plan; the parser itself says yes to such bytes, and the builder finds nothing in them."""
    with pytest.raises(TrtError, match="at least one output"):
        build_plan(b"hello")


def test_a_plan_in_another_form_is_an_error_and_not_zero_layers() -> None:
    """Its text is undocumented: a newer TensorRT must not look like one without INT8, or without anything."""
    with pytest.raises(TrtError, match="another form"):
        plan_layers(b"\x00ptrt no text that we know")


@pytest.mark.parametrize("opset", [13, 17, 19])
def test_a_good_qdq_graph_runs_in_int8_altogether(opset: int) -> None:
    """Ordinary, residual, depthwise and 1x1 convolutions."""
    assert int8_convs(qdq_net(opset=opset).SerializeToString()) == (4, 4)


def test_a_dynamic_batch_is_built_too() -> None:
    """With a profile; without one TensorRT refuses."""
    assert int8_convs(qdq_net(batch="n").SerializeToString()) == (4, 4)


def test_a_float_graph_has_no_int8_layer() -> None:
    """The counting can fail."""
    model = qdq_net()
    pairs = {n.name: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for n in model.graph.node:
        for i, name in enumerate(n.input):
            n.input[i] = pairs.get(name.removesuffix(".dq") + ".q", name) if name.endswith(".dq") else name
    for name in pairs:
        model.graph.node.remove(node(model, name))
        model.graph.node.remove(node(model, name.removesuffix(".q") + ".dq"))

    share = int8_share(model.SerializeToString())

    assert (share.int8, share.meant) == (0, 0)
    assert {"conv1", "conv2", "depthwise", "pointwise"} <= set(share.floats)


def outcome(model: onnx.ModelProto) -> str:
    """What TensorRT makes of it: its refusal's words, `float` or `taken`."""
    try:
        layers = plan_layers(build_plan(model.SerializeToString()))
    except TrtError as refusal:
        return str(refusal)
    return "taken" if sum(layer.is_int8 for layer in layers) == 4 else "float"


@pytest.mark.parametrize("name", MISTAKES)
def test_what_tensorrt_does_with_each_mistake_is_known(name: str) -> None:
    """And the lint knows it before: an error for all that TensorRT refuses."""
    mistake = MISTAKES[name]
    model = qdq_net()
    mistake.plant(model)

    seen = outcome(model)

    assert mistake.tensorrt in seen
    if seen not in ("taken", "float"):
        assert "error" in {f.severity for f in lint(model, targets=("trt",))}


def test_u8_from_zero_is_taken_with_a_warning_only() -> None:
    """All bytes above 127 would be read as something else: the lint refuses what TensorRT lets through."""
    model = qdq_net()
    MISTAKES["U8 from 0"].plant(model)
    build_plan(model.SerializeToString())

    assert any("Defaulting to INT8" in line for line in log_lines("WARNING"))


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Float parts in FP16, as fast strongly typed builds have them; scales too, for a DQ makes what its scale is."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def test_the_float_part_can_be_fp16() -> None:
    """Else the head of an INT8 engine runs in FP32."""
    assert int8_convs(in_half(qdq_net(opset=19)).SerializeToString()) == (4, 4)


def test_a_tiny_scale_becomes_zero_in_fp16_and_is_refused() -> None:
    """Why the lint calls it an error, though TensorRT takes it in FP32."""
    model = qdq_net(opset=19)
    MISTAKES["tiny scale"].plant(model)

    with pytest.raises(TrtError, match="must all be positive"):
        build_plan(in_half(model).SerializeToString())


def test_our_graph_for_tensorrt_runs_in_int8_where_it_is_meant_to(tmp_path: Path) -> None:
    """All convolutions but the head's."""
    quantizer = Quantizer(
        read_model(write_model(tmp_path / "m.onnx")), calibration(4), QuantizeOptions(method="minmax")
    )
    found = quantizer.quantize("trt")

    share = int8_share(found.graph)

    assert (share.int8, share.meant) == (2, 2)
    assert [f for f in lint(onnx.load_model_from_string(found.graph), targets=("trt",)) if f.severity == "error"] == []


def calibration(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_every_way_of_joining_layers_runs_in_int8(name: str, tmp_path: Path) -> None:
    """Where our quantizers stand is right only if TensorRT's fusions take them."""
    options = QuantizeOptions(method="minmax", equalize="none", correction="none")
    found = Quantizer(saved(TOPOLOGIES[name](), tmp_path / "m.onnx"), pictures(4), options).quantize("trt")

    share = int8_share(found.graph)

    assert share.meant == len(found.plan.layers)
    assert share.int8 == share.meant, share.floats
