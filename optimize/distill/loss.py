"""What a student loses by not agreeing with its teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from optimize.errors import OptimizeError

__all__ = [
    "FeatureMatch",
    "Shares",
    "box_divergence",
    "confidence",
    "distillation_loss",
    "divergence",
    "feature_distance",
]


USUAL: Mapping[str, float] = MappingProxyType({"temperature": 2.0, "label_weight": 0.1, "feature_weight": 0.0})
"""What the parts weigh where nobody says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What the parts of the loss weigh.

    Attributes:
        temperature: T, what logits are divided by before they are compared: 0.5 to 50.
        label_weight: share of the labels' own loss, 0 to 1; the teacher has the rest.
        feature_weight: of the features' distance, 0 to 1000, on top of both; 0 compares none.
    """

    temperature: float = USUAL["temperature"]
    label_weight: float = USUAL["label_weight"]
    feature_weight: float = USUAL["feature_weight"]

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0.5, 50), ("label_weight", 0, 1), ("feature_weight", 0, 1000)):
            value = getattr(self, name)
            if not low <= value <= high:
                flag = name.replace("_", "-")
                raise OptimizeError(
                    f"{flag}: got {value}, expected {low:g} to {high:g}", hint=f"--{flag} {USUAL[name]:g} is usual"
                )


def distillation_loss(
    student: Tensor, teacher: Tensor, shares: Shares, *, labels: Tensor | None = None, features: Tensor | None = None
) -> Tensor:
    """(1 - label_weight) T^2 KL(teacher || student) + label_weight labels + feature_weight features.

    Args:
        student: (N, C) logits.
        teacher: (N, C) logits.
        shares: what each part weighs.
        labels: the loss by labels, such as `optimize.train.losses.ClassLoss`; None where there are none, and then the
            teacher's part weighs 1.
        features: the distance of the features; None compares none.
    """
    loss = divergence(student, teacher, shares.temperature)
    if labels is not None:
        loss = (1 - shares.label_weight) * loss + shares.label_weight * labels
    return loss if features is None else loss + shares.feature_weight * features


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """How far the student's softened probabilities are from the teacher's: T^2 KL(teacher || student).

    Hinton et al., "Distilling the knowledge in a neural network", 2015, section 2: with a temperature, what the teacher
    holds for unlikely counts too; T^2 keeps the gradients as large as those of labels, whatever the temperature.

    Args:
        student: (..., C) logits.
        teacher: (..., C) logits.
        temperature: T, more than 0.

    Returns:
        The mean over all rows; 0 where both say the same.
    """
    wanted = torch.log_softmax(teacher.detach() / temperature, dim=-1)
    said = torch.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (wanted.exp() * (wanted - said)).sum(-1).mean()


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of (N, D) features that were scaled to length 1: 0 for the same direction, at most 4.

    FitNets (Romero et al., ICLR 2015) imitate the values; of networks as different as ours only the direction carries
    over (the scale is the last batch norm's).
    """
    ones = [nn.functional.normalize(each, dim=1) for each in (student, teacher.detach())]
    return (ones[0] - ones[1]).square().sum(1).mean()


class FeatureMatch(nn.Module):
    """The student's features, brought linearly into the teacher's space; it is thrown away after training.

    Args:
        student: how many features the student has.
        teacher: how many the teacher has.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student, teacher, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance that is left, see `feature_distance`."""
        return feature_distance(self.projection(student), teacher)


def box_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, temperature: float, has_background: bool
) -> Tensor:
    """How far a detector's raw boxes and scores are from its teacher's, prior by prior.

    Scores: the divergence of each class's own probability (sigmoid), or of the probabilities together (softmax, with
    the background in the first column); boxes: mean distance where it is small squared, weighed by how sure the
    teacher is that there is a defect at all, since boxes of nothing mean nothing. Both are summed over the priors
    and divided by the teacher's sum of confidences: one defect counts as much on a large picture as on a small one.

    Args:
        student: boxes (N, P, 4) and score logits (N, P, C).
        teacher: the same.
        temperature: T, more than 0.
        has_background: whether scores are a softmax with the background first.
    """
    (boxes, scores), (wanted_boxes, wanted) = student, (teacher[0].detach(), teacher[1].detach())
    if has_background:
        said, true = (torch.log_softmax(each / temperature, -1) for each in (scores, wanted))
        apart = (true.exp() * (true - said)).sum(-1)
    else:
        apart = _binary_divergence(scores / temperature, wanted / temperature).sum(-1)
    sure = confidence(wanted, has_background=has_background)
    off = nn.functional.smooth_l1_loss(boxes, wanted_boxes, reduction="none").mean(-1)
    return (temperature**2 * apart.sum() + (sure * off).sum()) / sure.sum().clamp_min(1)


def confidence(scores: Tensor, *, has_background: bool) -> Tensor:
    """How sure a detector is of each prior (N, P) that there is a defect, 0 to 1, from score logits (N, P, C)."""
    return 1 - scores.softmax(-1)[..., 0] if has_background else scores.sigmoid().amax(-1)


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of two sides of a coin, from logits."""
    share = teacher.sigmoid()
    cross = nn.functional.binary_cross_entropy_with_logits(student, share, reduction="none")
    own = nn.functional.binary_cross_entropy_with_logits(teacher, share, reduction="none")
    return cross - own
