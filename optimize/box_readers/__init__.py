"""Images with outlined defects: Pascal VOC, COCO, YOLO and `boxes.csv`, told apart by what lies in the folder.

```text
boxes.csv               a line per box                                            see `table`
*.json                  at the top, in annotations/ or in a split's folder: COCO  see `coco`
*.xml                   beside the images or in annotations/: Pascal VOC          see `voc`
labels/*.txt, data.yaml a text file per image: YOLO                               see `yolo`
```

The first of these that is there is read. Splits and groups come from a `splits.csv` (file,class,split[,group]) in the
folder where there is one, or from a table of splits that is given in the folder's place; else from the set's own lists
and the names of its folders (`train`, `valid`, `test`).

An image without any annotation is a good part only where somebody said so: a `splits.csv` gives it an ok-like class
(ok, good, no_defect, normal), an image set or a COCO file lists it, or its YOLO file is empty. An image that nobody
speaks of is an error; where the set lists its images, others are no part of it and stand in `Dataset.ignored`.
Boxes are kept as they were made, also two that are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from optimize.box_readers.coco import coco_files, read_coco
from optimize.box_readers.found import Folder, FoundSet, open_folder
from optimize.box_readers.table import BOXES_CSV, EDGES, read_boxes_csv
from optimize.box_readers.voc import looks_like_voc, read_voc
from optimize.box_readers.yolo import looks_like_yolo, read_yolo
from optimize.dataset import read_dataset
from optimize.errors import DataError
from optimize.samples import CSV_NAME, Dataset, LabelledBox, Sample
from optimize.splits_csv import open_table

__all__ = ["has_boxes", "read_boxes", "read_labels"]

_FORMS = "boxes.csv, COCO (*.json), Pascal VOC (*.xml) or YOLO (labels/*.txt with data.yaml)"


def has_boxes(path: Path) -> bool:
    """Whether `read_boxes` would find boxes in some form there; nothing is checked.

    Raises:
        DataError: there is no such folder.
    """
    root, table, given = _given(Path(path))
    return given is not None or _form(open_folder(_root_of(root, table))) is not None


def read_boxes(
    path: Path, *, has_splits: bool = True, group_by: str | None = None, needs_boxes: bool = True
) -> Dataset:
    """Find images, their boxes, splits and groups; decodes no JPEG or PNG.

    Args:
        path: a folder in one of the forms of the module's docstring; or a table of splits, a `boxes.csv`, a COCO file
            or a YOLO `data.yaml` by itself.
        has_splits: False overlooks the splits that the set came with.
        group_by: the column of the table of splits that names a part, as in `optimize.dataset.read_dataset`.
        needs_boxes: False takes a set of good parts only, too.

    Returns:
        The set. Its classes are those of the boxes, sorted. A sample's label is what `splits.csv` says, else the class
        of its largest box that counts, else None: a good part.

    Raises:
        DataError: nothing to read, or something that can't be used: the file, the line or element, and what to do.
    """
    root, table, given = _given(Path(path))
    listed = None
    if table is not None or (root / CSV_NAME).is_file():
        listed = read_dataset(table or root, has_splits=has_splits, group_by=group_by)
        root = listed.root
    elif group_by:
        raise DataError(
            f"{root}: has no {CSV_NAME}, so no column {group_by!r} to group by",
            hint=f"write {CSV_NAME} with file,class,split,{group_by}, or leave the grouping out",
        )
    folder = open_folder(root)
    found = _read(folder, given)
    samples = _own(folder, found, has_splits=has_splits) if listed is None else _joined(listed, found)
    if not samples:
        raise DataError(f"{root}: no image found", hint=f"give a folder with images and {_FORMS}")
    classes = sorted({box.class_name for sample in samples for box in sample.boxes or ()})
    if not classes and needs_boxes:
        raise DataError(f"{root}: no box on any of {len(samples)} images", hint="outline the defects on some of them")
    taken = {sample.file for sample in samples}
    ignored = [file for file in map("/".join, folder.pictures) if file not in taken]
    return Dataset(
        root=root,
        samples=tuple(sorted(samples, key=lambda sample: sample.file)),
        classes=tuple(classes),
        ignored=tuple(sorted(ignored)),
    )


def read_labels(path: Path, *, has_splits: bool = True, group_by: str | None = None, good: str = "ok") -> Dataset:
    """As `optimize.dataset.read_dataset`, and also where only boxes say what an image shows.

    Args:
        path: a folder or a table of splits; where it has a `splits.csv`, or is one, its classes are the labels.
        has_splits: see `read_boxes`.
        group_by: see `read_boxes`.
        good: the label of an image without a box.

    Raises:
        DataError: see `read_boxes` and `read_dataset`.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv" or not path.is_dir() or (path / CSV_NAME).is_file() or not has_boxes(path):
        return read_dataset(path, has_splits=has_splits, group_by=group_by)
    found = read_boxes(path, has_splits=has_splits, group_by=group_by)
    samples = tuple(dataclasses.replace(s, label=s.label or good, boxes=None) for s in found)
    labels = {str(sample.label) for sample in samples}
    return dataclasses.replace(found, samples=samples, classes=tuple(sorted(labels)))


def _given(path: Path) -> tuple[Path, Path | None, Path | None]:
    """The folder, the table of splits if that was given, and the file of boxes if that was given."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".yaml", ".yml") or not path.is_file():
        return path, None, None
    if suffix == ".csv":
        is_boxes = set(EDGES) <= set(open_table(path).columns)
        return (path.parent, None, path) if is_boxes else (path.parent, path, None)
    is_below = suffix == ".json" and path.parent.name.lower() == "annotations"
    return (path.parent.parent if is_below else path.parent), None, path


def _root_of(root: Path, table: Path | None) -> Path:
    return root if table is None else read_dataset(table, has_splits=False).root


def _form(folder: Folder) -> str | None:
    if (BOXES_CSV,) in folder.others:
        return BOXES_CSV
    if coco_files(folder):
        return "coco"
    if looks_like_voc(folder):
        return "voc"
    return "yolo" if looks_like_yolo(folder) else None


def _read(folder: Folder, given: Path | None) -> FoundSet:
    if given is not None and given.suffix.lower() == ".json":
        return read_coco(folder, [given])
    if given is not None and given.suffix.lower() == ".csv":
        return read_boxes_csv(folder, given)
    form = "yolo" if given is not None else _form(folder)
    if form == BOXES_CSV:
        return read_boxes_csv(folder, folder.root / BOXES_CSV)
    if form == "coco":
        return read_coco(folder, coco_files(folder))
    if form == "voc":
        return read_voc(folder)
    if form == "yolo":
        return read_yolo(folder)
    raise DataError(
        f"{folder.root}: nothing outlines defects in these images",
        hint=f"add {_FORMS}, or give the folder that has them",
    )


def _own(folder: Folder, found: FoundSet, *, has_splits: bool) -> list[Sample]:
    """Samples as the set itself divides them."""
    known = {image.file for image in found.images}
    strangers = [file for file in map("/".join, folder.pictures) if file not in known]
    if strangers and not found.is_list:
        raise DataError(
            f"{folder.root}: {len(strangers)} images have no annotation ({found.form}), the first is {strangers[0]}",
            hint=f"good parts have to be listed: write {CSV_NAME} (file,class,split) with class ok for them; "
            "else outline their defects, or take them out of the folder",
        )
    loose = [image.file for image in found.images if image.split is None]
    if loose and len(loose) < len(found.images) and has_splits:
        raise DataError(
            f"{folder.root}: {len(loose)} images are in no split, others are; the first is {loose[0]}",
            hint=f"move them to the folder of a split, or write {CSV_NAME} with file,class,split",
        )
    return [
        Sample(
            path=folder.root / image.file,
            file=image.file,
            label=_label(image.boxes),
            split=image.split if has_splits else None,
            boxes=image.boxes,
        )
        for image in found.images
    ]


def _joined(listed: Dataset, found: FoundSet) -> list[Sample]:
    """The images of a table of splits with their boxes; those without any are good parts, if their class agrees."""
    boxes_of = {image.file: image.boxes for image in found.images}
    samples = [dataclasses.replace(sample, boxes=boxes_of.get(sample.file, ())) for sample in listed]
    _refuse_bare(listed.root, samples)
    return samples


def _refuse_bare(root: Path, samples: Iterable[Sample]) -> None:
    """A defective image without a box would teach the detector to overlook that defect."""
    from optimize.inputs import severity_by_name

    bare = [s for s in samples if not s.boxes and s.label is not None and severity_by_name(s.label) != "ok"]
    if bare:
        raise DataError(
            f"{root / CSV_NAME}: {len(bare)} images have no box and a class that is not ok, the first is "
            f"{bare[0].file} ({bare[0].label})",
            hint="outline what they show, take them out of the table, or call the class ok if these are good parts",
        )


def _label(boxes: tuple[LabelledBox, ...]) -> str | None:
    counted = [box for box in boxes if not box.is_ignored]
    if not counted:
        return None
    return max(counted, key=lambda box: (box.right - box.left) * (box.bottom - box.top)).class_name
