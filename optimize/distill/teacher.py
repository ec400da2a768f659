"""A teacher: whoever says, of pictures that a student is being trained on, what it sees in them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from optimize.errors import ModelError
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector

__all__ = ["NetworkTeacher", "Taught", "Teacher", "at_size", "order_of", "said", "with_channels"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taught:
    """What a teacher says of N pictures.

    Attributes:
        logits: (N, C) of a classifier; (N, P, C) score logits of a detector's priors.
        features: (N, D) pooled features of a classifier; None where the teacher gives none.
        boxes: (N, P, 4) raw boxes of a detector, distances or deltas; None of a classifier.
    """

    logits: Tensor
    features: Tensor | None = None
    boxes: Tensor | None = None


class Teacher(Protocol):
    """Looks at the same augmented pictures as the student.

    A teacher that is shown other views than the student teaches what can't be seen (Beyer et al., "Knowledge
    distillation: a good teacher is patient and consistent", CVPR 2022); so it gets the student's crops, turns and
    lights. It gets them at its own size where that is the larger one: shown 64 px enlarged to its 224, a teacher of
    NEU steel took 15 % of the pictures for another class, and a student that learned this was worse than without it.
    """

    def __call__(self, pictures: Tensor) -> Taught:
        """What it says.

        Args:
            pictures: (N, C, S, S) float32, normalized as `(value - 128) / 128`, RGB or grey.

        Returns:
            Tensors without gradients, on the pictures' device.
        """


class NetworkTeacher:
    """A trained network as a teacher; it keeps a copy, so that training the original changes no lesson.

    Args:
        network: in colour or grey.
        size_px: width and height that it was trained at; None takes pictures as they come.
    """

    def __init__(self, network: Classifier | Detector, size_px: int | None = None) -> None:
        self._network = copy.deepcopy(network).eval()
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
        self._size_px = size_px
        self._channels = next(m for m in self._network.modules() if isinstance(m, nn.Conv2d)).in_channels

    def __call__(self, pictures: Tensor) -> Taught:
        """See `Teacher`."""
        size = self._size_px or pictures.shape[-1]
        self._network.to(pictures.device)
        with torch.no_grad():
            seen = at_size(with_channels(pictures, self._channels), size, size)
            if isinstance(self._network, Detector):
                boxes, scores = self._network(seen)
                return Taught(logits=scores, boxes=boxes)
            logits, features = said(self._network, seen)
            return Taught(logits=logits, features=features)


def said(network: Classifier, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and pooled features (N, D) of normalized pictures, from one pass."""
    features = network.features(pictures)
    pooled = torch.flatten(network.pool(features), 1)
    logits = network.head(pooled) if network.pooling == "mean" else network.pooled(network.mapped(features))
    return logits, pooled


def order_of(teacher: Sequence[str], student: Sequence[str], name: str) -> tuple[int, ...]:
    """Where each of the student's classes stands among the teacher's.

    Args:
        teacher: the teacher's classes.
        student: the student's.
        name: what the message calls the teacher.

    Raises:
        ModelError: they are not the same classes.
    """
    lacking = [one for one in student if one not in teacher]
    strange = [one for one in teacher if one not in student]
    if lacking or strange:
        told = [f"does not know {', '.join(lacking)}"] * bool(lacking)
        told += [f"knows {', '.join(strange)}, of which the images show nothing"] * bool(strange)
        raise ModelError(
            f"{name}: {' and '.join(told)}: it knows {', '.join(teacher)}, the student shall know {', '.join(student)}",
            hint="teach with a model of the same classes; classes are matched by name, their order does not matter",
        )
    return tuple(teacher.index(one) for one in student)


def with_channels(pictures: Tensor, channels: int) -> Tensor:
    """(N, 1 or 3, H, W) as colour or grey; grey is the mean of the channels, as in the exported graph."""
    if pictures.shape[1] == channels:
        return pictures
    if channels == 1:
        return pictures.mean(1, keepdim=True)
    return pictures.expand(-1, channels, -1, -1)


def at_size(pictures: Tensor, width_px: int, height_px: int) -> Tensor:
    """(N, C, H, W) at another size, as the device makes it: averaged over areas to shrink, bilinear to enlarge."""
    height, width = pictures.shape[2:]
    if (width, height) == (width_px, height_px):
        return pictures
    if width_px <= width and height_px <= height:
        rows, columns = (_areas(*sizes).to(pictures) for sizes in ((height_px, height), (width_px, width)))
        return rows @ pictures @ columns.T
    return nn.functional.interpolate(pictures, (height_px, width_px), mode="bilinear", align_corners=False)


def _areas(wanted: int, given: int) -> Tensor:
    """(wanted, given): how much each pixel of a row counts in each of a shorter one."""
    step = given / wanted
    left = torch.arange(wanted, dtype=torch.float64)[:, None] * step
    pixel = torch.arange(given, dtype=torch.float64)[None]
    return (torch.minimum(left + step, pixel + 1) - torch.maximum(left, pixel)).clamp_min(0) / step
