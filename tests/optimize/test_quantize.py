"""From float to INT8: what is refused, what stays exact, and that the same inputs give the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.errors import ModelError
from optimize.quantize import FloatModel, IntegerGraph, QuantizeOptions, Quantizer, read_model
from optimize.quantize.byte_input import find_byte_input
from optimize.quantize.graph import Graph, zones
from tests.kit.float_models import CLASSES, SIDE, conv_classifier, picture, write_model


def pictures(count: int, *, seed: int = 1) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [picture(CLASSES[i % 3], rng)[None] for i in range(count)]


def logits(graph: bytes, tensors: list[NDArray[np.uint8]], *, optimized: bool = True) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"image": tensor})[0] for tensor in tensors])


def quantized_for_cpu(model: FloatModel, count: int, options: QuantizeOptions | None = None) -> IntegerGraph:
    return Quantizer(model, pictures(count), options).quantize("cpu")


def changed(change: Callable[[Any], None], path: Path, **options: Any) -> Path:
    """The kit's classifier with one thing changed."""
    model = onnx.load_model_from_string(conv_classifier(**options))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def as_float_nchw(model: Any) -> None:
    del model.graph.node[:2]
    model.graph.node[0].input[0] = "image"
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE]))


def with_dynamic_size(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"


def with_a_second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def with_other_outputs(model: Any) -> None:
    others = {"logits": "scores", "embedding": "features"}
    for node in model.graph.node:
        node.input[:] = [others.get(name, name) for name in node.input]
        node.output[:] = [others.get(name, name) for name in node.output]
    for value in model.graph.output:
        value.name = others.get(value.name, value.name)


def with_four_classes(model: Any) -> None:
    helper.set_model_props(model, {"classes": '["a", "b", "c", "d"]'})


def with_odd_classes(model: Any) -> None:
    helper.set_model_props(model, {"classes": "ok, scratch"})


def with_crop(model: Any) -> None:
    helper.set_model_props(model, {"input": '{"resize": "crop"}'})


def with_own_operator(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[5].domain = "com.example"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            as_float_nchw,
            "takes floats, and defect-opt.yaml does not say under preprocess what it was trained to be fed",
        ),
        (with_dynamic_size, "input image: got [1, 'height', 32, 3] uint8, expected [1, H, W, 3] uint8"),
        (with_a_second_input, "inputs: got ['image', 'more'], expected one, the picture"),
        (with_other_outputs, "outputs: got ['scores', 'features', 'cam'], expected one named logits"),
        (with_four_classes, "metadata classes: got 4 names, the logits hold 3 classes"),
        (with_odd_classes, "metadata classes: got ok, scratch, expected a JSON list of names"),
        (with_crop, "metadata resize: got crop, expected one of stretch, letterbox"),
        (with_own_operator, "uses operators outside the standard (com.example)"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_words(
    tmp_path: Path, change: Callable[[Any], None], expected: str
) -> None:
    """A graph that is taken in wrongly gives a bundle that is wrong with confidence."""
    with pytest.raises(ModelError) as caught:
        read_model(changed(change, tmp_path / "m.onnx"))

    assert expected in caught.value.message
    assert caught.value.hint is not None


@pytest.mark.parametrize("opset", [10, 99])
def test_an_opset_that_cannot_be_converted_is_refused(tmp_path: Path, opset: int) -> None:
    """Per-channel scales need 13, ONNX Runtime 1.17 on a device ends at 20; what lies near is converted."""

    def restamp(model: Any) -> None:
        model.opset_import[0].version = opset

    with pytest.raises(ModelError, match=f"opset: got {opset}, expected 11 to"):
        read_model(changed(restamp, tmp_path / "m.onnx"))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff not a model", conv_classifier()[:3000]])
def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    """A truncated download must not end in a traceback."""
    (tmp_path / "m.onnx").write_bytes(content)

    with pytest.raises(ModelError, match=r"is no ONNX model|breaks the ONNX standard"):
        read_model(tmp_path / "m.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The most common mistake of all."""
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        read_model(tmp_path / "none.onnx")


def test_an_int8_model_is_refused(tmp_path: Path) -> None:
    """Quantizing twice loses twice."""
    model = read_model(write_model(tmp_path / "m.onnx"))
    (tmp_path / "int8.onnx").write_bytes(quantized_for_cpu(model, 8).graph)

    with pytest.raises(ModelError, match="is quantized already"):
        read_model(tmp_path / "int8.onnx")


def test_the_int8_graph_classifies_as_the_float_graph_does(tmp_path: Path) -> None:
    """This is what it is for."""
    model = read_model(write_model(tmp_path / "m.onnx"))
    fresh = pictures(60, seed=9)

    int8 = quantized_for_cpu(model, 48).graph

    labels = [i % 3 for i in range(60)]
    assert logits(conv_classifier(), fresh).argmax(axis=1).tolist() == labels
    assert logits(int8, fresh).argmax(axis=1).tolist() == labels


def test_it_keeps_inputs_outputs_and_metadata(tmp_path: Path) -> None:
    """The manifest and the engine know the graph by them, whichever graph it is."""
    model = read_model(write_model(tmp_path / "m.onnx"))

    int8 = onnx.load_model_from_string(quantized_for_cpu(model, 8).graph)

    assert [value.name for value in int8.graph.input] == ["image"]
    assert [value.name for value in int8.graph.output] == ["logits", "embedding", "cam"]
    kept = {e.key: e.value for e in int8.metadata_props if e.key != "structure"}  # its own, see `optimize.structure`
    assert kept == {e.key: e.value for e in model.proto.metadata_props}


def test_the_first_layer_reads_the_cameras_bytes(tmp_path: Path) -> None:
    """With (x - 128) / 128 the bytes are the quantized input: no cast, no rounding, nothing to pay."""
    quantized = quantized_for_cpu(read_model(write_model(tmp_path / "m.onnx")), 8)

    assert quantized.fusion is not None
    assert quantized.fusion.reads_bytes
    assert quantized.warnings == ()
    assert {"Cast", "Sub", "Mul", "QuantizeLinear"}.isdisjoint(quantized.fusion.operators)


def test_a_normalization_that_differs_by_channel_is_kept_and_said(tmp_path: Path) -> None:
    """It can't be one scale and one zero point; the graph must stay right, and the user learn what it costs."""
    quantized = quantized_for_cpu(read_model(write_model(tmp_path / "m.onnx", normalization="imagenet")), 24)

    assert quantized.fusion is not None
    assert not quantized.fusion.reads_bytes
    assert "normalization" in quantized.warnings[0]
    assert logits(quantized.graph, pictures(30, seed=4)).argmax(axis=1).tolist() == [i % 3 for i in range(30)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("Sub", 128.0), ("Div", 128.0)], (1 / 128, 128)),
        ([("Div", 255.0)], (1 / 255, 0)),
        ([("Mul", 2 / 255), ("Sub", 128 * 2 / 255)], (2 / 255, 128)),
        ([("Div", 255.0), ("Sub", 0.5)], None),  # zero point 127.5
        ([("Mul", -1.0)], None),
        ([("Sub", -10.0)], None),  # zero would lie below the smallest byte
        ([("Sub", [[[[1.0]], [[2.0]], [[3.0]]]])], None),
    ],
)
def test_bytes_are_taken_over_only_where_that_is_exact(
    steps: list[tuple[str, Any]], expected: tuple[float, int] | None
) -> None:
    """Half a step of offset would shift every pixel."""
    nodes = [helper.make_node("Cast", ["image"], ["t0"], to=TensorProto.FLOAT)]
    constants = []
    for i, (operator, value) in enumerate(steps):
        constants.append(numpy_helper.from_array(np.asarray(value, np.float32), f"c{i}"))
        nodes.append(helper.make_node(operator, [f"t{i}", f"c{i}"], [f"t{i + 1}"]))
    constants.append(numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "w"))
    nodes.append(helper.make_node("Transpose", [f"t{len(steps)}"], ["x"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Conv", ["x", "w"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )

    found = find_byte_input(Graph(helper.make_model(graph)), "image")

    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.scale == pytest.approx(expected[0], rel=1e-6)
        assert found.zero_point == expected[1]
        assert found.perm == (0, 3, 1, 2)


@pytest.mark.parametrize("head", ["gemm", "conv"])
def test_the_head_stays_float(tmp_path: Path, head: str) -> None:
    """It costs nothing there, and its outputs are read by people and thresholds."""
    quantized = quantized_for_cpu(read_model(write_model(tmp_path / "m.onnx", head=head)), 8)

    assert sorted(layer.name for layer in quantized.float_layers) == ["cam_conv", "linear"]
    assert all(layer.why.startswith("head") for layer in quantized.float_layers)
    assert quantized.fusion is not None
    assert quantized.fusion.operators["QLinearConv"] == 2


def test_a_residual_body_ends_at_its_last_activation() -> None:
    """The add and the activation behind the last convolution fuse with it; pooling and what follows is the head."""
    weights = [numpy_helper.from_array(np.zeros((4, 4, 3, 3), np.float32), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Sigmoid", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 4, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
            weights,
        )
    )

    found = zones(Graph(onnx.shape_inference.infer_shapes(model)), "logits")

    assert found.preamble == {"x"}
    assert found.head == {"f", "g", "logits"}


@pytest.mark.parametrize("weight_bits", [7, 8])
def test_it_gives_the_same_answers_fused_and_simulated(tmp_path: Path, weight_bits: Literal[7, 8]) -> None:
    """x86 without VNNI adds two products with saturation at 16 bits; what was measured must hold on every CPU."""
    options = QuantizeOptions(weight_bits=weight_bits)
    quantized = quantized_for_cpu(read_model(write_model(tmp_path / "m.onnx")), 24, options)
    model = onnx.load_model_from_string(quantized.graph)
    fresh = pictures(12, seed=8)

    largest = max(int(np.abs(w.astype(np.int32)).max()) for w in int8_weights(model))
    fused, simulated = logits(quantized.graph, fresh), logits(quantized.graph, fresh, optimized=False)

    assert largest <= (127 if weight_bits == 8 else 63)
    # One step of one feature among 16 * 256 that are averaged is nothing; a saturated sum is dozens of steps.
    assert np.abs(fused - simulated).max() < 0.005 * np.abs(simulated).max()


def int8_weights(model: Any) -> list[NDArray[np.int8]]:
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    return [array for array in arrays if array.ndim == 4]


def test_eight_bits_use_more_than_seven(tmp_path: Path) -> None:
    """Half of the steps would be wasted, and with them 6 dB."""
    quantized = quantized_for_cpu(read_model(write_model(tmp_path / "m.onnx")), 8, QuantizeOptions(weight_bits=8))

    weights = int8_weights(onnx.load_model_from_string(quantized.graph))

    assert all(int(np.abs(w.astype(np.int32)).max()) > 64 for w in weights)


@pytest.mark.parametrize("method", ["auto", "minmax", "percentile", "mse", "kl"])
def test_every_method_prints_nothing_and_still_classifies(
    tmp_path: Path, method: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """`--json` promises one document on standard output."""
    quantized = quantized_for_cpu(read_model(write_model(tmp_path / "m.onnx")), 24, QuantizeOptions(method=method))

    assert capfd.readouterr().out == ""
    found = logits(quantized.graph, pictures(30, seed=4)).argmax(axis=1).tolist()
    assert sum(a == i % 3 for i, a in enumerate(found)) >= 27


def test_the_same_inputs_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Otherwise nobody can check that a bundle was made of what it says; sets ordered by a random hash are enough."""
    path = write_model(tmp_path / "m.onnx")
    script = (
        "import hashlib, pathlib, sys; from optimize.quantize import *; from tests.optimize.test_quantize import *;"
        f"print(hashlib.sha256(quantized_for_cpu(read_model(pathlib.Path({str(path)!r})), 8).graph).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(root)}

    mine = hashlib.sha256(quantized_for_cpu(read_model(path), 8).graph).hexdigest()
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)

    assert done.stdout.strip() == mine


def test_the_exporters_comments_are_left_out(tmp_path: Path) -> None:
    """Exporters write stack traces with paths of their machine into the file; a device need not know them."""

    def comment(model: Any) -> None:
        model.doc_string = "made by mallory"
        model.graph.node[4].doc_string = "/home/mallory/train.py:12"

    model = read_model(changed(comment, tmp_path / "m.onnx"))

    assert b"mallory" not in model.proto.SerializeToString()
    assert b"mallory" not in quantized_for_cpu(model, 8).graph
