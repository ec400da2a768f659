"""Journals as earlier agents wrote them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

__all__ = ["make_old"]

IMAGES_2 = """
CREATE TABLE old (
    rec INTEGER PRIMARY KEY, id TEXT NOT NULL, day TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    small INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    seq INTEGER,
    evicted INTEGER NOT NULL DEFAULT 0
);
INSERT INTO old SELECT rec, id, day, bytes, small, sha256, seq, evicted FROM images;
DROP TABLE images;
ALTER TABLE old RENAME TO images;
CREATE INDEX images_kept ON images (rec, bytes) WHERE evicted = 0;
"""
STATE_1 = """
ALTER TABLE state DROP COLUMN n_triggers;
ALTER TABLE state DROP COLUMN n_refused;
"""


def make_old(state_dir: Path, schema: Literal[1, 2]) -> None:
    """Bring a closed journal, with one camera's pictures, to the layout of an earlier agent."""
    db = sqlite3.connect(state_dir / "journal.db")
    steps = IMAGES_2 + (STATE_1 if schema == 1 else "")
    db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {schema}; COMMIT;")
    db.close()
