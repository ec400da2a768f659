"""The container: a `.defect` file is a ZIP in the one form that its contents allow.

Entries are sorted by name, stored (never compressed) and dated 1980-01-01; their headers follow from name, size and
CRC, they lie back to back, and nothing stands before, between or behind them. Every ZIP tool opens it. The reader
builds the same headers again and compares them byte for byte, so there is no second way to write a bundle: no bomb,
no overlapping or hidden entry, no link, no comment, no trailing bytes, and one changed byte anywhere is noticed.
Weights hardly compress, so storing costs little, and the bytes do not depend on a version of zlib.

Formats: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from agent.bundle.golden import GOLDEN_INDEX, Golden, goldens_from_files
from agent.bundle.manifest import Manifest, manifest_from_json
from agent.errors import BundleError

__all__ = ["MANIFEST", "MAX_BUNDLE_BYTES", "Bundle", "Entry", "archive_parts", "open_bundle"]

MANIFEST = "manifest.json"
MAX_BUNDLE_BYTES = 1 << 30
"""A thousand times more than a bundle needs to be useful, and far from where ZIP needs its 64-bit fields."""
MAX_FILES = 512
MAX_NAME = 120
MAX_MANIFEST_BYTES = 4 << 20
_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION = 20  # 2.0: what unzips files in folders
_MADE_BY = 3 << 8 | _VERSION  # on UNIX, so that the file mode is read
_DATE = 1 << 5 | 1  # 1980-01-01, 00:00
_MODE = (stat.S_IFREG | 0o644) << 16

_DAMAGED = "copy it again from where it was built; if that copy fails too, rebuild it with `defect-opt build`"
_FOREIGN = "use a file that `defect-opt build` made, as it made it"
_KNOWN_STARTS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"BM", "a BMP picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"{", "a JSON document"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file in the container.

    Attributes:
        name: relative, with `/` between folders.
        size: bytes.
        crc: CRC-32 of its bytes.
        offset: where its header begins in the container.
    """

    name: str
    size: int
    crc: int
    offset: int

    @property
    def header(self) -> bytes:
        """The local header, which its bytes follow."""
        name = self.name.encode("ascii")
        fields = (_VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0)
        return _LOCAL.pack(b"PK\x03\x04", *fields) + name

    @property
    def record(self) -> bytes:
        """Its record in the central directory."""
        name = self.name.encode("ascii")
        fields = (_MADE_BY, _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0, 0, 0, 0, _MODE)
        return _CENTRAL.pack(b"PK\x01\x02", *fields, self.offset) + name

    @property
    def start(self) -> int:
        """Where its bytes begin."""
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Where its bytes end, and the next header begins."""
        return self.start + self.size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A bundle whose every byte was checked. Reading from it checks again: the file may have changed since.

    Attributes:
        path: where it is.
        manifest: what it says about itself.
        digest: SHA-256 of `manifest.json`, hex; as the manifest holds the hash of each other file, it covers them all.
        entries: what lies where, by name.
    """

    path: Path
    manifest: Manifest
    digest: str
    entries: Mapping[str, Entry]

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            BundleError: it is not in the bundle, or the bundle changed on disk since it was opened.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise BundleError(f"{self.path}: no file {name} in it (it has: {', '.join(self.entries)})")
        try:
            with self.path.open("rb") as file:
                file.seek(entry.start)
                data = file.read(entry.size)
        except OSError as error:
            raise BundleError(f"{self.path}: can't be read ({error.strerror})", hint=_DAMAGED) from error
        expected = self.digest if name == MANIFEST else self.manifest.files[name]
        if hashlib.sha256(data).hexdigest() != expected:
            raise BundleError(
                f"{self.path}: {name} changed on disk since the bundle was opened",
                hint="put bundles in place under a new name, or by renaming; never write into one that is in use",
            )
        return data

    def graph(self, kind: str) -> bytes:
        """The ONNX bytes of one graph.

        Args:
            kind: `fp32`, `cpu`, `trt`.

        Raises:
            BundleError: the bundle has no such graph.
        """
        if kind not in self.manifest.graphs:
            raise BundleError(
                f"{self.path}: no graph {kind!r} in it (it has: {', '.join(sorted(self.manifest.graphs))})"
            )
        return self.read(self.manifest.graphs[kind])

    def goldens(self) -> tuple[Golden, ...]:
        """The golden inputs with their reference outputs; empty when it has none.

        Raises:
            BundleError: they are not as they must be.
        """
        if GOLDEN_INDEX not in self.entries:
            return ()
        return goldens_from_files(self.read(GOLDEN_INDEX), self.read, self.manifest.input)

    def describe(self) -> dict[str, Any]:
        """What `bundle show --json` prints: all that the manifest says, with sizes."""
        manifest = dataclasses.asdict(self.manifest)
        files = manifest.pop("files")
        return {
            "path": str(self.path),
            "digest": self.digest,
            "bytes": sum(len(e.header) + e.size + len(e.record) for e in self.entries.values()) + _END.size,
            **manifest,
            "classes": [dataclasses.asdict(c) for c in self.manifest.classes],
            "gate_reasons": list(self.manifest.gate_reasons),
            "graphs": {
                kind: {"file": name, "bytes": self.entries[name].size, "sha256": files[name]}
                for kind, name in self.manifest.graphs.items()
            },
            "goldens": sum(name.startswith("golden/") and name.endswith(".png") for name in files),
            "files": {name: {"bytes": self.entries[name].size, "sha256": digest} for name, digest in files.items()},
        }


def open_bundle(path: Path) -> Bundle:
    """Open a bundle, and believe nothing that was not checked.

    Every byte is read once: the container's headers, each file's SHA-256 against the manifest, that none is missing
    and none too many. Memory stays at one chunk and the manifest.

    Raises:
        BundleError: anything is odd; one sentence names the file and says what to do.
    """
    path = Path(path)
    try:
        size = _file_size(path)
        with path.open("rb") as file:
            _check_start(path, file.read(8))
            entries = _read_directory(path, file, size)
            digests, manifest_bytes = _read_entries(path, file, entries)
    except OSError as error:
        raise BundleError(f"{path}: can't be read ({error.strerror})") from error
    try:
        manifest = manifest_from_json(manifest_bytes)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", hint=error.hint or _FOREIGN) from error
    digest = digests.pop(MANIFEST)
    _check_files(path, manifest, digests)
    return Bundle(path=path, manifest=manifest, digest=digest, entries={entry.name: entry for entry in entries})


def archive_parts(files: Mapping[str, bytes]) -> list[bytes]:
    """Lay files out as a container, in pieces to be written one after the other; the same files, the same bytes.

    Raises:
        BundleError: a name that a bundle can't hold, or too much.
    """
    if len(files) > MAX_FILES:
        raise BundleError(f"got {len(files)} files, a bundle holds {MAX_FILES}")
    parts: list[bytes] = []
    records: list[bytes] = []
    offset = 0
    for name in sorted(files):
        _check_name("bundle", name)
        data = files[name]
        if offset + len(data) > MAX_BUNDLE_BYTES:
            raise BundleError(f"{name}: makes the bundle larger than {MAX_BUNDLE_BYTES >> 20} MiB")
        entry = Entry(name=name, size=len(data), crc=zlib.crc32(data), offset=offset)
        parts += [entry.header, data]
        records.append(entry.record)
        offset = entry.end
    return [*parts, *records, _end(len(records), sum(map(len, records)), offset)]


def _end(count: int, size: int, offset: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, 0)


def _file_size(path: Path) -> int:
    """The size of a file that may be a bundle; opening a pipe or device is not even tried."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        found = sorted(near.name for near in path.parent.glob("*.defect")) if path.parent.is_dir() else []
        hint = f"bundles in {path.parent}: {', '.join(found[:5])}" if found else "`defect-opt build` makes one"
        raise BundleError(f"{path}: no such file", hint=hint) from error
    if stat.S_ISDIR(status.st_mode):
        raise BundleError(f"{path}: is a folder, a bundle is one file", hint="name the .defect file itself")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is a pipe or a device, a bundle is a file", hint="name the .defect file itself")
    if status.st_size == 0:
        raise BundleError(f"{path}: is empty (0 bytes)", hint=_DAMAGED)
    if status.st_size > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"{path}: has {status.st_size >> 20} MiB, a bundle has at most {MAX_BUNDLE_BYTES >> 20} MiB", hint=_FOREIGN
        )
    return status.st_size


def _check_start(path: Path, start: bytes) -> None:
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return
    known = next((word for magic, word in _KNOWN_STARTS if start.startswith(magic)), None)
    if path.suffix.lower() == ".onnx":
        raise BundleError(
            f"{path}: is an ONNX model, not a bundle", hint=f"defect-opt build --int8 --model {path.name} --calib DIR"
        )
    if known is not None:
        raise BundleError(f"{path}: is {known}, not a bundle", hint=_FOREIGN)
    raise BundleError(f"{path}: is damaged, or no bundle: it does not begin as one", hint=_DAMAGED)


def _read_directory(path: Path, file: IO[bytes], size: int) -> list[Entry]:
    """The entries, after the central directory was found to be the one that they allow."""
    file.seek(max(size - _END.size, 0))
    end = file.read(_END.size)
    if len(end) < _END.size or not end.startswith(b"PK\x05\x06"):
        raise BundleError(f"{path}: was cut off, or something was added to its end", hint=_DAMAGED)
    _, _, _, _, count, length, offset, _ = _END.unpack(end)
    if count > MAX_FILES or length > MAX_FILES * (_CENTRAL.size + MAX_NAME):
        raise BundleError(f"{path}: holds {count} files, a bundle holds {MAX_FILES}", hint=_FOREIGN)
    if offset + length + _END.size != size or end != _end(count, length, offset):
        raise BundleError(f"{path}: is damaged: its directory is not where it says", hint=_DAMAGED)
    file.seek(offset)
    directory = file.read(length)
    entries = _entries(path, directory, count, offset)
    if directory != b"".join(entry.record for entry in entries) or (entries[-1].end if entries else 0) != offset:
        raise BundleError(f"{path}: is damaged, or was packed again: odd directory", hint=_DAMAGED)
    return entries


def _entries(path: Path, directory: bytes, count: int, room: int) -> list[Entry]:
    """What the directory says is in the first `room` bytes."""
    entries: list[Entry] = []
    place, offset = 0, 0
    for _ in range(count):
        if place + _CENTRAL.size > len(directory):
            raise BundleError(f"{path}: is damaged: its directory ends early", hint=_DAMAGED)
        fields = _CENTRAL.unpack_from(directory, place)
        flags, method, crc, size, length, mode = fields[3], fields[4], fields[7], fields[9], fields[10], fields[15]
        place += _CENTRAL.size
        name = directory[place : place + length].decode("ascii", "backslashreplace")
        place += length
        _refuse_oddities(path, name, flags, method, mode >> 16)
        if entries and name <= entries[-1].name:
            known = {entry.name for entry in entries}
            odd = "stands there twice" if name in known else "is not in the order of the names"
            raise BundleError(f"{path}: {name} {odd}", hint=_FOREIGN)
        entries.append(Entry(name=name, size=size, crc=crc, offset=offset))
        offset = entries[-1].end
        if offset > room:
            raise BundleError(f"{path}: is damaged: {name} would not fit into it", hint=_DAMAGED)
    return entries


def _refuse_oddities(path: Path, name: str, flags: int, method: int, mode: int) -> None:
    """Say in words what is wrong with an entry that no bundle has; whatever else differs is found by comparison."""
    _check_name(str(path), name)
    odd = None
    if stat.S_ISLNK(mode):
        odd = "is a link"
    elif flags & 1:
        odd = "is encrypted"
    elif method != 0:
        odd = "is compressed"
    if odd is not None:
        raise BundleError(f"{path}: {name} {odd}; bundles hold plain stored files", hint=_FOREIGN)


def _check_name(where: str, name: str) -> None:
    shown = name if len(name) <= 60 else name[:57] + "..."
    if name.endswith("/"):
        raise BundleError(f"{where}: {shown} is a folder; bundles hold plain stored files", hint=_FOREIGN)
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
        raise BundleError(f"{where}: the name {shown} climbs out of the bundle", hint=_FOREIGN)
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise BundleError(
            f"{where}: got the file name {shown!r}, expected at most {MAX_NAME} of letters, digits, _ . - and /",
            hint=_FOREIGN,
        )


def _read_entries(path: Path, file: IO[bytes], entries: Sequence[Entry]) -> tuple[dict[str, str], bytes]:
    """SHA-256 of each file, and the manifest's bytes; each header and each CRC is compared on the way."""
    digests: dict[str, str] = {}
    manifest = bytearray()
    file.seek(0)
    for entry in entries:
        if entry.name == MANIFEST and entry.size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: {MANIFEST} has {entry.size >> 20} MiB, at most 4 MiB are read", hint=_FOREIGN)
        if file.read(len(entry.header)) != entry.header:
            raise BundleError(f"{path}: is damaged before {entry.name}", hint=_DAMAGED)
        digest, crc, left = hashlib.sha256(), 0, entry.size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise BundleError(f"{path}: ends within {entry.name}", hint=_DAMAGED)
            left -= len(chunk)
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
            if entry.name == MANIFEST:
                manifest += chunk
        if crc != entry.crc:
            raise BundleError(f"{path}: {entry.name} is damaged (CRC)", hint=_DAMAGED)
        digests[entry.name] = digest.hexdigest()
    if MANIFEST not in digests:
        raise BundleError(f"{path}: is a ZIP without {MANIFEST}, not a bundle", hint=_FOREIGN)
    return digests, bytes(manifest)


def _check_files(path: Path, manifest: Manifest, digests: Mapping[str, str]) -> None:
    for name, expected in manifest.files.items():
        if name not in digests:
            raise BundleError(f"{path}: {name} is missing", hint=_DAMAGED)
        if digests[name] != expected:
            raise BundleError(f"{path}: {name} is not what the manifest says (SHA-256 differs)", hint=_DAMAGED)
    for name in digests:
        if name not in manifest.files:
            raise BundleError(f"{path}: {name} is not in the manifest: somebody added it", hint=_FOREIGN)
    for kind, name in manifest.graphs.items():
        if name not in manifest.files:
            raise BundleError(f"{path}: manifest.json: graphs.{kind}: no file {name} in the bundle", hint=_FOREIGN)
