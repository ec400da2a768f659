"""triggers = ok + defect + review + error + pending: at any time, after any restart, and anybody can check it."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
from pathlib import Path

import pytest

from agent.frame import Fault, Stamp
from agent.inspection import Inspection
from agent.journal import Journal, Ledger
from agent.triggers.queue import TriggerQueue
from agent.verdict import Decision
from tests.kit.commands import run_command
from tests.kit.old_journals import make_old
from tests.kit.verdicts import BUNDLE, judge, make_part, make_verdict, open_journal


def ledger(journal: Journal) -> Ledger:
    journal.flush()
    return journal.stats().ledger


def test_every_trigger_stands_under_its_decision_or_as_pending(tmp_path: Path) -> None:
    """Three counts that are made apart, and add up."""
    with open_journal(tmp_path) as journal:
        for sequence, decision in enumerate([Decision.OK, Decision.OK, Decision.DEFECT, Decision.REVIEW], start=1):
            judge(journal, sequence, decision)
        journal.trigger(make_part(5))
        judge(journal, 6, Decision.ERROR)
        journal.trigger(make_part(5))

        assert ledger(journal) == Ledger(triggers=6, ok=2, defect=1, review=1, error=1, pending=1, refused=0)
        assert ledger(journal).closes


def test_a_refused_trigger_is_a_trigger_and_an_error_and_one_that_a_stop_answered_is_not_refused(
    tmp_path: Path,
) -> None:
    """`refused` says that the line is too slow for its triggers: a stop must not count there, nor a bad trigger."""
    queue = TriggerQueue(kind="tcp", prefix="T", waiting=1)
    queue.next(0.0)
    for name in ("judged", "waits", "too-many"):
        queue.offer(name, Stamp.now())
    queue.refuse("bad", Stamp.now(), "the barcode can't be read")
    first = [queue.next(0.0) for _ in range(3)]
    queue.close()
    faults = [fault for fault in (*first, queue.next(0.0)) if isinstance(fault, Fault)]
    with open_journal(tmp_path) as journal:
        for fault in faults:
            inspection = Inspection(part=fault.part, frame=None, fault=fault, bundle=BUNDLE, engine="none")
            verdict = dataclasses.replace(make_verdict(fault.part, Decision.ERROR), inspection=inspection)
            journal.trigger(fault.part)
            journal.record(verdict)

        assert [fault.part.id for fault in faults] == ["too-many", "bad", "waits"]
        assert ledger(journal) == Ledger(triggers=3, ok=0, defect=0, review=0, error=3, pending=0, refused=1)


def test_it_closes_at_any_moment_and_over_many_starts(tmp_path: Path) -> None:
    """Whoever looks, and whenever: parts left without a verdict become errors at the next start, and stay counted."""
    dice = random.Random(5)
    sequences = 0
    for _ in range(6):
        with open_journal(tmp_path, max_pending=1_000) as journal:
            for sequence in range(1, dice.randint(20, 200)):
                sequences += 1
                if dice.random() < 0.1:
                    journal.trigger(make_part(sequence))
                else:
                    judge(journal, sequence, dice.choice(list(Decision)))
                if sequence % 7 == 0:
                    assert journal.stats().ledger.closes
    with open_journal(tmp_path) as journal:
        last = ledger(journal)
        faults = Journal.open_readonly(tmp_path).ledger_faults()

    assert (last.triggers, last.pending, last.closes) == (sequences, 0, True)
    assert faults == []


def test_verify_says_so(tmp_path: Path) -> None:
    """The consumer's check: one line, exit 0."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.OK)
        judge(journal, 2, Decision.ERROR)
        journal.trigger(make_part(3))
        journal.flush()
        said = run_command("agent.cli.journal", "verify", "--state", tmp_path)

    assert said.code == 0
    assert said.out.splitlines() == [
        "3 triggers = 1 ok + 0 defect + 0 review + 1 error + 1 pending; 0 of the errors were refused",
        "every trigger is accounted for: yes",
    ]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE state SET n_triggers = n_triggers + 1", "5 triggers, but 4 ok"),
        ("DELETE FROM verdicts WHERE rec = 2", "some are missing"),
        ("DELETE FROM verdicts WHERE rec = 2", "1 have neither verdict nor wait for one"),
        ("UPDATE state SET last_rec = 9", "the last record number is 9"),
        ("UPDATE verdicts SET code = 2 WHERE rec = 1", "were counted"),
        ("INSERT INTO triggers SELECT trigger_boot, 1, 'x', 'x', 0, 0 FROM verdicts WHERE rec = 1", "count as pending"),
    ],
)
def test_verify_finds_what_does_not_add_up(tmp_path: Path, damage: str, found: str) -> None:
    """A lost part, a lost row, a wrong count: exit 1, and what it is."""
    with open_journal(tmp_path) as journal:
        for sequence in range(1, 5):
            judge(journal, sequence)
    db = sqlite3.connect(tmp_path / "journal.db")
    with db:
        db.execute(damage)
    db.close()
    said = run_command("agent.cli.journal", "verify", "--state", tmp_path, "--json")

    assert said.code == 1
    assert any(found in fault for fault in said.json["faults"]), said.out


def test_a_journal_of_an_agent_that_did_not_count_is_taken_over(tmp_path: Path) -> None:
    """An update keeps the record: what was triggered before is what was judged, and what waits."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.OK)
        judge(journal, 2, Decision.DEFECT)
        journal.trigger(make_part(3))
    make_old(tmp_path, 1)
    with Journal.open_readonly(tmp_path) as reader:
        before = reader.ledger()
    with open_journal(tmp_path) as journal:
        judge(journal, 1)
        after = ledger(journal)

    assert before == Ledger(triggers=3, ok=1, defect=1, review=0, error=0, pending=1, refused=0)
    assert after == Ledger(triggers=4, ok=2, defect=1, review=0, error=1, pending=0, refused=0)
