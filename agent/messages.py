"""The payloads of the wire as frozen types: what SCADA, MES and historians read.

One verdict is one flat JSON object under 4 kB (PLC libraries stop there), scalars at the top. A field is only ever
added, never renamed; `schema` says which set this is. A register that reads zero never means ok: codes start at 1.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import typing
from collections.abc import Hashable
from typing import Any, Literal

__all__ = [
    "MAX_VERDICT_BYTES",
    "EventMessage",
    "FindingMessage",
    "ImageRef",
    "LocatedMessage",
    "MetricsMessage",
    "Milliseconds",
    "StatusMessage",
    "VerdictMessage",
    "ViewImageRef",
    "ViewMessage",
    "rfc3339",
    "to_json",
]

MAX_VERDICT_BYTES = 4096 - 8
"""CODESYS's MQTT library takes payloads up to 4,096 bytes by default (its parameter list MQTTParam); eight are kept for
`late_ms`, which may be written over its null."""

StatusState = Literal["online", "offline", "degraded"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FindingMessage:
    """One finding.

    Attributes:
        class_: on the wire `class`.
        score: 0 to 1.
        box: x, y, width, height in pixels of the frame, or null for the whole picture.
        size_mm: its longer side in millimetres, or null where the pixel pitch is not known.
        zone: the zone whose limits it was compared with, or null outside all zones.
    """

    class_: str
    score: float
    box: tuple[float, float, float, float] | None
    size_mm: float | None = None
    zone: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocatedMessage:
    """Where the part lay, found by matching the template of the region of interest.

    Attributes:
        score: of the match, a normalised correlation, -1 to 1.
        shift_x_px: from where the template's middle lies in the reference picture to where it lies in this one, in
            pixels of the frame; to the right.
        shift_y_px: likewise, downwards.
        turn_deg: how far the part is turned against the reference, in degrees, clockwise.
    """

    score: float
    shift_x_px: float
    shift_y_px: float
    turn_deg: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ViewImageRef:
    """The picture of one flagged view; it comes on the topic `ROOT/image/ID`.

    Attributes:
        id: of the picture.
        sha256: hex; null where a part with very many flagged views leaves no room for it in 4 kB.
        bytes: its size.
    """

    id: str
    sha256: str | None
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ViewMessage:
    """What one of several cameras alone would have decided.

    Attributes:
        name: of the view.
        decision: `ok`, `defect`, `review` or `error`.
        class_: on the wire `class`; the class that decided, or null.
        score: defect score, 0 to 1, or null.
        image: reference to its own picture where this view is flagged, or null; also null in the last of very many
            flagged views, where 4 kB have no room for it: the journal names all.
    """

    name: str
    decision: str
    class_: str | None
    score: float | None
    image: ViewImageRef | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where the picture of a flagged part is; the picture itself comes on `topic`."""

    id: str
    sha256: str
    bytes: int
    topic: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Milliseconds:
    """What the part's way through the agent took, per stage."""

    capture: float
    preprocess: float
    infer: float
    decide: float
    total: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerdictMessage:
    """`ROOT/verdict`, QoS 1, one per part.

    Attributes:
        schema: 1.
        rec: record number, gapless per journal, never reused: a consumer removes repeats and finds gaps by it.
        boot: which start of the agent wrote it (eight hex digits).
        id: UUIDv7 of the verdict.
        part: the plant's name for the part.
        station: ROOT.
        time: RFC 3339 UTC with milliseconds, the moment of exposure (of the trigger when there was none).
        time_ms: the same in milliseconds since 1970.
        mono_ns: the same on the monotonic clock of this boot.
        clock: `synced`, `unsynced` or `unknown`.
        decision: `ok`, `defect`, `review` or `error`.
        code: 1 ok, 2 defect, 3 review, 4 error; 0 is never sent.
        quality: 192 good, 64 uncertain, 0 bad (OPC).
        reason: in words.
        class_: on the wire `class`; the class that decided, or null.
        score: defect score, 0 to 1, or null; of a detector the score of the finding that decided.
        threshold: the limit that it was compared with, or null.
        uncertainty: 0 sure to 1 no idea, or null.
        recipe: the recipe's name, or null.
        bundle: name-version.
        bundle_digest: SHA-256 of the manifest, hex.
        engine: in words.
        n_findings: how many findings there are: classes, or a detector's that reach the lower limit that holds for
            them; `findings` may hold fewer to stay under 4 kB.
        findings: the foremost ones.
        image: reference to the flagged picture, of several views that of the worst one, or null.
        ms: milliseconds per stage.
        chain: hash of this record and the chain before it (hex), or null until the journal keeps one.
        replayed: true when sent again on request.
        views: one per camera where several see a part, the first camera first; the worst one is the part's decision.
            Fewer, flagged ones first, only where even without findings they take more than 4 kB.
        late_ms: how long after its deadline the part was decided (the fast outputs were told `error` then), or null.
        located: where the part lay, of several views in the picture of the worst one; null where nobody searched, or
            where it was not found.
    """

    schema: int = 1
    rec: int
    boot: str
    id: str
    part: str
    station: str
    time: str
    time_ms: int
    mono_ns: int
    clock: str
    decision: str
    code: int
    quality: int
    reason: str
    class_: str | None
    score: float | None
    threshold: float | None
    uncertainty: float | None
    recipe: str | None
    bundle: str
    bundle_digest: str
    engine: str
    n_findings: int
    findings: tuple[FindingMessage, ...]
    image: ImageRef | None
    ms: Milliseconds
    chain: str | None = None
    replayed: bool = False
    late_ms: float | None = None
    views: tuple[ViewMessage, ...] = ()
    located: LocatedMessage | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StatusMessage:
    """`ROOT/status`, QoS 1, retained; `offline` is also the last will.

    Attributes:
        ledger: `triggers`, `ok`, `defect`, `review`, `error`, `pending`: the first is the sum of the others, always;
            beside them `refused`, which are errors too.
    """

    schema: int = 1
    station: str
    state: StatusState
    reason: str
    since: str
    time: str
    boot: str
    version: str
    bundle: str | None
    bundle_digest: str | None
    engine: str | None
    counters: dict[str, int]
    ledger: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventMessage:
    """`ROOT/event`, QoS 1: something that a person should know of.

    Attributes:
        event: its name, for example `camera_lost`, `evidence_dropped`, `clock_jumped`.
        severity: `info`, `warning` or `alarm`.
        text: what happened, in words.
        data: numbers and names that go with it.
    """

    schema: int = 1
    station: str
    event: str
    severity: Literal["info", "warning", "alarm"]
    text: str
    time: str
    time_ms: int
    data: dict[str, str | int | float | bool | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsMessage:
    """`ROOT/metrics`, QoS 0, every few seconds.

    Attributes:
        ledger: as in the status.
        late: parts of this run that were decided after their deadline.
        throttled: what holds the board back now (heat, a weak power supply), in words; empty when nothing does.
        temperature_c: of the hottest sensor, or null where the board tells none.
    """

    schema: int = 1
    station: str
    time: str
    uptime_s: float
    counters: dict[str, int]
    outbox: int
    journal_pending: int
    evidence_bytes: int
    disk_free_bytes: int
    ledger: dict[str, int] = dataclasses.field(default_factory=dict)
    late: int = 0
    throttled: tuple[str, ...] = ()
    temperature_c: float | None = None


Message = VerdictMessage | StatusMessage | EventMessage | MetricsMessage


def rfc3339(utc_ms: int) -> str:
    """`1791191643127` as `2026-10-05T09:14:03.127Z`."""
    moment = dt.datetime.fromtimestamp(utc_ms // 1000, tz=dt.timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{utc_ms % 1000:03d}Z"


def to_json(message: Message) -> bytes:
    """Write a message as compact UTF-8 JSON; `class_` becomes `class`, NaN is refused.

    A verdict over `MAX_VERDICT_BYTES` first loses findings from the end, then the end of its reason: the decision
    and its numbers always fit.
    """
    data = _wire(message)
    payload = _dump(data)
    while isinstance(message, VerdictMessage) and len(payload) > MAX_VERDICT_BYTES:
        if data["findings"]:
            data["findings"] = data["findings"][: len(data["findings"]) // 2]
        elif len(data["reason"]) > 80:
            data["reason"] = data["reason"][: len(data["reason"]) // 2] + "…"
        else:
            break
        payload = _dump(data)
    return payload


def _dump(data: dict[str, Any]) -> bytes:
    return _ENCODER.encode(data).encode()


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _wire(value: Any) -> Any:
    """A message as plain values. Not `dataclasses.asdict`: that copies every leaf, and this runs once per part."""
    if isinstance(value, tuple):
        return [_wire(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((wire, getattr(value, name)) for wire, name in _wire_names(typing.cast("Hashable", type(value))))
    return {wire: item if type(item) in _PLAIN else _wire(item) for wire, item in fields}


_PLAIN = frozenset({str, int, float, bool, type(None)})


@functools.cache
def _wire_names(kind: Hashable) -> tuple[tuple[str, str], ...]:
    """Names on the wire and in the type."""
    fields = dataclasses.fields(typing.cast("Any", kind))
    return tuple((field.name.removesuffix("_"), field.name) for field in fields)
