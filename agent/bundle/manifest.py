"""The manifest: what a bundle says about itself, as frozen types and as JSON.

`manifest.json` is the only file that is trusted by name; every other file of the bundle is trusted by the SHA-256 that
stands here. Reading it is strict: an unknown key, a missing key, a wrong type or a value out of range is a
`BundleError` that names the key. A newer `schema` is refused, never guessed at.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from agent.bundle.detection import DetectionSpec, detection_from_json, detection_to_json
from agent.errors import BundleError

__all__ = [
    "SCHEMA",
    "Anchor",
    "ClassSpec",
    "InputSpec",
    "Manifest",
    "Outputs",
    "PolicySpec",
    "Resize",
    "Severity",
    "Task",
    "manifest_from_json",
    "manifest_to_json",
]

SCHEMA = 1
"""The manifest schema this program writes, and the newest that it reads."""

Task = Literal["classify", "detect"]
Severity = Literal["ok", "minor", "major", "critical"]
Resize = Literal["stretch", "letterbox"]
Anchor = Literal["centre", "corner"]
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""What name and version are made of: they become a file name, a field of every message and a word in every log line."""

Json = Any
"""Whatever JSON can hold; metrics and provenance are for people and reports, the agent does not read them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What the graph's one input takes: `(1, height_px, width_px, 3)` uint8 RGB, normalization inside the graph.

    Attributes:
        name: the input's name in the graph.
        width_px: width in pixels, 8 to 4096.
        height_px: height in pixels, 8 to 4096.
        resize: `stretch` changes the aspect ratio, `letterbox` keeps it and pads.
        pad_value: grey level 0 to 255 of the padding (letterbox).
        anchor: where the picture lies in the padding (letterbox): `centre`, or `corner`, the upper left one.
    """

    name: str = "image"
    width_px: int
    height_px: int
    resize: Resize = "stretch"
    pad_value: int = 128
    anchor: Anchor = "centre"

    def __post_init__(self) -> None:
        for key in ("width_px", "height_px"):
            _within(f"input.{key}", getattr(self, key), 8, 4096)
        _within("input.pad_value", self.pad_value, 0, 255)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """One class, in the order of the graph's outputs.

    Attributes:
        name: as in the data set's folders or CSV.
        severity: `ok` for good parts, else how bad an escape of this class is.
        min_size_mm: findings whose longer side is shorter are no defects (detect, where the pixel pitch is known); None
            counts all.
    """

    name: str
    severity: Severity
    min_size_mm: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 80 or not self.name.isprintable():
            raise BundleError(
                f"manifest.json: classes: got the name {_shown(self.name)}, expected 1 to 80 printable characters"
            )
        if self.min_size_mm is not None:
            _within(f"classes: {self.name}: min_size_mm", self.min_size_mm, 0.0, 1e5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The graph's outputs by role; `None` where the graph has none.

    Attributes:
        logits: `(1, C)` float32, one per class (classify).
        embedding: `(1, D)` float32 pooled features.
        cam: `(1, C, h, w)` float32 class activation maps.
        boxes: `(1, N, 4)` float32, see `agent.bundle.detection` (detect).
        scores: `(1, N, C)` float32 (detect).
    """

    logits: str | None = None
    embedding: str | None = None
    cam: str | None = None
    boxes: str | None = None
    scores: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """The default decision limits, on the defect score: 1 minus the probability that the part is good.

    Attributes:
        defect_above: at or above this the part is a defect.
        review_above: at or above this, and below `defect_above`, a person looks at it.
    """

    defect_above: float = 0.5
    review_above: float = 0.2

    def __post_init__(self) -> None:
        _within("policy.defect_above", self.defect_above, 0.0, 1.0)
        _within("policy.review_above", self.review_above, 0.0, 1.0)
        if self.review_above > self.defect_above:
            raise BundleError(
                f"manifest.json: policy.review_above: got {self.review_above}, "
                f"expected at most policy.defect_above ({self.defect_above})"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a device needs to know before it opens a graph.

    Attributes:
        schema: version of this format.
        name: the bundle's name, for example `neu`: letters, digits, `_`, `.` and `-`, 64 at most.
        version: the maker's version, for example `1.2.0`; the same letters.
        task: `classify` or `detect`.
        input: the one input.
        classes: in the order of the outputs; at least two (one for a detector), names differ.
        outputs: which output is what.
        graphs: kind to file name: `fp32` and `cpu` for CPUs; `trt` for TensorRT, and `trt16`, the same with FP16 where
            it has float32.
        cpu_graph: the kind that a CPU runs: `cpu` (INT8), or `fp32` where INT8 is not faster or not good enough.
        policy: default decision limits.
        detection: how boxes and scores are read; None for a classifier.
        temperature: logits are divided by it before the softmax.
        gate_passed: False when the build ended with a budget that it could not keep.
        gate_reasons: why, in words; empty when passed.
        metrics: accuracy, drop, latency as measured at the build; for people.
        provenance: data, recipe, tools, seeds; for auditors.
        files: every other file of the bundle to its SHA-256 (hex).
    """

    schema: int = SCHEMA
    name: str
    version: str
    task: Task
    input: InputSpec
    classes: tuple[ClassSpec, ...]
    outputs: Outputs
    graphs: Mapping[str, str]
    cpu_graph: str
    policy: PolicySpec
    detection: DetectionSpec | None = None
    temperature: float = 1.0
    gate_passed: bool = True
    gate_reasons: tuple[str, ...] = ()
    metrics: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "version"):
            if not re.fullmatch(NAME_PATTERN, getattr(self, key)):
                raise BundleError(
                    f"manifest.json: {key}: got {_shown(getattr(self, key))}, expected the form {NAME_PATTERN}"
                )
        fewest = 1 if self.task == "detect" else 2  # one kind of defect is enough for boxes
        if len(self.classes) < fewest:
            raise BundleError(f"manifest.json: classes: got {len(self.classes)}, expected at least {fewest}")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise BundleError(f"manifest.json: classes: names must differ, got {names}")
        if self.cpu_graph not in self.graphs:
            raise BundleError(
                f"manifest.json: cpu_graph: got {self.cpu_graph!r}, expected one of {sorted(self.graphs)}"
            )
        if not 0.01 <= self.temperature <= 100:
            raise BundleError(f"manifest.json: temperature: got {self.temperature}, expected 0.01 to 100")
        if self.task == "detect":
            self._check_detector()
        else:
            self._check_classifier()

    def _check_detector(self) -> None:
        if self.outputs.boxes is None or self.outputs.scores is None:
            raise BundleError("manifest.json: outputs.boxes, outputs.scores: a detector needs both")
        if self.detection is None:
            raise BundleError(
                "manifest.json: detection: missing, a detector's boxes and scores can't be read without it",
                hint="rebuild the bundle with the defect-opt that matches this agent",
            )
        if 0 < self.policy.review_above < self.detection.score_above:
            raise BundleError(
                f"manifest.json: policy.review_above: got {self.policy.review_above:g}, under detection.score_above "
                f"({self.detection.score_above:g}): findings between them would never be seen",
                hint="rebuild the bundle with a lower score_above, or a higher limit",
            )

    def _check_classifier(self) -> None:
        if self.outputs.logits is None:
            raise BundleError("manifest.json: outputs.logits: missing, a classifier needs it")
        if self.detection is not None:
            raise BundleError("manifest.json: detection: a classifier has no boxes")
        if any(c.min_size_mm is not None for c in self.classes):
            raise BundleError("manifest.json: classes: min_size_mm: a classifier knows no sizes")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names in output order."""
        return tuple(c.name for c in self.classes)


def manifest_to_json(manifest: Manifest) -> bytes:
    """Write a manifest as UTF-8 JSON: sorted keys, two spaces, one newline at the end; same values, same bytes."""
    raw = dataclasses.asdict(manifest)
    # Left out where they say nothing: a classifier's manifest stays one that older agents read.
    raw["classes"] = [{k: v for k, v in c.items() if k != "min_size_mm" or v is not None} for c in raw["classes"]]
    del raw["detection"]
    if manifest.detection is not None:
        raw["detection"] = detection_to_json(manifest.detection)
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def manifest_from_json(data: bytes) -> Manifest:
    """Read and check a manifest.

    Args:
        data: the bytes of `manifest.json`.

    Raises:
        BundleError: not JSON, another schema, an unknown or missing key, a wrong type or value; the key is named.
    """
    try:
        raw = json.loads(data, object_pairs_hook=_object)
        # What can be read but not written again would fail later, where it hurts: NaN, 1e999, half a surrogate pair.
        json.dumps(raw, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise BundleError(f"manifest.json: got {type(raw).__name__}, expected an object")
    schema = raw.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BundleError(f"manifest.json: schema: got {schema!r}, expected a whole number from 1")
    if schema > SCHEMA:
        raise BundleError(
            f"manifest.json: schema: got {schema}, this agent reads up to {SCHEMA}",
            hint="update defect-agent, or rebuild the bundle with the defect-opt that matches it",
        )
    return _manifest(raw)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """A JSON object whose keys differ; of two equal ones each reader would believe another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found


def _manifest(raw: dict[str, Json]) -> Manifest:
    required = {"name", "version", "task", "input", "classes", "outputs", "graphs", "cpu_graph"}
    _keys("", raw, Manifest, required=required)
    classes = _typed("classes", raw["classes"], list)
    return Manifest(
        schema=raw["schema"],
        name=_typed("name", raw["name"], str),
        version=_typed("version", raw["version"], str),
        task=_one_of("task", raw["task"], Task),
        input=_flat("input", raw["input"], InputSpec, required={"width_px", "height_px"}),
        classes=tuple(
            _flat(f"classes[{i}]", c, ClassSpec, required={"name", "severity"}) for i, c in enumerate(classes)
        ),
        outputs=_flat("outputs", raw["outputs"], Outputs, required=set()),
        graphs=_strings("graphs", raw["graphs"]),
        cpu_graph=_typed("cpu_graph", raw["cpu_graph"], str),
        policy=_flat("policy", raw.get("policy", {}), PolicySpec, required=set()),
        detection=_detection(raw.get("detection")),
        temperature=_number("temperature", raw.get("temperature", 1.0)),
        gate_passed=_typed("gate_passed", raw.get("gate_passed", True), bool),
        gate_reasons=tuple(
            _typed(f"gate_reasons[{i}]", r, str)
            for i, r in enumerate(_typed("gate_reasons", raw.get("gate_reasons", []), list))
        ),
        metrics=_typed("metrics", raw.get("metrics", {}), dict),
        provenance=_typed("provenance", raw.get("provenance", {}), dict),
        files=_strings("files", raw.get("files", {})),
    )


def _detection(raw: Json) -> DetectionSpec | None:
    return None if raw is None else detection_from_json(raw, "manifest.json: detection")


_LITERALS: dict[str, Any] = {"severity": Severity, "resize": Resize, "anchor": Anchor}


def _flat(where: str, raw: Json, cls: type[Any], *, required: set[str]) -> Any:
    """Build a flat frozen type from a JSON object, checking each value against the type of its field."""
    raw = _typed(where, raw, dict)
    _keys(f"{where}.", raw, cls, required=required)
    values: dict[str, Json] = {}
    for field in dataclasses.fields(cls):
        if field.name not in raw:
            continue
        value, key = raw[field.name], f"{where}.{field.name}"
        if field.name in _LITERALS:
            values[field.name] = _one_of(key, value, _LITERALS[field.name])
        elif "None" in str(field.type) and value is None:
            values[field.name] = None
        elif "str" in str(field.type):
            values[field.name] = _typed(key, value, str)
        elif "float" in str(field.type):
            values[field.name] = _number(key, value)
        else:
            values[field.name] = _typed(key, value, int)
    return cls(**values)


def _keys(prefix: str, raw: dict[str, Json], cls: type[Any], *, required: set[str]) -> None:
    known = {field.name for field in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            raise BundleError(f"manifest.json: {prefix}{key}: unknown key")
    for key in sorted(required - set(raw)):
        raise BundleError(f"manifest.json: {prefix}{key}: missing")


def _typed(where: str, value: Json, expected: type[Any]) -> Any:
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise BundleError(f"manifest.json: {where}: got {_shown(value)}, expected {expected.__name__}")
    return value


def _number(where: str, value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BundleError(f"manifest.json: {where}: got {_shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise BundleError(f"manifest.json: {where}: got a number with too many digits") from error


def _one_of(where: str, value: Json, literal: Any) -> Any:
    if value not in get_args(literal):
        raise BundleError(f"manifest.json: {where}: got {_shown(value)}, expected one of {list(get_args(literal))}")
    return value


def _strings(where: str, raw: Json) -> dict[str, str]:
    return {key: _typed(f"{where}.{key}", value, str) for key, value in _typed(where, raw, dict).items()}


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BundleError(f"manifest.json: {where}: got {value}, expected {low} to {high}")


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
