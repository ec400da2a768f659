"""Inspection in a region: the model sees the region, people see the frame, and a part that is not found is reviewed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agent.bundle import Bundle
from agent.config import EngineConfig, LocateConfig, MaskConfig, PerspectiveConfig, PolicyConfig, RoiConfig, ZoneConfig
from agent.engines import open_engine
from agent.inspection import Inspector
from agent.overlay import draw_overlay
from agent.roi import Roi
from agent.verdict import Decision, Verdict, policy_from_config
from tests.kit.bundles import make_bundle
from tests.kit.frames import BLACK, RED, WHITE, frame_of, plain_image
from tests.kit.scenes import PART_AT, moved_scene, scene, template_of
from tests.kit.spots import dark_picture, make_detector, plant

TILTED = PerspectiveConfig(corners=((90, 40), (330, 70), (350, 250), (60, 220)), width_px=280, height_px=200)


@pytest.fixture
def classifier(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


@pytest.fixture
def detector(tmp_path: Path) -> Bundle:
    return make_detector(tmp_path)


def judge(bundle: Bundle, image: Any, roi: RoiConfig | None, **policy: Any) -> Verdict:
    rules = PolicyConfig(**policy)
    region = None if roi is None else Roi(roi)
    inspector = Inspector(bundle, open_engine(bundle, EngineConfig()), pixel_mm=rules.pixel_mm, roi=region)
    return policy_from_config(rules, bundle.manifest).judge(inspector.inspect(frame_of(image)))


def centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def test_what_lies_outside_of_the_region_does_not_count(classifier: Bundle) -> None:
    """A good part on a black belt."""
    image = plain_image(BLACK, width=200, height=160)
    image[40:100, 60:140] = 250
    image[41, 61] = 240

    assert judge(classifier, image, None).decision is Decision.DEFECT
    assert judge(classifier, image, RoiConfig(crop=(60, 40, 80, 60))).decision is Decision.OK


def test_what_the_mask_hides_does_not_count(classifier: Bundle) -> None:
    """The same belt, masked away in white."""
    image = plain_image(BLACK, width=80, height=60)
    image[10:50, 10:70] = 250
    image[30, 30] = 240
    mask = MaskConfig(polygons=(((10, 10), (69, 10), (69, 49), (10, 49)),), grey=255)

    assert judge(classifier, image, None).decision is not Decision.OK
    assert judge(classifier, image, RoiConfig(mask=mask)).decision is Decision.OK


STEPS = {
    "crop": RoiConfig(crop=(80, 40, 260, 200)),
    "quarter turn": RoiConfig(rotate_deg=90, crop=(20, 60, 260, 300)),
    "turn": RoiConfig(rotate_deg=12, crop=(90, 70, 240, 170)),
    "perspective": RoiConfig(perspective=TILTED),
    "all": RoiConfig(perspective=TILTED, rotate_deg=270, crop=(10, 10, 180, 260)),
}


@pytest.mark.parametrize("roi", STEPS.values(), ids=STEPS)
def test_a_finding_is_told_where_it_is_in_the_frame(detector: Bundle, roi: RoiConfig) -> None:
    """Whatever the way to the region: the box lies around the spot, in pixels of the frame."""
    image = dark_picture(400, 300)
    plant(image, "scratch", (200, 130, 24, 16), 0.9)
    verdict = judge(detector, image, roi)

    assert verdict.decision is Decision.DEFECT
    assert verdict.top is not None
    assert verdict.top.box_px is not None
    # The network sees every fourth pixel or so, and upright boxes around tilted ones are larger.
    assert centre(verdict.top.box_px) == pytest.approx((212, 138), abs=6)
    assert 16 <= verdict.top.box_px[2] <= 48
    assert 10 <= verdict.top.box_px[3] <= 40
    assert verdict.inspection.region is not None


def test_sizes_are_measured_in_what_the_model_sees(detector: Bundle) -> None:
    """There a millimetre is the same everywhere; a box around a tilted one would be too long."""
    image = dark_picture(400, 300)
    plant(image, "scratch", (200, 130, 24, 16), 0.9)
    straight = judge(detector, image, RoiConfig(crop=(100, 40, 256, 192)), pixel_mm=0.1).top
    turned = judge(detector, image, RoiConfig(rotate_deg=90, crop=(54, 100, 192, 256)), pixel_mm=0.1).top

    assert straight is not None
    assert turned is not None
    assert straight.size_mm == pytest.approx(2.4, abs=0.5)
    assert turned.size_mm == pytest.approx(2.4, abs=0.5)


def test_zones_stay_in_pixels_of_the_frame(detector: Bundle) -> None:
    """A person draws them on the camera's picture."""
    image = dark_picture(400, 300)
    plant(image, "scratch", (200, 130, 24, 16), 0.9)
    zone = ZoneConfig(name="seal", box=(150, 80, 120, 120), ignore=True)

    assert judge(detector, image, RoiConfig(rotate_deg=90, crop=(20, 60, 260, 300))).decision is Decision.DEFECT
    assert (
        judge(detector, image, RoiConfig(rotate_deg=90, crop=(20, 60, 260, 300)), zones=(zone,)).decision is Decision.OK
    )


def test_the_heatmap_covers_the_frame(classifier: Bundle) -> None:
    """Cold outside of the region."""
    image = plain_image(WHITE, width=200, height=160)
    image[40:80, 140:180] = RED
    heatmap = judge(classifier, image, RoiConfig(crop=(100, 40, 80, 80))).inspection.heatmap

    assert heatmap is not None
    assert heatmap.shape == (160, 200)
    assert heatmap[45:75, 145:175].min() > 0.9
    assert heatmap[95:115, 105:125].max() < 0.5
    assert not heatmap[:, :98].any()


@pytest.fixture
def located(tmp_path: Path) -> RoiConfig:
    (tmp_path / "t.png").write_bytes(template_of(scene()))
    x, y = PART_AT
    return RoiConfig(locate=LocateConfig(template=tmp_path / "t.png", at=PART_AT), crop=(x - 10, y - 10, 100, 80))


def test_a_part_that_is_not_found_is_reviewed_with_the_score(classifier: Bundle, located: RoiConfig) -> None:
    """Never ok, whatever the picture shows: nobody judged it."""
    image = plain_image(WHITE, width=400, height=300)
    image[0:2, 0:5] = 99
    verdict = judge(classifier, image, located)

    assert verdict.decision is Decision.REVIEW
    assert verdict.reason.startswith("the part was not found: score ")
    assert (verdict.score, verdict.threshold, verdict.top, verdict.findings) == (None, None, None, ())
    assert verdict.inspection.frame is not None  # the evidence
    assert draw_overlay(verdict).shape[2] == 3


def test_a_part_that_is_found_is_judged_where_it_lies(classifier: Bundle, located: RoiConfig) -> None:
    """And it is told where that was."""
    verdict = judge(classifier, moved_scene((30, -12)), located)

    assert verdict.inspection.located is not None
    assert verdict.inspection.located.shift_px == pytest.approx((30, -12))
    assert verdict.score is not None
    assert verdict.inspection.region is not None
    assert verdict.inspection.region.outline()[0] == (PART_AT[0] - 10 + 30, PART_AT[1] - 10 - 12)


@pytest.mark.parametrize("level", [0, 255])
def test_a_blank_frame_is_an_error_and_no_part_that_lies_elsewhere(
    classifier: Bundle, located: RoiConfig, level: int
) -> None:
    """A dead sensor must not look like a part to review."""
    verdict = judge(classifier, np.full((300, 400, 3), level, dtype=np.uint8), located)

    assert verdict.decision is Decision.ERROR
    assert "every pixel has the same value" in verdict.reason


def test_a_frame_that_the_region_does_not_fit_is_an_error(classifier: Bundle) -> None:
    """A camera that came back with another size."""
    verdict = judge(classifier, scene(), RoiConfig(crop=(0, 0, 401, 300)))

    assert verdict.decision is Decision.ERROR
    assert verdict.reason.startswith("preprocess: roi.crop: got [0, 0, 401, 300], which reaches beyond")


@pytest.mark.parametrize("image", [None, np.zeros((48, 64), np.uint8), np.zeros((0, 64, 3), np.uint8)])
def test_a_frame_that_is_no_picture_is_an_error(classifier: Bundle, image: Any) -> None:
    """As without a region."""
    assert judge(classifier, image, RoiConfig(crop=(0, 0, 40, 40))).decision is Decision.ERROR


def test_the_overlay_shows_what_the_model_saw(detector: Bundle) -> None:
    """The region's outline in the frame, beside the finding's box."""
    image = dark_picture(400, 300)
    plant(image, "scratch", (200, 130, 24, 16), 0.9)
    with_region = draw_overlay(judge(detector, image, STEPS["perspective"]), side_px=400)
    without = draw_overlay(judge(detector, image, None), side_px=400)
    border = 400 // 80
    drawn = cv2.cvtColor(with_region, cv2.COLOR_BGR2GRAY)[border : border + 300, border : border + 400]
    plain = cv2.cvtColor(without, cv2.COLOR_BGR2GRAY)[border : border + 300, border : border + 400]
    for (x0, y0), (x1, y1) in zip(TILTED.corners, [*TILTED.corners[1:], TILTED.corners[0]], strict=True):
        for share in (0.2, 0.5, 0.8):
            x, y = round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))
            assert drawn[y - 2 : y + 3, x - 2 : x + 3].max() > 150
            assert plain[y - 2 : y + 3, x - 2 : x + 3].max() < 60
