"""Inspector and Inspection: what the model saw in one frame.

`Inspector.inspect` never raises for a part: whatever fails inside becomes the inspection's fault, and from there an
`error` verdict. It also carries on a fault that came instead of a frame.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle import Bundle, Finding, Placement, Preprocessor, decode_classification, heatmap_from_cam
from agent.engines import Engine
from agent.errors import AgentError, BundleError, EngineError, ImageError
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
        findings: every class with its probability, highest first (classify); detections (detect).
        defect_score: 1 - P(good), 0 to 1; None when there is no result.
        uncertainty: entropy of the class probabilities over its maximum, 0 (sure) to 1 (no idea).
        heatmap: (h, w) float32, 0 to 1, over the whole frame at the graph's resolution: where the foremost defect class
            gets its score from; None when the graph has no map.
        ms: milliseconds per stage.
        bundle: which bundle.
        engine: which engine, in words: `onnxruntime 1.32.0 CPU int8, 1 thread`.
    """

    part: Part
    frame: Frame | None
    fault: Fault | None
    findings: tuple[Finding, ...] = ()
    defect_score: float | None = None
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
        bundle: gives input, classes and temperature.
        engine: runs its graph; the caller closes it.

    Raises:
        BundleError: a task that this agent can't decode.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        if bundle.manifest.task != "classify":
            raise BundleError(
                f"{bundle.path}: its task is {bundle.manifest.task}, this agent decodes classify",
                hint="update defect-agent",
            )
        self.ref = ref_from_bundle(bundle)
        self.engine_name = engine.name
        self._manifest = bundle.manifest
        self._engine = engine
        self._preprocess = Preprocessor(bundle.manifest.input)
        self._index = {name: i for i, name in enumerate(bundle.manifest.class_names)}

    def inspect(self, frame: Frame | Fault) -> Inspection:
        """See what is in one frame.

        Args:
            frame: the exposure, or the fault that came in its place and is carried on.

        Returns:
            The inspection. Whatever failed is its fault with the stage; nothing is raised for a part.
        """
        if isinstance(frame, Fault):
            return Inspection(part=frame.part, frame=None, fault=frame, bundle=self.ref, engine=self.engine_name)
        laps = _Laps(frame.capture_ms)
        try:
            tensor, placement = self._preprocess(frame.image)
            _refuse_blank(frame.image)
            laps.end()
            outputs = self._engine.infer(tensor)
            laps.end()
            seen = decode_classification(_logits(outputs), self._manifest)
            heatmap = self._heatmap(outputs, seen.findings, placement)
            laps.end()
        except Exception as error:  # a part must get its verdict, whatever failed
            fault = Fault(part=frame.part, stage=laps.stage, reason=_reason(error))
            return Inspection(
                part=frame.part, frame=frame, fault=fault, ms=laps.ms(), bundle=self.ref, engine=self.engine_name
            )
        return Inspection(
            part=frame.part,
            frame=frame,
            fault=None,
            findings=seen.findings,
            defect_score=seen.defect_score,
            uncertainty=seen.uncertainty,
            heatmap=heatmap,
            ms=laps.ms(),
            bundle=self.ref,
            engine=self.engine_name,
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
    """Times the stages one after the other, and knows which one is running."""

    _STAGES: tuple[Stage, ...] = ("preprocess", "infer", "decode")

    def __init__(self, capture_ms: float) -> None:
        self._capture_ms = capture_ms
        self._marks_ns = [time.perf_counter_ns()]

    @property
    def stage(self) -> Stage:
        return self._STAGES[min(len(self._marks_ns), len(self._STAGES)) - 1]

    def end(self) -> None:
        self._marks_ns.append(time.perf_counter_ns())

    def ms(self) -> StageMs:
        marks = self._marks_ns
        spent = {stage: (end - begin) / 1e6 for stage, begin, end in zip(self._STAGES, marks, marks[1:], strict=False)}
        return StageMs(capture=self._capture_ms, **spent)


def _logits(outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    if "logits" not in outputs:
        raise EngineError(f"the engine gave no logits; it gave {sorted(outputs)}")
    return outputs["logits"]


def _reason(error: Exception) -> str:
    """One line for the person at the line; the type tells ours from a surprise."""
    text = error.message if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
