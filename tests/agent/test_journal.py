"""The record: what was put is there, once, in order, durable when the receipt says so, readable beside the agent."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from agent.errors import JournalError
from agent.frame import Stamp
from agent.journal import Journal, Receipt
from agent.journal.compose import draft_from_verdict
from agent.journal.intake import Acknowledged, Intake, Recorded, Triggered
from agent.verdict import Decision, Verdict
from tests.kit.verdicts import events, judge, make_image, make_part, make_verdict, open_journal
from tests.kit.waiting import wait_until


def bodies(journal: Journal, **keys: Any) -> list[dict[str, Any]]:
    return [json.loads(stored.body) for stored in journal.read(**keys)]


def rows(state_dir: Path, query: str) -> list[Any]:
    """Ask the file itself, through a connection that is not ours."""
    with sqlite3.connect(state_dir / "journal.db") as db:
        found = db.execute(query).fetchall()
    db.close()
    return found


def test_a_receipt_that_is_kept_means_that_the_verdict_is_on_the_disk(tmp_path: Path) -> None:
    """The receipt is what the fast line may rely on: another process must find the row by then."""
    with open_journal(tmp_path) as journal:
        rec = judge(journal, 1, Decision.DEFECT).wait(5)

        assert rows(tmp_path, "SELECT rec, part, code, class FROM verdicts") == [(rec, "P1", 2, "scratch")]
        assert rows(tmp_path, "SELECT count(*) FROM triggers") == [(0,)]
        assert rows(tmp_path, "PRAGMA journal_mode") == [("wal",)]


def test_records_are_numbered_without_a_gap_in_the_order_of_recording(tmp_path: Path) -> None:
    """A consumer finds what it missed by the gaps in `rec`; so there must be none of ours."""
    with open_journal(tmp_path) as journal:
        recs = [receipt.wait(5) for receipt in [judge(journal, n) for n in range(1, 301)]]
        parts = [(body["rec"], body["part"]) for body in bodies(journal)]

        assert recs == list(range(1, 301))
        assert parts == [(n, f"P{n}") for n in range(1, 301)]
        assert journal.last_rec == 300


def test_numbers_go_on_after_a_restart_under_another_boot(tmp_path: Path) -> None:
    """`rec` counts per journal, not per run; `boot` tells the runs apart."""
    with open_journal(tmp_path) as journal:
        first = judge(journal, 1).wait(5)
        old_boot = journal.boot
    with open_journal(tmp_path) as journal:
        second = judge(journal, 1).wait(5)

        assert (first, second) == (1, 2)
        assert [body["boot"] for body in bodies(journal)] == [old_boot, journal.boot]
        assert len(journal.boot) == 8
        assert int(journal.boot, 16) >= 0
        assert old_boot != journal.boot


def test_a_part_is_answered_once(tmp_path: Path) -> None:
    """A retry somewhere in the line must not give one part two verdicts, nor change the first one."""
    with open_journal(tmp_path) as journal:
        part = make_part(1)
        journal.trigger(part)
        first = journal.record(make_verdict(part, Decision.DEFECT)).wait(5)
        again = journal.record(make_verdict(part, Decision.OK)).wait(5)
        journal.flush()

        assert first == again
        assert [body["decision"] for body in bodies(journal)] == ["defect"]
        assert [(event["event"], event["data"]["sequence"]) for event in events(journal)] == [("verdict_repeated", 1)]


def test_a_part_is_answered_once_within_one_group_too(tmp_path: Path) -> None:
    """Both verdicts may wait for the same transaction."""
    part = make_part(1)
    with open_journal(tmp_path) as journal:
        receipts = [journal.record(make_verdict(part, Decision.DEFECT)) for _ in range(50)]

        assert {receipt.wait(5) for receipt in receipts} == {1}
        assert len(bodies(journal)) == 1


def test_a_trigger_that_comes_after_its_verdict_is_no_new_part(tmp_path: Path) -> None:
    """Else the next start would give it a second verdict."""
    part = make_part(1)
    with open_journal(tmp_path) as journal:
        journal.record(make_verdict(part)).wait(5)
        journal.trigger(part)
        journal.flush()
    with open_journal(tmp_path) as journal:
        assert [body["decision"] for body in bodies(journal)] == ["ok"]


def test_the_plants_part_id_may_come_again(tmp_path: Path) -> None:
    """A part that goes through rework passes the camera twice, and gets two verdicts."""
    with open_journal(tmp_path) as journal:
        for sequence in (1, 2):
            journal.record(make_verdict(make_part(sequence, id_="SN-1")))
        journal.flush()

        assert [(body["rec"], body["part"]) for body in bodies(journal)] == [(1, "SN-1"), (2, "SN-1")]


def test_a_part_is_judged_when_its_verdict_is_durable(tmp_path: Path) -> None:
    """The folder camera leaves judged pictures out after a restart."""
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    with open_journal(tmp_path) as journal:
        journal.record(make_verdict(make_part(1, id_="a.png"))).wait(5)
        journal.record(make_verdict(make_part(2, id_=odd))).wait(5)
    with open_journal(tmp_path) as journal:
        assert [journal.is_judged(name) for name in ("a.png", odd, "b.png", "")] == [True, True, False, False]


def test_pending_parts_are_those_without_a_durable_verdict(tmp_path: Path) -> None:
    """Status and watchdog ask for them."""
    with open_journal(tmp_path) as journal:
        parts = [make_part(n) for n in (1, 2, 3)]
        for part in parts:
            journal.trigger(part)
        journal.record(make_verdict(parts[1])).wait(5)

        assert journal.pending() == (parts[0], parts[2])
        assert journal.stats().pending == 2
        for part in (parts[0], parts[2]):
            journal.record(make_verdict(part)).wait(5)
        assert journal.pending() == ()


def test_many_threads_record_without_losing_or_mixing_anything(tmp_path: Path) -> None:
    """Groups are put together from whoever waits."""
    with open_journal(tmp_path, max_pending=8) as journal:
        recs: dict[int, int] = {}

        def line(start: int) -> None:
            for sequence in range(start, start + 100):
                recs[sequence] = judge(journal, sequence).wait(20)

        threads = [threading.Thread(target=line, args=(start,)) for start in (1, 1_001, 2_001, 3_001)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert sorted(recs.values()) == list(range(1, 401))
        assert {stored.rec: stored.part for stored in journal.read()} == {
            rec: f"P{sequence}" for sequence, rec in recs.items()
        }


def test_recording_waits_while_too_many_wait_for_the_disk(tmp_path: Path) -> None:
    """A line that waits is better than memory that runs out; the lock on the database stands for a slow disk."""
    with open_journal(tmp_path, max_pending=4) as journal:
        blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        done: list[Receipt] = []
        line = threading.Thread(target=lambda: done.extend(judge(journal, n) for n in range(1, 11)), daemon=True)
        line.start()
        wait_until(lambda: len(journal.pending()) == 5)

        assert line.is_alive()
        blocker.execute("ROLLBACK")
        blocker.close()
        line.join(20)
        assert [receipt.wait(5) for receipt in done] == list(range(1, 11))


def test_writing_ahead_where_there_is_room_never_waits(tmp_path: Path) -> None:
    """What does not fit is not known yet, and is written by whoever has the time to wait."""
    with open_journal(tmp_path, max_pending=4) as journal:
        blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        parts = [make_part(number) for number in range(1, 11)]
        written = [journal.trigger_if_room(part) for part in parts]
        known = journal.pending()
        again = journal.trigger_if_room(parts[0])
        blocker.execute("ROLLBACK")
        blocker.close()
        for part in parts:
            journal.trigger(part)
        journal.flush()

        assert written == [True] * 4 + [False] * 6
        assert known == tuple(parts[:4])
        assert again
        assert rows(tmp_path, "SELECT count(*) FROM triggers") == [(10,)]


def test_closing_writes_what_is_queued(tmp_path: Path) -> None:
    """SIGTERM drains: what the line has judged is on the disk before the process ends."""
    journal = open_journal(tmp_path)
    receipts = [judge(journal, n) for n in range(1, 201)]
    journal.close()
    journal.close()

    assert all(receipt.done() for receipt in receipts)
    with Journal.open_readonly(tmp_path) as reader:
        assert [stored.rec for stored in reader.read()] == list(range(1, 201))


def test_after_closing_nothing_is_taken(tmp_path: Path) -> None:
    """A verdict put into a closed journal would be lost without a word."""
    journal = open_journal(tmp_path)
    journal.close()

    for late in (
        lambda: journal.record(make_verdict()),
        lambda: journal.trigger(make_part()),
        lambda: journal.event("late", "info", "too late"),
        journal.flush,
    ):
        with pytest.raises(JournalError, match="closed"):
            cast("Any", late)()


def test_a_receipt_that_is_not_kept_in_time_says_so(tmp_path: Path) -> None:
    """Waiting without end would hang the line; silence would pass for a record."""
    with open_journal(tmp_path) as journal:
        blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        receipt = judge(journal, 1)

        with pytest.raises(JournalError, match=r"not on the disk after 0\.05 s"):
            receipt.wait(0.05)
        assert not receipt.done()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert receipt.wait(10) == 1


def test_a_verdict_that_no_json_can_hold_becomes_an_error_and_not_a_loss(tmp_path: Path) -> None:
    """A bug behind the policy's back: the part still gets its one verdict, and the writer lives on."""
    part = make_part(1)
    verdict = make_verdict(part, Decision.OK)
    object.__setattr__(verdict, "score", "high")
    with open_journal(tmp_path) as journal:
        journal.trigger(part)
        journal.record(verdict).wait(5)
        judge(journal, 2).wait(5)
        first, second = bodies(journal)

        assert (first["part"], first["decision"], second["decision"]) == ("P1", "error", "ok")
        assert first["reason"].startswith("record: the verdict can't be written as JSON (TypeError")


def test_stats_count_by_decision_over_all_runs(tmp_path: Path) -> None:
    """`journal stats`, the metrics message and the status read these."""
    decisions = [Decision.OK] * 5 + [Decision.DEFECT] * 3 + [Decision.REVIEW] * 2 + [Decision.ERROR]
    with open_journal(tmp_path) as journal:
        for sequence, decision in enumerate(decisions[:6], start=1):
            judge(journal, sequence, decision)
    with open_journal(tmp_path) as journal:
        for sequence, decision in enumerate(decisions[6:], start=1):
            judge(journal, sequence, decision)
        journal.flush()
        stats = journal.stats()

        assert stats.by_decision == {"ok": 5, "defect": 3, "review": 2, "error": 1}
        assert sum(stats.by_decision.values()) == stats.last_rec == 11
        assert (stats.oldest_rec, stats.pending) == (1, 0)
        assert stats.outbox == journal.outbox.depth() == 16  # 11 verdicts and 5 pictures; an error had none
        assert stats.evidence_count == 5
        assert stats.db_bytes > 0
        assert stats.disk_free_bytes > 0
        assert stats.commit_ms is not None


def test_reading_takes_a_range_in_either_order(tmp_path: Path) -> None:
    """`journal tail` wants the newest first, `journal export` all of them; both may be more than one query's worth."""
    with open_journal(tmp_path) as journal:
        for n in range(1, 601):
            judge(journal, n)
        journal.flush()

        def recs(**keys: Any) -> list[int]:
            return [stored.rec for stored in journal.read(**keys)]

        assert recs() == list(range(1, 601))
        assert recs(newest_first=True) == list(range(600, 0, -1))
        assert recs(first=5, last=7) == [5, 6, 7]
        assert recs(first=300, last=9_999, newest_first=True) == list(range(600, 299, -1))
        assert recs(first=601) == []


def test_a_journal_is_read_beside_the_agent_that_writes_it(tmp_path: Path) -> None:
    """`defect-agent journal tail` runs in another process; here another connection, opened read-only."""
    with open_journal(tmp_path) as journal, Journal.open_readonly(tmp_path) as reader:
        judge(journal, 1, Decision.REVIEW).wait(5)
        stored = list(reader.read())

        assert [(s.rec, s.part, s.code, s.class_name, s.boot) for s in stored] == [
            (1, "P1", 3, "scratch", journal.boot)
        ]
        assert stored[0].score == pytest.approx(0.35)
        assert reader.stats().by_decision["review"] == 1
        path = reader.image_path(1)
        assert path is not None
        assert path.is_file()
        judge(journal, 2).wait(5)
        assert [s.rec for s in reader.read(newest_first=True)] == [2, 1]
        assert reader.image_path(2) is None


def test_a_reader_in_the_middle_of_a_long_export_holds_nothing_up(tmp_path: Path) -> None:
    """An open read transaction would keep the write-ahead log from being moved, until the disk is full."""
    with open_journal(tmp_path) as journal:
        for n in range(1, 601):
            judge(journal, n)
        journal.flush()
        export = journal.read()
        next(export)
        busy, *_ = rows(tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")[0]

        assert busy == 0
        assert len(list(export)) == 599


def test_events_go_out_with_what_belongs_to_them(tmp_path: Path) -> None:
    """Whoever reads an event needs its words and its numbers."""
    now = Stamp(1_791_191_643_127, 7)
    with open_journal(tmp_path, clock=lambda: now) as journal:
        journal.event("camera_lost", "alarm", "camera cam1: no frame for 2 s", camera="cam1", tries=3, name="x")
        journal.flush()

        assert events(journal) == [
            {
                "schema": 1,
                "station": "acme/cam1",
                "event": "camera_lost",
                "severity": "alarm",
                "text": "camera cam1: no frame for 2 s",
                "time": "2026-10-05T09:14:03.127Z",
                "time_ms": 1_791_191_643_127,
                "data": {"camera": "cam1", "tries": 3, "name": "x"},
            }
        ]


def test_the_clocks_state_and_the_recipe_stand_in_every_verdict(tmp_path: Path) -> None:
    """A consumer must know whether to trust the time, and what the station was set up for."""

    def broken() -> str:
        raise OSError("no clock")

    with open_journal(tmp_path / "a", clock_state=lambda: "unsynced", recipe="caps-blue") as journal:
        judge(journal, 1).wait(5)
        assert [(body["clock"], body["recipe"]) for body in bodies(journal)] == [("unsynced", "caps-blue")]
    with open_journal(tmp_path / "b", clock_state=broken) as journal:
        judge(journal, 1).wait(5)
        assert [(body["clock"], body["recipe"]) for body in bodies(journal)] == [("unknown", None)]


def test_a_station_without_a_broker_keeps_no_messages_for_one(tmp_path: Path) -> None:
    """Nobody would ever acknowledge them, and retention waits for that."""
    with open_journal(tmp_path, publish=False) as journal:
        judge(journal, 1, Decision.DEFECT).wait(5)

        assert journal.outbox.depth() == 0
        assert journal.outbox.pending(limit=10) == ()
        assert [body["image"] for body in bodies(journal)] == [None]
        assert journal.stats().evidence_count == 1


def test_large_pictures_wait_in_front_of_the_disk_and_not_in_memory(tmp_path: Path) -> None:
    """256 verdicts of 36 MB each would be 9 GB: bytes count, not only verdicts. A single larger one still passes."""
    image = np.broadcast_to(np.zeros(1, dtype=np.uint8), (10_000, 10_000, 3))  # 300 MB that take none
    intake = Intake(max_pending=100)

    def put(sequence: int) -> None:
        verdict = make_verdict(make_part(sequence), Decision.DEFECT, image=image)
        intake.put(Recorded(draft_from_verdict(verdict, boot="b", keep="flagged"), Receipt()))

    put(1)
    line = threading.Thread(target=put, args=(2,), daemon=True)
    line.start()
    first = intake.take(5)

    assert first is not None
    assert len(first) == 1
    assert intake.depth() == 1
    assert line.is_alive()
    intake.settle(first)
    line.join(10)
    assert not line.is_alive()
    assert len(intake.take(5) or []) == 1


def test_acknowledgements_alone_wait_a_moment_and_never_hold_up_a_verdict() -> None:
    """They ride with the next verdict's transaction; a transaction of their own would wear the card."""
    intake = Intake(max_pending=100)
    intake.put(Acknowledged((1,)))
    later = threading.Thread(target=intake.put, args=(Triggered(make_part(1)),), daemon=True)
    intake.put(Acknowledged((2,)))
    later.start()
    later.join(5)
    batch = intake.take(5) or []

    assert [type(item) for item in batch] == [Acknowledged, Acknowledged, Triggered]
    intake.put(Acknowledged((3,)))
    assert [type(item) for item in intake.take(5) or []] == [Acknowledged]
    intake.close()
    assert intake.take(5) is None


def test_a_group_holds_few_pictures_and_keeps_the_order() -> None:
    """The verdicts in a group wait for its pictures to be encoded."""
    intake = Intake(max_pending=100)
    for n in range(1, 21):
        verdict = make_verdict(make_part(n), Decision.DEFECT, image=make_image(n))
        intake.put(Recorded(draft_from_verdict(verdict, boot="b", keep="flagged"), Receipt()))
    intake.close()
    groups = list(iter(lambda: intake.take(5), None))
    sequences = [item.draft.part.sequence for group in groups for item in group if isinstance(item, Recorded)]

    assert [len(group) for group in groups] == [8, 8, 4]
    assert sequences == list(range(1, 21))


def test_each_verdict_on_the_disk_is_told_once_with_its_number(tmp_path: Path) -> None:
    """The canonical log line is written then: what it says of a part stays true."""
    told: list[tuple[str, int, int]] = []
    with open_journal(tmp_path) as journal:

        def tell(verdict: Verdict, rec: int) -> None:
            told.append((verdict.inspection.part.id, rec, journal.last_rec))
            if rec == 2:
                raise RuntimeError("a log that can't be written")

        journal.tell_recorded(tell)
        receipts = [judge(journal, sequence) for sequence in (1, 2, 3)]
        recs = [receipt.wait(5) for receipt in receipts]
        judge(journal, 4).wait(5)

    assert recs == [1, 2, 3]
    assert ("P1", 1) in {entry[:2] for entry in told}
    assert ("P4", 4) in {entry[:2] for entry in told}
    assert all(rec <= last for _, rec, last in told)


def test_what_somebody_waits_for_is_not_held_back_for_company(tmp_path: Path) -> None:
    """While parts come fast, transactions keep a distance; a result that must be durable first does not wait for it."""
    with open_journal(tmp_path) as journal:
        intake = journal._parts.intake
        for sequence in range(1, 20):
            part = make_part(sequence)
            journal.trigger(part)
            intake._next_s = time.monotonic() + 3_600  # as if the last transaction had only just been
            receipt = journal.record(make_verdict(part), held=True)

            assert receipt.wait(30) == sequence
