"""Pictures: whole or not at all, within their quota, small enough for MQTT, and never read outside their folder."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agent.config import EvidenceConfig
from agent.frame import BgrImage, Stamp
from agent.journal import Journal
from agent.journal.evidence import ImageFiles, encode_picture
from agent.verdict import Decision
from tests.kit.verdicts import events, judge, make_image, make_part, make_verdict, open_journal, pictures
from tests.kit.waiting import wait_until

ID = "01924c1e-3b00-7abc-8def-0123456789ab"
DAY_1, DAY_2 = 1_791_191_643_000, 1_791_278_043_000


def files(state_dir: Path) -> list[Path]:
    return list(pictures(state_dir))


def big_image(seed: int) -> BgrImage:
    """About 180 kB as JPEG, whatever the quality of the encoder."""
    return make_image(seed, height_px=300, width_px=400)


def decoded(data: bytes) -> BgrImage:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


def images_of(journal: Journal) -> list[dict[str, Any] | None]:
    return [json.loads(stored.body)["image"] for stored in journal.read()]


def test_flagged_parts_keep_their_picture_in_the_folder_of_their_day(tmp_path: Path) -> None:
    """A person looks for last Tuesday's rejects by hand, too."""
    with open_journal(tmp_path) as journal:
        for n, (decision, utc_ms) in enumerate(
            [(Decision.DEFECT, DAY_1), (Decision.OK, DAY_1), (Decision.REVIEW, DAY_2)], start=1
        ):
            judge(journal, n, decision, image=make_image(n), captured=Stamp(utc_ms, n)).wait(5)
        ids = [stored.id for stored in journal.read()]

        assert [str(path.relative_to(tmp_path)) for path in files(tmp_path)] == [
            f"images/2026-10-05/{ids[0]}.jpg",
            f"images/2026-10-06/{ids[2]}.jpg",
        ]
        assert [image and image["id"] for image in images_of(journal)] == [ids[0], None, ids[2]]


def test_the_picture_is_the_exposure_and_nothing_else(tmp_path: Path) -> None:
    """Evidence: nothing drawn on it, colours where they were."""
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[:, :40] = (255, 0, 0)
    image[:, 40:] = (0, 0, 255)
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=image).wait(5)
        seen = decoded(files(tmp_path)[0].read_bytes())

        assert seen.shape == image.shape
        assert np.abs(seen.astype(int)[:, 5:35] - image[:, 5:35]).max() < 30
        assert np.abs(seen.astype(int)[:, 45:75] - image[:, 45:75]).max() < 30


@pytest.mark.parametrize(("keep", "expected"), [("flagged", [2, 3, 4]), ("all", [1, 2, 3, 4]), ("none", [])])
def test_what_is_kept_is_configured(tmp_path: Path, keep: Any, expected: list[int]) -> None:
    """An error that has a picture keeps it like the other flagged ones."""
    decisions = [Decision.OK, Decision.DEFECT, Decision.REVIEW, Decision.ERROR]
    with open_journal(tmp_path, evidence=EvidenceConfig(keep=keep)) as journal:
        for n, decision in enumerate(decisions, start=1):
            judge(journal, n, decision, image=make_image(n)).wait(5)
        with Journal.open_readonly(tmp_path) as reader:
            assert [rec for rec in (1, 2, 3, 4) if reader.image_path(rec)] == expected
        published = [row.rec for row in journal.outbox.pending(limit=99) if row.kind == "image"]

        assert published == [rec for rec in expected if rec != 1]  # good parts are kept when asked, never published


def test_a_picture_too_large_for_mqtt_is_kept_whole_and_published_small(tmp_path: Path) -> None:
    """Brokers and PLC libraries drop what is too large, without a word."""
    with open_journal(tmp_path, evidence=EvidenceConfig(max_image_kb=40)) as journal:
        judge(journal, 1, Decision.DEFECT, image=big_image(1)).wait(5)
        (image,) = images_of(journal)
        row = journal.outbox.pending(limit=9)[1]
        payload = journal.outbox.payload(row) or b""
        whole, small = files(tmp_path)

        assert image is not None
        assert len(payload) == image["bytes"] <= 40_000
        assert hashlib.sha256(payload).hexdigest() == image["sha256"]
        assert small.read_bytes() == payload
        assert small.name == f"{image['id']}.mqtt.jpg"
        assert decoded(whole.read_bytes()).shape == (300, 400, 3)
        assert max(decoded(payload).shape) < 400
        assert journal.stats().evidence_bytes == whole.stat().st_size + small.stat().st_size


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (37, 41), (900, 1200)])
@pytest.mark.parametrize("limit_kb", [4, 100])
def test_any_shape_fits_the_limit(shape: tuple[int, int], limit_kb: int) -> None:
    """Line-scan pictures are 1 px high; the way down must end for them too."""
    image = make_image(3, height_px=shape[0], width_px=shape[1])
    picture = encode_picture(image, EvidenceConfig(max_image_kb=limit_kb), id_=ID, day="2026-10-05")

    assert len(picture.published) <= limit_kb * 1000
    assert picture.sha256 == hashlib.sha256(picture.published).hexdigest()


def test_a_picture_that_no_jpeg_can_hold_costs_the_picture_and_not_the_verdict(tmp_path: Path) -> None:
    """JPEG ends at 65,500 px a side."""
    image = np.zeros((1, 70_000, 3), dtype=np.uint8)
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=image).wait(5)
        journal.flush()

        assert images_of(journal) == [None]
        assert [(e["event"], e["data"]["not_kept"]) for e in events(journal)] == [("evidence_dropped", 1)]


def test_a_clock_before_1970_still_has_a_folder(tmp_path: Path) -> None:
    """A device without a battery starts anywhere in time."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image(), captured=Stamp(-5, 1)).wait(5)

        assert files(tmp_path)[0].parent.name == "1970-01-01"


def test_at_the_quota_the_oldest_records_lose_their_picture_first(tmp_path: Path) -> None:
    """Oldest by record, not by date: the clock may have been wrong. The loss is one event, not one per picture."""
    quota = EvidenceConfig(quota_mb=1, max_image_kb=1_000)
    with open_journal(tmp_path, evidence=quota) as journal:
        for n in range(1, 21):
            utc_ms = DAY_1 - n * 86_400_000  # every part a day before the one before it
            judge(journal, n, Decision.DEFECT, image=big_image(n), captured=Stamp(utc_ms, n)).wait(5)
        journal.flush()
        wait_until(lambda: journal.stats().evidence_bytes <= 1_000_000)
        wait_until(lambda: sum(pictures(tmp_path).values()) <= 1_000_000)
        with Journal.open_readonly(tmp_path) as reader:
            kept = [rec for rec in range(1, 21) if reader.image_path(rec)]
            stats = reader.stats()

        assert 3 <= len(kept) <= 8
        assert kept == list(range(21 - len(kept), 21))
        assert stats.evidence_count == len(kept) == len(files(tmp_path))
        assert stats.evidence_evicted == 20 - len(kept)
        assert stats.evidence_bytes == sum(pictures(tmp_path).values())
        assert [e["event"] for e in events(journal)] == ["evidence_dropped"]
        assert len(list(journal.read())) == 20
    with open_journal(tmp_path, evidence=quota) as journal:  # closing told the rest
        told = [e["data"]["removed"] for e in events(journal)]
        assert (len(told), sum(told)) == (2, 20 - len(kept))


def test_the_outbox_row_of_an_evicted_picture_has_no_payload(tmp_path: Path) -> None:
    """The publisher acknowledges it and goes on; the verdicts behind it must not wait."""
    with open_journal(tmp_path, evidence=EvidenceConfig(quota_mb=1, max_image_kb=1_000)) as journal:
        for n in range(1, 11):
            judge(journal, n, Decision.DEFECT, image=big_image(n)).wait(5)
        journal.flush()
        wait_until(lambda: journal.stats().evidence_bytes <= 1_000_000)
        images = [row for row in journal.outbox.pending(limit=99) if row.kind == "image"]
        payloads = [journal.outbox.payload(row) for row in images]

        assert payloads[0] is None
        assert payloads[-1] is not None
        (event, *_) = events(journal)
        assert event["data"]["unpublished"] == event["data"]["removed"] > 0


def test_one_picture_larger_than_the_quota_is_not_kept(tmp_path: Path) -> None:
    """It would push out every other one, and itself."""
    with open_journal(tmp_path, evidence=EvidenceConfig(quota_mb=1, max_image_kb=100_000)) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image(1)).wait(5)
        judge(journal, 2, Decision.DEFECT, image=make_image(2, height_px=1_000, width_px=1_500)).wait(5)
        first, second = images_of(journal)

        assert first is not None
        assert second is None
        assert len(files(tmp_path)) == 1


def test_files_without_a_row_are_removed_at_the_start_and_strangers_are_not(tmp_path: Path) -> None:
    """The agent was killed between the rename and the commit: the picture belongs to no record."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image()).wait(5)
    (kept,) = files(tmp_path)
    for name in (f"{ID}.jpg", f"{ID}.mqtt.jpg", f"{ID}.jpg.tmp", f"{kept.name}.tmp", "README.txt", "holiday.jpg"):
        (kept.parent / name).write_bytes(b"x")
    with open_journal(tmp_path) as journal:
        assert [path.name for path in files(tmp_path)] == [kept.name, "README.txt", "holiday.jpg"]
        assert journal.stats().evidence_count == 1
        assert events(journal) == []


def test_rows_without_a_file_are_marked_and_reported_at_the_start(tmp_path: Path) -> None:
    """Somebody made room by hand: count and quota must be true again."""
    with open_journal(tmp_path) as journal:
        for n in (1, 2, 3):
            judge(journal, n, Decision.DEFECT, image=make_image(n)).wait(5)
        with Journal.open_readonly(tmp_path) as reader:
            gone = reader.image_path(2)
    assert gone is not None
    gone.unlink()
    with open_journal(tmp_path) as journal:
        assert journal.stats().evidence_count == 2
        assert [(e["event"], e["data"]["removed"]) for e in events(journal)] == [("evidence_dropped", 1)]


def test_a_new_journal_beside_old_pictures_keeps_them_apart(tmp_path: Path) -> None:
    """Whoever moves a damaged database away must not lose the evidence to the sweep of files without rows."""
    with open_journal(tmp_path) as journal:
        judge(journal, 1, Decision.DEFECT, image=make_image()).wait(5)
    for path in tmp_path.glob("journal.db*"):
        path.unlink()
    with open_journal(tmp_path) as journal:
        (moved,) = tmp_path.glob("images.before-*/*/*.jpg")
        assert decoded(moved.read_bytes()).shape == (48, 64, 3)
        assert files(tmp_path) == []
        assert [e["event"] for e in events(journal)] == ["evidence_moved"]


def test_names_from_the_database_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    """A database that somebody wrote into must not make the agent publish or delete other files."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    with open_journal(tmp_path / "state", evidence=EvidenceConfig(quota_mb=1)) as journal:
        for n in (1, 2, 3):
            judge(journal, n, Decision.DEFECT, image=make_image(n)).wait(5)
        with sqlite3.connect(tmp_path / "state" / "journal.db") as db:
            db.execute("UPDATE images SET id = '../../../secret', sha256 = ? WHERE rec = 1", (digest,))
            db.execute("UPDATE images SET day = '../..', id = 'secret', sha256 = ? WHERE rec = 2", (digest,))
        db.close()
        images = [row for row in journal.outbox.pending(limit=99) if row.kind == "image"]
        assert [journal.outbox.payload(row) is None for row in images] == [True, True, False]
        wait_until(lambda: journal.stats().evidence_evicted == 2)  # tried to read, then to remove

    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize(
    ("id_", "day"),
    [("../secret", "2026-10-05"), ("secret", ".."), (ID, "../2026-10-05"), (ID + "/../x", "2026-10-05"), ("", "")],
)
def test_only_names_that_the_agent_gives_are_looked_at(tmp_path: Path, id_: str, day: str) -> None:
    """Whatever stands at the end of such a path is none of ours."""
    images = ImageFiles(tmp_path / "images")
    (images.root / "2026-10-05" / ID).mkdir(parents=True)
    (tmp_path / "2026-10-05").mkdir()
    for folder in (tmp_path, tmp_path / "2026-10-05", images.root, images.root / "2026-10-05"):
        for name in ("secret", ID, "x", ""):
            (folder / f"{name}.jpg").write_bytes(b"secret")
    before = sorted(tmp_path.rglob("*"))
    images.remove(id_, day)

    assert images.read(id_, day, small=False, sha256=hashlib.sha256(b"secret").hexdigest()) is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Neither for reading nor for sweeping."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{ID}.jpg").write_bytes(b"x")
    root = tmp_path / "images"
    root.mkdir()
    (root / "2026-10-05").symlink_to(elsewhere)
    images = ImageFiles(root)

    assert images.read(ID, "2026-10-05", small=False, sha256=hashlib.sha256(b"x").hexdigest()) is None
    assert images.sweep(lambda _id, _day: False) == 0
    assert (elsewhere / f"{ID}.jpg").exists()


def test_only_the_agents_user_reads_the_record(tmp_path: Path) -> None:
    """Pictures of the product and serial numbers are the plant's."""
    umask = os.umask(0)
    try:
        with open_journal(tmp_path / "new" / "state", reserve_mb=1) as journal:
            judge(journal, 1, Decision.DEFECT, image=make_image()).wait(5)
            judge(journal, 2, Decision.DEFECT, image=big_image(2)).wait(5)
            modes = {
                path: stat.S_IMODE(path.stat().st_mode) for path in sorted((tmp_path / "new" / "state").rglob("*"))
            }
            modes[tmp_path / "new" / "state"] = stat.S_IMODE((tmp_path / "new" / "state").stat().st_mode)
    finally:
        os.umask(umask)

    assert {path.name for path in modes} >= {"journal.db", "journal.db-wal", "journal.lock", "reserve", "images"}
    assert {path.name: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_a_picture_that_can_not_be_written_costs_no_verdict(tmp_path: Path) -> None:
    """Not a full disk but a broken one: something else has the folder's name."""
    with open_journal(tmp_path) as journal:
        (tmp_path / "images").rmdir()
        (tmp_path / "images").write_text("in the way")
        part = make_part(1)
        journal.trigger(part)
        journal.record(make_verdict(part, Decision.DEFECT, image=make_image())).wait(5)
        journal.flush()

        assert images_of(journal) == [None]
        (event,) = events(journal)
        assert (event["event"], event["data"]["not_kept"]) == ("evidence_dropped", 1)
        assert "Not a directory" in event["text"] or "File exists" in event["text"]
