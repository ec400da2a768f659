"""Golden inputs: pictures with the outputs that the workbench saw, replayed on a device before it goes live.

In the bundle they are `golden/000.png`, … (already fitted to the input, lossless) and `golden/golden.json`:

```json
{"schema": 1,
 "goldens": [{"file": "golden/000.png", "label": "scratches",
              "outputs": {"cpu": {"logits": {"shape": [1, 6], "values": [0.5, …]}}}}]}
```

Values are float32 in their shortest decimal form: they come back bit for bit. Of a detector they are not its outputs,
which would be a megabyte per picture, but what is read from them: `detections`, (n, 6) of x0, y0, x1, y1 in pixels of
the input, score and class.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from agent.bundle.boxes import BoxDecoder, box_iou
from agent.bundle.manifest import InputSpec, Manifest
from agent.errors import BundleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "GOLDEN_INDEX",
    "Golden",
    "golden_files",
    "golden_name",
    "golden_outputs",
    "goldens_from_files",
    "is_as_recorded",
]

GOLDEN_INDEX = "golden/golden.json"
SCHEMA = 1
MAX_GOLDENS = 200
MAX_VALUES = 1_000_000
SAME_IOU, SAME_SCORE = 0.5, 0.8
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"

OutputsByRole: TypeAlias = "Mapping[str, NDArray[np.float32]]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """One input and what each graph made of it at the build.

    Attributes:
        file: its name in the bundle, `golden/000.png`.
        label: its true class, when known.
        image: (height_px, width_px, 3) uint8 RGB, of the input's size: `image[None]` is the tensor.
        outputs: graph kind (`fp32`, `cpu`) to output role (`logits`, …) to float32 values.
    """

    file: str
    label: str | None
    image: NDArray[np.uint8]
    outputs: Mapping[str, OutputsByRole]


def golden_name(index: int) -> str:
    """`0` as `golden/000.png`."""
    return f"golden/{index:03d}.png"


def golden_outputs(outputs: OutputsByRole, manifest: Manifest) -> OutputsByRole:
    """What a golden records of an engine's outputs: a classifier's as they are, a detector's as `detections`.

    Raises:
        EngineError: a detector's outputs can't be decoded.
    """
    if manifest.detection is None:
        return outputs
    found = BoxDecoder(manifest.detection, len(manifest.classes))(outputs["boxes"], outputs["scores"])
    columns = (found.boxes, found.scores[:, None], found.classes[:, None].astype(np.float32))
    return {"detections": np.concatenate(columns, axis=1)}


def is_as_recorded(golden: Golden, kind: str, outputs: OutputsByRole, manifest: Manifest) -> bool:
    """Whether an engine sees in a golden what the build saw: the same top class; or the same detections.

    Every detection from the policy's lower limit up must be found again, on either side, with the same class, an IoU
    of `SAME_IOU` and a score that may have fallen to `SAME_SCORE` of the limit: one that wavers about it is no change.

    Args:
        golden: its outputs of `kind` are the reference.
        kind: of the graph.
        outputs: what the engine gives now.
        manifest: of the bundle.

    Raises:
        EngineError: a detector's outputs can't be decoded.
        KeyError: the golden has no reference of that kind.
    """
    expected = golden.outputs[kind]
    if manifest.detection is None:
        return bool(outputs["logits"].argmax() == expected["logits"].argmax())
    now, then = golden_outputs(outputs, manifest)["detections"], expected["detections"]
    limit = max(manifest.policy.review_above, manifest.detection.score_above)
    return _all_found(then, now, limit) and _all_found(now, then, limit)


def _all_found(wanted: NDArray[np.float32], found: NDArray[np.float32], limit: float) -> bool:
    wanted = wanted[wanted[:, 4] >= limit]
    found = found[found[:, 4] >= SAME_SCORE * limit]
    same = (box_iou(wanted[:, :4], found[:, :4]) >= SAME_IOU) & (wanted[:, 5:] == found[:, 5])
    return bool(same.any(axis=1).all())


def golden_files(goldens: Sequence[Golden]) -> dict[str, bytes]:
    """Write goldens as the files of a bundle; the same goldens give the same bytes.

    Raises:
        BundleError: an image is not (H, W, 3) uint8, or an output is not finite.
    """
    files = {golden.file: _png_from_rgb(golden) for golden in goldens}
    entries = [
        {
            "file": golden.file,
            "label": golden.label,
            "outputs": {
                kind: {role: _json_from_array(golden.file, values) for role, values in roles.items()}
                for kind, roles in golden.outputs.items()
            },
        }
        for golden in goldens
    ]
    index = json.dumps({"schema": SCHEMA, "goldens": entries}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    files[GOLDEN_INDEX] = (index + "\n").encode()
    return files


def goldens_from_files(index: bytes, read: Callable[[str], bytes], spec: InputSpec) -> tuple[Golden, ...]:
    """Read the goldens of a bundle.

    Args:
        index: the bytes of `golden/golden.json`.
        read: gives the bytes of a file of the bundle by its name.
        spec: the graph's input, which every picture must fit.

    Raises:
        BundleError: the index or a picture is not as it must be; the file is named.
    """
    try:
        raw = json.loads(index)
        entries = raw["goldens"]
        if raw["schema"] != SCHEMA or not isinstance(entries, list) or len(entries) > MAX_GOLDENS:
            raise ValueError(f"expected schema {SCHEMA} and up to {MAX_GOLDENS} goldens")  # noqa: TRY301  (one door)
        return tuple(_golden(entry, read, spec) for entry in entries)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{GOLDEN_INDEX}: not as it must be ({type(error).__name__}: {error})") from error


def _golden(entry: Any, read: Callable[[str], bytes], spec: InputSpec) -> Golden:
    file, label = entry["file"], entry["label"]
    if not isinstance(file, str) or not isinstance(label, (str, type(None))):
        raise TypeError(f"got file {file!r} and label {label!r}, expected text")
    outputs = {
        str(kind): {str(role): _array_from_json(values) for role, values in roles.items()}
        for kind, roles in entry["outputs"].items()
    }
    return Golden(file=file, label=label, image=_rgb_from_png(file, read(file), spec), outputs=outputs)


def _png_from_rgb(golden: Golden) -> bytes:
    image = golden.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BundleError(f"{golden.file}: got {image.shape} {image.dtype}, expected (H, W, 3) uint8 RGB")
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    if not done:
        raise BundleError(f"{golden.file}: could not be written as PNG")
    return bytes(data)


def _rgb_from_png(file: str, data: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode one picture; its size is read from the header first, so that a lying PNG costs no memory."""
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not data.startswith(_PNG) or size != (spec.width_px, spec.height_px):
        raise BundleError(f"{file}: expected a PNG of {spec.width_px} x {spec.height_px} px")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BundleError(f"{file}: can't be decoded ({error})") from error
    if image is None or image.shape != (spec.height_px, spec.width_px, 3) or image.dtype != np.uint8:
        raise BundleError(f"{file}: can't be decoded")
    return np.ascontiguousarray(image[:, :, ::-1])


def _json_from_array(file: str, values: NDArray[np.float32]) -> dict[str, Any]:
    flat = np.asarray(values, dtype=np.float32).ravel()
    if not np.isfinite(flat).all():
        raise BundleError(f"{file}: a reference output holds NaN or infinity")
    return {"shape": list(values.shape), "values": [float(np.format_float_scientific(value)) for value in flat]}


def _array_from_json(raw: Any) -> NDArray[np.float32]:
    shape, values = raw["shape"], raw["values"]
    if not all(type(side) is int and side >= 0 for side in shape) or len(values) > MAX_VALUES:
        raise ValueError(f"got the shape {shape!r}")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise ValueError("an output that is not a finite number")
    return np.asarray(values, dtype=np.float32).reshape(tuple(shape))
