"""Calibration images: which are taken, and what must not be among them.

The ranges of an INT8 graph are read off these pictures. They must come from the line's own camera, show every class,
and share nothing with the test split: a range that has seen the test pictures makes every number better than it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from agent.bundle import InputSpec, fit
from agent.errors import ImageError
from optimize.dataset import Dataset, Sample, read_image
from optimize.errors import DataError
from optimize.fingerprints import fingerprint
from optimize.progress import Progress, SilentProgress
from optimize.representative import Sampler, embeddings, pick_representative, thumbnails

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.quantize.model import FloatModel

__all__ = ["FEW_IMAGES", "MIN_IMAGES", "Calibration", "FittedImages", "Selection", "pick_calibration", "pick_evenly"]

MIN_IMAGES = 8
"""Fewest that we take. Of n + 1 pictures like each other each is as likely as any other to hold a tensor's largest
value, so the next picture leaves the range that n have shown with probability 1 / (n + 1): over 11 % with fewer than 8,
for every tensor of the graph."""

FEW_IMAGES = 50
"""From here the next picture stays within a tensor's range with a probability of 98 %; below we warn."""

AUTO_AMONG = 5000
"""The sampler `auto` looks at so many pictures at most, dealt evenly: reading and running one takes some 10 ms."""

_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The pictures that ranges are read off.

    Attributes:
        dataset: the pictures, sorted by file.
        warnings: what the user should know, one sentence each.
    """

    dataset: Dataset
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Which pictures of a big folder are taken.

    Attributes:
        limit: at most so many, divided evenly over the classes.
        seed: the same seed chooses the same.
        sampler: `kcentre` takes them as far from each other as it can, `even` deals them out; `auto` is `kcentre`
            among at most `AUTO_AMONG` that were dealt out.
        model: the float model, whose embedding says what is far; without one thumbnails do.
    """

    limit: int = 300
    seed: int = 0
    sampler: Sampler = "auto"
    model: FloatModel | None = None


class FittedImages(Sequence["NDArray[np.uint8]"]):
    """Pictures as the device fits them, read when they are asked for: memory stays at one.

    Args:
        samples: which.
        spec: the graph's input.
    """

    def __init__(self, samples: Sequence[Sample], spec: InputSpec) -> None:
        self._samples = samples
        self._spec = spec

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> FittedImages: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | FittedImages:
        """One picture, (1, height_px, width_px, 3) uint8 RGB; or some of them, still unread."""
        if isinstance(index, slice):
            return FittedImages(self._samples[index], self._spec)
        return fit(read_image(self._samples[index].path), self._spec)[None]


def pick_calibration(
    dataset: Dataset,
    *,
    test: Iterable[Sample] = (),
    val: Iterable[Sample] = (),
    classes: Sequence[str] = (),
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Choose calibration images and check them.

    Args:
        dataset: what may be chosen from: a `calib` split, or a flat folder.
        test: pictures that must not be among them, by file, by bytes or by pixels.
        val: pictures that should not be.
        classes: the model's classes, to see which are missing.
        selection: which are taken when there are too many; None takes the defaults.
        progress: hears what is read.

    Raises:
        DataError: fewer than `MIN_IMAGES`, unreadable files, or files of the test split; all of them named.
    """
    if len(dataset) < MIN_IMAGES:
        raise DataError(
            f"{dataset.root}: got {len(dataset)} calibration image{'s' * (len(dataset) != 1)}, expected at least "
            f"{MIN_IMAGES}, better {FEW_IMAGES} or more",
            hint="put pictures from the line's own camera there, good and bad ones; 100 to 500 are enough",
        )
    progress = progress or SilentProgress()
    chosen = _selected(dataset, selection or Selection(), progress)
    prints = _fingerprints(chosen, progress)
    shared_test = _shared(prints, test, progress, "checking that no test image is among them")
    if shared_test:
        raise DataError(
            f"{dataset.root}: {len(shared_test)} of {len(chosen)} calibration images are in the test split: "
            f"{_listed(shared_test)}",
            hint="take them out of one of the two: calibrated on test pictures, test numbers are worth nothing",
        )
    shared_val = _shared(prints, val, progress, "comparing with the val images")
    return Calibration(dataset=chosen, warnings=(*_alike(chosen, prints), *_warnings(chosen, classes, shared_val)))


def _selected(dataset: Dataset, selection: Selection, progress: Progress) -> Dataset:
    """The pictures by the selection; all of them where there are no more than its limit."""
    limit, seed = selection.limit, selection.seed
    if len(dataset) <= limit:
        return dataset
    if selection.sampler == "even":
        return dataclasses.replace(dataset, samples=tuple(pick_evenly(dataset.samples, limit, seed)))
    among = dataset.samples
    if selection.sampler == "auto":
        among = tuple(pick_evenly(among, max(AUTO_AMONG, limit), seed))
    try:
        features = _features(among, selection.model, progress)
    except ImageError:
        # One picture that can't be read ended it; this names them all.
        _fingerprints(dataclasses.replace(dataset, samples=among), progress)
        raise
    return dataclasses.replace(dataset, samples=tuple(pick_representative(among, features, limit, seed)))


def _features(samples: Sequence[Sample], model: FloatModel | None, progress: Progress) -> NDArray[np.float32]:
    if model is not None:
        found = embeddings(model, FittedImages(samples, model.input), progress=progress)
        if found is not None:
            return found
    return thumbnails(samples, progress=progress)


def pick_evenly(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Choose at most `limit` samples, as many of each class as there are, dealt in turn; sorted by file.

    The same samples, limit and seed give the same choice on every machine.
    """
    rng = np.random.default_rng(seed)
    by_label: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: s.file):
        by_label[sample.label or ""].append(sample)
    shuffled = [[group[i] for i in rng.permutation(len(group))] for _, group in sorted(by_label.items())]
    turns = itertools.zip_longest(*shuffled)
    dealt = [sample for turn in turns for sample in turn if sample is not None]
    return sorted(dealt[:limit], key=lambda s: s.file)


def _fingerprints(dataset: Dataset, progress: Progress) -> dict[str, Sample]:
    """Path, bytes and pixels of every calibration image, each to its sample.

    Raises:
        DataError: files that can't be read as pictures, all of them.
    """
    prints: dict[str, Sample] = {}
    broken: list[str] = []
    for sample in progress.track(dataset.samples, "reading calibration images"):
        found = fingerprint(sample)
        if isinstance(found, str):
            broken.append(found)
        else:
            prints.update(dict.fromkeys(found, sample))
    if broken:
        raise DataError(
            f"{dataset.root}: {len(broken)} of {len(dataset)} calibration images can't be used: {_listed(broken)}",
            hint="copy them again, or take them out",
        )
    return prints


def _shared(prints: Mapping[str, Sample], others: Iterable[Sample], progress: Progress, text: str) -> list[str]:
    """Calibration images that are also among the others: `a.jpg (test/b.jpg)`."""
    others = tuple(others)
    found: dict[str, str] = {}
    if not others:
        return []
    for other in progress.track(others, text):
        prints_of_other = fingerprint(other)
        if isinstance(prints_of_other, str):
            continue  # a broken picture has no pixels to share; `evaluate` reports it as an error
        mine = next((prints[p] for p in prints_of_other if p in prints), None)
        if mine is not None:
            found[mine.file] = mine.file if mine.file == other.file else f"{mine.file} (the same as {other.file})"
    return [found[file] for file in sorted(found)]


def _alike(dataset: Dataset, prints: Mapping[str, Sample]) -> Iterator[str]:
    """Pictures that are the same, pixel by pixel: they show a range once, however many there are."""
    distinct = sum(name.startswith("pixels ") for name in prints)
    if distinct < len(dataset):
        yield (
            f"{len(dataset) - distinct} of {len(dataset)} calibration images are the same picture as another one: only "
            f"{distinct} different ones are there to read ranges off"
        )


def _warnings(dataset: Dataset, classes: Sequence[str], shared_val: list[str]) -> Iterator[str]:
    if len(dataset) < FEW_IMAGES:
        yield (
            f"only {len(dataset)} calibration images: the next picture leaves a tensor's range with probability "
            f"{1 / (len(dataset) + 1):.0%}; {FEW_IMAGES} or more are better"
        )
    counted = Counter(sample.label for sample in dataset)
    missing = [name for name in classes if not counted[name]]
    if missing and None not in counted:
        yield f"no calibration image shows {', '.join(missing)}: rare defects carry the largest values"
    if shared_val:
        yield (
            f"{len(shared_val)} calibration images are in the val split too, so the measured drop is a little too "
            f"good: {_listed(shared_val)}"
        )


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
