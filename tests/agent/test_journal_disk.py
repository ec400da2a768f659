"""The disk's bad days: full, damaged, taken by another agent, written by a newer one, not ours to write."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import EvidenceConfig
from agent.errors import JournalError
from agent.journal import Journal
from agent.journal.schema import SCHEMA
from agent.verdict import Decision
from tests.kit.verdicts import (
    Clock,
    events,
    judge,
    judge_at,
    make_image,
    make_part,
    make_verdict,
    open_journal,
    pictures,
    publish_all,
)
from tests.kit.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"can't mount a tmpfs here ({mount.stderr.decode().strip()}); run as root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Let another program take all of the disk but `leave` bytes."""
    ballast = disk / "ballast"
    stat = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - leave)
    return ballast


def names(journal: Journal) -> list[str]:
    return [event["event"] for event in events(journal)]


def test_on_a_full_disk_pictures_make_room_for_verdicts(tiny_disk: Path) -> None:
    """Pictures go, verdicts stay, and both is said."""
    big = EvidenceConfig(max_image_kb=100_000)
    with open_journal(tiny_disk, evidence=big) as journal:
        for n in range(1, 61):
            image = make_image(n, height_px=300, width_px=400)
            assert judge(journal, n, Decision.DEFECT, image=image).wait(10) == n
        journal.flush()
        sent = [json.loads(stored.body)["image"] for stored in journal.read()]
        stats = journal.stats()

        assert len(sent) == 60
        assert sent[0] is not None
        assert None in sent
        assert stats.evidence_evicted > 0
        assert names(journal)[:2] == ["disk_full", "evidence_dropped"]
        on_disk = sum(pictures(tiny_disk).values())
        assert stats.evidence_bytes == on_disk < 4_000_000


def test_when_no_picture_is_left_verdicts_go_into_the_reserve(tiny_disk: Path) -> None:
    """The reserve is for this day; once there is space again it is restored, and pictures are kept again."""
    with open_journal(tiny_disk, reserve_mb=1) as journal:
        assert (tiny_disk / "reserve").stat().st_size == journal.stats().reserve_bytes == 1 << 20
        ballast = fill(tiny_disk, leave=0)
        for n in range(1, 101):
            assert judge(journal, n, Decision.DEFECT, image=make_image(n)).wait(10) == n
        assert journal.stats().reserve_bytes == 0
        assert names(journal).count("disk_full") == 2
        assert json.loads(next(journal.read(first=100)).body)["image"] is None

        ballast.unlink()
        wait_until(lambda: "disk_recovered" in names(journal))
        assert journal.stats().reserve_bytes == 1 << 20
        judge(journal, 101, Decision.DEFECT, image=make_image(101)).wait(10)
        assert json.loads(next(journal.read(first=101)).body)["image"] is not None


def record_until_it_fails(journal: Journal) -> tuple[int, JournalError]:
    kept = 0
    while True:
        try:
            kept = judge(journal, kept + 1).wait(10)
        except JournalError as error:  # noqa: PERF203
            return kept, error


def test_when_the_reserve_is_used_up_everybody_is_told_and_nothing_durable_is_lost(tiny_disk: Path) -> None:
    """The station must stop: a verdict that nobody keeps is a part lost. What was kept before stays kept."""
    journal = open_journal(tiny_disk, reserve_mb=1)
    ballast = fill(tiny_disk, leave=0)
    kept, error = record_until_it_fails(journal)
    with pytest.raises(JournalError, match="no space left"):
        journal.record(make_verdict(make_part(kept + 1)))
    with pytest.raises(JournalError, match="no space left"):
        journal.trigger(make_part(kept + 2))
    with pytest.raises(JournalError, match="no space left"):
        journal.close()

    assert kept > 300
    assert "can no longer be made durable" in error.message
    assert error.hint is not None
    ballast.unlink()
    with open_journal(tiny_disk, reserve_mb=1) as journal:
        recs = [stored.rec for stored in journal.read()]
        assert recs[:kept] == list(range(1, kept + 1))
        assert recs == list(range(1, len(recs) + 1))


def test_acknowledgements_on_a_full_disk_make_no_trouble(tiny_disk: Path) -> None:
    """A DELETE fails on a full disk like an INSERT; with pictures to give up it works."""
    with open_journal(tiny_disk, evidence=EvidenceConfig(max_image_kb=100_000)) as journal:
        for n in range(1, 6):
            judge(journal, n, Decision.DEFECT, image=make_image(n, height_px=300, width_px=400)).wait(10)
        fill(tiny_disk, leave=0)
        while rows := journal.outbox.pending(limit=3):
            journal.outbox.acknowledge([row.seq for row in rows])
            journal.flush()

        assert journal.outbox.depth() == 0
        assert [stored.rec for stored in journal.read()] == [1, 2, 3, 4, 5]


def test_deleting_what_is_old_waits_while_the_disk_is_full(tiny_disk: Path) -> None:
    """A DELETE that finds no space is no reason to stop the line."""
    clock = Clock()
    with open_journal(tiny_disk, retention_days=1.0, clock=clock) as journal:
        for n in range(1, 51):
            judge_at(journal, n, clock)
        publish_all(journal)
        ballast = fill(tiny_disk, leave=0)
        clock.pass_(2 * 86_400_000)
        for _ in range(2):  # the second one is behind the tidying that followed the first
            journal.flush()

        assert len(list(journal.read())) == 50
        ballast.unlink()
        wait_until(lambda: not list(journal.read()))


def test_a_reserve_that_does_not_fit_is_left_out(tiny_disk: Path) -> None:
    """It must not itself fill the disk."""
    with open_journal(tiny_disk, reserve_mb=16) as journal:
        assert journal.stats().reserve_bytes == 0
        assert not (tiny_disk / "reserve").exists()
        assert judge(journal, 1).wait(5) == 1


def test_a_disk_with_no_room_for_a_journal_is_refused_in_words(tiny_disk: Path) -> None:
    """At the start there is nothing to give up yet."""
    fill(tiny_disk, leave=8192)

    with pytest.raises(JournalError, match="no space left"):
        open_journal(tiny_disk)


LIMITED = """
import resource, sys
from pathlib import Path
from agent.errors import JournalError
from tests.kit.verdicts import judge, open_journal

journal = open_journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
kept = 0
try:
    for n in range(1, 100_000):
        kept = judge(journal, n).wait(10)
except JournalError as error:
    print(kept, error.message)
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 of Python 3.10 doesn't tell EFBIG from a broken disk")
def test_a_limit_on_file_size_ends_like_a_full_disk(tmp_path: Path) -> None:
    """Where no file system can be mounted, the kernel's limit stands for a quota."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    kept, words = said.split(" ", 1)

    assert "no space left" in words
    with open_journal(tmp_path) as journal:
        recs = [stored.rec for stored in journal.read()]
        assert len(recs) >= int(kept) > 50
        assert recs == list(range(1, len(recs) + 1))


def test_a_second_agent_in_one_state_directory_is_refused(tmp_path: Path) -> None:
    """Two writers would give one number twice."""
    with open_journal(tmp_path):
        with pytest.raises(JournalError, match=f"another defect-agent .process {os.getpid()}") as caught:
            open_journal(tmp_path)
        assert caught.value.hint is not None
        assert "state_dir" in caught.value.hint
    open_journal(tmp_path).close()


def test_a_lock_of_a_dead_agent_holds_nobody_up(tmp_path: Path) -> None:
    """The kernel lets go of it with the process; the file stays."""
    script = "import os, sys; from pathlib import Path; from tests.kit.verdicts import open_journal\n"
    script += "open_journal(Path(sys.argv[1])); os._exit(1)"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, check=False)

    assert (tmp_path / "journal.lock").exists()
    with open_journal(tmp_path) as journal:
        assert judge(journal, 1).wait(5) == 1


@pytest.mark.parametrize("spoil", ["garbage", "header", "tables", "numbers"])
def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path: Path, spoil: str) -> None:
    """Writing into it would make the rescue worse; starting anew silently would hide the loss."""
    with open_journal(tmp_path) as journal:
        for n in range(1, 51):
            judge(journal, n)
    path = tmp_path / "journal.db"
    data = bytearray(path.read_bytes())
    if spoil == "garbage":
        path.write_bytes(b"not a database at all" * 1000)
    elif spoil == "header":
        path.write_bytes(bytes([*data[:40], *b"\xff" * 60, *data[100:]]))
    else:
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE triggers" if spoil == "tables" else "UPDATE state SET last_rec = 7")
        db.close()
    before = path.read_bytes()

    with pytest.raises(JournalError, match=r"damaged|newer|another program") as caught:
        open_journal(tmp_path)
    assert caught.value.hint is not None
    assert path.read_bytes() == before
    with pytest.raises(JournalError):
        open_journal(tmp_path)  # and the lock was let go: it is the same refusal again


def test_damage_that_shows_later_stops_the_station_in_words(tmp_path: Path) -> None:
    """A page in the middle went bad on the card: the next write that meets it must not pass silently."""
    with open_journal(tmp_path) as journal:
        for n in range(1, 301):
            judge(journal, n)
    path = tmp_path / "journal.db"
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = b"\xa5" * (len(data) - 4096 * 2)
    path.write_bytes(data)

    with pytest.raises(JournalError, match="damaged"):  # noqa: PT012 - at the latest when it is read
        journal = open_journal(tmp_path)
        try:
            judge(journal, 1).wait(5)
        finally:
            journal.close()


def test_a_journal_of_a_newer_agent_is_refused(tmp_path: Path) -> None:
    """After a downgrade: guessing at its layout could lose parts."""
    open_journal(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()

    for opening in (open_journal, Journal.open_readonly):
        with pytest.raises(JournalError, match=rf"newer defect-agent \(schema {SCHEMA + 1}"):
            opening(tmp_path)


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Somebody pointed state_dir at another application's folder."""
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("CREATE TABLE songs (title TEXT)")
    db.close()

    with pytest.raises(JournalError, match="another program"):
        open_journal(tmp_path)


def test_a_start_that_was_killed_before_its_first_table_is_no_damage(tmp_path: Path) -> None:
    """An empty file is what a power cut at the very first start leaves."""
    (tmp_path / "journal.db").touch()

    with open_journal(tmp_path) as journal:
        assert judge(journal, 1).wait(5) == 1


def test_a_state_directory_that_can_not_be_one_is_refused(tmp_path: Path) -> None:
    """A wrong path in the configuration, in one sentence."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir" / "journal.db").mkdir(parents=True)

    with pytest.raises(JournalError, match="can't be made a directory"):
        open_journal(tmp_path / "file")
    with pytest.raises(JournalError, match="can't be made a directory"):
        open_journal(tmp_path / "file" / "below")
    with pytest.raises(JournalError, match="can't be opened for writing"):
        open_journal(tmp_path / "dir")


def test_reading_where_no_station_has_run_is_refused(tmp_path: Path) -> None:
    """`journal tail` with a wrong --config must not make an empty journal."""
    with pytest.raises(JournalError, match="no journal here"):
        Journal.open_readonly(tmp_path)
    (tmp_path / "journal.db").touch()
    with pytest.raises(JournalError, match="an empty journal"):
        Journal.open_readonly(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.db"]
