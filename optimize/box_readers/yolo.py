"""YOLO: a text file per image, a line per box: class number, centre x, centre y, width, height in parts of the picture.

`images/…/a.jpg` has its boxes in `labels/…/a.txt`, or in `a.txt` beside it. An empty file is a good part. The classes'
names stand in `data.yaml` (`names`, and `train`, `val`, `test`: folders, or text files that list images) or in
`classes.txt`. A line with more numbers is a polygon, and the box around it is taken. What `data.yaml` says of folders
outside its own (`path: ../datasets`, `train: ../train/images`) is looked for below it: nothing leads out of the folder.
The form is described at docs.ultralytics.com, "Object detection datasets overview".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from agent.errors import ConfigError
from agent.yaml_file import read_yaml
from optimize.box_readers.found import Folder, FoundImage, FoundSet, checked_box, split_of_folders, split_of_name
from optimize.box_readers.sizes import picture_size
from optimize.errors import DataError
from optimize.paths import is_picture, path_below
from optimize.samples import LabelledBox

__all__ = ["looks_like_yolo", "read_yolo"]

_DATA_YAML = ("data.yaml", "data.yml")
_NO_LABELS = frozenset({"classes.txt", "obj.names", "readme.txt", "readme.roboflow.txt", "readme.dataset.txt"})


def looks_like_yolo(folder: Folder) -> bool:
    """Whether there is a list of names, a folder `labels` with text files, or such a file beside its picture."""
    if _names_file(folder) is not None or any(_is_label(parts) for parts in folder.others):
        return True
    pictures = {(*parts[:-1], PurePosixPath(parts[-1]).stem) for parts in folder.pictures}
    beside = (p for p in folder.others if p[-1].endswith(".txt") and (*p[:-1], p[-1][:-4]) in pictures)
    return any(_has_boxes(folder.root.joinpath(*parts)) for parts in beside)


def _has_boxes(path: Path) -> bool:
    """Whether a text file's first line is a class number and at least four more numbers."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            words = file.readline(1000).split()
        values = [float(word) for word in words]
    except (OSError, ValueError):
        return False
    return len(values) >= 5 and values[0] == int(values[0])


def read_yolo(folder: Folder) -> FoundSet:
    """Read every image's text file.

    Raises:
        DataError: with the file and line that can't be used.
    """
    names_file = _names_file(folder)
    if names_file is None:
        raise DataError(
            f"{folder.root}: has labels, but nothing says what their numbers mean",
            hint="write data.yaml with `names: [scratch, dent]`, or classes.txt with a name in each line",
        )
    path = folder.root.joinpath(*names_file)
    raw = _yaml(path) if names_file[-1].endswith(("yaml", "yml")) else {"names": _lines(path)}
    names = _names(path, raw.get("names"), raw.get("nc"))
    files = {"/".join(parts) for parts in folder.pictures}
    split_of = dict(_listed(path, folder.root, raw, files))
    others = {"/".join(parts) for parts in folder.others}
    images, used = [], set()
    for file in sorted(split_of or files):
        label = next((name for name in _labels_of(file) if name in others), None)
        if label is None and split_of.get(file, ("", False))[1]:
            images.append(FoundImage(file=file, boxes=(), split=split_of[file][0]))
        if label is None:
            continue
        used.add(label)
        split = split_of[file][0] if file in split_of else split_of_folders(file.split("/")[:-1])
        boxes = tuple(_boxes(folder.root / label, names, folder.root / file))
        images.append(FoundImage(file=file, boxes=boxes, split=split))
    _refuse_orphans(folder, files)
    listed = any(is_list for _, is_list in split_of.values())
    return FoundSet(form="YOLO", images=tuple(images), is_list=listed)


def _names_file(folder: Folder) -> tuple[str, ...] | None:
    tops = [parts for parts in folder.others if len(parts) == 1 and parts[0].lower().endswith((".yaml", ".yml"))]
    for parts in sorted(tops, key=lambda p: p[0].lower() not in _DATA_YAML):
        try:
            if "names" in _yaml(folder.root / parts[0]):
                return parts
        except DataError:  # noqa: PERF203 - a folder has few yaml files
            if parts[0].lower() in _DATA_YAML:  # any other may be another program's
                raise
    lists = [p for p in folder.others if p[-1].lower() in ("classes.txt", "obj.names") and len(p) <= 2]
    return min(lists, key=len) if lists else None


def _is_label(parts: tuple[str, ...]) -> bool:
    return "labels" in parts[:-1] and parts[-1].endswith(".txt") and parts[-1].lower() not in _NO_LABELS


def _labels_of(file: str) -> Iterator[str]:
    """Where an image's boxes may stand: in the last `images` folder's counterpart, or beside it."""
    parts = list(PurePosixPath(file).with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i].lower() == "images":
            yield "/".join((*parts[:i], "labels", *parts[i + 1 :]))
            break
    yield "/".join(parts)


def _refuse_orphans(folder: Folder, files: set[str]) -> None:
    """A text file in `labels` whose picture is not there: a set that shrank unseen gives wrong numbers."""
    known = {label for file in files for label in _labels_of(file)}
    orphans = ["/".join(p) for p in folder.others if _is_label(p) and "/".join(p) not in known]
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise DataError(
            f"{folder.root / orphans[0]}: there is no picture for it{more}",
            hint="copy the pictures to `images`, with the folders that `labels` has, or take the file out",
        )


def _yaml(path: Path) -> dict[Any, Any]:
    try:
        return dict(read_yaml(path))
    except ConfigError as error:
        raise DataError(error.message, hint="expected `names`, and folders as `train`, `val` and `test`") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: can't be read as UTF-8 text ({error})", hint="save it as UTF-8, or copy it again"
        ) from error


def _names(path: Path, raw: Any, count: Any) -> dict[int, str]:
    if isinstance(raw, dict):
        found = {number: name for number, name in raw.items() if isinstance(number, int)}
    else:
        found = dict(enumerate(raw)) if isinstance(raw, list) else {}
        while found and not str(found[len(found) - 1]).strip():  # a text file may end in empty lines
            del found[len(found) - 1]
    names = {number: str(name).strip() for number, name in found.items()}
    if not names or "" in names.values() or len(set(names.values())) < len(names):
        raise DataError(
            f"{path}: names: got {str(raw)[:80]}, expected names that differ", hint="names: [scratch, dent]"
        )
    if isinstance(count, int) and count != len(names):
        raise DataError(f"{path}: nc: got {count}, but there are {len(names)} names", hint="correct one of them")
    return names


def _listed(path: Path, root: Path, raw: dict[Any, Any], files: set[str]) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Image to its split, and whether it was listed by name, as `data.yaml` says."""
    seen: dict[str, str] = {}
    for key, value in raw.items():
        split = split_of_name(str(key))
        if split is None or value is None:
            continue
        for entry in value if isinstance(value, list) else [value]:
            found, is_list = _entry(f"{path}: {key}", root, raw.get("path"), str(entry), files)
            for file in found:
                if seen.setdefault(file, split) != split:
                    raise DataError(f"{path}: {key}: {file} is in {seen[file]} too", hint="an image lies in one split")
                yield file, (split, is_list)


def _entry(where: str, root: Path, base: Any, text: str, files: set[str]) -> tuple[list[str], bool]:
    """The images of a folder, or those that a text file lists."""
    for name in _tried(text, base):
        below = [file for file in files if name == "." or file.startswith(f"{name}/")]
        if below:
            return below, False
        if name.endswith(".txt") and (root / name).is_file():
            return [_image(root, name, i, t, files) for i, t in enumerate(_lines(root / name), 1) if t.strip()], True
    raise DataError(
        f"{where}: {text}: no images in such a folder below {root}",
        hint="correct it (relative to the yaml file), or take the line out",
    )


def _image(root: Path, name: str, line: int, text: str, files: set[str]) -> str:
    for tried in (*_tried(text.strip(), None), *_tried(f"{PurePosixPath(name).parent}/{text.strip()}", None)):
        if tried in files and is_picture(tried.split("/")[-1]):
            return tried
    raise DataError(
        f"{root / name}: line {line}: {text.strip()}: no such picture below {root}", hint="correct the line"
    )


def _tried(text: str, base: Any) -> Iterable[str]:
    """A path as written, below the yaml's `path` where that is relative, and without leading `../`."""
    parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part != "."]
    while parts and parts[0] == "..":
        del parts[0]
    name = path_below("/".join(parts)) if parts else "."
    if name is None:
        return []
    above = path_below(str(base)) if base else None
    return [f"{above}/{name}", name] if above not in (None, ".") else [name]


def _boxes(path: Path, names: dict[int, str], picture: Path) -> Iterator[LabelledBox]:
    rows = [(line, text.split()) for line, text in enumerate(_lines(path), start=1) if text.strip()]
    if not rows:
        return
    size = picture_size(picture)
    if size is None:
        raise DataError(f"{picture}: its size can't be read, so its boxes have no pixels", hint="replace the picture")
    for line, cells in rows:
        where = f"{path}: line {line}"
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            raise DataError(
                f"{where}: got {' '.join(cells)[:60]!r}, expected numbers",
                hint="a line is: class number, centre x, centre y, width, height, in parts of the picture",
            ) from None
        if values[0] not in names:
            known = f"0 to {max(names)}" if set(names) == set(range(len(names))) else str(sorted(names))
            raise DataError(f"{where}: class: got {cells[0]}, expected {known}", hint="correct it, or complete `names`")
        yield checked_box(where, names[int(values[0])], _edges(where, values[1:], size), size)


def _edges(where: str, values: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(
            f"{where}: got {len(values) + 1} numbers, expected class, centre x, centre y, width, height",
            hint="predictions carry a sixth number; labels have five, or a polygon of three points and more",
        )
    if not all(math.isfinite(value) and -1 <= value <= 2 for value in values):
        raise DataError(
            f"{where}: got {values}, expected parts of the picture, 0 to 1", hint="divide pixels by its size"
        )
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    across, down = values[::2], values[1::2]
    return min(across) * width, min(down) * height, max(across) * width, max(down) * height
