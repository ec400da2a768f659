"""The bound on a rate, beside the workbench's and figures that are printed elsewhere."""

from __future__ import annotations

import pytest

from agent.acceptance.rates import MAX_N, upper_bound
from optimize import binomial


@pytest.mark.parametrize("n", [1, 2, 10, 50, 59, 200, MAX_N])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_device_and_workbench_give_the_same_bound(n: int, share: float, confidence: float) -> None:
    """Two ways, term by term and by the incomplete beta function; one number in two reports."""
    events = round(share * n)

    assert upper_bound(events, n, confidence) == pytest.approx(binomial.upper_bound(events, n, confidence), abs=1e-9)


@pytest.mark.parametrize(("n", "bound"), [(59, 0.0495), (149, 0.0199), (299, 0.00997), (1, 0.95)])
def test_none_of_n_is_the_rule_of_three(n: int, bound: float) -> None:
    """With none seen the bound is 1 - 0.05 ** (1 / n)."""
    assert upper_bound(0, n) == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-10)
    assert upper_bound(0, n) == pytest.approx(bound, abs=5e-5)


@pytest.mark.parametrize(("events", "n"), [(-1, 5), (6, 5), (0, 0), (0, MAX_N + 1)])
def test_counts_that_can_not_be_are_refused(events: int, n: int) -> None:
    """A bound from nothing would prove something."""
    with pytest.raises(ValueError, match="upper_bound"):
        upper_bound(events, n)
