"""How a detector's two outputs are read: the coding of its boxes and scores, and where its priors lie.

Every common detector is one of four codings over a list of priors, each a box (cx, cy, w, h) in pixels of the input:

```text
corners    x0, y0, x1, y1 in input pixels                                        (decoded in the graph)
centre     cx, cy, w, h in input pixels                                          (YOLOv5, v8, 11 as exported)
distances  left, top, right, bottom from the prior's centre, in parts of w, h    (FCOS; ours)
deltas     dx, dy in parts of w, h; dw, dh as logarithms                         (SSD, RetinaNet; YOLOX)
```

FCOS: Tian et al., ICCV 2019. SSD: Liu et al., ECCV 2016, whose variances 0.1 and 0.2 are `scale_xy` and `scale_wh`.
RetinaNet: Lin et al., ICCV 2017. YOLOX: Ge et al., arXiv 2107.08430: its priors are cells, of the size of the stride
and with the upper left corner as centre (`offset` 0), its scales 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from agent.errors import BundleError

__all__ = [
    "TILE_PX",
    "BoxCoding",
    "DetectionSpec",
    "PriorLevel",
    "ScoreCoding",
    "Tiling",
    "detection_from_json",
    "detection_to_json",
]

BoxCoding = Literal["corners", "centre", "distances", "deltas"]
ScoreCoding = Literal["probability", "sigmoid", "softmax"]

MAX_PRIORS = 2_000_000
"""Ten times what a RetinaNet has at 800 x 1333 px; more is a mistake, or a bundle made to eat the device's memory."""

MAX_PX = 16_384.0

TILE_PX = (32, 16_384)
"""The smallest and the largest side of a tile: here, in the recipe and in training."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PriorLevel:
    """One feature map's priors; in the outputs they lie row by row, in a row place by place, at a place size by size.

    Attributes:
        rows: of the feature map.
        columns: of the feature map.
        step_x_px: pixels of the input from one place to the next, to the right.
        step_y_px: the same, down.
        offset: where in its cell a place's centre lies: 0.5 in the middle, 0 at the upper left corner.
        sizes_px: width and height of each prior at a place, in pixels of the input.
    """

    rows: int
    columns: int
    step_x_px: float
    step_y_px: float
    offset: float = 0.5
    sizes_px: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for key in ("rows", "columns"):
            _within(f"levels: {key}", getattr(self, key), 1, 4096)
        for key in ("step_x_px", "step_y_px"):
            _within(f"levels: {key}", getattr(self, key), 0.01, MAX_PX)
        _within("levels: offset", self.offset, 0.0, 1.0)
        _within("levels: sizes_px: how many", len(self.sizes_px), 1, 64)
        for size in self.sizes_px:
            if len(size) != 2:
                raise BundleError(f"detection: levels: sizes_px: got {size}, expected width and height")
            for side in size:
                _within("levels: sizes_px", side, 0.01, MAX_PX)

    @property
    def count(self) -> int:
        """How many priors there are."""
        return self.rows * self.columns * len(self.sizes_px)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a large picture is looked at in parts, so that small defects stay large enough.

    Attributes:
        tile_px: side of a tile in pixels of the frame; each is fitted to the input as a picture of its own.
        overlap: share of a tile's side that it has in common with its neighbour, 0 to 0.5: at least the largest defect
            that must be seen whole.
        with_whole: the whole picture is looked at as well, for defects larger than a tile.
    """

    tile_px: int
    overlap: float = 0.2
    with_whole: bool = True

    def __post_init__(self) -> None:
        _within("tiling: tile_px", self.tile_px, *TILE_PX)
        _within("tiling: overlap", self.overlap, 0.0, 0.5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectionSpec:
    """What the outputs `boxes` (1, N, 4) and `scores` (1, N, C) mean.

    Attributes:
        boxes: the coding of the boxes.
        scores: `probability`: 0 to 1 as it is; `sigmoid`: logits, each class by itself; `softmax`: logits, column 0 is
            the background (C is then one more than there are classes).
        levels: the priors, in the order of N; empty for `corners` and `centre`.
        scale_xy: `deltas` of the centre are multiplied by it.
        scale_wh: `deltas` of the size are multiplied by it.
        score_above: what scores lower is no finding.
        nms_iou: a box that overlaps a better one of its class by more is the same defect.
        max_findings: the best that are kept.
        vote_iou: a kept box becomes the mean of those of its class that overlap it by so much, see `boxes.vote`; None
            leaves it.
        pixel_mm: one pixel of the frame in millimetres; None when nobody measured it.
        tiling: how large pictures are looked at; None looks at the whole.
    """

    boxes: BoxCoding
    scores: ScoreCoding = "probability"
    levels: tuple[PriorLevel, ...] = ()
    scale_xy: float = 1.0
    scale_wh: float = 1.0
    score_above: float = 0.05
    nms_iou: float = 0.5
    max_findings: int = 100
    vote_iou: float | None = None
    pixel_mm: float | None = None
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        _one_of("boxes", self.boxes, BoxCoding)
        _one_of("scores", self.scores, ScoreCoding)
        for key, low, high in _BOUNDS:
            _within(key, getattr(self, key), low, high)
        if self.pixel_mm is not None:
            _within("pixel_mm", self.pixel_mm, 1e-6, 1e3)
        if self.vote_iou is not None:
            _within("vote_iou", self.vote_iou, 0.3, 1.0)
        self._check_priors()

    def _check_priors(self) -> None:
        if self.boxes in ("distances", "deltas"):
            if not self.levels:
                raise BundleError(f"detection: levels: missing, boxes coded as {self.boxes} need their priors")
            _within("levels: priors in all", self.n_priors, 1, MAX_PRIORS)
        elif self.levels:
            raise BundleError(f"detection: levels: got {len(self.levels)}, boxes coded as {self.boxes} have no priors")
        if self.boxes != "deltas" and (self.scale_xy, self.scale_wh) != (1.0, 1.0):
            raise BundleError(
                f"detection: scale_xy, scale_wh: got {self.scale_xy} and {self.scale_wh}, expected 1: "
                f"boxes coded as {self.boxes} are not scaled"
            )

    @property
    def n_priors(self) -> int:
        """How many boxes the outputs hold; 0 where they say it themselves (`corners`, `centre`)."""
        return sum(level.count for level in self.levels)


_BOUNDS = (
    ("scale_xy", 1e-4, 1e4),
    ("scale_wh", 1e-4, 1e4),
    ("score_above", 0.0, 0.99),  # at 1 nothing would ever be found, and every part would pass
    ("nms_iou", 0.0, 1.0),
    ("max_findings", 1, 1000),
)


def detection_to_json(spec: DetectionSpec) -> dict[str, Any]:
    """The spec as JSON holds it: every key, lists for tuples. `detection_from_json` gives the same spec again."""
    raw = dataclasses.asdict(spec)
    raw["levels"] = [{**level, "sizes_px": [list(size) for size in level["sizes_px"]]} for level in raw["levels"]]
    return raw


def detection_from_json(raw: Any, where: str = "detection") -> DetectionSpec:
    """Read and check a spec: strict, as the manifest is.

    Args:
        raw: what `json.loads` made of it.
        where: the file, and the key in it, for messages: `manifest.json: detection`.

    Raises:
        BundleError: an unknown or missing key, a wrong type, or a value out of range; the key is named.
    """
    try:
        return _spec(raw)
    except BundleError as error:
        raise BundleError(where + error.message.removeprefix("detection"), hint=error.hint) from error


def _spec(raw: Any) -> DetectionSpec:
    values = _checked("", raw, _SPEC, required={"boxes"})
    if values.get("tiling") is not None:
        values["tiling"] = Tiling(**_checked("tiling: ", values["tiling"], _TILING, required={"tile_px"}))
    values["levels"] = tuple(_level(level) for level in values.get("levels", ()))
    return DetectionSpec(**values)


def _level(raw: Any) -> PriorLevel:
    values = _checked("levels: ", raw, _LEVEL, required=set(_LEVEL) - {"offset"})
    sizes = [[_number("levels: sizes_px", side) for side in _list("levels: sizes_px", s)] for s in values["sizes_px"]]
    values["sizes_px"] = tuple(tuple(size) for size in sizes)
    return PriorLevel(**values)


_WHOLE, _FLOAT, _WORD, _FLAG, _LIST, _OBJECT = "a whole number", "a number", "text", "true or false", "a list", "keys"
_LEVEL = {
    "rows": _WHOLE,
    "columns": _WHOLE,
    "step_x_px": _FLOAT,
    "step_y_px": _FLOAT,
    "offset": _FLOAT,
    "sizes_px": _LIST,
}
_TILING = {"tile_px": _WHOLE, "overlap": _FLOAT, "with_whole": _FLAG}
_SPEC = {
    "boxes": _WORD,
    "scores": _WORD,
    "levels": _LIST,
    "scale_xy": _FLOAT,
    "scale_wh": _FLOAT,
    "score_above": _FLOAT,
    "nms_iou": _FLOAT,
    "max_findings": _WHOLE,
    "vote_iou": _FLOAT,
    "pixel_mm": _FLOAT,
    "tiling": _OBJECT,
}
_MAY_BE_NULL = frozenset({"pixel_mm", "tiling", "vote_iou"})


def _checked(prefix: str, raw: Any, kinds: Mapping[str, str], *, required: set[str]) -> dict[str, Any]:
    """The object's values, each of its kind; whole numbers become floats where floats are meant."""
    if not isinstance(raw, dict):
        raise BundleError(f"detection: {prefix}got {_shown(raw)}, expected an object")
    for key in raw:
        if key not in kinds:
            raise BundleError(f"detection: {prefix}{key}: unknown key (known here: {', '.join(kinds)})")
    for key in sorted(required - set(raw)):
        raise BundleError(f"detection: {prefix}{key}: missing")
    return {
        key: None if value is None and key in _MAY_BE_NULL else _value(f"{prefix}{key}", value, kinds[key])
        for key, value in raw.items()
    }


_TYPES: Mapping[str, type[Any]] = {_WHOLE: int, _WORD: str, _FLAG: bool, _LIST: list, _OBJECT: dict}


def _value(where: str, value: Any, kind: str) -> Any:
    if kind == _FLOAT:
        return _number(where, value)
    if not isinstance(value, _TYPES[kind]) or (kind == _WHOLE and isinstance(value, bool)):
        raise BundleError(f"detection: {where}: got {_shown(value)}, expected {kind}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    found: list[Any] = _value(where, value, _LIST)
    return found


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BundleError(f"detection: {where}: got {_shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise BundleError(f"detection: {where}: got a number with too many digits") from error


def _one_of(where: str, value: Any, literal: Any) -> None:
    if value not in get_args(literal):
        raise BundleError(f"detection: {where}: got {_shown(value)}, expected one of {list(get_args(literal))}")


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN and infinity are not between any two
        raise BundleError(f"detection: {where}: got {_shown(value)}, expected {low:.10g} to {high:.10g}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
