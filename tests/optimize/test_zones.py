"""What stays float: the decoding of detectors, the pooling and linear layer of classifiers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from optimize.quantize.graph import HEAD_REASON, Graph, Zones, zones
from optimize.quantize.place import place
from tests.kit.detectors import CLASSES, GraphBuilder, retina_like, ssd_like, v5_like, v8_like, yolox_like
from tests.kit.float_models import conv_classifier

DETECTORS = {
    "v8": v8_like,
    "v8-matmul": lambda: v8_like(mean="MatMul"),
    "v5": v5_like,
    "yolox": yolox_like,
    "ssd": ssd_like,
    "retina": retina_like,
}


def zones_of(model: Any) -> tuple[Graph, Zones]:
    graph = Graph(model)
    return graph, zones(graph, graph.outputs)


def names(graph: Graph, *prefixes: str) -> set[str]:
    return {node.output[0] for node in graph.nodes if node.output[0].startswith(prefixes)}


@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS.keys())
def test_a_detector_is_float_from_its_output_layers_on_and_nowhere_before(make: Callable[[], Any]) -> None:
    """Integers there give scores of exactly 0; floats before it give the speed away."""
    graph, found = zones_of(make())

    body = names(graph, "stem", "backbone", "neck")
    everything = {node.output[0] for node in graph.nodes}
    assert found.output_layers == names(graph, "out_")
    assert found.head == everything - body
    assert found.preamble == frozenset()


@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS.keys())
def test_every_node_of_the_head_has_a_reason_in_words(make: Callable[[], Any]) -> None:
    """The report and the lint say why a layer is not in integers."""
    _, found = zones_of(make())

    assert set(found.reasons) == found.head
    assert all(why.startswith("head: ") and len(why) > 30 for why in found.reasons.values())


def test_the_concat_of_boxes_and_scores_says_what_one_scale_would_do() -> None:
    """It is the fault that users report: every score 0 after quantization."""
    _, found = zones_of(v8_like())

    assert "every score would be 0" in found.reasons["output0"]
    assert "DFL" in found.reasons["decode_mean"]


@pytest.mark.parametrize("target", ["cpu", "trt"])
@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS.keys())
def test_no_quantizer_stands_in_a_detection_head(make: Callable[[], Any], target: Any) -> None:
    """Neither emitter may put one where zones say float, nor share a scale over the head's Concat."""
    graph, found = zones_of(make())

    plan = place(graph, found, target)

    readers = {node.name for node in graph.nodes if node.output[0] in found.head}
    decoding = readers - {node.name for node in graph.nodes if node.output[0] in found.output_layers}
    assert plan.layers == {n.name for n in graph.nodes if n.op_type == "Conv" and n.output[0] not in found.head}
    assert not {name for name, _ in plan.reads} & decoding


@pytest.mark.parametrize("bins", [4, 16])
def test_distances_that_are_spaced_otherwise_are_a_fixed_mean_too(bins: int) -> None:
    """Some exporters fold the stride into the bins; the softmax before it tells what it is."""
    model = v8_like(bins=bins)
    weights = next(t for t in model.graph.initializer if t.name == "bins")
    weights.CopyFrom(
        onnx.numpy_helper.from_array(np.geomspace(1, 9, bins, dtype=np.float32).reshape(-1, bins, 1, 1), "bins")
    )
    weights.dims[:] = [1, bins, 1, 1]

    graph, found = zones_of(model)

    assert found.output_layers == names(graph, "out_")
    assert names(graph, "decode") <= found.head


def test_one_output_of_several_does_not_hide_the_others() -> None:
    """Read for its scores alone, the box branch would be in nobody's way and the neck before it the end."""
    graph, found = zones_of(retina_like())

    assert {"out_box0", "out_box1", "out_cls0", "out_cls1"} == found.output_layers
    assert not found.head & names(graph, "neck")


def test_a_second_stage_on_chosen_boxes_is_head() -> None:
    """Else its convolution would be the last one, and the decoding and suppression before it body."""
    build = GraphBuilder()
    level = build.feature("images", "stem", (3, 8), stride=4)
    box = build.reshape(build.conv(level, "out_box", (8, 4), kernel=1), "decode_box", [1, 64, 4])
    scores = build.add("Sigmoid", build.conv(level, "out_cls", (8, CLASSES), kernel=1), "decode_sigmoid")
    rows = build.reshape(scores, "decode_scores", [1, CLASSES, 64])
    build.add("NonMaxSuppression", [box, rows, build.constant("count", [10], np.int64)], "decode_picked")
    build.add("Cast", "decode_picked", "decode_numbers", to=onnx.TensorProto.FLOAT)
    regions = build.reshape(box, "decode_regions", [64, 4])
    batch = build.constant("batch", np.zeros(64), np.int64)
    cut = build.add("RoiAlign", [level, regions, batch], "decode_cut", output_height=4, output_width=4)
    build.feature(cut, "decode_second", (8, 2))
    graph, found = zones_of(build.model({"decode_numbers": ["n", 3], "decode_second_relu": [64, 2, 4, 4]}))

    assert found.head == names(graph, "out_", "decode_")
    assert found.output_layers == {"out_box", "out_cls"}
    assert "compares" in found.reasons["decode_picked"]


def squeeze_net(*, after_block: bool) -> Any:
    """A classifier with a squeeze-and-excite block, before another convolution or at the very end."""
    build = GraphBuilder()
    x = build.feature("images", "stem", (3, 8), stride=4)
    x = build.conv(x, "backbone_conv", (8, 8))
    pooled = build.add("GlobalAveragePool", x, "backbone_squeeze")
    small = build.add("Relu", build.conv(pooled, "backbone_fc1", (8, 4), kernel=1), "backbone_relu")
    gate = build.add("Sigmoid", build.conv(small, "backbone_fc2", (4, 8), kernel=1), "backbone_gate")
    x = build.add("Mul", [x, gate], "backbone_product")
    if after_block:
        x = build.feature(x, "backbone_last", (8, 8))
    x = build.add("Flatten", build.add("GlobalAveragePool", x, "pool"), "flat")
    weights = build.constant("kernel", np.ones((8, 5)))
    build.add("Gemm", [x, weights], "logits")
    return build.model({"logits": [1, 5]})


@pytest.mark.parametrize("after_block", [True, False])
def test_a_squeeze_block_is_body_also_behind_the_last_convolution(after_block: bool) -> None:
    """ONNX Runtime loses its channels-last chain when the block is float: 58 transposes against 2."""
    graph, found = zones_of(squeeze_net(after_block=after_block))

    assert found.head == {"pool", "flat", "logits"}
    assert found.output_layers == frozenset()
    assert names(graph, "stem", "backbone").isdisjoint(found.head)


def test_attention_between_convolutions_is_body() -> None:
    """Its softmax is no head: features follow."""
    build = GraphBuilder()
    x = build.feature("images", "stem", (3, 8), stride=4)
    flat = build.reshape(x, "backbone_tokens", [1, 8, 64])
    turned = build.add("Transpose", flat, "backbone_turned", perm=[0, 2, 1])
    weights = build.add("Softmax", build.add("MatMul", [turned, flat], "backbone_match"), "backbone_shares", axis=2)
    mixed = build.add("MatMul", [flat, weights], "backbone_mixed")
    x = build.conv(build.reshape(mixed, "backbone_picture", [1, 8, 8, 8]), "backbone_project", (8, 8), kernel=1)
    build.conv(build.feature(x, "neck", (8, 8)), "out_boxes", (8, 4), kernel=1)
    graph, found = zones_of(build.model({"out_boxes": [1, 4, 8, 8]}))

    assert found.head == found.output_layers == {"out_boxes"}
    assert names(graph, "backbone").isdisjoint(found.head)


def test_a_mask_is_an_output_layer() -> None:
    """A segmentation net's last convolution and sigmoid are read by thresholds as a detector's are."""
    build = GraphBuilder()
    x = build.feature("images", "stem", (3, 8), stride=2)
    build.add("Sigmoid", build.conv(x, "out_mask", (8, 1), kernel=1), "mask")
    _, found = zones_of(build.model({"mask": [1, 1, 16, 16]}))

    assert found.head == {"out_mask", "mask"}
    assert found.output_layers == {"out_mask"}


@pytest.mark.parametrize("head", ["gemm", "conv"])
def test_a_classifier_keeps_all_its_convolutions(head: str) -> None:
    """The special case: pooling follows the last convolution, so what it makes is features."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(conv_classifier(head=head)))

    found = zones(Graph(model), "logits")

    assert found.preamble == {"float", "nchw", "centred", "normalized"}
    assert found.head == {"pooled", "embedding", "cam", "logits"} | ({"linear4"} if head == "conv" else set())
    assert set(found.reasons.values()) == {HEAD_REASON}
    assert found.output_layers == frozenset()


def test_a_classifier_is_the_same_whether_its_map_is_asked_for_or_not() -> None:
    """The activation map is for people; it must not decide what is quantized."""
    graph = Graph(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(conv_classifier())))

    assert zones(graph, "logits").head == zones(graph, graph.outputs).head


def test_class_maps_that_are_pooled_are_features() -> None:
    """SqueezeNet's last convolution holds a quarter of its work."""
    build = GraphBuilder()
    x = build.feature("images", "stem", (3, 8), stride=2)
    x = build.conv(x, "backbone_maps", (8, 5), kernel=1)
    build.add("Flatten", build.add("GlobalAveragePool", x, "pool"), "logits")
    _, found = zones_of(build.model({"logits": [1, 5]}))

    assert found.head == {"pool", "logits"}


def test_features_that_a_linear_layer_reads_without_pooling_are_features() -> None:
    """VGG's form; its last convolution and ReLU are in integers like all others."""
    build = GraphBuilder()
    x = build.feature(build.feature("images", "stem", (3, 8), stride=4), "backbone", (8, 8), stride=2)
    flat = build.add("Flatten", build.add("MaxPool", x, "pool", kernel_shape=[2, 2], strides=[2, 2]), "flat")
    build.add("Gemm", [flat, build.constant("kernel", np.ones((32, 5)))], "logits")
    _, found = zones_of(build.model({"logits": [1, 5]}))

    assert found.head == {"pool", "flat", "logits"}
