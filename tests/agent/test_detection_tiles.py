"""Large pictures: every pixel is looked at, a defect on a seam is one finding, and a tile that fails fails the part."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import Bundle, Tensor, Tiling
from agent.bundle.tiles import MAX_TILES, Seen, Tile, merge_tiles, tiles_of
from agent.config import EngineConfig, PolicyConfig
from agent.engines import Engine, open_engine
from agent.errors import EngineError, ImageError
from agent.inspection import Finding, Inspector
from agent.verdict import Decision, policy_from_config
from tests.kit.frames import frame_of
from tests.kit.spots import SPEC, dark_picture, make_detector, plant, spot_inspector

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT, TILE = 250, 170, 96


def tiled(path: Path, *, with_whole: bool = False, resize: str = "stretch") -> Bundle:
    tiling = Tiling(tile_px=TILE, overlap=0.25, with_whole=with_whole)
    return make_detector(path, side=96, resize=resize, detection=dataclasses.replace(SPEC, tiling=tiling))


def seen_at(inspector: Inspector, box: tuple[int, int, int, int]) -> tuple[Finding, ...]:
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", box, 0.8)
    seen = inspector.inspect(frame_of(image))
    assert seen.fault is None
    return seen.findings


# Bad input


class FailsAt:
    """A real engine that breaks at its n-th call."""

    kind = "scripted"
    name = "scripted"

    def __init__(self, engine: Engine, call: int) -> None:
        self._engine, self._left = engine, call

    def infer(self, tensor: Tensor) -> Mapping[str, NDArray[np.float32]]:
        self._left -= 1
        if self._left < 0:
            raise EngineError("the device is gone")
        return self._engine.infer(tensor)

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("call", [0, 3, 11])
def test_a_tile_that_fails_fails_the_part(tmp_path: Path, call: int) -> None:
    """The last of twelve tiles too: what nobody looked at is not good."""
    bundle = tiled(tmp_path / "t.defect")
    inspector = Inspector(bundle, FailsAt(open_engine(bundle, EngineConfig()), call))

    seen = inspector.inspect(frame_of(dark_picture(WIDTH, HEIGHT)))

    assert seen.fault is not None
    assert (seen.fault.stage, seen.fault.reason, seen.findings) == ("infer", "the device is gone", ())
    assert policy_from_config(PolicyConfig(), bundle.manifest).judge(seen).decision is Decision.ERROR


def test_a_picture_of_too_many_tiles_is_refused() -> None:
    """It would hold the line up; the part gets an error that says so."""
    with pytest.raises(ImageError, match=f"expected at most {MAX_TILES}"):
        tiles_of(16_000, 12_000, Tiling(tile_px=128))


def test_a_blank_large_picture_is_a_fault(tmp_path: Path) -> None:
    """As a small one: a dead sensor shows no part."""
    seen = spot_inspector(tiled(tmp_path / "t.defect")).inspect(frame_of(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))

    assert seen.fault is not None
    assert "blank" in seen.fault.reason


def test_a_picture_of_another_form_is_a_fault(tmp_path: Path) -> None:
    """Also where tiles would be cut from it."""
    seen = spot_inspector(tiled(tmp_path / "t.defect")).inspect(frame_of(np.zeros((HEIGHT, WIDTH), np.uint8)))

    assert seen.fault is not None
    assert "(H, W, 3) uint8 BGR" in seen.fault.reason


# Where the tiles lie


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    tile=st.integers(96, 400),
    overlap=st.floats(0, 0.5),
    with_whole=st.booleans(),
)
def test_tiles_leave_no_pixel_out_and_overlap_enough(
    width: int, height: int, tile: int, overlap: float, with_whole: bool
) -> None:
    """Neighbours have the promised share in common, to the pixel that rounding costs; all are of one size."""
    tiling = Tiling(tile_px=tile, overlap=overlap, with_whole=with_whole)
    tiles = tiles_of(width, height, tiling)
    whole = Tile(x=0, y=0, width=width, height=height)

    if max(width, height) <= tile:
        assert tiles == (whole,)
        return
    assert (tiles[-1] == whole) == with_whole
    cut = tiles[:-1] if with_whole else tiles
    assert {(t.width, t.height) for t in cut} == {(min(width, tile), min(height, tile))}
    for starts, side in (({t.x for t in cut}, width), ({t.y for t in cut}, height)):
        places = sorted(starts)
        size = min(side, tile)
        assert (places[0], places[-1] + size) == (0, side)
        assert all(b - a <= size - int(size * overlap) + 1 for a, b in itertools.pairwise(places))
    assert len(cut) == len({t.x for t in cut}) * len({t.y for t in cut})


def test_without_tiling_the_whole_is_looked_at() -> None:
    """Twelve megapixels or not."""
    assert tiles_of(4000, 3000, None) == (Tile(x=0, y=0, width=4000, height=3000),)


# Defects on seams


@pytest.mark.parametrize("with_whole", [False, True])
@pytest.mark.parametrize("size", [(14, 10), (6, 3), (60, 12), (12, 70), (110, 104)])
def test_a_defect_on_any_seam_is_one_finding(tmp_path: Path, size: tuple[int, int], with_whole: bool) -> None:
    """Smaller than the overlap, larger than it, and larger than a tile, at every place along both axes."""
    inspector = spot_inspector(tiled(tmp_path / "t.defect", with_whole=with_whole))
    width, height = size
    places = [(x, 60) for x in range(0, WIDTH - width + 1, 5)] + [(90, y) for y in range(0, HEIGHT - height + 1, 5)]
    steps = range(0, min(WIDTH - width, HEIGHT - height) + 1, 7)
    places += [(step * (WIDTH - width) // (HEIGHT - height), step) for step in steps]
    # The whole picture is seen with 2.6 px of it in one of the input, and joined boxes hold what it saw.
    tolerance = 5.2 if with_whole else 0.1

    for x, y in places:
        (found,) = seen_at(inspector, (x, y, width, height))
        assert found.class_name == "scratch"
        assert found.score == pytest.approx(0.8, abs=0.01)
        assert found.box_px is not None
        assert found.box_px == pytest.approx((x, y, width, height), abs=tolerance), (x, y)


def test_two_defects_side_by_side_over_a_seam_stay_two(tmp_path: Path) -> None:
    """Of different classes: a box never joins one of another class."""
    inspector = spot_inspector(tiled(tmp_path / "t.defect"))
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", (60, 40, 60, 12), 0.8)
    plant(image, "stain", (60, 54, 60, 12), 0.7)

    findings = inspector.inspect(frame_of(image)).findings

    assert [f.class_name for f in findings] == ["scratch", "stain"]
    assert [f.box_px for f in findings] == [(60, 40, 60, 12), (60, 54, 60, 12)]


def test_a_cut_box_with_the_higher_score_leaves_its_score_to_the_fuller_one() -> None:
    """The defect is told once, in its whole size, and no less surely than the surest look at it."""
    left, right = Tile(x=0, y=0, width=100, height=100), Tile(x=80, y=0, width=100, height=100)
    cut = Seen(boxes=np.array([[85.0, 10, 100, 30]]), scores=np.array([0.9], np.float32), classes=np.array([1]))
    full = Seen(boxes=np.array([[84.0, 10, 120, 30]]), scores=np.array([0.3], np.float32), classes=np.array([1]))

    merged = merge_tiles([(left, cut), (right, full)], 180, 100, SPEC, input_px=96)

    assert merged.boxes.tolist() == [[84, 10, 120, 30]]
    assert merged.scores.tolist() == pytest.approx([0.9])


def test_neighbours_that_no_edge_cuts_stay_apart() -> None:
    """Two small defects in the overlap, each seen by both tiles, are two."""
    left, right = Tile(x=0, y=0, width=100, height=100), Tile(x=60, y=0, width=100, height=100)
    both = Seen(
        boxes=np.array([[70.0, 10, 76, 16], [78.0, 10, 84, 16]]),
        scores=np.array([0.9, 0.8], np.float32),
        classes=np.array([1, 1]),
    )

    merged = merge_tiles([(left, both), (right, both)], 160, 100, SPEC, input_px=96)

    assert merged.boxes.tolist() == both.boxes.tolist()


def test_a_box_at_the_edge_of_the_picture_is_not_cut() -> None:
    """Nothing lies beyond that could complete it."""
    left, right = Tile(x=0, y=0, width=100, height=100), Tile(x=60, y=0, width=100, height=100)
    edge = Seen(boxes=np.array([[70.0, 0, 76, 16]]), scores=np.array([0.9], np.float32), classes=np.array([1]))
    other = Seen(boxes=np.array([[66.0, 0, 90, 40]]), scores=np.array([0.8], np.float32), classes=np.array([1]))

    assert len(merge_tiles([(left, edge), (right, other)], 160, 100, SPEC, input_px=96)) == 2


def test_small_defects_that_the_whole_picture_hides_are_seen_in_tiles(tmp_path: Path) -> None:
    """What tiling is for: three bright pixels of a 12 MP picture."""
    image = dark_picture(4000, 3000)
    plant(image, "scratch", (2222, 1111, 3, 3), 0.9)
    whole = make_detector(tmp_path / "whole.defect", side=96)
    tiling = Tiling(tile_px=288, overlap=0.1)
    parts = make_detector(tmp_path / "tiles.defect", side=96, detection=dataclasses.replace(SPEC, tiling=tiling))

    assert spot_inspector(whole).inspect(frame_of(image)).findings == ()
    assert len(spot_inspector(parts).inspect(frame_of(image)).findings) == 1


def test_what_was_left_out_in_a_tile_or_of_all_of_them_is_told() -> None:
    """The highest of both."""
    left, right = Tile(x=0, y=0, width=100, height=100), Tile(x=60, y=0, width=100, height=100)
    one = Seen(
        boxes=np.array([[10.0, 10, 20, 20]]), scores=np.array([0.9], np.float32), classes=np.array([1]), cut_at=0.3
    )
    other = Seen(boxes=np.array([[130.0, 0, 140, 10]]), scores=np.array([0.8], np.float32), classes=np.array([1]))
    least = dataclasses.replace(SPEC, max_findings=1)

    assert merge_tiles([(left, one), (right, other)], 160, 100, SPEC, input_px=96).cut_at == 0.3
    assert merge_tiles([(left, one), (right, other)], 160, 100, least, input_px=96).cut_at == pytest.approx(0.9)
