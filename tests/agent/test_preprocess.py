"""From a picture to the graph's input: the one implementation, held against plain arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import InputSpec, Placement, Preprocessor, fit
from agent.bundle.manifest import Resize
from agent.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRETCH = InputSpec(width_px=64, height_px=48)
LETTERBOX = InputSpec(width_px=64, height_px=48, resize="letterbox", pad_value=77)


def noise(width: int, height: int, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def area_weights(length: int, target: int) -> NDArray[np.float64]:
    """(target, length): how much of each output pixel's area each input pixel covers."""
    edges = np.arange(target + 1) * length / target
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(overlap, 0, 1) * target / length)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "got NoneType"),
        ([[1, 2, 3]], "got list"),
        (np.zeros((48, 64), dtype=np.uint8), r"got \(48, 64\) uint8"),
        (np.zeros((48, 64, 4), dtype=np.uint8), r"got \(48, 64, 4\) uint8"),
        (np.zeros((48, 64, 1), dtype=np.uint8), r"got \(48, 64, 1\) uint8"),
        (np.zeros((1, 48, 64, 3), dtype=np.uint8), r"got \(1, 48, 64, 3\) uint8"),
        (np.zeros((48, 64, 3), dtype=np.uint16), r"got \(48, 64, 3\) uint16"),
        (np.zeros((48, 64, 3), dtype=np.float32), r"got \(48, 64, 3\) float32"),
        (np.zeros((0, 64, 3), dtype=np.uint8), "has no pixels"),
        (np.zeros((48, 0, 3), dtype=np.uint8), "has no pixels"),
    ],
)
def test_what_is_no_colour_picture_is_refused(image: Any, words: str) -> None:
    """Grey, alpha and 16 bit are made into BGR where pictures are read; here only BGR is right."""
    with pytest.raises(ImageError, match=words):
        fit(image, STRETCH)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (20_000, 1), (1, 33_000), (3, 2)])
def test_a_tiny_or_thin_picture_is_fitted(size: tuple[int, int], resize: Resize) -> None:
    """A picture of one colour keeps it, whatever its shape."""
    width, height = size
    spec = InputSpec(width_px=64, height_px=48, resize=resize, pad_value=200)

    fitted = fit(np.full((height, width, 3), (10, 20, 30), dtype=np.uint8), spec)

    colours = {tuple(colour) for colour in fitted.reshape(-1, 3).tolist()}
    assert colours - {(200, 200, 200)} == {(30, 20, 10)}


def test_a_108_megapixel_picture_is_fitted() -> None:
    """The largest area camera on the market is not an error."""
    image = np.zeros((9000, 12_000, 3), dtype=np.uint8)
    image[4500:] = 255

    fitted = fit(image, STRETCH)

    assert (fitted[:23] == 0).all()
    assert (fitted[25:] == 255).all()


@pytest.mark.parametrize("spec", [STRETCH, LETTERBOX])
def test_a_picture_of_the_inputs_size_only_changes_colour_order(spec: InputSpec) -> None:
    """Not a single value is interpolated."""
    image = noise(64, 48)

    np.testing.assert_array_equal(fit(image, spec), image[:, :, ::-1])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_whole_halvings_average_blocks(factor: int) -> None:
    """Each output pixel is the mean of its block; rounding once per halving, half up, as OpenCV does it."""
    image = noise(64 * factor, 48 * factor)

    expected = image.astype(np.uint32)
    for _ in range(factor.bit_length() - 1):
        quads = expected.reshape(expected.shape[0] // 2, 2, -1, 2, 3).sum(axis=(1, 3))
        expected = (quads + 2) // 4

    np.testing.assert_array_equal(fit(image, STRETCH), expected[:, :, ::-1])


@pytest.mark.parametrize("size", [(100, 75), (127, 95), (67, 91), (201, 97), (333, 49)])
def test_other_sizes_are_averaged_by_area(size: tuple[int, int]) -> None:
    """Against the definition in float64, to the rounding of one step."""
    image = noise(*size)
    across, down = area_weights(size[0], 64), area_weights(size[1], 48)

    expected = np.einsum("yh,xw,hwc->yxc", down, across, image.astype(np.float64), optimize=True)

    assert np.abs(fit(image, STRETCH)[:, :, ::-1] - expected).max() <= 0.51


@pytest.mark.parametrize("size", [(640, 480), (1280, 960), (1000, 750), (1288, 964)])
def test_camera_sizes_are_close_to_one_average_over_the_area(size: tuple[int, int]) -> None:
    """Halving first is quicker; on a picture as cameras give it, it changes next to nothing."""
    y, x = np.mgrid[: size[1], : size[0]]
    wave = 127 + 60 * np.sin(x / size[0] * 40) + 60 * np.cos(y / size[1] * 30)
    image = np.repeat(wave[:, :, None], 3, axis=2).astype(np.uint8)
    across, down = area_weights(size[0], 64), area_weights(size[1], 48)

    expected = np.einsum("yh,xw,hwc->yxc", down, across, image.astype(np.float64), optimize=True)

    difference = fit(image, STRETCH)[:, :, ::-1] - expected
    assert np.abs(difference).max() < 3
    assert np.abs(difference).mean() < 1


def test_growing_interpolates_between_pixel_centres() -> None:
    """Bilinear with half-pixel centres, edges held: the rule of OpenCV, PyTorch and ONNX (half_pixel)."""
    spec = InputSpec(width_px=8, height_px=8)
    image = np.full((2, 2, 3), 0, dtype=np.uint8)
    image[:, 1] = 200

    row = fit(image, spec)[0, :, 0]

    np.testing.assert_array_equal(row, [0, 0, 25, 75, 125, 175, 200, 200])


@pytest.mark.parametrize(("width", "height"), [(640, 480), (200, 200), (640, 20), (333, 480)])
def test_no_line_of_one_pixel_is_skipped(width: int, height: int) -> None:
    """A scratch one pixel wide shows wherever it runs; plain interpolation would lose most of them."""
    for x in range(width):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[:, x] = 255

        assert fit(image, STRETCH).max() > 0, f"a line at x = {x} is lost"


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    resize=st.sampled_from(["stretch", "letterbox"]),
)
def test_a_plain_picture_stays_plain(width: int, height: int, colour: tuple[int, int, int], resize: Resize) -> None:
    """No overshoot, no bleeding of the padding, at any size; channels in RGB order."""
    spec = InputSpec(width_px=64, height_px=48, resize=resize, pad_value=128)
    tensor, at = Preprocessor(spec)(np.full((height, width, 3), colour, dtype=np.uint8))

    inside = tensor[0, at.top_px : at.top_px + at.height_px, at.left_px : at.left_px + at.width_px]
    outside = np.ones(tensor.shape[1:3], dtype=bool)
    outside[at.top_px : at.top_px + at.height_px, at.left_px : at.left_px + at.width_px] = False

    assert (inside == colour[::-1]).all()
    assert (tensor[0][outside] == 128).all()


@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_a_letterbox_keeps_the_aspect_ratio_and_touches_an_edge(width: int, height: int) -> None:
    """To the whole pixel, centred."""
    _, at = Preprocessor(LETTERBOX)(np.broadcast_to(np.uint8(0), (height, width, 3)))

    assert at.width_px == 64 or at.height_px == 48
    assert abs(at.width_px - max(width * min(64 / width, 48 / height), 1)) <= 0.5
    assert abs(at.height_px - max(height * min(64 / width, 48 / height), 1)) <= 0.5
    assert abs((64 - at.width_px) / 2 - at.left_px) <= 0.5
    assert abs((48 - at.height_px) / 2 - at.top_px) <= 0.5


@given(
    size=st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
    corners=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    resize=st.sampled_from(["stretch", "letterbox"]),
)
def test_a_box_finds_its_way_back(
    size: tuple[int, int], corners: tuple[float, float, float, float], resize: Resize
) -> None:
    """Picture to input by plain arithmetic, and back by the placement: the box is where the defect is."""
    width, height = size
    _, at = Preprocessor(InputSpec(width_px=64, height_px=48, resize=resize))(
        np.broadcast_to(np.uint8(0), (height, width, 3))
    )
    left, right = sorted([corners[0] * width, corners[1] * width])
    top, bottom = sorted([corners[2] * height, corners[3] * height])
    in_input = (
        at.left_px + left * at.width_px / width,
        at.top_px + top * at.height_px / height,
        (right - left) * at.width_px / width,
        (bottom - top) * at.height_px / height,
    )

    expected = (left, top, right - left, bottom - top)
    assert at.to_image(in_input) == pytest.approx(expected, abs=1e-6 * max(size))


def test_a_box_is_cut_off_at_the_pictures_edges() -> None:
    """A detector may point into the padding; a box outside of the picture helps nobody."""
    _, at = Preprocessor(LETTERBOX)(noise(640, 160))

    assert at.to_image((-10, -10, 100, 100)) == (0, 0, 640, 160)
    assert at.to_image((0, 0, 64, 5)) == (0, 0, 640, 0)


def test_a_map_loses_its_padding() -> None:
    """A heatmap must lie over the picture that it explains: a hot top left corner stays there."""
    _, at = Preprocessor(LETTERBOX)(noise(200, 75))
    assert (at.top_px, at.height_px) == (12, 24)
    heat = np.zeros((48, 64), dtype=np.float32)
    heat[12:24, :32] = 1

    over_picture = at.map_to_image(heat, LETTERBOX)

    assert over_picture.shape == heat.shape
    assert over_picture.dtype == np.float32
    assert (over_picture[1:23, :31] == 1).all()
    assert (over_picture[25:] == 0).all()
    assert (over_picture[:, 33:] == 0).all()


def test_a_map_of_a_stretched_picture_stays_as_it_is() -> None:
    """It covers the picture already."""
    _, at = Preprocessor(STRETCH)(noise(200, 75))
    heat = np.random.default_rng(0).random((6, 8), dtype=np.float32)

    np.testing.assert_array_equal(at.map_to_image(heat, STRETCH), heat)


def test_the_tensor_is_reused_and_fits_the_graph() -> None:
    """Allocated at open, not per frame; who keeps it must copy it, as its docstring says."""
    preprocess = Preprocessor(STRETCH)

    first, _ = preprocess(noise(100, 100))
    second, _ = preprocess(noise(300, 200, seed=1))

    assert first is second
    assert first.shape == (1, 48, 64, 3)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous


def test_a_picture_leaves_nothing_behind_for_the_next() -> None:
    """In a letterbox a wide picture after a high one must not show its rest in the padding."""
    preprocess = Preprocessor(LETTERBOX)
    preprocess(noise(48, 480))
    preprocess(noise(480, 48))
    reused, _ = preprocess(noise(300, 200))

    np.testing.assert_array_equal(reused[0], fit(noise(300, 200), LETTERBOX))


def test_training_and_device_see_the_same() -> None:
    """`fit` for training and `Preprocessor` on the device: one result, own memory."""
    image = noise(640, 480)
    device = Preprocessor(STRETCH)

    fitted = fit(image, STRETCH)

    np.testing.assert_array_equal(fitted, device(image)[0][0])
    assert fitted is not fit(image, STRETCH)


def test_the_picture_is_only_read() -> None:
    """Evidence is written from the same array later; cameras may hand out read-only memory and views."""
    image = noise(333, 222)
    before = image.copy()
    image.flags.writeable = False

    fit(image, STRETCH)

    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(fit(image[::-1, ::2], STRETCH), fit(image[::-1, ::2].copy(), STRETCH))


def test_a_placement_is_a_value() -> None:
    """Equal pictures give equal placements; the preprocessor pads anew only when they differ."""
    _, first = Preprocessor(LETTERBOX)(noise(100, 80))
    _, second = Preprocessor(LETTERBOX)(noise(100, 80, seed=5))

    assert isinstance(first, Placement)
    assert first == second
