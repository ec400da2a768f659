"""The bound on a rate, beside printed figures; its definition is held in `tests/optimize/test_evaluate.py`."""

from __future__ import annotations

import pytest

from agent.binomial import upper_bound


@pytest.mark.parametrize(("n", "bound"), [(59, 0.0495), (149, 0.0199), (299, 0.00997), (1, 0.95)])
def test_none_of_n_is_the_rule_of_three(n: int, bound: float) -> None:
    """With none seen the bound is 1 - 0.05 ** (1 / n)."""
    assert upper_bound(0, n) == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-10)
    assert upper_bound(0, n) == pytest.approx(bound, abs=5e-5)


@pytest.mark.parametrize(("events", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_can_not_be_are_refused(events: int, n: int) -> None:
    """A bound from nothing would prove something."""
    with pytest.raises(ValueError, match="upper_bound"):
        upper_bound(events, n)
