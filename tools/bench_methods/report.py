"""What was measured, as JSON and as tables to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.bench_methods.networks import networks_table
from tools.bench_quantize.figures import absent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tools.bench_quantize.figures import Figure

__all__ = ["BOUNDS", "document_of", "tables"]

BOUNDS: Mapping[str, tuple[str, float]] = {
    "neu_best": (">=", 0.995),
    "neu_small_int8": (">=", 0.985),
    "tile_weighted_gain": (">", 0.0),
    "tile_escape": ("<=", 25.0),
    "tile_overkill": ("<=", 5.0),
    "transfer_gain_50": (">", 0.0),
    "split_recall": (">=", 0.9),
    "split_precision": (">=", 0.9),
    "leak_points": (">", 0.0),
}
"""What issue 5 asks; gains and losses are points, escape and overkill percent."""


def document_of(
    checks: Mapping[str, Figure], rows: Sequence[Mapping[str, Any]], machine: str, **more: Any
) -> dict[str, Any]:
    """The bench's JSON: every check that the issue names, in its order, measured or not."""
    found = {name: checks.get(name, absent("not asked for in this run")).to_json() for name in BOUNDS}
    return {"bench": "methods", "machine": machine, **more, "checks": found, "rows": list(rows)}


def tables(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines in Markdown: the parts, then the checks."""
    rows: Sequence[Mapping[str, Any]] = document["rows"]
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        yield from networks_table(mine) if part == "networks" else _plain(part, mine)
        yield ""
    yield "| check | value | 95 % interval | asked | holds | |"
    yield "| --- | ---: | --- | --- | --- | --- |"
    for name, check in document["checks"].items():
        sign, bound = BOUNDS[name]
        interval = "-" if check["low"] is None else f"{check['low']:.3f} to {check['high']:.3f}"
        value = "-" if check["value"] is None else f"{check['value']:.3f}"
        yield f"| {name} | {value} | {interval} | {sign} {bound:g} | {_holds(name, check)} | {check.get('why', '')} |"


def _holds(name: str, check: Mapping[str, Any]) -> str:
    if check["value"] is None:
        return "not measured"
    sign, bound = BOUNDS[name]
    value = check["value"]
    holds = value <= bound if sign == "<=" else value >= bound if sign == ">=" else value > bound
    return "yes" if holds else "NO"


def _plain(part: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    keys = [key for key in rows[0] if key != "part" and not isinstance(rows[0][key], dict)]
    yield f"{part}:"
    yield "| " + " | ".join(keys) + " |"
    yield "| " + " | ".join("---" for _ in keys) + " |"
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(key)) for key in keys) + " |"


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + (", ..." if len(value) > 8 else "")
    return "-" if value is None else str(value)
