"""Layers go back to float one by one until the drop is allowed; or the search says what holds it back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import onnx
import pytest

from optimize.quantize.search import Setting, float_costs, search, sensitivity_json
from optimize.quantize.sensitivity import LayerSensitivity
from tests.kit.float_models import conv_classifier

SETTING = Setting(calibration_pictures=200, operators=frozenset({"Conv", "Relu"}))


def entry(layer: str, gain_db: float) -> LayerSensitivity:
    return LayerSensitivity(layer=layer, snr_db=20 + gain_db, gain_db=gain_db)


def make(in_float: frozenset[str]) -> bytes:
    """A graph that is nothing but the list of its float layers: what a search may look at."""
    return ",".join(sorted(in_float)).encode()


def losing(points: dict[str, float], base: float = 0.0) -> Callable[[bytes], float]:
    """Measures a drop that is the sum of what each layer in INT8 loses."""

    def measure(graph: bytes) -> float:
        in_float = set(graph.decode().split(","))
        return base + sum(loss for layer, loss in points.items() if layer not in in_float)

    return measure


def test_a_budget_that_holds_costs_no_layer() -> None:
    """Float layers cost time: none is given away."""
    found = search(make, losing({"a": 0.2}), [entry("a", 3)], {"a": 1}, SETTING, max_drop=0.5)

    assert found
    assert found.in_float == ()
    assert found.steps == ()
    assert found.advice == ()


def test_the_layer_with_most_gain_per_cost_goes_first() -> None:
    """A cheap layer with half the gain is the better bargain."""
    ranking = [entry("dear", 6), entry("cheap", 3)]
    found = search(make, losing({"dear": 1, "cheap": 1}), ranking, {"dear": 10, "cheap": 1}, SETTING, max_drop=1.2)

    assert found.holds
    assert found.in_float == ("cheap",)
    assert found.graph == b"cheap"
    assert found.drop_points == pytest.approx(1)


def test_it_stops_when_the_budget_holds() -> None:
    """More float layers than needed only cost time."""
    ranking = [entry(name, 3) for name in "abcd"]
    found = search(make, losing(dict.fromkeys("abcd", 1.0)), ranking, dict.fromkeys("abcd", 1), SETTING, max_drop=2)

    assert found.in_float == ("a", "b")
    assert [step.drop_points for step in found.steps] == [3, 2]


def test_ties_are_broken_by_name() -> None:
    """The same inputs must give the same bundle, whatever order the ranking came in."""
    ranking = [entry(name, 3) for name in ("z", "m", "a")]
    costs = dict.fromkeys("zma", 1.0)
    found = search(make, losing(dict.fromkeys("zma", 1.0)), ranking, costs, SETTING, max_drop=0)

    assert [step.layer for step in found.steps] == ["a", "m", "z"]


def test_a_layer_that_makes_it_worse_stays_in_int8() -> None:
    """Two errors can cancel; taking one away alone may hurt."""
    ranking = [entry("worse", 6), entry("good", 3)]
    found = search(
        make, losing({"worse": -2, "good": 1}, base=3), ranking, {"worse": 1, "good": 1}, SETTING, max_drop=1
    )

    assert found.in_float == ("good",)
    assert [(step.layer, step.kept) for step in found.steps] == [("worse", False), ("good", True)]
    assert "left in INT8" in found.steps[0].reason


def test_it_ends_after_the_limit() -> None:
    """A net of a thousand layers must not be measured a thousand times."""
    names = [f"layer{i:04}" for i in range(1000)]
    ranking = [entry(name, 1) for name in names]
    setting = dataclasses.replace(SETTING, limit=5)
    found = search(make, losing({}, base=9), ranking, dict.fromkeys(names, 1), setting, max_drop=1)

    assert len(found.steps) == 5
    assert not found.holds


def test_layers_that_do_not_help_alone_are_tried_last() -> None:
    """A tensor between two layers may be to blame: then neither helps alone, and both do."""
    ranking = [entry("odd", -1), entry("good", 1)]
    found = search(make, losing({}, base=9), ranking, {"odd": 1, "good": 100}, SETTING, max_drop=1)

    assert [step.layer for step in found.steps] == ["good", "odd"]


def test_a_budget_that_can_not_be_met_names_the_layers_and_what_would_help() -> None:
    """The user must know where to go on."""
    ranking = [entry("a", 3), entry("b", 2), entry("c", 1)]
    setting = Setting(
        calibration_pictures=20, operators=frozenset({"Conv", "HardSwish"}), weight_bits=7, float_accuracy=0.8, limit=1
    )
    found = search(make, losing({}, base=5), ranking, {}, setting, max_drop=1)

    assert not found
    assert found.holding_back == ("b", "c")
    said = "\n".join(found.advice)
    assert "20 were used" in said
    assert "ReLU6 instead of HardSwish" in said
    assert "weight_bits: 8" in said
    assert "accuracy 80.0%" in said
    assert "--max-drop" in said


def test_a_layer_measured_as_free_or_faster_does_not_break_the_order() -> None:
    """Measured latencies can be zero or negative."""
    ranking = [entry("free", 1), entry("dear", 6)]
    found = search(make, losing({"free": 1}), ranking, {"free": -0.1, "dear": 5}, SETTING, max_drop=0)

    assert found.in_float == ("free",)


def test_latencies_are_reported_and_not_written_into_the_bundle() -> None:
    """Times differ from run to run, bundles must not."""
    ranking = [entry("a", 3)]
    stopwatch = iter((1.5, 9.0))
    found = [
        search(make, losing({"a": 1}), ranking, {"a": 1}, SETTING, max_drop=0, latency_ms=lambda _: next(stopwatch))
        for _ in range(2)
    ]

    assert [result.steps[0].ms for result in found] == [1.5, 9.0]
    first, second = (sensitivity_json({"cpu": (ranking, result)}) for result in found)
    assert first == second


def test_the_json_form_is_canonical() -> None:
    """Sorted keys, rounded numbers, no negative zero."""
    ranking = [dataclasses.replace(entry("a", -0.0001), gain_points=0.123456)]

    document = sensitivity_json({"tensorrt": (ranking, None), "cpu": (ranking, None)})

    assert document.index(b'"cpu"') < document.index(b'"tensorrt"')
    assert b"-0.0" not in document
    assert json.loads(document)["cpu"]["layers"] == [
        {"layer": "a", "gain_db": 0.0, "snr_db": 20.0, "gain_points": 0.12}
    ]


def test_cost_in_float_follows_multiplications_and_borders() -> None:
    """The second convolution multiplies more than the first, and the linear layer next to nothing."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(conv_classifier()))

    costs = float_costs(model, ["conv1", "conv2", "linear", "relu1", "nobody"])

    assert set(costs) == {"conv1", "conv2", "linear"}
    assert costs["linear"] < costs["conv1"] < costs["conv2"] < 1
