"""The line's threads run where they are told to, and what they start with them."""

from __future__ import annotations

import os
import threading

import pytest

from agent.cores import beside, line_cores, running_on
from agent.errors import ConfigError

ALL = frozenset(os.sched_getaffinity(0))


def cores_of_a_new_thread() -> frozenset[int]:
    seen: list[frozenset[int]] = []
    thread = threading.Thread(target=lambda: seen.append(frozenset(os.sched_getaffinity(threading.get_native_id()))))
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.skipif(len(ALL) < 2, reason="needs two cores")
def test_threads_inherit_the_lines_cores_and_the_others_are_left_to_those_beside_it() -> None:
    """What ONNX Runtime or a driver starts is pinned as well, without being asked."""
    one = frozenset({min(ALL)})
    with running_on(line_cores([min(ALL)])):
        pinned = cores_of_a_new_thread()
    with running_on(beside(one)):
        others = cores_of_a_new_thread()

    assert (pinned, others) == (one, ALL - one)
    assert frozenset(os.sched_getaffinity(threading.get_native_id())) == ALL


def test_nothing_pinned_changes_nothing() -> None:
    """The system knows best, unless somebody knows better."""
    with running_on(line_cores([])), running_on(beside(frozenset())):
        assert cores_of_a_new_thread() == ALL


def test_a_line_that_takes_all_cores_shares_them() -> None:
    """Journal and publisher must run somewhere."""
    assert beside(ALL) == ALL


def test_a_core_that_is_not_there_is_refused() -> None:
    """By name, with those that are."""
    with pytest.raises(ConfigError, match=r"line.pin_cores: got 1000, but this process may run on \d"):
        line_cores([1000])
