"""The structure digest: what it keeps apart, and what it does not see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.engines.onnxrt import facts_of_graph
from optimize.quantize import read_model
from optimize.quantize.model import bytes_from_model
from optimize.structure import KEY, stamp_structure, structure_of
from tests.kit.float_models import conv_classifier, write_model


def model() -> onnx.ModelProto:
    return onnx.load_model_from_string(conv_classifier())


def set_tensor(proto: onnx.ModelProto, name: str, values: Any) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))


def other_stride(proto: onnx.ModelProto) -> None:
    next(a for a in proto.graph.node[4].attribute if a.name == "strides").ints[:] = [1, 1]


def one_channel_less(proto: onnx.ModelProto) -> None:
    set_tensor(proto, "first", np.zeros((7, 3, 5, 5)))


def half_precision(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "second.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(16, dtype=np.float16), "second.bias"))


def without_relu(proto: onnx.ModelProto) -> None:
    del proto.graph.node[5]


def wired_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.node[6].input[0] = "c1"


def other_size(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 48


@pytest.mark.parametrize(
    "change", [other_stride, one_channel_less, half_precision, without_relu, wired_elsewhere, other_size]
)
def test_what_changes_the_time_changes_the_digest(change: Callable[[onnx.ModelProto], None]) -> None:
    """Else a pruned network would be chosen by the timing of the whole one."""
    changed = model()
    change(changed)

    assert structure_of(changed) != structure_of(model())


def test_weights_names_and_metadata_do_not_count() -> None:
    """A network that is trained longer keeps its timing."""
    changed = model()
    set_tensor(changed, "first", np.random.default_rng(0).normal(size=(8, 3, 5, 5)))
    helper.set_model_props(changed, {"arch": "something else"})
    for node in changed.graph.node:
        node.name = f"renamed/{node.name}"
        node.input[:] = ["other" if name == "c1" else name for name in node.input]
        node.output[:] = ["other" if name == "c1" else name for name in node.output]
    stamp_structure(changed)

    assert structure_of(changed) == structure_of(model())


def test_whole_numbers_that_shape_the_graph_count() -> None:
    """The target of a Reshape is no weight."""

    def reshaped(shape: list[int]) -> onnx.ModelProto:
        node = helper.make_node("Reshape", ["x", "shape"], ["y"])
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        constant = numpy_helper.from_array(np.array(shape), "shape")
        return helper.make_model(helper.make_graph([node], "g", [value], [out], [constant]))

    assert structure_of(reshaped([2, 8])) != structure_of(reshaped([8, 2]))


def test_what_is_written_can_be_read_on_a_device_without_onnx(tmp_path: Path) -> None:
    """ONNX Runtime gives back the digest; stamping again changes nothing."""
    found = read_model(write_model(tmp_path / "m.onnx"))

    data = bytes_from_model(found.proto)

    assert facts_of_graph(data).metadata[KEY] == structure_of(found.proto)
    assert bytes_from_model(onnx.load_model_from_string(data)) == data
