"""The inspector: whatever fails for a part becomes its fault, with the stage; nothing is raised, nothing passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.bundle import Bundle, InputSpec, Outputs, Tensor
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.errors import EngineError
from agent.frame import Fault, Stage
from agent.inspection import BundleRef, Inspection, Inspector, ref_from_bundle
from agent.verdict import Decision, Policy
from tests.kit.bundles import make_bundle
from tests.kit.frames import BLACK, GREY, RED, WHITE, frame_of, part_of, plain_image
from tests.kit.models import classifier, constant_classifier

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inspector(bundle: Bundle) -> Inspector:
    return Inspector(bundle, open_engine(bundle, EngineConfig()))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


class ScriptedEngine:
    """An engine that answers with what it is told to: another implementation of the `Engine` protocol."""

    kind = "scripted"
    name = "scripted"

    def __init__(self, answer: Callable[[], Mapping[str, Any]]) -> None:
        self._answer = answer

    def infer(self, tensor: Tensor) -> Mapping[str, NDArray[np.float32]]:
        return self._answer()

    def close(self) -> None:
        return


def raising(error: BaseException) -> Callable[[], Mapping[str, Any]]:
    def answer() -> Mapping[str, Any]:
        raise error

    return answer


def assert_fault(seen: Inspection, stage: Stage, words: str) -> None:
    """No result of any kind beside the fault, and the policy makes it an error."""
    assert seen.fault is not None
    assert (seen.fault.stage, seen.fault.part) == (stage, seen.part)
    assert words in seen.fault.reason
    assert seen.findings == ()
    assert seen.defect_score is None
    assert seen.uncertainty is None
    assert seen.heatmap is None


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((48, 64), dtype=np.uint8),
        np.zeros((48, 64, 4), dtype=np.uint8),
        np.zeros((48, 64, 3), dtype=np.uint16),
        np.zeros((0, 64, 3), dtype=np.uint8),
        None,
    ],
)
def test_a_frame_that_is_no_picture_is_a_fault(bundle: Bundle, image: Any) -> None:
    """A camera driver's mistake must not stop the line, nor pass the part."""
    seen = inspector(bundle).inspect(frame_of(image))

    assert_fault(seen, "preprocess", "(H, W, 3) uint8 BGR" if image is None or image.size else "no pixels")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_gives_nan_is_a_fault(tmp_path: Path, value: float) -> None:
    """A real graph with a real NaN, through the real runtime."""
    graph = constant_classifier((0.0, float(value), 0.0))
    bundle = make_bundle(tmp_path, graph=graph, outputs=Outputs(logits="logits"))

    seen = inspector(bundle).inspect(frame_of(plain_image(WHITE)))

    assert_fault(seen, "decode", "expected finite numbers")
    assert Policy(bundle.manifest.policy).judge(seen).decision is Decision.ERROR


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EngineError("the device is gone"), "the device is gone"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("CUDA error\n  at line 3"), "RuntimeError: CUDA error at line 3"),
        (AssertionError("x" * 5000), "AssertionError: xxx"),
    ],
)
def test_an_engine_that_fails_is_a_fault_in_one_line(bundle: Bundle, error: Exception, words: str) -> None:
    """Also with an exception that no engine should let out."""
    seen = Inspector(bundle, ScriptedEngine(raising(error))).inspect(frame_of(plain_image(WHITE)))

    assert_fault(seen, "infer", words)
    assert seen.fault is not None
    assert len(seen.fault.reason) <= 300
    assert "\n" not in seen.fault.reason


def test_an_interrupt_is_no_fault_of_the_part(bundle: Bundle) -> None:
    """Ctrl-C must get through."""
    with pytest.raises(KeyboardInterrupt):
        Inspector(bundle, ScriptedEngine(raising(KeyboardInterrupt()))).inspect(frame_of(plain_image(WHITE)))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "gave no logits"),
        ({"logits": np.zeros((1, 2), dtype=np.float32)}, "expected (1, 3)"),
        ({"logits": [1, 2, 3]}, "AttributeError"),
        ({"logits": np.zeros((1, 3)), "cam": np.zeros((1, 1, 4, 4))}, "cam: got shape (1, 1, 4, 4)"),
        ({"logits": np.array([[0, 0, 1]]), "cam": np.full((1, 3, 4, 4), np.nan)}, "not numbers"),
    ],
)
def test_outputs_that_make_no_sense_are_a_fault(bundle: Bundle, outputs: Mapping[str, Any], words: str) -> None:
    """An engine is hardware and a driver: what it gives is checked."""
    seen = Inspector(bundle, ScriptedEngine(lambda: outputs)).inspect(frame_of(plain_image(WHITE)))

    assert_fault(seen, "decode", words)


def test_a_closed_engine_is_a_fault(bundle: Bundle) -> None:
    """A part that comes while the station shuts down still gets its verdict."""
    engine = open_engine(bundle, EngineConfig())
    watching = Inspector(bundle, engine)
    engine.close()

    assert_fault(watching.inspect(frame_of(plain_image(WHITE))), "infer", "is closed")


def test_a_fault_that_came_instead_of_a_frame_is_carried_on(bundle: Bundle) -> None:
    """The part is not lost between camera and verdict."""
    fault = Fault(part=part_of("p-7"), stage="capture", reason="truncated JPEG")

    seen = inspector(bundle).inspect(fault)

    assert (seen.part, seen.frame, seen.fault) == (fault.part, None, fault)
    assert seen.bundle == ref_from_bundle(bundle)


def test_the_inspector_works_on_after_a_fault(bundle: Bundle) -> None:
    """One bad part costs one error, not the shift."""
    watching = inspector(bundle)
    watching.inspect(frame_of(np.zeros((2, 2), dtype=np.uint8)))

    assert watching.inspect(frame_of(plain_image(BLACK))).findings[0].class_name == "scratch"


@pytest.mark.parametrize(
    ("colour", "first", "decision"),
    [
        (WHITE, "good", Decision.OK),
        (BLACK, "scratch", Decision.DEFECT),
        (RED, "stain", Decision.DEFECT),
        (GREY, "good", Decision.DEFECT),
    ],
)
def test_a_picture_is_seen_for_what_it_is(
    bundle: Bundle, colour: tuple[int, int, int], first: str, decision: Decision
) -> None:
    """From BGR pixels to a decision, through the real runtime; red proves the colour order."""
    seen = inspector(bundle).inspect(frame_of(plain_image(colour)))

    assert seen.fault is None
    assert seen.findings[0].class_name == first
    assert len(seen.findings) == 3
    assert Policy(bundle.manifest.policy).judge(seen).decision is decision


def test_without_an_opinion_the_uncertainty_is_one(bundle: Bundle) -> None:
    """Middle grey gives equal logits; a sure picture gives next to none."""
    watching = inspector(bundle)

    assert watching.inspect(frame_of(plain_image(GREY))).uncertainty == pytest.approx(1.0)
    assert (watching.inspect(frame_of(plain_image(RED))).uncertainty or 0) < 0.01


def test_an_inspection_says_what_made_it_and_how_long_it_took(bundle: Bundle) -> None:
    """Traceable: bundle, engine, frame, and each stage's milliseconds."""
    frame = frame_of(plain_image(WHITE), capture_ms=7.5)
    watching = inspector(bundle)

    seen = watching.inspect(frame)

    assert seen.frame is frame
    assert seen.bundle == BundleRef(name="kit-1.0.0", digest=bundle.digest)
    assert seen.engine == watching.engine_name
    assert seen.ms.capture == 7.5
    assert min(seen.ms.preprocess, seen.ms.infer, seen.ms.decode) > 0


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_heatmap_is_hot_where_the_defect_is(tmp_path: Path, resize: Any) -> None:
    """Over the frame, not over the padded input; 0 to 1."""
    image = plain_image(WHITE, width=160, height=80)
    image[:40, :40] = RED
    spec = InputSpec(width_px=32, height_px=32, resize=resize)
    bundle = make_bundle(tmp_path / "heat.defect", input=spec)

    seen = inspector(bundle).inspect(frame_of(image))

    assert seen.heatmap is not None
    assert seen.heatmap.shape == (8, 8)
    assert seen.heatmap.dtype == np.float32
    assert seen.heatmap[1:3, 0].min() > 0.9
    assert seen.heatmap[5:].max() < 0.5
    assert seen.heatmap[:, 3:].max() < 0.5
    assert (seen.heatmap.min() >= 0, seen.heatmap.max() <= 1) == (True, True)


def test_without_a_map_there_is_no_heatmap(tmp_path: Path) -> None:
    """A graph whose head has none is as good as any other."""
    graph = classifier(with_cam=False)
    bundle = make_bundle(tmp_path, graph=graph, outputs=Outputs(logits="logits"))

    seen = inspector(bundle).inspect(frame_of(plain_image(BLACK)))

    assert seen.fault is None
    assert seen.heatmap is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((48, 64, 3), 255, np.uint8), "a blank picture"),
        (np.zeros((48, 64, 3), np.uint8), "a blank picture"),
        (np.random.default_rng(1).integers(0, 255, (1, 1, 3), np.uint8), "a picture of 1 x 1 px shows no part"),
        (np.random.default_rng(1).integers(0, 255, (900, 1, 3), np.uint8), "a picture of 1 x 900 px shows no part"),
    ],
)
def test_a_picture_that_shows_nothing_is_a_fault_and_never_ok(
    bundle: Bundle, image: NDArray[np.uint8], words: str
) -> None:
    """The kit's classifier calls white good: a saturated sensor would pass every part."""
    assert_fault(inspector(bundle).inspect(frame_of(image)), "preprocess", words)
