"""Which images an epoch sees, in which order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimize.train_config import Sampler

__all__ = ["draw_epoch"]


def draw_epoch(targets: NDArray[np.int64], how: Sampler, random: np.random.Generator) -> NDArray[np.int64]:
    """Deal out an epoch.

    Args:
        targets: (N,) class numbers.
        how: `shuffled`: each image once; or `balanced`: as many of each class as if all were equally frequent. There an
            image of a rare class comes again and again (each time augmented anew), one of a frequent class not in
            every epoch.
        random: decides.

    Returns:
        (M,) positions in `targets`; M is N, up to rounding.
    """
    if how == "shuffled":
        return random.permutation(len(targets))
    classes = np.unique(targets)
    share = max(1, round(len(targets) / len(classes)))
    drawn = [_cycled(np.flatnonzero(targets == c), share, random) for c in classes]
    return random.permutation(np.concatenate(drawn))


def _cycled(images: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """So many of these images, none twice before each came once."""
    rounds = -(-count // len(images))
    return np.concatenate([random.permutation(images) for _ in range(rounds)])[:count]
