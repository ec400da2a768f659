"""The region of interest: what the model sees of a frame, and the way back to the frame's pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.config import (
    ArgusCameraConfig,
    MaskConfig,
    OpenCvCameraConfig,
    PerspectiveConfig,
    RoiConfig,
)
from agent.errors import ConfigError, ImageError
from agent.roi import Region, Roi, configured_size
from tests.kit.pictures import textured
from tests.kit.scenes import scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 400, 300
TILTED = PerspectiveConfig(corners=((90, 40), (330, 70), (350, 250), (60, 220)), width_px=300, height_px=200)

WIDER = PerspectiveConfig(corners=((0, 0), (420, 0), (420, 300), (0, 300)), width_px=400, height_px=300)


def region_of(image: NDArray[np.uint8], **steps: Any) -> Region:
    """What these steps take out of a picture; the part is found."""
    region = Roi(RoiConfig(**steps)).take(image)
    assert isinstance(region, Region)
    return region


def refusal(size: tuple[int, int] = (WIDTH, HEIGHT), **steps: Any) -> str:
    """What the user reads at the start when these steps do not fit; every part's error has the same words."""
    with pytest.raises(ConfigError) as at_start:
        Roi(RoiConfig(**steps), frame_size=size)
    with pytest.raises(ImageError) as at_part:
        Roi(RoiConfig(**steps)).take(scene(*size))
    assert at_part.value.message == at_start.value.message
    return at_start.value.message


# What is taken


def test_without_steps_the_region_is_the_frame() -> None:
    """`roi: {}` changes nothing."""
    image = scene()
    region = region_of(image)

    assert np.array_equal(region.image, image)
    assert region.map.outline() == ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT))


def test_a_crop_copies_the_pixels_as_they_are() -> None:
    """No interpolation where no pixel moves."""
    image = scene()

    assert np.array_equal(region_of(image, crop=(30, 20, 100, 50)).image, image[20:70, 30:130])


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (180, 2), (270, 3), (360, 0)])
def test_a_quarter_turn_copies_the_pixels_as_they_are(degrees: float, quarters: int) -> None:
    """Clockwise; width and height are swapped, odd sizes too."""
    image = scene(401, 300)

    assert np.array_equal(region_of(image, rotate_deg=degrees).image, np.rot90(image, -quarters))


def test_any_other_turn_is_clockwise_about_the_middle_and_keeps_the_size() -> None:
    """A dot right of the middle goes down."""
    image = np.random.default_rng(0).integers(0, 30, (301, 301, 3), dtype=np.uint8)
    image[150, 250] = 255
    region = region_of(image, rotate_deg=45, crop=(70, 70, 161, 161))
    row, column = np.unravel_index(region.image[:, :, 0].argmax(), region.image.shape[:2])

    assert (column + 70, row + 70) == pytest.approx((150 + 100 / 2**0.5, 150 + 100 / 2**0.5), abs=1)


def test_four_corners_become_the_corners_of_the_picture() -> None:
    """A tilted chess board becomes upright: each of its cells is where it was before the tilt."""
    flat = np.kron((np.indices((4, 6)).sum(0) % 2 * 200 + 20).astype(np.uint8), np.ones((50, 50), np.uint8))
    board = np.repeat(flat[:, :, None], 3, axis=2)
    corners = np.array([(-0.5, -0.5), (299.5, -0.5), (299.5, 199.5), (-0.5, 199.5)], dtype=np.float32)
    tilt = cv2.getPerspectiveTransform(corners, np.array(TILTED.corners, dtype=np.float32) - 0.5)
    frame = cv2.warpPerspective(board, tilt, (WIDTH, HEIGHT))
    region = region_of(np.asarray(frame), perspective=TILTED)

    assert region.image.shape == board.shape
    for row in range(4):
        for column in range(6):
            inner = np.s_[row * 50 + 5 : row * 50 + 45, column * 50 + 5 : column * 50 + 45]
            assert np.abs(region.image[inner].astype(int) - board[inner]).max() <= 3


def test_the_steps_come_in_their_order() -> None:
    """Perspective, then the turn, then the crop: each in pixels of what the one before gave."""
    image = scene()
    whole = region_of(image, perspective=TILTED).image
    region = region_of(image, perspective=TILTED, rotate_deg=90, crop=(20, 30, 100, 150))

    assert np.abs(region.image.astype(int) - np.rot90(whole, -1)[30:180, 20:120]).max() <= 2


@pytest.mark.parametrize("keep", [True, False])
def test_a_mask_puts_one_grey_in_place_of_what_is_not_seen(keep: bool) -> None:
    """In pixels of the region; overlapping polygons are one area; the frame itself stays as it was."""
    image = scene()
    before = image.copy()
    polygons = (((10, 10), (60, 10), (60, 40), (10, 40)), ((30, 20), (80, 20), (80, 60), (30, 60)))
    region = region_of(image, crop=(100, 80, 120, 90), mask=MaskConfig(polygons=polygons, keep=keep, grey=99))
    cut = before[80:170, 100:220]

    for x, y, is_inside in ((15, 15, True), (45, 30, True), (75, 55, True), (75, 15, False), (100, 80, False)):
        seen = cut[y, x] if is_inside == keep else (99, 99, 99)
        assert tuple(region.image[y, x]) == tuple(seen)
    assert np.array_equal(image, before)


# The way back


@given(x=st.floats(0, 1), y=st.floats(0, 1), degrees=st.floats(0, 360), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_place_in_the_region_comes_back_to_itself(x: float, y: float, degrees: float, data: st.DataObject) -> None:
    """There and back within half a pixel (in fact within a thousandth), for every step and all of them together."""
    crop = data.draw(st.sampled_from([(100, 60, 90, 70), (120, 80, 17, 33), (80, 50, 130, 100)]))
    perspective = data.draw(st.sampled_from([None, TILTED]))
    config = RoiConfig(perspective=perspective, rotate_deg=degrees, crop=crop)
    try:
        region = Roi(config).take(scene())
    except ImageError:
        assume(False)  # turned so, it reaches beyond the frame
    assert isinstance(region, Region)
    place = x * region.map.width_px, y * region.map.height_px
    there = region.map.point_to_frame(*place)

    assert region.map.point_to_region(*there) == pytest.approx(place, abs=1e-3)
    assert 0 <= there[0] <= WIDTH
    assert 0 <= there[1] <= HEIGHT


@given(
    x=st.integers(15, 75),
    y=st.integers(15, 55),
    degrees=st.sampled_from([0, 7, 30, 90, 180, 201, 270, 355]),
    tilted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_dot_seen_in_the_region_is_told_where_it_is_in_the_frame(x: int, y: int, degrees: int, tilted: bool) -> None:
    """Not only the numbers agree: the pixels do, within half a pixel."""
    steps: dict[str, Any] = {"rotate_deg": degrees, "crop": (110, 70, 90, 70)}
    if tilted:
        steps["perspective"] = TILTED
    place = region_of(scene(), **steps).map
    true = place.point_to_frame(x, y)
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    spot = 200 * np.exp(-((columns - true[0]) ** 2 + (rows - true[1]) ** 2) / 8)
    frame = np.repeat(spot.astype(np.uint8)[:, :, None], 3, axis=2)
    seen = region_of(frame, **steps).image[:, :, 0].astype(float)
    rows, columns = np.indices(seen.shape) + 0.5
    centre = (columns * seen).sum() / seen.sum(), (rows * seen).sum() / seen.sum()

    assert place.point_to_frame(*centre) == pytest.approx(true, abs=0.5)


def test_a_box_comes_back_as_the_upright_box_around_it() -> None:
    """Exactly for a crop and a quarter turn; cut off at the frame's edge."""
    cropped = region_of(scene(), crop=(30, 20, 100, 50)).map
    turned = region_of(scene(), rotate_deg=90, crop=(10, 20, 100, 50)).map

    assert cropped.box_to_frame((5, 6, 20, 10)) == pytest.approx((35, 26, 20, 10))
    # 90 degrees clockwise: what is up in the region was left in the frame.
    assert turned.box_to_frame((5, 6, 20, 10)) == pytest.approx((26, HEIGHT - 35, 10, 20))
    assert cropped.box_to_frame((-50, -50, 500, 500)) == pytest.approx((0, 0, WIDTH, HEIGHT))


def test_a_turned_box_holds_its_corners() -> None:
    """Nothing of what the model marked lies outside of the box that is drawn."""
    place = region_of(scene(), perspective=TILTED, rotate_deg=20, crop=(80, 40, 120, 100)).map
    x, y, width, height = place.box_to_frame((10, 20, 50, 30))

    for corner in ((10, 20), (60, 20), (60, 50), (10, 50)):
        across, down = place.point_to_frame(*corner)
        assert x - 1e-6 <= across <= x + width + 1e-6
        assert y - 1e-6 <= down <= y + height + 1e-6


@pytest.mark.parametrize("steps", [{}, {"rotate_deg": 90}, {"perspective": TILTED}, {"rotate_deg": 20}])
def test_a_heatmap_comes_back_to_its_place_in_the_frame(steps: dict[str, Any]) -> None:
    """Hottest where the region's hot cell lies, nothing outside of the region."""
    region = region_of(scene(), **{"crop": (60, 40, 140, 140), **steps})
    heatmap = np.zeros((7, 7), dtype=np.float32)
    heatmap[2, 4] = 1
    there = region.map.heatmap_to_frame(heatmap)
    scale = there.shape[1] / WIDTH
    row, column = np.unravel_index(there.argmax(), there.shape)
    x, y = region.map.point_to_frame(4.5 * 20, 2.5 * 20)

    assert there.dtype == np.float32
    assert there.shape == (round(HEIGHT * scale), round(WIDTH * scale))
    assert ((column + 0.5) / scale, (row + 0.5) / scale) == pytest.approx((x, y), abs=2 / scale)
    assert there.max() == pytest.approx(1, abs=0.1)
    outside = np.ones(there.shape, dtype=np.uint8)
    cv2.fillConvexPoly(outside, np.round(np.array(region.map.outline()) * scale).astype(np.int32), 0)
    outside = cv2.erode(outside, np.ones((3, 3), np.uint8), borderValue=1)
    assert not there[outside > 0].any()


def test_a_heatmap_of_the_whole_frame_stays_as_it_was() -> None:
    """Edge to edge, at a finer resolution."""
    heatmap = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    there = region_of(scene()).map.heatmap_to_frame(heatmap)
    expected = cv2.resize(heatmap, there.shape[::-1], interpolation=cv2.INTER_LINEAR)

    assert there == pytest.approx(expected, abs=0.03)


# What is refused


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({"crop": (350, 0, 60, 60)}, "roi.crop: got [350, 0, 60, 60], which reaches beyond the 400 x 300 px"),
        ({"rotate_deg": 90, "crop": (0, 0, 301, 60)}, "reaches beyond the 300 x 400 px"),
        ({"rotate_deg": 45}, "the region's corners"),
        ({"perspective": WIDER}, "reach beyond the frame of 400 x 300 px"),
        ({"crop": (0, 0, 7, 60)}, "the region has 7 x 60 px, expected 8 or more"),
        ({"crop": (0, 0, 50, 60), "mask": MaskConfig(polygons=(((0, 0), (51, 0), (51, 60)),))},
         "roi.mask.polygons[0]: reaches to 51, 60 of a region of 50 x 60 px"),
        ({"crop": (0, 0, 50, 60), "mask": MaskConfig(polygons=(((0, 0), (50, 0), (50, 60), (0, 60)),), keep=False)},
         "roi.mask: it leaves nothing to be seen"),
    ],
)  # fmt: skip
def test_a_region_that_does_not_fit_the_frame_is_refused_at_the_start_or_is_an_error(
    steps: dict[str, Any], words: str
) -> None:
    """A region that hangs over the edge would show the model pixels that nobody took."""
    assert words in refusal(**steps)


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        (((0, 0), (100, 0), (0, 100), (100, 100)), "are no quadrilateral"),
        (((0, 0), (50, 50), (100, 100), (0, 100)), "are no quadrilateral"),
        (((0, 0), (100, 0), (100, 100), (80, 20)), "are no quadrilateral"),
        (((0, 0), (0, 0), (0, 0), (0, 0)), "are no quadrilateral"),
        (((0, 0), (0, 100), (100, 100), (100, 0)), "run against the clock, which would mirror the part"),
        (((0, 0), (100, 0), (100, 100)), "expected four of the form [x, y]"),
        (((0, 0), (100, 0), (100, 100), (0,)), "expected four of the form [x, y]"),
        (((0, 0), (401, 0), (401, 100), (0, 100)), "width_px: got 200, but that side is 401 px long in the frame"),
    ],
)
def test_corners_that_are_no_plane_seen_at_an_angle_are_refused(corners: Any, words: str) -> None:
    """Crossed, hollow, flat, mirrored, or so much larger that pixels would be skipped."""
    with pytest.raises(ConfigError) as caught:
        PerspectiveConfig(corners=corners, width_px=200, height_px=200)

    assert words in caught.value.message


def test_a_region_that_shows_nothing_is_an_error_even_where_the_frame_shows_something() -> None:
    """Saturated where the part is; the mask's grey around it is no picture either."""
    image = scene()
    image[50:150, 50:150] = 255
    polygon = ((20, 20), (80, 20), (80, 80), (20, 80))

    for mask in (None, MaskConfig(polygons=(polygon,))):
        with pytest.raises(ImageError, match=r"every pixel of the region has the same value \[255, 255, 255\]"):
            region_of(image, crop=(50, 50, 100, 100), mask=mask)


def test_only_what_is_seen_must_show_something() -> None:
    """One pixel that is seen and differs is enough; one under the mask is not."""
    image = np.full((100, 100, 3), 255, dtype=np.uint8)
    image[0, 0] = 0
    polygon = ((20, 20), (80, 20), (80, 80), (20, 80))
    with pytest.raises(ImageError, match="same value"):
        region_of(image, mask=MaskConfig(polygons=(polygon,)))
    image[47, 53] = 254

    assert tuple(region_of(image, mask=MaskConfig(polygons=(polygon,))).image[47, 53]) == (254, 254, 254)


@pytest.mark.parametrize("image", [None, np.zeros((3, 3), np.uint8), np.zeros((0, 5, 3), np.uint8)])
def test_what_is_no_picture_is_an_error(image: Any) -> None:
    """A driver's mistake."""
    with pytest.raises(ImageError):
        Roi(RoiConfig()).take(image)


def test_frames_of_another_size_are_fitted_anew() -> None:
    """A camera that comes back with another mode: judged where it fits, refused where it does not."""
    roi = Roi(RoiConfig(crop=(10, 10, 100, 100)), frame_size=(WIDTH, HEIGHT))
    smaller = roi.take(textured(200, 150))

    assert isinstance(smaller, Region)
    assert (smaller.map.frame_width_px, smaller.map.frame_height_px) == (200, 150)
    with pytest.raises(ImageError, match=r"reaches beyond the 90 x 90 px"):
        roi.take(textured(90, 90))


def test_the_size_is_known_before_the_first_frame_where_the_configuration_says_it() -> None:
    """Then a region that does not fit stops the start, and not every part."""
    assert configured_size(ArgusCameraConfig(kind="argus", width_px=640, height_px=480)) == (640, 480)
    assert configured_size(OpenCvCameraConfig(kind="opencv", source="0")) is None
