"""From logits to findings: never a number that is not one, and the defect score is what the policy compares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import ClassSpec, decode_classification, heatmap_from_cam
from agent.errors import EngineError
from tests.kit.bundles import kit_manifest

LOGITS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)


def logits(*values: float) -> Any:
    return np.array([values], dtype=np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_a_number_is_an_error(value: float) -> None:
    """NaN compares false with every limit: as a score it would pass a part."""
    with pytest.raises(EngineError, match="expected finite numbers"):
        decode_classification(logits(0, value, 1), kit_manifest())


@pytest.mark.parametrize("shape", [(1, 2), (1, 4), (2, 3), (1, 3, 1), (3, 1), (), (0,)])
def test_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    """Else the classes would be named wrongly without a word."""
    with pytest.raises(EngineError, match=r"expected \(1, 3\)"):
        decode_classification(np.zeros(shape, dtype=np.float32), kit_manifest())


def test_probabilities_are_the_softmax() -> None:
    """Worked by hand: 1, 2, 3 gives 0.090, 0.245, 0.665."""
    seen = decode_classification(logits(1, 2, 3), kit_manifest())

    assert [f.class_name for f in seen.findings] == ["stain", "scratch", "good"]
    assert [f.severity for f in seen.findings] == ["minor", "major", "ok"]
    assert [f.score for f in seen.findings] == pytest.approx([0.66524096, 0.24472847, 0.09003057])
    assert seen.defect_score == pytest.approx(1 - 0.09003057)
    assert {f.box_px for f in seen.findings} == {None}


def test_the_temperature_divides_the_logits() -> None:
    """2, 4, 6 at a temperature of 2 is 1, 2, 3."""
    hot = decode_classification(logits(2, 4, 6), kit_manifest(temperature=2.0))

    assert hot == decode_classification(logits(1, 2, 3), kit_manifest())


def test_logits_without_a_batch_axis_are_taken_too() -> None:
    """Golden references may be stored so."""
    flat = decode_classification(np.array([1, 2, 3]), kit_manifest())

    assert flat == decode_classification(logits(1, 2, 3), kit_manifest())


def test_equal_probabilities_keep_the_manifests_order() -> None:
    """The same numbers, the same verdict, on every machine."""
    seen = decode_classification(logits(5, 5, 5), kit_manifest())

    assert [f.class_name for f in seen.findings] == ["good", "scratch", "stain"]
    assert seen.uncertainty == pytest.approx(1.0)


def test_two_kinds_of_good_are_both_good() -> None:
    """A defect score counts severities, not the first class."""
    classes = (
        ClassSpec(name="a", severity="ok"),
        ClassSpec(name="b", severity="critical"),
        ClassSpec(name="c", severity="ok"),
    )

    seen = decode_classification(logits(math.log(0.5), math.log(0.1), math.log(0.4)), kit_manifest(classes=classes))

    assert seen.defect_score == pytest.approx(0.1)


def test_without_a_good_class_every_part_is_a_defect() -> None:
    """Six kinds of defect and nothing else, as in NEU: the score is 1, and not a rounding error above it."""
    classes = tuple(ClassSpec(name=f"c{i}", severity="major") for i in range(6))

    seen = decode_classification(logits(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), kit_manifest(classes=classes))

    assert seen.defect_score == pytest.approx(1.0)
    assert seen.defect_score <= 1


def test_a_small_defect_score_keeps_its_digits() -> None:
    """1 - 0.9999999 in float32 would be noise; risk control sorts by such scores."""
    seen = decode_classification(logits(40, 0, -100), kit_manifest())

    assert seen.defect_score == pytest.approx(math.exp(-40), rel=1e-9)


@given(values=LOGITS, temperature=st.floats(0.01, 100))
def test_whatever_finite_logits_come_the_result_is_sound(values: list[float], temperature: float) -> None:
    """Up to the ends of float32: no overflow, no NaN, nothing outside 0..1, highest first."""
    seen = decode_classification(logits(*values), kit_manifest(temperature=temperature))

    scores = [f.score for f in seen.findings]
    assert math.fsum(scores) == pytest.approx(1.0)
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= number <= 1 for number in [*scores, seen.defect_score, seen.uncertainty])


@given(values=LOGITS, class_index=st.integers(0, 2))
def test_a_map_goes_from_0_to_1(values: list[float], class_index: int) -> None:
    """Lowest 0, highest 1, at any scale of the activations; a flat one is all 0."""
    cam = np.zeros((1, 3, 1, 3), dtype=np.float32)
    cam[0, class_index, 0] = values

    heat = heatmap_from_cam(cam, class_index)

    assert heat.shape == (1, 3)
    assert heat.dtype == np.float32
    assert heat.min() == 0
    assert heat.max() == (1 if max(values) > min(values) else 0)
    assert heat[0, int(np.argmax(values))] == heat.max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_with_what_is_not_a_number_is_an_error(value: float) -> None:
    """A model that gives NaN anywhere is not to be trusted elsewhere."""
    cam = np.zeros((1, 3, 2, 2), dtype=np.float32)
    cam[0, 1, 0, 0] = value

    with pytest.raises(EngineError, match="not numbers"):
        heatmap_from_cam(cam, 1)


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4, 4), (1, 1, 4, 4), (1, 3, 0, 4)])
def test_a_map_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    """Not an IndexError."""
    with pytest.raises(EngineError, match=r"expected \(1, C, h, w\)"):
        heatmap_from_cam(np.zeros(shape, dtype=np.float32), 1)
