"""A detector from pixels to findings, through the real runtime: places in the frame, sizes in mm, faults as faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.bundle import Bundle, ClassSpec, DetectionSpec, PriorLevel, Tensor
from agent.bundle.golden import Golden, golden_files, golden_outputs, is_as_recorded
from agent.bundle.preprocess import fit
from agent.checks import check_station
from agent.config import EngineConfig, PolicyConfig
from agent.engines import open_engine
from agent.errors import EngineError
from agent.frame import Fault
from agent.inspection import Finding, Inspector
from agent.verdict import Decision, policy_from_config
from tests.kit.frames import frame_of, part_of
from tests.kit.spots import SPEC, dark_picture, make_detector, plant, spot_inspector

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 256, 128


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_detector(tmp_path)


class Answers:
    """An engine that answers with what it is told to: another implementation of the `Engine` protocol."""

    kind = "scripted"
    name = "scripted"

    def __init__(self, **outputs: Any) -> None:
        self._outputs = outputs

    def infer(self, tensor: Tensor) -> Mapping[str, NDArray[np.float32]]:
        return self._outputs

    def close(self) -> None:
        return


def answering(bundle: Bundle, boxes: Any, scores: Any, **keys: Any) -> Inspector:
    engine = Answers(boxes=np.array([boxes], dtype=np.float32), scores=np.array([scores], dtype=np.float32))
    return Inspector(bundle, engine, **keys)


# Bad input


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "the engine gave no boxes; it gave []"),
        ({"boxes": np.zeros((1, 3, 4))}, "the engine gave no scores; it gave ['boxes']"),
        ({"boxes": np.zeros((1, 3, 4)), "scores": np.zeros((1, 3, 2))}, "scores: got shape (1, 3, 2)"),
        ({"boxes": np.full((1, 3, 4), np.nan), "scores": np.zeros((1, 3, 3))}, "boxes: the model gave values"),
        ({"boxes": np.zeros((1, 3, 4)), "scores": np.full((1, 3, 3), np.inf)}, "scores: the model gave values"),
        ({"boxes": np.zeros((1, 3, 4)), "scores": np.full((1, 3, 3), 7.0)}, "expected probabilities from 0 to 1"),
        ({"boxes": [1, 2], "scores": np.zeros((1, 3, 3))}, "AttributeError"),
    ],
)
def test_outputs_that_make_no_sense_are_a_fault_and_an_error_verdict(
    bundle: Bundle, outputs: dict[str, Any], words: str
) -> None:
    """A part in which nothing could be found is not a part in which nothing is."""
    seen = Inspector(bundle, Answers(**outputs)).inspect(frame_of(dark_picture(WIDTH, HEIGHT)))

    assert seen.fault is not None
    assert seen.fault.stage == "decode"
    assert words in seen.fault.reason
    assert (seen.findings, seen.defect_score) == ((), None)
    assert policy_from_config(PolicyConfig(), bundle.manifest).judge(seen).decision is Decision.ERROR


def test_a_blank_picture_is_a_fault(bundle: Bundle) -> None:
    """A detector finds nothing on a black picture, and a dead camera's parts would all pass."""
    seen = spot_inspector(bundle).inspect(frame_of(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)))

    assert seen.fault is not None
    assert "a blank picture" in seen.fault.reason


def test_a_fault_that_came_instead_of_a_frame_is_carried_on(bundle: Bundle) -> None:
    """As of a classifier."""
    fault = Fault(part=part_of("p-7"), stage="capture", reason="truncated JPEG")

    seen = spot_inspector(bundle).inspect(fault)

    assert (seen.part, seen.frame, seen.fault, seen.task) == (fault.part, None, fault, "detect")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"classes": (ClassSpec(name="scratch", severity="major"),)},
            "scores: got shape (1, 3, 3), expected (1, 3, 1)",
        ),
        (
            {
                "detection": DetectionSpec(
                    boxes="distances",
                    levels=(PriorLevel(rows=2, columns=2, step_x_px=8, step_y_px=8, sizes_px=((8, 8),)),),
                )
            },
            "boxes: got shape (1, 3, 4), expected (1, 4, 4)",
        ),
    ],
)
def test_a_graph_that_does_not_fit_its_manifest_is_refused_at_the_start(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Before the first part, not with it."""
    bundle = make_detector(tmp_path, **changes)

    with pytest.raises(EngineError) as caught:
        open_engine(bundle, EngineConfig())

    assert words in caught.value.message


# Where and how large


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(256, 128), (128, 256), (64, 64), (640, 640), (48, 32)])
def test_a_finding_lies_in_the_frame_where_the_defect_is(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    """Whatever was done to fit the picture to the input: to one pixel of the input."""
    width, height = size
    image = dark_picture(width, height)
    box = (width // 4, height // 2, width // 4, height // 4)
    plant(image, "scratch", box, 0.9)

    seen = spot_inspector(make_detector(tmp_path, resize=resize)).inspect(frame_of(image))

    (found,) = seen.findings
    assert (found.class_name, found.severity, found.zone) == ("scratch", "major", None)
    assert found.score == pytest.approx(0.9, abs=0.01)
    assert found.box_px == pytest.approx(box, abs=max(width, height, 64) / 64)


def test_findings_are_all_that_was_seen_best_first_and_the_score_is_that_of_the_worst_defect(bundle: Bundle) -> None:
    """What is no defect is a finding too, but gives no score."""
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "mark", (10, 10, 40, 40), 1.0)
    plant(image, "stain", (100, 10, 40, 40), 0.6)
    plant(image, "scratch", (100, 80, 40, 40), 0.4)

    seen = spot_inspector(bundle).inspect(frame_of(image))

    assert [f.class_name for f in seen.findings] == ["mark", "stain", "scratch"]
    assert seen.defect_score == pytest.approx(0.6, abs=0.01)
    assert (seen.task, seen.uncertainty, seen.heatmap) == ("detect", None, None)
    assert min(seen.ms.preprocess, seen.ms.infer, seen.ms.decode) > 0


def test_nothing_found_is_a_sound_result(bundle: Bundle) -> None:
    """A defect score of 0, and a good part."""
    seen = spot_inspector(bundle).inspect(frame_of(dark_picture(WIDTH, HEIGHT)))

    assert (seen.fault, seen.findings, seen.defect_score) == (None, (), 0.0)
    assert policy_from_config(PolicyConfig(), bundle.manifest).judge(seen).decision is Decision.OK


@pytest.mark.parametrize(("bundles", "stations", "size_mm"), [(0.1, None, 6.4), (0.1, 0.5, 32), (None, 0.5, 32)])
def test_sizes_are_millimetres_where_the_pitch_is_known(
    tmp_path: Path, bundles: float | None, stations: float | None, size_mm: float
) -> None:
    """The station's pitch goes before the bundle's: it is the station's camera."""
    bundle = make_detector(tmp_path, detection=dataclasses.replace(SPEC, pixel_mm=bundles))
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", (64, 32, 64, 16), 0.9)

    (found,) = spot_inspector(bundle, pixel_mm=stations).inspect(frame_of(image)).findings

    assert found.size_mm == pytest.approx(size_mm)


def test_without_a_pitch_there_is_no_size(bundle: Bundle) -> None:
    """And the smallest size of its class does not hold."""
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", (64, 32, 64, 16), 0.9)

    (found,) = spot_inspector(bundle).inspect(frame_of(image)).findings

    assert found.size_mm is None


# The picture's edges

ROWS = [[0.9, 0, 0], [0.8, 0, 0], [0.7, 0, 0]]


def boxes_of(findings: tuple[Finding, ...]) -> list[tuple[float, ...] | None]:
    return [f.box_px for f in findings]


def test_a_box_over_the_edge_is_cut_off_there(bundle: Bundle) -> None:
    """In the frame's pixels: the input has 64, the frame 256 x 128."""
    boxes = [[-10, -10, 16, 16], [48, 48, 900, 900], [16, -5, 32, 70]]

    seen = answering(bundle, boxes, ROWS).inspect(frame_of(dark_picture(WIDTH, HEIGHT)))

    assert boxes_of(seen.findings) == [(0, 0, 64, 32), (192, 96, 64, 32), (64, 0, 64, 128)]


def test_what_lies_outside_of_the_picture_is_no_finding(tmp_path: Path) -> None:
    """The padding of a letterbox shows no part."""
    bundle = make_detector(tmp_path, resize="letterbox")  # 256 x 128 lie in rows 16 to 48 of 64
    boxes = [[0, 0, 10, 16], [70, 20, 90, 30], [0, 10, 8, 20]]

    seen = answering(bundle, boxes, ROWS).inspect(frame_of(dark_picture(WIDTH, HEIGHT)))

    assert boxes_of(seen.findings) == [(0, 0, 32, 16)]


def test_a_box_without_width_in_the_picture_is_kept(bundle: Bundle) -> None:
    """A strange box, but the model is sure of it: the part does not pass for that."""
    seen = answering(bundle, [[16, 16, 16, 32]] * 3, [[0.9, 0, 0], [0, 0, 0], [0, 0, 0]]).inspect(
        frame_of(dark_picture(WIDTH, HEIGHT))
    )

    (found,) = seen.findings
    assert found.box_px == pytest.approx((64, 32, 0, 32), abs=0.01)
    assert policy_from_config(PolicyConfig(), bundle.manifest).judge(seen).decision is Decision.DEFECT


# Golden pictures


def golden_of(bundle: Bundle, image: NDArray[np.uint8]) -> Golden:
    """A golden as the build records it."""
    fitted = fit(image, bundle.manifest.input)
    engine = open_engine(bundle, EngineConfig())
    outputs = golden_outputs(engine.infer(fitted[None]), bundle.manifest)
    return Golden(file="golden/000.png", label=None, image=fitted, outputs={"cpu": outputs})


def test_a_detectors_golden_holds_what_it_finds(tmp_path: Path) -> None:
    """Its outputs would be a megabyte per picture; also a good part's, where it finds nothing."""
    image = dark_picture(WIDTH, HEIGHT)
    bundle = make_detector(tmp_path)
    good = golden_of(bundle, image)
    plant(image, "scratch", (64, 32, 64, 16), 0.9)
    bad = golden_of(bundle, image)
    files = golden_files([dataclasses.replace(bad, file="golden/001.png"), good])

    packed = make_detector(tmp_path / "with.defect", files=files)

    found, nothing = (golden.outputs["cpu"]["detections"] for golden in packed.goldens())
    assert found.tolist() == [pytest.approx([16, 16, 32, 24, 230 / 255, 0])]
    assert nothing.shape == (0, 6)


@pytest.mark.parametrize(
    ("planted", "same"),
    [
        ([("scratch", (64, 32, 64, 16), 0.9)], True),
        ([("scratch", (68, 32, 64, 16), 0.85)], True),
        ([("scratch", (160, 32, 64, 16), 0.9)], False),
        ([("stain", (64, 32, 64, 16), 0.9)], False),
        ([], False),
        ([("scratch", (64, 32, 64, 16), 0.9), ("stain", (10, 90, 20, 20), 0.5)], False),
    ],
)
def test_a_replay_notices_what_is_lost_moved_or_new(bundle: Bundle, planted: list[Any], same: bool) -> None:
    """What wavers a little is the same; what the policy would judge otherwise is not."""
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", (64, 32, 64, 16), 0.9)
    golden = golden_of(bundle, image)
    now = dark_picture(WIDTH, HEIGHT)
    for kind, box, score in planted:
        plant(now, kind, box, score)
    outputs = open_engine(bundle, EngineConfig()).infer(fit(now, bundle.manifest.input)[None])

    assert is_as_recorded(golden, "cpu", outputs, bundle.manifest) == same


def test_check_replays_a_detectors_goldens_and_says_that_sizes_do_not_hold(tmp_path: Path) -> None:
    """What would go wrong, before it does."""
    image = dark_picture(WIDTH, HEIGHT)
    plant(image, "scratch", (64, 32, 64, 16), 0.9)
    classes = (
        ClassSpec(name="scratch", severity="major", min_size_mm=1.0),
        ClassSpec(name="stain", severity="minor"),
        ClassSpec(name="mark", severity="ok"),
    )
    plain = make_detector(tmp_path / "plain.defect", classes=classes)
    files = golden_files([golden_of(plain, image)])
    make_detector(tmp_path / "b.defect", classes=classes, files=files)
    config = tmp_path / "line.yaml"
    config.write_text(
        "station: acme/line1\nstate_dir: state\nbundle: b.defect\ncamera: {kind: folder, path: .}\n"
        "policy: {zones: [{name: seal, box: [0, 0, 50, 50], defect_above: 0.3}]}\nmqtt: null\n"
    )

    findings = {f.subject: f for f in check_station(config, with_camera=False, with_broker=False)}

    assert findings["policy"].level == "warn"
    assert (
        "1 zone; the bundle has smallest sizes in mm, but nobody said how large a pixel is" in findings["policy"].text
    )
    assert "1 golden pictures" in findings["engine"].text
    assert findings["engine"].text.endswith("all detections as at the build")
