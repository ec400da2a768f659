"""After a kill, a restart, a clock that jumps and a year: every part has one verdict, and only old ones are deleted."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.frame import Stamp
from agent.journal import Journal
from agent.journal.age import MAX_ABSENCE_MS, Age
from agent.verdict import Decision
from tests.kit.verdicts import (
    Clock,
    events,
    judge,
    judge_at,
    make_image,
    make_part,
    open_journal,
    pictures,
    publish_all,
)
from tests.kit.waiting import wait_until

DAY_MS = 86_400_000
ROOT = Path(__file__).resolve().parents[2]

LINES = """
import os, sys
from pathlib import Path
from agent.verdict import Decision
from tests.kit.verdicts import make_image, make_part, make_verdict, open_journal

images = [make_image(n) for n in range(4)]

def line(state_dir, max_pending):
    journal = open_journal(state_dir, max_pending=max_pending)
    print("start", os.getpid(), journal.boot, flush=True)
    waiting = []
    for n in range(1, 1_000_000):
        part = make_part(n, id_=f"{journal.boot}-{n}")
        journal.trigger(part)
        decision = Decision.DEFECT if n % 5 == 0 else Decision.OK
        waiting.append((n, journal.record(make_verdict(part, decision, image=images[n % 4]))))
        while waiting and waiting[0][1].done():
            sequence, receipt = waiting.pop(0)
            sys.stdout.write(f"durable {sequence} {receipt.wait(0)}\\n")
        sys.stdout.flush()

for order in sys.stdin:  # forked, because importing takes longer than everything else
    child = os.fork()
    if not child:
        line(Path(sys.argv[1]), int(order))
    os.waitpid(child, 0)
    print("\\nend", flush=True)
"""


def bodies(journal: Journal) -> list[dict[str, Any]]:
    return [json.loads(stored.body) for stored in journal.read()]


# Interrupted parts


def test_a_part_without_a_verdict_gets_an_error_before_anything_else(tmp_path: Path) -> None:
    """The one law: a part is never lost, because software failed."""
    with open_journal(tmp_path) as journal:
        old_boot = journal.boot
        judge(journal, 1).wait(5)
        for n in (2, 3):
            journal.trigger(make_part(n, triggered=Stamp(1_791_191_643_000 + n, n)))
    with open_journal(tmp_path) as journal:
        judge(journal, 1).wait(5)
        first, second, third, fourth = bodies(journal)

        assert [body["rec"] for body in (first, second, third, fourth)] == [1, 2, 3, 4]
        assert [body["part"] for body in (second, third)] == ["P2", "P3"]
        assert [body["decision"] for body in (second, third)] == ["error", "error"]
        assert second["reason"] == (
            "record: the agent was stopped between trigger and verdict"
            f" (start {old_boot}, trigger 2 at 2026-10-05T09:14:03.002Z)"
        )
        assert second["time_ms"] == 1_791_191_643_002
        assert second["boot"] == journal.boot
        assert [(e["event"], e["data"]["parts"]) for e in events(journal)] == [("parts_interrupted", 2)]
        assert [row.rec for row in journal.outbox.pending(limit=9) if row.kind == "verdict"] == [1, 2, 3, 4]


def test_an_interrupted_part_is_answered_once_however_often_the_agent_starts(tmp_path: Path) -> None:
    """A device that restarts in a loop must not fill the record with errors."""
    with open_journal(tmp_path) as journal:
        journal.trigger(make_part(1))
    for _ in range(4):
        with open_journal(tmp_path) as journal:
            assert [body["decision"] for body in bodies(journal)] == ["error"]


def test_many_interrupted_parts_are_all_answered_in_their_order(tmp_path: Path) -> None:
    """More than one transaction's worth, of two starts."""
    with open_journal(tmp_path, max_pending=1_000) as journal:
        for n in range(1, 601):
            journal.trigger(make_part(n))
    with sqlite3.connect(tmp_path / "journal.db") as db:  # the second start was killed before it answered the first
        db.execute("INSERT INTO boots VALUES ('00000000', 0, '0', 'x')")
        db.execute("INSERT INTO triggers VALUES ('00000000', 1, 'later', 'frame', 0, 0)")
    db.close()
    with open_journal(tmp_path) as journal:
        parts = [stored.part for stored in journal.read()]

        assert parts == [*(f"P{n}" for n in range(1, 601)), "later"]


def test_a_killed_agent_loses_no_part_and_answers_none_twice(tmp_path: Path) -> None:
    """`kill -9` at random moments, thirty times over one journal.

    Triggers and verdicts go to the disk in the order of the calls, so after recovery the parts of a killed run are
    1 to m without a gap, m at least the last one reported as durable, each with exactly one verdict.
    """
    dice = random.Random(3)
    with subprocess.Popen(
        [sys.executable, "-c", LINES, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as lines:
        for turn in range(30):
            boot, reported = run_and_kill(lines, max_pending=(2, 256)[turn % 2], after_reports=dice.randrange(60))
            with open_journal(tmp_path) as journal:
                check_killed_run(journal, boot, reported, tmp_path)


def run_and_kill(lines: subprocess.Popen[str], *, max_pending: int, after_reports: int) -> tuple[str, dict[int, int]]:
    """Let a line run until it has reported so many verdicts as durable, and kill it; its boot, and what it reported."""
    assert lines.stdin is not None
    assert lines.stdout is not None
    lines.stdin.write(f"{max_pending}\n")
    lines.stdin.flush()
    _, pid, boot = lines.stdout.readline().split()
    said = [lines.stdout.readline() for _ in range(after_reports)]
    os.kill(int(pid), signal.SIGKILL)
    said += iter(lines.stdout.readline, "end\n")
    reports = [words for words in map(str.split, said) if len(words) == 3]
    whole = reports if said[-1] == "\n" else reports[:-1]  # killed in the middle of its last line
    return boot, {int(sequence): int(rec) for _, sequence, rec in whole}


def check_killed_run(journal: Journal, boot: str, reported: dict[int, int], state_dir: Path) -> None:
    stored = list(journal.read())
    recs = {int(s.part.split("-")[1]): s.rec for s in stored if s.part.startswith(f"{boot}-")}
    with_image = {s.id for s in stored if json.loads(s.body)["image"]}

    assert sorted(recs) == list(range(1, len(recs) + 1))
    assert len([s for s in stored if s.part.startswith(f"{boot}-")]) == len(recs)
    assert {sequence: recs[sequence] for sequence in reported} == reported
    assert [s.rec for s in stored] == list(range(1, len(stored) + 1))
    assert with_image == {path.name.split(".")[0] for path in pictures(state_dir)}
    assert journal.stats().outbox == journal.outbox.depth()


# Clocks


@pytest.mark.parametrize(("jump_ms", "words"), [(-3_600_000, "back by 3600.0 s"), (7_200_000, "ahead by 7200.0 s")])
def test_a_clock_that_is_set_is_reported_and_changes_no_order(tmp_path: Path, jump_ms: int, words: str) -> None:
    """Records are in the order of the parts; times are as good as the clock was, and say so in an event."""
    clock = Clock()
    with open_journal(tmp_path, clock=clock) as journal:
        judge_at(journal, 1, clock, Decision.DEFECT)
        clock.pass_(60_000)
        judge_at(journal, 2, clock, Decision.DEFECT)
        clock.set_(jump_ms)
        clock.pass_(10)
        judge_at(journal, 3, clock, Decision.DEFECT)
        clock.pass_(10)
        judge_at(journal, 4, clock, Decision.DEFECT)
        journal.flush()
        read = bodies(journal)
        (event,) = events(journal)

        assert [body["part"] for body in read] == ["P1", "P2", "P3", "P4"]
        assert [body["mono_ns"] for body in read] == sorted(body["mono_ns"] for body in read)
        assert (event["event"], event["severity"], event["data"]["jump_ms"]) == ("clock_jumped", "warning", jump_ms)
        assert words in event["text"]
        assert all(journal.outbox.payload(row) for row in journal.outbox.pending(limit=99))


def test_a_clock_that_drifts_or_is_slewed_is_no_jump(tmp_path: Path) -> None:
    """NTP slews by up to 0.5 ms a second; parts may be minutes apart."""
    clock = Clock()
    with open_journal(tmp_path, clock=clock) as journal:
        for n in range(1, 6):
            judge_at(journal, n, clock)
            clock.pass_(600_000)
            clock.set_(300)
        journal.flush()

        assert events(journal) == []


def test_the_journals_age_never_goes_back_and_believes_no_long_absence() -> None:
    """Retention deletes by it: a clock that is a year ahead must not cost a year of records."""
    start = Stamp(1_791_191_643_000, 10**12)
    back = Age(lived_ms=5_000, utc_ms=start.utc_ms + 3_600_000, now=start)
    ahead = Age(lived_ms=5_000, utc_ms=start.utc_ms - 365 * DAY_MS, now=start)
    new = Age(lived_ms=0, utc_ms=0, now=start)

    assert back.at(start) == 5_000
    assert ahead.at(start) == 5_000 + MAX_ABSENCE_MS
    assert new.at(start) == 0
    assert new.at(Stamp(0, start.mono_ns + 7_000_000)) == 7
    assert new.at(Stamp(start.utc_ms, start.mono_ns - 10**9)) == 0


# Retention


def test_old_published_verdicts_and_their_pictures_are_deleted_and_the_numbers_go_on(tmp_path: Path) -> None:
    """The disk of a device is small; `rec` is never used again."""
    clock = Clock()
    with open_journal(tmp_path, retention_days=10.0, clock=clock) as journal:
        for n in range(1, 251):
            judge(journal, n, Decision.DEFECT if n % 50 == 0 else Decision.OK, image=make_image(n))
        publish_all(journal)
        clock.pass_(9 * DAY_MS)
        judge_at(journal, 251, clock)
        publish_all(journal)
        clock.pass_(2 * DAY_MS)
        wait_until(lambda: [stored.rec for stored in journal.read()] == [251])
        wait_until(lambda: not pictures(tmp_path))

        stats = journal.stats()
        assert (stats.last_rec, stats.oldest_rec, stats.evidence_count, stats.evidence_bytes) == (251, 251, 0, 0)
        assert stats.evidence_evicted == 0
        assert stats.by_decision == {"ok": 246, "defect": 5, "review": 0, "error": 0}
        clock.pass_(11 * DAY_MS)
        wait_until(lambda: not list(journal.read()))
    with open_journal(tmp_path, clock=clock) as journal:
        assert judge_at(journal, 1, clock) == 252


def test_a_verdict_that_was_not_published_is_kept_whatever_its_age(tmp_path: Path) -> None:
    """A broker may be away for longer than the retention; nothing after it is deleted either, in order."""
    clock = Clock()
    with open_journal(tmp_path, retention_days=1.0, clock=clock) as journal:
        for n in (1, 2, 3):
            judge_at(journal, n, clock)
        seqs = [row.seq for row in journal.outbox.pending(limit=9)]
        journal.outbox.acknowledge([seqs[0], seqs[2]])
        journal.flush()
        clock.pass_(400 * DAY_MS)
        wait_until(lambda: next(journal.read()).rec == 2)
        judge_at(journal, 4, clock)

        assert [stored.rec for stored in journal.read()] == [2, 3, 4]
        (row, *_) = journal.outbox.pending(limit=9)
        assert json.loads(journal.outbox.payload(row) or b"")["rec"] == 2


def test_a_message_set_aside_goes_with_its_verdict(tmp_path: Path) -> None:
    """Kept for inspection, not for ever."""
    clock = Clock()
    with open_journal(tmp_path, retention_days=1.0, clock=clock) as journal:
        judge_at(journal, 1, clock)
        (row,) = journal.outbox.pending(limit=9)
        journal.outbox.set_aside(row.seq, "too large")
        journal.flush()
        publish_all(journal)
        clock.pass_(2 * DAY_MS)
        wait_until(lambda: not list(journal.read()))

        assert journal.stats().set_aside == 0


def test_setting_the_clock_a_year_ahead_deletes_nothing(tmp_path: Path) -> None:
    """Neither while the agent runs nor across a restart; time that really passes does."""
    clock = Clock()
    keys: dict[str, Any] = {"retention_days": 30.0, "clock": clock}
    with open_journal(tmp_path, **keys) as journal:
        judge_at(journal, 1, clock)
        publish_all(journal)
        clock.set_(365 * DAY_MS)
        judge_at(journal, 2, clock)
        publish_all(journal)
    clock.set_(365 * DAY_MS)
    with open_journal(tmp_path, **keys) as journal:
        judge_at(journal, 1, clock)
        publish_all(journal)
        kept = [stored.rec for stored in journal.read()]
        clock.pass_(24 * DAY_MS)  # with the seven days that a restart may count: more than 30
        wait_until(lambda: [stored.rec for stored in journal.read()] == [3])

        assert kept == [1, 2, 3]
