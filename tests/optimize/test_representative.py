"""Which pictures of a big folder are taken: each class its share, and what looks different among them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimize.calibration import FittedImages, Selection, pick_calibration, pick_evenly
from optimize.dataset import Dataset, Sample, read_dataset
from optimize.errors import DataError, ModelError
from optimize.quantize.model import read_model
from optimize.representative import embeddings, pick_representative, shares, thumbnails
from tests.kit.float_models import CLASSES, write_model, write_parts
from tests.kit.models import classifier, constant_classifier


def sample(file: str, label: str | None = "ok") -> Sample:
    return Sample(path=Path(file), file=file, label=label)


def rows(values: object) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


def picked(samples: list[Sample], features: NDArray[np.float32], limit: int, seed: int = 0) -> list[str]:
    return [s.file for s in pick_representative(samples, features, limit, seed)]


def test_features_that_are_not_one_row_for_each_are_refused() -> None:
    """A row too few would give every later picture its neighbour's."""
    with pytest.raises(DataError, match=r"got shape \[1, 2\], expected \[2, D\]"):
        pick_representative([sample("a"), sample("b")], rows([[0, 0]]), 1, 0)


def test_features_that_are_no_numbers_are_refused_by_file() -> None:
    """NaN is farther than everything, or nearer: it depends on the comparison."""
    with pytest.raises(DataError, match="b: its features are NaN or infinite"):
        pick_representative([sample("a"), sample("b")], rows([[0], [np.nan]]), 1, 0)


def test_nothing_is_taken_of_nothing() -> None:
    """An empty folder is refused elsewhere; here it must not divide by zero."""
    assert picked([], np.zeros((0, 3), np.float32), 5) == []
    assert picked([sample("a")], rows([[0]]), 0) == []


def test_all_are_taken_where_there_are_no_more() -> None:
    """Also when they are copies of each other."""
    samples = [sample(f"{i}") for i in range(6)]

    assert picked(samples, np.zeros((6, 2), np.float32), 6) == [s.file for s in samples]
    assert len(picked(samples, np.zeros((6, 2), np.float32), 4)) == 4
    assert len(picked(samples, np.zeros((6, 2), np.float32), 99)) == 6


@pytest.mark.parametrize("seed", range(5))
def test_planted_outliers_and_clusters_are_among_the_few(seed: int) -> None:
    """The rare sights carry the largest values, and a draw of 6 of 300 would miss them 9 times in 10."""
    rng = np.random.default_rng(seed)
    clusters = [rng.normal(centre, 0.1, (99, 2)) for centre in ([0, 0], [10, 0], [0, 10])]
    outliers = rows([[60, 60], [-50, 5], [5, -40]])
    features = rows(np.concatenate([*clusters, outliers]))
    samples = [sample(f"{i:03d}") for i in range(len(features))]

    chosen = [int(file) for file in picked(samples, features, 6, seed)]

    assert {297, 298, 299} <= set(chosen)
    assert {i // 99 for i in chosen if i < 297} == {0, 1, 2}


def test_rare_classes_come_first_and_what_they_leave_goes_to_the_others() -> None:
    """A class of three pictures gives all three."""
    assert shares({"ok": 5000, "scratch": 40, "stain": 3}, 30) == {"stain": 3, "scratch": 14, "ok": 13}
    assert shares({"ok": 5000, "scratch": 40, "stain": 3}, 2) == {"stain": 1, "scratch": 1, "ok": 0}
    assert shares({}, 5) == {}


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 50), max_size=8), st.integers(0, 120))
def test_shares_use_up_the_limit_and_no_class_gives_more_than_it_has(counts: dict[str, int], limit: int) -> None:
    """A lost picture is a narrower range, one too many breaks the user's limit."""
    given_ = shares(counts, limit)

    assert sum(given_.values()) == min(limit, sum(counts.values()))
    assert all(given_[name] <= counts[name] for name in counts)
    if limit >= len(counts):
        assert all(given_.values())


def test_without_labels_folders_are_the_classes() -> None:
    """People sort by camera or by day; one folder with few pictures must not be forgotten."""
    samples = [sample(f"monday/{i:03d}.png", None) for i in range(50)]
    samples += [sample(f"sunday/{i}.png", None) for i in range(2)]

    chosen = picked(samples, np.random.default_rng(0).normal(size=(52, 4)).astype(np.float32), 10)

    assert Counter(file.split("/")[0] for file in chosen) == {"monday": 8, "sunday": 2}


def test_the_order_of_the_samples_does_not_matter_but_the_seed_may() -> None:
    """The same folder must give the same bundle on every file system."""
    rng = np.random.default_rng(0)
    samples = [sample(f"{i:03d}", CLASSES[i % 3]) for i in range(60)]
    features = rng.normal(size=(60, 5)).astype(np.float32)
    order = rng.permutation(60)

    chosen = picked(samples, features, 12, seed=1)

    assert chosen == picked([samples[i] for i in order], features[order], 12, seed=1)
    assert chosen == sorted(chosen)
    assert any(chosen != picked(samples, features, 12, seed=seed) for seed in range(2, 6))


def test_of_pictures_equally_far_the_first_by_name_is_taken() -> None:
    """Else the choice would hang on the order in which a file system lists them."""
    samples = [sample(name) for name in ("d", "c", "b", "a")]
    features = rows([[1], [-1], [0], [0]])

    for seed in range(4):
        chosen = picked(samples, features, 2, seed)
        if "a" in chosen or "b" in chosen:
            assert "c" in chosen, "c and d are equally far from the middle"


@pytest.fixture
def parts(tmp_path: Path) -> Dataset:
    return read_dataset(write_parts(tmp_path / "parts", {"calib": 12, "test": 2}))


def test_a_thumbnail_tells_dark_from_bright_and_a_blot_from_none(tmp_path: Path) -> None:
    """It is all there is for a model without an embedding."""
    plain = np.full((40, 30, 3), 100, np.uint8)
    blot = plain.copy()
    blot[5:12, 5:12] = 255
    samples = []
    for name, image in {"plain": plain, "twin": plain + 1, "blot": blot, "dark": plain // 5}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
        samples.append(Sample(path=tmp_path / f"{name}.png", file=name, label=None))

    features = thumbnails(samples)

    assert features.shape == (4, 76)
    near, *far = np.linalg.norm(features[1:] - features[0], axis=1)
    assert near < 0.02
    assert min(far) > 5 * near


def test_embeddings_are_the_models_own(tmp_path: Path, parts: Dataset) -> None:
    """One row for each picture, of what the device will fit and see."""
    model = read_model(write_model(tmp_path / "model.onnx"))
    images = FittedImages(parts.samples[:5], model.input)

    features = embeddings(model, images)

    assert features is not None
    assert features.shape == (5, 16)
    assert np.unique(features, axis=0).shape == (5, 16)


def test_a_model_without_an_embedding_says_so(tmp_path: Path) -> None:
    """Then thumbnails are taken."""
    path = tmp_path / "model.onnx"
    path.write_bytes(constant_classifier((1.0, 2.0, 3.0)))
    model = read_model(path)

    assert embeddings(model, []) is None


def test_a_model_that_can_not_take_the_pictures_is_a_sentence(tmp_path: Path) -> None:
    """ONNX Runtime's exceptions stay behind this door."""
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier())

    with pytest.raises(ModelError, match=r"model\.onnx: can't be run"):
        embeddings(read_model(path), [np.zeros((1, 3, 3, 3), np.uint8)])


@pytest.mark.parametrize("with_model", [False, True])
def test_calibration_takes_the_odd_picture_of_a_big_folder(tmp_path: Path, parts: Dataset, with_model: bool) -> None:
    """One overexposed part among dozens: dealt out evenly it is left behind three times in four."""
    odd = parts.root / "images/calib_ok_007.png"
    cv2.imwrite(str(odd), np.full((32, 32, 3), 255, np.uint8))
    model = read_model(write_model(tmp_path / "model.onnx")) if with_model else None

    for seed in range(4):
        found = pick_calibration(parts.take("calib"), selection=Selection(limit=9, seed=seed, model=model))

        assert "images/calib_ok_007.png" in [s.file for s in found.dataset]
        assert Counter(s.label for s in found.dataset) == dict.fromkeys(CLASSES, 3)


def test_even_sampling_looks_at_no_picture_that_it_does_not_take(parts: Dataset) -> None:
    """It is for folders that are too big to be read."""
    calib = parts.take("calib")
    expected = pick_evenly(calib.samples, 9, seed=5)
    for other in calib:
        if other not in expected:
            other.path.write_bytes(b"")

    found = pick_calibration(calib, selection=Selection(limit=9, seed=5, sampler="even"))

    assert list(found.dataset.samples) == expected


def test_pictures_that_can_not_be_read_are_all_named_before_any_is_taken(parts: Dataset) -> None:
    """One by one, a build each, is no help."""
    calib = parts.take("calib")
    for index in (3, 20):
        calib.samples[index].path.write_bytes(b"")

    with pytest.raises(DataError, match="2 of 36 calibration images can't be used"):
        pick_calibration(calib, selection=Selection(limit=9))
