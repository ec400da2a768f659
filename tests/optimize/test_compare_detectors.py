"""`defect-opt compare` over real detectors: squares of a colour are the defects, and blue ones are critical."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import numpy_helper

from agent.bundle import Bundle, ClassSpec, DetectionSpec, InputSpec, Outputs, PriorLevel
from agent.bundle.manifest import Severity
from tests.kit.bundles import make_bundle
from tests.kit.commands import run_command
from tests.kit.models import constant_classifier
from tests.kit.planted_detectors import BOX, COLOURS, SIDE, planted

COMMAND = "optimize.cli.compare"
SEVERITIES: dict[str, Severity] = {"red": "minor", "green": "minor", "blue": "critical"}
SPEC = DetectionSpec(
    boxes="distances",
    scores="sigmoid",
    levels=tuple(
        PriorLevel(rows=SIDE // s, columns=SIDE // s, step_x_px=s, step_y_px=s, sizes_px=((s, s),)) for s in (8, 16, 32)
    ),
)


def detector(path: Path, name: str, change: Callable[[str, Any], Any] = lambda _, value: value) -> Bundle:
    """The planted detector, with some of its weights changed."""
    model = planted("own")
    for constant in model.graph.initializer:
        value = numpy_helper.to_array(constant).copy()
        constant.CopyFrom(numpy_helper.from_array(change(constant.name, value), constant.name))
    return make_bundle(
        path,
        name=name,
        graph=model.SerializeToString(),
        task="detect",
        input=InputSpec(width_px=SIDE, height_px=SIDE),
        classes=tuple(ClassSpec(name=colour, severity=SEVERITIES[colour]) for colour in COLOURS),
        outputs=Outputs(boxes="boxes", scores="scores"),
        detection=SPEC,
    )


def blind_to_blue(name: str, value: Any) -> Any:
    """Nothing is blue enough for it."""
    if name == "score8.b":
        value[2] = -40
    return value


def confused_by_red_and_green(name: str, value: Any) -> Any:
    """It takes each for the other, so its mAP is poor; but it finds every square."""
    return value[[1, 0, 2]] if name == "score8.w" else value


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Bundle, Bundle]:
    return detector(tmp_path, "praised", blind_to_blue), detector(tmp_path, "safe", confused_by_red_and_green)


def write(root: Path, shown: Sequence[Sequence[str]]) -> Path:
    """In val and in test a picture for each list of colours, with a square of each; none is a good part."""
    rng = np.random.default_rng(3)
    root.mkdir()
    splits, boxes = ["file,class,split"], ["file,class,xmin,ymin,xmax,ymax"]
    for split in ("val", "test"):
        for i, colours in enumerate(shown):
            picture = rng.integers(0, 8, (SIDE, SIDE, 3)).astype(np.uint8)
            for row, colour in enumerate(colours):
                x, y = 8 * int(rng.integers(0, 6)) + 4, 20 * row
                y = 8 * (y // 8) + 4
                picture[y : y + BOX, x : x + BOX] = 0
                picture[y : y + BOX, x : x + BOX, 2 - COLOURS.index(colour)] = 255
                boxes.append(f"{split}{i}.png,{colour},{x + 1},{y + 1},{x + BOX},{y + BOX}")
            cv2.imwrite(str(root / f"{split}{i}.png"), picture)
            splits.append(f"{split}{i}.png,{colours[0] if colours else 'good'},{split}")
    (root / "splits.csv").write_text("\n".join(splits))
    (root / "boxes.csv").write_text("\n".join(boxes))
    return root


def test_the_one_with_the_higher_map_that_misses_the_critical_ones_is_not_named(
    tmp_path: Path, pair: tuple[Bundle, Bundle]
) -> None:
    """Two of three classes perfect is two thirds of mAP, and every critical part on its way to the customer."""
    parts = write(tmp_path / "parts", [["blue"]] * 8 + [["red"]] * 3 + [["green"]] * 3 + [[]] * 6)

    ran = run_command(COMMAND, *(b.path for b in pair), "--data", parts, "--out", tmp_path / "c.png", "--json")

    assert ran.code == 0, ran.err
    document = ran.json
    assert document["reason"].startswith("deploy safe-1.0.0: 0 of 8 critical parts missed against 8, p = 0.0078; ")
    assert "by mAP50 it would have been praised-1.0.0 (0.667 against 0.333)" in document["reason"]
    assert (document["recommended"], document["unit"], document["limits_from"]) == ("safe-1.0.0", "part", "val")
    assert [(m["missed"], m["overkill_rate"], m["task"]) for m in document["models"]] == [
        (8, 0.0, "detect"),
        (0, 0.0, "detect"),
    ]
    assert (tmp_path / "c.png").is_file()


def test_without_good_parts_boxes_are_compared(tmp_path: Path, pair: tuple[Bundle, Bundle]) -> None:
    """As on NEU steel: every picture shows a defect, so false boxes take the place of overkill."""
    parts = write(tmp_path / "parts", [["blue", "red"]] * 8)

    ran = run_command(COMMAND, *(b.path for b in pair), "--data", parts)
    document = run_command(COMMAND, *(b.path for b in pair), "--data", parts, "--json").json

    assert "deploy safe-1.0.0: 0 of 8 critical boxes missed against 8" in ran.out
    assert "so that both show equally many false boxes: at most 1 false box on 8 pictures of val." in ran.out
    assert (document["unit"], document["groups"]) == ("box", 8)
    assert [(m["overkill_rate"], m["false_boxes_per_image"]) for m in document["models"]] == [(None, 0.0), (None, 0.0)]
    assert run_command(COMMAND, *(b.path for b in pair), "--data", parts, "--overkill", 0.1).code == 2


def test_a_detector_is_compared_with_a_classifier(tmp_path: Path, pair: tuple[Bundle, Bundle]) -> None:
    """By parts, as that is all that both of them judge; the classifier has no mAP."""
    parts = write(tmp_path / "parts", [["blue"]] * 8 + [[]] * 6)
    classes = (ClassSpec(name="good", severity="ok"), *(ClassSpec(name=c, severity=SEVERITIES[c]) for c in COLOURS))
    other = make_bundle(
        tmp_path,
        graph=constant_classifier((2.0, 0.0, 0.0, 0.0)),
        classes=classes,
        outputs=Outputs(logits="logits"),
    )

    document = run_command(COMMAND, other.path, pair[1].path, "--data", parts, "--overkill", 0.2, "--json").json

    assert document["recommended"] == "safe-1.0.0"
    assert [(m["task"], m["missed"], m["map50"] is None) for m in document["models"]] == [
        ("classify", 8, True),
        ("detect", 0, False),
    ]
