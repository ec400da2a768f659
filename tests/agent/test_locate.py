"""The part is found where it lies, or a person looks: never a region of something else."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.bundle import Bundle
from agent.config import LocateConfig, RoiConfig
from agent.errors import ConfigError, ImageError
from agent.roi import NotFound, Region, Roi
from tests.kit.bundles import make_bundle
from tests.kit.pictures import textured
from tests.kit.scenes import PART_AT, PART_SIZE, moved_scene, scene, template_of

MIDDLE = PART_AT[0] + PART_SIZE[0] / 2, PART_AT[1] + PART_SIZE[1] / 2


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("locate") / "part.png"
    path.write_bytes(template_of(scene()))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


def finding(template: Path, **keys: Any) -> Roi:
    """A region around the part, 20 px wider on each side, that goes with it."""
    crop = PART_AT[0] - 20, PART_AT[1] - 20, PART_SIZE[0] + 40, PART_SIZE[1] + 40
    return Roi(RoiConfig(locate=LocateConfig(template=template, at=PART_AT, **keys), crop=crop))


def found(roi: Roi, image: np.ndarray[Any, np.dtype[np.uint8]]) -> Region:
    region = roi.take(image)
    assert isinstance(region, Region), region
    assert region.located is not None
    return region


def missed(roi: Roi, image: np.ndarray[Any, np.dtype[np.uint8]]) -> NotFound:
    region = roi.take(image)
    assert isinstance(region, NotFound)
    return region


@given(x=st.integers(-90, 90), y=st.integers(-60, 60))
@example(x=0, y=0)
@settings(max_examples=20, deadline=None)
def test_the_region_goes_with_the_part(template: Path, x: int, y: int) -> None:
    """To the pixel, in other light and with noise; pixels are copied, not interpolated."""
    image = moved_scene((x, y))
    region = found(finding(template), image)
    left, top = PART_AT[0] - 20 + x, PART_AT[1] - 20 + y

    assert region.located is not None
    assert region.located.shift_px == pytest.approx((x, y))
    assert region.located.score > 0.9
    assert np.array_equal(region.image, image[top : top + 100, left : left + 120])
    assert region.map.box_to_frame((20, 20, *PART_SIZE)) == (PART_AT[0] + x, PART_AT[1] + y, *PART_SIZE)


@given(degrees=st.floats(-8, 8), x=st.integers(-60, 60), y=st.integers(-40, 40))
@settings(max_examples=20, deadline=None)
def test_a_turned_part_is_turned_back(template: Path, degrees: float, x: int, y: int) -> None:
    """Within a quarter of a degree and a pixel; what the model sees looks like the reference."""
    region = found(finding(template, turn_deg=8), moved_scene((x, y), degrees))
    there = region.map.point_to_frame(60, 50)

    assert region.located is not None
    assert region.located.turn_deg == pytest.approx(degrees, abs=0.25)
    assert there == pytest.approx((MIDDLE[0] + x, MIDDLE[1] + y), abs=1)
    reference = cv2.cvtColor(scene()[PART_AT[1] :, PART_AT[0] :][:60, :80], cv2.COLOR_BGR2GRAY)
    seen = cv2.cvtColor(region.image[20:80, 20:100], cv2.COLOR_BGR2GRAY)
    assert np.corrcoef(reference[5:-5, 5:-5].ravel(), seen[5:-5, 5:-5].ravel())[0, 1] > 0.95


def test_a_part_that_is_not_there_is_told_with_its_score(template: Path) -> None:
    """The background alone: never the most similar piece of it."""
    image = moved_scene()
    y, x = PART_AT[1], PART_AT[0]
    image[y : y + PART_SIZE[1], x : x + PART_SIZE[0]] = textured(*PART_SIZE)
    region = missed(finding(template), image)

    assert region.reason.startswith("the part was not found: score ")
    assert region.reason.endswith(" under 0.7")
    assert region.score < 0.7


def test_a_part_that_lies_out_of_bounds_is_told(template: Path) -> None:
    """Found well, but farther from its place than allowed."""
    roi = finding(template, max_shift_px=30)
    region = missed(roi, moved_scene((24, 19)))

    assert "the part was found out of bounds: score " in region.reason
    assert "shifted by +24, +19 px, expected at most 30 px" in region.reason
    assert found(roi, moved_scene((20, 20))).located is not None


def test_a_part_whose_region_would_hang_over_the_edge_is_told(template: Path) -> None:
    """It is there, but not all that the model is to see of it."""
    region = missed(finding(template), moved_scene((0, -95)))

    assert "its region reaches beyond the picture: score " in region.reason
    assert "shifted by +0, -95 px" in region.reason


def test_a_part_outside_of_the_search_area_is_not_found(template: Path) -> None:
    """`search` holds: what lies elsewhere is another part."""
    roi = finding(template, search=(130, 90, 120, 100))

    assert found(roi, moved_scene((10, 10))).located is not None
    assert "not found" in missed(roi, moved_scene((60, 0))).reason


def test_a_part_turned_farther_than_allowed_is_told(template: Path) -> None:
    """The search looks a little beyond, to tell this from a part that is not there."""
    region = finding(template, turn_deg=5).take(moved_scene((5, 5), 6.2))

    assert isinstance(region, NotFound)
    assert region.reason.startswith(("the part was found out of bounds: ", "the part was not found: "))


def test_two_parts_in_the_search_area_are_told(template: Path) -> None:
    """Nobody knows which one the trigger was for."""
    image = moved_scene((-100, 0))
    x, y = PART_AT
    image[y + 60 : y + 130, x + 80 : x + 170] = image[y - 5 : y + 65, x - 105 : x - 15]
    region = missed(finding(template), image)

    assert "the part was found in two places that look alike: score " in region.reason
    assert "px from there" in region.reason


def _label() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A plane of thin lines, some bright spots on it, tilted: repeated structure, little of it."""
    rng = np.random.default_rng(3)
    plane = np.full((300, 450), 35, dtype=np.uint8)
    plane[::30] = plane[:, ::30] = 52
    plane += rng.integers(0, 5, plane.shape, dtype=np.uint8)
    plane[45:63, 68:120], plane[210:255, 315:345] = 240, 200
    turned = cv2.warpAffine(plane, cv2.getRotationMatrix2D((225, 150), -9, 1), (450, 300), borderValue=8)
    return np.repeat(np.asarray(turned)[:, :, None], 3, axis=2)


LABEL = _label()


@pytest.mark.parametrize("seed", range(12))
def test_in_the_reference_a_template_is_found_where_it_was_cut_out_or_not_at_all(tmp_path: Path, seed: int) -> None:
    """However poor it is: what looks alike when it is small, or in part, is not taken for it."""
    rng = np.random.default_rng(seed)
    x, y, width, height = (int(rng.integers(*span)) for span in ((0, 300), (0, 180), (40, 150), (40, 120)))
    (tmp_path / "t.png").write_bytes(bytes(cv2.imencode(".png", LABEL[y : y + height, x : x + width])[1]))
    locate = LocateConfig(template=tmp_path / "t.png", at=(x, y), turn_deg=8)
    region = Roi(RoiConfig(locate=locate, crop=(225, 150, 8, 8))).take(LABEL)
    if isinstance(region, Region):
        assert region.located is not None
        assert region.located.shift_px == pytest.approx((0, 0))
        assert abs(region.located.turn_deg) < 0.25
    else:
        assert "look alike" in region.reason


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_search_area_is_no_part(template: Path, level: int) -> None:
    """OpenCV's scores are noise where nothing varies."""
    image = np.full((300, 400, 3), level, dtype=np.uint8)
    image[0, 0] ^= 1

    assert missed(finding(template), image).score <= 0.1


@given(seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_no_part(template: Path, seed: int) -> None:
    """A picture without the part, whatever it shows."""
    image = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)

    assert missed(finding(template, turn_deg=4), image).score < 0.5


@pytest.mark.parametrize("side", [9, 17, 41, 83, 164])
def test_templates_of_any_size_are_found(tmp_path: Path, side: int) -> None:
    """From the smallest, searched at full size, to one that is halved three times; fine texture, odd places."""
    image = textured(700, 500, seed=3)
    at = 301, 203
    (tmp_path / "t.png").write_bytes(bytes(cv2.imencode(".png", image[203 : 203 + side, 301 : 301 + side])[1]))
    roi = Roi(RoiConfig(locate=LocateConfig(template=tmp_path / "t.png", at=at), crop=(301, 203, side, side)))
    for x, y in ((0, 0), (-300, -200), (233, 131), (-77, 50), (1, 1)):
        region = found(roi, np.roll(image, (y, x), axis=(0, 1)))

        assert region.located is not None
        assert region.located.shift_px == pytest.approx((x, y))


def test_the_templates_file_is_recorded(template: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which picture the parts were searched by: in the log, and for whoever asks."""
    digest = hashlib.sha256(template.read_bytes()).hexdigest()
    with caplog.at_level(logging.INFO, logger="agent.roi"):
        assert finding(template).template_sha256 == digest
        assert Roi(RoiConfig(crop=(0, 0, 10, 10))).template_sha256 is None
    fields = [record.__dict__["fields"] for record in caplog.records]

    assert [(each["template"], each["template_sha256"]) for each in fields] == [(str(template), digest)]


# What is refused at the start


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"", "is no picture"),
        (b"\x89PNG\r\n\x1a\nbroken", "is no picture"),
        (bytes(cv2.imencode(".png", textured(7, 30))[1]), "7 x 30 px, expected 8 px or more each way"),
        (bytes(cv2.imencode(".png", np.full((30, 30, 3), 7, np.uint8))[1]), "shows nothing that could be found"),
    ],
)
def test_a_template_that_is_none_is_refused(tmp_path: Path, data: bytes | None, words: str) -> None:
    """With its path, and what to do."""
    path = tmp_path / "t.png"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        finding(path)

    assert f"roi.locate.template: {path}: {words}" in caught.value.message
    assert caught.value.hint is not None


def test_a_template_larger_than_its_search_area_is_refused_without_a_frame(template: Path) -> None:
    """Nobody needs a camera to see that."""
    with pytest.raises(ConfigError, match=r"80 x 60 px, which is larger than its search area of 100 x 59 px"):
        finding(template, search=(0, 0, 100, 59))


def test_what_does_not_fit_the_frame_is_refused_at_the_start_or_is_an_error(template: Path) -> None:
    """The same words, whenever it is noticed."""
    config = LocateConfig(template=template, at=PART_AT, search=(350, 0, 100, 100))
    small = Roi(RoiConfig(locate=LocateConfig(template=template, at=(0, 0))))
    with pytest.raises(ConfigError, match=r"roi.locate.search: got \[350, 0, 100, 100\], which reaches beyond"):
        Roi(RoiConfig(locate=config), frame_size=(400, 300))
    with pytest.raises(ImageError, match=r"roi.locate.search: got \[350, 0, 100, 100\], which reaches beyond"):
        Roi(RoiConfig(locate=config)).take(scene())
    with pytest.raises(ImageError, match=r"larger than its search area of 64 x 48 px"):
        small.take(textured())


@pytest.mark.parametrize("keys", [{"at": (1, 2, 3)}, {"search": (1, 2, 3)}, {"search": (1, 2, 0, 4)}])
def test_places_of_another_form_are_refused(keys: dict[str, Any]) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match=r"roi\.locate\.(at|search): got \["):
        LocateConfig(template=Path("t.png"), **{"at": (0, 0), **keys})
