"""A teacher sees the same views as its student, at its own size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from optimize.augment import Augmentation  # noqa: E402
from optimize.distill import Shares  # noqa: E402
from optimize.distill.lesson import DistillObjective  # noqa: E402
from optimize.distill.teacher import Taught, at_size  # noqa: E402
from optimize.networks import build_network  # noqa: E402
from optimize.train.batches import Batch, Batches  # noqa: E402
from optimize.train_config import TrainConfig  # noqa: E402
from optimize.trainset import Pictures  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.torch

HARD = Augmentation(min_area=0.3, light=1, blur=0, noise=0, cutout=1)


def pictures(n: int = 6, side: int = 96) -> Pictures:
    """Smooth surfaces, so that a pixel says little that its neighbours do not."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 255, (n, 6, 6, 3), dtype=np.uint8)
    images = [np.kron(each, np.ones((side // 6, side // 6, 1), dtype=np.uint8)) for each in coarse]
    masks = [np.zeros((side, side), dtype=np.uint8) for _ in images]
    for i, mask in enumerate(masks):
        mask[8 * i + 8 : 8 * i + 24, 30:60] = 255
    return Pictures(images=images, targets=np.arange(n, dtype=np.int64) % 2, is_grey=False, masks=masks)


def made(config: TrainConfig, size_px: int, view_px: int | None, epoch: int = 1) -> Batch:
    batches = Batches(config, pictures(), n_classes=2, channels=3, background=None, view_px=view_px)
    return batches.make(np.array([0, 1, 2, 3, 3, 4]), size_px, epoch, np.random.default_rng(5))


WINDOW = {"window_px": 32, "masks": Path("masks")}


@pytest.mark.parametrize("change", [{}, {"resize": "letterbox"}, WINDOW, {"mixup": 1.0}])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_the_views_are_the_inputs_at_another_size(change: dict[str, Any], epoch: int) -> None:
    """The same crop, turn, light, covered square and blend; twice-drawn pictures of one batch too."""
    config = TrainConfig(arch="tiny", size_px=48, augmentation=HARD, **change)
    size_px = config.window_px or 48

    batch = made(config, size_px, 4 * size_px, epoch)

    assert batch.views is not None
    assert batch.views.shape[2:] == (4 * size_px, 4 * size_px)
    apart = (at_size(batch.views, size_px, size_px) - batch.inputs).abs()
    assert apart.mean() < 0.06  # 8 grey levels, at edges; the views of two pictures are 40 and more apart
    other = (at_size(batch.views.flip(0), size_px, size_px) - batch.inputs).abs()
    assert other.mean() > 3 * apart.mean()


def test_noise_leaves_the_view_where_it_is() -> None:
    """It is drawn last: how much of it there is depends on the size."""
    noisy = dataclasses.replace(HARD, noise=1)
    config = TrainConfig(arch="tiny", size_px=48, augmentation=noisy, mixup=0.0)

    batch = made(config, 48, 192)

    assert batch.views is not None
    assert (at_size(batch.views, 48, 48) - batch.inputs).abs().mean() < 0.1


def test_what_nobody_asks_for_is_not_made() -> None:
    """Training by labels costs what it did."""
    assert made(TrainConfig(arch="tiny", size_px=48), 48, None).views is None


def test_the_teacher_is_shown_the_views() -> None:
    """Not the student's pictures enlarged."""
    seen: list[tuple[int, ...]] = []

    def teacher(pictures: Tensor) -> Taught:
        seen.append(tuple(pictures.shape))
        return Taught(logits=torch.zeros(len(pictures), 2))

    network = build_network("tiny", 2)
    objective = DistillObjective(teacher, Shares(), network, None)
    batch = made(TrainConfig(arch="tiny", size_px=48), 48, 96)

    objective(objective.teachable(network)(batch.inputs), batch)

    assert seen == [(6, 3, 96, 96)]
