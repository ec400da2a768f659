"""Losses that see a rare defect: class weights, focal loss, logit adjustment."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optimize.train_config import ClassWeights, TrainConfig

__all__ = ["ClassLoss", "class_weights", "place_loss"]

EFFECTIVE_BETA = 0.999
"""Cui et al. 2019 tried 0.9 to 0.9999; 0.999 suits classes of ten to a few thousand images."""

COVERED = 0.25
"""Share of a place that a mask must cover for the place to count as defect."""


def class_weights(counts: NDArray[np.int64], how: ClassWeights) -> NDArray[np.float32]:
    """How much an image of each class weighs; the mean over all images is 1.

    Args:
        counts: (C,) training images of each class, at least 1.
        how: `none`; `inverse` to its count, so that every class weighs the same; `sqrt`: inverse to the square root of
            its count, half way between (Mahajan et al., ECCV 2018, for sampling); or `effective`: inverse to the
            effective number of images, (1 - b^n) / (1 - b), which ends the growth for classes that are very rare (Cui
            et al., "Class-balanced loss based on effective number of samples", CVPR 2019).
    """
    numbers = counts.astype(np.float64)
    if how == "none":
        return np.ones(len(counts), dtype=np.float32)
    if how == "sqrt":
        numbers = np.sqrt(numbers)
    if how == "effective":
        numbers = (1 - EFFECTIVE_BETA**numbers) / (1 - EFFECTIVE_BETA)
    weights = 1 / numbers
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), dtype=np.float32)


class ClassLoss:
    """The loss of logits against targets that may be mixtures.

    Args:
        config: which loss, and its numbers.
        counts: (C,) how often an epoch shows each class.
        device: where logits come from.
    """

    def __init__(self, config: TrainConfig, counts: NDArray[np.int64], device: torch.device) -> None:
        self._config = config
        self._weights = torch.from_numpy(class_weights(counts, config.class_weights)).to(device)
        prior = torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32)).to(device)
        self._shift = config.logit_adjustment * prior

    @property
    def weights(self) -> Tensor:
        """(C,) how much an image of each class weighs."""
        return self._weights

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the pictures.

        Logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10): in training each
        logit gets the logarithm of its class's share, so that the network itself does not prefer what is frequent.

        Args:
            logits: (N, C).
            targets: (N, C) probabilities.
        """
        logs = torch.log_softmax(logits + self._shift, dim=1)
        weighed = self._smoothed(targets * self._weights)
        if self._config.loss == "focal":
            # What is sure already counts little: (1 - p)^gamma (Lin et al., "Focal loss", ICCV 2017, eq. 5).
            weighed = weighed * (1 - logs.exp()).clamp_min(1e-6) ** self._config.focal_gamma
        return -(weighed * logs).sum(1).mean()

    def _smoothed(self, weighed: Tensor) -> Tensor:
        """Spread a share of each picture's weight evenly over all classes.

        PyTorch's own smoothing weighs what it spreads by the classes it falls on: every good part would be pulled to
        the rarest class.
        """
        share = self._config.label_smoothing
        return weighed * (1 - share) + weighed.sum(1, keepdim=True) * share / weighed.shape[1]


def place_loss(maps: Tensor, targets: Tensor, masks: Tensor, background: int | None, weights: Tensor) -> Tensor:
    """What the activation map says at each place, against what the mask shows there.

    A place is defect where the mask covers a quarter of it, or at least half as much as it covers of the place that it
    covers most (a defect of a few pixels fills no place). A place that is touched less teaches nothing, nor does any
    place of a picture whose mask is not known. Good places and defect places weigh the same, and so do large and small
    defects: a scratch of two places is as bad as a stain of fifty.

    Args:
        maps: (N, C, h, w) logits by place.
        targets: (N, C) probabilities; the most likely class is what a defect place shows.
        masks: (N, S, S) float32, see `optimize.train.batches.Batch`.
        background: the class of good places; None when the set has none: then only defect places teach.
        weights: (C,) how much a defect of each class weighs.
    """
    is_known = (masks.amin((1, 2)) >= 0).float()
    cover = torch.nn.functional.adaptive_avg_pool2d(masks.clamp_min(0)[:, None], (maps.shape[2], maps.shape[3]))[:, 0]
    top = cover.amax((1, 2), keepdim=True)
    is_defect = ((cover > 0) & ((cover >= COVERED) | (cover >= top / 2))).float()
    is_good = (cover == 0).float() * is_known[:, None, None]
    logs = torch.log_softmax(maps, dim=1)
    shown = -logs.gather(1, targets.argmax(1)[:, None, None, None].expand(-1, 1, *maps.shape[2:]))[:, 0]
    per_picture = (shown * is_defect).sum((1, 2)) / is_defect.sum((1, 2)).clamp_min(1)
    weighs = weights[targets.argmax(1)] * is_defect.amax((1, 2))
    loss = (per_picture * weighs).sum() / max(len(targets), 1)
    if background is None:
        return loss
    return loss + (-logs[:, background] * is_good).sum() / is_good.sum().clamp_min(1)
