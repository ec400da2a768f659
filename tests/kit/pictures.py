"""Picture files, whole and broken, and short videos; everything is made here, nothing is stored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["encoded", "flat", "level_of", "png", "textured", "with_size", "write_pictures", "write_video"]


def textured(width: int = 64, height: int = 48, *, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 BGR that looks like a surface; another seed, another surface."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), dtype=np.uint8)


def flat(level: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 BGR of one grey level, which `level_of` finds again after lossy compression.

    From 16 px up it has a mark in one corner: a picture of one value everywhere is none, and is refused as such.
    """
    image = np.full((height, width, 3), level, dtype=np.uint8)
    if min(height, width) >= 16:
        image[:8, :8] = level + 40 if level < 128 else level - 40
    return image


def level_of(image: NDArray[np.uint8]) -> int:
    """The grey level of a `flat` picture in tens: 70 for 66 to 74."""
    return round(float(image.mean()) / 10) * 10


def encoded(image: NDArray[np.integer | np.floating], suffix: str = ".png", params: Iterable[int] = ()) -> bytes:
    """The picture as the bytes of a file of this kind."""
    good, data = cv2.imencode(suffix, image, list(params))
    assert good, suffix
    return bytes(data.tobytes())


def png(
    width: int, height: int, *, depth: int, colour_type: int, rows: bytes, chunks: Iterable[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG from its parts, also one that no encoder would write.

    Args:
        width: as the header says.
        height: as the header says.
        depth: bits per sample.
        colour_type: 0 grey, 2 colour, 3 palette, 4 grey with alpha, 6 colour with alpha.
        rows: uncompressed rows, each with its filter byte in front.
        chunks: kind and content of what stands between header and pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def with_size(suffix: str, width: int, height: int) -> bytes:
    """A small picture file whose header claims this size: a decompression bomb when it is large."""
    data = bytearray(encoded(textured(16, 16), suffix))
    if suffix == ".png":
        return png(width, height, depth=8, colour_type=0, rows=bytes(1000))
    if suffix == ".jpg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<ii", width, -height)
    elif suffix == ".webp":
        at = data.index(b"VP8L") + 9
        data[at : at + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    elif suffix == ".ppm":
        return f"P6\n# a comment\n{width} {height}\n255\n".encode() + bytes(100)
    else:
        return _tiff(width, height)
    return bytes(data)


def _tiff(width: int, height: int) -> bytes:
    """Big-endian, one strip of eight bytes."""
    entries = [(256, 4, width), (257, 4, height), (273, 4, 8), (279, 4, 8)]
    head = b"MM\x00\x2a" + struct.pack(">I", 16) + bytes(8) + struct.pack(">H", len(entries))
    return head + b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)


def write_pictures(folder: Path, names: Iterable[str]) -> Path:
    """Flat pictures of level 10, 20, 30, … under these names, in the order given; sub-folders are made."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(flat(10 * (i % 25 + 1)), path.suffix.lower()))
    return folder


def write_video(path: Path, levels: Iterable[int], *, codec: str = "MJPG") -> Path:
    """A video of flat frames, 64x48 pixels, 25 per second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (64, 48))
    assert writer.isOpened(), codec
    for level in levels:
        writer.write(flat(level))
    writer.release()
    return path
