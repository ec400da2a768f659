"""The preview: what training would see, drawn by the code that trains."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

from optimize.dataset import read_dataset
from optimize.errors import DataError
from optimize.preview import write_preview
from optimize.train_config import TrainConfig
from tests.kit.float_models import write_parts

pytestmark = pytest.mark.torch


def test_a_preview_shows_every_class_beside_what_training_makes_of_it(tmp_path: Path) -> None:
    """Three rows of each class, seven cells wide; the first as the device sees it, the others changed."""
    parts = write_parts(tmp_path / "parts", {"train": 8, "val": 4})

    n = write_preview(TrainConfig(arch="tiny"), read_dataset(parts), tmp_path / "new" / "sheet.png")

    sheet = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    assert n == 9
    assert sheet is not None
    assert sheet.shape[1] == 7 * 164
    cells = [sheet[60:200, 164 * i : 164 * i + 160] for i in range(7)]
    assert len({cell.tobytes() for cell in cells}) == 7


def test_a_preview_that_can_t_be_written_says_so(tmp_path: Path) -> None:
    """Not a traceback of OpenCV."""
    parts = write_parts(tmp_path / "parts", {"train": 8, "val": 4})

    with pytest.raises(DataError, match="can't be written"):
        write_preview(TrainConfig(arch="tiny"), read_dataset(parts), tmp_path / "sheet.txt")
