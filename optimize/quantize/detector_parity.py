"""Whether a detector is read and fed as it was trained: other readings are tried on calibration pictures, and lose.

```text
outlined defects      how many each reading finds (IoU from 0.5, right class); a clearly better one refuses the build
no outlines           boxes must lie in the picture, and those of the mirrored picture must be the mirrored boxes
```

Tried are other codings of the boxes, red and blue exchanged, stretched for letterboxed pictures, and 0 to 255 for 0 to
1. What a model's own metadata say (ours) is no guess, and is not tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle.boxes import BoxDecoder, Detections, box_iou
from agent.bundle.detection import DetectionSpec
from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import Placement, Preprocessor
from agent.errors import EngineError, ImageError
from optimize.dataset import read_image
from optimize.errors import ModelError
from optimize.quantize.detector_forms import separated
from optimize.quantize.graph import metadata_of
from optimize.quantize.model import FloatModel, bytes_from_model
from optimize.quantize.onnx_file import open_session, run_session
from optimize.quantize.parity import as_fed
from optimize.quantize.priors import count_of
from optimize.quantize.readings import PRIOR_FORMS, SCALES, priors_of
from optimize.recipe import RECIPE_FILE, DetectorRecipe, PreprocessRecipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.samples import LabelledBox, Sample

__all__ = ["ReadingCheck", "check_reading"]

MIN_BOXES = 10
"""Fewer outlined defects show nothing: that only the other reading finds all of ten is chance once in a thousand."""

IOU = 0.5
MAX_P = 1e-3
MIN_GAIN = 0.05
"""By which share of the defects the other reading must be better, and with which probability by chance."""

GOOD_SHARE, MIN_LEAD = 0.6, 0.3
"""Without outlines: a reading is believed when so many of its boxes are, and by so much more than of the chosen one."""

PLAUSIBLE_FROM = 0.25
SLACK = 0.1
MAX_LOOKED_AT = 20

Outputs = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadingCheck:
    """What became of the other readings; none was clearly better.

    Attributes:
        n: pictures.
        boxes: outlined defects on them; 0 where nobody outlined any.
        share: of the outlined defects, found as read; without outlines, of the boxes, those that are believed. None
            when nothing was found at all.
        tried: the other readings, as the recipe would name them, with their share.
        warnings: one sentence each.
    """

    n: int
    boxes: int
    share: float | None
    tried: tuple[tuple[str, float | None], ...]
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One reading.

    Attributes:
        remedy: how the recipe names it.
        spec: how the outputs are decoded.
        input: how pictures are fitted.
        swaps: red and blue are exchanged.
        how: what the model as it came is fed in place of what the adopted graph does; None runs the adopted graph.
        is_coding: only the decoding differs from the chosen one.
    """

    remedy: str
    spec: DetectionSpec
    input: InputSpec
    swaps: bool = False
    how: PreprocessRecipe | None = None
    is_coding: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """A picture as read: (H, W, 3) BGR, and its boxes of known classes as (n, 4) corners in its pixels with classes."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]


def check_reading(
    model: FloatModel, samples: Sequence[Sample], classes: Sequence[str], how: DetectorRecipe
) -> ReadingCheck | None:
    """Try other readings on pictures.

    Args:
        model: what `read_model` gave.
        samples: real pictures, with outlined defects where there are any.
        classes: names in output order.
        how: the recipe's section.

    Returns:
        What was found; None for a classifier, and for a model whose own metadata say how it is read.

    Raises:
        ModelError: another reading is clearly better; the sentence names it.
    """
    if model.detection is None or "detection" in metadata_of(model.proto):
        return None
    seen = list(_seen(samples, classes))
    if not seen:
        return None
    chosen = _Trial(remedy="", spec=model.detection, input=model.input)
    trials = [chosen, *_others(model, seen)]
    runner = _Runner(model)
    if sum(len(picture.boxes) for picture in seen) >= MIN_BOXES:
        return _by_outlines(model.path, runner, seen, trials, how)
    return _by_mirror(model.path, runner, seen, trials, how)


def _seen(samples: Sequence[Sample], classes: Sequence[str]) -> Iterator[_Seen]:
    index = {name: i for i, name in enumerate(classes)}
    for sample in samples:
        try:
            image = read_image(sample.path)
        except ImageError:
            continue  # calibration reports it
        boxes = [box for box in sample.boxes or () if box.class_name in index and not box.is_ignored]
        yield _Seen(
            image=image,
            boxes=np.array([_edges(box) for box in boxes], np.float64).reshape(-1, 4),
            classes=np.array([index[box.class_name] for box in boxes], np.int64),
        )


def _edges(box: LabelledBox) -> tuple[float, float, float, float]:
    return box.left, box.top, box.right, box.bottom


def _others(model: FloatModel, seen: Sequence[_Seen]) -> Iterator[_Trial]:
    """All that the recipe could say instead."""
    assert model.detection is not None
    spec, fitted = model.detection, model.input
    for form, coded in _codings(model, spec):
        yield _Trial(remedy=f"detector: {{form: {form}}}", spec=coded, input=fitted)
    adoption = model.adoption
    if adoption is None or adoption.preprocess is None:
        return
    how = adoption.preprocess
    if how.colour != "grey" and any(np.ptp(picture.image, axis=2).max() > 0 for picture in seen):
        other = "bgr" if how.colour == "rgb" else "rgb"
        yield _Trial(remedy=f"preprocess: {{colour: {other}}}", spec=spec, input=fitted, swaps=True, is_coding=False)
    if any(_differs(picture.image, fitted) for picture in seen):
        resize: Any = "letterbox" if fitted.resize == "stretch" else "stretch"
        changed = dataclasses.replace(fitted, resize=resize)
        yield _Trial(remedy=f"preprocess: {{resize: {resize}}}", spec=spec, input=changed, is_coding=False)
    if set(how.mean) == {0.0} and set(how.std) == {1.0}:
        scale, words = (1.0, "1") if how.scale < 0.1 else (1 / 255, "1/255")
        changed_how = dataclasses.replace(how, scale=scale)
        remedy = f"preprocess: {{scale: {words}}}"
        yield _Trial(remedy=remedy, spec=spec, input=fitted, how=changed_how, is_coding=False)


def _codings(model: FloatModel, spec: DetectionSpec) -> Iterator[tuple[str, DetectionSpec]]:
    """Other codings of as many boxes."""
    plain = {"levels": (), "scale_xy": 1.0, "scale_wh": 1.0}
    for form in ("corners", "centre"):
        if spec.boxes != form:
            yield form, dataclasses.replace(spec, boxes=form, **plain)  # type: ignore[arg-type]
    detector = None if model.adoption is None else model.adoption.detector
    count = 0 if detector is None else detector.boxes
    for prior_form in PRIOR_FORMS:
        levels = priors_of(prior_form, (model.input.width_px, model.input.height_px))
        if levels and count_of(levels) == count and levels != spec.levels:
            xy, wh = SCALES.get(prior_form, (1.0, 1.0))
            yield (
                prior_form,
                dataclasses.replace(spec, boxes="deltas", levels=levels, scale_xy=xy, scale_wh=wh),
            )


def _differs(image: NDArray[np.uint8], fitted: InputSpec) -> bool:
    """Whether stretching changes the picture's proportions by over two percent."""
    height, width = image.shape[:2]
    return bool(abs(width * fitted.height_px / (height * fitted.width_px) - 1) > 0.02)


class _Runner:
    """Runs a picture as a trial says; what the adopted graph gave is kept for the next coding."""

    def __init__(self, model: FloatModel) -> None:
        self._model = model
        self._session = open_session(str(model.path), bytes_from_model(model.proto))
        self._original: Any = None
        self._kept: dict[tuple[int, bool, InputSpec, bool, PreprocessRecipe | None], Outputs] = {}

    def __call__(
        self, number: int, picture: _Seen, trial: _Trial, *, is_mirrored: bool = False
    ) -> tuple[Detections, Placement]:
        """The detections of a picture in pixels of the input, and where it lies there."""
        tensor, placement = Preprocessor(trial.input)(picture.image)
        key = (number, is_mirrored, trial.input, trial.swaps, trial.how)
        if key not in self._kept:
            fed = tensor[:, :, ::-1] if is_mirrored else tensor
            self._kept[key] = self._run(np.ascontiguousarray(fed[..., ::-1] if trial.swaps else fed), trial.how)
        boxes, scores = self._kept[key]
        limits = {"score_above": min(trial.spec.score_above, PLAUSIBLE_FROM), "nms_iou": min(trial.spec.nms_iou, 0.7)}
        spec = dataclasses.replace(trial.spec, tiling=None, **limits)  # type: ignore[arg-type]
        return BoxDecoder(spec, self._model.count)(boxes, scores), placement

    def _run(self, tensor: NDArray[np.uint8], how: PreprocessRecipe | None) -> Outputs:
        model = self._model
        if how is None:
            found = run_session(str(model.path), self._session, model.heads, {model.input.name: tensor})
            return found["boxes"], found["scores"]
        adoption = model.adoption
        assert adoption is not None
        assert adoption.detector is not None
        if self._original is None:
            self._original = open_session(str(model.path), adoption.original)
        names = [value.name for value in self._original.get_outputs()]
        floats = as_fed(dataclasses.replace(adoption, preprocess=how), tensor)
        outputs = run_session(str(model.path), self._original, names, {adoption.input: floats})
        parts = separated(adoption.detector, {name: value[:1] for name, value in outputs.items()})
        return parts["boxes"].astype(np.float32), parts["scores"].astype(np.float32)


def _by_outlines(
    path: Path, runner: _Runner, seen: Sequence[_Seen], trials: Sequence[_Trial], how: DetectorRecipe
) -> ReadingCheck:
    """Which outlined defects each reading finds."""
    found = {trial.remedy: _hits(path, runner, seen, trial) for trial in trials}
    chosen = found.pop("")
    assert chosen is not None
    sound = {remedy: hits for remedy, hits in found.items() if hits is not None}
    tried = tuple((remedy, None if hits is None else float(hits.mean())) for remedy, hits in found.items())
    best = max(sound, key=lambda remedy: int(sound[remedy].sum()), default=None)
    warnings = []
    if best is not None and _is_clear(chosen, sound[best]):
        got, better, of = int(chosen.sum()), int(sound[best].sum()), len(chosen)
        sentence = (
            f"as it is read it finds {got} of {of} outlined defects on calibration pictures, with `{best}` {better}"
        )
        warnings.append(_refused(path, sentence, best, how))
    elif not chosen.any() and how.check == "refuse":
        raise ModelError(
            f"{path}: as it is read it finds none of {len(chosen)} outlined defects on calibration pictures, and no "
            "other reading that is known finds more",
            hint=f"look at preprocess and detector in {RECIPE_FILE}; `detector: {{check: warn}}` builds it anyway",
        )
    elif chosen.mean() < 0.2:
        warnings.append(
            f"as it is read it finds only {int(chosen.sum())} of {len(chosen)} outlined defects on calibration "
            f"pictures, and no other reading finds more: look at preprocess and detector in {RECIPE_FILE}"
        )
    return ReadingCheck(
        n=len(seen), boxes=len(chosen), share=float(chosen.mean()), tried=tried, warnings=tuple(warnings)
    )


def _refused(path: Path, sentence: str, remedy: str, how: DetectorRecipe) -> str:
    """Refuse, or give the sentence as a warning where the recipe wants it so."""
    if how.check == "refuse":
        raise ModelError(
            f"{path}: {sentence}",
            hint=f"write `{remedy}` in {RECIPE_FILE}; or `detector: {{check: warn}}` if it is right as it is",
        )
    return f"{sentence}: `{remedy}` in {RECIPE_FILE} would be right"


def _is_clear(chosen: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """McNemar's exact test, one-sided: of the defects that one of the two finds, has the other more than by luck?"""
    gained, lost = int((other & ~chosen).sum()), int((chosen & ~other).sum())
    return gained - lost >= MIN_GAIN * len(chosen) and _by_chance(gained, gained + lost) < MAX_P


def _by_chance(events: int, n: int) -> float:
    """The probability of so many or more of n when either way is as likely."""
    return float(sum(math.comb(n, k) for k in range(events, n + 1)) / 2**n)


def _hits(path: Path, runner: _Runner, seen: Sequence[_Seen], trial: _Trial) -> NDArray[np.bool_] | None:
    """For each outlined defect whether it is found among the best; None where the numbers can't be read so."""
    found = []
    for number, picture in enumerate(seen):
        try:
            detections, placement = runner(number, picture, trial)
        except EngineError as error:
            if trial.remedy:
                return None
            raise _unreadable(path, error) from error
        best = slice(0, 2 * len(picture.boxes) + 3)
        overlap = box_iou(_in_input(picture.boxes, placement), detections.boxes[best])
        found.append((overlap >= IOU) & (picture.classes[:, None] == detections.classes[None, best]))
    return np.concatenate([rows.any(axis=1) for rows in found])


def _unreadable(path: Path, error: EngineError) -> ModelError:
    return ModelError(
        f"{path}: can't be read as it is claimed to be: {error.message}",
        hint=f"write `detector: {{scores: sigmoid}}` (or softmax, where a background comes first) in {RECIPE_FILE}",
    )


def _in_input(boxes: NDArray[np.float64], at: Placement) -> NDArray[np.float64]:
    scale = np.array([at.width_px / at.image_width_px, at.height_px / at.image_height_px] * 2)
    placed: NDArray[np.float64] = boxes * scale + np.array([at.left_px, at.top_px] * 2)
    return placed


def _by_mirror(
    path: Path, runner: _Runner, seen: Sequence[_Seen], trials: Sequence[_Trial], how: DetectorRecipe
) -> ReadingCheck:
    """Which boxes lie in the picture and come again, mirrored, in the mirrored picture."""
    found = {trial.remedy: _believed(path, runner, seen, trial) for trial in trials}
    is_coding = {trial.remedy: trial.is_coding for trial in trials}
    chosen = found.pop("")
    assert chosen is not None
    tried = tuple((remedy, _share(hits)) for remedy, hits in found.items())
    sound = {remedy: hits for remedy, hits in found.items() if hits is not None and len(hits) >= MIN_BOXES}
    best = max(sound, key=lambda remedy: float(sound[remedy].mean()), default=None)
    warnings = []
    share, own = 0.0 if best is None else float(sound[best].mean()), _share(chosen)
    if best is not None and share >= GOOD_SHARE and share - (own or 0.0) >= MIN_LEAD:
        sentence = (
            f"of its boxes {own or 0.0:.0%} lie in the picture and come again in the mirrored one, with `{best}` "
            f"{share:.0%} of {len(sound[best])}"
        )
        # Without outlines only the coding is beyond doubt: a net that is fed wrongly may still be consistent.
        softer = how if is_coding[best] else dataclasses.replace(how, check="warn")
        warnings.append(_refused(path, sentence, best, softer))
    elif own is not None and len(chosen) >= MIN_BOXES and own < GOOD_SHARE / 2:
        warnings.append(
            f"only {own:.0%} of its boxes lie in the picture and come again in the mirrored one: look at preprocess "
            f"and detector in {RECIPE_FILE}, or give calibration pictures with outlined defects"
        )
    return ReadingCheck(n=len(seen), boxes=0, share=own, tried=tried, warnings=tuple(warnings))


def _share(hits: NDArray[np.bool_] | None) -> float | None:
    return None if hits is None or not len(hits) else float(hits.mean())


def _believed(path: Path, runner: _Runner, seen: Sequence[_Seen], trial: _Trial) -> NDArray[np.bool_] | None:
    """For each of the best boxes whether it is believed; None where the numbers can't be read so."""
    found = [np.zeros(0, np.bool_)]
    for number, picture in enumerate(seen):
        try:
            detections, placement = runner(number, picture, trial)
            mirrored, _ = runner(number, picture, trial, is_mirrored=True)
        except EngineError as error:
            if trial.remedy:
                return None
            raise _unreadable(path, error) from error
        sure = np.flatnonzero(detections.scores >= PLAUSIBLE_FROM)[:MAX_LOOKED_AT]
        boxes, width = detections.boxes[sure], trial.input.width_px
        back = mirrored.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
        again = (box_iou(boxes, back) >= IOU) & (detections.classes[sure, None] == mirrored.classes[None, :])
        found.append(again.any(axis=1) & _is_inside(boxes, placement))
    return np.concatenate(found)


def _is_inside(boxes: NDArray[np.float32], at: Placement) -> NDArray[np.bool_]:
    """Whether a box has a size and lies in the picture, but for a tenth of the picture's side."""
    size = np.array([at.width_px, at.height_px])
    first, last = (np.array([at.left_px, at.top_px]) + size * share for share in (-SLACK, 1 + SLACK))
    sides = boxes[:, 2:] - boxes[:, :2]
    holds = (sides >= 1) & (boxes[:, :2] >= first) & (boxes[:, 2:] <= last) & (sides <= size * (1 + SLACK))
    inside: NDArray[np.bool_] = np.all(holds, axis=1)
    return inside
