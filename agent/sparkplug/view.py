"""View: what a session shows of the station, and what outlives the connection. Used by the sparkplug thread."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from agent.config import SparkplugConfig
from agent.errors import JournalError
from agent.journal import Journal, JournalReader, StoredVerdict
from agent.log import log_event
from agent.messages import MetricsMessage, StatusMessage
from agent.sparkplug.backlog import Backlog
from agent.sparkplug.memory import Memory
from agent.sparkplug.payload import Metric, Value
from agent.sparkplug.tags import (
    COMMANDS,
    DEVICE,
    NO_PART,
    NODE,
    REPLY,
    Board,
    Tag,
    Values,
    count_values,
    node_values,
    part_values,
)

__all__ = ["Door", "OnCommand", "Source", "View"]

T = TypeVar("T")

REMEMBER_S = 5.0
TELL_EVERY_S = 60.0
WRITES_PER_S = 20.0

log = logging.getLogger("agent.sparkplug")


class OnCommand(Protocol):
    """The door of the commands."""

    def __call__(self, name: str, value: Value, /) -> str:
        """Do what was written, at once or on another thread.

        Args:
            name: of the tag, `Control/Trigger` for example.
            value: of the tag's type.

        Returns:
            What became of it, in words; it is shown as `Control/Reply`.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the station says of itself.

    Attributes:
        status: its status; called by the sparkplug thread.
        metrics: its numbers; called by the sparkplug thread.
        tell_event: `Journal.event`.
    """

    status: Callable[[], StatusMessage]
    metrics: Callable[[], MetricsMessage]
    tell_event: Callable[..., object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Who takes what hosts write.

    Attributes:
        on_command: does it; called by the sparkplug thread.
        writable: names of `agent.sparkplug.tags.COMMANDS` that it takes; the others are not announced.
    """

    on_command: OnCommand
    writable: tuple[str, ...]


class View:
    """Values, records, commands.

    Args:
        config: of Sparkplug.
        journal: where verdicts come from.
        reader: a connection of its own, so that nobody waits for us.
        memory: what was kept.
        source: status, metrics, events.
        door: takes what hosts write; None announces nothing that can be written.
        doubt_s: see `Backlog`.

    Attributes:
        status_due: something has changed that is to be shown now.
        turned_at: the thread's last sign of life, monotonic seconds.
    """

    def __init__(
        self,
        config: SparkplugConfig,
        *,
        journal: Journal,
        reader: JournalReader,
        memory: Memory,
        source: Source,
        door: Door | None,
        doubt_s: float,
    ) -> None:
        self.config, self._journal, self._reader, self._memory = config, journal, reader, memory
        self._source, self._door = source, door
        names = () if door is None else (*door.writable, REPLY)
        self.writable: dict[str, Tag] = {name: COMMANDS[name] for name in names}
        self.node = Board(NODE, with_datatype=config.datatype_in_data)
        self.device = Board((*DEVICE, *self.writable.values()), with_datatype=config.datatype_in_data)
        self.device.set_(NO_PART)
        last = journal.last_rec if memory.now.last is None else memory.now.last
        self.backlog = Backlog(unsent=list(memory.now.unsent), last=last, limit=config.history_limit, doubt_s=doubt_s)
        self._recorded = journal.last_rec
        self._skipped = 0
        self._ledger: tuple[float, dict[str, int]] | None = None
        self._remembered_at = 0.0
        self._told_at: dict[str, float] = {}
        self._journal_error = ""
        self._failed: set[str] = set()
        self._is_waiting = False
        self._tokens, self._tokens_at = WRITES_PER_S, time.monotonic()
        self.status_due = False
        self.told_deaf = ""
        self.turned_at = time.monotonic()
        self.births = 0

    def recorded(self) -> int:
        """Up to here verdicts may be shown: on the disk, and told to the PLC where that comes first."""
        last = self._journal.last_rec
        if not self._journal.outbox.is_holding:  # asked after it: what is held began before its record was there
            self._recorded = last
        return self._recorded

    def read(self, first: int, last: int) -> Iterator[StoredVerdict]:
        """Stored verdicts, in order."""
        return self._reader.read(first=first, last=last)

    def begin(self) -> None:
        """A session begins: what is recorded is history, and the last of it the present state.

        Raises:
            JournalError: the journal can't be read.
        """
        upto = self.recorded()
        newest = next(iter(itertools.islice(self._reader.read(last=upto, newest_first=True), 1)), None)
        self.device.set_(NO_PART if newest is None else part_values(newest.body))
        dropped = self.backlog.born(upto)
        if dropped:
            self._skipped += dropped
            text = (
                f"{dropped} verdicts are too old to be sent over Sparkplug (sparkplug.history_limit is "
                f"{self.config.history_limit}); the journal keeps them"
            )
            self._event("sparkplug_history_skipped", "warning", text, skipped=dropped)
        self._journal_error = ""

    def look(self, now: float) -> tuple[list[Metric], list[Metric]]:
        """What has changed of node and device since the last look, as data."""
        self.status_due = False
        status, metrics = self._call(self._source.status), self._call(self._source.metrics)
        values = node_values(status, metrics)
        values |= {"Queue/Historical": self.backlog.size, "Queue/Skipped": self._skipped}
        counts: Values = {}
        if metrics is not None:
            at, before = self._ledger or (float("-inf"), None)
            is_due = now - at >= self.config.metrics_s / 2  # rates of a moment say nothing
            counts = count_values(metrics, before if is_due else None, now - at)
            if is_due:
                self._ledger = now, dict(metrics.ledger)
        now_ms = max(0, time.time_ns() // 1_000_000)
        return self.node.changed(values, now_ms), self.device.changed(counts, now_ms)

    def write(self, name: str, value: Value) -> list[Metric]:
        """Do what a host has written; gives the reply as data."""
        if not self._has_token():
            return self._reply(f"{name}: refused: more than {WRITES_PER_S:g} commands a second")
        assert self._door is not None
        try:
            words = self._door.on_command(name, value)
        except Exception as error:  # whatever the command stumbled over, the plant hears of it and the thread goes on
            log.exception("bug")
            words = f"failed by our bug ({type(error).__name__})"
        log_event(log, "sparkplug_command", command=name, reply=words)
        return self._reply(f"{name}: {words}")

    def refuse(self, reason: str) -> None:
        """Tell that a command was not done; each minute at most once."""
        self._tell("command_refused", f"Sparkplug command: {reason}")

    def waits_for_host(self) -> None:
        """Tell once that the primary host is not there."""
        if not self._is_waiting:
            self._is_waiting = True
            log_event(log, "sparkplug_waits", host=self.config.primary_host_id)

    def is_born(self) -> None:
        """Tell that a session has begun."""
        self._is_waiting = False
        self.births += 1
        log_event(log, "sparkplug_born", historical=self.backlog.size)

    def tell_deaf(self, reason: str) -> None:
        """Tell once that the broker refused a subscription."""
        if reason and reason != self.told_deaf:
            log_event(
                log, "sparkplug_not_heard", logging.ERROR, reason=f"the broker does not let us subscribe: {reason}"
            )
        self.told_deaf = reason

    def journal_failed(self, error: JournalError) -> None:
        """Tell once; it is tried again."""
        if str(error) != self._journal_error:
            self._journal_error = str(error)
            log_event(log, "sparkplug_no_journal", logging.ERROR, reason=error.message)

    def part_failed(self, rec: int, error: Exception) -> None:
        """Tell of a record that can't be shown; each minute at most once."""
        self._tell("sparkplug_part_skipped", f"record {rec} can't be sent over Sparkplug ({error})")

    def remember_sometimes(self, now: float) -> None:
        """Keep what was sent, every few seconds: an old state costs repeats, no losses."""
        if now - self._remembered_at >= REMEMBER_S:
            self._remembered_at = now
            self.remember()

    def remember(self) -> None:
        """Keep what was sent, now."""
        known = self._memory.now
        self._memory.keep(dataclasses.replace(known, last=self.backlog.last, unsent=tuple(self.backlog.unsent())))

    def take_bdseq(self) -> int:
        """The number of the next session, which is used up by that."""
        return self._memory.take_bdseq()

    @property
    def next_bdseq(self) -> int:
        """What it will be."""
        return self._memory.now.next_bdseq

    def _reply(self, text: str) -> list[Metric]:
        return self.device.news({REPLY: text[:500]}, max(0, time.time_ns() // 1_000_000))

    def _has_token(self) -> bool:
        now = time.monotonic()
        self._tokens = min(WRITES_PER_S, self._tokens + (now - self._tokens_at) * WRITES_PER_S)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _tell(self, name: str, text: str) -> None:
        now = time.monotonic()
        if now - self._told_at.get(name, float("-inf")) >= TELL_EVERY_S:
            self._told_at[name] = now
            self._event(name, "warning", text)
            log_event(log, name, logging.WARNING, reason=text)

    def _event(self, name: str, severity: str, text: str, **data: int) -> None:
        try:
            self._source.tell_event(name, severity, text, **data)
        except JournalError as error:
            self.journal_failed(error)

    def _call(self, source: Callable[[], T]) -> T | None:
        """A disk that can't be asked for its space must not stop the verdicts."""
        try:
            return source()
        except Exception as error:
            if repr(error) not in self._failed:
                self._failed.add(repr(error))
                log.exception("status_unknown")
            return None
