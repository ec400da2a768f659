"""Which few pictures of a big folder stand for all: spread over what there is to see, rare sights among them.

Each class gets its share, rare ones first; within a class pictures are taken by the greedy k-centre rule (T. Gonzalez,
"Clustering to minimize the maximum intercluster distance", 1985): the next one is the picture farthest from all that
were taken. Distances are between the float model's embeddings, or between small grey thumbnails where it gives none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from optimize.dataset import Sample, read_image
from optimize.errors import DataError, ModelError
from optimize.progress import Progress, SilentProgress
from optimize.quantize.interpret import session_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.quantize.model import FloatModel

__all__ = ["Sampler", "embeddings", "pick_representative", "shares", "thumbnails"]

Sampler = Literal["auto", "even", "kcentre"]

THUMBNAIL_PX = 8


def pick_representative(
    samples: Sequence[Sample], features: NDArray[np.float32], limit: int, seed: int
) -> list[Sample]:
    """Choose at most `limit` samples, by class (or by folder where there are no labels); sorted by file.

    The same samples, features, limit and seed give the same choice, in whatever order the samples come; of pictures
    equally far the first by file name is taken.

    Args:
        samples: what may be chosen from.
        features: (samples, D) float32, one row for each; what is near in them looks alike.
        limit: how many.
        seed: of each class's first picture.

    Raises:
        DataError: features that are not one finite row for each sample.
    """
    if features.ndim != 2 or len(features) != len(samples):
        raise DataError(f"features: got shape {list(features.shape)}, expected [{len(samples)}, D]")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"{samples[row].file}: its features are NaN or infinite")
    strata: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(samples)), key=lambda i: samples[i].file):
        strata[_stratum(samples[index])].append(index)
    share = shares({name: len(rows) for name, rows in strata.items()}, limit)
    rng = np.random.default_rng(seed)
    starts = {name: int(rng.integers(len(rows))) for name, rows in sorted(strata.items())}
    chosen = [
        samples[rows[i]]
        for name, rows in strata.items()
        for i in _farthest_first(features[rows], share[name], starts[name])
    ]
    return sorted(chosen, key=lambda sample: sample.file)


def shares(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Divide `limit` over classes: the rarest first, each at most an even part of what is left.

    A class that has less than its part gives all it has, and leaves the rest to the others.

    Args:
        counts: how many pictures each class has.
        limit: how many may be taken.

    Returns:
        How many of each class.
    """
    left = max(limit, 0)
    given: dict[str, int] = {}
    for place, name in enumerate(sorted(counts, key=lambda n: (counts[n], n))):
        part = -(-left // (len(counts) - place))  # rounded up: when some get one more, the rarest do
        given[name] = min(counts[name], part)
        left -= given[name]
    return given


def embeddings(
    model: FloatModel, images: Sequence[NDArray[np.uint8]], *, progress: Progress | None = None
) -> NDArray[np.float32] | None:
    """What the float model sees in pictures; only the features stay in memory.

    Args:
        model: a checked float classifier.
        images: (1, height_px, width_px, 3) uint8 RGB each, fitted as the device fits them.
        progress: hears which picture is in work.

    Returns:
        (images, D) float32; None for a model without an embedding.

    Raises:
        ModelError: ONNX Runtime can't run the model, or it gives NaN or infinity for a picture.
    """
    output = model.outputs.embedding
    if output is None:
        return None
    session = session_of(model.proto.SerializeToString(), is_optimized=True)
    rows: list[NDArray[np.float32]] = []
    numbers: Sequence[int] = range(len(images))
    for index in (progress or SilentProgress()).track(numbers, "looking at what the pictures show"):
        image = images[index]  # outside of what is translated: a picture that can't be read is no fault of the model
        try:
            row = session.run([output], {model.input.name: image})[0]
        except Exception as error:  # onnxruntime's exceptions have no common root but this
            raise ModelError(f"{model.path}: can't be run ({type(error).__name__})") from error
        if not np.isfinite(row).all():
            raise ModelError(
                f"{model.path}: its embedding of calibration image {index} is NaN or infinite",
                hint="the float model overflows on this picture: look at its weights and its normalization",
            )
        rows.append(np.asarray(row, dtype=np.float32).reshape(-1))
    return np.array(rows, dtype=np.float32)


def thumbnails(samples: Sequence[Sample], *, progress: Progress | None = None) -> NDArray[np.float32]:
    """What pictures look like from afar; only the features stay in memory.

    Args:
        samples: which.
        progress: hears which picture is in work.

    Returns:
        (samples, 76) float32: 8 x 8 grey means, and for blue, green and red the mean, the standard deviation, and the
        values that 1 % lie below and above; all of 0 to 1, each of the two parts divided by the root of its length.

    Raises:
        ImageError: a picture can't be read.
    """
    tracked = (progress or SilentProgress()).track(samples, "looking at what the pictures show")
    return np.array([_thumbnail(read_image(sample.path)) for sample in tracked], dtype=np.float32)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey.astype(np.float32), (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    pixels = image.reshape(-1, 3).astype(np.float32)
    low, high = np.percentile(pixels, [1, 99], axis=0)
    light = np.concatenate([pixels.mean(axis=0), pixels.std(axis=0), low, high])
    parts = (np.asarray(small).reshape(-1), light)
    return np.concatenate([part / 255 / np.sqrt(part.size) for part in parts]).astype(np.float32)


def _stratum(sample: Sample) -> str:
    if sample.label is not None:
        return f"class {sample.label}"
    return f"folder {PurePosixPath(sample.file).parent}"


def _farthest_first(features: NDArray[np.float32], count: int, start: int) -> list[int]:
    """The rows of a greedy k-centre choice, from `start` on; of rows equally far the first."""
    if count <= 0:
        return []
    chosen = [start]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < min(count, len(features)):
        apart = features - features[chosen[-1]]
        nearest = np.minimum(nearest, np.einsum("ij,ij->i", apart, apart, dtype=np.float64))
        nearest[chosen[-1]] = -1  # never again, not even where all that is left are copies
        chosen.append(int(np.argmax(nearest)))
    return chosen
