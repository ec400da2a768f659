"""JournalReader: the record, read beside a running agent or without one.

Every query is short and ends its read transaction, so that a slow reader never keeps the write-ahead log from being
moved into the database.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from agent.journal.disk import free_bytes
from agent.journal.evidence import ImageFiles
from agent.journal.ledger import Ledger, ledger_faults, ledger_of, unwritten
from agent.journal.ring import left_in
from agent.journal.schema import DATABASE_NAME, connect_reader, sqlite_errors
from agent.verdict import Decision

__all__ = ["JournalReader", "JournalStats", "StoredImage", "StoredVerdict"]

CHUNK = 256
VIEWS_SINCE = 3
"""The schema from which on a record may have several pictures."""

DEPTH = "SELECT count(*) FROM outbox WHERE set_aside IS NULL"
COLUMNS = "rec, id, part, time_ms, boot, code, class, score, body"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredVerdict:
    """One verdict as it stands in the journal.

    Attributes:
        rec: record number.
        id: UUIDv7.
        part: the plant's name for the part, whole.
        time_ms: exposure, UTC milliseconds.
        boot: which start of the agent wrote it.
        code: 1 ok, 2 defect, 3 review, 4 error.
        class_name: the class that decided.
        score: defect score.
        body: the message as published, JSON.
    """

    rec: int
    id: str
    part: str
    time_ms: int
    boot: str
    code: int
    class_name: str | None
    score: float | None
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """One kept picture.

    Attributes:
        view: which camera's; empty with one.
        id: its name, as in messages and topics.
        path: where the picture is, as it was taken.
        is_foremost: it is the one that the part's decision is about.
    """

    view: str
    id: str
    path: Path
    is_foremost: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalStats:
    """The journal in numbers.

    Attributes:
        by_decision: verdicts ever recorded, by `ok`, `defect`, `review`, `error`; their sum is `last_rec`.
        last_rec: the last record number; 0 when there is none.
        oldest_rec: the first one still kept, None when there is none.
        oldest_ms: its exposure, UTC milliseconds.
        pending: parts that were triggered and have no verdict yet.
        ledger: what became of all triggers, as it stands on the disk.
        outbox: messages that still have to go out.
        set_aside: messages that can't be sent and are kept for inspection.
        evidence_count: pictures on the disk.
        evidence_bytes: their bytes.
        evidence_evicted: pictures ever removed before their time.
        db_bytes: the database and its write-ahead log.
        disk_free_bytes: what the disk still has.
        reserve_bytes: what is held back for a full disk.
        commit_ms: median of the last 256 commits; None for who only reads.
    """

    by_decision: dict[str, int]
    last_rec: int
    oldest_rec: int | None
    oldest_ms: int | None
    pending: int
    ledger: Ledger
    outbox: int
    set_aside: int
    evidence_count: int
    evidence_bytes: int
    evidence_evicted: int
    db_bytes: int
    disk_free_bytes: int
    reserve_bytes: int
    commit_ms: float | None = None


class JournalReader:
    """A read-only view; may be used from several threads.

    Args:
        state_dir: the station's state directory.

    Raises:
        JournalError: there is no journal, or it can't be read.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        self._path = state_dir / DATABASE_NAME
        self._files = ImageFiles(state_dir / "images")
        self._lock = threading.Lock()
        self._db = connect_reader(self._path)

    def read(self, *, first: int = 1, last: int | None = None, newest_first: bool = False) -> Iterator[StoredVerdict]:
        """Verdicts from `first` to `last` (both included) by record number.

        Args:
            first: record number.
            last: record number; None is the last one there is when reading gets there.
            newest_first: turn the order round.

        Raises:
            JournalError: the journal can't be read.
        """
        low, high = first, 2**62 if last is None else last
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT {COLUMNS} FROM verdicts WHERE rec BETWEEN ? AND ? ORDER BY rec {order} LIMIT {CHUNK}"  # noqa: S608
        while rows := self._all(query, (low, high)):
            for row in rows:
                yield _stored(row)
            low, high = (low, rows[-1][0] - 1) if newest_first else (rows[-1][0] + 1, high)

    def is_judged(self, part_id: str) -> bool:
        """Whether any verdict for a part of this name is on the disk, an `error` included."""
        return bool(self._all("SELECT 1 FROM verdicts WHERE part = ? LIMIT 1", (part_id,)))

    def image_path(self, rec: int) -> Path | None:
        """The kept picture of a record, of several views that of the worst; None when there is none (any more)."""
        return next((image.path for image in self.images(rec) if image.is_foremost), None)

    def images(self, rec: int) -> tuple[StoredImage, ...]:
        """All kept pictures of a record, the foremost first: one per flagged view; those that are gone are left out."""
        is_old = int(self._one("PRAGMA user_version")[0]) < VIEWS_SINCE
        columns, order = ("''", "i.rec") if is_old else ("i.view", "i.number")
        query = (
            f"SELECT {columns}, i.id, i.day, i.id = v.id FROM images i JOIN verdicts v USING (rec) "  # noqa: S608
            f"WHERE i.rec = ? AND i.evicted = 0 ORDER BY {order}"
        )
        found = [
            StoredImage(view=view, id=id_, path=self._files.path(id_, day), is_foremost=bool(foremost))
            for view, id_, day, foremost in self._all(query, (rec,))
        ]
        return tuple(image for image in found if image.path.is_file())

    def stats(self, *, outbox: int | None = None) -> JournalStats:
        """The journal in numbers, from the disk.

        Args:
            outbox: how many messages still have to go out, for who knows it already; counting a backlog takes time.
        """
        ledger = self.ledger()
        last_rec, *tallies, evicted = self._one(
            "SELECT last_rec, n_ok, n_defect, n_review, n_error, n_evicted FROM state"
        )
        oldest = self._all("SELECT rec, time_ms FROM verdicts ORDER BY rec LIMIT 1")
        count, size = self._one("SELECT count(*), coalesce(sum(bytes), 0) FROM images WHERE evicted = 0")
        return JournalStats(
            by_decision={decision.value: tallies[decision.code - 1] for decision in Decision},
            last_rec=last_rec,
            oldest_rec=oldest[0][0] if oldest else None,
            oldest_ms=oldest[0][1] if oldest else None,
            pending=ledger.pending,
            ledger=ledger,
            outbox=self._one(DEPTH)[0] if outbox is None else outbox,
            set_aside=self._one("SELECT count(*) FROM outbox WHERE set_aside IS NOT NULL")[0],
            evidence_count=count,
            evidence_bytes=size,
            evidence_evicted=evicted,
            db_bytes=sum(_size(self._path.with_name(DATABASE_NAME + tail)) for tail in ("", "-wal")),
            disk_free_bytes=free_bytes(self._dir),
            reserve_bytes=_size(self._dir / "reserve"),
        )

    def ledger(self) -> Ledger:
        """What became of all triggers."""
        with self._lock, sqlite_errors(self._path, "read"):
            return ledger_of(self._db)

    def ledger_faults(self) -> list[str]:
        """What does not add up, in words, from the rows themselves; empty when every trigger is accounted for."""
        left = left_in(self._dir)
        with self._lock, sqlite_errors(self._path, "read"):
            return list(ledger_faults(self._db, unwritten(self._db, left)))

    def in_memory(self) -> int:
        """Triggers that have no row yet: of a moment ago, or of a killed agent, whose next start answers them."""
        left = left_in(self._dir)
        with self._lock, sqlite_errors(self._path, "read"):
            return len(unwritten(self._db, left))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> JournalReader:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock, sqlite_errors(self._path, "read"):
            return self._db.execute(query, values).fetchall()

    def _one(self, query: str) -> Any:
        return self._all(query)[0]


def _stored(row: tuple[Any, ...]) -> StoredVerdict:
    rec, id_, part, time_ms, boot, code, class_name, score, body = row
    return StoredVerdict(
        rec=rec,
        id=id_,
        part=part,
        time_ms=time_ms,
        boot=boot,
        code=code,
        class_name=class_name,
        score=score,
        body=body.encode(),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
