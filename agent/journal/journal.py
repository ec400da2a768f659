"""Journal: the door through which the station records, and everything behind it is put together."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from agent import __version__
from agent.config import JournalConfig
from agent.errors import JournalError
from agent.frame import Part, Stamp
from agent.journal.compose import draft_from_verdict, event_message, plain_text
from agent.journal.disk import StateLock, make_private_dir
from agent.journal.evidence import ImageFiles
from agent.journal.intake import Flushed, Intake, Noted, Receipt, Recorded, Told, Triggered
from agent.journal.keeper import Keeper
from agent.journal.outbox import Outbox
from agent.journal.plan import Key
from agent.journal.reader import JournalReader, JournalStats, StoredVerdict
from agent.journal.ring import SPARE_SLOTS, TriggerRing, ring_places
from agent.journal.schema import DATABASE_NAME
from agent.journal.store import Store
from agent.journal.writer import Setting, Writer
from agent.messages import rfc3339
from agent.verdict import Verdict

__all__ = ["Journal", "Receipt"]


class _Pending:
    """Parts that were triggered in this run and have no verdict on the disk yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[int, Part] = {}

    def add(self, part: Part) -> bool:
        """Whether it was not there before."""
        with self._lock:
            is_new = part.sequence not in self._parts
            self._parts[part.sequence] = part
            return is_new

    def discard(self, part: Part) -> None:
        with self._lock:
            self._parts.pop(part.sequence, None)

    def remove(self, keys: Sequence[Key]) -> None:
        with self._lock:
            for _, sequence in keys:
                self._parts.pop(sequence, None)

    def all(self) -> tuple[Part, ...]:
        with self._lock:
            return tuple(self._parts.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What works behind the door."""

    intake: Intake
    outbox: Outbox
    reader: JournalReader
    writer: Writer
    pending: _Pending
    ring: TriggerRing
    lock: StateLock


class Journal:
    """The durable record of one station; see the package's docstring for what holds. Made by `Journal.open`.

    Attributes:
        boot: eight hex digits, new at each open.
        outbox: for the publisher's thread.
    """

    def __init__(self, parts: _Parts, *, keep: Literal["flagged", "all", "none"], setting: Setting) -> None:
        self.boot = setting.boot
        self.outbox = parts.outbox
        self._keep = keep
        self._setting = setting
        self._parts = parts
        self._closed = False

    @classmethod
    def open(
        cls,
        config: JournalConfig,
        *,
        state_dir: Path,
        station: str,
        clock_state: Callable[[], str],
        recipe: str = "",
        publish: bool = True,
        held: bool = False,
        clock: Callable[[], Stamp] = Stamp.now,
    ) -> Journal:
        """Open or make the journal, and answer what an earlier start left without a verdict.

        Args:
            config: limits, retention, pictures.
            state_dir: where it lives; made (0700) when absent.
            station: ROOT of every topic.
            clock_state: `synced`, `unsynced` or `unknown`; asked once per transaction.
            recipe: its name in every verdict; empty for none.
            publish: False for a station without a broker: no messages are kept for one, and verdicts grow old at once;
                what an earlier run left in the outbox stays there.
            held: verdicts will be recorded `held`.
            clock: the present moment.

        Raises:
            JournalError: locked by another agent, damaged, written by a newer one, no space, or not allowed.
        """
        make_private_dir(state_dir)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(contextlib.closing(StateLock(state_dir)))
            store = stack.enter_context(contextlib.closing(Store(state_dir / DATABASE_NAME)))
            setting = Setting(
                boot=_new_boot(store),
                version=__version__,
                station=station,
                recipe=recipe,
                publish=publish,
                retention_ms=int(config.retention_days * 86_400_000),
                clock=clock,
                clock_state=clock_state,
            )
            ring = TriggerRing(ring_places(state_dir), slots=config.max_pending + SPARE_SLOTS, held=held)
            stack.callback(ring.close)
            parts = _put_together(config, state_dir, store=store, ring=ring, lock=lock, setting=setting, stack=stack)
            parts.writer.recover()
            parts.writer.start()
            stack.pop_all()
            return cls(parts, keep=config.evidence.keep, setting=setting)

    @classmethod
    def open_readonly(cls, state_dir: Path) -> JournalReader:
        """Read a journal beside a running agent, or without one.

        Raises:
            JournalError: there is none, or it can't be read.
        """
        return JournalReader(state_dir)

    def tell_triggered(self, tell: Callable[[Sequence[int]], None]) -> None:
        """From now on, call this with the sequences of triggers that are on the disk; on the journal's thread."""
        self._parts.writer.triggered = tell

    def tell_recorded(self, tell: Callable[[Verdict, int], None]) -> None:
        """From now on, call this with each verdict that is on the disk and its `rec`; on the journal's thread."""
        self._parts.writer.recorded = tell

    @property
    def last_rec(self) -> int:
        """The last record number on the disk; 0 when there is none."""
        return self._parts.writer.last_rec

    def trigger(self, part: Part) -> None:
        """Write ahead that a part exists and must get a verdict. A second call does nothing.

        When this returns the trigger survives the end of the process; its row on the disk is queued, not waited for.

        Raises:
            JournalError: the journal can't be written, or is closed.
        """
        if self._parts.pending.add(part):
            self._parts.ring.write(self.boot, part)
            self._parts.intake.put(Triggered(part))

    def trigger_if_room(self, part: Part) -> bool:
        """`trigger`, for one who must not wait for the disk: nothing is done while too many triggers wait for it.

        Not while another thread may call `trigger` or `record` for the same part.

        Returns:
            Whether it is queued, now or before; if not, `trigger` has still to be called.

        Raises:
            JournalError: the journal can't be written, or is closed.
        """
        pending = self._parts.pending
        if not pending.add(part):
            return True
        self._parts.ring.write(self.boot, part)
        if self._parts.intake.put_if_room(Triggered(part)):
            return True
        pending.discard(part)
        return False

    def record(self, verdict: Verdict, *, held: bool = False) -> Receipt:
        """Queue a verdict; waits only while `max_pending` others wait for the disk.

        The picture is not copied: nobody may write into the frame's array any more.

        Args:
            verdict: of a part that was triggered.
            held: the caller waits for it, tells the PLC, and then calls `told`; until then neither it nor what comes
                after it is published. One at a time.

        Raises:
            JournalError: the journal can't be written, or is closed.
        """
        receipt = Receipt()
        draft = draft_from_verdict(verdict, boot=self.boot, keep=self._keep)
        self._parts.intake.put(Recorded(draft, receipt, held))
        return receipt

    def told(self, verdict: Verdict, rec: int) -> None:
        """What the PLC heard of a verdict that was recorded `held` stands: it may be published.

        Args:
            verdict: as recorded; marked late since, where the PLC was told `error` at the deadline instead.
            rec: its record number.

        Raises:
            JournalError: the journal can't be written, or is closed.
        """
        self._parts.intake.put(Told(verdict.inspection.part.sequence, rec, verdict.late_ms))

    def event(
        self,
        name: str,
        severity: Literal["info", "warning", "alarm"],
        text: str,
        /,
        **data: str | float | bool | None,
    ) -> None:
        """Queue an event for the outbox; durable with the next commit. Never waits for the disk.

        Raises:
            JournalError: the journal can't be written, or is closed.
        """
        setting = self._setting
        message = event_message(name, severity, text, station=setting.station, now=setting.clock(), data=data)
        self._parts.intake.put(Noted(message))

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until all that was queued before is on the disk.

        Raises:
            JournalError: it could not be written, or not within the time.
        """
        receipt = Receipt()
        self._parts.intake.put(Flushed(receipt))
        receipt.wait(timeout_s)

    def is_judged(self, part_id: str) -> bool:
        """Whether a verdict for a part of this name is on the disk, in this run or an earlier one."""
        return self._parts.reader.is_judged(plain_text(part_id))

    def pending(self) -> tuple[Part, ...]:
        """Parts that were triggered in this run and have no verdict on the disk yet."""
        return self._parts.pending.all()

    def stats(self) -> JournalStats:
        """The journal in numbers."""
        return dataclasses.replace(
            self._parts.reader.stats(outbox=self.outbox.depth()),
            pending=len(self.pending()),
            commit_ms=self._parts.writer.commit_ms(),
        )

    def read(self, *, first: int = 1, last: int | None = None, newest_first: bool = False) -> Iterator[StoredVerdict]:
        """Stored verdicts, as `JournalReader.read`."""
        return self._parts.reader.read(first=first, last=last, newest_first=newest_first)

    def close(self, timeout_s: float = 5.0) -> None:
        """Take nothing more, write what is queued, and let go of the files. A second call does nothing.

        Raises:
            JournalError: not everything got onto the disk.
        """
        if self._closed:
            return
        self._parts.intake.close()
        if not self._parts.writer.join(timeout_s):
            raise JournalError(
                f"{self._parts.intake.depth()} items are not on the disk after {timeout_s:g} s",
                hint="triggered parts among them get an error verdict at the next start; check the disk: dmesg",
            )
        self._closed = True
        self._parts.ring.close()
        self.outbox.close()
        self._parts.reader.close()
        self._parts.lock.close()
        if self._parts.writer.failed is not None:
            raise JournalError(self._parts.writer.failed.message, hint=self._parts.writer.failed.hint)

    def __enter__(self) -> Journal:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _put_together(
    config: JournalConfig,
    state_dir: Path,
    *,
    store: Store,
    ring: TriggerRing,
    lock: StateLock,
    setting: Setting,
    stack: contextlib.ExitStack,
) -> _Parts:
    """Make what works behind the door; what has to be closed when that fails goes onto the stack."""
    files = ImageFiles(state_dir / "images")
    moved = _set_old_images_aside(files, setting.clock()) if store.state.last_rec == 0 else None
    make_private_dir(files.root)
    intake = Intake(config.max_pending)
    reader = stack.enter_context(contextlib.closing(JournalReader(state_dir)))
    outbox = stack.enter_context(contextlib.closing(Outbox(store.path, files=files, intake=intake)))
    keeper = Keeper(config, store=store, files=files, station=setting.station, state_dir=state_dir)
    if moved is not None:
        text = f"{moved}: pictures of an earlier journal; delete them when nobody needs them"
        keeper.tell("evidence_moved", "warning", text, setting.clock(), folder=moved.name)
    pending = _Pending()
    writer = Writer(
        setting, store=store, keeper=keeper, intake=intake, outbox=outbox, ring=ring, answered=pending.remove
    )
    return _Parts(intake=intake, outbox=outbox, reader=reader, writer=writer, pending=pending, ring=ring, lock=lock)


def _new_boot(store: Store) -> str:
    while store.boot_exists(boot := secrets.token_hex(4)):
        pass
    return boot


def _set_old_images_aside(files: ImageFiles, now: Stamp) -> Path | None:
    """A new journal beside old pictures: somebody moved a damaged one away. They are no orphans to be swept."""
    if next(files.names(), None) is None:
        return None
    target = files.root.with_name(f"images.before-{rfc3339(max(0, now.utc_ms))[:19].replace(':', '')}")
    try:
        files.root.rename(target)
    except OSError as error:
        raise JournalError(f"{files.root}: can't be moved to {target.name} ({error.strerror})") from error
    return target
