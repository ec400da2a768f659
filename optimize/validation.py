"""How a network in training does on `val`: the numbers that decide which epoch is kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.export import normalize
from optimize.networks.classifier import Classifier
from optimize.trainset import Pictures

__all__ = ["Validation", "validate"]

BATCH = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Loss and confusion on labelled pictures.

    Attributes:
        loss: mean cross-entropy, unweighted.
        confusion: counts, one row per true class, one column per predicted class.
    """

    loss: float
    confusion: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """Share of images that got the right class."""
        counts = np.asarray(self.confusion)
        return float(np.trace(counts) / counts.sum())

    @property
    def recalls(self) -> tuple[float | None, ...]:
        """For each class the share of its images that was found; None for a class without images."""
        return tuple(row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.confusion))

    @property
    def balanced_recall(self) -> float:
        """Mean recall of the classes that have images; 0 without any."""
        recalls = [recall for recall in self.recalls if recall is not None]
        return sum(recalls) / max(len(recalls), 1)

    @property
    def one_image(self) -> float:
        """What one image of the smallest class changes in the balanced recall: less is no difference."""
        sizes = [sum(row) for row in self.confusion if sum(row)]
        return 1.000001 / (len(sizes) * min(sizes))


def validate(network: Classifier, pictures: Pictures, *, channels: int, n_classes: int) -> Validation:
    """Classify pictures that all have the network's input size.

    Args:
        network: in evaluation mode.
        pictures: (S, S, 3) uint8 RGB each; at least one.
        channels: 3, or 1 for a grey network, which sees the first channel.
        n_classes: how many classes the network has.
    """
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    loss, device = 0.0, next(network.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(pictures.targets), BATCH):
            images: NDArray[np.uint8] = np.stack(pictures.images[start : start + BATCH])[..., :channels]
            targets = torch.from_numpy(pictures.targets[start : start + BATCH])
            logits = network(normalize(images).to(device)).cpu()
            loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            np.add.at(confusion, (targets.numpy(), logits.argmax(1).numpy()), 1)
    rows = tuple(tuple(int(count) for count in row) for row in confusion)
    return Validation(loss=loss / len(pictures.targets), confusion=rows)
