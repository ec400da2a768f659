"""What an integer graph loses, and the search that puts layers back to float until a budget holds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from optimize.budget import Fitted, fit_budget
from optimize.dataset import Dataset, Sample, read_dataset
from optimize.errors import DataError, ModelError
from optimize.judge import Judge, Loss
from optimize.quantize.fusion import fuse
from optimize.quantize.model import FloatModel, read_model
from optimize.quantize.place import ASKED_REASON, Target
from optimize.quantize.quantizer import QuantizeOptions, Quantizer
from optimize.quantize.sensitivity import MAX_SNR_DB
from optimize.recipe import PreprocessRecipe
from tests.kit import detectors
from tests.kit.float_models import CLASSES, FIRST, conv_classifier, picture, write_model, write_parts
from tests.kit.foreign_models import foreign_detector

TARGETS: tuple[Target, ...] = ("cpu", "trt")
CHANGE = Callable[[onnx.ModelProto], None]


def parts(root: Path, count: int = 6) -> Dataset:
    """As many val pictures of each class, classes by turns in the order of file names."""
    return read_dataset(write_parts(root, {"val": count}, seed=5))


def calibration(count: int = 24) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [picture(CLASSES[i % 3], rng)[None] for i in range(count)]


def changed(change: CHANGE) -> bytes:
    """The kit's classifier with one thing changed."""
    model = onnx.load_model_from_string(conv_classifier())
    change(model)
    return bytes(model.SerializeToString())


def set_constant(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def constant(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def judge_of(tmp_path: Path, dataset: Dataset | None = None) -> Judge:
    return Judge(read_model(write_model(tmp_path / "m.onnx")), CLASSES, dataset or parts(tmp_path / "data"))


def test_no_readable_picture_is_an_error(tmp_path: Path) -> None:
    """A loss over nothing would be a budget that holds."""
    dataset = parts(tmp_path / "data", 1)
    for sample in dataset:
        sample.path.write_bytes(b"\x89PNG broken")

    with pytest.raises(DataError, match="no val image can be read"):
        judge_of(tmp_path, dataset)


def test_unreadable_pictures_are_left_out_with_their_labels(tmp_path: Path) -> None:
    """Labels one place off would make a good graph bad; and one torn file must not end a build of an hour."""
    dataset = parts(tmp_path / "data", 3)
    for sample in dataset.samples[::4]:
        sample.path.write_bytes(b"")

    judge = judge_of(tmp_path, dataset)

    assert len(judge.pictures) == 6
    assert judge.accuracy == 1.0
    assert judge.loss(conv_classifier(), "cpu").n == 6


def test_the_float_graph_loses_nothing_against_itself(tmp_path: Path) -> None:
    """The zero of the scale."""
    loss = judge_of(tmp_path).loss(conv_classifier(), "trt")

    assert (loss.drop_points, loss.n, loss.accuracy, loss.agreement, loss.kept) == (0.0, 18, 1.0, 1.0, None)
    assert loss.snr_db > 90


def turn_classes(model: onnx.ModelProto) -> None:
    for name in ("kernel", "bias"):
        set_constant(model, name, np.roll(constant(model, name), 1, axis=0))


def forget_spots(model: onnx.ModelProto) -> None:
    bias = constant(model, "bias").copy()
    bias[CLASSES.index("spot")] = -1e6
    set_constant(model, "bias", bias)


@pytest.mark.parametrize(("change", "accuracy"), [(turn_classes, 0.0), (forget_spots, 2 / 3)])
def test_lost_accuracy_is_counted_in_points(tmp_path: Path, change: CHANGE, accuracy: float) -> None:
    """By hand: all classes turned by one, and one class of three never given."""
    loss = judge_of(tmp_path).loss(changed(change), "cpu")

    assert loss.accuracy == pytest.approx(accuracy)
    assert loss.agreement == pytest.approx(accuracy)
    assert loss.drop_points == pytest.approx(100 * (1 - accuracy))
    assert loss.to_json()["drop_points"] == loss.drop_points


def test_a_label_that_the_model_does_not_know_counts_as_wrong(tmp_path: Path) -> None:
    """It must not take some class's place."""
    dataset = parts(tmp_path / "data", 2)
    odd = tuple(dataclasses.replace(s, label="dent" if s.label == "ok" else s.label) for s in dataset.samples)

    judge = judge_of(tmp_path, dataclasses.replace(dataset, samples=odd))

    assert judge.accuracy == pytest.approx(2 / 3)


def test_a_better_graph_gives_a_negative_drop(tmp_path: Path) -> None:
    """It is no loss, and not cut to zero."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(changed(forget_spots))
    judge = Judge(read_model(path), CLASSES, parts(tmp_path / "data"))

    assert judge.loss(conv_classifier(), "cpu").drop_points == pytest.approx(-100 / 3)


def detector(form: str, path: Path) -> FloatModel:
    """A detector adopted from a file."""
    known = getattr(detectors, form, None)
    path.write_bytes((with_real_boxes(form) if known is None else known()).SerializeToString())
    return read_model(path, PreprocessRecipe(mean=(0.5,), std=(0.5,)))


def with_real_boxes(form: str) -> onnx.ModelProto:
    """The kit's untrained detector, but with boxes that have a size: corners, or centre, width and height."""
    model = foreign_detector(form)
    set_constant(model, "box.weights", constant(model, "box.weights") * 0.02)
    bias = [0.1, 0.1, 0.5, 0.5] if form == "pair" else [0.5, 0.5, 0.4, 0.4]
    add_bias(model, "box_conv", bias)
    return model


def add_bias(model: onnx.ModelProto, layer: str, values: list[float]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32), f"{layer}.bias"))
    next(n for n in model.graph.node if n.name == layer).input.append(f"{layer}.bias")


def flat(root: Path, count: int = 4) -> Dataset:
    """Unlabelled pictures."""
    write_parts(root, {"val": count}, classes=("scratch",))
    (root / "splits.csv").unlink()
    files = sorted((root / "images").iterdir())
    samples = tuple(Sample(path=file, file=file.name, label=None, split="val") for file in files)
    return Dataset(root=root, samples=samples, classes=())


def with_output(model: FloatModel, role: str, factor: float) -> bytes:
    """The model's graph with one of its outputs multiplied."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for node in proto.graph.node:
        node.output[:] = [f"{role}.before" if name == role else name for name in node.output]
        node.input[:] = [f"{role}.before" if name == role else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "test.factor"))
    proto.graph.node.append(onnx.helper.make_node("Mul", [f"{role}.before", "test.factor"], [role], name="changed"))
    return bytes(proto.SerializeToString())


FORMS = ("v8_like", "yolox_like", "v5_like", "joined", "objectness", "pair")


@pytest.mark.parametrize("form", FORMS)
def test_a_detector_keeps_its_own_detections_and_loses_those_that_are_gone(form: str, tmp_path: Path) -> None:
    """Corners or centres: the same boxes are found again, and none where scores or places are others."""
    model = detector(form, tmp_path / "m.onnx")
    judge = Judge(model, CLASSES, flat(tmp_path / "data"))

    same, silent = (judge.loss(with_output(model, "scores", factor), "trt") for factor in (1.0, 0.0))

    assert judge.accuracy is None
    assert same.kept is not None
    assert same.kept.total > 0
    assert (same.drop_points, same.kept.share_given, same.n, same.accuracy) == (0.0, 1.0, 4, None)
    assert same.snr_db == MAX_SNR_DB
    assert silent.drop_points == 100.0
    assert silent.to_json()["kept"]["share"] == 0.0


def test_boxes_in_other_places_are_lost(tmp_path: Path) -> None:
    """With the right scores."""
    model = detector("joined", tmp_path / "m.onnx")

    loss = Judge(model, CLASSES, flat(tmp_path / "data")).loss(with_output(model, "boxes", 20.0), "trt")

    assert loss.drop_points > 50


def test_a_detector_that_finds_nothing_is_refused_before_it_is_quantized(tmp_path: Path) -> None:
    """100 % of nothing is no accuracy, and minutes are lost until then."""
    path = tmp_path / "m.onnx"
    silent = foreign_detector("pair")
    set_constant(silent, "score.weights", np.zeros((3, 8, 1, 1)))
    add_bias(silent, "score_conv", [-20.0] * 3)
    path.write_bytes(silent.SerializeToString())
    model = read_model(path, PreprocessRecipe())

    with pytest.raises(ModelError, match="finds nothing with a score of"):
        Judge(model, CLASSES, flat(tmp_path / "data"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["v8_like", "pair"])
def test_a_quantized_detector_keeps_most(form: str, target: Target, tmp_path: Path) -> None:
    """The whole way; on a CPU with no float convolution but the output layers."""
    model = detector(form, tmp_path / "m.onnx")
    dataset = flat(tmp_path / "data")
    judge = Judge(model, CLASSES, dataset)
    quantizer = Quantizer(model, judge.pictures, QuantizeOptions())

    fitted = fit_budget(
        quantizer, target, judge, max_drop=None, max_float_layers=4, calibration=judge.pictures, progress=None
    )

    assert fitted.loss.kept is not None
    assert fitted.loss.kept.share_given > 0.8
    assert {entry.layer for entry in fitted.ranking} == set(fitted.integer.plan.layers)
    assert (fitted.result, fitted.reasons) == (None, ())
    if target == "cpu":
        found = fuse(fitted.integer.graph, source=model.input.name, head=quantizer.zones.head)
        assert {layer.name for layer in found.float_layers} <= set(fitted.integer.plan.float_layers)


def one_bad_layer() -> bytes:
    """conv2 has weights of a thousand on a channel that is always 0: rounded to nearest, nothing is left of the rest.

    Only its own scales are to blame, and no output tells: in float the channel adds nothing.
    """
    model = onnx.load_model_from_string(conv_classifier())
    first, second = constant(model, "first").copy(), constant(model, "second").copy()
    # One more channel that is dead, so that the classifier stays as good as it was.
    dead = np.zeros((1, *first.shape[1:]))
    huge = np.full((len(second), 1, *second.shape[2:]), 1000.0)
    set_constant(model, "first", np.concatenate([first, dead]))
    set_constant(model, "second", np.concatenate([second, huge], axis=1))
    return bytes(model.SerializeToString())


OPTIONS = QuantizeOptions(correction="none", equalize="none", method="minmax")


@functools.cache
def _bad_graph() -> bytes:
    return one_bad_layer()


def fitted_to(
    tmp_path: Path, target: Target, *, max_drop: float | None, max_float_layers: int = 4
) -> tuple[Fitted, Judge]:
    path = tmp_path / "bad.onnx"
    path.write_bytes(_bad_graph())
    model = read_model(path)
    judge = Judge(model, CLASSES, parts(tmp_path / "data"))
    images = calibration()
    quantizer = Quantizer(model, images, OPTIONS)
    fitted = fit_budget(
        quantizer, target, judge, max_drop=max_drop, max_float_layers=max_float_layers, calibration=images
    )
    return fitted, judge


@pytest.mark.parametrize("target", TARGETS)
def test_the_layer_to_blame_goes_back_to_float(tmp_path: Path, target: Target) -> None:
    """And no other: each one costs speed."""
    broken, judge = fitted_to(tmp_path, target, max_drop=None)
    fitted, _ = fitted_to(tmp_path, target, max_drop=1.0)

    assert judge.accuracy == 1.0
    assert broken.loss.drop_points > 30
    assert fitted.result is not None
    assert fitted.result.holds
    assert fitted.result.in_float == ("conv2",)
    assert fitted.ranking[0].layer == "conv2"
    assert fitted.loss.drop_points <= 1.0
    assert fitted.integer.graph == fitted.result.graph
    assert {f.name: f.why for f in fitted.integer.float_layers}["conv2"] == ASKED_REASON
    assert fitted.reasons == ()
    assert fitted.to_json()["in_float_for_the_budget"] == ["conv2"]


class Counted(Judge):
    """Notes what it is asked."""

    asked: list[bytes]

    def loss(self, graph: bytes, target: Target) -> Loss:
        self.asked.append(graph)
        return super().loss(graph, target)


def test_no_graph_is_judged_twice(tmp_path: Path) -> None:
    """Each costs a run over val, and its making a walk through the network."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(_bad_graph())
    model, images = read_model(path), calibration()
    judge = Counted(model, CLASSES, parts(tmp_path / "data"))
    judge.asked = []

    fit_budget(Quantizer(model, images, OPTIONS), "cpu", judge, max_drop=1.0, max_float_layers=4, calibration=images)

    assert len(judge.asked) == len(set(judge.asked)) > 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_budget_that_cannot_hold_is_explained(tmp_path: Path, target: Target) -> None:
    """What is lost, what is to blame, and what would help; the graph is still there to look at."""
    fitted, _ = fitted_to(tmp_path, target, max_drop=1.0, max_float_layers=0)

    assert fitted.result is not None
    assert not fitted.result.holds
    assert fitted.result.holding_back[0] == "conv2"
    assert fitted.result.advice
    (reason,) = fitted.reasons
    assert f"loses {fitted.loss.drop_points:.2f} points of accuracy on val, allowed are 1" in reason
    assert "held back most by conv2" in reason
    assert ("TensorRT" in reason) == (target == "trt")
    assert fitted.loss.drop_points > 30
    described = fitted.to_json()
    assert described["advice"] == list(fitted.result.advice)
    assert described["integer_layers"] == 2


def test_a_budget_that_holds_at_once_needs_no_search(tmp_path: Path) -> None:
    """The usual case."""
    model = read_model(write_model(tmp_path / "m.onnx"))
    judge = Judge(model, CLASSES, parts(tmp_path / "data"))
    images = calibration()

    fitted = fit_budget(Quantizer(model, images), "cpu", judge, max_drop=0.0, max_float_layers=4, calibration=images)

    assert (fitted.result, fitted.reasons) == (None, ())
    assert fitted.loss.drop_points == 0
    assert sorted(entry.layer for entry in fitted.ranking) == ["conv1", "conv2"]
    assert fitted.to_json()["advice"] == []


def test_the_planted_channel_is_dead() -> None:
    """Otherwise the tests above would measure another network."""
    assert numpy_helper.to_array(onnx.load_model_from_string(_bad_graph()).graph.initializer[0]).shape[0] == FIRST + 1
