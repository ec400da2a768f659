"""Augmentation: pictures of the size asked for, the same again by the same seed, and each change can be left out."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import fit
from optimize.augment import Augmentation, augment, augmentation_from_text
from optimize.errors import OptimizeError
from tests.kit.pictures import textured

NONE = augmentation_from_text("none", is_upright=True)


def made(image: np.ndarray, how: Augmentation, seed: int = 0, *, is_letterbox: bool = False) -> np.ndarray:
    return augment(image, 64, how, np.random.default_rng(seed), is_letterbox=is_letterbox)[0]


@pytest.mark.parametrize("shape", [(200, 200, 1), (37, 300, 3), (8, 8, 1), (1, 1, 3)])
@pytest.mark.parametrize("is_letterbox", [False, True])
def test_augmentation_gives_pictures_of_the_size_asked_for(shape: tuple[int, int, int], is_letterbox: bool) -> None:
    """Whatever comes in, grey or colour; and no two alike."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    pictures = [made(image, Augmentation(angle=10), i, is_letterbox=is_letterbox) for i in range(20)]

    assert {picture.shape for picture in pictures} == {(64, 64, shape[2])}
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    assert len({picture.tobytes() for picture in pictures}) == 20


def test_augmentation_hangs_on_its_generator_only() -> None:
    """Else a resumed run would see other pictures."""
    image = textured(100, 100)

    assert np.array_equal(made(image, Augmentation(), 3), made(image, Augmentation(), 3))


def test_without_any_augmentation_a_picture_stays_itself() -> None:
    """Cropping is exact to the pixel: no shift between training and device."""
    image = textured(64, 64)

    assert np.array_equal(image, made(image, NONE))


def test_a_letterboxed_picture_lies_where_the_device_puts_it() -> None:
    """Same scale, same place, same padding; else the network would learn another geometry than it sees."""
    image = textured(128, 64)
    spec = InputSpec(width_px=64, height_px=64, resize="letterbox")

    ours = made(image[:, :, ::-1].copy(), NONE, is_letterbox=True).astype(int)
    device = fit(image, spec).astype(int)

    assert np.array_equal(ours[:15], device[:15])
    assert np.array_equal(ours[-15:], device[-15:])
    # Bilinear after a blur is not quite an area average; a shift by one pixel would be far off.
    shifted = np.abs(np.roll(device, 1, axis=1) - device)[17:47].mean()
    assert np.abs(ours - device)[17:47].mean() < 0.25 * shifted


def test_padding_keeps_its_grey_whatever_the_lamp_does() -> None:
    """On the device it is 128 in every picture; a network must not learn that it varies."""
    image = np.full((40, 160, 3), 60, dtype=np.uint8)

    for seed in range(20):
        how = Augmentation(min_area=1, noise=1, cutout=0, blur=1)
        picture = made(image, how, seed, is_letterbox=True)
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == 128).all()
        assert (picture[32, 32] != 128).any()


def test_upright_parts_are_never_turned() -> None:
    """A mirrored logo is a defect."""
    image = np.zeros((64, 64, 1), dtype=np.uint8)
    image[:32, :32] = 255

    upright = {made(image, NONE, i).tobytes() for i in range(30)}
    turned = {made(image, dataclasses.replace(NONE, is_upright=False), i).tobytes() for i in range(30)}

    assert len(upright) == 1
    assert len(turned) == 4


def test_small_turns_stay_within_their_angle() -> None:
    """A horizontal edge that rises by more would be another part."""
    image = np.zeros((64, 64, 1), dtype=np.uint8)
    image[32:] = 255

    slopes = []
    for seed in range(20):
        turned = made(image, dataclasses.replace(NONE, angle=10.0), seed)[..., 0]
        edge = (turned < 128).sum(axis=0)
        slopes.append(np.degrees(np.arctan2(edge[48] - edge[16], 32)))

    assert max(np.abs(slopes)) < 12
    assert np.ptp(slopes) > 5


def test_a_mask_moves_with_its_picture_and_keeps_out_of_the_light() -> None:
    """A defect must stay under its mask, and a lamp must not change what is a defect."""
    image = np.zeros((80, 120, 3), dtype=np.uint8)
    mask = np.zeros((80, 120), dtype=np.uint8)
    cv2.circle(image, (70, 40), 14, (255, 255, 255), cv2.FILLED)
    cv2.circle(mask, (70, 40), 14, 255, cv2.FILLED)
    how = Augmentation(angle=15, cutout=0, noise=0, blur=0, light=0)

    for seed in range(12):
        for is_letterbox in (False, True):
            random = np.random.default_rng(seed)
            picture, moved = augment(image, 64, how, random, mask=mask, is_letterbox=is_letterbox)
            assert moved is not None
            inside = picture[..., 0] != 128 if is_letterbox else np.ones((64, 64), dtype=bool)
            assert np.array_equal((picture[..., 0] > 200) & inside, (moved > 200) & inside)
    lit = augment(image, 64, Augmentation(min_area=1, is_upright=True), np.random.default_rng(1), mask=mask)[1]
    assert lit is not None
    assert set(np.unique(lit)) >= {0, 255}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("glow=1", "got 'glow', expected none, or some of crop=X"),
        ("light=bright", "light: got 'bright', expected a number"),
        ("crop=0", "crop: got 0.0, expected 0.05 to 1"),
        ("angle=90", "angle: got 90.0, expected 0 to 45"),
        ("blur=nan", "blur: got nan"),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_refused(text: str, words: str) -> None:
    """In the words of the command line."""
    with pytest.raises(OptimizeError) as caught:
        augmentation_from_text(text, is_upright=False)

    assert words in caught.value.message


def test_what_is_not_named_keeps_its_default() -> None:
    """`light=0.5` must not switch the rest off."""
    how = augmentation_from_text("light=0.5, crop=0.8", is_upright=True)

    assert how == Augmentation(light=0.5, min_area=0.8, is_upright=True)


def test_a_window_is_cut_around_the_defect_at_the_scale_of_the_whole_picture() -> None:
    """A defect of 12 pixels stays 12 pixels, give or take the zoom, and is always in sight; padding is no defect."""
    image = np.full((200, 320, 1), 90, dtype=np.uint8)
    mask = np.zeros((200, 320), dtype=np.uint8)
    mask[150:162, 290:302] = 255
    image[mask > 0] = 250

    for seed in range(20):
        random = np.random.default_rng(seed)
        picture, moved = augment(image, 96, NONE, random, mask=mask, is_letterbox=True, whole_px=320)
        assert moved is not None
        side = float(np.sqrt((moved > 127).sum()))
        assert 12 * np.exp(-0.25) - 1 <= side <= 12 * np.exp(0.25) + 1
        assert (moved[picture[..., 0] > 200] > 100).all()
        assert (picture[..., 0][moved > 200] > 150).all()


def test_a_window_of_a_good_part_may_lie_anywhere_on_it() -> None:
    """Not only in the middle."""
    image = np.tile(np.arange(256, dtype=np.uint8), (256, 1))[:, :, None]
    clean = np.zeros((256, 256), dtype=np.uint8)

    levels = []
    for seed in range(40):
        picture, _ = augment(image, 32, NONE, np.random.default_rng(seed), mask=clean, whole_px=256)
        levels.append(int(picture[16, 16, 0]))

    assert min(levels) < 60
    assert max(levels) > 200
