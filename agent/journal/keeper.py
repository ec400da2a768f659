"""Keeper: the pictures' quota, and what is given up when the disk is full.

The order of sacrifice: pictures, oldest record first, and no new ones are kept; then the space of the write-ahead log;
then the reserve. A verdict is never given up. Every loss is told in an event, many losses in one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from agent.config import JournalConfig
from agent.errors import JournalError
from agent.frame import Stamp
from agent.journal.compose import Exposure, event_message, uuid7
from agent.journal.disk import Reserve, free_bytes, headroom_bytes, is_full
from agent.journal.evidence import ImageFiles, Picture, encode_picture
from agent.journal.plan import Job, Kept
from agent.journal.store import ImageRow, Store
from agent.log import log_event
from agent.marks import marked_picture
from agent.messages import EventMessage, rfc3339

__all__ = ["Keeper"]

log = logging.getLogger("agent.journal")

QUOTA_LOW = 0.95
"""Evicting stops here, so that at the quota not every new picture costs an old one and an event."""

TELL_EVERY_NS = 60_000_000_000
"""Losses are told at once, then at most once a minute."""

CHECK_EVERY_NS = 1_000_000_000


@dataclasses.dataclass(slots=True)
class _Loss:
    """What was lost since it was last told."""

    evicted: int = 0
    bytes: int = 0
    unpublished: int = 0
    not_kept: int = 0
    why: str = ""


class Keeper:
    """Keeps pictures within the quota and the disk; used by the writer's thread only.

    Args:
        config: quota, reserve, JPEG settings.
        store: the rows.
        files: the pictures.
        station: for events.
        state_dir: whose disk it is.
    """

    def __init__(
        self, config: JournalConfig, *, store: Store, files: ImageFiles, station: str, state_dir: Path
    ) -> None:
        self._evidence = config.evidence
        self._quota = config.evidence.quota_mb * 1_000_000
        self._store, self._files, self._station, self._dir = store, files, station, state_dir
        self._reserve = Reserve(state_dir / "reserve", config.reserve_mb << 20)
        self._reserve_due = self._reserve.hold()
        self._loss = _Loss()
        self._told_ns: int | None = None
        self._checked_ns = 0
        self.notices: list[EventMessage] = []
        self.evicted: list[int] = []
        self.short = False
        self.count, self.bytes = store.kept_images()

    def tell(
        self, name: str, severity: Literal["info", "warning", "alarm"], text: str, now: Stamp, /, **data: object
    ) -> None:
        """Put an event of the journal's own into the next transaction, and into the log."""
        self.notices.append(event_message(name, severity, text, station=self._station, now=now, data=data))
        log_event(log, name, logging.INFO if severity == "info" else logging.WARNING, reason=text)

    def keep(self, jobs: Sequence[Job], now: Stamp) -> None:
        """Encode and write the pictures of these verdicts; what can't be kept is counted as a loss."""
        for job in jobs:
            self._encode(job)
        pictures = [kept.picture for job in jobs for kept in job.pictures]
        if not pictures:
            return
        try:
            self._files.write(pictures)
        except OSError as error:
            self.forget(jobs, f"they can't be written ({error.strerror})")
            if is_full(error):
                self._make_room(now)

    def forget(self, jobs: Sequence[Job], why: str) -> None:
        """Give up the pictures of verdicts that are not on the disk yet."""
        for job in jobs:
            for kept in job.pictures:
                with contextlib.suppress(OSError):
                    self._files.remove(kept.picture.id, kept.picture.day)
                self._lose(not_kept=1, why=why)
            job.pictures = []

    def written(self, jobs: Sequence[Job]) -> None:
        """A transaction with these pictures, and all that was to be told and marked, is on the disk."""
        self.notices.clear()
        self.evicted.clear()
        for job in jobs:
            self.count += len(job.pictures)
            self.bytes += sum(kept.picture.bytes_on_disk for kept in job.pictures)

    def over_quota(self) -> list[ImageRow]:
        """Pictures to evict so that the rest fits the quota; their files are still there."""
        if self.bytes <= self._quota:
            return []
        return self._oldest(self.bytes - int(self._quota * QUOTA_LOW))

    def evict(self, rows: Sequence[ImageRow], why: str) -> None:
        """Count these as gone; the next transaction marks them."""
        self.evicted += [row.number for row in rows]
        self.count -= len(rows)
        self.bytes -= sum(row.size for row in rows)
        self._lose(
            evicted=len(rows),
            bytes_=sum(row.size for row in rows),
            unpublished=sum(row.unpublished for row in rows),
            why=why,
        )

    def retired(self, rows: Sequence[ImageRow], now: Stamp) -> None:
        """These went with their verdicts, at the end of their time: no loss."""
        self.count -= len(rows)
        self.bytes -= sum(row.size for row in rows)
        self.unlink(rows, now)

    def unlink(self, rows: Sequence[ImageRow], now: Stamp) -> None:
        """Remove files; one that can't be removed is told, and swept at the next start."""
        for row in rows:
            try:
                self._files.remove(row.id, row.day)
            except OSError as error:  # noqa: PERF203
                path = self._files.path(row.id, row.day)
                self.tell("evidence_stuck", "warning", f"{path}: can't be removed ({error.strerror})", now)
                return

    def rescue(self, now: Stamp) -> bool:
        """The disk is full: make room by the next sacrifice.

        Returns:
            False when nothing is left to give up.
        """
        if self._make_room(now) or self._store.shrink():
            return True
        if not self._reserve.release():
            return False
        self._store.save_space(True)
        self.tell(
            "disk_full", "alarm", "the disk is full: verdicts are written into the reserve, without pictures", now,
            free_bytes=free_bytes(self._dir),
        )  # fmt: skip
        return True

    def look_for_space(self, now: Stamp) -> None:
        """Keep pictures again, and restore the reserve, once there is space; looks at most once a second."""
        if not (self.short or self._reserve.wanted) or now.mono_ns - self._checked_ns < CHECK_EVERY_NS:
            return
        self._checked_ns = now.mono_ns
        if self._reserve.hold():
            self._reserve_due = True
        elif self._reserve_due:  # the space for verdicts comes before pictures
            return
        free = free_bytes(self._dir)
        if self.short and free >= headroom_bytes(self._dir):
            self.short = False
            self._store.save_space(False)
            self.tell("disk_recovered", "info", "there is space again: pictures are kept", now, free_bytes=free)

    def tell_losses(self, now: Stamp, *, at_once: bool = False) -> None:
        """One event for all losses since the last one, at most once a minute unless `at_once`."""
        loss = self._loss
        if not (loss.evicted or loss.not_kept):
            return
        if not at_once and self._told_ns is not None and now.mono_ns - self._told_ns < TELL_EVERY_NS:
            return
        self._loss, self._told_ns = _Loss(), now.mono_ns
        text = (
            f"{loss.evicted} pictures removed ({loss.bytes / 1e6:.1f} MB, {loss.unpublished} not yet published), "
            f"{loss.not_kept} not kept: {loss.why}"
        )
        self.tell(
            "evidence_dropped", "warning", text, now,
            removed=loss.evicted, bytes=loss.bytes, unpublished=loss.unpublished, not_kept=loss.not_kept,
        )  # fmt: skip

    def reconcile(self, now: Stamp) -> None:
        """At the start: unlink files without a row, mark rows without a file."""
        on_disk = set(self._files.names())
        rows: list[ImageRow] = []
        while batch := self._store.oldest_images(rows[-1].number if rows else 0):
            rows += batch
        known = {(row.id, row.day) for row in rows}
        self._files.sweep(lambda id_, day: (id_, day) in known)
        gone = [row for row in rows if (row.day, f"{row.id}.jpg") not in on_disk]
        if gone:
            self.evict(gone, "their files were gone at the start")
            self.tell_losses(now, at_once=True)

    def _encode(self, job: Job) -> None:
        """The part's pictures; one that can't be kept costs no other. The foremost has the verdict's id."""
        moment_ms = max(0, job.draft.moment.utc_ms)
        for exposure in job.draft.exposures:
            id_ = job.id if exposure.is_foremost else uuid7(job.draft.verdict.decided.utc_ms)
            picture = self._picture(exposure, id_=id_, moment_ms=moment_ms)
            if picture is not None:
                job.pictures.append(Kept(exposure, picture))

    def _picture(self, exposure: Exposure, *, id_: str, moment_ms: int) -> Picture | None:
        if self.short:
            self._lose(not_kept=1, why="the disk is full")
            return None
        try:
            # Drawn here, on the journal's thread: the line does not wait for it.
            marked = marked_picture(exposure.image, exposure.verdict) if exposure.publish else None
            day = rfc3339(moment_ms)[:10]
            picture = encode_picture(exposure.image, self._evidence, id_=id_, day=day, marked=marked)
        except (JournalError, ValueError, OverflowError) as error:
            self._lose(not_kept=1, why=str(error))
            return None
        if picture.bytes_on_disk > self._quota:
            self._lose(not_kept=1, why=f"one picture alone is larger than the quota of {self._quota} bytes")
            return None
        return picture

    def _make_room(self, now: Stamp) -> bool:
        """Evict until there is headroom; files first, for nothing can be written before."""
        if not self.short:
            self.short = True
            self.tell(
                "disk_full", "alarm", "the disk is full: pictures make room for verdicts", now,
                free_bytes=free_bytes(self._dir), pictures=self.count,
            )  # fmt: skip
        rows = self._oldest(max(1, headroom_bytes(self._dir) - free_bytes(self._dir)))
        if rows:
            self.unlink(rows, now)
            self.evict(rows, "the disk is full")
        return bool(rows)

    def _oldest(self, size: int) -> list[ImageRow]:
        """The oldest pictures that together hold `size` bytes, those already given up left out."""
        rows: list[ImageRow] = []
        gone = set(self.evicted)
        after = 0
        while size > 0 and (batch := self._store.oldest_images(after)):
            after = batch[-1].number
            for row in batch:
                if row.number not in gone:
                    rows.append(row)
                    size -= row.size
                    if size <= 0:
                        return rows
        return rows

    def _lose(self, *, evicted: int = 0, bytes_: int = 0, unpublished: int = 0, not_kept: int = 0, why: str) -> None:
        self._loss.evicted += evicted
        self._loss.bytes += bytes_
        self._loss.unpublished += unpublished
        self._loss.not_kept += not_kept
        self._loss.why = why
