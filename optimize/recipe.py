"""The recipe: what should be done to a model. `defect-opt.yaml` in the working directory, read once into frozen types.

Every key has a default, so a recipe may be empty or absent; what the command line says goes before it. `defect-opt
init` writes `TEMPLATE`, which holds every key with its default, and a test holds it to these types.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from agent.bundle.detection import TILE_PX
from agent.bundle.manifest import NAME_PATTERN, Anchor, PolicySpec, Resize, Severity
from agent.config import config_from_mapping, read_yaml
from agent.errors import BundleError, ConfigError
from optimize.errors import RecipeError

__all__ = [
    "RECIPE_FILE",
    "TEMPLATE",
    "ClassRecipe",
    "DetectorForm",
    "DetectorRecipe",
    "LadderRecipe",
    "PolicyRecipe",
    "PreprocessRecipe",
    "QuantizeRecipe",
    "Recipe",
    "bundle_name",
    "preprocess_from_mapping",
    "read_recipe",
    "with_flags",
]

RECIPE_FILE = "defect-opt.yaml"
_HINT = "`defect-opt init DIR` writes a defect-opt.yaml with every key, its unit and its default"


def _key(default: Any, *, low: float | None = None, high: float | None = None, pattern: str | None = None) -> Any:
    """One key with its bounds, which `config_from_mapping` checks."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "pattern": pattern})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassRecipe:
    """One class.

    Attributes:
        name: as in the data set.
        severity: `ok` for good parts, else how bad an escape is.
        min_size_mm: findings of a detector whose longer side is shorter are no defects; needs `detector.pixel_mm`; None
            counts all.
    """

    name: str
    severity: Severity
    min_size_mm: float | None = _key(None, low=0, high=1e5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecipe:
    """The bundle's decision limits, on the defect score (1 minus the probability that the part is good).

    Attributes:
        defect_above: from this score, 0 to 1, a part is a defect.
        review_above: from this score, 0 to 1, a person looks at it.
    """

    defect_above: float = _key(0.5, low=0, high=1)
    review_above: float = _key(0.2, low=0, high=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRecipe:
    """How the INT8 graph is made; see `optimize.quantize.QuantizeOptions`.

    Attributes:
        method: how ranges are found; `auto` measures per tensor which of the others disturbs the outputs least.
        percentile: share of values that `percentile` keeps, in percent.
        equalize: `auto` makes channels equally loud where that is measured to help; `none` leaves them.
        correction: `weights` fits weights and biases layer by layer; `full`, `fast` biases only; `none` rounds.
        weight_bits: 8; kept from saturating on x86 without VNNI, so it is right on every CPU. 7 is coarser.
        images: at most so many calibration images, divided evenly over the classes.
        sampler: which of a class, when there are more: `kcentre` spreads them over what there is to see, `even` takes
            any; `auto` is `kcentre`, in a very big folder among some thousands.
        max_float_layers: at most so many layers are put back to float to hold `max_drop_points`.
        cpu_graph: which graph a CPU runs: `auto` takes INT8 where it is faster here and good enough, else FP32.
    """

    method: Literal["auto", "minmax", "percentile", "mse", "kl"] = "auto"
    percentile: float = _key(99.99, low=90, high=100)
    equalize: Literal["auto", "none"] = "auto"
    correction: Literal["weights", "full", "fast", "none"] = "weights"
    weight_bits: Literal[7, 8] = 8
    images: int = _key(300, low=8, high=100_000)
    sampler: Literal["auto", "even", "kcentre"] = "auto"
    max_float_layers: int = _key(12, low=0, high=1000)
    cpu_graph: Literal["auto", "int8", "fp32"] = "auto"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessRecipe:
    """What a float model from elsewhere was trained to be fed: `(byte * scale - mean) / std` for every pixel.

    Attributes:
        scale: what a byte is multiplied with; 1/255 gives 0 to 1. A fraction may be written as such.
        mean: taken off, in units of the scaled picture: one number, or one per channel in the model's own order.
        std: divided by, in the same units: one number, or one per channel in the model's own order.
        colour: the model's channel order; `grey` is 0.299 R + 0.587 G + 0.114 B, on every channel that it has.
        layout: `auto` tells nchw and nhwc apart by where the 1 or 3 channels stand.
        size: width and height in pixels of a model that leaves them open; empty takes the model's.
        resize: `stretch` changes the aspect ratio, `letterbox` keeps it and pads.
        pad_value: grey level 0 to 255 of the padding (letterbox).
        anchor: where the picture lies in the padding (letterbox): `centre`, or `corner`, the upper left one.
    """

    scale: float = _key(1 / 255, low=1e-9, high=1e9)
    mean: tuple[float, ...] = _key((0.0,), low=-1e9, high=1e9)
    std: tuple[float, ...] = _key((1.0,), low=1e-9, high=1e9)
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    size: tuple[int, ...] = _key((), low=8, high=4096)
    resize: Resize = "stretch"
    pad_value: int = _key(128, low=0, high=255)
    anchor: Anchor = "centre"

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (1, 3):
                raise ConfigError(f"preprocess.{key}: got {len(getattr(self, key))} numbers, expected 1, or 3")
        if len(self.size) not in (0, 2):
            raise ConfigError(f"preprocess.size: got {list(self.size)}, expected [width, height]")


DetectorForm = Literal[
    "auto", "yolov5", "yolov8", "yolov10", "yolox", "ssd", "ssdlite", "retinanet", "corners", "centre"
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRecipe:
    """How a detector from elsewhere is read, and which of its boxes are findings.

    Attributes:
        form: whose export it is; `auto` tells it by shapes and metadata. `corners` and `centre` are boxes in pixels of
            the input: x0, y0, x1, y1, or the centre's x and y, width and height.
        scores: `probability` is 0 to 1 as it is; `sigmoid` and `softmax` (background first) are logits; `auto` looks
            at the graph's end.
        score_above: what scores lower is no finding, 0 to 0.99; None takes the model's own, or 0.05.
        nms_iou: a box that overlaps a better one of its class by more is the same defect, 0 to 1; None takes the
            model's own, or 0.5.
        max_findings: at most so many on a picture; None takes the model's own, or 100.
        vote_iou: each box becomes the mean of those that overlap it by so much, 0.3 to 1; None takes the model's own,
            or leaves it.
        pixel_mm: one pixel of the camera's picture in millimetres; None when nobody measured it.
        tile_px: side of the tiles that a large picture is looked at in, in its own pixels; None looks at the whole.
        tile_overlap: share of a tile's side that it has in common with its neighbour, 0 to 0.5.
        tile_with_whole: the whole picture is looked at as well.
        check: what follows when another reading fits the calibration pictures clearly better.
    """

    form: DetectorForm = "auto"
    scores: Literal["auto", "probability", "sigmoid", "softmax"] = "auto"
    score_above: float | None = _key(None, low=0, high=0.99)
    nms_iou: float | None = _key(None, low=0, high=1)
    max_findings: int | None = _key(None, low=1, high=1000)
    vote_iou: float | None = _key(None, low=0.3, high=1)
    pixel_mm: float | None = _key(None, low=1e-6, high=1000)
    tile_px: int | None = _key(None, low=TILE_PX[0], high=TILE_PX[1])
    tile_overlap: float = _key(0.2, low=0, high=0.5)
    tile_with_whole: bool = True
    check: Literal["refuse", "warn"] = "refuse"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LadderRecipe:
    """How small and fast a network may become; see `defect-opt ladder`.

    Attributes:
        student: the network that the large one is distilled into; empty distils none and prunes the large one.
        keep_macs: shares of the multiplications that pruned networks keep; empty prunes none.
        max_drop: largest loss of accuracy (a detector: mAP50) against the large network, in points.
        max_latency_ms: largest median of one inference, in milliseconds, here or in the device's profile.
        max_size_mb: largest graph, in millions of bytes.
        max_escape: largest escape rate, 0 to 1, that its 95 % upper bound may reach.
        recover_epochs: passes over the calibration pictures that an INT8 network gets which breaks max_drop, or loses a
            class, though its float network does not; None takes some hundred steps' worth, 0 recovers none.
    """

    student: str = _key("", pattern=r"[A-Za-z0-9_.+-]*")
    keep_macs: tuple[float, ...] = _key((0.7, 0.5, 0.35), low=0.01, high=0.99)
    max_drop: float | None = _key(None, low=0, high=100)
    max_latency_ms: float | None = _key(None, low=1e-3, high=1e6)
    max_size_mb: float | None = _key(None, low=1e-3, high=1e6)
    max_escape: float | None = _key(None, low=0, high=1)
    recover_epochs: int | None = _key(None, low=0, high=10_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What should be done to a model; every key may be left out.

    Attributes:
        name: the bundle's name; empty takes the name of --out, or of the model's file.
        version: the bundle's version.
        model: the float ONNX file.
        data: labelled images; gives `val` for measuring, and `test`, which calibration must not touch.
        calib: calibration images: a labelled set (its `calib` split), or a flat folder.
        val: labelled images for measuring, in place of those in `data`.
        out: the bundle to write; empty is NAME-VERSION.defect in the working directory.
        classes: names and severities; empty takes the model's, `ok`-like names as ok and all others as major.
        preprocess: what a float model from elsewhere was trained to be fed; empty for our own, which holds it inside.
        detector: how a detector is read, and which of its boxes are findings.
        policy: decision limits.
        max_drop_points: largest loss of accuracy (a detector's mAP50, or detections kept) from FP32 to INT8, in
            percentage points; empty sets no gate.
        targets: whose INT8 graphs are made: `cpu` (always), `trt` (TensorRT, a Jetson).
        quantize: how the INT8 graph is made.
        ladder: how small and fast a network may become.
        seed: for every choice that chance makes.
        threads: CPU threads of one inference, while measuring.
    """

    name: str = _key("", pattern=f"({NAME_PATTERN})?")
    version: str = _key("1.0.0", pattern=NAME_PATTERN)
    model: Path | None = None
    data: Path | None = None
    calib: Path | None = None
    val: Path | None = None
    out: Path | None = None
    classes: tuple[ClassRecipe, ...] = ()
    preprocess: PreprocessRecipe | None = None
    detector: DetectorRecipe = DetectorRecipe()
    policy: PolicyRecipe = PolicyRecipe()
    max_drop_points: float | None = _key(None, low=0, high=100)
    targets: tuple[Literal["cpu", "trt"], ...] = ("cpu", "trt")
    quantize: QuantizeRecipe = QuantizeRecipe()
    ladder: LadderRecipe = LadderRecipe()
    seed: int = _key(0, low=0, high=2**32 - 1)
    threads: int = _key(1, low=1, high=256)

    @property
    def all_targets(self) -> tuple[Literal["cpu", "trt"], ...]:
        """The targets with `cpu` among them, whatever was written: every device can fall back to its CPU."""
        return ("cpu", "trt") if "trt" in self.targets else ("cpu",)

    def policy_spec(self) -> PolicySpec:
        """The limits as the manifest has them.

        Raises:
            RecipeError: review_above lies over defect_above.
        """
        try:
            return PolicySpec(defect_above=self.policy.defect_above, review_above=self.policy.review_above)
        except BundleError as error:
            raise RecipeError(error.message.replace("manifest.json: ", ""), hint=_HINT) from error


def read_recipe(folder: Path) -> Recipe:
    """Read `defect-opt.yaml` of a folder; where there is none, every key has its default.

    Args:
        folder: usually the working directory; relative paths in the recipe start there.

    Raises:
        RecipeError: the file is no YAML, or holds a key, type or value that we don't know.
    """
    path = folder / RECIPE_FILE
    if not path.exists():
        return Recipe()
    try:
        # An empty file, or one with comments only, is a recipe that leaves every key out.
        raw = {} if not _has_content(path) else read_yaml(path)
        recipe = config_from_mapping(Recipe, _with_plain_numbers(raw), source=path)
    except ConfigError as error:
        raise RecipeError(error.message, hint=_HINT) from error
    names = [entry.name for entry in recipe.classes]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"{path}: classes: {twice!r} stands twice", hint=_HINT)
    recipe.policy_spec()
    return recipe


def preprocess_from_mapping(raw: Any, *, source: Path) -> PreprocessRecipe:
    """Read the section from elsewhere than a recipe: a model's metadata may hold it as JSON.

    Args:
        raw: what was read; refused if it is no mapping.
        source: what messages call it.

    Raises:
        ConfigError: a key, type or value that we don't know.
    """
    return config_from_mapping(PreprocessRecipe, _with_plain_numbers({"preprocess": raw})["preprocess"], source=source)


def _with_plain_numbers(raw: dict[str, Any]) -> dict[str, Any]:
    """`scale: 1/255` as a number, and a lone mean or std as a list of one: people write them so."""
    section = raw.get("preprocess")
    if not isinstance(section, dict):
        return raw
    plain = {key: _number(value) for key, value in section.items()}
    for key in ("mean", "std"):
        if key in plain:
            values = plain[key] if isinstance(plain[key], list) else [plain[key]]
            plain[key] = [_number(value) for value in values]
    return {**raw, "preprocess": plain}


def _number(value: Any) -> Any:
    """The value of a fraction such as `1/255`; everything else as it came."""
    parts = re.fullmatch(r"\s*([0-9.]+)\s*/\s*([0-9.]+)\s*", value) if isinstance(value, str) else None
    try:
        return value if parts is None else float(parts[1]) / float(parts[2])
    except (ValueError, ZeroDivisionError):
        return value


def with_flags(recipe: Recipe, flags: Mapping[str, tuple[str, Any]]) -> Recipe:
    """Put the command line before the recipe, within the recipe's bounds.

    Args:
        recipe: what the file said.
        flags: key of the recipe to the flag's name and value; None keeps the recipe's.

    Raises:
        RecipeError: a value out of bounds; the flag is named.
    """
    given = {key: value for key, (_, value) in flags.items() if value is not None}
    for key, value in given.items():
        if isinstance(value, Path):
            continue
        try:
            config_from_mapping(Recipe, {key: value}, source=Path(flags[key][0]))
        except ConfigError as error:
            raise RecipeError(error.message.replace(f"{flags[key][0]}: {key}: ", f"{flags[key][0]}: ")) from error
    return dataclasses.replace(recipe, **given)


def bundle_name(stem: str) -> str:
    """A file's or folder's name as far as a bundle's name can hold it; empty when nothing is left."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in stem)
    return kept.lstrip("_.-")[:64]


def _has_content(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return True  # read_yaml says what is wrong with it
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


TEMPLATE = """\
# What `defect-opt` does to a model. Every key may be left out; the command line goes before this file.
# Relative paths start at this file's folder.

name: ""                 # the bundle's name; empty takes the name of --out, or of the model's file
version: 1.0.0           # the bundle's version

model: model.onnx        # the float ONNX file, as `defect-opt train` writes it
data: data               # labelled images: a folder per class, or splits.csv (file,class,split)
calib: calib             # calibration images from the line: labelled as above, or a flat folder
val: null                # labelled images for measuring; empty takes the val split of data
out: null                # the bundle; empty is NAME-VERSION.defect beside you

classes: []              # names with severity (ok, minor, major, critical); empty: ok-like names are ok, others major
#  - {name: ok, severity: ok}
#  - {name: scratch, severity: major, min_size_mm: 0.3}    # a detector's findings that are shorter are no defects

preprocess: null         # for a float model from elsewhere: what it was trained to be fed, per channel if it differs
#preprocess:             # (byte * scale - mean) / std; our own models hold it inside and need none of this
#  scale: 1/255          # a byte times this; 1/255 gives 0 to 1
#  mean: [0.0]           # taken off, in units of the scaled picture; one number, or one per channel of the model
#  std: [1.0]            # divided by, the same
#  colour: rgb           # the model's channels: rgb, bgr, grey
#  layout: auto          # nchw, nhwc; auto looks where the 1 or 3 channels stand
#  size: []              # [width, height] in pixels, where the model leaves them open
#  resize: stretch       # stretch changes the aspect ratio, letterbox keeps it and pads
#  pad_value: 128        # grey level of the padding (letterbox)
#  anchor: centre        # where the picture lies in the padding (letterbox): centre, or corner (upper left)

detector:                # for detectors only
  form: auto             # yolov5, yolov8 (v11, v12), yolov10, yolox, ssd, ssdlite, retinanet, corners, centre; auto
                         # tells it by shapes and metadata; corners and centre are plain boxes in pixels of the input
  scores: auto           # probability (0 to 1 as it is), sigmoid, softmax (background first); auto looks at the graph
  score_above: null      # what scores lower is no finding, 0 to 0.99; empty takes the model's own, or 0.05
  nms_iou: null          # a box that overlaps a better one by more is the same defect; empty: the model's own, or 0.5
  max_findings: null     # at most so many on a picture; empty takes the model's own, or 100
  vote_iou: null         # 0.3 to 1; a box becomes the mean of those that overlap it by so much; empty: the model's own
  pixel_mm: null         # one pixel of the camera's picture in millimetres, for sizes and classes[].min_size_mm
  tile_px: null          # side of the tiles that a large picture is looked at in, in its own pixels; empty: the whole
  tile_overlap: 0.2      # share of a tile's side that neighbours have in common, 0 to 0.5
  tile_with_whole: true  # look at the whole picture as well, for defects larger than a tile
  check: refuse          # when another reading fits the calibration pictures clearly better: refuse, or warn

policy:                  # limits on the defect score, 0 to 1: 1 minus the probability that the part is good; of a
                         # detector the highest score among its findings
  defect_above: 0.5      # from here a part is a defect
  review_above: 0.2      # from here a person looks at it

max_drop_points: null    # largest loss of accuracy (mAP50 of a detector) from FP32 to INT8, in percentage points;
                         # empty sets no gate

targets: [cpu, trt]      # whose INT8 graphs are made: cpu (always), trt (TensorRT, a Jetson)

quantize:
  method: auto           # how ranges are found: minmax, percentile, mse, kl; auto measures which is best, per tensor
  percentile: 99.99      # share of values that `percentile` keeps, in percent
  equalize: auto         # make channels equally loud where that is measured to help; none
  correction: weights    # weights and biases fitted layer by layer; full, fast (biases only); none
  weight_bits: 8         # 8 is kept from saturating on CPUs without VNNI; 7 is coarser and needs no such care
  images: 300            # at most so many calibration images, divided evenly over the classes
  sampler: auto          # which of a class: kcentre spreads them over what there is to see, even takes any; or auto
  max_float_layers: 12   # at most so many layers are put back to float to hold max_drop_points
  cpu_graph: auto        # auto takes INT8 where it is faster here and good enough, else FP32; int8 or fp32 insists

ladder:                  # for `defect-opt ladder`: it takes the fastest network within all of these limits
  student: ""            # the network that the large one is distilled into; empty: the large one itself is pruned
  keep_macs: [0.7, 0.5, 0.35]  # shares of the multiplications that pruned networks keep; [] prunes none
  max_drop: null         # largest loss of accuracy (mAP50 of a detector) against the large network, in points
  max_latency_ms: null   # largest median of one inference, here or in the device's profile (--profile)
  max_size_mb: null      # largest graph, in millions of bytes
  max_escape: null       # largest escape rate, 0 to 1; its 95 % upper bound must not lie above
  recover_epochs: null   # an INT8 network that breaks max_drop or loses a class, though its float one does not, is
                         # recovered while it rounds: so many passes over calib; 0 never, empty some hundred steps

seed: 0                  # for every choice that chance makes
threads: 1               # CPU threads of one inference, while measuring
"""
