"""A killed process: whatever somebody has heard of is in the journal after the next start."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import JournalError
from agent.frame import Part
from agent.journal import Journal
from agent.journal.ring import SLOT, TriggerRing, ring_places
from tests.kit.commands import run_command
from tests.kit.logs import captured_events
from tests.kit.verdicts import events, make_part, make_verdict, open_journal

ROOT = Path(__file__).resolve().parents[2]
BOOT = "0123abcd"

DIES = """
import os, signal, sqlite3, sys
from pathlib import Path
from tests.kit.commands import run_command
from tests.kit.verdicts import make_part, make_verdict, open_journal

state_dir, held, count = Path(sys.argv[1]), sys.argv[2] == "held", int(sys.argv[3])
journal = open_journal(state_dir, held=held, max_pending=2)
judged = make_part(1, id_="judged")
journal.trigger(judged)
journal.record(make_verdict(judged), held=held).wait(30)
lock = sqlite3.connect(state_dir / "journal.db", isolation_level=None)
lock.execute("BEGIN IMMEDIATE")  # the disk takes nothing from here on
for n in range(2, 2 + count):
    journal.trigger_if_room(make_part(n, id_=f"heard-{n}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """systemd's directory of the station: it stays when the service is started again."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))
    yield
    assert not list(runtime.iterdir()), "a journal that was closed in order leaves nothing in memory"


def die(state_dir: Path, *, held: bool = False, count: int = 5) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DIES, str(state_dir), "held" if held else "", str(count)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL


def judge_held(journal: Journal, part: Part) -> int:
    journal.trigger(part)
    return journal.record(make_verdict(part), held=True).wait(30)


def test_triggers_that_no_disk_has_seen_are_errors_at_the_next_start(tmp_path: Path) -> None:
    """The PLC was told PART: the journal must not know less than the PLC. Two fit into the queue, three did not."""
    die(tmp_path / "state")
    with open_journal(tmp_path / "state") as journal:
        stored = [(each.part, each.code) for each in journal.read()]
        ledger = journal.stats().ledger

    assert stored == [("judged", 1), *((f"heard-{n}", 4) for n in range(2, 7))]
    assert ledger.triggers == 6
    assert ledger.closes


def test_verify_knows_them_before_the_next_start(tmp_path: Path) -> None:
    """A technician looks at a station that is dead: nothing is missing, and he reads what will become of them."""
    die(tmp_path / "state")
    said = run_command("agent.cli.journal", "verify", "--state", tmp_path / "state")
    open_journal(tmp_path / "state").close()
    after = run_command("agent.cli.journal", "verify", "--state", tmp_path / "state", "--json")

    assert said.code == 0
    assert "5 more have no row yet" in said.out
    assert json.loads(after.out) | {"ledger": None} == {"ledger": None, "in_memory": 0, "faults": []}


def test_the_second_start_after_it_answers_nobody_again(tmp_path: Path) -> None:
    """What was answered is gone from the memory."""
    die(tmp_path / "state")
    open_journal(tmp_path / "state").close()
    with open_journal(tmp_path / "state") as journal:
        assert journal.last_rec == 6


def test_a_held_verdict_of_a_dead_process_says_that_nobody_knows_what_the_plc_heard(tmp_path: Path) -> None:
    """It is on the disk as ok, and the outputs may have been told error at the deadline: a person is to look."""
    die(tmp_path / "state", held=True, count=0)
    with open_journal(tmp_path / "state") as journal:
        told = [event for event in events(journal) if event["event"] == "result_unknown"]

    assert [event["data"] for event in told] == [{"part": "judged", "rec": 1}]


def test_a_verdict_that_was_told_before_leaves_no_question(tmp_path: Path) -> None:
    """Without `held` the outputs heard it before the disk did."""
    die(tmp_path / "state", count=0)
    with open_journal(tmp_path / "state") as journal:
        assert "result_unknown" not in [event["event"] for event in events(journal)]


def test_a_held_verdict_is_published_only_when_it_was_told(tmp_path: Path) -> None:
    """And with the mark that the PLC's `error` gave it."""
    with open_journal(tmp_path / "state", held=True) as journal:
        part = make_part(1)
        rec = judge_held(journal, part)
        before = journal.outbox.pending(limit=10)
        journal.told(dataclasses.replace(make_verdict(part), late_ms=12.34), rec)
        journal.flush()
        (row, *_) = journal.outbox.pending(limit=10)

        assert before == ()
        assert json.loads(row.body or b"")["late_ms"] == 12.3
        assert json.loads(row.body or b"")["decision"] == "ok"


def test_one_that_was_told_lets_no_other_go(tmp_path: Path) -> None:
    """The line is quick: that A was told, and the verdict of B, get onto the disk in one transaction."""
    with open_journal(tmp_path / "state", held=True) as journal:
        first, second = make_part(1), make_part(2)
        rec = judge_held(journal, first)
        lock = sqlite3.connect(tmp_path / "state" / "journal.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")  # what comes now waits together
        journal.trigger(second)
        journal.told(make_verdict(first), rec)
        receipt = journal.record(make_verdict(second), held=True)
        lock.rollback()
        rec = receipt.wait(30)
        journal.flush()
        before = [row.rec for row in journal.outbox.pending(limit=10)]
        journal.told(make_verdict(second), rec)
        journal.flush()

        assert before == [1]
        assert [row.rec for row in journal.outbox.pending(limit=10)] == [1, 2]


def test_events_of_the_meantime_wait_behind_a_held_verdict(tmp_path: Path) -> None:
    """The order of the messages stays that of the records."""
    with open_journal(tmp_path / "state", held=True) as journal:
        rec = judge_held(journal, make_part(1))
        journal.event("something", "info", "in between")
        journal.flush()
        before = journal.outbox.pending(limit=10)
        journal.told(make_verdict(make_part(1)), rec)
        journal.flush()

        assert before == ()
        assert [row.kind for row in journal.outbox.pending(limit=10)] == ["verdict", "event"]


def test_another_journals_triggers_are_not_taken(tmp_path: Path) -> None:
    """A journal that was moved away takes its starts with it."""
    die(tmp_path / "state")
    for file in (tmp_path / "state").glob("journal.db*"):
        file.unlink()
    with open_journal(tmp_path / "state") as journal:
        told = [event["text"] for event in events(journal) if event["event"] == "triggers_of_another_journal"]

        assert journal.last_rec == 0
        assert len(told) == 1
        assert "5 parts" in told[0]
        assert "heard-2, heard-3" in told[0]


def test_a_slot_that_was_being_written_is_none(tmp_path: Path) -> None:
    """Its trigger was told to nobody yet."""
    ring = TriggerRing([tmp_path / "ring"], slots=4)
    for n in (1, 2):
        assert ring.write(BOOT, make_part(n))
    torn = bytearray((tmp_path / "ring").read_bytes())
    torn[SLOT - 1] ^= 1  # of the first one
    (tmp_path / "torn").write_bytes(torn)

    assert [left.part.sequence for left in TriggerRing([tmp_path / "torn"], slots=4).left()] == [2]


def test_slots_are_used_again_and_their_end_is_told(tmp_path: Path) -> None:
    """It holds what has no verdict yet, however many parts came before."""
    ring = TriggerRing([tmp_path / "ring"], slots=2)
    for n in range(1, 100):
        assert ring.write(BOOT, make_part(n))
        ring.erase(n)
    assert [ring.write(BOOT, make_part(n)) for n in (100, 101, 101, 102)] == [True, True, True, False]
    assert [left.part.id for left in ring.left()] == [make_part(100).id, make_part(101).id]
    ring.erase(100)
    ring.erase(101)
    ring.close()


def test_triggers_beyond_the_slots_are_told_once(tmp_path: Path) -> None:
    """They are as safe as their row on the disk, and no safer."""
    ring = TriggerRing([tmp_path / "ring"], slots=1)
    with captured_events("agent.journal") as logged:
        assert [ring.write(BOOT, make_part(n)) for n in (1, 2, 3)] == [True, False, False]
    ring.erase(1)
    ring.close()

    assert [event["event"] for event in logged] == ["trigger_ring_full"]


def test_whole_parts_come_back(tmp_path: Path) -> None:
    """Names that are not ASCII, and moments."""
    part = make_part(7, id_="Gehäuse-Ü-" + "ß" * 114)
    TriggerRing([tmp_path / "ring"], slots=2, held=True).write(BOOT, part)
    (left,) = TriggerRing([tmp_path / "ring"], slots=2).left()

    assert (left.boot, left.part, left.held) == (BOOT, part, True)


def test_a_link_or_a_foreign_file_is_not_followed(tmp_path: Path) -> None:
    """/dev/shm is everybody's: the next place is taken."""
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    ring = TriggerRing([tmp_path / "link", tmp_path / "ring"], slots=2)

    assert ring.path == tmp_path / "ring"
    assert not (tmp_path / "victim").exists()
    with pytest.raises(JournalError, match="no place for the triggers"):
        TriggerRing([tmp_path / "link", tmp_path / "absent" / "ring"], slots=2)


def test_the_station_s_own_directory_comes_first(tmp_path: Path) -> None:
    """systemd removes a user's files in /dev/shm when its unit stops (RemoveIPC=)."""
    places = ring_places(tmp_path)

    assert [place.parent for place in places] == [tmp_path / "run", Path("/dev/shm"), tmp_path]
    assert len({place.name for place in places}) == 1
    assert places[0].name != ring_places(tmp_path / "run")[0].name
