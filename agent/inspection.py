"""Inspector and Inspection: what the model saw in one frame.

`Inspector.inspect` never raises for a part: whatever fails inside becomes the inspection's fault, and from there an
`error` verdict. It also carries on a fault that came instead of a frame.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import (
    BoxDecoder,
    Bundle,
    DetectionSpec,
    Finding,
    Placement,
    Preprocessor,
    decode_classification,
    findings_from_boxes,
    heatmap_from_cam,
)
from agent.bundle.manifest import Task
from agent.bundle.tiles import Seen, Tile, merge_tiles, seen_in_tile, tiles_of
from agent.engines import Engine
from agent.errors import AgentError, EngineError, ImageError
from agent.frame import Fault, Frame, Part, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BundleRef", "Finding", "Inspection", "Inspector", "StageMs", "ref_from_bundle"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BundleRef:
    """Which bundle decided.

    Attributes:
        name: name and version, `neu-1.0.0`.
        digest: SHA-256 of its manifest, hex; it covers every file of the bundle.
    """

    name: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageMs:
    """What each stage took, in milliseconds."""

    capture: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the model saw, or why it saw nothing.

    Attributes:
        part: whose inspection this is.
        frame: the exposure; None when there was none.
        fault: the reason why there is no result; None when there is one.
        task: what the bundle does: `classify`, or `detect`, where no finding is a result too.
        findings: every class with its probability, highest first (classify); all detections, whatever their class and
            size, highest first (detect).
        defect_score: 0 to 1; 1 - P(good) (classify), or the highest score of a finding that is not `ok`, 0 without one
            (detect); None when there is no result.
        cut_at: where a detector found more than it keeps, the highest score that a finding left out may have; else 0.
        uncertainty: entropy of the class probabilities over its maximum, 0 (sure) to 1 (no idea); None of a detector.
        heatmap: (h, w) float32, 0 to 1, over the whole frame at the graph's resolution: where the foremost defect class
            gets its score from; None when the graph has no map.
        ms: milliseconds per stage.
        bundle: which bundle.
        engine: which engine, in words: `onnxruntime 1.32.0 CPU int8, 1 thread`.
    """

    part: Part
    frame: Frame | None
    fault: Fault | None
    task: Task = "classify"
    findings: tuple[Finding, ...] = ()
    defect_score: float | None = None
    cut_at: float = 0.0
    uncertainty: float | None = None
    heatmap: NDArray[np.float32] | None = None
    ms: StageMs = StageMs()
    bundle: BundleRef
    engine: str


def ref_from_bundle(bundle: Bundle) -> BundleRef:
    """The bundle as verdicts name it."""
    return BundleRef(name=f"{bundle.manifest.name}-{bundle.manifest.version}", digest=bundle.digest)


class Inspector:
    """Looks at frames with one bundle and one engine; one thread at a time.

    Args:
        bundle: gives input, classes, temperature, and how boxes are read.
        engine: runs its graph; the caller closes it.
        pixel_mm: one pixel of the frame in millimetres; None takes the bundle's, which may be unknown.
    """

    def __init__(self, bundle: Bundle, engine: Engine, *, pixel_mm: float | None = None) -> None:
        self.ref = ref_from_bundle(bundle)
        self.engine_name = engine.name
        self._task = bundle.manifest.task
        detection = bundle.manifest.detection
        self._eye: _Classifier | _Detector = (
            _Classifier(bundle, engine) if detection is None else _Detector(bundle, engine, detection, pixel_mm)
        )

    def inspect(self, frame: Frame | Fault) -> Inspection:
        """See what is in one frame.

        Args:
            frame: the exposure, or the fault that came in its place and is carried on.

        Returns:
            The inspection. Whatever failed is its fault with the stage; nothing is raised for a part.
        """
        same: dict[str, Any] = {"bundle": self.ref, "engine": self.engine_name, "task": self._task}
        if isinstance(frame, Fault):
            return Inspection(part=frame.part, frame=None, fault=frame, **same)
        laps = _Laps(frame.capture_ms)
        try:
            seen = self._eye.see(frame.image, laps)
        except Exception as error:  # a part must get its verdict, whatever failed
            fault = Fault(part=frame.part, stage=laps.stage, reason=_reason(error))
            return Inspection(part=frame.part, frame=frame, fault=fault, ms=laps.ms(), **same)
        return Inspection(
            part=frame.part,
            frame=frame,
            fault=None,
            findings=seen.findings,
            defect_score=seen.defect_score,
            cut_at=seen.cut_at,
            uncertainty=seen.uncertainty,
            heatmap=seen.heatmap,
            ms=laps.ms(),
            **same,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What was seen; fields as in `Inspection`."""

    findings: tuple[Finding, ...]
    defect_score: float
    cut_at: float = 0.0
    uncertainty: float | None = None
    heatmap: NDArray[np.float32] | None = None


class _Classifier:
    """Judges the picture as a whole."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._manifest = bundle.manifest
        self._engine = engine
        self._preprocess = Preprocessor(bundle.manifest.input)
        self._index = {name: i for i, name in enumerate(bundle.manifest.class_names)}

    def see(self, image: NDArray[np.uint8], laps: _Laps) -> _Sight:
        tensor, placement = self._preprocess(image)
        _refuse_blank(image)
        laps.go_on("infer")
        outputs = self._engine.infer(tensor)
        laps.go_on("decode")
        seen = decode_classification(_output(outputs, "logits"), self._manifest)
        return _Sight(
            findings=seen.findings,
            defect_score=seen.defect_score,
            uncertainty=seen.uncertainty,
            heatmap=self._heatmap(outputs, seen.findings, placement),
        )

    def _heatmap(
        self, outputs: Mapping[str, NDArray[np.float32]], findings: tuple[Finding, ...], placement: Placement
    ) -> NDArray[np.float32] | None:
        cam = outputs.get("cam")
        foremost = next((f for f in findings if f.severity != "ok"), None)
        if cam is None or foremost is None:
            return None
        heatmap = heatmap_from_cam(cam, self._index[foremost.class_name])
        return placement.map_to_image(heatmap, self._manifest.input)


class _Detector:
    """Finds boxes, in the whole picture or tile by tile."""

    def __init__(self, bundle: Bundle, engine: Engine, spec: DetectionSpec, pixel_mm: float | None) -> None:
        self._manifest = bundle.manifest
        self._engine = engine
        self._spec = spec
        self._pixel_mm = spec.pixel_mm if pixel_mm is None else pixel_mm
        self._preprocess = Preprocessor(bundle.manifest.input)
        self._input_px = min(bundle.manifest.input.width_px, bundle.manifest.input.height_px)
        self._decode = BoxDecoder(spec, len(bundle.manifest.classes))

    def see(self, image: NDArray[np.uint8], laps: _Laps) -> _Sight:
        shape = image.shape if isinstance(image, np.ndarray) and image.ndim == 3 else ()
        height, width = shape[:2] if shape else (1, 1)
        tiles = tiles_of(width, height, self._spec.tiling)
        if len(tiles) == 1:
            seen = self._look(image, laps, tiles[0], check=image)
        else:
            parts = []
            for at, tile in enumerate(tiles):
                laps.go_on("preprocess")
                x0, y0, x1, y1 = tile.corners
                parts.append((tile, self._look(image[y0:y1, x0:x1], laps, tile, check=None if at else image)))
            seen = merge_tiles(parts, width, height, self._spec, input_px=self._input_px)
        findings = findings_from_boxes(seen.boxes, seen.scores, seen.classes, self._manifest, self._pixel_mm)
        scores = [finding.score for finding in findings if finding.severity != "ok"]
        return _Sight(findings=findings, defect_score=max(scores, default=0.0), cut_at=seen.cut_at)

    def _look(self, image: NDArray[np.uint8], laps: _Laps, tile: Tile, *, check: NDArray[np.uint8] | None) -> Seen:
        """Detections of one tile in pixels of the picture; of a failing one the exception fails the part."""
        tensor, placement = self._preprocess(image)
        if check is not None:
            _refuse_blank(check)
        laps.go_on("infer")
        outputs = self._engine.infer(tensor)
        laps.go_on("decode")
        found = self._decode(_output(outputs, "boxes"), _output(outputs, "scores"))
        return seen_in_tile(found, placement, tile)


MIN_SIDE_PX = 8
"""A picture with a shorter side shows no part: no sensor is that small, and a model would answer all the same."""


def _refuse_blank(image: NDArray[np.uint8]) -> None:
    """A picture that shows nothing must not be judged: a network answers whatever it is given, `ok` too.

    A real sensor's noise makes at least two values; one value everywhere is a dead sensor, a lost signal, full
    saturation, or a lens cap on a camera that clips.

    Raises:
        ImageError: too small, or of one value everywhere.
    """
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(
            f"a picture of {width} x {height} px shows no part, expected {MIN_SIDE_PX} px or more each way"
        )
    if (image[0, 0] == image[-1, -1]).all() and (image == image[0, 0]).all():
        raise ImageError(f"every pixel has the same value {image[0, 0].tolist()} (blue, green, red): a blank picture")


class _Laps:
    """Times the stages, which may come again (tiles), and knows which one is running; the first is preprocessing."""

    def __init__(self, capture_ms: float) -> None:
        self.stage: Stage = "preprocess"
        self._capture_ms = capture_ms
        self._spent_ns: dict[Stage, int] = {}
        self._since_ns = time.perf_counter_ns()

    def go_on(self, stage: Stage) -> None:
        """The running stage ends, this one begins."""
        now_ns = time.perf_counter_ns()
        self._spent_ns[self.stage] = self._spent_ns.get(self.stage, 0) + now_ns - self._since_ns
        self.stage, self._since_ns = stage, now_ns

    def ms(self) -> StageMs:
        """All that was spent until now."""
        self.go_on(self.stage)
        spent = {stage: self._spent_ns.get(stage, 0) / 1e6 for stage in ("preprocess", "infer", "decode")}
        return StageMs(capture=self._capture_ms, **spent)


def _output(outputs: Mapping[str, NDArray[np.float32]], role: str) -> NDArray[np.float32]:
    if role not in outputs:
        raise EngineError(f"the engine gave no {role}; it gave {sorted(outputs)}")
    return outputs[role]


def _reason(error: Exception) -> str:
    """One line for the person at the line; the type tells ours from a surprise."""
    text = error.message if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
