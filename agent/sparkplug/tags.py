"""The metrics by name: what each one is, and how its value follows from what the station says anyway.

Names, types and aliases are a contract: only ever added to. `README.md` beside this file holds the same table for
people; a test holds both together.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from agent.messages import MetricsMessage, StatusMessage
from agent.sparkplug.payload import DataType, Metric, Value

__all__ = [
    "BDSEQ",
    "COMMANDS",
    "DEVICE",
    "NODE",
    "REBIRTH",
    "REPLY",
    "Board",
    "Tag",
    "count_values",
    "node_values",
    "part_time_ms",
    "part_values",
]

BDSEQ = "bdSeq"
REBIRTH = "Node Control/Rebirth"
REPLY = "Control/Reply"

Values = dict[str, Value | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """One metric.

    Attributes:
        name: with slashes, which make folders.
        alias: its number in data and commands; never under two names.
        datatype: of its value.
        unit: engineering unit; empty for none.
    """

    name: str
    alias: int
    datatype: DataType
    unit: str = ""


def _tags(first_alias: int, *rows: tuple[str, DataType, str]) -> tuple[Tag, ...]:
    return tuple(
        Tag(name=name, alias=alias, datatype=datatype, unit=unit)
        for alias, (name, datatype, unit) in enumerate(rows, first_alias)
    )


_I32, _I64, _DOUBLE, _TEXT, _BOOL = DataType.INT32, DataType.INT64, DataType.DOUBLE, DataType.STRING, DataType.BOOLEAN

NODE = _tags(
    1,
    ("Properties/Station", _TEXT, ""),
    ("Properties/Agent Version", _TEXT, ""),
    ("Properties/Boot", _TEXT, ""),
    ("Bundle/Name", _TEXT, ""),
    ("Bundle/Digest", _TEXT, ""),
    ("Engine/Name", _TEXT, ""),
    ("State/Code", _I32, ""),
    ("State/Name", _TEXT, ""),
    ("State/Reason", _TEXT, ""),
    ("Queue/Outbox", _I64, ""),
    ("Queue/Historical", _I64, ""),
    ("Queue/Skipped", _I64, ""),
    ("Health/Disk Free", _I64, "B"),
    ("Health/Evidence", _I64, "B"),
    ("Health/Temperature", _DOUBLE, "°C"),
    ("Health/Throttled", _TEXT, ""),
)
"""Of the edge node; beside them `bdSeq` and `Node Control/Rebirth`, which have no alias."""

PART = _tags(
    101,
    ("Part/Record", _I64, ""),
    ("Part/Id", _TEXT, ""),
    ("Part/Time", DataType.DATETIME, ""),
    ("Part/Decision", _TEXT, ""),
    ("Part/Code", _I32, ""),
    ("Part/Quality", _I32, ""),
    ("Part/Reason", _TEXT, ""),
    ("Part/Class", _TEXT, ""),
    ("Part/Score", _DOUBLE, ""),
    ("Part/Threshold", _DOUBLE, ""),
    ("Part/Findings", _I32, ""),
    ("Part/Latency", _DOUBLE, "ms"),
    ("Part/Late", _DOUBLE, "ms"),
    ("Part/Recipe", _TEXT, ""),
    ("Part/Bundle", _TEXT, ""),
    ("Part/Image", _TEXT, ""),
)
COUNTS = _tags(
    201,
    ("Count/Triggers", _I64, ""),
    ("Count/OK", _I64, ""),
    ("Count/Defect", _I64, ""),
    ("Count/Review", _I64, ""),
    ("Count/Error", _I64, ""),
    ("Count/Pending", _I64, ""),
    ("Count/Refused", _I64, ""),
    ("Count/Late", _I64, ""),
    ("Rate/Parts", _DOUBLE, "1/min"),
    ("Rate/Not OK", _DOUBLE, "%"),
)
DEVICE = PART + COUNTS

COMMANDS = {
    tag.name: tag
    for tag in _tags(
        301,
        ("Control/Trigger", _TEXT, ""),
        ("Control/Pause", _BOOL, ""),
        ("Control/Recipe", _TEXT, ""),
        ("Control/Defect Above", _DOUBLE, ""),
        ("Control/Review Above", _DOUBLE, ""),
        (REPLY, _TEXT, ""),
    )
}
"""What a host may write, as far as somebody takes it; the last one is the answer, and can't be written."""

STATE_CODES = {"online": 1, "degraded": 2}


class Board:
    """The tags of a node or a device with their present values.

    Args:
        tags: all that will ever be sent.
        with_datatype: in data too; the decoder that most hosts use reads null without it.
    """

    def __init__(self, tags: Iterable[Tag], *, with_datatype: bool) -> None:
        self.tags = tuple(tags)
        self._with_datatype = with_datatype
        self._by_name = {tag.name: tag for tag in self.tags}
        self._values: Values = {tag.name: None for tag in self.tags}

    def birth(self, now_ms: int) -> list[Metric]:
        """Every tag with name, alias, type, unit and present value."""
        return [
            Metric(
                name=tag.name, alias=tag.alias, timestamp_ms=now_ms, datatype=tag.datatype,
                value=self._values[tag.name], unit=tag.unit,
            )
            for tag in self.tags
        ]  # fmt: skip

    def set_(self, values: Values) -> None:
        """Present values, without news of them."""
        self._values.update(values)

    def changed(self, values: Values, at_ms: int) -> list[Metric]:
        """Those of the values that are others than before, as data."""
        news = {name: value for name, value in values.items() if self._values[name] != value}
        return self.news(news, at_ms)

    def news(self, values: Values, at_ms: int, *, is_historical: bool = False) -> list[Metric]:
        """Values as data, changed or not; historical ones are not the present ones."""
        if not is_historical:
            self._values.update(values)
        return [
            Metric(
                alias=self._by_name[name].alias, timestamp_ms=at_ms, value=value, is_historical=is_historical,
                datatype=self._by_name[name].datatype,
                is_type_told=self._with_datatype,
            )
            for name, value in values.items()
        ]  # fmt: skip


def part_values(body: bytes) -> Values:
    """The `Part/…` values of one verdict, from its message as it stands in the journal."""
    verdict: dict[str, Any] = json.loads(body)
    time_ms = _int(verdict.get("time_ms"))
    image, ms = verdict.get("image"), verdict.get("ms") or {}
    return {
        "Part/Record": _int(verdict.get("rec")),
        "Part/Id": _text(verdict.get("part")),
        "Part/Time": None if time_ms is None else max(0, time_ms),
        "Part/Decision": _text(verdict.get("decision")),
        "Part/Code": _int(verdict.get("code")),
        "Part/Quality": _int(verdict.get("quality")),
        "Part/Reason": _text(verdict.get("reason")),
        "Part/Class": _text(verdict.get("class")),
        "Part/Score": _float(verdict.get("score")),
        "Part/Threshold": _float(verdict.get("threshold")),
        "Part/Findings": _int(verdict.get("n_findings")),
        "Part/Latency": _float(ms.get("total")),
        "Part/Late": _float(verdict.get("late_ms")),
        "Part/Recipe": _text(verdict.get("recipe")),
        "Part/Bundle": _text(verdict.get("bundle")),
        "Part/Image": _text(image.get("id")) if isinstance(image, dict) else None,
    }


NO_PART: Values = {
    **{tag.name: None for tag in PART},
    "Part/Record": 0, "Part/Code": 0, "Part/Quality": 0,
}  # fmt: skip
"""Before the first part: code 0 is no result, and never means ok."""


def part_time_ms(values: Values) -> int:
    """The exposure, UTC milliseconds; 0 where nobody knows it, or a clock that was wrong put it before 1970."""
    time_ms = values["Part/Time"]
    return time_ms if isinstance(time_ms, int) else 0


def node_values(status: StatusMessage | None, metrics: MetricsMessage | None) -> Values:
    """The node's values, of which those are left out that nobody could give."""
    values: Values = {}
    if status is not None:
        values |= {
            "Properties/Station": status.station,
            "Properties/Agent Version": status.version,
            "Properties/Boot": status.boot,
            "Bundle/Name": status.bundle,
            "Bundle/Digest": status.bundle_digest,
            "Engine/Name": status.engine,
            "State/Code": STATE_CODES.get(status.state, 0),
            "State/Name": status.state,
            "State/Reason": status.reason,
        }
    if metrics is not None:
        values |= {
            "Queue/Outbox": metrics.outbox,
            "Health/Disk Free": metrics.disk_free_bytes,
            "Health/Evidence": metrics.evidence_bytes,
            "Health/Temperature": _float(metrics.temperature_c),
            "Health/Throttled": "; ".join(metrics.throttled),
        }
    return values


def count_values(metrics: MetricsMessage, before: Mapping[str, int] | None, seconds: float) -> Values:
    """The device's counters and rates.

    Args:
        metrics: as of now.
        before: the ledger `seconds` ago, or None where there was none; then there are no rates.
        seconds: since then.
    """
    ledger = metrics.ledger
    names = ("triggers", "ok", "defect", "review", "error", "pending", "refused")
    values: Values = {f"Count/{'OK' if name == 'ok' else name.title()}": ledger.get(name) for name in names}
    values["Count/Late"] = metrics.late
    if before is not None and seconds > 0:
        done = {name: ledger.get(name, 0) - before.get(name, 0) for name in ("ok", "defect", "review", "error")}
        parts = sum(done.values())
        values["Rate/Parts"] = round(parts * 60 / seconds, 1)
        values["Rate/Not OK"] = round(100 * (parts - done["ok"]) / parts, 2) if parts else None
    return values


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
