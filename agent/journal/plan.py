"""Plan: what one transaction will write, worked out before the lock on the database is taken.

Pure: from the queue's items, the state of the journal and the encoded pictures to rows. When the disk is full a plan is
made again with fewer pictures; nothing has been given out until it is on the disk.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence

from agent.frame import Part
from agent.journal.compose import (
    Draft,
    Exposure,
    Header,
    interrupted_draft,
    plain_text,
    verdict_json,
    verdict_message,
)
from agent.journal.evidence import Picture
from agent.journal.intake import Acknowledged, Item, Noted, Receipt, SetAside, Told, Triggered
from agent.messages import EventMessage, ImageRef, VerdictMessage, ViewImageRef, to_json

__all__ = ["BootRow", "Job", "Kept", "Key", "Plan", "State", "TriggerRow", "plan_transaction", "trigger_row"]

log = logging.getLogger("agent.journal")

Key = tuple[str, int]
"""A part's key: (boot, sequence)."""

TriggerRow = tuple[str, int, str, str, int, int]
"""boot, sequence, part, kind of trigger, UTC milliseconds, monotonic nanoseconds."""

BootRow = tuple[str, int, str, str]
"""boot, UTC milliseconds of its start, version, station."""

JSON, JPEG = "application/json", "image/jpeg"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The one row of `state`: what outlives every other row.

    Attributes:
        last_rec: the last record number given.
        last_seq: the last outbox number given.
        tallies: verdicts ever recorded, by decision code 1 to 4.
        n_evicted: pictures ever removed before their time.
        lived_ms: the journal's age, see `Age`.
        utc_ms: wall clock of the last transaction.
    """

    last_rec: int
    last_seq: int
    tallies: tuple[int, int, int, int]
    n_evicted: int
    lived_ms: int
    utc_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """One picture of a part that is on the disk, and what it shows."""

    exposure: Exposure
    picture: Picture


@dataclasses.dataclass(slots=True, kw_only=True)
class Job:
    """One verdict to write.

    Attributes:
        draft: what it says.
        receipts: who waits for it; more than one when it was recorded twice in one group.
        id: UUIDv7.
        pictures: encoded and on the disk, the foremost first; none when there is none to keep.
        held: not published before the PLC has heard of it.
        rec: given by the plan.
        seq: of its first message, given by the plan; None without one.
    """

    draft: Draft
    receipts: list[Receipt]
    id: str
    pictures: list[Kept] = dataclasses.field(default_factory=list)
    held: bool = False
    rec: int = 0
    seq: int | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class Plan:
    """Rows for one transaction; the columns are those of `schema.TABLES`.

    Attributes:
        n_answered_at_once: triggers that get no row, as their verdict is in the same transaction.
        n_refused: verdicts of triggers that came while too many waited.
        late: milliseconds and record of verdicts that were held, and told `error` at their deadline meanwhile.
    """

    state: State
    boots: list[BootRow] = dataclasses.field(default_factory=list)
    triggers: list[TriggerRow] = dataclasses.field(default_factory=list)
    verdicts: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    answered: list[Key] = dataclasses.field(default_factory=list)
    images: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    outbox: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    acknowledged: list[int] = dataclasses.field(default_factory=list)
    set_aside: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    evicted: list[int] = dataclasses.field(default_factory=list)
    late: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    n_answered_at_once: int = 0
    n_refused: int = 0

    @property
    def empty(self) -> bool:
        """Nothing to write."""
        return not any((
            self.boots, self.triggers, self.verdicts, self.outbox, self.acknowledged, self.set_aside, self.evicted,
            self.late,
        ))  # fmt: skip


def plan_transaction(
    items: Sequence[Item],
    jobs: Sequence[Job],
    *,
    state: State,
    header: Header,
    publish: bool,
    notices: Iterable[EventMessage] = (),
    evicted: Sequence[int] = (),
) -> Plan:
    """Work out one transaction.

    Args:
        items: what was queued, in order; its verdicts are in `jobs`.
        jobs: verdicts to write, in order, each part once; their `rec` is set.
        state: the journal's, with the moment of writing in `lived_ms` and `utc_ms`.
        header: what the journal knows of itself.
        publish: False for a station without a broker: no messages are kept for one.
        notices: the journal's own events.
        evicted: numbers of the pictures that are gone.
    """
    planner = _Planner(state, header, publish=publish)
    for job in jobs:
        planner.verdict(job)
    answered = {job.draft.key for job in jobs}
    for item in items:
        planner.item(item, answered)
    for notice in notices:
        planner.event(notice)
    planner.plan.evicted = list(evicted)
    return planner.finish()


class _Planner:
    """Gives out numbers and collects rows."""

    def __init__(self, state: State, header: Header, *, publish: bool) -> None:
        self.plan = Plan(state=state)
        self._header = header
        self._publish = publish
        self._rec, self._seq = state.last_rec, state.last_seq
        self._tallies = list(state.tallies)

    def verdict(self, job: Job) -> None:
        """One verdict with its messages: the verdict first, then its pictures."""
        self._rec += 1
        job.rec = self._rec
        message, body = self._composed(job)
        score, part = message.score, plain_text(job.draft.part.id)
        self._tallies[message.code - 1] += 1
        fault = job.draft.verdict.inspection.fault
        self.plan.n_refused += fault is not None and fault.is_refusal
        self.plan.verdicts.append((
            job.rec, job.id, part, message.time_ms, message.boot, message.code, message.class_, score,
            *job.draft.key, self.plan.state.lived_ms, body.decode(),
        ))  # fmt: skip
        self.plan.answered.append(job.draft.key)
        job.seq = self._send("verdict", "verdict", JSON, rec=job.rec)
        for kept in job.pictures:
            picture, view = kept.picture, plain_text(kept.exposure.view)
            seq = self._send("image", f"image/{picture.id}", JPEG, rec=job.rec) if kept.exposure.publish else None
            small = picture.small is not None
            self.plan.images.append((
                job.rec, view, picture.id, picture.day, picture.bytes_on_disk, small, picture.sha256, seq
            ))  # fmt: skip

    def item(self, item: Item, answered: set[Key]) -> None:
        """Everything that is no verdict."""
        if isinstance(item, Triggered):
            key = (self._header.boot, item.part.sequence)
            if key in answered:
                self.plan.n_answered_at_once += 1
            else:
                self.plan.triggers.append(trigger_row(self._header.boot, item.part))
        elif isinstance(item, Told):
            self.plan.late += [] if item.late_ms is None else [(round(item.late_ms, 1), item.rec)]
        elif isinstance(item, Noted):
            self.event(item.message)
        elif isinstance(item, Acknowledged):
            self.plan.acknowledged += item.seqs
        elif isinstance(item, SetAside):
            self.plan.set_aside.append((plain_text(item.reason), item.seq))

    def event(self, message: EventMessage) -> None:
        """One event, in the outbox only."""
        self._send("event", "event", JSON, body=to_json(message).decode())

    def finish(self) -> Plan:
        """The plan, with the state as it will be."""
        evicted = self.plan.state.n_evicted + len(self.plan.evicted)
        first, second, third, fourth = self._tallies
        self.plan.state = dataclasses.replace(
            self.plan.state,
            last_rec=self._rec,
            last_seq=self._seq,
            tallies=(first, second, third, fourth),
            n_evicted=evicted,
        )
        return self.plan

    def _composed(self, job: Job) -> tuple[VerdictMessage, bytes]:
        image = _image_ref(job, self._header.station) if self._publish else None
        views = _view_images(job) if self._publish else {}
        try:
            message = verdict_message(job.draft, self._header, rec=job.rec, id_=job.id, image=image, view_images=views)
            return message, verdict_json(message)
        except Exception as error:  # our bug: the part still gets its verdict, and it is not a good one
            log.exception("bug")
            draft = _failed_draft(job.draft, f"the verdict can't be written as JSON ({type(error).__name__}: {error})")
            message = verdict_message(draft, self._header, rec=job.rec, id_=job.id, image=image)
            return message, verdict_json(message)

    def _send(
        self, kind: str, topic: str, content_type: str, *, rec: int | None = None, body: str | None = None
    ) -> int | None:
        if not self._publish:
            return None
        self._seq += 1
        self.plan.outbox.append((
            self._seq, kind, f"{self._header.station}/{topic}", 1, 0, rec, self.plan.state.utc_ms, content_type, body
        ))  # fmt: skip
        return self._seq


def _image_ref(job: Job, station: str) -> ImageRef | None:
    """Of the foremost picture, where it goes out."""
    for kept in job.pictures:
        if kept.exposure.is_foremost and kept.exposure.publish:
            picture = kept.picture
            topic = f"{station}/image/{picture.id}"
            return ImageRef(id=picture.id, sha256=picture.sha256, bytes=len(picture.published), topic=topic)
    return None


def _view_images(job: Job) -> dict[str, ViewImageRef]:
    """Of all pictures that go out, by the view."""
    return {
        kept.exposure.view: ViewImageRef(
            id=kept.picture.id, sha256=kept.picture.sha256, bytes=len(kept.picture.published)
        )
        for kept in job.pictures
        if kept.exposure.publish
    }


def trigger_row(boot: str, part: Part) -> TriggerRow:
    """A row of `triggers`."""
    at = part.triggered
    return boot, part.sequence, plain_text(part.id), plain_text(part.trigger), at.utc_ms, at.mono_ns


def _failed_draft(draft: Draft, why: str) -> Draft:
    part = dataclasses.replace(draft.part, id=str(draft.part.id))
    return interrupted_draft(part, boot=draft.trigger_boot, now=draft.moment, why=why)
