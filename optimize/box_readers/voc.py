"""Pascal VOC: an XML file per image (Everingham et al., IJCV 88, 2010).

An annotation belongs to the picture of the same stem: the one beside it, or else the one that shares most folders with
it; `<filename>` is not believed (NEU-DET leaves its ending out). Coordinates are taken as pixel edges as written:
VOC itself counts pixels from 1 and includes the last one, many tools write 0-based edges, NEU-DET mixes both; the
difference of a pixel is within what people outline. `difficult` boxes are ignored. `train.txt`, `val.txt`, `test.txt`
in `ImageSets/Main` give splits and list the images: one that they list without an annotation is a good part.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from optimize.box_readers.found import (
    Folder,
    FoundImage,
    FoundSet,
    checked_box,
    split_of_folders,
    split_of_name,
)
from optimize.box_readers.sizes import picture_size, same_size
from optimize.errors import DataError
from optimize.samples import LabelledBox

__all__ = ["looks_like_voc", "read_voc"]

MAX_BYTES = 16_000_000
"""Of one annotation: 50,000 boxes."""

MAX_DEPTH = 50

NO_VOC = "is it Pascal VOC? export it again"


def looks_like_voc(folder: Folder) -> bool:
    """Whether there is an XML file that begins like an annotation, or can't be read; cameras leave others behind."""
    return any(_is_annotation(folder.root.joinpath(*parts)) for parts in folder.others if _is_xml(parts))


def read_voc(folder: Folder) -> FoundSet:
    """Read every annotation.

    Raises:
        DataError: with the file and what is wrong in it.
    """
    stems = _Stems(folder)
    boxes_of: dict[str, tuple[LabelledBox, ...]] = {}
    annotation_of: dict[str, str] = {}
    for parts in filter(_is_xml, folder.others):
        path = folder.root.joinpath(*parts)
        tree = _parse(path)
        if tree.tag != "annotation":
            continue
        file = stems.picture_of(parts)
        if file in annotation_of:
            raise DataError(
                f"{path}: belongs to {file}, as {annotation_of[file]} does", hint="keep one annotation for each picture"
            )
        annotation_of[file] = "/".join(parts)
        boxes_of[file] = _boxes(path, tree, picture_size(folder.root / file))
    listed = _image_sets(folder, stems)
    if listed is None:
        images = [FoundImage(file=f, boxes=b, split=split_of_folders(f.split("/")[:-1])) for f, b in boxes_of.items()]
    else:
        images = [FoundImage(file=f, boxes=boxes_of.get(f, ()), split=split) for f, split in listed.items()]
    return FoundSet(form="Pascal VOC", images=tuple(images), is_list=listed is not None)


def _is_annotation(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4000)
    except OSError:
        return True
    return b"<annotation" in head.replace(b"\0", b"") or not head.strip()


def _is_xml(parts: tuple[str, ...]) -> bool:
    return parts[-1].lower().endswith(".xml") and not parts[-1].startswith(".")


class _Stems:
    """Finds the picture that an annotation, or a line of a list, means."""

    def __init__(self, folder: Folder) -> None:
        self._root = folder.root
        self._by_stem: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for parts in folder.pictures:
            self._by_stem[PurePosixPath(parts[-1]).stem].append(parts)

    def picture_of(self, annotation: tuple[str, ...]) -> str:
        """The picture of the same stem, in the same split, that shares most folders with the annotation."""
        stem = annotation[-1][: -len(".xml")]
        split = split_of_folders(annotation[:-1])
        found = [p for p in self._by_stem[stem] if split_of_folders(p[:-1]) == split or split is None]
        return self._nearest("/".join(annotation), stem, found, annotation)

    def listed(self, where: str, name: str) -> str:
        """The picture that a line of an image set names: by its stem, or with folders and ending."""
        path = PurePosixPath(name.replace("\\", "/"))
        stem = path.stem if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"} else path.name
        found = [p for p in self._by_stem[stem] if "/".join(p[:-1]).endswith("/".join(path.parts[:-1]))]
        return self._nearest(where, stem, found, ())

    def _nearest(self, where: str, stem: str, found: list[tuple[str, ...]], near: tuple[str, ...]) -> str:
        if not found:
            raise DataError(
                f"{self._root / where}: there is no picture {stem}.* for it",
                hint="copy the picture there, or take the annotation out",
            )
        shared = [_shared(parts[:-1], near[:-1]) for parts in found]
        best = [parts for parts, n in zip(found, shared, strict=True) if n == max(shared)]
        if len(best) > 1:
            beside = [parts for parts in best if len(parts) == len(near)]
            best = beside if len(beside) == 1 else best
        if len(best) > 1:
            both = " and ".join("/".join(parts) for parts in best[:2])
            raise DataError(f"{self._root / where}: may mean {both}", hint="give each picture a name of its own")
        return "/".join(best[0])


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many folders two paths have in common, from the top."""
    n = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        n += 1
    return n


def _parse(path: Path) -> Element:
    """The tree; a document that declares entities, or any document type, is refused before they could be expanded.

    Raises:
        DataError: not well-formed, too large or too deep, or with a document type.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise DataError(
                f"{path}: line {parser.CurrentLineNumber}: more than {MAX_DEPTH} elements deep",
                hint=NO_VOC,
            )
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: line {parser.CurrentLineNumber}: declares a document type, which no annotation needs",
            hint="take the <!DOCTYPE ...> out: entities in it could fill the memory",
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise DataError(f"{path}: {len(data):,} bytes, expected {MAX_BYTES:,} at most", hint=NO_VOC)
        parser.Parse(data, True)
        return builder.close()
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror})", hint=f"chmod +r {path}, or copy it again"
        ) from error
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not well-formed XML ({error})", hint="export or copy it again") from error


def _boxes(path: Path, tree: Element, size: tuple[int, int] | None) -> tuple[LabelledBox, ...]:
    said = tuple(int(_number(path, "size", tree, f"size/{key}", missing=0)) for key in ("width", "height"))
    same_size(str(path), (said[0], said[1]), size)
    boxes = []
    for i, element in enumerate(tree.findall("object"), start=1):
        where = f"{path}: object {i}"
        name = (element.findtext("name") or "").strip()
        if element.find("bndbox") is None:
            raise DataError(f"{where} ({name or 'no name'}): has no bndbox", hint="outline it, or take it out")
        edges = [_number(path, f"object {i}", element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        is_ignored = (element.findtext("difficult") or "0").strip() not in ("0", "", "false", "False")
        boxes.append(checked_box(where, name, (edges[0], edges[1], edges[2], edges[3]), size, is_ignored=is_ignored))
    return tuple(boxes)


def _number(path: Path, where: str, element: Element, key: str, *, missing: float | None = None) -> float:
    text = (element.findtext(key) or "").strip()
    if not text and missing is not None:
        return missing
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"{path}: {where}: {key}: got {text[:40]!r}, expected a number", hint="correct it, or take the box out"
        ) from None


def _image_sets(folder: Folder, stems: _Stems) -> dict[str, str] | None:
    """File to split, as the lists in `ImageSets/Main` say; None without such lists.

    A class's own lists (`scratch_train.txt`) repeat the whole; `trainval` is train and val, and counts where they lack.
    """
    lists = {
        p[-1][:-4].lower(): p for p in folder.others if p[-3:-1] == ("ImageSets", "Main") and p[-1].endswith(".txt")
    }
    named = {name: split for name in lists if (split := split_of_name(name)) is not None}
    if "trainval" in lists and "train" not in named.values():
        named["trainval"] = "train"
    if not named:
        return None
    split_of: dict[str, str] = {}
    for name, split in sorted(named.items()):
        path = folder.root.joinpath(*lists[name])
        for line, text in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            if not text.strip():
                continue
            relative = "/".join(lists[name])
            file = stems.listed(f"{relative}: line {line}", text.split()[0])
            if split_of.setdefault(file, split) != split:
                raise DataError(
                    f"{path}: line {line}: {file} is in {split_of[file]} too", hint="an image lies in one split"
                )
    return split_of
