"""What a network is taught by: the labels of its pictures, or whoever else knows what they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.dataset import Dataset
from optimize.networks.classifier import Classifier
from optimize.train.batches import Batch
from optimize.train.losses import ClassLoss, place_loss
from optimize.train_config import TrainConfig

__all__ = ["LabelObjective", "Lesson", "Objective"]


class Objective(Protocol):
    """The loss of a run."""

    @property
    def beside(self) -> nn.Module | None:
        """What learns beside the network and is thrown away at the end; None for nothing."""

    def teachable(self, network: Classifier) -> nn.Module:
        """A module that gives, of (N, C, S, S) inputs, what the loss needs, in one pass of the network."""

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss.

        Args:
            outputs: of `teachable`.
            batch: what they are of, on the same device.
        """


class Lesson(Protocol):
    """What a run is given beside labelled images: other pictures, and another objective."""

    @property
    def run_of(self) -> Mapping[str, str]:
        """What a checkpoint must agree on."""

    def view_px(self, size_px: int) -> int | None:
        """The size at which the objective wants to see what the network sees at this one; None is content with it."""

    def parts(self, dataset: Dataset, seed: int) -> tuple[Mapping[str, Dataset], tuple[str, ...]]:
        """The images that train and those that choose, and what the user should know.

        Images that nobody labelled stand there with whatever label they are to be dealt out by, see `is_labelled`.
        """

    def is_labelled(self, part: Dataset) -> NDArray[np.bool_]:
        """(N,) which of these images somebody labelled."""

    def objective(self, network: Classifier, labels: LabelObjective) -> Objective:
        """What the network is taught by, given what the labels would teach."""


class LabelObjective:
    """Labels, and where there are some the masks.

    Args:
        config: the recipe.
        counts: (C,) how often an epoch shows each class.
        background: the class of good parts; None when there is none.
        device: where outputs come from.
    """

    def __init__(
        self, config: TrainConfig, counts: NDArray[np.int64], background: int | None, device: torch.device
    ) -> None:
        self.by_class = ClassLoss(config, counts, device)
        self._config, self._background = config, background

    @property
    def beside(self) -> nn.Module | None:
        """See `Objective`."""
        return None

    def teachable(self, network: Classifier) -> nn.Module:
        """See `Objective`."""
        return _Teachable(network, with_map=self._config.masks is not None)

    def __call__(self, outputs: tuple[Tensor, Tensor | None], batch: Batch) -> Tensor:
        """See `Objective`."""
        logits, maps = outputs
        loss = self.by_class(logits, batch.targets)
        if maps is not None and batch.masks is not None:
            taught = place_loss(maps, batch.targets, batch.masks, self._background, self.by_class.weights)
            loss = loss + self._config.mask_weight * taught
        return loss


class _Teachable(nn.Module):
    """Logits, and when masks teach places, the map that they come from: from one pass, for the processes' engine."""

    def __init__(self, network: Classifier, *, with_map: bool) -> None:
        super().__init__()
        self.network, self._with_map = network, with_map

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self._with_map:
            return self.network(images), None
        maps = self.network.mapped(self.network.features(images))
        return self.network.pooled(maps), maps + self.network.places()[1][:, None, None]
