"""Writer: the thread `journal`, which alone writes.

It owns the writing connection and the pictures' files, may block on the disk only, takes all that waits (group commit),
and ends when the intake is closed and empty, or with an error that everybody gets from then on.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import statistics
import threading
from collections.abc import Callable, Sequence

from agent.errors import JournalError
from agent.frame import Part, Stamp
from agent.journal.age import Age
from agent.journal.compose import Draft, Header, interrupted_draft, uuid7
from agent.journal.disk import DiskFullError
from agent.journal.intake import Flushed, Intake, Item, Missing, Receipt, Recorded, SetAside, Told, Triggered
from agent.journal.keeper import Keeper
from agent.journal.outbox import Outbox
from agent.journal.plan import BootRow, Job, Key, TriggerRow, plan_transaction, trigger_row
from agent.journal.ring import TriggerRing
from agent.journal.store import Store
from agent.log import log_event
from agent.messages import rfc3339
from agent.verdict import Verdict

__all__ = ["Setting", "Writer"]

log = logging.getLogger("agent.journal")

IDLE_S = 0.5
BUSY_TIDY_NS = 10_000_000_000
RETIRE_LIMIT = 200
JUMP_MS = 2_000
INTERRUPTED = "the agent was stopped between trigger and verdict"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the writer needs to know and never changes.

    Attributes:
        boot: this start of the agent.
        version: of the agent.
        station: ROOT.
        recipe: its name; empty for none.
        publish: whether messages are kept for a broker.
        retention_ms: how old a published verdict gets.
        clock: the present moment.
        clock_state: whether the wall clock is right.
    """

    boot: str
    version: str
    station: str
    recipe: str
    publish: bool
    retention_ms: int
    clock: Callable[[], Stamp]
    clock_state: Callable[[], str]


class Writer:
    """Turns what is queued into transactions.

    Args:
        setting: what never changes.
        store: the writing connection.
        keeper: pictures and the full disk.
        intake: the queue.
        outbox: told of every commit.
        ring: the triggers whose verdict is not on the disk, in memory that outlives the process.
        answered: told the keys of parts whose verdict is on the disk.

    Attributes:
        failed: why it ended early; None while it works.
        recorded: told each verdict that is on the disk, without its frame.
        triggered: told the sequences of triggers that are on the disk.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        store: Store,
        keeper: Keeper,
        intake: Intake,
        outbox: Outbox,
        ring: TriggerRing,
        answered: Callable[[Sequence[Key]], None],
    ) -> None:
        self._setting = setting
        self._store, self._keeper, self._intake, self._outbox = store, keeper, intake, outbox
        self._ring, self._answered = ring, answered
        self._age = Age(lived_ms=store.state.lived_ms, utc_ms=store.state.utc_ms, now=setting.clock())
        self._commits_ms: collections.deque[float] = collections.deque(maxlen=256)
        self._last_decided: Stamp | None = None
        self._tidied_ns = 0
        self._in_hand: list[Item] = []
        self._highest = 0
        self._more_to_retire = False
        self.failed: JournalError | None = None
        self.recorded: Callable[[Verdict, int], None] = lambda _verdict, _rec: None
        self.triggered: Callable[[Sequence[int]], None] = lambda _sequences: None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def recover(self) -> None:
        """Before anything else: give parts of earlier starts their verdict, and make rows and files agree.

        Raises:
            JournalError: that can't be written; nothing is lost, the next start tries again.
        """
        now = self._setting.clock()
        self._take_left(now)
        boots = [(self._setting.boot, now.utc_ms, self._setting.version, self._setting.station)]
        while True:
            interrupted = self._store.triggers(256)
            jobs = [self._interrupted(boot, part, now) for boot, part in interrupted]
            if jobs:
                text = f"{len(jobs)} parts were triggered and had no verdict when the agent was stopped: now error"
                self._keeper.tell("parts_interrupted", "alarm", text, now, parts=len(jobs))
            if not boots and not jobs:
                break
            self._commit([], jobs, now, boots=boots)
            boots = []
        self._ring.forget_left()
        self._keeper.reconcile(now)
        self._commit([], [], now)

    def start(self) -> None:
        """Begin to take from the queue."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False when it did not come in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def last_rec(self) -> int:
        """The last record number on the disk."""
        return self._store.state.last_rec

    def commit_ms(self) -> float | None:
        """Median of the last commits in milliseconds; None before the first."""
        recent = list(self._commits_ms)
        return statistics.median(recent) if recent else None

    def _run(self) -> None:
        try:
            while (items := self._intake.take(0.0 if self._more_to_retire else IDLE_S)) is not None:
                now = self._setting.clock()
                if items:
                    self._write(items, now)
                self._tidy(now, idle=not items)
            self._finish()
        except Exception as error:
            self._fail(error)
        finally:
            self._store.close()

    def _write(self, items: list[Item], now: Stamp) -> None:
        self._in_hand = items
        jobs, repeats = self._sort(items, now)
        self._keeper.keep(jobs, now)
        self._keeper.tell_losses(now)
        self._commit(items, jobs, now)
        self._settle_parts(items, jobs)
        for receipt, rec in [*repeats, *((receipt, job.rec) for job in jobs for receipt in job.receipts)]:
            receipt.keep(rec)
        for item in items:
            if isinstance(item, Flushed):
                item.receipt.keep(self._store.state.last_rec)
        self._in_hand = []
        self._intake.settle(items)
        self._tell(items, jobs)
        self._enforce_quota(now)

    def _settle_parts(self, items: Sequence[Item], jobs: Sequence[Job]) -> None:
        """A part is settled once its verdict is on the disk, and a held one once it was told."""
        self._answered([job.draft.key for job in jobs])
        for job in jobs:
            if not job.held:
                self._ring.erase(job.draft.part.sequence)
        for item in items:
            if isinstance(item, Told):
                self._ring.erase(item.sequence)
                self._outbox.release(item.sequence)

    def _tell(self, items: Sequence[Item], jobs: Sequence[Job]) -> None:
        try:
            self.triggered([item.part.sequence for item in items if isinstance(item, Triggered)])
            for job in jobs:
                self.recorded(job.draft.verdict, job.rec)
        except Exception:  # what is told of a record must not end the records
            log.exception("bug")

    def _commit(
        self,
        items: Sequence[Item],
        jobs: Sequence[Job],
        now: Stamp,
        *,
        boots: Sequence[BootRow] = (),
        found: Sequence[TriggerRow] = (),
    ) -> None:
        """One transaction, with less and less in it while the disk is full."""
        header = self._header()
        while True:
            plan = plan_transaction(
                items,
                jobs,
                state=dataclasses.replace(self._store.state, lived_ms=self._age.at(now), utc_ms=now.utc_ms),
                header=header,
                publish=self._setting.publish,
                notices=self._keeper.notices,
                evicted=self._keeper.evicted,
            )
            plan.boots = list(boots)
            plan.triggers += found
            if plan.empty:
                return
            for job in jobs:
                if job.held and job.seq is not None:
                    self._outbox.hold(job.draft.part.sequence, job.seq)
            try:
                removed = self._store.apply(plan)
            except DiskFullError:
                self._keeper.forget(jobs, "the disk is full")
                if not self._keeper.rescue(now):
                    raise
                continue
            self._commits_ms.append(self._store.commit_ms)
            self._keeper.written(jobs)
            left = [*plan.acknowledged, *(seq for _, seq in plan.set_aside)]
            self._outbox.settle(added=len(plan.outbox), removed=removed, left=left)
            return

    def _commit_notes(self, now: Stamp) -> None:
        """Write what the journal itself has to tell; on a full disk that waits for the next verdict."""
        with contextlib.suppress(DiskFullError):
            self._commit([], [], now)

    def _sort(self, items: Sequence[Item], now: Stamp) -> tuple[list[Job], list[tuple[Receipt, int]]]:
        """Verdicts to write, each part once, and the receipts of those that are written already."""
        jobs: dict[Key, Job] = {}
        repeats: list[tuple[Receipt, int]] = []
        for item in items:
            if isinstance(item, Recorded):
                self._watch_clock(item.draft, now)
                self._sort_verdict(item, jobs, repeats, now)
            elif isinstance(item, SetAside):
                self._tell_set_aside(item, now)
            elif isinstance(item, Missing):
                self._lose_picture(item.number, now)
        return list(jobs.values()), repeats

    def _sort_verdict(
        self, item: Recorded, jobs: dict[Key, Job], repeats: list[tuple[Receipt, int]], now: Stamp
    ) -> None:
        draft = item.draft
        part = draft.part
        known = jobs.get(draft.key)
        rec = None
        if known is not None:
            known.receipts.append(item.receipt)
        elif part.sequence <= self._highest and (rec := self._store.rec_of(draft.key)) is not None:
            repeats.append((item.receipt, rec))
        else:
            jobs[draft.key] = Job(
                draft=draft, receipts=[item.receipt], id=uuid7(draft.verdict.decided.utc_ms), held=item.held
            )
            self._highest = max(self._highest, part.sequence)
            return
        self._keeper.tell(
            "verdict_repeated", "warning",
            f"part {part.id}: a second verdict ({draft.verdict.decision.value}) for trigger {part.sequence}; "
            "the first one stands", now, part=part.id, sequence=part.sequence, rec=rec,
        )  # fmt: skip

    def _watch_clock(self, draft: Draft, now: Stamp) -> None:
        decided, last = draft.verdict.decided, self._last_decided
        self._last_decided = decided
        if last is None:
            return
        jump_ms = (decided.utc_ms - last.utc_ms) - (decided.mono_ns - last.mono_ns) // 1_000_000
        if abs(jump_ms) > JUMP_MS:
            direction = "ahead" if jump_ms > 0 else "back"
            text = f"the clock was set {direction} by {abs(jump_ms) / 1000:.1f} s between two verdicts"
            self._keeper.tell("clock_jumped", "warning", text, now, jump_ms=jump_ms)

    def _tell_set_aside(self, item: SetAside, now: Stamp) -> None:
        row = self._store.outbox_row(item.seq)
        if row is not None:
            kind, topic, rec = row
            self._keeper.tell(
                "message_set_aside", "alarm", f"{topic}: can't be sent ({item.reason}); kept for inspection", now,
                seq=item.seq, kind=kind, rec=rec,
            )  # fmt: skip

    def _lose_picture(self, number: int, now: Stamp) -> None:
        row = self._store.image_kept(number)
        if row is not None and number not in self._keeper.evicted:
            self._keeper.evict([row], "the file was missing or damaged")
            self._keeper.unlink([row], now)

    def _enforce_quota(self, now: Stamp) -> None:
        rows = self._keeper.over_quota()
        if rows:
            self._keeper.evict(rows, "the quota is reached")
            self._keeper.tell_losses(now)
            self._commit_notes(now)  # rows first: a file without a row is swept at the next start
            self._keeper.unlink(rows, now)

    def _tidy(self, now: Stamp, *, idle: bool) -> None:
        """What can wait: space that came back, losses not yet told, verdicts past their time."""
        if not idle and now.mono_ns - self._tidied_ns < BUSY_TIDY_NS:
            return
        self._tidied_ns = now.mono_ns
        self._keeper.look_for_space(now)
        self._keeper.tell_losses(now)
        self._commit_notes(now)
        with contextlib.suppress(DiskFullError):  # deleting needs space too; it can wait
            self._retire(now)

    def _retire(self, now: Stamp) -> None:
        before = self._age.at(now) - self._setting.retention_ms
        self._more_to_retire = False
        if before > 0 and not self._keeper.short:
            gone, images = self._store.retire(before_lived_ms=before, limit=RETIRE_LIMIT)
            self._keeper.retired(images, now)
            self._more_to_retire = gone == RETIRE_LIMIT

    def _finish(self) -> None:
        now = self._setting.clock()
        self._keeper.tell_losses(now, at_once=True)
        self._commit_notes(now)
        self._store.shrink()

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, JournalError):
            log.error("bug", exc_info=error)
            error = JournalError(f"the journal's writer ended by our bug ({type(error).__name__}: {error})")
        failed = JournalError(f"verdicts can no longer be made durable: {error.message}", hint=error.hint)
        self.failed = failed
        log_event(log, "journal_failed", logging.ERROR, reason=error.message)
        for item in [*self._in_hand, *self._intake.fail(failed)]:
            if isinstance(item, (Recorded, Flushed)):
                item.receipt.fail(failed)

    def _take_left(self, now: Stamp) -> None:
        """Write down the triggers that a killed process had in its memory only; another journal's can only be told."""
        found = self._ring.left()
        left = [each for each in found if self._store.boot_exists(each.boot)]
        if foreign := [each.part.id for each in found if each not in left]:
            text = (
                f"{len(foreign)} parts were triggered by an agent that was killed, and whose journal is not here: "
                f"they have no verdict ({', '.join(foreign)[:300]})"
            )
            self._keeper.tell("triggers_of_another_journal", "alarm", text, now, parts=len(foreign))
        for each in left:
            rec = self._store.rec_of((each.boot, each.part.sequence))
            if rec is not None and each.held:
                text = (
                    f"part {each.part.id}: its verdict (record {rec}) was on the disk when the agent was stopped; "
                    "whether the outputs were told in time is not known"
                )
                self._keeper.tell("result_unknown", "alarm", text, now, part=each.part.id, rec=rec)
        if left:
            self._commit([], [], now, found=[trigger_row(each.boot, each.part) for each in left])

    def _interrupted(self, boot: str, part: Part, now: Stamp) -> Job:
        why = f"{INTERRUPTED} (start {boot}, trigger {part.sequence} at {rfc3339(part.triggered.utc_ms)})"
        return Job(draft=interrupted_draft(part, boot=boot, now=now, why=why), receipts=[], id=uuid7(now.utc_ms))

    def _header(self) -> Header:
        setting = self._setting
        try:
            clock = setting.clock_state()
        except Exception:  # a clock that can't be asked keeps no verdict from the disk
            log.exception("bug")
            clock = "unknown"
        return Header(boot=setting.boot, station=setting.station, clock=clock, recipe=setting.recipe)
