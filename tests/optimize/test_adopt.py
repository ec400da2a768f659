"""Models from elsewhere: what is refused, and that what is taken in computes what it computed before."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.bundle import open_bundle
from agent.errors import ConfigError
from optimize.errors import ModelError, RecipeError
from optimize.inputs import draft_manifest, gather
from optimize.quantize.byte_input import find_byte_input
from optimize.quantize.graph import Graph, metadata_of, opset_of
from optimize.quantize.model import FloatModel, bytes_from_model, read_model
from optimize.quantize.parity import check_adoption
from optimize.recipe import RECIPE_FILE, TEMPLATE, ClassRecipe, PreprocessRecipe, Recipe, read_recipe
from tests.kit.commands import run_command
from tests.kit.float_models import CLASSES, write_parts
from tests.kit.foreign_models import DETECTOR_SHAPES, IMAGENET, foreign_classifier, foreign_detector, without_front

NEWEST = onnx.defs.onnx_opset_version()
UNIT = PreprocessRecipe()
SIGNED = PreprocessRecipe(mean=(0.5,), std=(0.5,))
CENTRED = PreprocessRecipe(scale=1.0, mean=(128.0,), std=(128.0,))
COLOURED = PreprocessRecipe(mean=IMAGENET["mean"], std=IMAGENET["std"])


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def pictures(count: int, *, side: int = 16) -> list[NDArray[np.uint8]]:
    """Colourful noise: a channel that is swapped or a mean that is missed shows."""
    rng = np.random.default_rng(2)
    level = rng.integers(0, 256, (count, 1, 1, 1, 3))
    noise = rng.integers(-60, 60, (count, 1, side, side, 3))
    return list((level + noise).clip(0, 255).astype(np.uint8))


def run(model: bytes, *feeds: NDArray[Any]) -> list[NDArray[np.float32]]:
    """The first output for each feed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, {session.get_inputs()[0].name: feed})[0]) for feed in feeds]


def as_trained(picture: NDArray[np.uint8], how: PreprocessRecipe, channels: int = 3) -> NDArray[np.float32]:
    """NCHW floats, one channel at a time: a third way to write it, in words as plain as they come."""
    red, green, blue = (picture[0, :, :, i].astype(np.float64) for i in range(3))
    grey = [red * 0.299 + green * 0.587 + blue * 0.114] * channels
    planes = {"rgb": [red, green, blue], "bgr": [blue, green, red], "grey": grey}[how.colour]
    means, stds = (values * channels if len(values) == 1 else values for values in (how.mean, how.std))
    done = [(plane * how.scale - m) / s for plane, m, s in zip(planes, means, stds, strict=True)]
    return np.stack(done)[None].astype(np.float32)


def softmax(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    logits = np.stack(rows)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def reads_bytes(model: FloatModel) -> bool:
    return find_byte_input(Graph(model.proto), model.input.name) is not None


def four_channels(model: Any) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((6, 4, 3, 3), np.float32), "first"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def whole_numbers(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.node.insert(0, helper.make_node("Cast", ["input.1"], ["floats"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "floats"


def two_inputs(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def own_operator(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[1].domain = "com.example"


def too_old(model: Any) -> None:
    model.opset_import[0].version = 10


def both_layouts(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (four_channels, "input input.1: got [1, 4, 16, 16] float, expected 1 or 3 channels"),
        (whole_numbers, "input input.1: got [1, 3, 16, 16] int64, expected [1, H, W, 3] uint8"),
        (two_inputs, "inputs: got ['input.1', 'more'], expected one, the picture"),
        (own_operator, "uses operators outside the standard (com.example)"),
        (too_old, "opset: got 10, expected 11 to"),
        (both_layouts, "input input.1: got [1, 3, 16, 3] float, expected 1 or 3 channels, in the second or the last"),
    ],
)
def test_what_is_no_picture_model_is_refused_in_words(
    tmp_path: Path, change: Callable[[Any], None], expected: str
) -> None:
    """A graph that is taken in wrongly gives a bundle that is wrong with confidence."""
    model = foreign_classifier()
    change(model)

    with pytest.raises(ModelError) as caught:
        read_model(written(tmp_path / "m.onnx", model), UNIT)

    assert expected in caught.value.message
    assert caught.value.hint is not None


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """A download that broke off must not end in a traceback."""
    whole = foreign_classifier().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelError, match=r"is no ONNX model|breaks the ONNX standard"):
        read_model(tmp_path / "m.onnx", UNIT)


def test_weights_that_were_left_behind_are_named(tmp_path: Path) -> None:
    """Large exports keep them in a file beside, which is forgotten when the model is copied."""
    (tmp_path / "whole").mkdir()
    onnx.save(
        foreign_classifier(),
        str(tmp_path / "whole" / "m.onnx"),
        save_as_external_data=True,
        location="w",
        size_threshold=0,
    )
    (tmp_path / "m.onnx").write_bytes((tmp_path / "whole" / "m.onnx").read_bytes())

    with pytest.raises(ModelError, match="its weights lie in a file beside it"):
        read_model(tmp_path / "m.onnx", UNIT)
    taken = read_model(tmp_path / "whole" / "m.onnx", UNIT)
    (tmp_path / "whole" / "w").write_bytes((tmp_path / "whole" / "w").read_bytes()[:-1] + b"\x01")
    other = read_model(tmp_path / "whole" / "m.onnx", UNIT)

    assert all(not tensor.external_data for tensor in taken.proto.graph.initializer)
    assert taken.sha256 != other.sha256


def test_preprocessing_is_never_guessed(tmp_path: Path) -> None:
    """A wrong mean costs a few points of accuracy, which nobody would find; the sentence shows what to write."""
    with pytest.raises(ModelError) as caught:
        read_model(written(tmp_path / "m.onnx", foreign_classifier()))

    assert "defect-opt.yaml does not say under preprocess" in caught.value.message
    assert caught.value.hint is not None
    assert "preprocess: {scale: 1/255, mean: [0.485, 0.456, 0.406]" in caught.value.hint


def test_a_model_with_its_normalization_inside_is_not_normalized_twice(tmp_path: Path) -> None:
    """The recipe of another model, left in the folder."""
    path = written(tmp_path / "m.onnx", foreign_classifier())
    native = read_model(path, UNIT)
    (tmp_path / "native.onnx").write_bytes(bytes_from_model(native.proto))

    with pytest.raises(ModelError, match="takes uint8 with the normalization inside, and the recipe has preprocess"):
        read_model(tmp_path / "native.onnx", UNIT)
    assert read_model(tmp_path / "native.onnx").notes == ()


@pytest.mark.parametrize(
    ("options", "how", "expected"),
    [
        ({"channels": 1}, UNIT, "takes 1 channel, and preprocess.colour is rgb"),
        (
            {"channels": 1},
            dataclasses.replace(COLOURED, colour="grey"),
            "takes 1 channel, and preprocess.mean has 3 numbers",
        ),
        ({"size": ("w", "h")}, UNIT, "leaves the picture's size open"),
        ({}, PreprocessRecipe(size=(32, 32)), "takes 16 x 16 px, and preprocess.size is [32, 32]"),
        ({"classes": 1}, UNIT, None),
        ({"classes": 1, "end": ""}, UNIT, "output probabilities: got [1, 1], expected [1, C] with two classes or more"),
        ({"layout": "nhwc"}, PreprocessRecipe(layout="nchw"), "expected 1 or 3 channels"),
    ],
)
def test_a_recipe_that_does_not_go_with_the_model_is_refused(
    tmp_path: Path, options: dict[str, Any], how: PreprocessRecipe, expected: str | None
) -> None:
    """Each of these would otherwise be a picture that is read wrongly."""
    end = {"end": "Sigmoid"} if expected is None else {}
    path = written(tmp_path / "m.onnx", foreign_classifier(**{**options, **end}))
    if expected is None:
        assert read_model(path, how).count == 2
        return

    with pytest.raises(ModelError) as caught:
        read_model(path, how)

    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{mean: [0, 0]}", "preprocess.mean: got 2 numbers, expected 1, or 3"),
        ("{std: 0}", "preprocess.std[0]: got 0"),
        ("{scale: a/b}", "preprocess.scale: got 'a/b', expected a number"),
        ("{colour: gray}", "preprocess.colour: got 'gray', expected one of rgb, bgr, grey"),
        ("{size: [224]}", "preprocess.size: got [224], expected [width, height]"),
        ("{means: 0}", "preprocess.means: unknown key (did you mean preprocess.mean?)"),
        ("3", "preprocess: got 3, expected keys and values"),
    ],
)
def test_a_preprocess_section_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """By its key, before any work."""
    (tmp_path / RECIPE_FILE).write_text(f"preprocess: {text}\n", encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path)

    assert expected in caught.value.message


def test_the_recipe_is_written_as_people_write_it(tmp_path: Path) -> None:
    """A fraction, and one number in place of a list."""
    (tmp_path / RECIPE_FILE).write_text("preprocess: {scale: 1/127.5, mean: 1, std: [1]}\n", encoding="utf-8")

    assert read_recipe(tmp_path).preprocess == PreprocessRecipe(scale=1 / 127.5, mean=(1.0,), std=(1.0,))


def test_the_template_shows_every_key_of_the_section(tmp_path: Path) -> None:
    """It stands there as a comment, because our own models need none; uncommented it must hold every default."""
    lines = TEMPLATE.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("#preprocess:")))
    block = [
        lines[start][1:],
        *itertools.takewhile(lambda line: line.startswith("  "), (s[1:] for s in lines[start + 1 :])),
    ]
    (tmp_path / RECIPE_FILE).write_text("\n".join(block), encoding="utf-8")

    assert read_recipe(tmp_path).preprocess == PreprocessRecipe()
    for field in dataclasses.fields(PreprocessRecipe):
        assert any(line.strip().startswith(f"{field.name}:") for line in block), field.name


def test_the_models_own_metadata_may_say_it_and_the_recipe_goes_first(tmp_path: Path) -> None:
    """An export that carries it is worth more than a note on paper."""
    model = foreign_classifier()
    helper.set_model_props(model, {"preprocess": json.dumps({"scale": 1, "mean": 128, "std": 128, "colour": "bgr"})})
    path = written(tmp_path / "m.onnx", model)

    own, given = read_model(path).adoption, read_model(path, UNIT).adoption

    assert own is not None
    assert own.preprocess == dataclasses.replace(CENTRED, colour="bgr")
    assert given is not None
    assert given.preprocess == UNIT
    helper.set_model_props(model, {"preprocess": json.dumps({"mean": "none"})})
    with pytest.raises(ModelError, match=r"metadata preprocess: mean\[0\]: got 'none'"):
        read_model(written(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("how", [COLOURED, UNIT, SIGNED], ids=["imagenet", "0..1", "-1..1"])
@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("opset", [11, 13, 17, 20, NEWEST])
def test_bytes_give_what_floats_gave(
    tmp_path: Path, opset: int, batch: int | str, colour: Any, how: PreprocessRecipe
) -> None:
    """The heart: whatever the export, the adopted graph computes the model's own answer."""
    how = dataclasses.replace(how, colour=colour)
    path = written(tmp_path / "m.onnx", foreign_classifier(opset=opset, batch=batch))

    model = read_model(path, how)

    assert 13 <= opset_of(model.proto) <= 20
    expected = run(path.read_bytes(), *(as_trained(picture, how) for picture in pictures(3)))
    np.testing.assert_allclose(softmax(run(bytes_from_model(model.proto), *pictures(3))), expected, atol=2e-6)
    assert reads_bytes(model) == (how.mean == UNIT.mean)


@pytest.mark.parametrize(
    ("options", "how", "expected"),
    [
        ({}, CENTRED, True),
        ({}, dataclasses.replace(UNIT, std=IMAGENET["std"]), True),
        ({}, dataclasses.replace(CENTRED, colour="bgr", std=(100.0, 90.0, 80.0)), True),
        ({"channels": 1}, dataclasses.replace(CENTRED, colour="grey"), True),
        ({"channels": 1}, dataclasses.replace(SIGNED, colour="grey"), False),
        ({"pads": 0}, COLOURED, True),
        ({"pads": 0}, dataclasses.replace(COLOURED, colour="bgr"), True),
        ({"pads": 0}, dataclasses.replace(COLOURED, colour="grey"), True),
        ({"layout": "nhwc"}, CENTRED, True),
        ({"layout": "nhwc"}, dataclasses.replace(COLOURED, colour="bgr"), False),
        ({"layout": "nhwc", "first": "Tanh"}, dataclasses.replace(COLOURED, colour="bgr"), False),
        ({"groups": 3}, CENTRED, True),
        ({"groups": 3}, dataclasses.replace(CENTRED, colour="bgr"), False),
        ({"first": "Tanh"}, dataclasses.replace(COLOURED, colour="bgr"), False),
        ({"first": "Tanh"}, dataclasses.replace(COLOURED, colour="grey"), False),
        ({"first": "Tanh", "layout": "nhwc"}, dataclasses.replace(COLOURED, colour="grey"), False),
        ({"first": "Tanh", "channels": 1}, dataclasses.replace(SIGNED, colour="grey"), False),
    ],
)
def test_the_first_convolution_reads_bytes_wherever_that_is_exact(
    tmp_path: Path, options: dict[str, Any], how: PreprocessRecipe, expected: bool
) -> None:
    """Scale, colour order and grey go into weights; an offset goes into the bias only where nothing is padded."""
    path = written(tmp_path / "m.onnx", foreign_classifier(**options))

    model = read_model(path, how)

    assert reads_bytes(model) == expected
    floats = [as_trained(picture, how, options.get("channels", 3)) for picture in pictures(3)]
    floats = [values.transpose(0, 2, 3, 1) for values in floats] if "layout" in options else floats
    found = softmax(run(bytes_from_model(model.proto), *pictures(3)))
    np.testing.assert_allclose(found, run(path.read_bytes(), *floats), atol=2e-6)
    assert any("in float" in note for note in model.notes) == (not expected)


def test_an_operator_that_came_later_is_spelled_out(tmp_path: Path) -> None:
    """Swish is an operator since opset 24, and a device's ONNX Runtime ends at 20."""
    path = written(tmp_path / "m.onnx", foreign_classifier(opset=24, first="Swish"))

    model = read_model(path, UNIT)

    assert "opset 24 was converted to 20" in model.notes
    check = check_adoption(model, pictures(2))
    assert check is not None
    assert check.max_relative < 1e-5


def test_an_operator_that_cannot_be_spelled_out_is_refused(tmp_path: Path) -> None:
    """With the reason, and how to export it."""
    model = foreign_classifier(opset=26)
    model.graph.node.insert(0, helper.make_node("BitCast", ["input.1"], ["bits"], to=TensorProto.INT32))
    model.graph.node.insert(1, helper.make_node("BitCast", ["bits"], ["floats"], to=TensorProto.FLOAT))
    model.graph.node[2].input[0] = "floats"

    with pytest.raises(
        ModelError, match=r"opset 26 can't be converted to 20 \(No Previous Version of BitCast"
    ) as caught:
        read_model(written(tmp_path / "m.onnx", model), UNIT)

    assert "torch.onnx.export(..., opset_version=17)" in (caught.value.hint or "")


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_an_activation_at_the_end_is_cut_off_and_said(tmp_path: Path, end: str) -> None:
    """A temperature is fitted to logits; a softmax of a softmax hides every defect."""
    model = read_model(written(tmp_path / "m.onnx", foreign_classifier(end=end)), UNIT)
    bare = foreign_classifier(end="")

    assert model.outputs.logits == model.heads[0] == "logits"
    assert any(f"the {end} at the end was cut off" in note for note in model.notes)
    expected = run(bare.SerializeToString(), *(as_trained(picture, UNIT) for picture in pictures(2)))
    np.testing.assert_allclose(run(bytes_from_model(model.proto), *pictures(2)), expected, rtol=1e-4, atol=1e-5)
    assert check_adoption(model, pictures(2)) is not None


def test_one_sigmoid_becomes_two_classes(tmp_path: Path) -> None:
    """As many others train good against bad; the softmax of [0, z] is the sigmoid of z."""
    path = written(tmp_path / "m.onnx", foreign_classifier(end="Sigmoid", classes=1))

    model = read_model(path, CENTRED)

    expected = np.stack(run(path.read_bytes(), *(as_trained(picture, CENTRED) for picture in pictures(3))))
    found = softmax(run(bytes_from_model(model.proto), *pictures(3)))
    np.testing.assert_allclose(found[:, :, 1:], expected, atol=1e-6)
    assert check_adoption(model, pictures(3)) is not None


def test_logits_keep_their_values_under_a_new_name(tmp_path: Path) -> None:
    """And a model whose only change is its input has no note of an ending."""
    path = written(tmp_path / "m.onnx", foreign_classifier(end="", output="output_0"))

    model = read_model(path, UNIT)

    assert [value.name for value in model.proto.graph.output] == ["logits"]
    assert not any("cut off" in note for note in model.notes)


@pytest.mark.parametrize("holds_batch", [False, True])
def test_a_fixed_batch_becomes_one(tmp_path: Path, holds_batch: bool) -> None:
    """A part is judged alone; the parity check feeds the old model as many copies as it wants."""
    model = read_model(written(tmp_path / "m.onnx", foreign_classifier(batch=8, holds_batch=holds_batch)), UNIT)

    check = check_adoption(model, pictures(2))

    assert "the batch of 8 became 1" in model.notes
    assert check is not None
    assert check.max_relative < 1e-5


def test_a_batch_that_cannot_be_taken_out_is_refused_with_its_place(tmp_path: Path) -> None:
    """Folded into a product it is not to be told from other numbers."""
    model = foreign_classifier(batch=4, holds_batch=True)
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "flat.shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([32, 1]), "flat.shape"))
    back = numpy_helper.from_array(np.array([4, 8]), "back.shape")
    model.graph.initializer.append(back)
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    model.graph.node.insert(at, helper.make_node("Reshape", ["flat", "back.shape"], ["flat2"], name="back"))
    model.graph.node[at + 1].input[0] = "flat2"

    with pytest.raises(ModelError, match=r"holds its batch of 4 in constants .*Reshape reshape: \[32, 1\]"):
        read_model(written(tmp_path / "m.onnx", model), UNIT)


def test_initializers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    """File formats before IR 4 wanted it so; one input is the picture all the same."""
    model = foreign_classifier(opset=11, batch="N")
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))

    found = read_model(written(tmp_path / "m.onnx", model), UNIT)

    assert [value.name for value in found.proto.graph.input] == ["image"]
    assert reads_bytes(found)
    assert check_adoption(found, pictures(1)) is not None


def test_an_open_size_is_taken_from_the_recipe(tmp_path: Path) -> None:
    """Width first, as everywhere here."""
    path = written(tmp_path / "m.onnx", foreign_classifier(batch="N", size=("w", "h")))

    model = read_model(path, dataclasses.replace(UNIT, size=(24, 16), resize="letterbox", pad_value=114))

    assert (model.input.width_px, model.input.height_px) == (24, 16)
    assert (model.input.resize, model.input.pad_value) == ("letterbox", 114)


def test_an_adoption_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    """The check must be able to fail: here against a model that was trained with other means."""
    model = read_model(written(tmp_path / "m.onnx", foreign_classifier()), COLOURED)
    assert model.adoption is not None
    other = dataclasses.replace(model.adoption, preprocess=dataclasses.replace(COLOURED, colour="bgr"))

    found = check_adoption(model, pictures(4))

    assert found is not None
    assert (found.n, found.max_relative < 1e-4) == (4, True)
    with pytest.raises(ModelError, match="it differs from the model as it came by"):
        check_adoption(dataclasses.replace(model, adoption=other), pictures(4))


def test_an_adopted_graph_that_gives_nothing_finite_is_found_out(tmp_path: Path) -> None:
    """NaN is larger than nothing: compared carelessly it passes every bound."""
    model = read_model(written(tmp_path / "m.onnx", foreign_classifier()), UNIT)
    broken = onnx.ModelProto()
    broken.CopyFrom(model.proto)
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), "bias"))

    with pytest.raises(ModelError, match="it differs from the model as it came by inf"):
        check_adoption(dataclasses.replace(model, proto=broken), pictures(2))


def test_a_model_that_gives_nothing_finite_on_real_pictures_is_refused(tmp_path: Path) -> None:
    """Most often a preprocessing that was not meant."""
    model = foreign_classifier()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((6, 3, 3, 3), 1e35, np.float32), "first"))

    with pytest.raises(ModelError, match="gives NaN or infinity on a calibration image"):
        check_adoption(read_model(written(tmp_path / "m.onnx", model), PreprocessRecipe(scale=1e4)), pictures(1))


@pytest.mark.parametrize("form", DETECTOR_SHAPES)
def test_the_usual_exports_of_detectors_are_known_by_their_shapes(tmp_path: Path, form: str) -> None:
    """Boxes and scores leave as two outputs, because in one they would share one scale."""
    path = written(tmp_path / "m.onnx", foreign_detector(form))

    model = read_model(path, dataclasses.replace(CENTRED, colour="bgr"), classes=3)

    assert model.task == "detect"
    assert (model.outputs.logits, model.input.name) == (None, "image")
    assert model.heads == (("level0", "level1") if form == "levels" else ("boxes", "scores"))
    assert model.heads == tuple(value.name for value in model.proto.graph.output)
    check = check_adoption(model, pictures(3))
    assert check is not None
    assert check.max_relative < 1e-5
    (tmp_path / "native.onnx").write_bytes(bytes_from_model(model.proto))
    native = read_model(tmp_path / "native.onnx", classes=3)
    assert (native.heads, native.outputs, native.adoption) == (model.heads, model.outputs, None)
    if form != "levels":
        session = onnxruntime.InferenceSession(bytes_from_model(model.proto), providers=["CPUExecutionProvider"])
        boxes, scores = session.run(["boxes", "scores"], {"image": pictures(1)[0]})
        count = 5 if form == "final" else 16
        assert (boxes.shape, scores.shape) == ((1, count, 4), (1, count, 3))
        assert scores.min() >= 0
        assert scores.max() <= 1


def test_outputs_that_are_called_boxes_already_do_not_stand_in_the_way(tmp_path: Path) -> None:
    """Names are the exporter's, and `boxes` is a good one."""
    for form, names in (("pair", ("boxes", "scores")), ("joined", ("boxes",)), ("objectness", ("scores",))):
        model = read_model(written(tmp_path / "m.onnx", foreign_detector(form, output_names=names)), UNIT, classes=3)

        check = check_adoption(model, pictures(2))
        assert check is not None, form
        assert check.max_relative < 1e-5, form


def test_a_raw_head_beside_the_decoded_output_is_left_out(tmp_path: Path) -> None:
    """Older YOLOv5 exports give both."""
    model, raw = foreign_detector("objectness"), foreign_detector("levels")
    model.graph.node.extend(raw.graph.node[4:])
    model.graph.output.extend(raw.graph.output)
    model.graph.initializer.extend(tensor for tensor in raw.graph.initializer if tensor.name == "raw")

    found = read_model(written(tmp_path / "m.onnx", model), UNIT)

    assert (found.heads, found.count) == (("boxes", "scores"), 3)
    assert "level0" not in {name for node in found.proto.graph.node for name in node.output}


def test_a_detector_of_no_known_form_is_refused_with_the_forms(tmp_path: Path) -> None:
    """What it gives and what is known, side by side."""
    path = written(tmp_path / "m.onnx", foreign_detector("joined"))

    with pytest.raises(ModelError) as caught:
        read_model(path, UNIT, classes=80)

    assert "outputs: got out [1, 7, 16], no form of a classifier or detector for 80 classes" in caught.value.message
    assert "(1, 4+C, N) as YOLOv8" in (caught.value.hint or "")
    with pytest.raises(ModelError, match=r"got out \[1, 5, 6\]"):
        read_model(written(tmp_path / "m.onnx", foreign_detector("final")), UNIT)


def test_class_names_are_read_as_ultralytics_writes_them(tmp_path: Path) -> None:
    """A dictionary in text, which also says how many classes there are."""
    model = foreign_detector("joined")
    helper.set_model_props(model, {"names": "{0: 'scratch', 1: 'dent', 2: 'stain'}", "stride": "32"})

    found = read_model(written(tmp_path / "m.onnx", model), UNIT)

    assert found.classes == ("scratch", "dent", "stain")
    assert metadata_of(found.proto)["stride"] == "32"


def test_a_detector_needs_no_labels_to_be_gathered(tmp_path: Path) -> None:
    """What INT8 costs is measured by agreement with float; a flat folder will do."""
    parts = write_parts(tmp_path / "parts", {"calib": 4, "val": 2})
    val = tmp_path / "val"
    val.mkdir()
    for path in sorted((parts / "images").glob("val_*")):
        (val / path.name).write_bytes(path.read_bytes())
    classes = tuple(ClassRecipe(name=name, severity="major") for name in ("a", "b", "c"))
    recipe = Recipe(
        model=written(tmp_path / "m.onnx", foreign_detector("joined")),
        val=val,
        calib=parts,
        classes=classes,
        preprocess=UNIT,
        out=tmp_path / "d.defect",
    )

    inputs = gather(recipe)

    assert draft_manifest(inputs).task == "detect"
    assert all(sample.label is None for sample in inputs.val)
    raw = written(tmp_path / "raw.onnx", foreign_detector("levels"))
    with pytest.raises(ModelError, match="gives a raw detection head of 2 outputs, expected boxes and scores"):
        gather(dataclasses.replace(recipe, model=raw))


def test_a_model_from_elsewhere_is_built_by_the_command(tmp_path: Path) -> None:
    """From an export with a Softmax and an open batch to a bundle that judges as it did."""
    parts = write_parts(tmp_path / "parts", {"calib": 12, "val": 8, "test": 2})
    written(tmp_path / "m.onnx", without_front())
    classes = ", ".join(f"{{name: {name}, severity: {'ok' if name == 'ok' else 'major'}}}" for name in CLASSES)
    recipe = "quantize: {cpu_graph: int8}\nclasses: [" + classes + "]\n"
    (tmp_path / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        arguments = ("--int8", "--model", "m.onnx", "--data", parts, "--calib", parts, "--out", "m.defect", "--json")
        refused = run_command("optimize.cli.build", *arguments)
        section = "preprocess: {scale: 1, mean: 128, std: 128}\n"
        (tmp_path / RECIPE_FILE).write_text(recipe + section, encoding="utf-8")
        ran = run_command("optimize.cli.build", *arguments)

    assert refused.code == 2
    assert "does not say under preprocess" in refused.err
    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["fp32"]["accuracy"] >= 0.9
    assert ran.json["metrics"]["int8"]["accuracy"] >= 0.9
    assert open_bundle(tmp_path / "m.defect").manifest.class_names == CLASSES


@pytest.mark.torch
@pytest.mark.parametrize(("dynamo", "opset"), [(False, 12), (False, 17), (True, 18)])
def test_what_pytorch_exports_is_taken_in(tmp_path: Path, dynamo: bool, opset: int) -> None:
    """Both of its exporters, with an open batch, and a view that computes its shape."""
    if dynamo:
        pytest.importorskip("onnxscript", reason="PyTorch's newer exporter needs it: pip install onnxscript")
    path = tmp_path / "m.onnx"
    exported(path, dynamo=dynamo, opset=opset)

    model = read_model(path, COLOURED)

    found = check_adoption(model, pictures(3))
    assert found is not None
    assert found.max_relative < 1e-5
    assert (model.count, model.heads) == (3, ("logits",))


def exported(path: Path, *, dynamo: bool, opset: int) -> None:
    """A small network with what exporters like to spell out: views, means, splits, HardSwish."""
    import warnings

    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
            self.block = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.ReLU6())
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.stem(x).chunk(2, dim=1)
            joined = torch.cat([left, self.block(right)], dim=1)
            flat = joined.view(joined.shape[0], joined.shape[1], -1).mean(dim=2)
            return torch.softmax(self.head(flat), dim=1)

    torch.manual_seed(0)
    network, example = Network().eval(), torch.zeros(2, 3, 16, 16)
    network(torch.rand(4, 3, 16, 16))
    shapes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"dynamic_axes": {"x": [0]}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of one another
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["x"],
            dynamo=dynamo,
            opset_version=opset,
            verbose=False,
            **shapes,
        )


def test_a_section_is_checked_where_it_is_made() -> None:
    """Also by those who call the library."""
    with pytest.raises(ConfigError, match=r"preprocess\.std: got 2 numbers"):
        PreprocessRecipe(std=(1.0, 1.0))
