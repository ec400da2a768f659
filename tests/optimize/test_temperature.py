"""Probabilities that are as sure as they are right."""

from __future__ import annotations

import numpy as np
import pytest

from optimize.temperature import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
)


def _draw(true_temperature: float, n: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from softmax(logits / true_temperature): that is the answer to find."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (n, 5))
    p = np.exp(logits / true_temperature)
    p /= p.sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    return logits, labels


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_drew_the_labels_is_found(true_temperature: float) -> None:
    logits, labels = _draw(true_temperature)

    assert fit_temperature(logits, labels) == pytest.approx(true_temperature, rel=0.08)


def test_no_other_temperature_explains_the_labels_much_better() -> None:
    logits, labels = _draw(1.7)
    best = negative_log_likelihood(logits, labels, fit_temperature(logits, labels))

    assert all(best <= negative_log_likelihood(logits, labels, t) + 1e-3 for t in np.geomspace(0.1, 10, 60))


def test_a_set_that_is_all_right_does_not_make_the_network_certain() -> None:
    """20 pictures, all right, at a modest margin: the probability ends high, not at one."""
    logits = np.tile([2.0, 0.0, 0.0], (20, 1))
    t = fit_temperature(logits, np.zeros(20, dtype=np.int64))

    wrong = 1 - 1 / (1 + 2 * np.exp(-2 / t))
    assert 0.01 < wrong < 0.1


def test_logits_of_any_size_give_a_finite_temperature() -> None:
    labels = np.array([0, 1, 0, 1])

    assert fit_temperature(np.full((4, 2), 1e30), labels) > 0
    assert fit_temperature(np.zeros((4, 2)), labels) > 0


def test_who_is_always_sure_and_right_has_no_calibration_error() -> None:
    """Nothing between sure and right."""
    assert expected_calibration_error(np.ones(50), np.ones(50, dtype=np.bool_)) == 0


def test_the_calibration_error_is_the_gap_weighted_by_bin() -> None:
    """By hand: 4 pictures at 0.9 of which 2 are right, 6 at 0.5 of which 3 are (Guo et al., equation 3)."""
    confidence = np.array([0.9] * 4 + [0.5] * 6)
    is_right = np.array([True, True, False, False] + [True, False] * 3)

    assert expected_calibration_error(confidence, is_right) == pytest.approx(0.4 * 0.4 + 0.6 * 0.0)


@pytest.mark.parametrize("edge", [0.0, 1 / 15, 2 / 15, 1.0])
def test_values_on_the_edges_of_bins_are_counted(edge: float) -> None:
    """None is lost, the lowest and the highest included."""
    assert expected_calibration_error(np.full(3, edge), np.zeros(3, dtype=np.bool_)) == pytest.approx(edge)


def test_the_right_temperature_mends_the_calibration_error() -> None:
    """Logits that are 2.5 times too large claim more than they know."""
    logits, labels = _draw(2.5)
    errors = []
    for temperature in (1.0, fit_temperature(logits, labels)):
        chances = probabilities(logits, temperature)
        errors.append(expected_calibration_error(chances.max(axis=1), chances.argmax(axis=1) == labels))

    assert errors[0] > 0.15
    assert errors[1] < 0.02


def test_probabilities_sum_to_one_whatever_the_logits() -> None:
    """Large ones must not overflow."""
    found = probabilities(np.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]))

    assert found.sum(axis=1) == pytest.approx(1)
    assert np.isfinite(found).all()
