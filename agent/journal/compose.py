"""From a verdict to its message: pure, and total.

Whatever a model or a trigger hands us becomes valid JSON under 4,096 bytes: numbers that are none become null, text
that is not Unicode is escaped, what is too long is cut. A message that could not be composed would be a part without
verdict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from agent.frame import BgrImage, Fault, Part, Stamp
from agent.inspection import BundleRef, Finding, Inspection
from agent.locate import Located
from agent.messages import (
    MAX_VERDICT_BYTES,
    EventMessage,
    FindingMessage,
    ImageRef,
    LocatedMessage,
    Milliseconds,
    VerdictMessage,
    ViewImageRef,
    ViewMessage,
    rfc3339,
    to_json,
)
from agent.verdict import Decision, Verdict

__all__ = [
    "Draft",
    "Exposure",
    "Header",
    "draft_from_verdict",
    "event_message",
    "interrupted_draft",
    "plain_text",
    "uuid7",
    "verdict_json",
    "verdict_message",
]

MAX_UTC_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: RFC 3339 has four digits for the year."""

TEXT_BYTES = {"part": 256, "reason": 1_024, "class": 128, "engine": 128, "bundle": 128, "digest": 128, "recipe": 128}
"""What each text may take in the JSON: together with the longest station name they leave room for the numbers."""

TIGHT_BYTES = 64

_random = random.Random(os.urandom(32))  # noqa: S311 - for uniqueness, not for secrets; urandom gives up the GIL each time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """A picture to keep of a part.

    Attributes:
        view: whose it is; empty with one camera.
        image: (H, W, 3) uint8 BGR.
        verdict: about this picture, without frame and heatmap: its boxes are drawn on what goes out.
        publish: whether it also goes out: it is flagged.
        is_foremost: it is the one that the part's decision is about.
    """

    view: str
    image: BgrImage
    verdict: Verdict
    publish: bool
    is_foremost: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A verdict on its way to the disk, without what the disk doesn't need: it may wait there in hundreds.

    Attributes:
        verdict: without frame and heatmap.
        moment: exposure, or trigger when there was no exposure.
        trigger_boot: which start of the agent triggered the part; with `part.sequence` the part's key.
        exposures: the pictures to keep, the foremost one first; none when they are not wanted.
    """

    verdict: Verdict
    moment: Stamp
    trigger_boot: str
    exposures: tuple[Exposure, ...] = ()

    @property
    def part(self) -> Part:
        """Whose verdict it is."""
        return self.verdict.inspection.part

    @property
    def key(self) -> tuple[str, int]:
        """A part is answered once: this is what tells parts apart."""
        return self.trigger_boot, self.part.sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the journal knows and the verdict doesn't."""

    boot: str
    station: str
    clock: str
    recipe: str


def draft_from_verdict(verdict: Verdict, *, boot: str, keep: Literal["flagged", "all", "none"]) -> Draft:
    """Take from a verdict what has to be written, and let go of the rest."""
    inspection = verdict.inspection
    frame = inspection.frame
    return Draft(
        verdict=_without_pictures(verdict),
        moment=inspection.part.triggered if frame is None else frame.captured,
        trigger_boot=boot,
        exposures=() if keep == "none" else tuple(_exposures(verdict, keep_all=keep == "all")),
    )


def _exposures(verdict: Verdict, *, keep_all: bool) -> Iterator[Exposure]:
    """The pictures that are flagged, or all; of several views the worst one's first."""
    foremost = verdict.inspection.frame
    views = [(view.name, view.verdict) for view in _views_of(verdict)] or [("", verdict)]
    views.sort(key=lambda view: view[1].inspection.frame is not foremost)
    for name, judged in views:
        frame, flagged = judged.inspection.frame, judged.decision is not Decision.OK
        if frame is not None and (keep_all or flagged):
            yield Exposure(
                view=name,
                image=frame.image,
                verdict=_without_pictures(judged),
                publish=flagged,
                is_foremost=frame is foremost,
            )


def interrupted_draft(part: Part, *, boot: str, now: Stamp, why: str) -> Draft:
    """The `error` verdict of a part that was triggered and can get no other.

    Args:
        part: as its trigger was written.
        boot: the start of the agent that triggered it.
        now: the moment of writing; the part's own monotonic time may be of another start of the machine.
        why: in words.
    """
    fault = Fault(part=part, stage="record", reason=why)
    inspection = Inspection(part=part, frame=None, fault=fault, bundle=BundleRef(name="", digest=""), engine="")
    return Draft(
        verdict=Verdict(decision=Decision.ERROR, reason=f"record: {why}", inspection=inspection, decided=now),
        moment=Stamp(part.triggered.utc_ms, now.mono_ns),
        trigger_boot=boot,
    )


def _without_pictures(verdict: Verdict) -> Verdict:
    inspection, views = verdict.inspection, _views_of(verdict)
    if inspection.frame is None and inspection.heatmap is None and not views:
        return verdict
    changes: dict[str, Any] = {"inspection": dataclasses.replace(inspection, frame=None, heatmap=None)}
    if views:
        changes["views"] = tuple(dataclasses.replace(view, verdict=_without_pictures(view.verdict)) for view in views)
    return dataclasses.replace(verdict, **changes)


def _views_of(verdict: Verdict) -> tuple[Any, ...]:
    """The views of an `agent.views.PartVerdict`; whoever reads the journal needs no cameras."""
    views: tuple[Any, ...] = getattr(verdict, "views", ())
    return views


def verdict_message(
    draft: Draft,
    header: Header,
    *,
    rec: int,
    id_: str,
    image: ImageRef | None,
    view_images: Mapping[str, ViewImageRef] = MappingProxyType({}),
) -> VerdictMessage:
    """The message of one verdict: numbers rounded and finite, text cut to what may be sent.

    Args:
        draft: what was decided.
        header: what the journal knows.
        rec: record number.
        id_: of the verdict.
        image: the foremost picture.
        view_images: the views' own pictures by the view's name.
    """
    verdict, inspection = draft.verdict, draft.verdict.inspection
    time_ms = min(max(0, draft.moment.utc_ms), MAX_UTC_MS)
    return VerdictMessage(
        rec=rec,
        boot=header.boot,
        id=id_,
        part=_cut(inspection.part.id, TEXT_BYTES["part"]),
        station=header.station,
        time=rfc3339(time_ms),
        time_ms=time_ms,
        mono_ns=draft.moment.mono_ns,
        clock=header.clock,
        decision=verdict.decision.value,
        code=verdict.decision.code,
        quality=verdict.decision.quality,
        reason=_cut(verdict.reason, TEXT_BYTES["reason"]),
        class_=_cut(verdict.top.class_name, TEXT_BYTES["class"]) if verdict.top else None,
        score=_number(verdict.score, 6),
        threshold=_number(verdict.threshold, 6),
        uncertainty=_number(inspection.uncertainty, 4),
        recipe=_cut(header.recipe, TEXT_BYTES["recipe"]) or None,
        bundle=_cut(inspection.bundle.name, TEXT_BYTES["bundle"]),
        bundle_digest=_cut(inspection.bundle.digest, TEXT_BYTES["digest"]),
        engine=_cut(inspection.engine, TEXT_BYTES["engine"]),
        n_findings=len(verdict.findings),
        findings=_findings(verdict.findings),
        image=image,
        ms=_milliseconds(verdict),
        late_ms=_number(verdict.late_ms, 1),
        views=tuple(
            ViewMessage(
                name=_cut(view.name, TIGHT_BYTES),
                decision=view.decision.value,
                class_=None if view.class_name is None else _cut(view.class_name, TIGHT_BYTES // 2),
                score=_number(view.score, 4),
                image=view_images.get(view.name),
            )
            for view in _views_of(verdict)
        ),
        located=_located(inspection.located),
    )


def verdict_json(message: VerdictMessage) -> bytes:
    """The message as it is published, under `MAX_VERDICT_BYTES` whatever its texts are."""
    payload = to_json(message)
    for tighten in (_with_short_texts, _with_short_views):
        if len(payload) > MAX_VERDICT_BYTES:  # a long station name stands twice in it, and 16 views may be there
            message = tighten(message)
            payload = to_json(message)
    while len(payload) > MAX_VERDICT_BYTES and message.views:
        message = dataclasses.replace(message, views=_with_less(message.views))
        payload = to_json(message)
    return payload


def _with_short_texts(message: VerdictMessage) -> VerdictMessage:
    return dataclasses.replace(
        message,
        part=_cut(message.part, TIGHT_BYTES),
        reason=_cut(message.reason, TIGHT_BYTES),
        class_=None if message.class_ is None else _cut(message.class_, TIGHT_BYTES),
        bundle=_cut(message.bundle, TIGHT_BYTES),
        engine=_cut(message.engine, TIGHT_BYTES),
    )


def _with_short_views(message: VerdictMessage) -> VerdictMessage:
    views = [
        view if view.image is None else dataclasses.replace(view, image=dataclasses.replace(view.image, sha256=None))
        for view in message.views
    ]
    return dataclasses.replace(message, views=tuple(views))


def _with_less(views: tuple[ViewMessage, ...]) -> tuple[ViewMessage, ...]:
    """With one picture's name less; then without the last `ok` view, then without the last one."""
    named = [number for number, view in enumerate(views) if view.image is not None]
    if named:
        bare = dataclasses.replace(views[named[-1]], image=None)
        return (*views[: named[-1]], bare, *views[named[-1] + 1 :])
    good = [number for number, view in enumerate(views) if view.decision == Decision.OK.value]
    gone = good[-1] if good else len(views) - 1
    return views[:gone] + views[gone + 1 :]


def event_message(
    name: str,
    severity: Literal["info", "warning", "alarm"],
    text: str,
    *,
    station: str,
    now: Stamp,
    data: Mapping[str, Any],
) -> EventMessage:
    """An event: what happened in words, with the numbers and names that go with it."""
    time_ms = min(max(0, now.utc_ms), MAX_UTC_MS)
    return EventMessage(
        station=station,
        event=_cut(name, TIGHT_BYTES),
        severity=severity,
        text=_cut(text, TEXT_BYTES["reason"]),
        time=rfc3339(time_ms),
        time_ms=time_ms,
        data={_cut(key, TIGHT_BYTES): _scalar(value) for key, value in data.items()},
    )


def plain_text(text: str) -> str:
    r"""Text that UTF-8 can carry: a lone surrogate (a file name in another encoding) is written as `\udc80`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def uuid7(utc_ms: int) -> str:
    """A UUID whose order is that of time (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits."""
    time_bits = min(max(0, utc_ms), MAX_UTC_MS) << 80
    random_bits = _random.getrandbits(80)
    value = time_bits | random_bits
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _findings(findings: tuple[Finding, ...]) -> tuple[FindingMessage, ...]:
    """The foremost findings; one whose score is not a number says nothing and is left out (`n_findings` counts it)."""
    sound = ((finding, _number(finding.score, 4)) for finding in findings[:64])
    return tuple(
        FindingMessage(
            class_=_cut(finding.class_name, TEXT_BYTES["class"]),
            score=score,
            box=_box(finding.box_px),
            size_mm=_number(finding.size_mm, 3),
            zone=None if finding.zone is None else _cut(finding.zone, TIGHT_BYTES),
        )
        for finding, score in sound
        if score is not None
    )


def _located(located: Located | None) -> LocatedMessage | None:
    """Where the part lay; None where a number of it is none."""
    if located is None or not math.isfinite(located.score + sum(located.shift_px) + located.turn_deg):
        return None
    x_px, y_px = located.shift_px
    return LocatedMessage(
        score=round(float(located.score), 4),
        shift_x_px=round(float(x_px), 2),
        shift_y_px=round(float(y_px), 2),
        turn_deg=round(float(located.turn_deg), 2),
    )


def _box(box: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    x, y, width, height = box
    if not math.isfinite(x + y + width + height):
        return None
    return round(float(x), 1), round(float(y), 1), round(float(width), 1), round(float(height), 1)


def _milliseconds(verdict: Verdict) -> Milliseconds:
    ms, part = verdict.inspection.ms, verdict.inspection.part
    total = (verdict.decided.mono_ns - part.triggered.mono_ns) / 1e6  # negative only after a restart of the machine
    return Milliseconds(
        capture=_number(ms.capture, 3) or 0.0,
        preprocess=_number(ms.preprocess, 3) or 0.0,
        infer=_number(ms.infer, 3) or 0.0,
        decide=_number(ms.decode + verdict.decide_ms, 3) or 0.0,
        total=max(0.0, round(total, 3)),
    )


def _number(value: float | None, digits: int) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), digits)


def _scalar(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _cut(str(value), TEXT_BYTES["reason"])


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes as JSON writes it; what is cut ends in … and eight digits of the whole text's SHA-256."""
    if len(text) * 2 <= limit and text.isascii() and text.isprintable():  # only quotes and backslashes grow
        return text
    text = plain_text(text)
    if _json_bytes(text) <= limit:
        return text
    mark = f"…{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    kept = text[:limit]
    while kept and _json_bytes(kept + mark) > limit:
        kept = kept[: min(len(kept) - 1, len(kept) * limit // _json_bytes(kept + mark))]
    return kept + mark


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2
