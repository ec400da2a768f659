"""Store: the SQL of the journal's writer. One connection, one thread at a time, one transaction per plan."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from agent.errors import JournalError
from agent.frame import Part, Stamp
from agent.journal.plan import Key, Plan, State
from agent.journal.schema import connect_writer, sqlite_errors

__all__ = ["ImageRow", "Store"]

INSERT_TRIGGER = """
INSERT OR IGNORE INTO triggers SELECT ?1, ?2, ?3, ?4, ?5, ?6
WHERE NOT EXISTS (SELECT 1 FROM verdicts WHERE trigger_boot = ?1 AND trigger_sequence = ?2)
"""
OLDEST_IMAGES = """
SELECT i.number, i.rec, i.id, i.day, i.bytes, o.seq IS NOT NULL
FROM images i LEFT JOIN outbox o ON o.seq = i.seq WHERE i.evicted = 0 AND i.number > ? AND i.rec <= ?
ORDER BY i.number LIMIT ?
"""
INSERT_IMAGE = """
INSERT INTO images (rec, view, id, day, bytes, small, sha256, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
ALL = (1 << 63) - 1
WORTHWHILE_BYTES = 64 << 10
KEPT_BOOTS = 10_000
UPDATE_STATE = """
UPDATE state SET last_rec = ?, last_seq = ?, n_ok = ?, n_defect = ?, n_review = ?, n_error = ?, n_evicted = ?,
lived_ms = ?, utc_ms = ?, n_triggers = n_triggers + ?, n_refused = n_refused + ?
"""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRow:
    """A picture that is kept.

    Attributes:
        number: its place in the order in which pictures were kept.
        rec: its verdict.
        id: its name.
        day: its folder.
        size: bytes on the disk.
        unpublished: whether it still waits for the broker.
    """

    number: int
    rec: int
    id: str
    day: str
    size: int
    unpublished: bool


class Store:
    """The writing connection.

    Args:
        path: the database.

    Attributes:
        state: as of the last transaction.
        commit_ms: what the disk took for the last commit.

    Raises:
        JournalError: as `connect_writer`, or a state that contradicts the rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commit_ms = 0.0
        self._db = connect_writer(path)
        try:
            self.state = self._read_state()
        except BaseException:
            self._db.close()
            raise

    def apply(self, plan: Plan) -> int:
        """Write a plan: all of it is durable when this returns, nothing of it when it raises.

        Returns:
            How many outbox rows left.

        Raises:
            DiskFullError: no space.
            JournalError: anything else.
        """
        with sqlite_errors(self.path, "written"), self._transaction():
            removed = self._write(plan)
        self.state = plan.state
        return removed

    def rec_of(self, key: Key) -> int | None:
        """The record that answered a part, if one did."""
        with sqlite_errors(self.path, "read"):
            row = self._db.execute(
                "SELECT rec FROM verdicts WHERE trigger_boot = ? AND trigger_sequence = ?", key
            ).fetchone()
        return None if row is None else int(row[0])

    def boot_exists(self, boot: str) -> bool:
        """Whether a start of the agent had this name before, and left something under it."""
        with sqlite_errors(self.path, "read"):
            return any(
                self._db.execute(query, (boot,)).fetchone() is not None
                for query in (
                    "SELECT 1 FROM boots WHERE boot = ?",
                    "SELECT 1 FROM verdicts WHERE trigger_boot = ? LIMIT 1",
                )
            )

    def triggers(self, limit: int) -> list[tuple[str, Part]]:
        """Parts that were triggered and have no verdict, oldest first, with the boot that triggered them."""
        with sqlite_errors(self.path, "read"):
            rows = self._db.execute(
                "SELECT boot, sequence, part, kind, utc_ms, mono_ns FROM triggers"
                " ORDER BY (SELECT rowid FROM boots b WHERE b.boot = triggers.boot), boot, sequence LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            (boot, Part(id=part, trigger=kind, sequence=sequence, triggered=Stamp(utc_ms, mono_ns)))
            for boot, sequence, part, kind, utc_ms, mono_ns in rows
        ]

    def outbox_row(self, seq: int) -> tuple[str, str, int | None] | None:
        """Kind, topic and record of a message that is still to go out."""
        with sqlite_errors(self.path, "read"):
            row: tuple[str, str, int | None] | None = self._db.execute(
                "SELECT kind, topic, rec FROM outbox WHERE seq = ? AND set_aside IS NULL", (seq,)
            ).fetchone()
        return row

    def kept_images(self) -> tuple[int, int]:
        """How many pictures there are, and their bytes."""
        with sqlite_errors(self.path, "read"):
            count, size = self._db.execute(
                "SELECT count(*), coalesce(sum(bytes), 0) FROM images WHERE evicted = 0"
            ).fetchone()
        return int(count), int(size)

    def oldest_images(self, after: int = 0, *, last_rec: int = ALL, limit: int = 256) -> list[ImageRow]:
        """Kept pictures in the order of their records, whatever the clock said then.

        Args:
            after: only those with a higher number.
            last_rec: only those of records up to this one.
            limit: at most so many.
        """
        with sqlite_errors(self.path, "read"):
            rows = self._db.execute(OLDEST_IMAGES, (after, last_rec, limit)).fetchall()
        return [ImageRow(number, rec, id_, day, size, bool(waiting)) for number, rec, id_, day, size, waiting in rows]

    def image_kept(self, number: int) -> ImageRow | None:
        """The picture of this number, unless it was evicted."""
        rows = self.oldest_images(number - 1, limit=1)
        return rows[0] if rows and rows[0].number == number else None

    def retire(self, *, before_lived_ms: int, limit: int) -> tuple[int, list[ImageRow]]:
        """Delete the oldest verdicts that are old enough and published, with their pictures' rows.

        Args:
            before_lived_ms: age of the journal at which the youngest of them was written.
            limit: at most so many, up to 256.

        Returns:
            How many verdicts went, and the pictures whose files are to be unlinked now.
        """
        with sqlite_errors(self.path, "written"), self._transaction():
            last = self._retirable(before_lived_ms, limit)
            if last is None:
                return 0, []
            images = self.oldest_images(last_rec=last, limit=ALL)
            self._db.execute("DELETE FROM outbox WHERE set_aside IS NOT NULL AND rec <= ?", (last,))
            self._db.execute("DELETE FROM images WHERE rec <= ?", (last,))
            gone = self._db.execute("DELETE FROM verdicts WHERE rec <= ?", (last,)).rowcount
        return gone, images

    def shrink(self) -> bool:
        """Move the write-ahead log into the database and give its space back, as far as readers and the disk allow.

        Returns:
            Whether that made room worth trying again for.
        """
        before = self._log_bytes()
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return before - self._log_bytes() >= WORTHWHILE_BYTES

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def save_space(self, saving: bool) -> None:
        """Keep the write-ahead log at 256 kB rather than 4 MB: the reserve is for the records, not for the log."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute(f"PRAGMA wal_autocheckpoint = {64 if saving else 1000}")

    def _log_bytes(self) -> int:
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except OSError:
            return 0

    def _retirable(self, before_lived_ms: int, limit: int) -> int | None:
        first_unpublished = self._db.execute(
            "SELECT rec FROM outbox WHERE rec IS NOT NULL AND set_aside IS NULL ORDER BY seq LIMIT 1"
        ).fetchone()
        bound = self.state.last_rec + 1 if first_unpublished is None else int(first_unpublished[0])
        rows = self._db.execute(
            "SELECT rec, lived_ms FROM verdicts WHERE rec < ? ORDER BY rec LIMIT ?", (bound, limit)
        ).fetchall()
        old = [int(rec) for rec, lived_ms in rows if lived_ms < before_lived_ms]
        return max(old) if old else None

    def _write(self, plan: Plan) -> int:
        db, state = self._db, plan.state
        db.executemany("INSERT INTO boots VALUES (?, ?, ?, ?)", plan.boots)
        if plan.boots:  # a device that restarts in a loop must not fill its disk with starts
            db.execute("DELETE FROM boots WHERE rowid <= (SELECT max(rowid) FROM boots) - ?", (KEPT_BOOTS,))
        written = db.executemany(INSERT_TRIGGER, plan.triggers).rowcount if plan.triggers else 0
        db.executemany("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", plan.verdicts)
        db.executemany("DELETE FROM triggers WHERE boot = ? AND sequence = ?", plan.answered)
        db.executemany(INSERT_IMAGE, plan.images)
        db.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)", plan.outbox)
        removed = db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in plan.acknowledged]).rowcount
        removed += db.executemany(
            "UPDATE outbox SET set_aside = ? WHERE seq = ? AND set_aside IS NULL", plan.set_aside
        ).rowcount
        db.executemany("UPDATE verdicts SET body = json_set(body, '$.late_ms', ?) WHERE rec = ?", plan.late)
        db.executemany("UPDATE images SET evicted = 1 WHERE number = ?", [(each,) for each in plan.evicted])
        db.execute(
            UPDATE_STATE,
            (
                *(state.last_rec, state.last_seq, *state.tallies, state.n_evicted, state.lived_ms, state.utc_ms),
                *(written + plan.n_answered_at_once, plan.n_refused),
            ),
        )
        return removed

    def _read_state(self) -> State:
        with sqlite_errors(self.path, "read"):
            last_rec, last_seq, ok, defect, review, error, n_evicted, lived_ms, utc_ms = self._db.execute(
                "SELECT last_rec, last_seq, n_ok, n_defect, n_review, n_error, n_evicted, lived_ms, utc_ms FROM state"
            ).fetchone()
            highest = self._db.execute("SELECT coalesce(max(rec), 0) FROM verdicts").fetchone()[0]
        if highest > last_rec:
            raise JournalError(
                f"{self.path}: damaged (record {highest} stands behind the last one, {last_rec}); nothing was changed",
                hint=f"keep it for a rescue and start a new one: mv {self.path.parent} {self.path.parent}.damaged",
            )
        return State(
            last_rec=last_rec,
            last_seq=last_seq,
            tallies=(ok, defect, review, error),
            n_evicted=n_evicted,
            lived_ms=lived_ms,
            utc_ms=utc_ms,
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            started = time.perf_counter()
            self._db.execute("COMMIT")
            self.commit_ms = (time.perf_counter() - started) * 1000
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
                self._db.execute("ROLLBACK")
            raise
