"""Masks and pooling: the map learns where a defect is, and a picture is as bad as its worst place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import onnxruntime
import torch

from agent.bundle.preprocess import fit
from optimize.dataset import read_dataset, read_image
from optimize.errors import DataError, OptimizeError
from optimize.networks import build_network
from optimize.networks.classifier import Pooling
from optimize.train import TrainConfig, train
from optimize.train.losses import place_loss
from optimize.trainset import raw_pictures
from tests.kit.float_models import write_parts

pytestmark = pytest.mark.torch

QUICK = TrainConfig(arch="tiny", epochs=2, batch=8, size_px=32, threads=1, lr=0.05)
EVEN = torch.ones(2)
GOOD, DENT = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def write_masks(parts: Path, folder: Path) -> Path:
    """What differs from plain noise in each defect picture."""
    for sample in read_dataset(parts):
        if sample.label != "ok":
            grey = read_image(sample.path)[..., 0].astype(int)
            mask = ((np.abs(grey - 128) > 60) * 255).astype(np.uint8)
            path = folder / Path(sample.file).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), mask)
    return folder


def maps_of(value: float, place: tuple[int, int]) -> torch.Tensor:
    """(1, 2, 4, 4): good everywhere, a dent at one place."""
    maps = torch.zeros(1, 2, 4, 4)
    maps[:, 0] = value
    maps[0, :, place[0], place[1]] = torch.tensor([0.0, value])
    return maps


def test_a_map_that_points_at_the_defect_loses_less_than_one_that_points_beside_it() -> None:
    """Both call the picture a dent; only one knows why."""
    mask = torch.zeros(1, 64, 64)
    mask[0, 2:14, 34:46] = 1

    right, beside = (float(place_loss(maps_of(6.0, at), DENT, mask, 0, EVEN)) for at in ((0, 2), (3, 0)))

    assert right < 0.02
    assert beside > 5


def test_a_picture_without_a_known_mask_teaches_no_place() -> None:
    """It is a defect, nobody said where: neither here nor there is wrong."""
    unknown = torch.full((1, 64, 64), -1.0)

    assert float(place_loss(maps_of(6.0, (0, 2)), DENT, unknown, 0, EVEN)) == 0.0


def test_a_good_picture_teaches_that_every_place_is_good() -> None:
    """Without a mask of its own."""
    nothing = torch.zeros(1, 64, 64)

    assert float(place_loss(torch.zeros(1, 2, 4, 4), GOOD, nothing, 0, EVEN)) == pytest.approx(np.log(2), rel=1e-5)
    assert float(place_loss(maps_of(6.0, (1, 1)), GOOD, nothing, 0, EVEN)) == pytest.approx(6 / 16, rel=0.05)


def test_a_defect_of_a_few_pixels_still_marks_its_place() -> None:
    """It fills no place by a quarter."""
    mask = torch.zeros(1, 64, 64)
    mask[0, 5:7, 37:39] = 1

    right, beside = (float(place_loss(maps_of(6.0, at), DENT, mask, 0, EVEN)) for at in ((0, 2), (3, 0)))

    assert right < beside / 10


@pytest.mark.parametrize("pooling", ["mean", "peak", "both"])
def test_the_exported_graph_pools_as_the_network_does_and_its_map_explains_the_logits(
    tmp_path: Path, pooling: Pooling
) -> None:
    """Parity is proven by `train`; here the logits are computed from the exported map."""
    parts = write_parts(tmp_path / "parts", {"train": 6, "val": 3})
    config = dataclasses.replace(QUICK, pooling=pooling)

    result = train(config, read_dataset(parts), tmp_path / "m.onnx")

    session = onnxruntime.InferenceSession(str(result.onnx), providers=["CPUExecutionProvider"])
    differences = []
    for sample in read_dataset(parts).take("val"):
        image = fit(read_image(sample.path), config.spec)[None]
        logits, maps = session.run(["logits", "cam"], {"image": image})
        mean, peak = maps.mean((2, 3)), maps.max((2, 3))
        pooled = {"mean": mean, "peak": peak, "both": (mean + peak) / 2}[pooling]
        differences.append((logits - pooled)[0])
        if pooling != "mean":
            assert np.abs(maps[0, 0]).max() == 0  # good is the absence of defects
    assert np.ptp(np.array(differences), axis=0).max() < 1e-4  # what is left is the bias, the same for every picture


def test_a_peak_sees_what_a_mean_forgets() -> None:
    """One bright place of 64: its evidence is divided by 64, or not."""
    network = build_network("tiny", 2).requires_grad_(requires_grad=False)
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 1, 3, 3] = 8.0

    found = {}
    poolings: tuple[Pooling, ...] = ("mean", "peak")
    for pooling in poolings:
        network.pooling = pooling
        found[pooling] = float(network.pooled(maps)[0, 1] - network.pooled(torch.zeros(1, 2, 8, 8))[0, 1])

    assert found == pytest.approx({"mean": 8 / 64, "peak": 8.0})


def test_training_with_masks_makes_the_map_point_at_the_defect(tmp_path: Path) -> None:
    """On val pictures, whose masks training never saw."""
    parts = write_parts(tmp_path / "parts", {"train": 16, "val": 6})
    masks = write_masks(parts, tmp_path / "masks")
    config = dataclasses.replace(QUICK, epochs=25, masks=masks, pooling="peak", batch=12)

    result = train(config, read_dataset(parts), tmp_path / "m.onnx")

    session = onnxruntime.InferenceSession(str(result.onnx), providers=["CPUExecutionProvider"])
    hits = []
    for sample in read_dataset(parts).take("val"):
        if sample.label == "ok":
            continue
        maps = session.run(["cam"], {"image": fit(read_image(sample.path), config.spec)[None]})[0][0]
        top = np.unravel_index(maps[result.classes.index(str(sample.label))].argmax(), maps.shape[1:])
        mask = read_image(masks / Path(sample.file).with_suffix(".png"))[..., 0]
        rows, columns = np.nonzero(mask > 127)
        y, x = (int((c + 0.5) * 32 / maps.shape[1]) for c in top)
        hits.append(bool((np.hypot(rows - y, columns - x) < 8).any()))
    assert sum(hits) >= 0.8 * len(hits)


def test_masks_that_belong_to_nothing_are_refused(tmp_path: Path) -> None:
    """A wrong folder would quietly teach nothing."""
    parts = write_parts(tmp_path / "parts", {"train": 6, "val": 3})
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError) as caught:
        train(dataclasses.replace(QUICK, masks=tmp_path / "empty"), read_dataset(parts), tmp_path / "m.onnx")

    assert "holds no mask for any image, expected files such as" in caught.value.message


def test_a_mask_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    """It would mark the wrong place."""
    parts = write_parts(tmp_path / "parts", {"train": 6, "val": 3})
    masks = write_masks(parts, tmp_path / "masks")
    assert cv2.imwrite(str(masks / "images" / "train_spot_001.png"), np.full((20, 60), 255, dtype=np.uint8))

    with pytest.raises(DataError, match=r"train_spot_001.png: is 60 x 20, expected 32 x 32"):
        train(dataclasses.replace(QUICK, masks=masks), read_dataset(parts), tmp_path / "m.onnx")


@pytest.mark.parametrize("is_letterbox", [False, True])
def test_pictures_much_larger_than_the_input_keep_their_masks(tmp_path: Path, is_letterbox: bool) -> None:
    """They are kept shrunk, each axis by its own factor or both by one; a mask goes along, and a letterboxed picture
    keeps its shape."""
    for label, grey in (("ok", 120), ("dent", 240)):
        for i in range(4):
            file = tmp_path / "parts" / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(file), np.full((120, 400, 3), grey, dtype=np.uint8))
    mask = np.zeros((120, 400), dtype=np.uint8)
    mask[30:60, 100:200] = 255
    (tmp_path / "masks" / "dent").mkdir(parents=True)
    for i in range(4):
        assert cv2.imwrite(str(tmp_path / "masks" / "dent" / f"{i}.png"), mask)

    found = raw_pictures(read_dataset(tmp_path / "parts"), 32, masks=tmp_path / "masks", is_letterbox=is_letterbox)

    height, width = found.images[0].shape[:2]
    assert max(height, width) == 64
    assert height == (19 if is_letterbox else 64)
    assert found.masks is not None
    moved = found.masks[[s.label for s in read_dataset(tmp_path / "parts")].index("dent")]
    assert moved is not None
    rows, columns = np.nonzero(moved > 127)
    assert (rows.min() / height, (rows.max() + 1) / height) == pytest.approx((0.25, 0.5), abs=1 / height)
    assert (columns.min() / width, (columns.max() + 1) / width) == pytest.approx((0.25, 0.5), abs=1 / width)


def test_blending_and_masks_exclude_one_another() -> None:
    """A blended picture has no mask; by default there is no blending then."""
    assert dataclasses.replace(QUICK, masks=Path("m")).blend == 0
    with pytest.raises(OptimizeError, match="blended pictures have no mask"):
        dataclasses.replace(QUICK, masks=Path("m"), mixup=0.2)
