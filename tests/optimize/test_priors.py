"""The priors of well-known detectors: published counts and sizes; the torchvision tests hold every number."""

from __future__ import annotations

import pytest

from optimize.quantize.priors import count_of, retinanet_levels, ssd300_levels, ssdlite_levels, yolox_levels


def test_counts_are_the_published_ones() -> None:
    """8,732 for SSD300 and 8,400 for YOLOX at 640 are in their papers."""
    assert count_of(ssd300_levels()) == 8732
    assert count_of(ssdlite_levels(320, 320)) == 3234
    assert count_of(yolox_levels(640, 640)) == 8400
    assert count_of(retinanet_levels(320, 320)) == 9 * (1600 + 400 + 100 + 25 + 9)


def test_sizes_of_ssd_are_scales_and_ratios_of_the_picture() -> None:
    """The first map: 7 % of 300 px, the geometric mean with the next map's 15 %, and twice as wide as high."""
    sizes = ssd300_levels()[0].sizes_px

    assert sizes[0] == pytest.approx((21, 21))
    assert sizes[1] == pytest.approx(((0.07 * 0.15) ** 0.5 * 300,) * 2)
    assert sizes[2] == pytest.approx((21 * 2**0.5, 21 / 2**0.5))
    assert sizes[3] == pytest.approx(sizes[2][::-1])
    assert max(max(size) for level in ssd300_levels() for size in level.sizes_px) == 300  # cut to the picture


def test_sides_of_retinanet_are_even_whole_pixels() -> None:
    """Half sides were rounded before they were put to the left and right of the place."""
    levels = retinanet_levels(320, 256)

    assert [(level.rows, level.columns) for level in levels] == [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    assert levels[-1].step_x_px == 106  # 320 over 3 places, rounded down
    assert levels[0].sizes_px[3:6] == ((32, 32), (40, 40), (50, 50))
    assert all(side % 2 == 0 for level in levels for size in level.sizes_px for side in size)


def test_cells_that_are_cut_off_at_the_edge_do_not_exist() -> None:
    """A picture of 100 pixels has twelve whole cells of eight."""
    assert [(level.columns, level.rows) for level in yolox_levels(100, 64)] == [(12, 8), (6, 4), (3, 2)]
