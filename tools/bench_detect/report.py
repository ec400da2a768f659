"""What was measured, as JSON and as tables to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.bench_quantize.figures import absent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tools.bench_quantize.figures import Figure

__all__ = ["BOUNDS", "document_of", "tables"]

BOUNDS: Mapping[str, tuple[str, float]] = {
    "yolo_map50": (">=", 0.68),
    "ssd_map50": (">=", 0.65),
    "yolo_int8_drop": ("<=", 1.0),
    "ssd_int8_drop": ("<=", 1.0),
    "yolo_kept": (">=", 0.97),
    "ssd_kept": (">=", 0.97),
    "decode_ms": ("<=", 1.0),
}
"""What issue 6 asks: mAP50 as a share, drops in points of mAP50, detections kept as a share, milliseconds."""


def document_of(
    checks: Mapping[str, Figure], rows: Sequence[Mapping[str, Any]], machine: str, **more: Any
) -> dict[str, Any]:
    """The bench's JSON: every check that the issue names, in its order, measured or not."""
    found = {name: checks.get(name, absent("not asked for in this run")).to_json() for name in BOUNDS}
    return {"bench": "detect", "machine": machine, **more, "checks": found, "rows": list(rows)}


def tables(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines in Markdown: the parts, then the checks."""
    rows: Sequence[Mapping[str, Any]] = document["rows"]
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        keys = [key for key in mine[0] if key != "part" and not isinstance(mine[0][key], dict | list)]
        yield f"{part}:"
        yield "| " + " | ".join(keys) + " |"
        yield "| " + " | ".join("---" for _ in keys) + " |"
        for row in mine:
            yield "| " + " | ".join(_cell(row.get(key)) for key in keys) + " |"
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
    return "yes" if (check["value"] <= bound if sign == "<=" else check["value"] >= bound) else "NO"


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
