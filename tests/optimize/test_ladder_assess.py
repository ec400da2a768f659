"""Real networks on a ladder: the same pictures for all, a class that is lost is refused, flips are drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agent.bundle import InputSpec, Outputs
from agent.profile import DeviceProfile, GraphTiming
from optimize.box_readers import read_boxes
from optimize.dataset import Dataset, read_dataset
from optimize.errors import DataError, ModelError, OptimizeError
from optimize.ladder import Budget, Ladder, LadderOptions, RungFile, assess, draw_ladder
from optimize.recipe import ClassRecipe, PolicyRecipe, Recipe
from optimize.structure import structure_of
from tests.kit.bundles import make_bundle
from tests.kit.float_models import CLASSES as CLASS_NAMES
from tests.kit.float_models import conv_classifier, write_parts
from tests.kit.rungs import blind_to, with_weights
from tests.kit.spots import CLASSES, SPEC, dark_picture, plant, spot_detector

QUICK = LadderOptions(seconds=0.01)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_parts(tmp_path_factory.mktemp("parts"), {"train": 1, "val": 10}))


def files(folder: Path, **graphs: bytes) -> list[RungFile]:
    found = []
    for name, data in graphs.items():
        (folder / f"{name}.onnx").write_bytes(data)
        made_from = None if name == "top" else "top"
        found.append(RungFile(name=name, path=folder / f"{name}.onnx", made_from=made_from))
    return found


def decoded(data: bytes) -> Any:
    """A PNG's pixels."""
    picture = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def noisy(strength: float) -> bytes:
    """The same network with noise on its second convolution."""

    def disturb(arrays: dict[str, Any]) -> None:
        arrays["second"] = arrays["second"] + np.random.default_rng(1).normal(0, strength, arrays["second"].shape)

    return with_weights(disturb)


def test_rungs_with_other_classes_are_refused(tmp_path: Path, parts: Dataset) -> None:
    """They would not be judged by one rule."""
    own = files(tmp_path, top=conv_classifier())
    other = make_bundle(tmp_path, name="kit")

    with pytest.raises(ModelError, match=r"kit-1\.0\.0\.defect: classes: got"):
        assess([*own, RungFile(name="other", path=other.path)], parts, Recipe(), QUICK)


def test_two_rungs_of_one_name_are_refused(tmp_path: Path, parts: Dataset) -> None:
    """Their pictures would lie over each other."""
    own = files(tmp_path, top=conv_classifier())

    with pytest.raises(OptimizeError, match="two rungs are called top"):
        assess([*own, *own], parts, Recipe(), QUICK)


def test_pictures_of_classes_that_the_top_does_not_know_are_refused(tmp_path: Path, parts: Dataset) -> None:
    """In the words of `evaluate`."""
    strange = dataclasses.replace(
        parts, samples=tuple(dataclasses.replace(sample, label="dent") for sample in parts.samples)
    )

    with pytest.raises(DataError, match="dent"):
        assess(files(tmp_path, top=conv_classifier()), strange, Recipe(), QUICK)


def test_a_profile_that_knows_no_rung_is_refused_before_anything_is_judged(tmp_path: Path, parts: Dataset) -> None:
    """And the hint is what to type on the device."""
    profile = DeviceProfile(device="Pi 5", engine="x", threads=1, measured_at="now", graphs={})
    options = dataclasses.replace(QUICK, profile=profile)

    with pytest.raises(OptimizeError, match="Pi 5: holds no timing of any of the 1 rungs") as caught:
        assess(files(tmp_path, top=conv_classifier()), parts, Recipe(), options)

    assert "bench --profile" in str(caught.value.hint)
    assert "top.onnx" in str(caught.value.hint)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory, parts: Dataset) -> Ladder:
    folder = tmp_path_factory.mktemp("rungs")
    rungs = files(
        folder, top=conv_classifier(), same=with_weights(lambda _: None), blind=blind_to("spot"), bad=noisy(2)
    )
    return assess(rungs, parts, Recipe(), dataclasses.replace(QUICK, budget=Budget(max_drop=50)))


def test_a_rung_that_lost_a_class_is_refused_with_the_class_named(ladder: Ladder) -> None:
    """Planted: the same network, but it never says spot. The budget of 50 points would let it pass."""
    blind = next(rung for rung in ladder.rungs if rung.name == "blind")

    assert [lost.name for lost in blind.lost] == ["spot"]
    assert blind.drop_points < 50
    assert ladder.choice.name in ("top", "same")
    assert "blind" not in ladder.front


def shy_of(label: str, by: float) -> bytes:
    """The same network, which calls this class less often."""

    def lower(arrays: dict[str, Any]) -> None:
        arrays["bias"][CLASS_NAMES.index(label)] -= by

    return with_weights(lower)


def test_a_class_that_only_fell_is_named_and_not_refused(tmp_path: Path, parts: Dataset) -> None:
    """Two of ten spots: nothing is proven, but whoever ships it shall know."""
    rungs = files(tmp_path, top=conv_classifier(), shy=shy_of("spot", 6))

    found = assess(rungs, parts, Recipe(), QUICK)

    assert (found.rungs[1].lost, bool(found.rungs[1])) == ((), True)
    (fell,) = found.to_json()["rungs"][1]["fell"]
    assert (fell["name"], fell["before"], fell["after"], fell["n"]) == ("spot", 10, 8, 10)
    assert any("shy, not refused for it" in note and fell["sentence"] in note for note in found.notes)


def test_a_class_that_the_top_hardly_finds_is_named(tmp_path: Path, parts: Dataset) -> None:
    """Nothing can be lost of it, so a ladder without a loss says nothing there."""
    rungs = files(tmp_path, top=blind_to("spot"), less=shy_of("scratch", 100))

    found = assess(rungs[:1], parts, Recipe(), QUICK)

    assert "the top finds 0 of 10 of spot: this ladder says nothing of it" in found.notes
    assert found.to_json()["hardly_found"] == [{"name": "spot", "severity": "major", "hits": 0, "n": 10}]
    whole = assess(files(tmp_path, top=conv_classifier()), parts, Recipe(), QUICK)
    assert whole.to_json()["hardly_found"] == []
    assert not any("says nothing of it" in note for note in whole.notes)


def test_a_rung_that_gives_no_numbers_is_refused_by_name_and_the_others_are_judged(
    tmp_path: Path, parts: Dataset
) -> None:
    """Hours of other rungs are not lost for it; a top that gives none ends it, as there is nothing to compare with."""

    def spoil(arrays: dict[str, Any]) -> None:
        arrays["bias"][:] = np.nan

    rungs = files(tmp_path, top=conv_classifier(), broken=with_weights(spoil), same=with_weights(lambda _: None))

    found = assess(rungs, parts, Recipe(), QUICK)

    broken = found.rungs[1]
    assert (bool(broken), broken.unjudged) == (False, 30)
    assert "nan" in broken.failure
    assert found.choice.name in ("top", "same")
    assert "broken" not in found.front
    with pytest.raises(OptimizeError, match="could judge none of 30 images"):
        assess([rungs[1]], parts, Recipe(), QUICK)


def test_a_network_with_its_classes_in_another_order_is_the_same(tmp_path: Path, parts: Dataset) -> None:
    """Classes are matched by name, as `distill` does."""

    def turn(arrays: dict[str, Any]) -> None:
        for name in ("kernel", "bias", "cam.kernel"):
            arrays[name] = arrays[name][::-1]

    model = onnx.load_model_from_string(with_weights(turn))
    onnx.helper.set_model_props(model, {"classes": json.dumps(CLASS_NAMES[::-1])})

    found = assess(files(tmp_path, top=conv_classifier(), turned=model.SerializeToString()), parts, Recipe(), QUICK)

    turned = found.rungs[1]
    assert (turned.decisions_changed, turned.flips, turned.lost, turned.fell) == (0, (), (), ())
    assert {c.name: c.hits for c in turned.recall} == {c.name: c.hits for c in found.rungs[0].recall}


def test_a_busy_device_is_told(tmp_path: Path, parts: Dataset) -> None:
    """Its milliseconds are the inferences' own; whoever needs the clock's has to time again."""
    own = files(tmp_path, top=conv_classifier())
    digest = structure_of(onnx.load(str(own[0].path)))

    def notes(waited: float) -> tuple[str, ...]:
        timing = GraphTiming(file="a", p50_ms=9.0, p95_ms=9.0, p99_ms=9.0, n=20, waited=waited)
        profile = DeviceProfile(device="Pi", engine="o", threads=1, measured_at="now", graphs={digest: timing})
        return assess(own, parts, Recipe(), dataclasses.replace(QUICK, profile=profile)).notes

    assert any("inferences waited up to 55% of the time for a core" in note for note in notes(0.55))
    assert not any("waited" in note for note in notes(0.05))


def test_what_a_device_calls_itself_moves_no_cursor(tmp_path: Path, parts: Dataset) -> None:
    """A profile comes from elsewhere; a terminal obeys what is printed raw."""
    own = files(tmp_path, top=conv_classifier())
    timing = GraphTiming(file="a", p50_ms=9.0, p95_ms=9.0, p99_ms=9.0, n=20)
    graphs = {structure_of(onnx.load(str(own[0].path))): timing}
    profile = DeviceProfile(device="Pi 5\n\x1b[31mX", engine="o\x07", threads=1, measured_at="now", graphs=graphs)

    found = assess(own, parts, Recipe(), dataclasses.replace(QUICK, profile=profile))

    assert (found.timed_on, found.engine) == ("Pi 5??[31mX", "o?")
    unknown = dataclasses.replace(profile, graphs={})
    with pytest.raises(OptimizeError, match=r"--profile: Pi 5\?\?\[31mX: holds no timing"):
        assess(own, parts, Recipe(), dataclasses.replace(QUICK, profile=unknown))


def test_a_rung_that_is_the_same_loses_nothing(ladder: Ladder) -> None:
    """Same decisions, same structure, same multiplications, no flip and no sheet."""
    top, same = ladder.rungs[:2]

    assert (same.drop_points, same.decisions_changed, same.flips, same.lost) == (0.0, 0, (), ())
    assert (same.structure, same.macs, same.parameters, same.n) == (top.structure, top.macs, top.parameters, 30)
    assert "same" not in dict(ladder.sheets)
    assert same.latency is not None
    assert same.latency.n >= 15


def test_what_flipped_is_in_the_figures_and_on_a_sheet(ladder: Ladder) -> None:
    """Every spot is called otherwise; each stands on the sheet with both looks."""
    blind = next(rung for rung in ladder.rungs if rung.name == "blind")
    spots = [flip for flip in blind.flips if flip.label == "spot"]

    assert len(spots) == next(c.hits for c in ladder.rungs[0].recall if c.name == "spot")
    assert all(flip.before.predicted == "spot" != flip.after.predicted for flip in spots)
    sheet = decoded(dict(ladder.sheets)["blind"])
    assert sheet.shape[1] > 300
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100


def test_the_ladder_is_plain_json_and_a_picture(ladder: Ladder) -> None:
    """For other programs, and for people."""
    told = json.loads(json.dumps(ladder.to_json(), allow_nan=False))

    assert told["rungs"][2]["lost"][0]["name"] == "spot"
    assert f"`{told['rungs'][2]['lost'][0]['rule']}`" in told["loss_rule"]
    assert told["rungs"][0]["recall"]["spot"]["n"] == 10
    assert told["rungs"][0]["speedup"] == 1.0
    picture = decoded(draw_ladder(ladder))
    assert picture.shape == (640, 1100, 3)


def test_the_devices_timings_decide(tmp_path: Path, parts: Dataset) -> None:
    """Two structures: here one is faster, on the device the other, and one it does not know is not taken."""
    wide = files(tmp_path, top=conv_classifier(), conv=conv_classifier(head="conv"), imagenet=noisy(0))
    digests = [structure_of(onnx.load(str(file.path))) for file in wide]
    assert digests[0] == digests[2] != digests[1]
    graphs = {
        digests[0]: GraphTiming(file="a", p50_ms=9.0, p95_ms=9.0, p99_ms=9.0, n=20),
        digests[1]: GraphTiming(file="b", p50_ms=3.0, p95_ms=3.0, p99_ms=3.0, n=20),
    }
    profile = DeviceProfile(device="Pi 5", engine="onnxruntime", threads=1, measured_at="now", graphs=graphs)

    found = assess(wide, parts, Recipe(), dataclasses.replace(QUICK, profile=profile))

    assert (found.choice.name, found.timed_on, found.is_profile) == ("conv", "Pi 5", True)
    assert [rung.latency.p50_ms for rung in found.rungs if rung.latency] == [9.0, 3.0, 9.0]
    del graphs[digests[1]]
    less = assess(wide, parts, Recipe(), dataclasses.replace(QUICK, profile=profile))
    assert less.choice.name == "top"
    assert any("no timing of conv" in note for note in less.notes)


def test_classes_and_limits_come_from_the_recipe(tmp_path: Path, parts: Dataset) -> None:
    """With every class ok no part is bad, and that is said."""
    fine: list[Any] = [ClassRecipe(name=name, severity="ok") for name in ("ok", "scratch", "spot")]
    recipe = Recipe(classes=tuple(fine), policy=PolicyRecipe(review_above=0.1))

    found = assess(files(tmp_path, top=conv_classifier()), parts, recipe, QUICK)

    assert (found.rungs[0].defects, found.rungs[0].escape_upper_95) == (0, None)
    assert any("nothing is known of escapes" in note for note in found.notes)


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six pictures with a scratch, six with a stain, four without."""
    root = tmp_path_factory.mktemp("spots")
    (root / "images").mkdir()
    boxes, splits = ["file,class,xmin,ymin,xmax,ymax"], ["file,class,split"]
    for i in range(16):
        image = dark_picture(64, 64)
        name = f"images/{i:02}.png"
        kind = "scratch" if i < 6 else "stain" if i < 12 else None
        if kind is not None:
            plant(image, kind, (10 + i, 12, 16, 14), 0.9)
            boxes.append(f"{name},{kind},{10 + i},12,{26 + i},26")
        cv2.imwrite(str(root / name), image)
        splits.append(f"{name},{kind or 'ok'},val")
    (root / "boxes.csv").write_text("\n".join(boxes) + "\n", encoding="utf-8")
    (root / "splits.csv").write_text("\n".join(splits) + "\n", encoding="utf-8")
    return read_boxes(root)


def detector(path: Path, graph: bytes) -> Path:
    changes: dict[str, Any] = {
        "task": "detect",
        "input": InputSpec(width_px=64, height_px=64),
        "classes": CLASSES,
        "outputs": Outputs(boxes="boxes", scores="scores"),
        "detection": SPEC,
    }
    return make_bundle(path, graph=graph, **changes).path


def without_stains() -> bytes:
    model = onnx.load_model_from_string(spot_detector())
    for tensor in model.graph.initializer:
        if tensor.name == "diagonal":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 1, 1] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, "diagonal"))
    return bytes(model.SerializeToString())


def test_a_detector_that_finds_a_class_no_more_is_refused(tmp_path: Path, spots: Dataset) -> None:
    """By boxes: mAP50 halves, the class is named, and its parts escape."""
    top = RungFile(name="top", path=detector(tmp_path / "a.defect", spot_detector()))
    own = RungFile(name="small", path=detector(tmp_path / "b.defect", without_stains()))

    found = assess([top, own], spots, Recipe(), QUICK)

    assert found.measure == "mAP50"
    first, second = found.rungs
    assert (first.accuracy, first.escapes, first.defects) == (1.0, 0, 12)
    assert (second.drop_points, second.escapes) == (50.0, 6)
    assert [(lost.name, lost.before, lost.after) for lost in second.lost] == [("stain", 6, 0)]
    assert second.flipped()["escape"] == 6
    assert decoded(dict(found.sheets)["small"]).shape[1] > 300


def test_a_detector_needs_boxes(tmp_path: Path, parts: Dataset) -> None:
    """Nothing is known of mAP without."""
    top = RungFile(name="top", path=detector(tmp_path / "a.defect", spot_detector()))

    with pytest.raises(DataError, match="compared by boxes, and these images have none"):
        assess([top], parts, Recipe(), QUICK)
