"""What a plant reads and sees of a detector's verdict: findings with size and zone, boxes on the published picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agent.bundle import Bundle
from agent.config import EvidenceConfig, PolicyConfig, ZoneConfig
from agent.frame import BgrImage
from agent.inspection import Finding
from agent.journal import Journal
from agent.marks import COLOURS_BGR, marked_picture
from agent.messages import MAX_VERDICT_BYTES
from agent.overlay import draw_overlay
from agent.verdict import Decision, Verdict, policy_from_config
from tests.kit.frames import frame_of
from tests.kit.spots import SPEC, dark_picture, make_detector, plant, spot_inspector
from tests.kit.verdicts import make_image, make_verdict, open_journal, pictures

WIDTH, HEIGHT = 512, 384
BOX = (128, 96, 160, 64)
SEAL = ZoneConfig(name="seal", box=(0, 0, 300, 200), defect_above=0.3)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_detector(tmp_path, detection=dataclasses.replace(SPEC, pixel_mm=0.05))


def judged(bundle: Bundle, image: BgrImage, **keys: Any) -> Verdict:
    policy = policy_from_config(PolicyConfig(**keys), bundle.manifest)
    return policy.judge(spot_inspector(bundle).inspect(frame_of(image)))


def scratched(score: float = 0.8) -> BgrImage:
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", BOX, score)
    return image


def published(journal: Journal, verdict: Verdict) -> tuple[dict[str, Any], list[bytes]]:
    """The message and the pictures that a real journal puts into its outbox."""
    journal.trigger(verdict.inspection.part)
    journal.record(verdict).wait(5)
    rows = journal.outbox.pending(limit=100)
    payloads = {
        kind: [journal.outbox.payload(r) or b"" for r in rows if r.kind == kind] for kind in ("verdict", "image")
    }
    (body,) = payloads["verdict"]
    message: dict[str, Any] = json.loads(body)
    return message, payloads["image"]


def decoded(data: bytes) -> BgrImage:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


def is_coloured(image: BgrImage, x: int, y: int, decision: Decision) -> bool:
    """Whether a line of the decision's colour runs through that place, as JPEG leaves it."""
    near = image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].astype(int).reshape(-1, 3)
    return bool((np.abs(near - np.array(COLOURS_BGR[decision])).max(axis=1) < 45).any())


def edges_of(box: tuple[float, float, float, float]) -> list[tuple[int, int]]:
    """The middle of each side but the upper one, on which the words stand."""
    x, y, width, height = box
    sides = ((x, y + height / 2), (x + width, y + height / 2), (x + width / 2, y + height))
    return [(round(at_x), round(at_y)) for at_x, at_y in sides]


# Messages


def test_the_message_tells_class_score_box_size_and_zone(bundle: Bundle, tmp_path: Path) -> None:
    """Of the findings that reach their lower limit, the foremost first; `n_findings` counts them."""
    image = scratched(0.4)
    plant(image, "stain", (400, 300, 64, 48), 0.9)
    plant(image, "mark", (20, 300, 40, 40), 1.0)
    with open_journal(tmp_path / "state") as journal:
        message, _ = published(journal, judged(bundle, image, zones=(SEAL,)))

    assert (message["decision"], message["class"]) == ("defect", "scratch")
    assert message["reason"] == "scratch 0.40, 8 mm, zone seal: reaches the limit 0.30; 1 more finding"
    assert (message["score"], message["threshold"], message["uncertainty"]) == (0.4, 0.3, None)
    assert message["n_findings"] == 2
    assert message["findings"] == [
        {"class": "scratch", "score": 0.4, "box": [128.0, 96.0, 160.0, 66.0], "size_mm": 8.0, "zone": "seal"},
        {"class": "stain", "score": 0.902, "box": [400.0, 300.0, 64.0, 48.0], "size_mm": 3.2, "zone": None},
    ]


def test_a_good_parts_message_has_no_findings(bundle: Bundle, tmp_path: Path) -> None:
    """And no class: nothing was found."""
    with open_journal(tmp_path / "state") as journal:
        message, images = published(journal, judged(bundle, dark_picture(WIDTH, HEIGHT)))

    assert (message["decision"], message["class"], message["score"], message["n_findings"]) == ("ok", None, 0.0, 0)
    assert (message["findings"], images) == ([], [])


def test_a_verdict_of_many_findings_stays_small(bundle: Bundle, tmp_path: Path) -> None:
    """A hundred findings do not fit into 4 kB: the foremost stay, and their number is told."""
    verdict = judged(bundle, scratched())
    many = tuple(
        Finding(
            class_name="a scratch with a long name", severity="major", score=0.9, box_px=(i, i, 10, 10), size_mm=0.5,
            zone="a-zone-with-a-rather-long-name",
        )
        for i in range(100)
    )  # fmt: skip
    with open_journal(tmp_path / "state") as journal:
        message, _ = published(journal, dataclasses.replace(verdict, findings=many))

    assert message["n_findings"] == 100
    assert 5 < len(message["findings"]) < 100
    assert len(json.dumps(message, separators=(",", ":"))) <= MAX_VERDICT_BYTES


# Pictures


@pytest.mark.parametrize("max_image_kb", [1000, 15])
def test_the_published_picture_shows_the_boxes_and_the_kept_one_is_as_it_was_taken(
    bundle: Bundle, tmp_path: Path, max_image_kb: int
) -> None:
    """Evidence stays evidence, and a person sees at once where to look; also where it had to be made smaller."""
    image = dark_picture(WIDTH, HEIGHT) * 3  # noise that JPEG can't make small
    plant(image, "scratch", BOX, 0.8)
    verdict = judged(bundle, image)
    before = image.copy()
    with open_journal(tmp_path / "state", evidence=EvidenceConfig(max_image_kb=max_image_kb)) as journal:
        _, (shown,) = published(journal, verdict)
        (kept,) = [path for path in pictures(tmp_path / "state") if not path.name.endswith(".mqtt.jpg")]
        raw = decoded(kept.read_bytes())

    seen = decoded(shown)
    scale = seen.shape[1] / WIDTH
    (box,) = (f.box_px for f in verdict.findings)
    assert box is not None
    assert len(shown) <= max_image_kb * 1000
    assert (scale < 1) == (max_image_kb == 15)
    for x, y in edges_of(box):
        assert is_coloured(seen, round(x * scale), round(y * scale), Decision.DEFECT), (x, y)
        assert not is_coloured(raw, x, y, Decision.DEFECT)
    np.testing.assert_array_equal(image, before)


def test_a_classifiers_picture_is_published_as_it_was_taken(tmp_path: Path) -> None:
    """One file, as before: there is no box to draw."""
    with open_journal(tmp_path / "state") as journal:
        published(journal, make_verdict(decision=Decision.DEFECT, image=make_image()))

        assert [path.name.count(".mqtt") for path in pictures(tmp_path / "state")] == [0]


def test_a_good_parts_picture_is_not_drawn_on(bundle: Bundle, tmp_path: Path) -> None:
    """It may be kept, but nobody needs to look at it."""
    verdict = judged(bundle, scratched(0.3), defect_above=0.6, review_above=0.5)
    assert verdict.decision is Decision.OK
    with open_journal(tmp_path / "state", evidence=EvidenceConfig(keep="all")) as journal:
        published(journal, verdict)

        assert [path.name.count(".mqtt") for path in pictures(tmp_path / "state")] == [0]


@pytest.mark.parametrize(
    "box", [(0, 0, WIDTH, HEIGHT), (-50, -50, 1, 1), (1e7, 1e7, 1e7, 1e7), (WIDTH - 1, HEIGHT - 1, 1, 1), (5, 5, 0, 0)]
)
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (8, 8), (3000, 9)])
def test_any_box_can_be_drawn_on_any_picture(
    bundle: Bundle, box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    """A picture that could not be drawn on would be lost evidence."""
    verdict = judged(bundle, scratched(), zones=(SEAL,))
    found = dataclasses.replace(verdict.findings[0], box_px=box, class_name="Schönheitsfehler " * 4)

    drawn = marked_picture(dark_picture(*size), dataclasses.replace(verdict, findings=(found,)))

    assert drawn is not None
    assert drawn.shape == (size[1], size[0], 3)


def test_the_overlay_shows_boxes_and_zones(bundle: Bundle) -> None:
    """The boxes of what was told, and the zones as thin lines."""
    verdict = judged(bundle, scratched(), zones=(SEAL,))
    (box,) = (f.box_px for f in verdict.findings)
    assert box is not None

    drawn = draw_overlay(verdict, side_px=WIDTH)[6:-73, 6:-6]

    assert all(is_coloured(drawn, x, y, Decision.DEFECT) for x, y in edges_of(box))
    assert (drawn[20:190, 298:303].reshape(-1, 3) == (233, 180, 86)).all(axis=1).any()


def test_zones_are_shown_on_good_parts_too(bundle: Bundle) -> None:
    """That is how one sees that they lie where they should."""
    verdict = judged(bundle, dark_picture(WIDTH, HEIGHT), zones=(SEAL,))
    assert verdict.decision is Decision.OK

    drawn = draw_overlay(verdict, side_px=WIDTH)

    assert (drawn.reshape(-1, 3) == (233, 180, 86)).all(axis=1).any()


def test_a_picture_that_cannot_be_drawn_on_is_published_without_marks(bundle: Bundle, tmp_path: Path) -> None:
    """Drawing is for people: when OpenCV fails at it, the verdict still gets its number and its picture."""
    verdict = judged(bundle, scratched())
    assert marked_picture(np.zeros((40, 40, 5), np.uint8), verdict) is None
    endless = dataclasses.replace(verdict.findings[0], box_px=(float("nan"), 0.0, 5.0, 5.0))
    broken = dataclasses.replace(verdict, findings=(endless,))
    with open_journal(tmp_path) as journal:
        message, images = published(journal, broken)
    assert message["decision"] == verdict.decision.value
    assert len(images) == 1
