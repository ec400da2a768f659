"""The checks of issue 4, by the names it gives them, from what was measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tools.bench_quantize.figures import Figure, absent, median_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tools.bench_quantize.accuracy import NetScores
    from tools.bench_quantize.sessions import Mode

__all__ = ["BOUNDS", "NAMES", "accuracy_checks", "speed_checks", "worst"]

BOUNDS = {
    "resnet18_drop_cpu": ("<=", 0.3),
    "resnet18_drop_trt": ("<=", 0.3),
    "mobilenetv2_drop_cpu": ("<=", 0.7),
    "mobilenetv2_drop_trt": ("<=", 0.7),
    "lite0_drop_cpu": ("<=", 0.7),
    "lite0_drop_trt": ("<=", 0.7),
    "resnet18_agreement": (">=", 0.99),
    "hostile_naive_drop": (">", 30),
    "hostile_drop": ("<=", 1),
    "yolo_naive_kept": ("<=", 0),
    "yolo_kept": (">=", 0.99),
    "vs_ort_accuracy": (">=", 0),
    "vs_ort_speed": (">=", 0.97),
    "vs_nncf_accuracy": (">=", 0),
    "vs_nncf_speed": (">=", 0.97),
    "lite0_snr_gain_db": (">=", 3),
    "snr_gain_db_min": (">=", 0),
    "resnet18_speedup": (">=", 3),
    "mobilenetv2_speedup": (">=", 1.6),
    "trt_int8_convs": (">=", 1),
    "deterministic": (">=", 1),
}
"""What the issue asks of each. Drops in percentage points, shares from 0 to 1, gains in dB, speeds as ratios."""

NAMES = tuple(BOUNDS)
WITHIN_INTERVAL = frozenset({"vs_ort_accuracy", "vs_nncf_accuracy"})
"""Checks that hold where the interval reaches the bound."""

NO_VNNI = "this CPU has no VNNI: INT8 is not expected to be that much faster here"


def accuracy_checks(nets: Mapping[str, NetScores | str], mode: Mode) -> dict[str, Figure]:
    """Drops, agreement, and ours beside theirs.

    Args:
        nets: by name; a text is why a net could not be measured.
        mode: the arithmetic of the CPU graphs; TensorRT's is always exact.
    """
    found = {}
    for net, scores in nets.items():
        found[f"{net}_drop_cpu"] = _of(scores, lambda s: s.drop("cpu", mode))
        found[f"{net}_drop_trt"] = _of(scores, lambda s: s.drop("tensorrt", "exact"))
    found["resnet18_agreement"] = _of(nets["resnet18"], lambda s: s.agreement("cpu", mode))
    for maker in ("ort", "nncf"):
        found[f"vs_{maker}_accuracy"] = worst(
            absent(scores) if isinstance(scores, str) else scores.lead(mode, maker) for scores in nets.values()
        )
    found["lite0_snr_gain_db"] = _of(nets["lite0"], lambda s: s.snr_gain(mode))
    found["snr_gain_db_min"] = worst(_of(scores, lambda s: s.snr_gain(mode)) for scores in nets.values())
    return found


def speed_checks(times: Mapping[str, Mapping[str, Sequence[float]] | str], *, has_vnni: bool) -> dict[str, Figure]:
    """Ratios of latencies: ours against float, and against the fastest of each peer's.

    Args:
        times: by net, then by `float`, `ours` and `ort …` or `nncf …`, milliseconds of each round.
        has_vnni: whether this CPU has instructions for INT8.
    """
    found = {}
    for net in ("resnet18", "mobilenetv2"):
        why = None if has_vnni else NO_VNNI
        found[f"{net}_speedup"] = _ratio(times.get(net, "not measured"), "float", net, why)
    for maker in ("ort", "nncf"):
        found[f"vs_{maker}_speed"] = worst(_ratio(entry, maker, net) for net, entry in times.items())
    return found


def worst(figures: Iterable[Figure]) -> Figure:
    """The smallest value, with its own interval; absent where any net could not be measured."""
    all_figures = list(figures)
    for figure in all_figures:
        if figure.value is None:
            return figure
    if not all_figures:
        return absent("nothing was measured")
    return min(all_figures, key=lambda figure: figure.value if figure.value is not None else 0)


def _of(scores: NetScores | str, figure: Callable[[NetScores], Figure]) -> Figure:
    return absent(scores) if isinstance(scores, str) else figure(scores)


def _ratio(times: Mapping[str, Sequence[float]] | str, other: str, net: str, why: str | None = None) -> Figure:
    if isinstance(times, str):
        return absent(times)
    others = [name for name in times if name.split(" ")[0].lower() == other]
    if "ours" not in times or not others:
        return absent(f"{net}: {'ours' if 'ours' not in times else other} was not measured")
    fastest = min(others, key=lambda name: min(times[name]))
    figure = median_ratio(times[fastest], times["ours"])
    return dataclasses.replace(figure, why=why or f"{net}, beside {fastest}")
