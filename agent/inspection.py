"""Inspector and Inspection: what the model saw in one frame, or in its region of interest (`agent.roi`).

`Inspector.inspect` never raises for a part: whatever fails inside becomes the inspection's fault, and from there an
`error` verdict. It also carries on a fault that came instead of a frame.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import (
    BoxDecoder,
    Bundle,
    DetectionSpec,
    Finding,
    Placement,
    Preprocessor,
    Tensor,
    decode_classification,
    findings_from_boxes,
    heatmap_from_cam,
)
from agent.bundle.manifest import InputSpec, Task
from agent.bundle.tiles import Seen, Tile, merge_tiles, seen_in_tile, tiles_of
from agent.engines import Engine
from agent.errors import AgentError, EngineError, ImageError
from agent.frame import Fault, Frame, Part, Stage
from agent.roi import Located, NotFound, Region, Roi, RoiMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BundleRef", "Finding", "Inspection", "Inspector", "Prepared", "StageMs", "ref_from_bundle"]


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
        not_found: why the part was not found in the frame: nothing was judged, and a person must look. None where it
            was, or where nobody searched.
        located: where the part was found; None where nobody searched.
        region: what of the frame the model saw; None when it saw all of it. Findings and heatmap are in the frame.
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
    not_found: str | None = None
    located: Located | None = None
    region: RoiMap | None = None
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
        pixel_mm: one pixel of what the model sees in millimetres; None takes the bundle's, which may be unknown.
        roi: what of the frame the model sees; None is all of it.
        buffers: frames that may be prepared and not yet inspected, the one in hand included.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        pixel_mm: float | None = None,
        roi: Roi | None = None,
        buffers: int = 1,
    ) -> None:
        self.ref = ref_from_bundle(bundle)
        self._roi = roi
        self.engine_name = engine.name
        self._task = bundle.manifest.task
        detection = bundle.manifest.detection
        self._eye: _Classifier | _Detector = (
            _Classifier(bundle, engine, buffers)
            if detection is None
            else _Detector(bundle, engine, detection, pixel_mm, buffers)
        )

    def prepare(self, frame: Frame | Fault) -> Prepared:
        """Do what comes before the engine: find the region, fit it to the input. One thread, which may be another.

        Args:
            frame: the exposure, or the fault that came in its place and is carried on.

        Returns:
            What `inspect` takes; it holds one of the buffers until then. Nothing is raised for a part.
        """
        if isinstance(frame, Fault):
            return Prepared(part=frame.part, fault=frame, laps=_Laps(0.0).paused())
        laps = _Laps(frame.capture_ms)
        region: Region | NotFound | None = None
        try:
            region = self._region(frame.image)
            image = region.image if isinstance(region, Region) else frame.image
            given = None if isinstance(region, NotFound) else self._eye.prepare(image)
        except Exception as error:  # a part must get its verdict, whatever failed
            fault = Fault(part=frame.part, stage="preprocess", reason=_reason(error))
            return Prepared(part=frame.part, frame=frame, fault=fault, laps=laps.paused())
        return Prepared(part=frame.part, frame=frame, region=region, given=given, laps=laps.paused())

    def inspect(self, frame: Frame | Fault | Prepared) -> Inspection:
        """See what is in one frame.

        Args:
            frame: the exposure, or the fault that came in its place and is carried on; prepared or not.

        Returns:
            The inspection. Whatever failed is its fault with the stage; nothing is raised for a part.
        """
        prepared = frame if isinstance(frame, Prepared) else self.prepare(frame)
        exposure, region, laps = prepared.frame, prepared.region, prepared.laps
        same: dict[str, Any] = {"part": prepared.part, "frame": exposure, "bundle": self.ref, "task": self._task}
        same["engine"] = self.engine_name
        if prepared.fault is not None or exposure is None:
            return Inspection(fault=prepared.fault, ms=laps.ms(), **same)
        if isinstance(region, NotFound):
            return Inspection(fault=None, not_found=region.reason, ms=laps.ms(), **same)
        laps.resume()
        try:
            seen = self._see(exposure.image, region, prepared.given, laps)
        except Exception as error:  # a part must get its verdict, whatever failed
            fault = Fault(part=prepared.part, stage=laps.stage, reason=_reason(error))
            return Inspection(fault=fault, ms=laps.ms(), **same)
        return Inspection(
            fault=None,
            findings=seen.findings,
            defect_score=seen.defect_score,
            cut_at=seen.cut_at,
            uncertainty=seen.uncertainty,
            heatmap=seen.heatmap,
            located=None if region is None else region.located,
            region=None if region is None else region.map,
            ms=laps.ms(),
            **same,
        )

    def _region(self, image: NDArray[np.uint8]) -> Region | NotFound | None:
        """What of the frame the model sees; None is all of it."""
        if self._roi is None:
            return None
        taken = self._roi.take(image)
        _refuse_blank(image)  # a dead sensor is no part that lies elsewhere
        return taken

    def _see(
        self, image: NDArray[np.uint8], region: Region | None, given: tuple[Tensor, Placement] | None, laps: _Laps
    ) -> _Sight:
        if region is None:
            return self._eye.see(image, given, laps)
        return _in_frame(self._eye.see(region.image, given, laps), region.map)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A frame on its way to the engine.

    Attributes:
        part: whose it is.
        frame: the exposure; None when there was none.
        fault: why there is nothing to look at; None when there is.
        region: what of the frame the model sees.
        given: the input and where the picture lies in it; None for a picture that is looked at tile by tile.
        laps: the stages' times so far.
    """

    part: Part
    frame: Frame | None = None
    fault: Fault | None = None
    region: Region | NotFound | None = None
    given: tuple[Tensor, Placement] | None = None
    laps: _Laps


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What was seen; fields as in `Inspection`."""

    findings: tuple[Finding, ...]
    defect_score: float
    cut_at: float = 0.0
    uncertainty: float | None = None
    heatmap: NDArray[np.float32] | None = None


def _in_frame(seen: _Sight, place: RoiMap) -> _Sight:
    """What was seen in a region, in pixels of its frame; sizes stay as they were measured in the region."""
    findings = tuple(
        finding if finding.box_px is None else dataclasses.replace(finding, box_px=place.box_to_frame(finding.box_px))
        for finding in seen.findings
    )
    heatmap = None if seen.heatmap is None else place.heatmap_to_frame(seen.heatmap)
    return dataclasses.replace(seen, findings=findings, heatmap=heatmap)


class _Classifier:
    """Judges the picture as a whole."""

    def __init__(self, bundle: Bundle, engine: Engine, buffers: int) -> None:
        self._manifest = bundle.manifest
        self._engine = engine
        self._preprocess = _in_turn(bundle.manifest.input, buffers)
        self._index = {name: i for i, name in enumerate(bundle.manifest.class_names)}

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Tensor, Placement]:
        given = next(self._preprocess)(image)
        _refuse_blank(image)
        return given

    def see(self, _image: NDArray[np.uint8], given: tuple[Tensor, Placement] | None, laps: _Laps) -> _Sight:
        assert given is not None
        tensor, placement = given
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

    def __init__(
        self, bundle: Bundle, engine: Engine, spec: DetectionSpec, pixel_mm: float | None, buffers: int
    ) -> None:
        self._manifest = bundle.manifest
        self._engine = engine
        self._spec = spec
        self._pixel_mm = spec.pixel_mm if pixel_mm is None else pixel_mm
        self._preprocess = _in_turn(bundle.manifest.input, buffers)
        self._preprocess_tile = Preprocessor(bundle.manifest.input)
        self._input_px = min(bundle.manifest.input.width_px, bundle.manifest.input.height_px)
        self._decode = BoxDecoder(spec, len(bundle.manifest.classes))

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Tensor, Placement] | None:
        """The whole picture's input; None for one that is looked at tile by tile."""
        given = next(self._preprocess)(image) if len(self._tiles(image)) == 1 else None
        _refuse_blank(image)
        return given

    def see(self, image: NDArray[np.uint8], given: tuple[Tensor, Placement] | None, laps: _Laps) -> _Sight:
        height, width = image.shape[:2]
        tiles = self._tiles(image)
        if given is not None:
            seen = self._look(given, laps, tiles[0])
        else:
            parts = []
            for tile in tiles:
                laps.go_on("preprocess")
                x0, y0, x1, y1 = tile.corners
                parts.append((tile, self._look(self._preprocess_tile(image[y0:y1, x0:x1]), laps, tile)))
            seen = merge_tiles(parts, width, height, self._spec, input_px=self._input_px)
        findings = findings_from_boxes(seen.boxes, seen.scores, seen.classes, self._manifest, self._pixel_mm)
        scores = [finding.score for finding in findings if finding.severity != "ok"]
        return _Sight(findings=findings, defect_score=max(scores, default=0.0), cut_at=seen.cut_at)

    def _tiles(self, image: NDArray[np.uint8]) -> Sequence[Tile]:
        shape = image.shape if isinstance(image, np.ndarray) and image.ndim == 3 else ()
        height, width = shape[:2] if shape else (1, 1)
        return tiles_of(width, height, self._spec.tiling)

    def _look(self, given: tuple[Tensor, Placement], laps: _Laps, tile: Tile) -> Seen:
        """Detections of one tile in pixels of the picture; of a failing one the exception fails the part."""
        tensor, placement = given
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
        self._since_ns: int | None = time.perf_counter_ns()

    def go_on(self, stage: Stage) -> None:
        """The running stage ends, this one begins."""
        now_ns = time.perf_counter_ns()
        if self._since_ns is not None:
            self._spent_ns[self.stage] = self._spent_ns.get(self.stage, 0) + now_ns - self._since_ns
        self.stage, self._since_ns = stage, now_ns

    def paused(self) -> _Laps:
        """Itself; what passes until `resume` is no stage's: the frame waits for the engine."""
        self.go_on(self.stage)
        self._since_ns = None
        return self

    def resume(self) -> None:
        """The running stage goes on."""
        self._since_ns = time.perf_counter_ns()

    def ms(self) -> StageMs:
        """What the stages have taken."""
        self.go_on(self.stage)
        spent = {stage: self._spent_ns.get(stage, 0) / 1e6 for stage in ("preprocess", "infer", "decode")}
        return StageMs(capture=self._capture_ms, **spent)


def _in_turn(spec: InputSpec, buffers: int) -> Iterator[Preprocessor]:
    """Preprocessors that share no buffer, one after the other, for ever."""
    return itertools.cycle([Preprocessor(spec) for _ in range(buffers)])


def _output(outputs: Mapping[str, NDArray[np.float32]], role: str) -> NDArray[np.float32]:
    if role not in outputs:
        raise EngineError(f"the engine gave no {role}; it gave {sorted(outputs)}")
    return outputs[role]


def _reason(error: Exception) -> str:
    """One line for the person at the line; the type tells ours from a surprise."""
    text = error.message if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
