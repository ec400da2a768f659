"""How large a picture is, from the first bytes of its file: thousands are asked, so none is decoded for it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from agent.errors import ImageError
from optimize.dataset import read_image
from optimize.errors import DataError

__all__ = ["picture_size", "same_size"]

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height in stored pixels; EXIF orientation is ignored, as the device's decoder ignores it.

    Args:
        path: a picture. JPEG and PNG are read by their header, others are decoded.

    Returns:
        None for a picture that is damaged: that is said when it is used.
    """
    try:
        with path.open("rb") as file:
            head = file.read(26)
            if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
                width, height = struct.unpack_from(">II", head, 16)
                return (width, height) if width and height else None
            if head.startswith(b"\xff\xd8\xff"):
                return _jpeg_size(file)
        image = read_image(path)
    except (OSError, struct.error, ImageError):
        return None
    return image.shape[1], image.shape[0]


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Steps from segment to segment up to the frame header (ITU-T T.81, annex B)."""
    file.seek(2)
    while True:
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            return None
        if marker[1] == 0xFF:  # fill bytes may stand before a marker
            file.seek(-1, 1)
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if marker[1] in _JPEG_FRAMES:
            height, width = struct.unpack(">xHH", file.read(5))
            return (width, height) if width and height else None
        file.seek(max(length, 2) - 2, 1)


def same_size(where: str, said: tuple[int, int], found: tuple[int, int] | None) -> None:
    """Refuse annotations that were made on a picture of another size: every box would lie elsewhere.

    Args:
        where: the annotation, for the message.
        said: width and height as the annotation says; zeros say nothing.
        found: of the picture; None when it can't be read.

    Raises:
        DataError: they differ.
    """
    if found is not None and min(said) > 0 and said != found:
        raise DataError(
            f"{where}: was made on a picture of {said[0]} x {said[1]} px, but the picture has {found[0]} x {found[1]}",
            hint="use the picture that was outlined (not a scaled or rotated copy), or outline it again",
        )
