"""Findings as text: one paragraph for each rule, worst first, with the layers it was found in."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from optimize.quantize.lint.finding import SEVERITIES, Finding

__all__ = ["report_lines"]

WIDTH = 100
SHOWN = 6
TARGET_NAMES = {"cpu": "cpu", "trt": "trt", "both": "cpu, trt"}


def report_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Write findings for people; the same rule on several layers is said once.

    Args:
        findings: of one graph.
    """
    for severity in SEVERITIES:
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in findings:
            if finding.severity == severity:
                groups.setdefault((finding.rule, finding.target), []).append(finding)
        for group in groups.values():
            yield from _paragraph(group)


def _paragraph(group: Sequence[Finding]) -> Iterator[str]:
    first = group[0]
    count = f", {len(group)} times" if len(group) > 1 else ""
    yield f"  {first.severity:8} {first.rule} ({TARGET_NAMES[first.target]}){count}"
    yield from _wrapped(f"{first.layer}: {first.message}")
    layers = list(dict.fromkeys(finding.layer for finding in group if finding.layer != first.layer))
    if layers:
        more = f", and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
        yield from _wrapped(f"also {', '.join(layers[:SHOWN])}{more}")
    is_fine = first.remedy.startswith("nothing to do")
    yield from _wrapped(f"N{first.remedy[1:]}" if is_fine else f"Try: {first.remedy}")


def _wrapped(text: str) -> list[str]:
    indent = " " * 11
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
