"""Ledger: every trigger is accounted for, at any time and after any restart, and everybody can check it.

```text
triggers = ok + defect + review + error + pending
```

Triggers are counted when their row is written, verdicts when theirs is, pending ones are the rows that are left: three
counts of one transaction each, and not one number taken from another.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Collection, Iterator

__all__ = ["Ledger", "ledger_faults", "ledger_of", "unwritten"]

COUNTS = "n_ok, n_defect, n_review, n_error, (SELECT count(*) FROM triggers)"
ANSWERED = """
SELECT count(*) FROM triggers t JOIN verdicts v ON v.trigger_boot = t.boot AND v.trigger_sequence = t.sequence
"""
KNOWN = """
SELECT EXISTS (SELECT 1 FROM boots WHERE boot = ?1),
EXISTS (SELECT 1 FROM triggers WHERE boot = ?1 AND sequence = ?2)
OR EXISTS (SELECT 1 FROM verdicts WHERE trigger_boot = ?1 AND trigger_sequence = ?2)
"""
BY_SEQUENCE = """
SELECT boot, min(n), max(n), count(*) FROM (
    SELECT trigger_boot AS boot, trigger_sequence AS n FROM verdicts UNION ALL SELECT boot, sequence FROM triggers
) GROUP BY boot
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What became of all triggers that this journal has ever seen, as it stands on the disk.

    Attributes:
        triggers: parts that were triggered.
        ok: of them, verdicts `ok`; the others likewise.
        defect: verdicts.
        review: verdicts.
        error: verdicts.
        pending: parts without a verdict: being judged, or cut short by a stop, and then answered at the next start.
        refused: triggers that came while too many waited; each is an `error` too. Parts that a stop answered, and
            triggers that could not be judged for another reason, are errors only.
    """

    triggers: int
    ok: int
    defect: int
    review: int
    error: int
    pending: int
    refused: int

    @property
    def closes(self) -> bool:
        """Whether every trigger has its verdict or still waits for it."""
        return self.triggers == self.ok + self.defect + self.review + self.error + self.pending

    def counts(self) -> dict[str, int]:
        """The numbers by their names, as messages carry them."""
        return dataclasses.asdict(self)


def ledger_of(db: sqlite3.Connection) -> Ledger:
    """Read the ledger, in one query: what is written meanwhile is in all of its numbers, or in none."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    extra = "n_triggers, n_refused" if version > 1 else "n_ok + n_defect + n_review + n_error, 0"
    query = f"SELECT {COUNTS}, {extra} FROM state"  # noqa: S608 - constants
    ok, defect, review, error, pending, triggers, refused = db.execute(query).fetchone()
    if version == 1:  # written by an agent that did not count them
        triggers += pending
    return Ledger(triggers=triggers, ok=ok, defect=defect, review=review, error=error, pending=pending, refused=refused)


def ledger_faults(db: sqlite3.Connection, in_memory: Collection[tuple[str, int]] = ()) -> Iterator[str]:
    """What does not add up, in words, from the rows themselves; nothing when all is well.

    Args:
        db: the journal.
        in_memory: boot and sequence of triggers that wait there for their row, as `unwritten` gives them.
    """
    db.execute("BEGIN")
    try:
        yield from _count_faults(db)
        yield from _record_faults(db)
        yield from _sequence_faults(db, in_memory)
    finally:
        db.execute("ROLLBACK")


def unwritten(db: sqlite3.Connection, left: Collection[tuple[str, int]]) -> list[tuple[str, int]]:
    """Of the triggers in memory, those of this journal that have no row yet."""
    return [key for key in left if db.execute(KNOWN, key).fetchone() == (1, 0)]


def _count_faults(db: sqlite3.Connection) -> Iterator[str]:
    ledger = ledger_of(db)
    if not ledger.closes:
        judged = ledger.triggers - ledger.pending
        yield (
            f"{ledger.triggers} triggers, but {ledger.ok} ok + {ledger.defect} defect + {ledger.review} review + "
            f"{ledger.error} error + {ledger.pending} pending: expected {judged} verdicts"
        )
    (last_rec,) = db.execute("SELECT last_rec FROM state").fetchone()
    if last_rec != ledger.ok + ledger.defect + ledger.review + ledger.error:
        yield f"the last record number is {last_rec}, which is not the number of verdicts"


def _record_faults(db: sqlite3.Connection) -> Iterator[str]:
    (last_rec,) = db.execute("SELECT last_rec FROM state").fetchone()
    first, last, count = db.execute("SELECT min(rec), max(rec), count(*) FROM verdicts").fetchone()
    if count and (last != last_rec or count != last - first + 1):
        yield f"records {first} to {last} are {count} rows, and the last one given is {last_rec}: some are missing"
    if first == 1:
        tallies = db.execute("SELECT n_ok, n_defect, n_review, n_error FROM state").fetchone()
        rows = dict(db.execute("SELECT code, count(*) FROM verdicts GROUP BY code").fetchall())
        if tuple(rows.get(code, 0) for code in range(1, 5)) != tuple(tallies):
            yield f"verdicts by decision are {rows}, but {tuple(tallies)} were counted"
    (answered,) = db.execute(ANSWERED).fetchone()
    if answered:
        yield f"{answered} parts count as pending although they have their verdict"


def _sequence_faults(db: sqlite3.Connection, in_memory: Collection[tuple[str, int]]) -> Iterator[str]:
    """A start of the agent numbers its triggers from 1: a number that is nowhere is a part that was lost."""
    oldest = db.execute("SELECT trigger_boot FROM verdicts WHERE rec > 1 ORDER BY rec LIMIT 1").fetchone()
    kept_all = db.execute("SELECT 1 FROM verdicts WHERE rec = 1").fetchone() is not None
    for boot, first, last, count in db.execute(BY_SEQUENCE).fetchall():
        is_cut = not kept_all and oldest is not None and boot == oldest[0]  # by retention
        waiting = sum(made_by == boot and number < last for made_by, number in in_memory)
        missing = last - count - waiting
        if not is_cut and (missing or (first != 1 and not waiting)):
            yield f"start {boot} made {last} triggers, of which {missing} have neither verdict nor wait for one"
