"""The machine that measures: a latency means nothing without it."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["describe", "int8_flags"]

INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""How /proc/cpuinfo names instructions that multiply and add bytes in one step (x86 and ARM)."""


def int8_flags() -> frozenset[str] | None:
    """INT8 instructions of this CPU; None where /proc/cpuinfo does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = {
        word for line in text.splitlines() if line.lower().startswith(("flags", "features")) for word in line.split()
    }
    return frozenset(words & INT8_FLAGS) if words else None


def describe(threads: int) -> str:
    """The CPU in words, with what matters for INT8."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = ", ".join(sorted(int8_flags() or ())) or "no INT8 instructions"
    return f"{model} ({platform.machine()}, {flags}), {threads} thread{'s' * (threads != 1)}"
