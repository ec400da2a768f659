"""Equalization: the graph computes the same, channels become equally loud, and what can't be scaled is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from optimize.quantize.equalize import HEADROOM, ChannelGroup, equalize, find_groups
from optimize.quantize.graph import Graph, zones
from optimize.quantize.layers import find_layers
from optimize.quantize.model import FloatModel
from optimize.quantize.place import place
from optimize.quantize.prepare import prepare
from optimize.quantize.quantizer import QuantizeOptions, Quantizer
from optimize.quantize.ranges import TensorStats, collect
from tests.kit.topologies import SIDE, TOPOLOGIES, WIDTH, Net, depthwise, pictures, prepared, run, saved, snr


def stats_of(graph: Graph, images: list[NDArray[np.uint8]]) -> dict[str, TensorStats]:
    """What calibration sees: the tensors that a CPU's graph quantizes."""
    names = set(place(graph, zones(graph, "logits"), "cpu").tensors.values())
    return dict(collect(graph.model, "image", images, sorted(names)))


def equalized(model: onnx.ModelProto, strength: float = 1.0) -> tuple[Graph, Graph]:
    """Before and after."""
    before = prepared(model)
    after = equalize(before.model, stats_of(before, pictures(8)), strength=strength)
    return before, Graph(onnx.shape_inference.infer_shapes(after))


def group_of(graph: Graph, tensor: str) -> ChannelGroup | None:
    return next((group for group in find_groups(graph) if tensor in group.tensors), None)


def loudness(stats: TensorStats) -> NDArray[np.float32]:
    return np.maximum(np.abs(stats.channel_low), np.abs(stats.channel_high))


def same_function(before: Graph, after: Graph, output: str = "logits") -> bool:
    """Within float rounding, on pictures that equalization has not seen."""
    fresh = pictures(6, seed=9)
    wanted, found = (run(graph.model.SerializeToString(), fresh, output=output) for graph in (before, after))
    return bool(np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", sorted(set(TOPOLOGIES) - {"relu6"}))
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_function_stays_the_same(name: str, strength: float) -> None:
    """Anything else would be a wrong graph with good statistics."""
    before, after = equalized(TOPOLOGIES[name](), strength)

    assert same_function(before, after)


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_every_topology_has_something_to_scale(name: str) -> None:
    """A rule that freezes all of a graph also keeps its function; each of these has a group with a changed layer."""
    before, after = equalized(TOPOLOGIES[name]())

    layers = [find_layers(graph) for graph in (before, after)]

    assert find_groups(before)
    assert any(not np.array_equal(layers[0][key].weight, layers[1][key].weight) for key in layers[0])


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "gate", "grouped"])
def test_channels_become_equally_loud(name: str) -> None:
    """One scale per tensor then serves them all; of a stream it is the loudest tensor of each channel that counts."""
    before, after = equalized(TOPOLOGIES[name]())
    seen = {key: loudness(stats) for key, stats in stats_of(after, pictures(8)).items()}

    for group in find_groups(before):
        loudest = np.max([seen[tensor] for tensor in group.tensors if tensor in seen], axis=0)
        alive = loudest > 0
        assert alive.any()
        assert loudest[alive] == pytest.approx(loudest.max(), rel=1e-3)


def test_half_the_strength_is_half_the_way() -> None:
    """In decades."""
    graphs = {strength: equalized(depthwise(1.0), strength)[1] for strength in (0.0, 0.5, 1.0)}

    decades = {}
    for strength, graph in graphs.items():
        loud = loudness(stats_of(graph, pictures(8))["deep0_relu"])
        decades[strength] = np.log10(loud[loud > 0].max() / loud[loud > 0].min())

    assert decades[0.0] > 1
    assert decades[0.5] == pytest.approx(decades[0.0] / 2, rel=0.3)
    assert decades[1.0] < 0.01


def test_a_residual_stream_is_one_group() -> None:
    """Two additions: what one block scales, the stem, the other block and all readers must."""
    group = group_of(prepared(TOPOLOGIES["residual"]()), "stem_relu")

    assert group is not None
    assert set(group.makers) == {"stem", "one_b", "two_b"}
    assert set(group.readers) == {"one_a", "two_a", "logits"}
    assert {"one_add", "one_out", "two_add", "two_out", "pooled", "flat"} <= set(group.tensors)


def test_a_gate_scales_with_what_it_gates() -> None:
    """The product has its factors; the gate itself, made by a sigmoid, can have none."""
    graph = prepared(TOPOLOGIES["gate"]())
    group = group_of(graph, "gated")

    assert group is not None
    assert group.makers == ("wide",)
    assert set(group.readers) == {"reduce", "last"}
    assert group_of(graph, "excite") is None
    assert group_of(graph, "expand") is None


def test_concat_and_what_it_joins_are_left_alone() -> None:
    """Its channels have other numbers behind it."""
    graph = prepared(TOPOLOGIES["concat"]())

    assert [group_of(graph, name) for name in ("left_relu", "right_relu", "joined", "x")] == [None] * 4
    assert group_of(graph, "stem_relu") is not None


def test_outputs_of_the_graph_are_left_alone() -> None:
    """An embedding or a map is read by people and thresholds."""
    net = Net()
    first = net.feature("x", "stem", (3, WIDTH), stride=2)
    last = net.feature(first, "middle", (WIDTH, WIDTH))
    net.classify(last)
    model = net.finish({"logits": [1, 4], "flat": [1, WIDTH], "stem_relu": [1, WIDTH, SIDE // 2, SIDE // 2]})

    before, after = equalized(model)

    assert find_groups(before) == ()
    assert before.model == after.model


def test_softmax_and_other_operators_that_are_not_scale_free_freeze_their_group() -> None:
    """Sigmoid, HardSwish, a bias that is added on its own: f(cx) is not c f(x)."""
    for operator in ("Sigmoid", "HardSwish", "Elu", "Tanh"):
        net = Net()
        bent = net.add(operator, net.conv("x", "stem", (3, WIDTH), stride=2), "bent")
        before = prepared(net.classify(net.feature(bent, "last", (WIDTH, WIDTH))))
        assert group_of(before, "bent") is None
        assert group_of(before, "stem") is None


def test_a_clip_that_does_not_begin_at_zero_freezes_its_group() -> None:
    """HardTanh has a lower limit as well."""
    net = Net()
    cut = net.clip(net.conv("x", "stem", (3, WIDTH), stride=2), "cut")
    net.constant("cut.low", -1.0)

    assert group_of(prepared(net.classify(net.feature(cut, "last", (WIDTH, WIDTH)))), "cut") is None


def test_relu6_is_met_at_the_same_values_as_before() -> None:
    """It cuts at 6 whatever a channel's scale: one that reached it stays, others keep a tenth of room."""
    before, after = equalized(TOPOLOGIES["relu6"]())
    old, new = (stats_of(graph, pictures(8)) for graph in (before, after))
    was, now = loudness(old["deep_clip"]), loudness(new["deep_clip"])
    weights = [find_layers(graph)["deep"].rows() for graph in (before, after)]
    reached = was >= 6 / HEADROOM

    assert 0 < reached.sum() < WIDTH
    assert now[reached] == pytest.approx(was[reached])
    assert (now[~reached] <= 6 / HEADROOM * 1.0001).all()
    assert (now[~reached & (was > 0)] > was[~reached & (was > 0)] * 1.01).any()
    stem_before, stem_after = (loudness(s["stem_relu"]) for s in (old, new))
    factor = np.where(stem_before > 0, stem_after / np.maximum(stem_before, 1e-9), 1.0)
    assert weights[1][reached] * factor[reached, None] == pytest.approx(weights[0][reached], rel=1e-4)
    wanted, found = (run(g.model.SerializeToString(), pictures(8)) for g in (before, after))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_dead_channels_are_left_as_they_are() -> None:
    """Nothing is divided by their loudness of zero."""
    net = Net()
    first = net.feature("x", "stem", (3, WIDTH), stride=2)
    weights = net.value("stem.weight").copy()
    weights[2] = 0
    net.constant("stem.weight", weights)
    net.constant("stem.bias", np.where(np.arange(WIDTH) == 2, -1.0, 0.0))

    before, after = equalized(net.classify(net.feature(first, "last", (WIDTH, WIDTH))))

    assert all(np.isfinite(layer.weight).all() for layer in find_layers(after).values())
    stem = find_layers(after)["stem"]
    assert not stem.rows()[2].any()
    assert stem.bias is not None
    assert stem.bias[2] == -1
    assert same_function(before, after)


def test_a_channel_that_calibration_never_woke_is_brought_to_the_others_by_its_row() -> None:
    """The first part that wakes it must not find it a hundred times too quiet for the grid."""
    net = Net()
    first = net.feature("x", "stem", (3, WIDTH), stride=2)
    weights = net.value("stem.weight").copy()
    weights[2] *= 0.003
    net.constant("stem.weight", weights)
    net.constant("stem.bias", np.where(np.arange(WIDTH) == 2, -10.0, 0.0))

    before, after = equalized(net.classify(net.feature(first, "last", (WIDTH, WIDTH))))

    sizes = np.abs(find_layers(after)["stem"].rows()).max(axis=1)
    assert sizes[2] == pytest.approx(float(np.median(np.delete(sizes, 2))), rel=1e-3)
    assert same_function(before, after)


def test_a_tensor_that_is_all_zero_changes_nothing() -> None:
    """A layer that never says anything."""
    net = Net()
    first = net.feature("x", "stem", (3, WIDTH), stride=2)
    net.constant("stem.bias", np.full(WIDTH, -1e6))

    before, after = equalized(net.classify(net.feature(first, "last", (WIDTH, WIDTH))))

    assert same_function(before, after)


def test_a_linear_layer_over_rows_of_tokens_is_left_alone() -> None:
    """Its channels are the last axis, while those of what is seen are the second."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=4)
    tokens = net.reshape(last, "tokens", [1, WIDTH, 16])
    first = net.constant("first.weight", net.rng.normal(0, 1, (16, 12)) * np.geomspace(0.01, 1, 12))
    second = net.constant("second.weight", net.rng.normal(0, 1, (12, 16)))
    hidden = net.add("Relu", net.add("MatMul", [tokens, first], "first"), "first_relu")
    back = net.reshape(net.add("MatMul", [hidden, second], "second"), "back", [1, WIDTH, 4, 4])

    before, after = equalized(net.classify(net.feature(back, "last", (WIDTH, WIDTH))))

    assert same_function(before, after)


def test_a_hostile_depthwise_net_is_saved(tmp_path: Path) -> None:
    """Channels of one tensor differ a thousandfold: nothing is left of the quiet ones on one scale for all."""
    model = saved(depthwise(1.5), tmp_path / "m.onnx")

    naive, ours = (
        fused_snr(model, options)
        for options in (QuantizeOptions(equalize="none", correction="none", method="minmax"), QuantizeOptions())
    )

    assert naive < 15
    assert ours > naive + 20


def fused_snr(model: FloatModel, options: QuantizeOptions) -> float:
    fresh = pictures(24, seed=77)
    graph = Quantizer(model, pictures(48), options).quantize("cpu").graph
    wanted = run(prepare(model.proto, "m").SerializeToString(), fresh)
    return snr(wanted, run(graph, fresh, is_optimized=True))
