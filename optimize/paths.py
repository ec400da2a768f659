"""What lies below a folder, and names that may not lead out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from agent.cameras.decode import PICTURE_SUFFIXES

__all__ = ["is_picture", "path_below", "walk"]


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture.

    "._x.jpg" is what macOS leaves beside x.jpg on foreign disks; hidden files are never data.
    """
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")


def walk(root: Path) -> Iterator[tuple[str, ...]]:
    """Every file below a folder as its relative parts, in order; hidden folders and `__MACOSX` excepted."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        above = Path(folder).relative_to(root).parts
        for name in sorted(files):
            yield (*above, name)


def path_below(text: str) -> str | None:
    """A name that somebody wrote, as a relative path with forward slashes; None where it leads out of its folder."""
    name = PurePosixPath(text.replace("\\", "/"))
    if name.is_absolute() or not name.parts or ".." in name.parts or ":" in name.parts[0]:
        return None
    return name.as_posix()
