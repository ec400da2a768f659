"""Rare defects: weights, focal loss, logit adjustment and balanced sampling do what their papers say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from optimize.train.losses import ClassLoss, class_weights
from optimize.train.processes import Processes
from optimize.train.run import Run
from optimize.train.sampling import draw_epoch
from optimize.train_config import Sampler, TrainConfig
from optimize.trainset import Pictures

pytestmark = pytest.mark.torch

COUNTS = np.array([900, 90, 10])
CPU = torch.device("cpu")


def loss_of(logits: list[list[float]], targets: list[list[float]], **changes: object) -> float:
    config = TrainConfig(**{"class_weights": "none", "label_smoothing": 0.0, **changes})  # type: ignore[arg-type]
    return float(ClassLoss(config, COUNTS, CPU)(torch.tensor(logits), torch.tensor(targets)))


def test_inverse_weights_let_every_class_weigh_the_same() -> None:
    """Count times weight is equal, and the mean over images stays 1, so that a learning rate keeps its meaning."""
    weights = class_weights(COUNTS, "inverse")

    assert weights * COUNTS == pytest.approx([1000 / 3] * 3, rel=1e-5)


def test_effective_weights_lie_between_none_and_inverse() -> None:
    """A class of ten does not get ninety times the weight; Cui et al., equation 2, for b = 0.999."""
    weights = class_weights(COUNTS, "effective")

    numbers = [(1 - 0.999**n) / (1 - 0.999) for n in COUNTS]
    assert weights[2] / weights[0] == pytest.approx(numbers[0] / numbers[2], rel=1e-5)
    assert 1 < weights[2] / weights[0] < 90
    assert (weights * COUNTS).sum() == pytest.approx(COUNTS.sum(), rel=1e-5)


def test_square_root_weights_lie_half_way() -> None:
    """On a log scale: a class of ten weighs 3 times one of ninety, not 9 times."""
    weights = class_weights(COUNTS, "sqrt")

    assert weights[2] / weights[1] == pytest.approx(3, rel=1e-5)
    assert (weights * COUNTS).sum() == pytest.approx(COUNTS.sum(), rel=1e-5)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    """Gamma 0 switches it off, with soft targets and weights too."""
    logits, targets = [[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]], [[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]
    changes = {"class_weights": "inverse", "label_smoothing": 0.1}

    focal = loss_of(logits, targets, loss="focal", focal_gamma=0.0, **changes)

    assert focal == pytest.approx(loss_of(logits, targets, **changes), rel=1e-5)


def test_focal_loss_counts_what_is_sure_little() -> None:
    """At p = 0.9 a hundredth of the cross-entropy, at p = 0.5 a quarter (gamma 2)."""
    for p, share in ((0.9, 0.01), (0.5, 0.25)):
        logits = [[float(np.log(p / (1 - p))), 0.0, -100.0]]
        target = [[1.0, 0.0, 0.0]]
        assert loss_of(logits, target, loss="focal") == pytest.approx(share * loss_of(logits, target), rel=1e-4)


def test_logit_adjustment_asks_more_of_a_rare_class() -> None:
    """Equal logits are no draw: the rare class must win by the ratio of the frequencies."""
    even = [[0.0, 0.0, 0.0]]

    rare, frequent = (loss_of(even, [target], logit_adjustment=1.0) for target in ([0.0, 0, 1], [1.0, 0, 0]))

    assert rare == pytest.approx(-np.log(0.01), rel=1e-5)
    assert frequent == pytest.approx(-np.log(0.9), rel=1e-5)


def test_a_balanced_epoch_shows_each_class_equally_often() -> None:
    """And of a rare class no image twice more often than another."""
    targets = np.repeat(np.arange(3), COUNTS)

    drawn = draw_epoch(targets, "balanced", np.random.default_rng(0))

    assert np.bincount(targets[drawn]).tolist() == [333, 333, 333]
    often = np.bincount(drawn, minlength=len(targets))
    assert np.ptp(often[targets == 2]) <= 1
    assert often[targets == 0].max() == 1


@pytest.mark.parametrize(("sampler", "heavier"), [("shuffled", 4.0), ("balanced", 1.0)])
def test_what_the_sampler_evens_out_is_not_weighed_again(sampler: Sampler, heavier: float) -> None:
    """Balanced batches and inverse weights together would prefer the rare class by its frequency once more."""
    images = [np.zeros((32, 32, 3), dtype=np.uint8)] * 10
    targets = np.array([0] * 8 + [1] * 2)
    pictures = Pictures(images=images, targets=targets, is_grey=True)
    config = TrainConfig(arch="tiny", size_px=32, sampler=sampler)

    run = Run(config, pictures, pictures, ("ok", "dent"), None, Processes(rank=0, count=1, device=CPU))

    assert float(run.loss.weights[1] / run.loss.weights[0]) == pytest.approx(heavier)


def test_a_shuffled_epoch_shows_each_image_once() -> None:
    """Nothing is left out."""
    drawn = draw_epoch(np.repeat(np.arange(3), COUNTS), "shuffled", np.random.default_rng(0))

    assert sorted(drawn.tolist()) == list(range(1000))


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
@pytest.mark.parametrize("how", ["none", "inverse", "effective"])
def test_smoothing_spreads_a_target_evenly_whatever_the_classes_weigh(loss: str, how: str) -> None:
    """Else each good part would be pulled to the rarest class, whose weight is the largest: found on magnetic tiles,
    where a network called every part frayed."""
    target = torch.tensor([[1.0, 0.0, 0.0]])
    smoothed = 0.9 * target + 0.1 / 3
    logits = smoothed.log().requires_grad_()
    changes = {"focal_gamma": 0.0} if loss == "focal" else {}
    config = TrainConfig(class_weights=how, loss=loss, label_smoothing=0.1, **changes)  # type: ignore[arg-type]

    torch.autograd.backward(ClassLoss(config, COUNTS, CPU)(logits, target))

    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6
