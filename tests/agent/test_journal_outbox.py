"""The outbox: in order, at least once, nothing leaves before it was acknowledged, nothing blocks its head for ever."""

from __future__ import annotations

import hashlib
import json
import select
import sqlite3
import threading
from pathlib import Path

import pytest

from agent.config import EvidenceConfig
from agent.errors import JournalError
from agent.journal import Journal
from agent.verdict import Decision
from tests.kit.verdicts import events, judge, make_image, open_journal
from tests.kit.waiting import wait_until


def is_awake(journal: Journal, within_s: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(journal.outbox.wake_fd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def kinds(journal: Journal) -> list[tuple[str, int | None]]:
    return [(row.kind, row.rec) for row in journal.outbox.pending(limit=1_000)]


def test_messages_stand_in_the_order_of_their_records_the_verdict_before_its_picture(tmp_path: Path) -> None:
    """A consumer learns the picture's hash before the picture comes."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image(1))
        journal.event("camera_lost", "alarm", "gone")
        judge(journal, 2)
        judge(journal, 3, Decision.REVIEW, image=make_image(3))
        journal.flush()
        rows = journal.outbox.pending(limit=100)

        verdicts_and_images = [pair for pair in kinds(journal) if pair[0] != "event"]
        assert verdicts_and_images == [("verdict", 1), ("image", 1), ("verdict", 2), ("verdict", 3), ("image", 3)]
        assert [row.seq for row in rows] == sorted({row.seq for row in rows})
        assert {(row.qos, row.retain) for row in rows} == {(1, False)}


def test_a_row_is_complete_for_the_publisher(tmp_path: Path) -> None:
    """Topic, payload and type: the publisher adds nothing."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image()).wait(5)
        journal.event("note", "info", "text")
        journal.flush()
        verdict, image, event = journal.outbox.pending(limit=10)
        message = json.loads(journal.outbox.payload(verdict) or b"")
        picture = journal.outbox.payload(image) or b""

        assert (verdict.topic, verdict.content_type) == ("acme/cam1/verdict", "application/json")
        assert (image.topic, image.content_type) == (f"acme/cam1/image/{message['id']}", "image/jpeg")
        assert (event.topic, event.content_type, event.rec) == ("acme/cam1/event", "application/json", None)
        assert message["image"] == {
            "id": message["id"],
            "sha256": hashlib.sha256(picture).hexdigest(),
            "bytes": len(picture),
            "topic": image.topic,
        }


def test_what_is_acknowledged_leaves_the_outbox_and_stays_in_the_journal(tmp_path: Path) -> None:
    """A PUBACK is no delivery: the record is kept, so that it can be sent again on request."""
    with open_journal(tmp_path) as journal:
        for n in (1, 2, 3):
            judge(journal, n).wait(5)
        first, second, third = journal.outbox.pending(limit=10)
        journal.outbox.acknowledge([first.seq, third.seq])

        assert journal.outbox.pending(limit=10) == (second,)
        assert journal.outbox.depth() == 1
    with open_journal(tmp_path) as journal:
        assert journal.outbox.pending(limit=10) == (second,)
        assert journal.outbox.depth() == 1
        assert [stored.rec for stored in journal.read()] == [1, 2, 3]


def test_acknowledging_twice_or_something_unknown_changes_nothing(tmp_path: Path) -> None:
    """After a reconnect paho may tell of a message twice."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1).wait(5)
        judge(journal, 2).wait(5)
        first, second = journal.outbox.pending(limit=10)
        for _ in range(3):
            journal.outbox.acknowledge([first.seq, 999])
            journal.flush()
        journal.outbox.acknowledge([])

        assert journal.outbox.pending(limit=10) == (second,)
        assert journal.outbox.depth() == 1


def test_acknowledging_and_telling_never_wait_for_the_disk(tmp_path: Path) -> None:
    """The publisher's thread keeps the link alive; a slow disk (here: a lock) must not make it lose the broker."""
    with open_journal(tmp_path, max_pending=1) as journal:
        for n in range(1, 6):
            judge(journal, n).wait(5)
        rows = journal.outbox.pending(limit=10)
        blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        for row in rows[1:]:
            journal.outbox.acknowledge([row.seq])
            journal.event("note", "info", "the broker took it")
        journal.outbox.set_aside(rows[0].seq, "too large")

        assert blocker.in_transaction
        assert journal.outbox.depth() == 0
        blocker.execute("ROLLBACK")
        blocker.close()
        journal.flush()
        assert journal.outbox.depth() == 5  # four notes and the report of what was set aside


def test_pending_goes_on_behind_a_row(tmp_path: Path) -> None:
    """Messages in flight are not asked for again, and acknowledged ones leave no hole in a page."""
    with open_journal(tmp_path) as journal:
        for n in range(1, 11):
            judge(journal, n).wait(5)
        seqs = [row.seq for row in journal.outbox.pending(limit=100)]
        journal.outbox.acknowledge(seqs[2:5])

        page = journal.outbox.pending(after=seqs[1], limit=3)
        assert [row.seq for row in page] == seqs[5:8]
        assert journal.outbox.pending(after=seqs[-1], limit=3) == ()


def test_a_row_that_is_set_aside_lets_the_others_pass_and_is_reported(tmp_path: Path) -> None:
    """A message that a broker never takes would hold up every verdict behind it."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1).wait(5)
        judge(journal, 2).wait(5)
        poison, healthy = journal.outbox.pending(limit=10)
        journal.outbox.set_aside(poison.seq, "the broker takes 64 bytes, the message has 600")

        assert journal.outbox.pending(limit=1) == (healthy,)
        journal.flush()
        assert [row.seq for row in journal.outbox.pending(limit=10) if row.kind == "verdict"] == [healthy.seq]
        assert journal.stats().set_aside == 1
        (event,) = events(journal)
        assert (event["event"], event["severity"]) == ("message_set_aside", "alarm")
        assert event["data"] == {"seq": poison.seq, "kind": "verdict", "rec": 1}
        assert "the broker takes 64 bytes" in event["text"]
    with open_journal(tmp_path) as journal:
        assert ("verdict", 1) not in kinds(journal)
        assert [stored.rec for stored in journal.read()] == [1, 2]


def test_setting_aside_twice_reports_once(tmp_path: Path) -> None:
    """One lost message is one event, and is counted once."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1).wait(5)
        judge(journal, 2).wait(5)
        (poison, _) = journal.outbox.pending(limit=10)
        for _ in range(2):
            journal.outbox.set_aside(poison.seq, "too large")
            journal.flush()

        assert [event["event"] for event in events(journal)] == ["message_set_aside"]
        assert journal.outbox.depth() == 2


def test_new_rows_wake_the_publisher_and_only_new_rows(tmp_path: Path) -> None:
    """It sleeps in poll() on socket and wake_fd; an acknowledgement of its own is nothing to wake for."""
    with open_journal(tmp_path) as journal:
        assert not is_awake(journal)
        judge(journal, 1).wait(5)
        assert is_awake(journal, 5)

        journal.outbox.drain_wake()
        assert not is_awake(journal)
        journal.outbox.acknowledge([row.seq for row in journal.outbox.pending(limit=10)])
        journal.flush()
        assert not is_awake(journal)


def test_waking_a_publisher_that_never_looks_blocks_nobody(tmp_path: Path) -> None:
    """A publisher that hangs in a broker's name resolution must not stop the record."""
    with open_journal(tmp_path) as journal:
        for _ in range(70_000):  # more than a pipe holds
            journal.outbox.settle(added=0, removed=0, left=())
            journal.outbox.settle(added=1, removed=1, left=())
        assert judge(journal, 1).wait(5) == 1
        journal.outbox.drain_wake()
        assert not is_awake(journal)


def test_what_was_not_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    """At least once: a row leaves on a PUBACK and on nothing else."""
    with open_journal(tmp_path) as journal:
        for n in (1, 2):
            judge(journal, n, Decision.DEFECT, image=make_image(n)).wait(5)
        before = journal.outbox.pending(limit=10)
        payloads = [journal.outbox.payload(row) for row in before]
    with open_journal(tmp_path) as journal:
        assert journal.outbox.pending(limit=10) == before
        assert [journal.outbox.payload(row) for row in before] == payloads
        assert journal.outbox.depth() == 4


def test_row_numbers_are_never_used_again(tmp_path: Path) -> None:
    """A publisher that resumes behind `after` would step over a reused number."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1).wait(5)
        (row,) = journal.outbox.pending(limit=10)
        journal.outbox.acknowledge([row.seq])
    with open_journal(tmp_path) as journal:
        judge(journal, 1).wait(5)
        (later,) = journal.outbox.pending(limit=10)

        assert later.seq > row.seq


@pytest.mark.parametrize("spoil", ["remove", "damage", "replace by a link"])
def test_a_picture_that_is_gone_gives_no_payload_and_one_event(tmp_path: Path, spoil: str) -> None:
    """What is published under a verdict's hash is what was hashed, or it is nothing."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image()).wait(5)
        _, image = journal.outbox.pending(limit=10)
        (path,) = (tmp_path / "images").glob("*/*.jpg")
        data = path.read_bytes()
        path.unlink()
        if spoil == "damage":
            path.write_bytes(data[:-1] + b"?")
        elif spoil == "replace by a link":
            (tmp_path / "elsewhere.jpg").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere.jpg")

        assert journal.outbox.payload(image) is None
        wait_until(lambda: events(journal))
        assert journal.outbox.payload(image) is None
        journal.flush()
        (event,) = events(journal)
        assert (event["event"], event["data"]["removed"], event["data"]["unpublished"]) == ("evidence_dropped", 1, 1)
        assert journal.stats().evidence_count == 0


def test_publisher_and_line_work_beside_each_other(tmp_path: Path) -> None:
    """One drains while the other records: everything comes out, in order, and the outbox is empty at the end."""
    total = 500
    with open_journal(tmp_path, evidence=EvidenceConfig(keep="none")) as journal:
        seen: list[int] = []

        def publish() -> None:
            after = 0
            while len(seen) < total:
                is_awake(journal, 1.0)
                journal.outbox.drain_wake()
                while rows := journal.outbox.pending(after=after, limit=20):
                    seen.extend(row.rec for row in rows if row.rec is not None)
                    journal.outbox.acknowledge([row.seq for row in rows])
                    after = rows[-1].seq

        publisher = threading.Thread(target=publish, daemon=True)
        publisher.start()
        for n in range(1, total + 1):
            judge(journal, n)
        publisher.join(30)
        journal.flush()

        assert seen == list(range(1, total + 1))
        assert journal.outbox.depth() == 0
        assert journal.stats().outbox == 0


def test_a_closed_journal_takes_no_acknowledgement(tmp_path: Path) -> None:
    """It would never reach the disk."""
    journal = open_journal(tmp_path)
    journal.close()

    with pytest.raises(JournalError, match="closed"):
        journal.outbox.acknowledge([1])
    with pytest.raises(JournalError):
        journal.outbox.pending(limit=1)
