"""Pixels as industrial cameras send them, to (H, W, 3) uint8 BGR.

The codes are those of GenICam's Pixel Format Naming Convention (PFNC), as they go over the wire in GigE Vision and USB3
Vision. The rules are those of `decode`: grey becomes three equal channels, values of more than 8 bits lose their low
bits, and nothing is ever stretched per picture.

The Bayer names are a trap: GenICam names a mosaic by its first two pixels (`BayerRG8`: R G in the first row), OpenCV's
old names by the second row and column (`COLOR_BayerBG2BGR` for the same one). Here OpenCV's four-letter names are used,
which mean what they say (`COLOR_BayerRGGB2BGR`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.errors import ImageError
from agent.frame import BgrImage

__all__ = ["FORMATS", "PixelFormat", "bgr_from_bytes", "format_in_words"]


@dataclasses.dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the bytes of a picture are to be read.

    Attributes:
        name: GenICam's, such as `BayerRG12`.
        bits: that carry a value, in the low bits of one byte, or of two with the low byte first.
        layout: one value per pixel (grey, or a mosaic by its first four pixels, row by row), or three.
    """

    name: str
    bits: int
    layout: Literal["grey", "RGGB", "GRBG", "GBRG", "BGGR", "rgb", "bgr"]


_MOSAICS = {
    "RGGB": cv2.COLOR_BayerRGGB2BGR,
    "GRBG": cv2.COLOR_BayerGRBG2BGR,
    "GBRG": cv2.COLOR_BayerGBRG2BGR,
    "BGGR": cv2.COLOR_BayerBGGR2BGR,
}

FORMATS: Mapping[int, PixelFormat] = {
    0x01080001: PixelFormat("Mono8", 8, "grey"),
    0x01100003: PixelFormat("Mono10", 10, "grey"),
    0x01100005: PixelFormat("Mono12", 12, "grey"),
    0x01100025: PixelFormat("Mono14", 14, "grey"),
    0x01100007: PixelFormat("Mono16", 16, "grey"),
    0x01080008: PixelFormat("BayerGR8", 8, "GRBG"),
    0x01080009: PixelFormat("BayerRG8", 8, "RGGB"),
    0x0108000A: PixelFormat("BayerGB8", 8, "GBRG"),
    0x0108000B: PixelFormat("BayerBG8", 8, "BGGR"),
    0x0110000C: PixelFormat("BayerGR10", 10, "GRBG"),
    0x0110000D: PixelFormat("BayerRG10", 10, "RGGB"),
    0x0110000E: PixelFormat("BayerGB10", 10, "GBRG"),
    0x0110000F: PixelFormat("BayerBG10", 10, "BGGR"),
    0x01100010: PixelFormat("BayerGR12", 12, "GRBG"),
    0x01100011: PixelFormat("BayerRG12", 12, "RGGB"),
    0x01100012: PixelFormat("BayerGB12", 12, "GBRG"),
    0x01100013: PixelFormat("BayerBG12", 12, "BGGR"),
    0x0110002E: PixelFormat("BayerGR16", 16, "GRBG"),
    0x0110002F: PixelFormat("BayerRG16", 16, "RGGB"),
    0x01100030: PixelFormat("BayerGB16", 16, "GBRG"),
    0x01100031: PixelFormat("BayerBG16", 16, "BGGR"),
    0x02180014: PixelFormat("RGB8", 8, "rgb"),
    0x02180015: PixelFormat("BGR8", 8, "bgr"),
}
"""PFNC code to what it means (EMVA, PFNC 2.1, table of values). Packed formats of 10 and 12 bits are not among them."""


def format_in_words(code: int) -> str:
    """Its name, or its code where we don't know it."""
    known = FORMATS.get(code)
    return known.name if known is not None else f"pixel format 0x{code & 0xFFFFFFFF:08X}"


def bgr_from_bytes(data: bytes, code: int, width: int, height: int, *, row_padding: int = 0) -> BgrImage:
    """Read one picture.

    Args:
        data: its bytes, row by row; what follows the last row (chunks) is left alone.
        code: PFNC code of the pixels.
        width: in pixels.
        height: in pixels.
        row_padding: bytes behind each row.

    Returns:
        (height, width, 3) uint8 BGR, C-contiguous, that shares nothing with `data`.

    Raises:
        ImageError: a format that we don't read, too few bytes, or values beyond what the format may hold.
    """
    pixels = FORMATS.get(code)
    if pixels is None:
        known = ", ".join(known.name for known in FORMATS.values())
        raise ImageError(f"{format_in_words(code)} can't be read", hint=f"set camera.pixel_format to one of {known}")
    values = _values(data, pixels, width, height, row_padding)
    if pixels.layout == "bgr":
        return np.array(values.reshape(height, width, 3), order="C")
    if pixels.layout == "rgb":
        return _converted(values.reshape(height, width, 3), cv2.COLOR_RGB2BGR)
    if pixels.layout == "grey":
        return _converted(values, cv2.COLOR_GRAY2BGR)
    if width < 2 or height < 2:
        raise ImageError(f"{width}x{height} pixels are too few for the colours of {pixels.name}")
    return _converted(values, _MOSAICS[pixels.layout])


def _values(data: bytes, pixels: PixelFormat, width: int, height: int, row_padding: int) -> NDArray[np.uint8]:
    """The values as 8 bits, one row of them per row of the picture, without padding."""
    per_value = 1 if pixels.bits == 8 else 2
    row = width * per_value * (3 if pixels.layout in ("rgb", "bgr") else 1)
    needed = height * (row + row_padding) - row_padding
    if width < 1 or height < 1 or len(data) < needed:
        raise ImageError(f"{width}x{height} pixels of {pixels.name} need {needed:,} bytes, got {len(data):,}")
    whole = np.frombuffer(data, np.uint8, needed)
    rows = np.lib.stride_tricks.as_strided(whole, (height, row), (row + row_padding, 1), writeable=False)
    if per_value == 1:
        return np.ascontiguousarray(rows)
    wide = np.ascontiguousarray(rows).view("<u2")
    if pixels.bits < 16 and int(wide.max()) >> pixels.bits:
        raise ImageError(f"{pixels.name} holds the value {int(wide.max())}, which has more than {pixels.bits} bits")
    shifted: NDArray[np.uint8] = np.right_shift(wide, pixels.bits - 8).astype(np.uint8)
    return shifted


def _converted(values: NDArray[np.uint8], conversion: int) -> BgrImage:
    return np.ascontiguousarray(cv2.cvtColor(values, conversion), dtype=np.uint8)
