"""Making the rungs, one from another: each step is done once, and skipped while what it reads is the same.

A step's folder is named after a digest of all that decides its result: the bytes of the file that it starts from, its
settings, and the data that it reads. Another teacher, another picture or another flag is another folder; nothing is
overwritten. What says that a step is done is written last, whole or not at all, and holds the hash of the result: a
step that a power cut left is done again, and what it keeps for itself in its folder (a checkpoint) is still there.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from agent import __version__
from agent.errors import UserError
from optimize.errors import OptimizeError
from optimize.files import write_atomically
from optimize.ladder.model import RungFile
from optimize.paths import walk
from optimize.progress import Progress, SilentProgress

__all__ = ["PlannedRung", "Step", "climb", "content_digest", "file_digest"]

Step: TypeAlias = Callable[[Path, Path], Path]
"""From the file that it starts from, and a folder of its own, to the file that it made in this folder."""

DONE_FILE = "step.json"
VERSION = 1
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRung:
    """A rung that is to be made.

    Attributes:
        name: of the rung; letters, digits, `.`, `_` and `-`.
        source: the rung that it is made from, which comes before it.
        make: does it.
        reads: all that decides the result beside the source: settings as text, data sets by their digest.
        graph: which graph of the result counts, see `RungFile`.
    """

    name: str
    source: str
    make: Step
    reads: Mapping[str, str]
    graph: str = "auto"


def climb(
    top: RungFile, plan: Sequence[PlannedRung], work: Path, progress: Progress | None = None
) -> tuple[RungFile, ...]:
    """Make every rung that is not there yet.

    Args:
        top: what all begins with.
        plan: in an order in which each source comes before what is made from it.
        work: where the steps' folders lie; made when absent.
        progress: hears which steps are done and which are skipped.

    Returns:
        The top and the rungs, in order.

    Raises:
        OptimizeError: names that do not go together, a step that made no file, or a folder that can't be written.
    """
    _check(top, plan)
    progress = progress or SilentProgress()
    rungs = {top.name: top}
    for planned in plan:
        source = rungs[planned.source]
        folder = work / "steps" / f"{planned.name}-{_key(planned, source.path)[:12]}"
        path = _done(folder)
        if path is not None:
            progress.step(f"{planned.name}: is there already ({path})")
        else:
            progress.step(f"{planned.name}: from {source.name}, in {folder}")
            path = _made(planned, source.path, folder)
        rungs[planned.name] = RungFile(name=planned.name, path=path, graph=planned.graph, made_from=source.name)
    return tuple(rungs.values())


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        OptimizeError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise OptimizeError(f"{path}: can't be read ({error.strerror})") from error
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of a folder: the name and the bytes of each file below it.

    Raises:
        OptimizeError: one can't be read.
    """
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for parts in walk(path):
        if (path.joinpath(*parts)).is_file():  # a link to nowhere holds nothing
            digest.update(
                f"{'/'.join(parts)}\0{file_digest(path.joinpath(*parts))}\0".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()


def _check(top: RungFile, plan: Sequence[PlannedRung]) -> None:
    known = [top.name]
    for planned in plan:
        if planned.name in known:
            raise OptimizeError(f"ladder: two rungs are called {planned.name}")
        if planned.source not in known:
            raise OptimizeError(f"ladder: {planned.name} is made from {planned.source}, which does not come before it")
        known.append(planned.name)


def _key(planned: PlannedRung, source: Path) -> str:
    told = {
        "version": VERSION,
        "defect-opt": __version__,
        "name": planned.name,
        "source": file_digest(source),
        "reads": dict(planned.reads),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _made(planned: PlannedRung, source: Path, folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptimizeError(f"{folder}: can't be made ({error.strerror})", hint="choose another --work") from error
    with _left_clean(folder):
        path = planned.make(source, folder)
    if not path.is_file() or folder not in path.parents:
        raise OptimizeError(f"{planned.name}: the step gave {path}, expected a file that it wrote into {folder}")
    done = {"version": VERSION, "file": str(path.relative_to(folder)), "sha256": file_digest(path)}
    write_atomically(folder / DONE_FILE, (json.dumps(done, indent=2) + "\n").encode(), hint="choose another --work")
    return path


@contextmanager
def _left_clean(folder: Path) -> Iterator[None]:
    """Half a file is no file: what a step that failed was writing is taken away; a full disk is named as one."""
    try:
        yield
    except BaseException as error:
        for partial in folder.rglob("*.partial"):
            with suppress(OSError):
                partial.unlink()
        if isinstance(error, UserError | OSError) and _is_full(error):
            raise OptimizeError(
                f"{folder}: no space left on the disk",
                hint="free some space and run it again, or choose another --work",
            ) from error
        raise


def _is_full(error: BaseException | None) -> bool:
    """Whether the disk was full at the bottom of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _done(folder: Path) -> Path | None:
    """What a step made, when it is there as it was made; None when the step has to be done."""
    try:
        told = json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("version") != VERSION:
        return None
    return next(_as_told(folder, told), None)


def _as_told(folder: Path, told: Mapping[str, object]) -> Iterator[Path]:
    name, sha256 = told.get("file"), told.get("sha256")
    if isinstance(name, str) and (folder / name).is_file() and file_digest(folder / name) == sha256:
        yield folder / name
