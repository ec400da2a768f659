"""Waiting for something that another thread or process brings about: a deadline, never a bare sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["wait_until"]

POLL_S = 0.005


def wait_until(condition: Callable[[], object], within_s: float = 10.0, *, what: str = "") -> None:
    """Poll until a condition holds.

    Args:
        condition: called again and again; a truthy answer ends the wait.
        within_s: the deadline; generous, for it is only reached when the test fails.
        what: the condition in words, for the failure.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'the condition'} did not come true within {within_s:g} s")
        time.sleep(POLL_S)
