"""What a student loses by not agreeing with its teacher, against the formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from optimize.distill import Shares, distillation_loss
from optimize.distill.loss import FeatureMatch, box_divergence, divergence, feature_distance

pytestmark = pytest.mark.torch


def test_the_loss_is_hintons_with_labels_and_features() -> None:
    """Written out in numpy, term by term."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (5, 4)), rng.normal(0, 3, (5, 4))
    t = 3.0
    p, q = (np.exp(x / t) / np.exp(x / t).sum(1, keepdims=True) for x in (teacher, student))
    kl = t * t * (p * np.log(p / q)).sum(1).mean()

    said, taught = torch.from_numpy(student), torch.from_numpy(teacher)
    shares = Shares(temperature=t, label_weight=0.25, feature_weight=2.0)
    alone = distillation_loss(said, taught, shares)
    whole = distillation_loss(said, taught, shares, labels=torch.tensor(0.7), features=torch.tensor(0.3))

    assert float(divergence(said, taught, t)) == pytest.approx(kl)
    assert float(alone) == pytest.approx(kl)
    assert float(whole) == pytest.approx(0.75 * kl + 0.25 * 0.7 + 2.0 * 0.3)
    assert float(divergence(taught, taught, t)) == pytest.approx(0, abs=1e-12)


def test_the_temperature_keeps_gradients_as_large_as_they_were() -> None:
    """Why T squared: at a high temperature the gradient becomes that of the logits' distance, (s - t) / C."""
    rng = np.random.default_rng(1)
    student = torch.from_numpy(rng.normal(0, 1, (1, 4))).requires_grad_()
    teacher = torch.from_numpy(rng.normal(0, 1, (1, 4)))

    torch.autograd.backward(divergence(student, teacher, 50.0))

    assert student.grad is not None
    centred = [each - each.mean() for each in (student.detach(), teacher)]
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / 4, atol=0.02)


def test_features_are_compared_by_direction() -> None:
    """Written out in numpy; scaled features are the same, opposite ones 4 apart."""
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(0, 1, (3, 5)), rng.normal(0, 1, (3, 5))
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))

    found = feature_distance(torch.from_numpy(student), torch.from_numpy(teacher))

    assert float(found) == pytest.approx(((s - t) ** 2).sum(1).mean())
    assert float(feature_distance(torch.from_numpy(7 * teacher), torch.from_numpy(teacher))) == pytest.approx(0)
    assert float(feature_distance(torch.from_numpy(-teacher), torch.from_numpy(teacher))) == pytest.approx(4)


def test_a_projection_brings_features_into_the_teachers_space() -> None:
    """Five features against nine, by one linear map; written out in numpy."""
    match = FeatureMatch(5, 9)
    student, teacher = torch.randn(3, 5), torch.randn(3, 9)
    projected = student.numpy() @ match.projection.weight.detach().numpy().T
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (projected, teacher.numpy()))

    assert float(match(student, teacher).detach()) == pytest.approx(((s - t) ** 2).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("has_background", [False, True])
def test_boxes_count_where_the_teacher_sees_something(has_background: bool) -> None:
    """Written out in numpy: scores everywhere, boxes by confidence, over the sum of confidences."""
    rng = np.random.default_rng(3)
    boxes, wanted_boxes = rng.normal(0, 2, (2, 6, 4)), rng.normal(0, 2, (2, 6, 4))
    scores, wanted = rng.normal(0, 2, (2, 6, 3)), rng.normal(0, 2, (2, 6, 3))
    t = 2.0
    if has_background:
        p, q = (np.exp(x / t) / np.exp(x / t).sum(-1, keepdims=True) for x in (wanted, scores))
        apart = (p * np.log(p / q)).sum(-1)
        own = np.exp(wanted) / np.exp(wanted).sum(-1, keepdims=True)
        sure = 1 - own[..., 0]
    else:
        p, q = (1 / (1 + np.exp(-x / t)) for x in (wanted, scores))
        apart = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)
        sure = (1 / (1 + np.exp(-wanted))).max(-1)
    off = np.abs(boxes - wanted_boxes)
    smooth = np.where(off < 1, 0.5 * off**2, off - 0.5).mean(-1)

    found = box_divergence(
        (torch.from_numpy(boxes), torch.from_numpy(scores)),
        (torch.from_numpy(wanted_boxes), torch.from_numpy(wanted)),
        temperature=t,
        has_background=has_background,
    )

    assert float(found) == pytest.approx((t * t * apart.sum() + (sure * smooth).sum()) / sure.sum())
