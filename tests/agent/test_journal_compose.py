"""A verdict's message: valid JSON under 4,096 bytes, whatever the model, the trigger or the clock hand us."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.frame import Fault, Part, Stamp
from agent.inspection import BundleRef, Finding, Inspection, StageMs
from agent.journal.compose import (
    Draft,
    Header,
    draft_from_verdict,
    event_message,
    interrupted_draft,
    plain_text,
    uuid7,
    verdict_json,
    verdict_message,
)
from agent.locate import Located
from agent.messages import MAX_VERDICT_BYTES, ImageRef, ViewImageRef, to_json
from agent.verdict import Decision, Verdict
from agent.views import PartVerdict, ViewResult, worst_of
from tests.kit.verdicts import make_image, make_part, make_verdict

HEADER = Header(boot="0badcafe", station="acme/plant1/finishing/line3/cam1", clock="synced", recipe="caps")
LONG_STATION = "/".join(["工場" * 32] * 5)
"""The longest station name that the configuration takes, in letters of three bytes."""

floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(max_size=300) | st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF), max_size=40)
boxes = st.none() | st.tuples(floats, floats, floats, floats)
findings = st.builds(
    Finding,
    class_name=texts,
    severity=st.sampled_from(["ok", "major"]),
    score=floats,
    box_px=boxes,
    size_mm=st.none() | floats,
    zone=st.none() | texts,
)
utc = st.integers(-(2**62), 2**62)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    stamps = st.builds(Stamp, utc, st.integers(0, 2**62))
    part = Part(id=draw(texts), trigger="t", sequence=draw(st.integers(1, 2**40)), triggered=draw(stamps))
    seen = draw(st.lists(findings, max_size=100))
    inspection = Inspection(
        part=part,
        frame=None,
        fault=None,
        findings=tuple(seen),
        defect_score=draw(st.none() | floats),
        uncertainty=draw(st.none() | floats),
        ms=StageMs(capture=draw(floats), preprocess=draw(floats), infer=draw(floats), decode=draw(floats)),
        bundle=BundleRef(name=draw(texts), digest=draw(texts)),
        engine=draw(texts),
    )
    verdict = Verdict(
        decision=draw(st.sampled_from(Decision)),
        reason=draw(texts) * draw(st.integers(1, 20)),
        inspection=inspection,
        findings=tuple(seen),
        top=seen[0] if seen else None,
        score=draw(st.none() | floats),
        threshold=draw(st.none() | floats),
        decided=draw(stamps),
        decide_ms=draw(floats),
    )
    return draft_from_verdict(verdict, boot="0badcafe", keep="none")


def strict_json(payload: bytes) -> dict[str, Any]:
    """Decode as a strict consumer does: UTF-8 only, no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    value: dict[str, Any] = json.loads(payload.decode("utf-8", "strict"), parse_constant=refuse)
    return value


@given(draft=drafts(), station=st.sampled_from([HEADER.station, LONG_STATION]), has_image=st.booleans())
def test_any_verdict_becomes_valid_json_that_a_plc_library_takes(draft: Draft, station: str, has_image: bool) -> None:
    """A message that can't be composed, parsed or received is a part without a verdict."""
    id_ = uuid7(draft.moment.utc_ms)
    image = ImageRef(id=id_, sha256="0" * 64, bytes=10**8, topic=f"{station}/image/{id_}") if has_image else None
    message = verdict_message(draft, dataclasses.replace(HEADER, station=station), rec=2**53, id_=id_, image=image)
    payload = verdict_json(message)
    decoded = strict_json(payload)

    assert len(payload) <= MAX_VERDICT_BYTES
    assert decoded["decision"] == draft.verdict.decision.value
    assert decoded["code"] == draft.verdict.decision.code
    assert decoded["n_findings"] == len(draft.verdict.findings)
    assert decoded["image"] == (None if image is None else dataclasses.asdict(image))


def test_a_message_holds_what_was_decided() -> None:
    """The fields that SCADA reads, each from its source."""
    part = make_part(7, id_="SN-00412", triggered=Stamp(1_791_191_643_000, 5_000_000_000))
    verdict = make_verdict(
        part,
        Decision.DEFECT,
        image=make_image(),
        captured=Stamp(1_791_191_643_127, 5_100_000_000),
        box_px=(4.0, 5.0, 20.0, 6.0),
    )
    verdict = dataclasses.replace(verdict, decided=Stamp(1_791_191_643_150, 5_123_456_789), decide_ms=0.25)
    draft = draft_from_verdict(verdict, boot="0badcafe", keep="flagged")
    message = strict_json(verdict_json(verdict_message(draft, HEADER, rec=184_467, id_="x", image=None)))

    assert message == {
        "schema": 1,
        "rec": 184_467,
        "boot": "0badcafe",
        "id": "x",
        "part": "SN-00412",
        "station": "acme/plant1/finishing/line3/cam1",
        "time": "2026-10-05T09:14:03.127Z",
        "time_ms": 1_791_191_643_127,
        "mono_ns": 5_100_000_000,
        "clock": "synced",
        "decision": "defect",
        "code": 2,
        "quality": 192,
        "reason": "scratch 0.91: defect score 0.91 reaches the limit 0.50",
        "class": "scratch",
        "score": 0.91,
        "threshold": 0.5,
        "uncertainty": 0.1,
        "recipe": "caps",
        "bundle": "caps-1.0.0",
        "bundle_digest": "0123456789abcdef" * 4,
        "engine": "kit 1.0 CPU, 1 thread",
        "n_findings": 2,
        "findings": [
            {"class": "scratch", "score": 0.91, "box": [4.0, 5.0, 20.0, 6.0], "size_mm": None, "zone": None},
            {"class": "good", "score": 0.09, "box": None, "size_mm": None, "zone": None},
        ],
        "image": None,
        "ms": {"capture": 4.2, "preprocess": 0.4, "infer": 7.9, "decide": 0.35, "total": 123.457},
        "chain": None,
        "replayed": False,
        "late_ms": None,
        "views": [],
        "located": None,
    }


def test_without_an_exposure_the_time_is_that_of_the_trigger() -> None:
    """A camera that gave nothing leaves the trigger as the only moment that can be told."""
    part = make_part(triggered=Stamp(1_791_191_643_000, 42))
    draft = draft_from_verdict(make_verdict(part, Decision.ERROR), boot="b", keep="flagged")

    assert draft.moment == Stamp(1_791_191_643_000, 42)


def test_a_waiting_verdict_holds_no_picture_that_nobody_keeps() -> None:
    """Hundreds of verdicts may wait for the disk; with 36 MB of pixels each the device would run out of memory."""
    image = make_image()

    def kept(decision: Decision, keep: Any) -> bool:
        draft = draft_from_verdict(make_verdict(decision=decision, image=image), boot="b", keep=keep)
        assert draft.verdict.inspection.frame is None
        return [exposure.image is image for exposure in draft.exposures] == [True]

    assert [kept(Decision.OK, "flagged"), kept(Decision.OK, "all"), kept(Decision.OK, "none")] == [False, True, False]
    assert [kept(Decision.DEFECT, "flagged"), kept(Decision.ERROR, "flagged"), kept(Decision.REVIEW, "none")] == [
        True,
        True,
        False,
    ]


def test_text_too_long_is_cut_and_stays_different_from_other_text() -> None:
    """Two serial numbers that differ at their end must not become one."""

    def sent(part_id: str) -> str:
        draft = draft_from_verdict(make_verdict(make_part(id_=part_id)), boot="b", keep="none")
        return verdict_message(draft, HEADER, rec=1, id_="x", image=None).part

    first, second = sent("7" * 5_000 + "a"), sent("7" * 5_000 + "b")

    assert first != second
    assert first.startswith("7" * 200)
    assert "…" in first
    assert len(first.encode()) <= 256


def test_a_file_name_in_another_encoding_becomes_text() -> None:
    """Linux file names are bytes; Python gives what is not UTF-8 as lone surrogates, and JSON can't."""
    assert plain_text(b"caf\xe9.png".decode("utf-8", "surrogateescape")) == r"caf\udce9.png"
    assert plain_text("工場") == "工場"


def test_an_interrupted_part_says_what_happened_to_it() -> None:
    """The error verdict after a kill names the old start: who reads it must find the part on the line."""
    part = make_part(17, triggered=Stamp(1_791_191_643_000, 99))
    draft = interrupted_draft(part, boot="0ldb0070", now=Stamp(1_791_191_700_000, 5), why="stopped (start 0ldb0070)")
    message = verdict_message(draft, HEADER, rec=3, id_="x", image=None)

    assert message.decision == "error"
    assert message.reason == "record: stopped (start 0ldb0070)"
    assert message.time_ms == 1_791_191_643_000
    assert message.mono_ns == 5
    assert message.ms.total == 0.0
    assert message.score is None


def test_an_error_keeps_its_words() -> None:
    """The reason is for the person at the line."""
    part = make_part()
    fault = Fault(part=part, stage="capture", reason="no frame within 2 s")
    inspection = Inspection(part=part, frame=None, fault=fault, bundle=BundleRef(name="b", digest="d"), engine="e")
    verdict = Verdict(
        decision=Decision.ERROR, reason="capture: no frame within 2 s", inspection=inspection, decided=Stamp.now()
    )
    message = verdict_message(draft_from_verdict(verdict, boot="b", keep="none"), HEADER, rec=1, id_="x", image=None)

    assert (message.reason, message.quality, message.class_) == ("capture: no frame within 2 s", 0, None)


@given(st.integers(0, 253_402_300_799_999))
def test_ids_are_uuids_of_version_7_with_the_time_in_front(utc_ms: int) -> None:
    """RFC 9562, section 5.7; checked by the standard library's reader."""
    value = uuid.UUID(uuid7(utc_ms))

    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == utc_ms


def test_ids_are_unique_within_a_millisecond() -> None:
    """Forty parts may fall into one millisecond of a clock that stands still."""
    assert len({uuid7(1_791_191_643_127) for _ in range(10_000)}) == 10_000


@given(data=st.dictionaries(texts, st.none() | st.booleans() | st.integers() | floats | texts, max_size=8), text=texts)
def test_any_event_becomes_valid_json(data: dict[str, Any], text: str) -> None:
    """An event with a NaN in its numbers must not take the writer's transaction with it."""
    message = event_message("drift", "warning", text, station="a/b", now=Stamp(2**62, 0), data=data)

    assert strict_json(to_json(message))["event"] == "drift"


def test_a_part_of_sixteen_views_fits_and_says_what_each_decided() -> None:
    """The worst view decides; the message names them all, whatever their names are, and keeps no ok one's picture."""
    part = make_part(1)
    views = [
        ViewResult(
            name=f"{i:02}" + "v" * 38,
            verdict=make_verdict(part, Decision.DEFECT if i == 7 else Decision.OK, image=make_image(i)),
        )
        for i in range(16)
    ]
    verdict = dataclasses.replace(worst_of(views), reason="ü" * 900)
    draft = draft_from_verdict(verdict, boot="0badcafe", keep="flagged")
    payload = verdict_json(verdict_message(draft, HEADER, rec=1, id_="x", image=None))
    message = strict_json(payload)

    assert len(payload) <= MAX_VERDICT_BYTES
    assert message["decision"] == "defect"
    assert [view["decision"] for view in message["views"]] == ["defect" if i == 7 else "ok" for i in range(16)]
    assert message["views"][7] == {"name": "07" + "v" * 38, "decision": "defect", "class": "scratch", "score": 0.91} | {
        "image": None
    }
    assert isinstance(draft.verdict, PartVerdict)
    assert all(view.verdict.inspection.frame is None for view in draft.verdict.views)
    assert [exposure.view for exposure in draft.exposures] == ["07" + "v" * 38]


@pytest.mark.parametrize("station", [HEADER.station, LONG_STATION])
@pytest.mark.parametrize("flagged", [1, 3, 5, 16])
def test_a_message_of_many_flagged_views_stays_small_and_tells_every_decision_as_long_as_that_fits(
    station: str, flagged: int
) -> None:
    """Findings go first, then hashes, then the last pictures' names; a plant's usual name has room for all names."""
    part = make_part(1)
    views = [
        ViewResult(
            name=f"{i:02}" + "v" * 38,
            verdict=make_verdict(part, Decision.DEFECT if i < flagged else Decision.OK, image=make_image(i)),
        )
        for i in range(16)
    ]
    ids = {view.name: uuid7(1_791_191_643_000 + i) for i, view in enumerate(views)}
    images = {view.name: ViewImageRef(id=ids[view.name], sha256="0" * 64, bytes=12_345_678) for view in views[:flagged]}
    draft = draft_from_verdict(worst_of(views), boot="0badcafe", keep="flagged")
    top = ImageRef(id=ids[views[0].name], sha256="0" * 64, bytes=9, topic=f"{station}/image/{ids[views[0].name]}")
    header = dataclasses.replace(HEADER, station=station)
    payload = verdict_json(
        verdict_message(draft, header, rec=2**53, id_=ids[views[0].name], image=top, view_images=images)
    )
    message = strict_json(payload)

    assert len(payload) <= MAX_VERDICT_BYTES
    assert message["image"] == dataclasses.asdict(top)
    if station == HEADER.station:
        assert [view["name"] for view in message["views"]] == list(ids)
        named = [view["image"]["id"] for view in message["views"] if view["image"]]
        assert named == list(ids.values())[: min(flagged, 5)] if flagged < 16 else len(named) >= 5
    told = [view["decision"] for view in message["views"]]
    assert told == ["defect"] * min(len(told), flagged) + ["ok"] * (len(told) - flagged)


def test_a_message_tells_where_the_part_lay() -> None:
    """In pixels of the frame and degrees, against the reference picture; null where a number is none."""
    verdict = make_verdict(decision=Decision.OK, image=make_image())

    def told(score: float) -> Any:
        found = Located(score=score, shift_px=(12.346, -3.0), turn_deg=1.239, matrix=np.eye(3))
        inspection = dataclasses.replace(verdict.inspection, located=found)
        draft = draft_from_verdict(dataclasses.replace(verdict, inspection=inspection), boot="b", keep="none")
        return strict_json(verdict_json(verdict_message(draft, HEADER, rec=1, id_="x", image=None)))["located"]

    assert told(0.87654) == {"score": 0.8765, "shift_x_px": 12.35, "shift_y_px": -3.0, "turn_deg": 1.24}
    assert told(float("nan")) is None
