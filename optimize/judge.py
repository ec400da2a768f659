"""What integer graphs lose against the float graph, on real pictures: accuracy, mAP50, or detections that are gone.

Quick, for the search: outputs come from ONNX Runtime directly, decisions are compared without the agent around them.
What a bundle promises is measured by `evaluate`, through the agent's own code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle.boxes import BoxDecoder
from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import Preprocessor
from agent.errors import ImageError
from optimize.calibration import FittedImages
from optimize.dataset import Dataset, Sample, read_image
from optimize.detection_metrics import ImageBoxes, mean_precision
from optimize.errors import DataError, ModelError
from optimize.progress import Progress, SilentProgress
from optimize.quantize.interpret import session_of
from optimize.quantize.kept import FINDING, KeptShare, kept_share, n_findings
from optimize.quantize.model import FloatModel, bytes_from_model
from optimize.quantize.place import Target
from optimize.quantize.sensitivity import snr_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Judge", "Loss"]

KEPT_BYTES = 512e6
"""Pictures are kept in memory up to here; more of them are read again for every graph."""

Outputs = list["NDArray[np.float32]"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What one integer graph loses.

    Attributes:
        drop_points: accuracy lost in percentage points; of a detector mAP50 where defects are outlined, else detections
            in percent. Negative when it is better.
        snr_db: signal to noise of the logits (or scores) against the float ones.
        n: pictures compared.
        accuracy: of the integer graph, 0 to 1; None for a detector.
        agreement: share of pictures with the float graph's class; None for a detector.
        kept: float detections that are still there, and those that are new; None for a classifier.
        map50: of the integer graph, 0 to 1; None where no defects are outlined.
    """

    drop_points: float
    snr_db: float
    n: int
    accuracy: float | None = None
    agreement: float | None = None
    kept: KeptShare | None = None
    map50: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kept = None if self.kept is None else {**dataclasses.asdict(self.kept), "share": self.kept.share_given}
        shares = {"accuracy": self.accuracy, "agreement": self.agreement, "map50": self.map50}
        values = {"n": self.n, "kept": kept, **shares}
        return {"drop_points": self.drop_points, "snr_db": round(self.snr_db, 2)} | {
            key: value for key, value in values.items() if value is not None
        }


class Judge:
    """Pictures, and what the float graph says to them.

    Args:
        model: the float model.
        classes: names in the order of its outputs.
        dataset: pictures; labelled for a classifier, with boxes for a detector where defects are outlined. Those that
            can't be read are left out: `evaluate` reports them.
        progress: hears what is read.

    Raises:
        DataError: no picture can be read.
        ModelError: a detector finds nothing in any of them.
    """

    def __init__(
        self, model: FloatModel, classes: Sequence[str], dataset: Dataset, progress: Progress | None = None
    ) -> None:
        self._model = model
        self._is_detector = model.task == "detect"
        progress = progress or SilentProgress()
        samples = [s for s in progress.track(dataset.samples, "reading val images") if _is_readable(s)]
        if not samples:
            raise DataError(
                f"{dataset.root}: no val image can be read",
                hint="`defect-opt data check DIR` names the files that can't be read",
            )
        fitted = FittedImages(samples, model.input)
        bytes_each = 3 * model.input.width_px * model.input.height_px
        self.pictures: Sequence[NDArray[np.uint8]] = list(fitted) if len(samples) * bytes_each < KEPT_BYTES else fitted
        index = {name: i for i, name in enumerate(classes)}
        self._labels = [index.get(str(sample.label), -1) for sample in samples]
        self._truths = list(_truths(samples, index, model.input)) if self._is_detector else []
        self._n_classes = len(classes)
        self.reference = self.outputs(bytes_from_model(model.proto), is_fused=True)
        if model.detection is not None and not n_findings(self.reference, model.detection):
            raise ModelError(
                f"{model.path}: finds nothing with a score of {FINDING:g} or more in {len(samples)} val pictures, so "
                "what INT8 loses can't be seen",
                hint="train it longer, or give val pictures with defects (--val)",
            )

    def outputs(self, graph: bytes, *, is_fused: bool) -> list[Outputs]:
        """Run a graph over the pictures.

        Args:
            graph: the bytes of an ONNX file.
            is_fused: as a CPU runs it; else each operator as the standard defines it.

        Returns:
            By picture: `[logits]` of a classifier, `[boxes, scores]` of a detector.
        """
        roles = self._model.outputs
        names = [roles.boxes, roles.scores] if self._is_detector else [roles.logits]
        session = session_of(graph, is_optimized=is_fused)
        source = self._model.input.name
        return [session.run(names, {source: picture}) for picture in self.pictures]

    def loss(self, graph: bytes, target: Target) -> Loss:
        """Compare a graph with the float one.

        Args:
            graph: an integer graph.
            target: a CPU's is run fused, as it will be; TensorRT's as the standard defines it.
        """
        found = self.outputs(graph, is_fused=target == "cpu")
        last = [np.concatenate([each[-1].reshape(1, -1) for each in side]) for side in (self.reference, found)]
        snr = snr_db(*last)
        if self._is_detector:
            return self._detector_loss(found, snr)
        wanted, got = (logits.argmax(axis=1) for logits in last)
        right = [float(np.mean(side == np.array(self._labels))) for side in (wanted, got)]
        return Loss(
            drop_points=round(100 * (right[0] - right[1]), 6),
            snr_db=snr,
            n=len(found),
            accuracy=right[1],
            agreement=float(np.mean(wanted == got)),
        )

    def _detector_loss(self, found: Sequence[Outputs], snr: float) -> Loss:
        before, after = ([(boxes, scores) for boxes, scores in side] for side in (self.reference, found))
        kept = kept_share(before, after, spec=self._model.detection)
        best, map50 = self.map50, self._map50(found)
        lost = 1 - kept.share_given if best is None or map50 is None else best - map50
        return Loss(drop_points=round(100 * lost, 6), snr_db=snr, n=len(found), kept=kept, map50=map50)

    @functools.cached_property
    def map50(self) -> float | None:
        """Of the float graph, 0 to 1; None for a classifier, and where no defects of known classes are outlined."""
        return self._map50(self.reference)

    def _map50(self, outputs: Sequence[Outputs]) -> float | None:
        spec = self._model.detection
        if spec is None or not any(len(truth.truth) for truth in self._truths):
            return None
        decode, images = BoxDecoder(spec, self._n_classes), []
        edges = np.array([self._model.input.width_px, self._model.input.height_px] * 2)
        for truth, (boxes, scores) in zip(self._truths, outputs, strict=True):
            seen = decode(boxes, scores)
            images.append(
                dataclasses.replace(
                    truth,
                    found=seen.boxes.astype(np.float64).clip(0, edges),  # as the agent cuts them to the picture
                    scores=seen.scores.astype(np.float64),
                    found_classes=seen.classes,
                )
            )
        return mean_precision(images, self._n_classes).map50

    @property
    def accuracy(self) -> float | None:
        """Of the float graph, 0 to 1; None for a detector."""
        if self._is_detector:
            return None
        logits = np.concatenate([each[0] for each in self.reference])
        return float(np.mean(logits.argmax(axis=1) == np.array(self._labels)))


def _truths(samples: Sequence[Sample], index: Mapping[str, int], spec: InputSpec) -> Iterator[ImageBoxes]:
    """What is outlined on each picture, in pixels of the input, and nothing found yet; empty without boxes."""
    fit = Preprocessor(spec)
    for sample in samples:
        boxes = [box for box in sample.boxes or () if box.class_name in index]
        placed = np.zeros((0, 4))
        if boxes:
            _, at = fit(read_image(sample.path))
            scale = np.array([at.width_px / at.image_width_px, at.height_px / at.image_height_px] * 2)
            edges = np.array([(box.left, box.top, box.right, box.bottom) for box in boxes])
            placed = edges * scale + np.array([at.left_px, at.top_px] * 2)
        yield ImageBoxes(
            truth=placed,
            truth_classes=np.array([index[box.class_name] for box in boxes], dtype=np.int64),
            is_ignored=np.array([box.is_ignored for box in boxes], dtype=np.bool_),
            found=np.zeros((0, 4)),
            scores=np.zeros(0),
            found_classes=np.zeros(0, dtype=np.int64),
        )


def _is_readable(sample: Sample) -> bool:
    try:
        read_image(sample.path)
    except ImageError:
        return False
    return True
