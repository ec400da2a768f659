"""What every reader gives: images with their boxes, each box checked against the picture it lies on."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from optimize.errors import DataError
from optimize.paths import is_picture, walk
from optimize.samples import LabelledBox

__all__ = ["Folder", "FoundImage", "FoundSet", "checked_box", "open_folder", "split_of_folders", "split_of_name"]

MAX_OUTSIDE_PX = 1.0
"""How far an edge may lie outside its picture and be cut: tools count pixels from 0 or from 1, and round."""

MAX_CLASS_CHARACTERS = 80  # as in the bundle's manifest

_SPLIT_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "calib": "calib"}
_SPLIT_NAME = re.compile(r"(train|validation|valid|val|test|calib)(19|20)?\d{0,2}", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder and what lies in it.

    Attributes:
        root: the folder.
        pictures: its pictures, relative, as parts.
        others: its other files, the same.
    """

    root: Path
    pictures: tuple[tuple[str, ...], ...]
    others: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image that the annotations know.

    Attributes:
        file: relative to the root, with forward slashes.
        boxes: what is outlined on it; none on a good part.
        split: where the set says so by its files.
    """

    file: str
    boxes: tuple[LabelledBox, ...]
    split: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundSet:
    """What a reader found.

    Attributes:
        form: the format, in words.
        images: those that the annotations know.
        is_list: the annotations list the images of the set; others in the folder are no part of it.
    """

    form: str
    images: tuple[FoundImage, ...]
    is_list: bool = False


def open_folder(root: Path) -> Folder:
    """Look into a folder once.

    Raises:
        DataError: there is none, or it can't be looked into.
    """
    try:
        is_there = root.is_dir()
        files = list(walk(root)) if is_there else []
    except OSError as error:
        raise DataError(f"{root}: can't be looked into ({error.strerror})", hint=f"chmod +rx {root}") from error
    if not is_there:
        raise DataError(f"{root}: no such folder", hint="give the folder that holds the images and their boxes")
    return Folder(
        root=root,
        pictures=tuple(parts for parts in files if is_picture(parts[-1])),
        others=tuple(parts for parts in files if not is_picture(parts[-1])),
    )


def split_of_name(name: str) -> str | None:
    """The split that a word names: `train`, `valid`, `val2017`; None for any other word."""
    found = _SPLIT_NAME.fullmatch(name)
    return _SPLIT_OF[found.group(1).lower()] if found else None


def split_of_folders(folders: Sequence[str]) -> str | None:
    """The split that one of the folders above a file names; the last one counts."""
    named = [split for split in map(split_of_name, folders) if split is not None]
    return named[-1] if named else None


def checked_box(
    where: str,
    class_name: str,
    edges: tuple[float, float, float, float],
    size: tuple[int, int] | None,
    *,
    is_ignored: bool = False,
) -> LabelledBox:
    """A box that can be learned from, cut to the picture.

    Args:
        where: file, and line or element, for the message.
        class_name: what it is.
        edges: left, top, right, bottom in pixels.
        size: width and height of the picture; None when its header can't be read.
        is_ignored: see `optimize.samples.LabelledBox`.

    Raises:
        DataError: no class, an edge that is no number, nothing within, or further outside than `MAX_OUTSIDE_PX`.
    """
    if not class_name or not class_name.isprintable() or len(class_name) > MAX_CLASS_CHARACTERS:
        raise DataError(
            f"{where}: class: got {class_name[:100]!r}, expected 1 to {MAX_CLASS_CHARACTERS} printable characters",
            hint="give the box its class, or take it out",
        )
    left, top, right, bottom = edges
    shown = f"{class_name} {left:g},{top:g} to {right:g},{bottom:g}"
    if not all(map(math.isfinite, edges)):
        raise DataError(f"{where}: {shown}: expected finite numbers", hint="outline it again, or take it out")
    if right <= left or bottom <= top:
        raise DataError(
            f"{where}: {shown}: has no area, expected left under right and top under bottom",
            hint="outline it again, or take it out",
        )
    width, height = size or (math.inf, math.inf)
    outside = max(-left, -top, right - width, bottom - height)
    cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if outside > MAX_OUTSIDE_PX or cut[2] <= cut[0] or cut[3] <= cut[1]:
        room = f"{width} x {height} px" if size else "of a picture that begins at 0,0"
        raise DataError(
            f"{where}: {shown}: leads {outside:g} px out of the picture ({room}), expected {MAX_OUTSIDE_PX:g} at most",
            hint="outline it again; when all boxes are so, the picture was scaled or cut after it was outlined",
        )
    return LabelledBox(
        class_name=class_name, left=cut[0], top=cut[1], right=cut[2], bottom=cut[3], is_ignored=is_ignored
    )
