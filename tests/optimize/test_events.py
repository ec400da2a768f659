"""TensorBoard reads what training writes, also after an interruption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")
pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install tensorboard")

from optimize.dataset import read_dataset
from optimize.train import TrainConfig, train
from tests.kit.float_models import write_parts

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

QUICK = TrainConfig(arch="tiny", epochs=3, batch=8, size_px=32, threads=1, lr=0.05)


def test_tensorboard_reads_a_point_per_epoch_and_the_recall_of_each_class(tmp_path: Path) -> None:
    """By its own reader, with the figures of the result."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    parts = write_parts(tmp_path / "parts", {"train": 8, "val": 4})

    result = train(dataclasses.replace(QUICK, tensorboard=tmp_path / "tb"), read_dataset(parts), tmp_path / "m.onnx")

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss/train", "loss/val", "val/balanced_recall", "val recall/ok", "val recall/spot"} <= set(tags)
    found = events.Scalars("loss/train")
    assert [point.step for point in found] == [1, 2, 3]
    assert [point.value for point in found] == pytest.approx([r.train_loss for r in result.history], rel=1e-5)
