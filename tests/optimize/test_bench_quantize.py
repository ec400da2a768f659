"""The parts of `tools/bench quantize`: a bench that measures wrongly praises wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.bundle import InputSpec
from tests.kit.float_models import CLASSES, SIDE, conv_classifier, write_parts
from tools.bench_quantize.checks import NAMES, speed_checks, worst
from tools.bench_quantize.figures import Figure, Resampling, absent, median_ratio, noise_powers, points
from tools.bench_quantize.hostile import hostile, unclipped
from tools.bench_quantize.report import document_of, holds, tables
from tools.bench_quantize.sessions import open_session, outputs_of
from tools.bench_quantize.theirs import ort_static, preprocessed
from tools.bench_quantize.views import Source, read_split, views_of


def source(tmp_path: Path) -> Source:
    root = write_parts(tmp_path / "parts", {"test": 2, "calib": 4})
    return Source(root=root, spec=InputSpec(width_px=SIDE, height_px=SIDE), classes=CLASSES)


def depthwise_net() -> bytes:
    """Convolution, ReLU6, depthwise convolution, ReLU6, projection, pooling: a block of MobileNetV2."""
    rng = np.random.default_rng(2)
    shapes = {"expand": (8, 3, 1, 1), "depthwise": (8, 1, 3, 3), "project": (4, 8, 1, 1)}
    weights = {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    biases = {f"{name}.bias": rng.normal(0, 0.1, shape[0]) for name, shape in shapes.items()}
    constants = {**weights, **biases, "zero": 0.0, "six": 6.0}
    nodes = [
        helper.make_node("Conv", ["x", "expand", "expand.bias"], ["a"]),
        helper.make_node("Clip", ["a", "zero", "six"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise", "depthwise.bias"], ["c"], group=8, pads=[1] * 4),
        helper.make_node("Clip", ["c", "zero", "six"], ["d"]),
        helper.make_node("Conv", ["d", "project", "project.bias"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "depthwise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def test_a_hostile_net_can_not_be_made_of_a_net_without_depthwise_layers() -> None:
    """Nothing scaled would be a hostile net that is not hostile."""
    with pytest.raises(ValueError, match="depthwise"):
        hostile(conv_classifier())


def test_the_hostile_net_is_the_same_function_with_channels_apart() -> None:
    """It must be the quantization that ruins it, and the ranges of its channels must be what is hostile."""
    friendly = unclipped(depthwise_net())
    planted = hostile(friendly)

    images = np.random.default_rng(1).normal(0, 1, (6, 3, 8, 8)).astype(np.float32)
    before, after = (outputs_of(open_session(graph, "exact"), images) for graph in (friendly, planted))

    assert np.abs(before - after).max() < 1e-3 * np.abs(before).max()
    assert _spread(planted) > 10 * _spread(friendly)


def test_the_hostile_net_is_ruined_by_one_scale_per_tensor() -> None:
    """That is what it is for."""
    friendly = unclipped(depthwise_net())
    images = np.random.default_rng(1).normal(0, 1, (16, 3, 8, 8)).astype(np.float32)
    noise = {}
    for name, graph in {"friendly": friendly, "hostile": hostile(friendly)}.items():
        naive = ort_static(preprocessed(graph), [image[None] for image in images], reduce_range=False)
        reference, found = (outputs_of(open_session(g, "exact"), images) for g in (graph, naive))
        signal, power = noise_powers(reference, found)
        noise[name] = power.sum() / signal.sum()

    assert noise["hostile"] > 30 * noise["friendly"]


def test_views_are_fixed_and_differ_from_one_another(tmp_path: Path) -> None:
    """A drop measured next year must be of the same pictures; and 20 copies of one picture tell nothing new."""
    parts = source(tmp_path)

    first, again = views_of(parts, "test", each=3), views_of(parts, "test", each=3)

    assert first.digest == again.digest
    assert len(first) == 2 * len(CLASSES) * 3
    assert len({image.tobytes() for image in first.images}) == len(first)


def test_a_view_does_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    """So that a quick run looks at a part of what a full one does."""
    parts = source(tmp_path)

    few, many = views_of(parts, "test", each=1), views_of(parts, "test", each=3)

    assert np.array_equal(few.images, many.images[::3])


def test_views_of_one_image_share_its_group_and_label(tmp_path: Path) -> None:
    """Else the interval would count 20 views of one steel as 20 pieces of steel."""
    views = views_of(source(tmp_path), "test", each=3)

    assert all(len(set(part)) == 1 for part in np.split(views.groups, len(views) // 3))
    assert [CLASSES[label] for label in views.labels[::6]] == list(CLASSES)


def test_calibration_pictures_are_the_images_themselves(tmp_path: Path) -> None:
    """Ranges come from what a camera gives."""
    parts = source(tmp_path)

    calibration = read_split(parts, "calib", limit=6)

    assert calibration.images.shape == (6, SIDE, SIDE, 3)
    assert calibration.tensors()[0].shape == (1, SIDE, SIDE, 3)


def test_an_interval_counts_groups_and_not_pictures() -> None:
    """A hundred equal pictures of one group are one observation: the interval must be as wide as without copies."""
    column = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    alone = Resampling(np.arange(5)).mean(column)
    copied = Resampling(np.repeat(np.arange(5), 100)).mean(np.repeat(column, 100))

    assert copied == alone
    assert alone.value == pytest.approx(0.6)
    assert alone.low is not None
    assert alone.high is not None
    assert alone.low < 0.3
    assert alone.high > 0.9


def test_a_drop_is_float_minus_int8_in_points() -> None:
    """The sign decides who is praised."""
    right, other = np.array([True, True, True, False]), np.array([True, True, False, False])

    assert Resampling(np.arange(4)).mean(points(right, other)).value == 25


def test_a_gain_is_positive_where_our_noise_is_smaller() -> None:
    """A tenth of the noise is 10 dB."""
    signal, ours, theirs = np.full(4, 8.0), np.full(4, 0.1), np.full(4, 1.0)

    assert Resampling(np.arange(4)).snr_gain(signal, ours, theirs).value == pytest.approx(10)


def test_a_speed_ratio_above_one_means_ours_is_faster() -> None:
    """Theirs takes twice as long."""
    figure = median_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])

    assert (figure.value, figure.low, figure.high) == (2, 2, 2)


def test_the_worst_of_nets_is_absent_where_one_was_not_measured() -> None:
    """`At least as accurate on every net` is not shown by some of them."""
    good = Figure(value=1.0, low=0.5, high=1.5)

    assert worst([good, Figure(value=-1.0, low=-2.0, high=0.0)]).value == -1
    assert worst([good, absent("lite0.onnx is not there")]).why == "lite0.onnx is not there"


def test_speed_is_compared_with_the_fastest_of_a_peer() -> None:
    """Beating its slowest variant is no win."""
    times = {"resnet18": {"float": [9.0], "ours": [3.0], "ORT slow": [6.0], "ORT fast": [3.0], "NNCF default": [12.0]}}

    found = speed_checks({**times, "mobilenetv2": times["resnet18"]}, has_vnni=True)

    assert found["resnet18_speedup"].value == 3
    assert found["vs_ort_speed"].value == 1
    assert found["vs_nncf_speed"].value == 4


def test_without_vnni_a_speedup_says_why_it_is_small() -> None:
    """A reader must not take this machine's ratio for the product's."""
    times: dict[str, dict[str, list[float]] | str] = {
        "resnet18": {"float": [3.0], "ours": [3.0]},
        "mobilenetv2": "mobilenetv2.onnx is not there",
    }

    found = speed_checks(times, has_vnni=False)

    assert "no VNNI" in str(found["resnet18_speedup"].why)
    assert found["mobilenetv2_speedup"].value is None


@pytest.mark.parametrize(
    ("name", "figure", "expected"),
    [
        ("resnet18_drop_cpu", Figure(value=0.3, low=0, high=1), True),
        ("resnet18_drop_cpu", Figure(value=0.31, low=0, high=1), False),
        ("vs_ort_accuracy", Figure(value=-0.1, low=-0.3, high=0.1), True),
        ("vs_ort_accuracy", Figure(value=-0.2, low=-0.3, high=-0.1), False),
        ("hostile_naive_drop", Figure(value=30, low=29, high=31), False),
        ("deterministic", absent("no build"), None),
    ],
)
def test_a_check_holds_as_the_issue_asks(name: str, figure: Figure, expected: object) -> None:
    """Bounds included where it says at most or at least; accuracy beside others' within the interval."""
    assert holds(name, figure.to_json()) is expected


def test_the_document_has_every_check_whether_measured_or_not() -> None:
    """A check that is missing looks like one that was forgotten."""
    document = document_of({"deterministic": Figure(value=1.0, low=1.0, high=1.0)}, [], "a CPU")

    assert tuple(document["checks"]) == NAMES
    assert document["checks"]["deterministic"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert document["checks"]["yolo_kept"]["value"] is None
    assert document["checks"]["yolo_kept"]["why"]


def test_the_table_says_where_ours_is_behind() -> None:
    """Nobody reads a table as carefully as its author hopes."""
    rows: list[dict[str, Any]] = [
        {"net": "n", "maker": maker, "name": name, "arithmetic": "exact", "accuracy": 0.9, "snr_db": {"value": snr}}
        for maker, name, snr in (("ours", "ours cpu", 20.0), ("ort", "ORT per channel", 22.5))
    ]

    said = "\n".join(tables(document_of({}, rows, "a CPU")))

    assert "BEHIND the best of theirs by 2.5 dB" in said


def _spread(graph: bytes) -> float:
    """Largest over smallest of the depthwise layer's channel maxima."""
    model = onnx.load_model_from_string(graph)
    weights = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "depthwise")
    largest = np.abs(weights).max(axis=(1, 2, 3))
    return float(largest.max() / largest.min())
