"""Several cameras of one part: every flagged view has its picture, kept, published, and named in the verdict."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.config import EvidenceConfig
from agent.frame import Part
from agent.journal import Journal, Receipt
from agent.journal.compose import draft_from_verdict
from agent.journal.intake import MAX_PICTURE_BYTES, Intake, Recorded
from agent.journal.schema import SCHEMA
from agent.verdict import Decision
from agent.views import PartVerdict, ViewResult, worst_of
from tests.kit.commands import run_command
from tests.kit.old_journals import make_old
from tests.kit.verdicts import events, judge, make_image, make_part, make_verdict, open_journal, pictures
from tests.kit.waiting import wait_until

OK, DEFECT, REVIEW, ERROR = Decision.OK, Decision.DEFECT, Decision.REVIEW, Decision.ERROR
SEEN = {"front": OK, "left": REVIEW, "top": DEFECT}


def part_verdict(part: Part, seen: Mapping[str, Decision], **keys: Any) -> PartVerdict:
    """Each view with a picture of its own, but an error without one."""
    return worst_of(
        [
            ViewResult(
                name=name,
                verdict=make_verdict(part, decision, **{"image": None if decision is ERROR else make_image(n), **keys}),
            )
            for n, (name, decision) in enumerate(seen.items())
        ]
    )


def judge_views(journal: Journal, sequence: int, seen: Mapping[str, Decision] = SEEN, **keys: Any) -> Receipt:
    part = make_part(sequence)
    journal.trigger(part)
    return journal.record(part_verdict(part, seen, **keys))


def published(journal: Journal) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The verdicts that wait, and the pictures by their topics."""
    journal.flush()
    rows = journal.outbox.pending(limit=1_000)
    payloads = {row.topic: journal.outbox.payload(row) or b"" for row in rows if row.kind == "image"}
    return [json.loads(row.body or b"") for row in rows if row.kind == "verdict"], payloads


def test_every_flagged_view_has_its_picture_on_the_disk_and_on_its_topic(tmp_path: Path) -> None:
    """The worst one's is the part's; the reviewer of the other flagged view sees that; an ok one costs none."""
    with open_journal(tmp_path) as journal:
        judge_views(journal, 1)
        (message,), payloads = published(journal)
        with Journal.open_readonly(tmp_path) as reader:
            kept = reader.images(1)
    refs = {view["name"]: view["image"] for view in message["views"]}

    assert (refs["front"], message["image"]["id"]) == (None, message["id"])
    assert refs["top"] == {name: message["image"][name] for name in ("id", "sha256", "bytes")}
    assert refs["left"]["id"] != refs["top"]["id"]
    assert list(payloads) == [f"acme/cam1/image/{refs[name]['id']}" for name in ("top", "left")]
    for name in ("top", "left"):
        data = payloads[f"acme/cam1/image/{refs[name]['id']}"]
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (refs[name]["sha256"], refs[name]["bytes"])
    assert [(image.view, image.is_foremost, image.id) for image in kept] == [
        ("top", True, refs["top"]["id"]),
        ("left", False, refs["left"]["id"]),
    ]
    assert [image.path.read_bytes() for image in kept] == list(payloads.values())


@pytest.mark.parametrize(
    ("keep", "kept", "sent"),
    [("flagged", ["top", "left"], 2), ("all", ["top", "front", "left"], 2), ("none", [], 0)],
)
def test_what_is_kept_of_the_views_is_configured(
    tmp_path: Path, keep: Literal["flagged", "all", "none"], kept: list[str], sent: int
) -> None:
    """An ok view's picture may be kept and is never published."""
    with open_journal(tmp_path, evidence=EvidenceConfig(keep=keep)) as journal:
        judge_views(journal, 1)
        _, payloads = published(journal)
        with Journal.open_readonly(tmp_path) as reader:
            assert [image.view for image in reader.images(1)] == kept
    assert len(payloads) == sent


def test_where_the_worst_view_has_no_picture_the_others_still_have_theirs(tmp_path: Path) -> None:
    """A camera that is gone makes the part an error, and must not hide what the other one saw."""
    with open_journal(tmp_path) as journal:
        judge_views(journal, 1, {"front": ERROR, "left": DEFECT})
        (message,), payloads = published(journal)
        with Journal.open_readonly(tmp_path) as reader:
            assert reader.image_path(1) is None
            assert [image.view for image in reader.images(1)] == ["left"]

    assert (message["decision"], message["image"]) == ("error", None)
    assert [view["image"] is None for view in message["views"]] == [True, False]
    assert list(payloads) == [f"acme/cam1/image/{message['views'][1]['image']['id']}"]


def test_each_picture_shows_its_own_views_boxes(tmp_path: Path) -> None:
    """Drawn on what goes out; the kept ones are as they were taken."""
    with open_journal(tmp_path) as journal:
        judge_views(journal, 1, box_px=(4.0, 5.0, 20.0, 6.0))
        _, payloads = published(journal)

    assert len(payloads) == 2
    assert len(pictures(tmp_path)) == 4
    assert all(path.name.endswith(".mqtt.jpg") for path in pictures(tmp_path) if path.read_bytes() in payloads.values())


def test_all_pictures_count_for_the_quota_and_the_oldest_go_first(tmp_path: Path) -> None:
    """What the numbers say is what lies on the disk."""
    with open_journal(tmp_path, evidence=EvidenceConfig(quota_mb=1), max_pending=4) as journal:
        for sequence in range(1, 21):
            judge_views(journal, sequence, image=make_image(sequence, height_px=256, width_px=256)).wait(5)
        journal.flush()
        stats = journal.stats()
        with Journal.open_readonly(tmp_path) as reader:
            kept = [len(reader.images(rec)) for rec in range(1, 21)]

        assert stats.evidence_bytes == sum(pictures(tmp_path).values()) <= 1_000_000
        assert stats.evidence_count == sum(kept) == len(pictures(tmp_path))
        assert stats.evidence_evicted == 40 - sum(kept) > 0
        assert kept == sorted(kept)
        assert events(journal)[0]["event"] == "evidence_dropped"


def test_a_picture_that_is_missing_takes_no_other_of_its_part_with_it(tmp_path: Path) -> None:
    """One file is lost: that picture is, and is told."""
    with open_journal(tmp_path) as journal:
        judge_views(journal, 1).wait(5)
        with Journal.open_readonly(tmp_path) as reader:
            top, left = reader.images(1)
            left.path.unlink()
            _, payloads = published(journal)
            journal.flush()

            assert [bool(data) for data in payloads.values()] == [True, False]
            assert reader.images(1) == (top,)
            assert journal.stats().evidence_evicted == 1


def test_pictures_grow_old_with_their_record(tmp_path: Path) -> None:
    """Hundreds of records leave at once, each with several pictures: no file stays behind."""
    with open_journal(tmp_path, publish=False, retention_days=1e-9) as journal:
        for sequence in range(1, 151):
            judge_views(journal, sequence)
        journal.flush()
        kept = len(pictures(tmp_path))
        wait_until(lambda: not pictures(tmp_path))

        assert kept == 300
        assert journal.stats().evidence_count == 0
        assert list((tmp_path / "images").iterdir()) == []


def test_what_may_wait_for_the_disk_counts_all_pictures_of_a_part(tmp_path: Path) -> None:
    """Sixteen cameras of twelve megapixels must not fill the memory behind one part's back."""
    del tmp_path
    intake, image = Intake(1_000), make_image(0, height_px=3_000, width_px=3_000)
    seen = dict.fromkeys(("front", "left"), DEFECT)

    def item(sequence: int) -> Recorded:
        verdict = part_verdict(make_part(sequence), seen, image=image)
        return Recorded(draft_from_verdict(verdict, boot="b", keep="flagged"), Receipt())

    fits = MAX_PICTURE_BYTES // (2 * image.nbytes)
    assert [intake.put_if_room(item(n)) for n in range(fits + 1)] == [True] * fits + [False]
    blocked = threading.Thread(target=intake.put, args=(item(99),), daemon=True)
    blocked.start()
    batch = intake.take(1.0) or []
    assert len(batch) == fits
    intake.settle(batch)
    blocked.join(5)
    assert not blocked.is_alive()


def test_the_export_names_every_picture(tmp_path: Path) -> None:
    """As CSV their paths in the state directory; as JSON lines the message."""
    with open_journal(tmp_path) as journal:
        judge_views(journal, 1)
        judge(journal, 2)
        judge(journal, 3, REVIEW)
        journal.flush()
        said = run_command("agent.cli.journal", "export", "--state", tmp_path)
    rows = list(csv.DictReader(io.StringIO(said.out)))

    counts = [len(row["images"].split()) for row in rows]
    assert counts == [2, 0, 1]
    assert all((tmp_path / path).is_file() for row in rows for path in row["images"].split())
    assert Path(rows[0]["images"].split()[0]).stem == rows[0]["id"]
    assert [row["located_score"] for row in rows] == ["", "", ""]


@pytest.mark.parametrize("schema", [1, 2])
def test_a_journal_with_one_picture_per_part_is_taken_over(tmp_path: Path, schema: Literal[1, 2]) -> None:
    """An update keeps every picture, published or not, evicted or not; and goes on with several of a part."""
    with open_journal(tmp_path) as journal:
        for sequence in range(1, 5):
            judge(journal, sequence, DEFECT).wait(5)
        _, before = published(journal)
        journal.outbox.acknowledge([row.seq for row in journal.outbox.pending(limit=2)])
    make_old(tmp_path, schema)
    with Journal.open_readonly(tmp_path) as reader:
        unchanged = [image.id for rec in range(1, 5) for image in reader.images(rec)]
    with open_journal(tmp_path) as journal:
        judge_views(journal, 1)
        messages, after = published(journal)
        stats = journal.stats()
        with Journal.open_readonly(tmp_path) as reader:
            kept = [image.id for rec in range(1, 5) for image in reader.images(rec)]
            new = [image.view for image in reader.images(5)]
    db = sqlite3.connect(tmp_path / "journal.db")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()

    assert [f"acme/cam1/image/{id_}" for id_ in kept] == list(before)
    assert kept == unchanged
    assert list(after.items())[:3] == list(before.items())[1:]
    assert (new, stats.evidence_count, version) == (["top", "left"], 6, SCHEMA)
    assert messages[-1]["rec"] == 5
