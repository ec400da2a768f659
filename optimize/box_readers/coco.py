"""COCO: one JSON file, or one for each split (Lin et al., ECCV 2014; cocodataset.org, "Data format").

Read are `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (image_id, category_id, bbox
as x, y, width, height in pixels, iscrowd). An image without annotations is a good part, since the file lists it; a
crowd is ignored. `instances_train2017.json`, or `_annotations.coco.json` in a folder `train`, gives the split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optimize.box_readers.found import Folder, FoundImage, FoundSet, checked_box, split_of_folders, split_of_name
from optimize.box_readers.sizes import picture_size, same_size
from optimize.errors import DataError
from optimize.paths import path_below
from optimize.samples import LabelledBox

__all__ = ["coco_files", "read_coco"]

_KEYS = (b'"images"', b'"annotations"')


def coco_files(folder: Folder) -> tuple[Path, ...]:
    """The JSON files that are COCO's: at the top, in `annotations` or in a split's folder."""
    found = []
    for parts in folder.others:
        is_near = len(parts) == 1 or (
            len(parts) == 2 and (parts[0].lower() == "annotations" or split_of_name(parts[0]) is not None)
        )
        if is_near and parts[-1].lower().endswith(".json") and not parts[-1].startswith("."):
            path = folder.root.joinpath(*parts)
            if any(key in _bytes(path) for key in _KEYS):
                found.append(path)
    return tuple(found)


def read_coco(folder: Folder, files: Sequence[Path]) -> FoundSet:
    """Read COCO files.

    Args:
        folder: where the images are.
        files: what to read, see `coco_files`.

    Raises:
        DataError: with the file and what is wrong in it.
    """
    places = _Places(folder)
    images: dict[str, FoundImage] = {}
    source: dict[str, Path] = {}
    for path in files:
        for image in _File(path, folder.root, places).images():
            if image.file in source:
                raise DataError(
                    f"{path}: {image.file} is in {source[image.file]} too",
                    hint="an image lies in one split; name the file that is meant, or take the other away",
                )
            images[image.file], source[image.file] = image, path
    return FoundSet(form="COCO", images=tuple(images.values()), is_list=True)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror})", hint=f"chmod +r {path}, or copy it again"
        ) from error


class _Places:
    """Finds the picture that a `file_name` means."""

    def __init__(self, folder: Folder) -> None:
        self._files = {"/".join(parts) for parts in folder.pictures}
        self._by_name: dict[str, list[str]] = {}
        for parts in folder.pictures:
            self._by_name.setdefault(parts[-1], []).append("/".join(parts))

    def find(self, where: str, text: str, base: Sequence[str], split: str | None) -> str:
        """Beside the JSON file, at the top, or the only picture of that name (in that split, where there are more)."""
        name = path_below(text)
        if name is None:
            raise DataError(f"{where}: file_name: {text!r} leads out of the folder", hint="write it relative to it")
        for tried in ("/".join((*base, name)), "/".join((*base, "images", name)), name, f"images/{name}"):
            if tried in self._files:
                return tried
        found = [f for f in self._by_name.get(name.split("/")[-1], ()) if f.endswith(f"/{name}")]
        if len(found) > 1:
            found = [f for f in found if split_of_folders(f.split("/")[:-1]) == split]
        if len(found) != 1:
            what = "there is no such picture" if not found else f"it may be {found[0]} or {found[1]}"
            raise DataError(f"{where}: file_name: {name}: {what}", hint="copy the pictures there, or correct the name")
        return found[0]


class _File:
    """One JSON file, checked key by key; nothing in it is trusted."""

    def __init__(self, path: Path, root: Path, places: _Places) -> None:
        self._path, self._root, self._places = path, root, places
        self._raw = self._object("the file", _parsed(path))
        self._base = path.relative_to(root).parts[:-1]
        words = [word for word in re.split(r"[._-]", path.stem) if split_of_name(word) is not None]
        self._split = split_of_name(words[-1]) if words else split_of_folders(self._base)

    def images(self) -> Iterator[FoundImage]:
        """Every image that is listed, with its boxes."""
        names = {i: self._text(where, raw, "name") for i, where, raw in self._entries("categories")}
        if len(set(names.values())) < len(names):
            raise self._error("categories", "two have the same name")
        files, sizes, boxes = self._files()
        for _, where, raw in self._entries("annotations"):
            image, category = raw.get("image_id"), raw.get("category_id")
            if not isinstance(image, int) or image not in files:
                raise self._error(where, f"image_id: got {image!r}, which no image has")
            if not isinstance(category, int) or category not in names:
                raise self._error(where, f"category_id: got {category!r}, which no category has")
            full = f"{self._path}: {where} ({files[image]})"
            is_crowd = raw.get("iscrowd", 0) not in (0, False)
            edges = self._edges(where, raw)
            boxes[image].append(checked_box(full, names[category], edges, sizes[image], is_ignored=is_crowd))
        for image, file in files.items():
            split = self._split or split_of_folders(file.split("/")[:-1])
            yield FoundImage(file=file, boxes=tuple(boxes[image]), split=split)

    def _files(self) -> tuple[dict[int, str], dict[int, tuple[int, int] | None], dict[int, list[LabelledBox]]]:
        files: dict[int, str] = {}
        sizes: dict[int, tuple[int, int] | None] = {}
        line_of: dict[str, str] = {}
        for number, where, raw in self._entries("images"):
            full = f"{self._path}: {where}"
            file = self._places.find(full, self._text(where, raw, "file_name"), self._base, self._split)
            if file in line_of:
                raise self._error(where, f"file_name: {file} is {line_of[file]} already")
            line_of[file], files[number] = where, file
            sizes[number] = picture_size(self._root / file)
            said = [raw.get(key, 0) for key in ("width", "height")]
            if all(isinstance(value, int) for value in said):
                same_size(full, (said[0], said[1]), sizes[number])
        return files, sizes, {number: [] for number in files}

    def _entries(self, key: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Id, place in words and content of each entry; ids differ."""
        raw = self._raw.get(key)
        if not isinstance(raw, list):
            raise self._error(key, "is missing, expected a list")
        seen: set[int] = set()
        for i, value in enumerate(raw):
            entry = self._object(f"{key}[{i}]", value)
            number = entry.get("id", i if key == "annotations" else None)
            if not isinstance(number, int) or isinstance(number, bool):
                raise self._error(f"{key}[{i}]", f"id: got {number!r}, expected a whole number")
            if number in seen and "id" in entry:
                raise self._error(f"{key}[{i}]", f"id: {number} stands there twice")
            seen.add(number)
            yield number, f"{key}[{i}]", entry

    def _edges(self, where: str, raw: dict[str, Any]) -> tuple[float, float, float, float]:
        box = raw.get("bbox")
        is_numbers = isinstance(box, list) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in box
        )
        if not isinstance(box, list) or not is_numbers or len(box) != 4:
            raise self._error(where, f"bbox: got {str(box)[:60]}, expected [x, y, width, height] in pixels")
        left, top, width, height = map(float, box)
        return left, top, left + width, top + height

    def _text(self, where: str, raw: dict[str, Any], key: str) -> str:
        value = raw.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self._error(where, f"{key}: got {str(value)[:60]!r}, expected a name")
        return value.strip()

    def _object(self, where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(where, f"got {type(value).__name__}, expected an object")
        return value

    def _error(self, where: str, message: str) -> DataError:
        return DataError(f"{self._path}: {where}: {message}", hint="correct the file, or export it again")


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_bytes(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})", hint="export or copy it again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; of two equal ones each reader would believe another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found
