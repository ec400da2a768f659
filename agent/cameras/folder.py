"""A folder of pictures as a camera: for tests, acceptance and replays."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.cameras.decode import PICTURE_SUFFIXES, path_in_words, read_image
from agent.config import FolderCameraConfig
from agent.errors import CameraError, ImageError
from agent.frame import Fault, Frame, Part, Stamp
from agent.log import log_event

__all__ = ["FolderCamera", "natural_order"]

MAX_ID_LENGTH = 180
"""Characters of a part id that come from the file name; `#2` and so on of later passes go behind them."""

MAX_SKIPPED_PER_POLL = 1_000
"""Judged pictures that one `poll` passes over, so that a long resume neither hangs nor starves the watchdog."""

log = logging.getLogger("agent.cameras.folder")


class FolderCamera:
    """Pictures in the natural order of their paths: `img_2` before `img_10`, a sub-folder's pictures together.

    The folder is listed once, when it is opened: files that come later are not seen, and one that has vanished by its
    turn is a fault, as is one that can't be decoded. Hidden files, files that are no pictures, and links that lead out
    of the folder (and every link to a folder) are left alone.

    A part's id is the path below the folder, with forward slashes; later passes of a loop append `#2`, `#3` and so on.

    With `rate_hz` the n-th picture of this run is due n / rate_hz seconds after the first poll. The schedule does not
    drift: a line that fell behind gets pictures without a pause until it has caught up.

    Attributes:
        total: pictures in the folder.
        ignored: files, and links to folders, that were left alone.
        already_judged: pictures passed over so far because the journal holds their verdict.

    Args:
        config: the folder and how to replay it.
        is_judged: whether a part id has a verdict; asked only with `resume`.
        clock: seconds, monotonic; decides when a picture is due.

    Raises:
        CameraError: no such folder, it can't be read, or it holds no picture.
    """

    def __init__(
        self,
        config: FolderCameraConfig,
        *,
        is_judged: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._is_judged = is_judged
        self._clock = clock
        self._names, self.ignored = _list_pictures(config.path)
        self.total = len(self._names)
        self.already_judged = 0
        self._next = 0  # counts on over the passes of a loop
        self._given = 0
        self._first_due: float | None = None
        self._closed = threading.Event()
        log_event(log, "folder_listed", path=path_in_words(config.path), pictures=self.total, ignored=self.ignored)

    @property
    def name(self) -> str:
        """The configured name."""
        return self._config.name

    @property
    def ended(self) -> bool:
        """Every picture was given or passed over; never with `loop`."""
        return self._closed.is_set() or (self._next >= self.total and not self._config.loop)

    @property
    def upcoming(self) -> str | None:
        """The next picture's path below the folder."""
        return None if self.ended else self._part_id()

    @property
    def lost(self) -> str | None:
        """Set while the folder itself is gone, as when its disk was unplugged: its pictures then wait.

        Each call looks: a triggered folder is polled by nobody, and no trigger may come before it is back.
        """
        if os.access(self._config.path, os.R_OK | os.X_OK):
            return None
        return f"the folder {path_in_words(self._config.path)} is gone, or may not be read any more"

    def poll(self, timeout_s: float) -> bool:
        """Wait until the next picture is due."""
        if not self._skip_judged() or self.ended:
            return False
        if self.lost is not None:
            self._closed.wait(timeout_s)
            return False
        wait_s = self._due_in_s()
        if wait_s > 0:
            self._closed.wait(min(wait_s, timeout_s))
        return wait_s <= timeout_s and not self._closed.is_set()

    def read(self, part: Part) -> Frame | Fault:
        """Decode the next picture, whether it is due or not.

        While the folder is gone the picture waits for another part, unless this one bears its name.
        """
        if self.ended:
            return Fault(part=part, stage="capture", reason=f"{self.name}: there is no picture left in the folder")
        is_named = part.id == self._part_id()
        path = self._config.path / self._names[self._next % self.total]
        self._next += 1
        self._given += 1
        started_ns = time.monotonic_ns()
        try:
            image = read_image(path, max_pixels=self._config.max_pixels)
        except ImageError as error:
            lost = self.lost
            self._next -= lost is not None and not is_named
            return Fault(part=part, stage="capture", reason=lost or error.message)
        captured = Stamp.now()
        return Frame(
            part=part,
            image=image,
            camera=self.name,
            source=path_in_words(path),
            sequence=self._given,
            captured=captured,
            capture_ms=(captured.mono_ns - started_ns) / 1e6,
        )

    def close(self) -> None:
        """End, and wake a poll that waits in another thread."""
        self._closed.set()

    def _due_in_s(self) -> float:
        if not self._config.rate_hz:
            return 0.0
        if self._first_due is None:
            self._first_due = self._clock()
        return self._first_due + self._given / self._config.rate_hz - self._clock()

    def _skip_judged(self) -> bool:
        """Pass over judged pictures; False when there may be more of them."""
        if not self._config.resume:
            return True
        for _ in range(MAX_SKIPPED_PER_POLL):
            if self.ended or not self._is_judged(self._part_id()):
                return True
            self._next += 1
            self.already_judged += 1
        return False

    def _part_id(self) -> str:
        lap, index = divmod(self._next, self.total)
        part_id = _part_id_from_name(self._names[index])
        return f"{part_id}#{lap + 1}" if lap else part_id


def _part_id_from_name(name: str) -> str:
    """A printable id of at most `MAX_ID_LENGTH` characters, still different for different names."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    if printable == name and len(name) <= MAX_ID_LENGTH:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    return f"{printable[-(MAX_ID_LENGTH - 13) :]}~{digest}"


def _list_pictures(root: Path) -> tuple[list[str], int]:
    """Relative paths of the pictures below a folder, in natural order, and how many other files there are."""
    names, ignored, suffixes = [], 0, tuple(PICTURE_SUFFIXES)
    try:
        for name in _files_below(root):
            if name is not None and name.lower().endswith(suffixes):
                names.append(name)
            else:
                ignored += 1
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CameraError(
            f"{path_in_words(Path(error.filename or root))}: no such folder",
            hint="set camera.path to a folder that holds pictures",
        ) from error
    except OSError as error:
        raise CameraError(
            f"{path_in_words(Path(error.filename or root))}: can't be listed ({error.strerror})",
            hint="give the user that runs the agent the right to read it (chmod, chown)",
        ) from error
    if not names:
        raise CameraError(
            f"{path_in_words(root)}: no picture in it, {ignored} other files",
            hint=f"pictures are files that end in {', '.join(sorted(PICTURE_SUFFIXES))}; hidden ones, and links that "
            "lead out of the folder, are left alone",
        )
    return sorted(names, key=natural_order), ignored


def _files_below(root: Path) -> Iterator[str | None]:
    """Relative paths of visible files; None for each thing that is left alone."""
    real_root = os.path.realpath(root)
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.name.startswith(".") or (entry.is_symlink() and not _leads_to_file_in(real_root, entry.path)):
                    yield None
                elif entry.is_dir():
                    folders.append(f"{name}/")
                else:
                    yield name


def _leads_to_file_in(real_root: str, path: str) -> bool:
    target = Path(os.path.realpath(path))
    return target.is_relative_to(real_root) and target.is_file()


_NUMBERS = re.compile(r"([0-9]+)")


def natural_order(name: str) -> tuple[list[list[str | int]], str]:
    """Numbers by value; names that differ only in leading zeros stay in a fixed order."""
    parts = [[int(t) if t.isdigit() else t for t in _NUMBERS.split(part)] for part in name.split("/")]
    return parts, name
