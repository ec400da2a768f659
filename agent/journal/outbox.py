"""Outbox: messages that still have to reach the broker, as the publisher's thread sees them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from agent.journal.evidence import ImageFiles
from agent.journal.intake import Acknowledged, Intake, Missing, SetAside
from agent.journal.schema import connect_reader, sqlite_errors

__all__ = ["Outbox", "OutboxRow"]

PENDING = """
SELECT o.seq, o.kind, o.topic, o.qos, o.retain, o.rec, o.created_ms, o.content_type, coalesce(o.body, v.body)
FROM outbox o LEFT JOIN verdicts v ON o.kind = 'verdict' AND v.rec = o.rec
WHERE o.seq > ? AND o.seq < ? AND o.set_aside IS NULL ORDER BY o.seq LIMIT ?
"""
NEVER = (1 << 63) - 1
DEPTH = "SELECT count(*) FROM outbox WHERE set_aside IS NULL"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One message on its way.

    Attributes:
        seq: its place in the order; grows, is never used again.
        kind: what it is.
        topic: complete, `STATION/verdict` for example.
        qos: 1.
        retain: False; results are never retained.
        rec: the verdict it belongs to; None for events.
        created_ms: UTC milliseconds of its commit.
        content_type: for MQTT 5.
        body: the payload; None for pictures, which stay on the disk until `Outbox.payload` is asked.
    """

    seq: int
    kind: Literal["verdict", "image", "event"]
    topic: str
    qos: int
    retain: bool
    rec: int | None
    created_ms: int
    content_type: str
    body: bytes | None = dataclasses.field(default=None, repr=False)


class Outbox:
    """What is committed and not yet acknowledged, in order; reads over a connection of its own.

    Made by `Journal.open`; every method may be called from any thread.

    Args:
        path: the database.
        files: the pictures.
        intake: where acknowledgements go to the writer.

    Attributes:
        also_ring: called beside `wake_fd` when new rows were committed; returns at once.
    """

    def __init__(self, path: Path, *, files: ImageFiles, intake: Intake) -> None:
        self._path = path
        self._files = files
        self._intake = intake
        self._lock = threading.Lock()
        self._leaving: set[int] = set()
        self._held: dict[int, int] = {}  # part to its first row
        self.also_ring: Callable[[], None] = lambda: None
        self._db = connect_reader(path)
        with sqlite_errors(path, "read"):
            self._rows = int(self._db.execute(DEPTH).fetchone()[0])
        self.wake_fd, self._poke_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def pending(self, *, after: int = 0, limit: int) -> tuple[OutboxRow, ...]:
        """Rows with `seq > after`, oldest first, without those acknowledged, set aside or held.

        Raises:
            JournalError: the journal can't be read, or is closed.
        """
        rows: list[OutboxRow] = []
        with self._lock, sqlite_errors(self._path, "read"):
            before = min(self._held.values(), default=NEVER)
            while len(rows) < limit:
                found = self._db.execute(PENDING, (after, before, limit - len(rows))).fetchall()
                if not found:
                    break
                rows += [_row(values) for values in found if values[0] not in self._leaving]
                after = found[-1][0]
        return tuple(rows)

    def payload(self, row: OutboxRow) -> bytes | None:
        """The bytes to publish; None when the picture has gone (evicted, or damaged on the disk).

        A picture's bytes are exactly those whose SHA-256 stands in its verdict. The loss is, or becomes, an event.
        """
        if row.kind != "image":
            return row.body
        with self._lock, sqlite_errors(self._path, "read"):
            found = self._db.execute(
                "SELECT id, day, small, sha256, evicted, number FROM images WHERE rec = ? AND seq = ?",
                (row.rec, row.seq),
            ).fetchone()
        if found is None or found[4]:
            return None
        data = self._files.read(found[0], found[1], small=bool(found[2]), sha256=found[3])
        if data is None:
            self._intake.put(Missing(found[5]))
        return data

    def acknowledge(self, seqs: Sequence[int]) -> None:
        """These arrived: they leave now, and leave the disk with the next commit. Never blocks on the disk.

        Raises:
            JournalError: the writer has failed, or the journal is closed.
        """
        if seqs:
            with self._lock:
                self._intake.put(Acknowledged(tuple(seqs)))
                self._leaving.update(seqs)

    def set_aside(self, seq: int, reason: str) -> None:
        """Move a row that can't be sent out of the way; it is kept for inspection and reported by an event.

        Raises:
            JournalError: the writer has failed, or the journal is closed.
        """
        with self._lock:
            self._intake.put(SetAside(seq, reason))
            self._leaving.add(seq)

    def depth(self) -> int:
        """How many rows still have to go out."""
        with self._lock:
            return max(0, self._rows - len(self._leaving))

    def drain_wake(self) -> None:
        """Make `wake_fd` unreadable until the next commit; call it before looking, not after."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_fd, 4096):
                pass

    def hold(self, part: int, seq: int) -> None:
        """From this row on nothing is pending until its part's `release` (called by the writer, before it is there)."""
        with self._lock:
            self._held[part] = seq

    @property
    def is_holding(self) -> bool:
        """Whether verdicts wait until the PLC has heard of one."""
        return bool(self._held)

    def release(self, part: int) -> None:
        """The PLC has heard of this part: it may go, as far as no other is held (called by the writer)."""
        with self._lock:
            self._held.pop(part, None)
            self._poke()

    def settle(self, *, added: int, removed: int, left: Sequence[int]) -> None:
        """A transaction is on the disk (called by the writer).

        Args:
            added: new rows.
            removed: rows that were acknowledged or set aside.
            left: their seqs, as they were asked for.
        """
        with self._lock:
            self._rows += added - removed
            self._leaving.difference_update(left)
            if added:
                self._poke()

    def close(self) -> None:
        """Close the connection and both ends of the wake pipe."""
        with self._lock:
            self._db.close()
            for fd in (self.wake_fd, self._poke_fd):
                if fd >= 0:
                    os.close(fd)
            self.wake_fd = self._poke_fd = -1

    def _poke(self) -> None:
        if self._poke_fd >= 0:
            with contextlib.suppress(BlockingIOError):  # full: then it is readable already
                os.write(self._poke_fd, b"\0")
        self.also_ring()


def _row(values: tuple[Any, ...]) -> OutboxRow:
    seq, kind, topic, qos, retain, rec, created_ms, content_type, body = values
    return OutboxRow(
        seq=seq,
        kind=kind,
        topic=topic,
        qos=qos,
        retain=bool(retain),
        rec=rec,
        created_ms=created_ms,
        content_type=content_type,
        body=None if body is None else body.encode(),
    )
