"""Calibration images: what is refused, what is warned of, and which are taken."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.bundle import InputSpec, fit
from optimize.calibration import FEW_IMAGES, MIN_IMAGES, FittedImages, pick_calibration, pick_evenly
from optimize.dataset import Dataset, read_dataset, read_image
from optimize.errors import DataError
from tests.kit.float_models import CLASSES, picture, write_parts


@pytest.fixture
def parts(tmp_path: Path) -> Dataset:
    return read_dataset(write_parts(tmp_path / "parts", {"calib": 6, "val": 4, "test": 4}))


def flat(folder: Path, count: int, *, seed: int = 5) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), picture(CLASSES[i % 3], rng))
    return folder


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Nothing was measured, so nothing may be built."""
    (tmp_path / "calib").mkdir()

    with pytest.raises(DataError, match="no image found"):
        pick_calibration(read_dataset(tmp_path / "calib").take("calib"))


@pytest.mark.parametrize("count", [1, MIN_IMAGES - 1])
def test_too_few_images_are_refused_with_how_many_are_wanted(tmp_path: Path, count: int) -> None:
    """One picture's ranges clip nearly every other picture."""
    dataset = read_dataset(flat(tmp_path / "calib", count))

    with pytest.raises(DataError) as caught:
        pick_calibration(dataset)

    assert f"got {count} calibration image" in caught.value.message
    assert f"at least {MIN_IMAGES}" in caught.value.message
    assert caught.value.hint is not None
    assert "100 to 500" in caught.value.hint


def test_unreadable_images_are_named_all_of_them(tmp_path: Path) -> None:
    """Finding them one by one, a build each, is no help."""
    folder = flat(tmp_path / "calib", 12)
    (folder / "003.png").write_bytes(b"")
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:200])

    with pytest.raises(DataError) as caught:
        pick_calibration(read_dataset(folder))

    assert "2 of 12 calibration images can't be used: 003.png: empty (0 bytes), 007.png: truncated" in str(caught.value)


def test_a_file_of_the_test_split_is_refused_by_name(parts: Dataset) -> None:
    """The same file in both: the test numbers would be of pictures that were seen."""
    both = Dataset(root=parts.root, samples=(*parts.take("calib"), parts.take("test").samples[0]), classes=CLASSES)

    with pytest.raises(DataError) as caught:
        pick_calibration(both, test=parts.take("test"))

    assert "1 of 19 calibration images are in the test split: images/test_ok_000.png" in caught.value.message
    assert caught.value.hint is not None
    assert "take them out" in caught.value.hint


def test_a_copy_of_a_test_image_under_another_name_is_refused(tmp_path: Path, parts: Dataset) -> None:
    """People copy pictures into a calibration folder by hand."""
    folder = flat(tmp_path / "calib", 10)
    shutil.copy(parts.root / "images/test_spot_001.png", folder / "zzz.png")

    with pytest.raises(DataError, match=r"zzz\.png \(the same as images/test_spot_001\.png\)"):
        pick_calibration(read_dataset(folder), test=parts.take("test"))


def test_the_same_pixels_in_another_format_are_refused(tmp_path: Path, parts: Dataset) -> None:
    """Other bytes, the same picture."""
    folder = flat(tmp_path / "calib", 10)
    cv2.imwrite(str(folder / "zzz.bmp"), read_image(parts.root / "images/test_spot_001.png"))

    with pytest.raises(DataError, match=r"zzz\.bmp \(the same as images/test_spot_001\.png\)"):
        pick_calibration(read_dataset(folder), test=parts.take("test"))


def test_a_flat_folder_will_do(tmp_path: Path, parts: Dataset) -> None:
    """Calibration needs no labels."""
    found = pick_calibration(
        read_dataset(flat(tmp_path / "calib", FEW_IMAGES)), test=parts.take("test"), classes=CLASSES
    )

    assert len(found.dataset) == FEW_IMAGES
    assert found.warnings == ()


def test_few_images_missing_classes_and_val_images_are_warned_of(parts: Dataset) -> None:
    """They make the ranges too narrow, or the measured drop too good, but may be all there is."""
    calib = parts.take("calib")
    few = Dataset(
        root=parts.root,
        samples=(*[s for s in calib if s.label != "spot"], parts.take("val").samples[0]),
        classes=CLASSES,
    )

    found = pick_calibration(few, test=parts.take("test"), val=parts.take("val"), classes=CLASSES)

    assert [warning.split(":")[0] for warning in found.warnings] == [
        "only 13 calibration images",
        "no calibration image shows spot",
        "1 calibration images are in the val split too, so the measured drop is a little too good",
    ]


def test_too_many_images_are_dealt_over_the_classes_and_always_alike(parts: Dataset) -> None:
    """Rare classes carry the largest values; and the same inputs must give the same bundle."""
    uneven = [s for s in parts.samples if s.label == "ok" or s.file.endswith("000.png")]

    chosen = pick_evenly(uneven, 9, seed=1)

    assert Counter(s.label for s in chosen) == {"ok": 3, "scratch": 3, "spot": 3}
    assert chosen == pick_evenly(uneven[::-1], 9, seed=1)
    assert chosen != pick_evenly(uneven, 9, seed=2)


def test_pictures_are_fitted_as_the_device_fits_them(parts: Dataset) -> None:
    """Ranges of other pixels would be ranges of another network."""
    spec = InputSpec(width_px=24, height_px=16)

    tensor = FittedImages(parts.samples, spec)[3:5][1]

    assert tensor.shape == (1, 16, 24, 3)
    assert np.array_equal(tensor[0], fit(read_image(parts.samples[4].path), spec))
