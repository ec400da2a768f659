"""The journal's tables, and the one door to sqlite3: connections are opened and errors translated here."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from agent.errors import JournalError
from agent.journal.disk import DiskFullError, free_bytes

__all__ = ["DATABASE_NAME", "SCHEMA", "connect_reader", "connect_writer", "sqlite_errors"]

SCHEMA = 3
"""PRAGMA user_version: the layout that this program writes, and the newest that it reads."""

APPLICATION_ID = 0x44414A31
"""PRAGMA application_id, "DAJ1": tells our file from any other SQLite database."""

DATABASE_NAME = "journal.db"
BUSY_MS = 10_000
LOW_SPACE_BYTES = 1 << 20

IMAGES = """
CREATE TABLE images (                   -- one per camera that saw the part
    number INTEGER PRIMARY KEY,         -- in the order of their records, of one record the foremost first
    rec INTEGER NOT NULL,
    view TEXT NOT NULL DEFAULT '',      -- which camera's; empty with one
    id TEXT NOT NULL,                   -- of the foremost that of the verdict
    day TEXT NOT NULL,
    bytes INTEGER NOT NULL,             -- on disk, both files together
    small INTEGER NOT NULL,             -- 1: a second, smaller file is the one that is published
    sha256 TEXT NOT NULL,               -- of the published file
    seq INTEGER,                        -- its row in the outbox; NULL: not for publishing
    evicted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX images_rec ON images (rec);
CREATE INDEX images_kept ON images (number, rec, bytes) WHERE evicted = 0;
"""

TABLES = f"""
CREATE TABLE state (                    -- one row; what must outlive every other row
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last_rec INTEGER NOT NULL,          -- never used again
    last_seq INTEGER NOT NULL,
    n_ok INTEGER NOT NULL, n_defect INTEGER NOT NULL, n_review INTEGER NOT NULL, n_error INTEGER NOT NULL,
    n_evicted INTEGER NOT NULL,
    lived_ms INTEGER NOT NULL,          -- the journal's own age, see agent/journal/age.py
    utc_ms INTEGER NOT NULL,            -- wall clock of the last transaction
    n_triggers INTEGER NOT NULL DEFAULT 0,   -- ever written, see agent/journal/ledger.py
    n_refused INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE boots (boot TEXT PRIMARY KEY, started_ms INTEGER NOT NULL, version TEXT NOT NULL, station TEXT NOT NULL);
CREATE TABLE triggers (                 -- write-ahead: parts that must still get their verdict
    boot TEXT NOT NULL, sequence INTEGER NOT NULL, part TEXT NOT NULL, kind TEXT NOT NULL,
    utc_ms INTEGER NOT NULL, mono_ns INTEGER NOT NULL,
    PRIMARY KEY (boot, sequence)
) WITHOUT ROWID;
CREATE TABLE verdicts (
    rec INTEGER PRIMARY KEY, id TEXT NOT NULL, part TEXT NOT NULL, time_ms INTEGER NOT NULL, boot TEXT NOT NULL,
    code INTEGER NOT NULL, class TEXT, score REAL,
    trigger_boot TEXT NOT NULL, trigger_sequence INTEGER NOT NULL,
    lived_ms INTEGER NOT NULL,
    body TEXT NOT NULL                  -- the message as published
);
CREATE UNIQUE INDEX verdicts_trigger ON verdicts (trigger_boot, trigger_sequence);
CREATE INDEX verdicts_part ON verdicts (part);
{IMAGES}
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, topic TEXT NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    rec INTEGER, created_ms INTEGER NOT NULL, content_type TEXT NOT NULL,
    body TEXT,                          -- events only: verdicts have it in `verdicts`, pictures in their file
    set_aside TEXT                      -- why it no longer goes out
);
CREATE INDEX outbox_set_aside ON outbox (seq) WHERE set_aside IS NOT NULL;
"""


FROM_1 = """
ALTER TABLE state ADD COLUMN n_triggers INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN n_refused INTEGER NOT NULL DEFAULT 0;
UPDATE state SET n_triggers = n_ok + n_defect + n_review + n_error + (SELECT count(*) FROM triggers);
"""

FROM_2 = (
    """
DROP INDEX images_kept;
ALTER TABLE images RENAME TO images_2;
"""
    + IMAGES
    + """
INSERT INTO images (rec, id, day, bytes, small, sha256, seq, evicted)
SELECT rec, id, day, bytes, small, sha256, seq, evicted FROM images_2 ORDER BY rec;
DROP TABLE images_2;
"""
)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the journal for its writer; make it when there is none.

    Raises:
        JournalError: damaged, written by a newer agent, not ours, or not allowed.
    """
    with sqlite_errors(path, "opened"):
        _make_private(path)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
        try:
            if _is_new(db, path):
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(
                    f"BEGIN IMMEDIATE; {TABLES}"  # noqa: S608 - constants
                    "INSERT INTO state VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);"
                    f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA}; COMMIT;"
                )
            elif (version := int(db.execute("PRAGMA user_version").fetchone()[0])) < SCHEMA:
                steps = FROM_1 + FROM_2 if version == 1 else FROM_2
                db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA}; COMMIT;")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {16 << 20}")
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute("SELECT last_rec FROM state").fetchone()
        except BaseException:
            db.close()
            raise
        return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open the journal for reading, beside a running agent or without one.

    Raises:
        JournalError: there is none, or as for `connect_writer`.
    """
    try:
        found = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        found = False
    except OSError as error:
        raise JournalError(
            f"{path}: can't be looked at ({error.strerror})",
            hint="the journal belongs to the agent's user: sudo -u defect-agent defect-agent journal …",
        ) from error
    if not found:
        raise JournalError(f"{path}: no journal here", hint="give the state_dir of a station that has run")
    with sqlite_errors(path, "read"):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
        try:
            new = _is_new(db, path)
        except BaseException:
            db.close()
            raise
    if new:
        db.close()
        raise JournalError(f"{path}: an empty journal", hint="wait until the station has started once")
    return db


def _make_private(path: Path) -> None:
    """SQLite gives its -wal and -shm files the mode of the database."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise JournalError(
            f"{path}: can't be opened for writing ({error.strerror})",
            hint="check that the agent's user owns the state directory",
        ) from error


def _is_new(db: sqlite3.Connection, path: Path) -> bool:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    owner = int(db.execute("PRAGMA application_id").fetchone()[0])
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return True
    if owner != APPLICATION_ID:
        raise JournalError(
            f"{path}: a database of another program (application id {owner:#x})",
            hint="give this station a state_dir of its own",
        )
    if version > SCHEMA:
        raise JournalError(
            f"{path}: written by a newer defect-agent (schema {version}, this one reads up to {SCHEMA})",
            hint="update defect-agent, or give this version a state_dir of its own",
        )
    return False


@contextlib.contextmanager
def sqlite_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn sqlite3's errors into ours.

    Args:
        path: the database.
        doing: what was tried, for "can't be …".

    Raises:
        DiskFullError: the disk, a quota or a limit is reached.
        JournalError: everything else, with the remedy.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path, doing) from error


def _translated(error: sqlite3.Error, path: Path, doing: str) -> JournalError:
    text = str(error)
    name = str(getattr(error, "sqlite_errorname", ""))  # Python 3.11 and later
    if "full" in text or name in {"SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"} or _out_of_space(text, path):
        return DiskFullError(
            f"{path}: can't be {doing}: no space left on the disk", hint="free some space, then start the agent again"
        )
    if "not a database" in text or "malformed" in text or "no such" in text:
        return JournalError(
            f"{path}: damaged ({text}); nothing was changed",
            hint=f"keep it for a rescue and start a new one: mv {path.parent} {path.parent}.damaged",
        )
    if "locked" in text:
        return JournalError(
            f"{path}: can't be {doing}: another program has kept it locked for {BUSY_MS / 1000:.0f} s",
            hint=f"find it with: fuser -v {path}",
        )
    if "unable to open" in text or "readonly" in text:
        return JournalError(f"{path}: can't be {doing} ({text})", hint="check owner and mode of the state directory")
    return JournalError(f"{path}: can't be {doing} ({text} {name})".rstrip(" )") + ")", hint="check the disk: dmesg")


def _out_of_space(text: str, path: Path) -> bool:
    """Python 3.10 tells only "disk I/O error" for a write that found no space (EDQUOT, EFBIG)."""
    if "disk I/O error" not in text:
        return False
    try:
        return free_bytes(path.parent) < LOW_SPACE_BYTES
    except JournalError:
        return False
