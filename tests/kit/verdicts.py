"""Real parts, verdicts and journals for tests: judged by the real policy, on a real disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from agent.bundle.manifest import PolicySpec
from agent.config import EvidenceConfig, JournalConfig
from agent.frame import BgrImage, Fault, Frame, Part, Stamp
from agent.inspection import BundleRef, Finding, Inspection, StageMs
from agent.journal import Journal, Receipt
from agent.verdict import Decision, Policy, Verdict

__all__ = [
    "BUNDLE",
    "STATION",
    "Clock",
    "events",
    "judge",
    "judge_at",
    "make_image",
    "make_part",
    "make_verdict",
    "open_journal",
    "pictures",
    "publish_all",
]

STATION = "acme/cam1"

BUNDLE = BundleRef(name="caps-1.0.0", digest="0123456789abcdef" * 4)
SCORES = {Decision.OK: 0.03, Decision.REVIEW: 0.35, Decision.DEFECT: 0.91}


class Clock:
    """Both clocks, set by hand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Stamp.now()

    def __call__(self) -> Stamp:
        with self._lock:
            return self._now

    def pass_(self, ms: int) -> None:
        """Time goes by."""
        with self._lock:
            self._now = Stamp(self._now.utc_ms + ms, self._now.mono_ns + ms * 1_000_000)

    def set_(self, ms: int) -> None:
        """Somebody sets the clock."""
        with self._lock:
            self._now = dataclasses.replace(self._now, utc_ms=self._now.utc_ms + ms)


def make_part(sequence: int = 1, *, id_: str | None = None, triggered: Stamp | None = None) -> Part:
    """The part of one trigger; its id is `P<sequence>` unless given."""
    return Part(
        id=f"P{sequence}" if id_ is None else id_,
        trigger="frame",
        sequence=sequence,
        triggered=Stamp.now() if triggered is None else triggered,
    )


def make_image(seed: int = 0, *, height_px: int = 48, width_px: int = 64) -> BgrImage:
    """(height_px, width_px, 3) uint8 noise: every seed another picture, and none that JPEG makes small."""
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def make_verdict(
    part: Part | None = None,
    decision: Decision = Decision.OK,
    *,
    image: BgrImage | None = None,
    captured: Stamp | None = None,
    reason: str = "the camera gave no frame within 2 s",
    box_px: tuple[float, float, float, float] | None = None,
) -> Verdict:
    """A verdict as the policy gives it.

    Args:
        part: whose; a new one when not given.
        decision: what the policy shall come to.
        image: the exposure; None takes a tiny one, except for `error`, which then has none.
        captured: when it was exposed.
        reason: of an `error`.
        box_px: of the scratch.
    """
    part = make_part() if part is None else part
    if image is None and decision is not Decision.ERROR:
        image = np.zeros((2, 2, 3), dtype=np.uint8)
    frame = None
    if image is not None:
        frame = Frame(
            part=part,
            image=image,
            camera="cam1",
            source="kit",
            sequence=part.sequence,
            captured=Stamp.now() if captured is None else captured,
            capture_ms=4.2,
        )
    inspection = _inspection(part, frame, decision, reason, box_px)
    verdict = Policy(PolicySpec(defect_above=0.5, review_above=0.2)).judge(inspection)
    assert verdict.decision is decision
    return verdict


def _inspection(
    part: Part,
    frame: Frame | None,
    decision: Decision,
    reason: str,
    box_px: tuple[float, float, float, float] | None,
) -> Inspection:
    if decision is Decision.ERROR:
        fault = Fault(part=part, stage="capture", reason=reason)
        return Inspection(part=part, frame=frame, fault=fault, bundle=BUNDLE, engine="kit 1.0 CPU, 1 thread")
    score = SCORES[decision]
    findings = (
        Finding(class_name="good", severity="ok", score=1 - score),
        Finding(class_name="scratch", severity="major", score=score, box_px=box_px),
    )
    return Inspection(
        part=part,
        frame=frame,
        fault=None,
        findings=tuple(sorted(findings, key=lambda finding: -finding.score)),
        defect_score=score,
        uncertainty=0.1,
        ms=StageMs(capture=4.2, preprocess=0.4, infer=7.9, decode=0.1),
        bundle=BUNDLE,
        engine="kit 1.0 CPU, 1 thread",
    )


def open_journal(state_dir: Path, *, evidence: EvidenceConfig | None = None, **keys: Any) -> Journal:
    """A journal of the station `acme/cam1` without a reserve; `keys` go to JournalConfig or to `Journal.open`."""
    config_names = {field.name for field in dataclasses.fields(JournalConfig)}
    config = {name: keys.pop(name) for name in list(keys) if name in config_names}
    return Journal.open(
        JournalConfig(**{"reserve_mb": 0, "evidence": evidence or EvidenceConfig(), **config}),
        state_dir=state_dir,
        station=STATION,
        **{"clock_state": lambda: "synced", **keys},
    )


def judge(journal: Journal, sequence: int, decision: Decision = Decision.OK, **keys: Any) -> Receipt:
    """Trigger one part and record its verdict; `keys` are `make_verdict`'s."""
    part = make_part(sequence)
    journal.trigger(part)
    return journal.record(make_verdict(part, decision, **keys))


def events(journal: Journal) -> list[dict[str, Any]]:
    """The events that wait in the outbox, decoded, oldest first."""
    rows = journal.outbox.pending(limit=100_000)
    return [json.loads(journal.outbox.payload(row) or b"") for row in rows if row.kind == "event"]


def pictures(state_dir: Path) -> dict[Path, int]:
    """Every file below `images/` with its size in bytes; the agent may remove some meanwhile."""
    sizes: dict[Path, int] = {}
    for folder, _, names in os.walk(state_dir / "images"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes[Path(folder, name)] = Path(folder, name).stat().st_size
    return dict(sorted(sizes.items()))


def judge_at(journal: Journal, sequence: int, clock: Clock, decision: Decision = Decision.OK) -> int:
    """One verdict with all its moments from the clock."""
    now = clock()
    part = make_part(sequence, triggered=now)
    journal.trigger(part)
    verdict = dataclasses.replace(make_verdict(part, decision, image=make_image(), captured=now), decided=now)
    return journal.record(verdict).wait(5)


def publish_all(journal: Journal) -> None:
    """What a publisher does with a good broker, once everything judged so far is on the disk."""
    journal.flush()
    while rows := journal.outbox.pending(limit=1_000):
        journal.outbox.acknowledge([row.seq for row in rows])
        journal.flush()
