"""Cores: which ones the line's threads run on, and which are left to the threads beside it.

A thread inherits the cores of the one that starts it (sched_setaffinity(2)), so what is opened within `running_on`
stays there with all its threads, those of ONNX Runtime and of camera libraries included.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from agent.errors import ConfigError

__all__ = ["beside", "line_cores", "running_on"]


def line_cores(wanted: Sequence[int]) -> frozenset[int]:
    """The cores of `line.pin_cores`; empty leaves the choice to the system.

    Raises:
        ConfigError: this process may not run on one of them.
    """
    allowed = os.sched_getaffinity(0)
    for core in wanted:
        if core not in allowed:
            raise ConfigError(
                f"line.pin_cores: got {core}, but this process may run on {', '.join(map(str, sorted(allowed)))}",
                hint="take cores of this machine (`nproc --all`), and that the unit's CPUAffinity= allows",
            )
    return frozenset(wanted)


def beside(line: frozenset[int]) -> frozenset[int]:
    """The cores that the line leaves to journal and publisher; all of the process when it leaves none."""
    allowed = frozenset(os.sched_getaffinity(0))
    return (allowed - line or allowed) if line else frozenset()


@contextlib.contextmanager
def running_on(cores: frozenset[int]) -> Iterator[None]:
    """Run this thread, and those that it starts within, on these cores; on no particular ones when there are none."""
    thread = threading.get_native_id()
    before = os.sched_getaffinity(thread)
    if cores:
        os.sched_setaffinity(thread, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(thread, before)
