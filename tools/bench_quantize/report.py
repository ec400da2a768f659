"""What was measured, as JSON and as tables to read."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench_quantize.checks import BOUNDS, NAMES, WITHIN_INTERVAL
from tools.bench_quantize.figures import absent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tools.bench_quantize.figures import Figure

__all__ = ["document_of", "holds", "save", "tables"]

RESULTS = Path(__file__).resolve().parents[1] / "bench_results"


def document_of(
    checks: Mapping[str, Figure], rows: Sequence[Mapping[str, Any]], machine: str, **more: Any
) -> dict[str, Any]:
    """The bench's JSON: every check that the issue names, in its order, measured or not."""
    return {
        "bench": "quantize",
        "machine": machine,
        **more,
        "checks": {name: checks.get(name, absent("not asked for in this run")).to_json() for name in NAMES},
        "rows": list(rows),
    }


def holds(name: str, check: Mapping[str, Any]) -> bool | None:
    """Whether a check is what the issue asks for; None when it was not measured."""
    if check["value"] is None:
        return None
    sign, bound = BOUNDS[name]
    if sign == "<=":
        return bool(check["value"] <= bound)
    reached = check["high"] if name in WITHIN_INTERVAL else check["value"]
    return bool(reached > bound if sign == ">" else reached >= bound)


def tables(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines in Markdown: one table per net, then the checks; where ours is behind it says so."""
    rows: Sequence[Mapping[str, Any]] = document["rows"]
    for net in dict.fromkeys(row["net"] for row in rows):
        yield from _net_table(net, [row for row in rows if row["net"] == net])
    yield from _by_net_table(document.get("by_net", {}))
    yield "| check | value | 95 % interval | asked | holds | |"
    yield "| --- | ---: | --- | --- | --- | --- |"
    for name, check in document["checks"].items():
        sign, bound = BOUNDS[name]
        answer = {True: "yes", False: "NO", None: "not measured"}[holds(name, check)]
        why = check.get("why", "")
        yield f"| {name} | {_number(check['value'])} | {_interval(check)} | {sign} {bound:g} | {answer} | {why} |"


def _net_table(net: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"**{net}**"
    yield ""
    yield "| graph | arithmetic | accuracy | drop, points | agreement | SNR dB | ms | |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    best = _best_snr(rows)
    for row in rows:
        cells = [row.get("name", row["maker"]), row.get("arithmetic", ""), _percent(row.get("accuracy"))]
        cells += [_number(_value(row, key)) for key in ("drop_points",)]
        cells += [_percent(_value(row, "agreement")), _number(_value(row, "snr_db")), _number(row.get("ms"))]
        yield f"| {' | '.join(cells)} | {row.get('why', '') or _behind(row, best)} |"
    yield ""


def _by_net_table(by_net: Mapping[str, Any]) -> Iterator[str]:
    """Ours beside theirs, net by net, in both arithmetics."""
    if not by_net:
        return
    yield "| net | arithmetic | ours, cpu | value | 95 % interval | |"
    yield "| --- | --- | --- | ---: | --- | --- |"
    for net, by_mode in by_net.items():
        for mode, figures in by_mode.items():
            for name, figure in figures.items():
                cells = [net, mode, name, _number(figure["value"]), _interval(figure), figure.get("why", "")]
                yield f"| {' | '.join(cells)} |"
    yield ""


def _best_snr(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By arithmetic, the highest signal to noise of theirs."""
    best: dict[str, float] = {}
    for row in rows:
        snr = _value(row, "snr_db")
        if row["maker"] in ("ort", "nncf") and snr is not None:
            best[row["arithmetic"]] = max(snr, best.get(row["arithmetic"], snr))
    return best


def _behind(row: Mapping[str, Any], best: Mapping[str, float]) -> str:
    snr, other = _value(row, "snr_db"), best.get(row.get("arithmetic", ""))
    if row["maker"] != "ours" or row["name"] != "ours cpu" or snr is None or other is None or snr >= other:
        return ""
    return f"BEHIND the best of theirs by {other - snr:.1f} dB"


def _value(row: Mapping[str, Any], key: str) -> float | None:
    found = row.get(key)
    return None if found is None else found["value"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _interval(check: Mapping[str, Any]) -> str:
    return "" if check["low"] is None else f"{check['low']:.2f} … {check['high']:.2f}"


def save(document: Mapping[str, Any]) -> Path:
    """Write the document beside the other results, by date.

    Returns:
        The file.
    """
    today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{today}-quantize.json"
    dated = {"bench": document["bench"], "date": today, **document}
    path.write_text(json.dumps(dated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
