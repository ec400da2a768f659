"""Training pictures as the network gets them: augmented, normalized, now and then blended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optimize.augment import augment
from optimize.export import normalize
from optimize.train_config import TrainConfig
from optimize.trainset import Pictures

__all__ = ["Batch", "Batches"]

Made: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.uint8] | None]"

VISIBLE = 128
"""Half of a pixel's mask: below that nothing of the defect is left in the crop."""

MIXED = 0.5
"""Share of the batches that are blended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What one step sees.

    Attributes:
        inputs: (N, C, S, S) float32, normalized.
        targets: (N, classes) probabilities; all 0 where nobody labelled the picture.
        masks: (N, S, S) float32, 1 on the defect, -1 everywhere on a picture whose mask is not known; None without
            masks.
        views: (N, C, V, V) float32, normalized: the same views at another size, for who looks more closely; None where
            nobody asked for them.
    """

    inputs: Tensor
    targets: Tensor
    masks: Tensor | None = None
    views: Tensor | None = None

    def on(self, device: torch.device) -> Batch:
        """The same on a device."""
        masks, views = (None if each is None else each.to(device) for each in (self.masks, self.views))
        return Batch(self.inputs.to(device), self.targets.to(device), masks, views)


class Batches:
    """Makes batches; what comes out depends on seed, epoch and image only.

    Args:
        config: the recipe.
        pictures: what there is to train on.
        n_classes: how many classes the targets have.
        channels: 3, or 1 for a grey network, which gets the first channel.
        background: the class of good parts, which need no mask; None when there is none.
        view_px: make `Batch.views` of this width and height too; None makes none.
    """

    def __init__(
        self,
        config: TrainConfig,
        pictures: Pictures,
        *,
        n_classes: int,
        channels: int,
        background: int | None,
        view_px: int | None = None,
    ) -> None:
        self._config, self._pictures, self._view_px = config, pictures, view_px
        self._n_classes, self._channels, self._background = n_classes, channels, background

    def make(self, images: NDArray[np.int64], size_px: int, epoch: int, random: np.random.Generator) -> Batch:
        """One batch.

        Args:
            images: (N,) positions of the pictures.
            size_px: width and height.
            epoch: from 1.
            random: of the epoch, the same in every process: decides on blending.
        """
        blend = self._config.blend
        is_mixed = blend > 0 and random.random() < MIXED
        share = float(random.beta(blend, blend)) if is_mixed else 1.0
        made = [self.picture(i, size_px, epoch, copy) for i, copy in _counted(images)]
        numbers = torch.from_numpy(self._shown(images, made))
        targets = torch.nn.functional.one_hot(numbers, self._n_classes).float()
        if self._pictures.is_labelled is not None:
            targets[torch.from_numpy(~self._pictures.is_labelled[images])] = 0
        batch = Batch(
            normalize(np.stack([picture for picture, _ in made])),
            targets,
            self._masks(images, made),
            self._views(images, size_px, epoch),
        )
        return _mixed(batch, share) if is_mixed else batch

    def _views(self, images: NDArray[np.int64], size_px: int, epoch: int) -> Tensor | None:
        """The same crops, turns and lights, at another size; the noise of the sensor is another one."""
        if self._view_px is None:
            return None
        views = [self.picture(i, size_px, epoch, copy, view_px=self._view_px)[0] for i, copy in _counted(images)]
        return normalize(np.stack(views))

    def _shown(self, images: NDArray[np.int64], made: Sequence[Made]) -> NDArray[np.int64]:
        """The class of each picture; one whose crop left the defect out shows a good part, where the set has those."""
        targets = self._pictures.targets[images]
        if self._background is not None:
            for row, (_, mask) in enumerate(made):
                if mask is not None and mask.max() < VISIBLE:
                    targets[row] = self._background
        return targets

    def _masks(self, images: NDArray[np.int64], made: Sequence[Made]) -> Tensor | None:
        """What is defect where; a picture without a mask shows a good part, or a defect nobody outlined."""
        if self._pictures.masks is None:
            return None
        size = made[0][0].shape[0]
        masks = np.zeros((len(made), size, size), dtype=np.float32)
        for row, (image, (_, mask)) in enumerate(zip(images, made, strict=True)):
            if mask is not None:
                masks[row] = mask / np.float32(255)
            elif self._pictures.targets[image] != self._background:
                masks[row] = -1
        return torch.from_numpy(masks)

    def picture(self, image: int, size_px: int, epoch: int, copy: int = 0, *, view_px: int | None = None) -> Made:
        """One augmented picture and its mask.

        Args:
            image: its position.
            size_px: width and height.
            epoch: from 1.
            copy: how often it came in this batch before; each time it looks different.
            view_px: show the same view at this width and height instead.

        Returns:
            (size_px, size_px, C) uint8 RGB or grey, and (size_px, size_px) uint8 or None.
        """
        key = [self._config.seed, epoch, image] + [copy] * (copy > 0)
        masks, shown_px = self._pictures.masks, view_px or size_px
        return augment(
            self._pictures.images[image][:, :, : self._channels],
            shown_px,
            self._config.augmentation,
            np.random.default_rng(key),
            mask=None if masks is None else masks[image],
            is_letterbox=self._config.resize == "letterbox",
            whole_px=None if self._config.window_px is None else round(self._config.size * shown_px / size_px),
        )


def _counted(images: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Each image with how often it stood in the row before."""
    seen: dict[int, int] = {}
    found = []
    for image in images.tolist():
        found.append((image, seen.get(image, 0)))
        seen[image] = seen.get(image, 0) + 1
    return found


def _mixed(batch: Batch, share: float) -> Batch:
    """Blend each picture and its target with another of the batch (Zhang et al., "mixup", ICLR 2018)."""
    return Batch(
        torch.lerp(batch.inputs.flip(0), batch.inputs, share),
        torch.lerp(batch.targets.flip(0), batch.targets, share),
        views=None if batch.views is None else torch.lerp(batch.views.flip(0), batch.views, share),
    )
