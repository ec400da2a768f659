"""TensorRT's calibration cache: the ranges of a network's tensors as text, for DLA and for TensorRT 8 to 10.

```text
TRT-8601-EntropyCalibration2
input: 3c008912
conv1: 3c60dd38
```

The first line names the release and the calibrator; then comes one line for each tensor: its name, and its scale as the
hex digits of a float32, most significant first. The scale is the largest absolute value divided by 127, so `3c008912`
is 0.00784..., the step of values up to 0.9963. TensorRT writes no leading zeros: a scale of 0 is the single digit `0`.

NVIDIA documents no format; this one is read off what public programs read and write: the comment at `ReadDynamicRange`
in ONNX Runtime's TensorRT provider ("tensor name : scale in 32-bit single precision IEEE754 format"), the exporter of
NVIDIA's TAO toolkit (`tensor_scale / 127.0`, as hex), ModelOpt's `import_scales_from_calib_cache`, and caches that
TensorRT 7.2 and 8.5 wrote. TensorRT refuses a cache whose first line is from another release: "Calibration table does
not match calibrator algorithm type" (TensorRT 10.3 with a TRT-8600 cache). TensorRT 11 has no calibration at all.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping

from optimize.errors import ModelError

__all__ = ["STEPS", "read_cache", "write_cache"]

STEPS = 127
"""Steps of a symmetric INT8 range, from 0 to its largest value."""

HEADER = re.compile(r"TRT-(\d+)-EntropyCalibration2")
HEX = re.compile(r"[0-9a-f]{1,8}")


def write_cache(ranges: Mapping[str, float], *, version: str) -> bytes:
    """Write a calibration cache.

    Args:
        ranges: tensor name to the largest absolute value that it takes, above 0.
        version: TensorRT's on the device, such as `8.6.1` or `10.3.0`; it goes into the first line.

    Returns:
        ASCII or UTF-8 text, tensors in the order of `ranges`. The same ranges give the same bytes.

    Raises:
        ModelError: a name or range can't be written, or the version is none.
    """
    lines = [f"TRT-{_number(version)}-EntropyCalibration2"]
    for name, largest in ranges.items():
        if not name or name != name.strip() or ": " in name or not name.isprintable():
            raise ModelError(
                f"calibration cache: tensor name {name!r}: got ': ', a line break, outer blanks or nothing, which the "
                "cache's lines can't hold",
                hint="rename the tensor in the ONNX graph",
            )
        lines.append(f"{name}: {_hex(name, largest)}")
    return ("\n".join(lines) + "\n").encode()


def read_cache(data: bytes) -> Mapping[str, float]:
    """Read a calibration cache.

    Args:
        data: a whole cache, as TensorRT or `write_cache` wrote it.

    Returns:
        Tensor name to scale, in the file's order. The range is the scale times 127.

    Raises:
        ModelError: it is no calibration cache; the message has the line's number.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ModelError("calibration cache: is no text", hint="give the file that a calibrator wrote") from error
    if HEADER.fullmatch(lines[0].removesuffix("\r")) is None:
        raise ModelError(f"calibration cache, line 1: got {lines[0][:60]!r}, expected TRT-NUMBER-EntropyCalibration2")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.removesuffix("\r"):
            if any(rest.strip() for rest in lines[number:]):
                raise ModelError(f"calibration cache, line {number}: got an empty line among the tensors")
            break
        name, scale = _entry(number, line.removesuffix("\r"))
        if name in scales:
            raise ModelError(f"calibration cache, line {number}: tensor {name!r} stands there a second time")
        scales[name] = scale
    return scales


def _entry(number: int, line: str) -> tuple[str, float]:
    name, colon, digits = line.rpartition(": ")
    if not colon or not name or HEX.fullmatch(digits) is None:
        raise ModelError(
            f"calibration cache, line {number}: got {line[:60]!r}, expected NAME: and up to 8 hex digits (0-9, a-f)"
        )
    scale = float(struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0])
    if not math.isfinite(scale) or scale < 0:
        raise ModelError(f"calibration cache, line {number}: the scale of {name!r} is {scale}, expected 0 or more")
    return name, scale


def _hex(name: str, largest: float) -> str:
    if not (math.isfinite(largest) and largest > 0):
        raise ModelError(
            f"calibration cache: tensor {name!r}: range: got {largest}, expected a number above 0",
            hint="calibrate with pictures that reach this tensor, or leave it out",
        )
    try:
        packed = struct.pack(">f", largest / STEPS)
    except OverflowError:
        packed = b"\0\0\0\0"
    if not any(packed):
        raise ModelError(f"calibration cache: tensor {name!r}: range {largest:g} is beyond a float32")
    return packed.hex()


def _number(version: str) -> int:
    """`8.6.1` to 8601 and `10.3.0` to 100300: NV_TENSORRT_VERSION, whose digits grew with release 10."""
    parts = version.split(".")
    if len(parts) < 3 or not all(part.isascii() and part.isdigit() for part in parts[:3]):
        raise ModelError(
            f"calibration cache: TensorRT version: got {version!r}, expected three numbers such as 8.6.1",
            hint="on the device: python3 -c 'import tensorrt; print(tensorrt.__version__)'",
        )
    major, minor, patch = (int(part) for part in parts[:3])
    return major * 10_000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
