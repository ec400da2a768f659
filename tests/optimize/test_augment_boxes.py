"""Boxes go where their pixels go: a detector that learns from shifted boxes learns to miss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.augment import Augmentation, augment_with_boxes

STILL = Augmentation(light=0.0, blur=0.0, noise=0.0, cutout=0.0)


def _picture(box: tuple[int, int, int, int], width: int = 120, height: int = 90) -> np.ndarray:
    image = np.full((height, width, 3), 40, dtype=np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 240
    return image


def _bright(picture: np.ndarray) -> np.ndarray:
    """The box around what is bright: edges, to half a pixel."""
    rows, columns = np.nonzero(picture[..., 0] > 140)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)


@given(seed=st.integers(0, 10_000), is_upright=st.booleans(), is_letterbox=st.booleans())
def test_a_box_stays_around_its_pixels(seed: int, is_upright: bool, is_letterbox: bool) -> None:
    """Crop, scale, mirror and quarter turn move picture and box alike, within a pixel of the resampling."""
    box = (50, 30, 80, 55)
    how = dataclasses.replace(STILL, min_area=0.8, is_upright=is_upright)
    random = np.random.default_rng(seed)
    picture, moved = augment_with_boxes(
        _picture(box), np.array([box], dtype=np.float64), 96, how, random, is_letterbox=is_letterbox
    )
    seen = moved[0].clip(0, 96)
    if (seen[2:] - seen[:2]).min() > 4:
        assert np.abs(_bright(picture) - seen).max() <= 1.6


@pytest.mark.parametrize("whole_px", [200, 400])
def test_a_window_is_cut_around_a_box(whole_px: int) -> None:
    """Windows of large pictures show a defect where there is one: else a rare defect is hardly ever seen."""
    box = (300, 200, 330, 215)
    image = _picture(box, 640, 480)
    for seed in range(20):
        random = np.random.default_rng(seed)
        _, moved = augment_with_boxes(image, np.array([box], dtype=np.float64), 96, STILL, random, whole_px=whole_px)
        cut = moved[0].clip(0, 96)
        assert (cut[2:] - cut[:2]).prod() > 0.3 * (moved[0, 2:] - moved[0, :2]).prod()


def test_a_picture_without_boxes_gives_none() -> None:
    """A good part stays one."""
    picture, moved = augment_with_boxes(
        _picture((1, 1, 2, 2)), np.zeros((0, 4)), 64, Augmentation(), np.random.default_rng(0), whole_px=200
    )
    assert picture.shape == (64, 64, 3)
    assert moved.shape == (0, 4)


def test_a_small_turn_gives_the_upright_box_around_the_turned_one() -> None:
    """A turned box is larger than what it outlines, never smaller: nothing of the defect is cut off."""
    box = (40, 30, 80, 60)
    how = dataclasses.replace(STILL, min_area=1, is_upright=True, angle=20)
    for seed in range(10):
        picture, moved = augment_with_boxes(
            _picture(box, 120, 120), np.array([box], dtype=np.float64), 120, how, np.random.default_rng(seed)
        )
        bright = _bright(picture)
        assert (moved[0, :2] <= bright[:2] + 1.5).all()
        assert (moved[0, 2:] >= bright[2:] - 1.5).all()
