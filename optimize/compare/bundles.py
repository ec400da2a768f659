"""Bundles, a data set and this machine: from files to a comparison.

Every model judges the same pictures through the agent's own Inspector and Policy (`optimize.evaluate.judge_all`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from agent.bundle import Bundle
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.errors import ImageError
from agent.inspection import Inspector
from agent.verdict import Decision
from optimize.calibration import pick_evenly
from optimize.compare.comparison import Comparison, compare, operate
from optimize.compare.timing import Latency, interleaved_latency
from optimize.compare.units import Counted, Units, Verdicts, box_units, image_boxes, part_units
from optimize.dataset import Dataset, Sample, read_image
from optimize.detection_metrics import mean_precision
from optimize.errors import DataError, OptimizeError
from optimize.outcomes import judge_all
from optimize.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from agent.frame import BgrImage

__all__ = ["CompareOptions", "compare_bundles"]

TIMED_IMAGES = 24
"""Pictures that latency is measured on; they are kept in memory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """How bundles are compared.

    Attributes:
        split: what they are compared on.
        overkill: share of good parts that may be stopped; None takes the largest that one of their own limits costs.
        false_boxes: findings without a defect per picture, where the unit is the box; None the same.
        limits_from: the split that the limits are chosen on; None takes val where it can, else `split`.
        engine: what runs the graphs, and with how many threads.
    """

    split: str = "test"
    overkill: float | None = None
    false_boxes: float | None = None
    limits_from: str | None = None
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)


def compare_bundles(
    bundles: Sequence[Bundle], dataset: Dataset, options: CompareOptions, *, progress: Progress | None = None
) -> Comparison:
    """Judge, set limits, time and recommend.

    Args:
        bundles: two or more, with classes that give the same defects the same severity.
        dataset: a whole set, with labels or boxes.
        options: split, rate and engine.
        progress: hears what is judged.

    Raises:
        OptimizeError: bundles or data that can't be compared.
        EngineError: a graph can't be run.
    """
    names = _names(bundles)
    _check_bundles(bundles, names)
    compared = dataset.take(options.split)
    counted: Counted = "critical" if _has_critical(bundles) else "all"

    def judge(images: Dataset) -> list[Verdicts]:
        return _judge(bundles, names, images, options.engine, progress or SilentProgress())

    verdicts = judge(compared)
    is_box = _is_by_box(bundles, verdicts)
    units = _units(verdicts, counted, is_box=is_box)
    _check_units(units, compared)
    reference, source, notes = _reference(judge, dataset, options, units)
    operating = operate(units, reference, _rate(options, units, reference), source)
    notes = [*notes, *_counting_notes(units, operating.source)]
    timed = _times(bundles, names, compared, options.engine)
    return compare(units, operating, latency=timed, map50=_map50(verdicts), notes=notes)


def _judge(
    bundles: Sequence[Bundle], names: Sequence[str], dataset: Dataset, engine: EngineConfig, progress: Progress
) -> list[Verdicts]:
    """What every bundle says.

    Raises:
        OptimizeError: a bundle that could judge no image at all.
    """
    found = []
    for name, bundle in zip(names, bundles, strict=True):
        outcomes, _ = judge_all(bundle, dataset, engine, progress=progress)
        if all(outcome.decision is Decision.ERROR for outcome in outcomes):
            raise OptimizeError(
                f"{name}: could judge none of {len(outcomes)} images: {outcomes[0].reason}",
                hint=f"are these pictures of its parts? `defect-opt evaluate {bundle.path} --data DIR` judges it alone",
            )
        found.append(Verdicts(name=name, manifest=bundle.manifest, outcomes=outcomes))
    return found


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Name and version; the file's name where they are alike, its path where these are too."""
    ways: tuple[Callable[[Bundle], str], ...] = (
        lambda b: f"{b.manifest.name}-{b.manifest.version}",
        lambda b: b.path.stem,
    )
    for way in ways:
        names = [way(bundle) for bundle in bundles]
        if len(set(names)) == len(names):
            return names
    return [str(bundle.path) for bundle in bundles]


def _check_bundles(bundles: Sequence[Bundle], names: Sequence[str]) -> None:
    """See that there are two or more, and that they mean the same by their classes."""
    if len(bundles) < 2:
        raise OptimizeError(
            f"compare: got {len(bundles)} bundle, expected two or more",
            hint="defect-opt compare A.defect B.defect --data DIR",
        )
    for i, bundle in enumerate(bundles):
        same = next((other for other in bundles[:i] if other.digest == bundle.digest), None)
        if same is not None:
            raise OptimizeError(
                f"compare: {bundle.path} has the same content as {same.path}", hint="give two or more different bundles"
            )
    said: dict[str, tuple[str, str]] = {}
    for name, bundle in zip(names, bundles, strict=True):
        if bundle.manifest.task == "classify" and all(cls.severity != "ok" for cls in bundle.manifest.classes):
            raise OptimizeError(
                f"compare: {name}: no class of this classifier is ok, so it stops every part and can miss none",
                hint="train it with good parts, or look at its accuracy with `defect-opt evaluate`",
            )
        for cls in bundle.manifest.classes:
            severity, first = said.setdefault(cls.name, (cls.severity, name))
            if severity != cls.severity:
                raise OptimizeError(
                    f"compare: the class {cls.name} is {severity} in {first} and {cls.severity} in {name}, so they do "
                    "not miss the same",
                    hint="build them with the same severities under `classes` in defect-opt.yaml",
                )


def _has_critical(bundles: Sequence[Bundle]) -> bool:
    return any(cls.severity == "critical" for bundle in bundles for cls in bundle.manifest.classes)


def _is_by_box(bundles: Sequence[Bundle], verdicts: Sequence[Verdicts]) -> bool:
    """Whether overkill can't be had but false boxes can: all are detectors, on boxes, and no part is good."""
    outcomes = [outcome for v in verdicts for outcome in v.outcomes]
    return (
        all(bundle.manifest.task == "detect" for bundle in bundles)
        and all(outcome.boxes is not None for outcome in outcomes)
        and not part_units(verdicts, "all").exposures
    )


def _units(verdicts: Sequence[Verdicts], counted: Counted, *, is_box: bool) -> Units:
    return box_units(verdicts, counted) if is_box else part_units(verdicts, counted)


def _check_units(units: Units, dataset: Dataset) -> None:
    if not units.groups:
        what = "critical defect" if units.counted == "critical" else "defect"
        shown = Counter(name for sample in dataset for name in _shown_on(sample))
        raise DataError(
            f"{dataset.root}: none of {len(dataset)} images shows a {what}, so none can be missed "
            f"(there are: {', '.join(f'{name} {count}' for name, count in sorted(shown.items()))})",
            hint="give another --split or --data, or set the severity of `classes` in defect-opt.yaml",
        )


def _reference(
    judge: Callable[[Dataset], list[Verdicts]], dataset: Dataset, options: CompareOptions, units: Units
) -> tuple[Units | None, str, list[str]]:
    """What the limits are chosen on, what it is called, and what is to be said about that."""
    if options.limits_from is not None and not dataset.splits:
        raise DataError(f"--limits-from: {dataset.root} has no splits", hint="leave it out, or write splits.csv")
    split = options.limits_from or ("val" if "val" in dataset.splits else options.split)
    here = options.split if dataset.splits else "the same images"
    if split != options.split and dataset.splits:
        found = _units(judge(dataset.take(split)), units.counted, is_box=units.unit == "box")
        if found.exposures:
            what = "false boxes" if units.unit == "box" else "overkill (good parts rejected)"
            return found, split, [f"the limits were chosen on {split}, so {what} on {here} may differ a little"]
        if options.limits_from is not None:
            raise DataError(f"{dataset.root}: {split} has no good part to choose limits on", hint="--limits-from test")
    if not units.exposures:
        return None, "own", []
    return units, here, [f"the limits were chosen on {here}, so the misses are a little too few for all of them"]


def _rate(options: CompareOptions, units: Units, reference: Units | None) -> float | None:
    """The rate that was asked for, where it is of the kind that this set has."""
    if units.unit == "box" and options.overkill is not None:
        raise OptimizeError(
            "--overkill: there are no good parts, so boxes are compared",
            hint="give --false-boxes, how many findings without a defect per picture there may be",
        )
    if units.unit == "part" and options.false_boxes is not None:
        raise OptimizeError("--false-boxes: parts are compared here, not boxes", hint="give --overkill")
    if reference is None and options.overkill is not None:
        raise OptimizeError("--overkill: without good parts equal overkill can't be had", hint="leave it out")
    return options.false_boxes if units.unit == "box" else options.overkill


def _counting_notes(units: Units, source: str) -> Iterator[str]:
    if units.counted == "all":
        yield "no class is critical in these bundles, so all defects count alike"
    if units.unit == "box":
        yield "there are no good parts, so boxes are compared at equal false boxes per picture (FROC)"
    if source != "own" and units.exposures * 0.01 < 1 and units.unit == "part":
        share = 1 / units.exposures
        yield f"only {units.exposures} good parts here: one more that is rejected is {share:.1%} of overkill"


def _times(
    bundles: Sequence[Bundle], names: Sequence[str], dataset: Dataset, config: EngineConfig
) -> dict[str, Latency | None]:
    images = list(_some_images(dataset))
    with contextlib.ExitStack() as stack:
        inspectors = {}
        for name, bundle in zip(names, bundles, strict=True):
            engine = open_engine(bundle, config)
            stack.callback(engine.close)
            inspectors[name] = Inspector(bundle, engine)
        return interleaved_latency(inspectors, images)


def _some_images(dataset: Dataset) -> Iterator[BgrImage]:
    for sample in pick_evenly(dataset.samples, TIMED_IMAGES, 0):
        with contextlib.suppress(ImageError):  # it was judged as an error already
            yield read_image(sample.path)


def _shown_on(sample: Sample) -> Iterator[str]:
    if sample.label is not None:
        yield sample.label
    yield from {box.class_name for box in sample.boxes or ()} - {sample.label}


def _map50(verdicts: Sequence[Verdicts]) -> dict[str, float | None]:
    """Of each detector on a set with boxes; an image that could not be judged found nothing."""
    found: dict[str, float | None] = {}
    for v in verdicts:
        found[v.name] = None
        if v.manifest.task == "detect" and all(outcome.boxes is not None for outcome in v.outcomes):
            images = [image_boxes(outcome, v.manifest, are_all=True) for outcome in v.outcomes]
            found[v.name] = mean_precision(images, len(v.manifest.classes)).map50
    return found
