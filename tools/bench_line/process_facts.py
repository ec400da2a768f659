"""What a process costs: memory, file descriptors, threads, from /proc."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

__all__ = ["facts_of_process", "seconds_of_threads"]


def facts_of_process(pid: int | str = "self") -> dict[str, int]:
    """Resident memory now and at its highest in kB, open file descriptors, threads."""
    keys = {"VmRSS": "rss_kb", "VmHWM": "peak_kb", "Threads": "threads"}
    found = {"fds": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())}
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key in keys:
            found[keys[key]] = int(value.split()[0])
    return found


def seconds_of_threads() -> dict[str, tuple[float, float]]:
    """Of every Python thread of this process: seconds on a core, and seconds that it was ready and waited for one."""
    found = {}
    for thread in threading.enumerate():
        with contextlib.suppress(FileNotFoundError):  # one that is just beginning, or over
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
            on_core_ns, waited_ns, _ = map(int, text.split())
            found[thread.name] = (on_core_ns / 1e9, waited_ns / 1e9)
    return found
