"""The input of a float model from elsewhere: found, told apart, and fixed to one picture of one size."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from agent.errors import ConfigError
from optimize.errors import ModelError
from optimize.quantize.conventions import conventional_preprocess
from optimize.quantize.graph import Graph, metadata_of, shape_of
from optimize.quantize.onnx_file import EXPORT_HINT, bytes_from_model, open_session, refuse, run_session
from optimize.recipe import RECIPE_FILE, DetectorForm, PreprocessRecipe, preprocess_from_mapping

if TYPE_CHECKING:
    import onnx

__all__ = ["Layout", "Picture", "find_picture", "find_preprocess", "fix_shapes", "with_shapes"]

EXAMPLE = (
    "preprocess: {scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], colour: rgb, resize: stretch}"
)

CONTROL = frozenset({"If", "Loop", "Scan"})

Layout = Literal["nchw", "nhwc", "bytes"]

FLOAT32_HINT = "export it in float32 (in PyTorch: model.float() before torch.onnx.export); INT8 is made from that"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The input as it came.

    Attributes:
        name: its name.
        layout: `nchw` or `nhwc` floats, or `bytes`: (1, H, W, 3) uint8.
        channels: 1 or 3.
        batch: pictures at a time; None where it is open.
        width_px: in pixels; None where it is open.
        height_px: in pixels; None where it is open.
    """

    name: str
    layout: Layout
    channels: int
    batch: int | None
    width_px: int | None
    height_px: int | None


def find_picture(path: Path, model: onnx.ModelProto, given: PreprocessRecipe | None) -> Picture:
    """The one input, told apart by its type and where its channels stand.

    Raises:
        ModelError: there are more, or it is no picture.
    """
    import onnx

    inputs = Graph(model).inputs()
    if len(inputs) != 1:
        refuse(path, f"inputs: got {[v.name for v in inputs]}, expected one, the picture", EXPORT_HINT)
    value = inputs[0]
    shape = shape_of(model, value.name) or ()
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    got = f"input {value.name}: got {list(shape)} {kind}"
    sides = [side if isinstance(side, int) and side > 0 else None for side in shape]
    if kind == "uint8":
        if len(sides) != 4 or None in sides or (sides[0], sides[3]) != (1, 3):
            refuse(path, f"{got}, expected [1, H, W, 3] uint8 (RGB, normalization inside)", EXPORT_HINT)
        return Picture(name=value.name, layout="bytes", channels=3, batch=1, width_px=sides[2], height_px=sides[1])
    if kind != "float" or len(sides) != 4:
        wanted = "[1, H, W, 3] uint8 (RGB, normalization inside), or [N, C, H, W] or [N, H, W, C] float"
        refuse(path, f"{got}, expected {wanted}", FLOAT32_HINT if kind in ("float16", "bfloat16") else EXPORT_HINT)
    layout = _layout(path, got, sides, given)
    channels, height, width = (sides[1], *sides[2:]) if layout == "nchw" else (sides[3], *sides[1:3])
    if channels not in (1, 3):
        refuse(path, f"{got}, expected 1 or 3 channels", EXPORT_HINT)
    return Picture(name=value.name, layout=layout, channels=channels, batch=sides[0], width_px=width, height_px=height)


def _layout(path: Path, got: str, sides: list[int | None], given: PreprocessRecipe | None) -> Literal["nchw", "nhwc"]:
    if given is not None and given.layout != "auto":
        return given.layout
    first, last = sides[1] in (1, 3), sides[3] in (1, 3)
    if first == last:
        refuse(
            path,
            f"{got}, expected 1 or 3 channels, in the second or the last place",
            f"where both could be meant, write preprocess: {{layout: nchw}} (or nhwc) in {RECIPE_FILE}",
        )
    return "nchw" if first else "nhwc"


def find_preprocess(
    path: Path, model: onnx.ModelProto, picture: Picture, given: PreprocessRecipe | None, form: DetectorForm = "auto"
) -> tuple[PreprocessRecipe | None, str]:
    """What the model was fed: from the recipe, its metadata, or the convention of such detectors; None: it takes bytes.

    Returns:
        What it is, and where a convention says so a sentence about it.

    Raises:
        ModelError: nobody says, or what is said does not go with the input.
    """
    if picture.layout == "bytes":
        if given is not None:
            refuse(
                path,
                "takes uint8 with the normalization inside, and the recipe has preprocess",
                f"take preprocess out of {RECIPE_FILE}: it is for float models",
            )
        return None, ""
    how, note = given or _from_metadata(path, model), ""
    if how is None and (known := _conventional(model, picture, form)) is not None:
        how, why = known
        note = f"preprocess: {why}: {_words(how)}; write it in {RECIPE_FILE} if it was trained otherwise"
    if how is None:
        refuse(
            path,
            f"takes floats, and {RECIPE_FILE} does not say under preprocess what it was trained to be fed",
            f"write for example `{EXAMPLE}` there: (byte * scale - mean) / std; for a detector of a well-known maker "
            "`detector: {form: …}` says it too",
        )
    if picture.channels == 1 and how.colour != "grey":
        refuse(path, f"takes 1 channel, and preprocess.colour is {how.colour}", "write `colour: grey`")
    for key in ("mean", "std"):
        if len(getattr(how, key)) > picture.channels:
            refuse(path, f"takes {picture.channels} channel, and preprocess.{key} has 3 numbers", "write one number")
    return how, note


def _conventional(model: onnx.ModelProto, picture: Picture, form: DetectorForm) -> tuple[PreprocessRecipe, str] | None:
    """Of a detector, and in colour: a classifier's metadata may look the same, and nobody says how grey is made."""
    ranks = [len(shape_of(model, value.name) or ()) for value in model.graph.output]
    if picture.channels != 3 or ranks.count(3) == 0:
        return None
    return conventional_preprocess(form, metadata_of(model), is_open=None in (picture.width_px, picture.height_px))


def _words(how: PreprocessRecipe) -> str:
    fitted: str = how.resize
    if how.resize == "letterbox":
        fitted += f" with {how.pad_value}, the picture in the {how.anchor}"
    mean, std = ([round(value, 5) for value in values] for values in (how.mean, how.std))
    return f"{how.colour.upper()} * {how.scale:.4g}, mean {mean}, std {std}, {fitted}"


def _from_metadata(path: Path, model: onnx.ModelProto) -> PreprocessRecipe | None:
    text = metadata_of(model).get("preprocess")
    if text is None:
        return None
    try:
        return preprocess_from_mapping(json.loads(text), source=Path(f"{path}: metadata preprocess"))
    except ValueError:
        refuse(path, "metadata preprocess: is no JSON", EXPORT_HINT)
    except ConfigError as error:
        raise ModelError(
            error.message, hint=f"or say it under preprocess in {RECIPE_FILE}, which goes first"
        ) from error


def fix_shapes(path: Path, model: onnx.ModelProto, picture: Picture, how: PreprocessRecipe | None) -> onnx.ModelProto:
    """One picture of one size in, and every shape that follows; what comes back is another graph.

    Raises:
        ModelError: the size is open or contradicted, or the graph does not work on one picture.
    """
    import onnx
    from onnx import helper

    source = onnx.ValueInfoProto()
    source.CopyFrom(next(value for value in model.graph.input if value.name == picture.name))
    if how is not None:
        width, height = _size(path, picture, how)
        sides = (
            [1, picture.channels, height, width] if picture.layout == "nchw" else [1, height, width, picture.channels]
        )
        source.CopyFrom(helper.make_tensor_value_info(picture.name, source.type.tensor_type.elem_type, sides))
        if picture.batch not in (None, 1):
            _let_reshapes_follow(model, picture.batch or 1)
    del model.graph.input[:]
    model.graph.input.append(source)  # alone: old exporters list initializers there, too, which keeps them unfolded
    if how is not None:
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
    if any(node.op_type in CONTROL for node in model.graph.node):
        model = _without_control(path, model)
    return with_shapes(path, model, picture)


def _size(path: Path, picture: Picture, how: PreprocessRecipe) -> tuple[int, int]:
    """Width and height: the model's, else the recipe's; both only if they agree."""
    own = (picture.width_px, picture.height_px)
    wanted = how.size or own
    if None in wanted:
        refuse(path, "leaves the picture's size open", f"write preprocess: {{size: [width, height]}} in {RECIPE_FILE}")
    if any(mine not in (None, asked) for mine, asked in zip(own, wanted, strict=True)):
        refuse(path, f"takes {own[0]} x {own[1]} px, and preprocess.size is {list(wanted)}", "take size out")
    width, height = wanted
    assert width is not None
    assert height is not None
    if not (8 <= width <= 4096 and 8 <= height <= 4096):
        refuse(path, f"takes {width} x {height} px, expected 8 to 4096", EXPORT_HINT)
    return width, height


def _let_reshapes_follow(model: onnx.ModelProto, batch: int) -> None:
    """Write 1 where a Reshape's constant shape begins with the old batch, and its input does, too."""
    from onnx import numpy_helper

    graph = Graph(model)
    for i, node in enumerate(model.graph.node):
        shape = graph.constant(node.input[1]) if node.op_type == "Reshape" else None
        before = shape_of(model, node.input[0]) if shape is not None else None
        if shape is None or shape.size == 0 or shape[0] != batch or (before is not None and before[0] != batch):
            continue
        follows = np.array([1, *shape[1:]], dtype=np.int64)
        name = f"batch.{i}"
        model.graph.initializer.append(numpy_helper.from_array(follows, name))
        node.input[1] = name


def _without_control(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Let ONNX Runtime compute conditions that are constant now that every shape is."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        target = Path(folder) / "flat.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        try:
            onnxruntime.InferenceSession(bytes_from_model(model), options, providers=["CPUExecutionProvider"])
            flat: onnx.ModelProto = onnx.load(str(target))
        except Exception as error:  # onnxruntime's exceptions have no common root but this
            raise ModelError(f"{path}: ONNX Runtime can't open it ({error})", hint=EXPORT_HINT) from error
    left = sorted({node.op_type for node in flat.graph.node} & CONTROL)
    if left:
        refuse(path, f"decides while it runs ({', '.join(left)}), expected a graph without control flow", EXPORT_HINT)
    del flat.metadata_props[:]
    flat.metadata_props.extend(model.metadata_props)
    return flat


def with_shapes(path: Path, model: onnx.ModelProto, picture: Picture) -> onnx.ModelProto:
    """Every output's shape in whole numbers: inferred, or seen when ONNX Runtime runs a grey picture.

    Raises:
        ModelError: the graph does not work on one picture.
    """
    import onnx

    fixed = picture.batch not in (None, 1)
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        if fixed or not all(_is_static(shape_of(model, value.name)) for value in model.graph.output):
            _see_shapes(path, model)
    except Exception as error:  # onnx's and onnxruntime's exceptions have no common root but this
        if fixed:
            refuse(
                path,
                f"holds its batch of {picture.batch} in constants ({_where_batch(model, picture.batch or 0)})",
                "export it with batch 1, or with an open batch",
            )
        why = " ".join(str(error).split())[:200]
        size = "a preprocess.size that the network can halve as often as it wants, such as multiples of 32"
        hint = size if picture.width_px is None and picture.layout != "bytes" else EXPORT_HINT
        raise ModelError(f"{path}: does not work on one picture ({why})", hint=hint) from error
    return model


def _see_shapes(path: Path, model: onnx.ModelProto) -> None:
    """Run a grey picture, and write down the outputs' shapes."""
    from onnx import helper

    session = open_session(str(path), bytes_from_model(model), optimized=False)
    value = model.graph.input[0]
    sides = [int(side) for side in shape_of(model, value.name) or ()]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    names = [output.name for output in model.graph.output]
    arrays = run_session(str(path), session, names, {value.name: np.full(sides, 0.5).astype(kind)})
    for output in model.graph.output:
        array = arrays[output.name]
        kind_of = helper.np_dtype_to_tensor_dtype(array.dtype)
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind_of, list(array.shape)))


def _where_batch(model: onnx.ModelProto, batch: int) -> str:
    graph = Graph(model)
    names = []
    for node in graph.nodes:
        shape = graph.constant(node.input[1]) if node.op_type in ("Reshape", "Expand") else None
        if shape is not None and any(side > 0 and side % batch == 0 for side in shape.ravel().tolist()):
            names.append(f"{node.op_type} {node.name or node.output[0]}: {shape.tolist()}")
    return "; ".join(names[:3]) or "no Reshape that we know"


def _is_static(shape: tuple[int | str, ...] | None) -> bool:
    return shape is not None and all(isinstance(side, int) for side in shape)
