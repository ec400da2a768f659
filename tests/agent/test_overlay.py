"""Overlay pictures: every verdict can be drawn, and the decision can be seen from across the hall."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from agent.bundle import Bundle
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.frame import Fault
from agent.inspection import Inspector
from agent.overlay import draw_overlay
from agent.verdict import Decision, Policy, Verdict
from tests.kit.bundles import make_bundle
from tests.kit.frames import BLACK, RED, WHITE, frame_of, part_of, plain_image

FAULT = Fault(part=part_of("Teil-Ü17"), stage="capture", reason="truncated JPEG, and a reason that goes on " * 9)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


def verdict(bundle: Bundle, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | Fault) -> Verdict:
    inspector = Inspector(bundle, open_engine(bundle, EngineConfig()))
    seen = inspector.inspect(image if isinstance(image, Fault) else frame_of(image))
    return Policy(bundle.manifest.policy).judge(seen)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (64, 48), (4000, 3000)])
@pytest.mark.parametrize("side_px", [64, 480])
def test_a_picture_of_any_size_is_drawn(bundle: Bundle, size: tuple[int, int], side_px: int) -> None:
    """Aspect ratio kept, longer side as asked for, room for the words beside a narrow one."""
    width, height = size
    drawn = draw_overlay(verdict(bundle, plain_image(BLACK, width=width, height=height)), side_px=side_px)

    border, banner = max(side_px // 80, 2), max(side_px // 7, 20)
    longer = max(size)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] == max(round(height * side_px / longer), 1) + 2 * border + banner
    assert drawn.shape[1] == max(round(width * side_px / longer), side_px // 2) + 2 * border


def test_a_part_without_a_frame_is_a_card_with_its_reason(bundle: Bundle) -> None:
    """On a contact sheet a fault must be seen, too; long and foreign words are cut, not fatal."""
    drawn = draw_overlay(verdict(bundle, FAULT))

    assert drawn.shape[2] == 3
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize("image", [np.zeros((3, 3), dtype=np.uint8), np.zeros((0, 3, 3), dtype=np.uint8)])
def test_a_frame_that_is_no_picture_is_a_card(
    bundle: Bundle, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    """The verdict is an error, and drawing it must not be a second one."""
    judged = verdict(bundle, image)

    assert judged.decision is Decision.ERROR
    assert draw_overlay(judged).shape[2] == 3


def test_each_decision_has_its_own_colour(bundle: Bundle) -> None:
    """The border, all around."""
    drawn = {
        Decision.OK: verdict(bundle, plain_image(WHITE)),
        Decision.DEFECT: verdict(bundle, plain_image(BLACK)),
        Decision.ERROR: verdict(bundle, FAULT),
    }
    drawn[Decision.REVIEW] = dataclasses.replace(drawn[Decision.DEFECT], decision=Decision.REVIEW)
    borders = {}
    for decision, judged in drawn.items():
        assert judged.decision is decision
        overlay = draw_overlay(judged)
        edge = np.concatenate([overlay[0], overlay[-1], overlay[:, 0], overlay[:, -1]])
        (borders[decision],) = {tuple(colour) for colour in edge.tolist()}

    assert len(set(borders.values())) == len(Decision)


def test_the_heat_lies_on_the_defect_and_the_rest_stays_a_picture(bundle: Bundle) -> None:
    """A map that tints everything explains nothing; the frame itself is not drawn on."""
    image = plain_image(WHITE, width=480, height=480)
    image[:240, :240] = RED
    before = image.copy()
    judged = verdict(bundle, image)
    assert judged.decision is Decision.DEFECT

    drawn = draw_overlay(judged, side_px=480)[6:486, 6:486]

    np.testing.assert_array_equal(image, before)
    assert np.abs(drawn[20:200, 20:200].astype(int) - image[20:200, 20:200]).max() > 60
    assert np.abs(drawn[300:, 300:].astype(int) - image[300:, 300:]).max() < 25


def test_a_good_part_is_shown_untouched(bundle: Bundle) -> None:
    """No heat on what nobody should worry about."""
    image = plain_image(WHITE, width=480, height=480)

    drawn = draw_overlay(verdict(bundle, image), side_px=480)

    np.testing.assert_array_equal(drawn[6:486, 6:486], image)


def test_a_box_is_drawn_where_it_is(bundle: Bundle) -> None:
    """In frame pixels, scaled with the picture."""
    judged = verdict(bundle, plain_image(BLACK, width=960, height=960))
    found = dataclasses.replace(judged.inspection.findings[0], box_px=(200, 400, 100, 300))
    assert found.severity != "ok"
    seen = dataclasses.replace(judged.inspection, findings=(found,), heatmap=None)

    told = dataclasses.replace(judged, inspection=seen, findings=(found,), top=found)
    drawn = draw_overlay(told, side_px=480)[6:486, 6:486]

    rows, columns = np.nonzero(drawn[205:].any(axis=2))
    assert (columns.min(), columns.max()) == pytest.approx((100, 150), abs=1)
    assert rows.max() + 205 == pytest.approx(350, abs=1)
    assert not drawn[210:340, 110:140].any()
