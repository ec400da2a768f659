"""Pictures of judged parts: encoded, written so that a power cut leaves all or nothing, and found again by name.

A picture is `images/YYYY-MM-DD/ID.jpg`, with `ID` that of its verdict and the day that of its exposure (UTC); where
several cameras see a part, the pictures beside the worst view's have an `ID` of their own. It is kept as it was taken.
Where findings have boxes, `ID.mqtt.jpg` shows them; where it is more than may go over MQTT, `ID.mqtt.jpg` is a smaller
one. When there is one, it is what the verdict speaks of and what is published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from agent.config import EvidenceConfig
from agent.errors import JournalError
from agent.frame import BgrImage
from agent.journal.disk import sync_directory

__all__ = ["ImageFiles", "Picture", "encode_picture"]

SMALLER_QUALITIES = (75, 50)
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FULL, SMALL = ".jpg", ".mqtt.jpg"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture, encoded.

    Attributes:
        id: its verdict's id, or its own where it is a further view's.
        day: `YYYY-MM-DD`, its folder.
        full: JPEG as kept.
        small: JPEG as published when that is another: with boxes drawn, or smaller as `full` is too large; else None.
        sha256: of what is published, hex.
    """

    id: str
    day: str
    full: bytes
    small: bytes | None
    sha256: str

    @property
    def published(self) -> bytes:
        """What goes over MQTT."""
        return self.full if self.small is None else self.small

    @property
    def bytes_on_disk(self) -> int:
        """Both files."""
        return len(self.full) + len(self.small or b"")


def encode_picture(
    image: BgrImage, config: EvidenceConfig, *, id_: str, day: str, marked: BgrImage | None = None
) -> Picture:
    """Encode one picture for the disk and, when that is too large or there are boxes to show, another one for MQTT.

    Args:
        image: (H, W, 3) uint8 BGR.
        config: quality and the largest picture that goes over MQTT.
        id_: the verdict's id.
        day: its folder.
        marked: the picture to publish in its place, of the same size; None publishes the picture itself.

    Raises:
        JournalError: OpenCV can't make a JPEG of it (sides over 65,500 px, another type).
    """
    full = _jpeg(image, config.jpeg_quality)
    limit = config.max_image_kb * 1000
    shown = image if marked is None else marked
    small = _jpeg(shown, config.jpeg_quality) if marked is not None and len(full) <= limit else None
    if len(small or full) > limit:
        small = _smaller(shown, len(small or full), limit)
    sha256 = hashlib.sha256(full if small is None else small).hexdigest()
    return Picture(id=id_, day=day, full=full, small=small, sha256=sha256)


def _smaller(image: BgrImage, size: int, limit: int) -> bytes:
    """Give up quality first, then pixels, until it fits; a picture of 8 px always does."""
    while True:
        for quality in SMALLER_QUALITIES if size <= 4 * limit else SMALLER_QUALITIES[-1:]:
            data = _jpeg(image, quality)
            if len(data) <= limit or max(image.shape[:2]) <= 8:
                return data
        size = len(data)
        scale = min(0.85, max(0.25, 0.95 * math.sqrt(limit / size)))
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _jpeg(image: BgrImage, quality: int) -> bytes:
    try:
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error as error:
        raise JournalError(f"a picture of shape {image.shape} can't be encoded ({_first_line(error)})") from error
    if not done:
        raise JournalError(f"a picture of shape {image.shape} can't be encoded as JPEG")
    return bytes(data.data)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class ImageFiles:
    """The pictures' folder. Names come from the database and are checked; no link is ever followed.

    Args:
        root: `STATE_DIR/images`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, pictures: Sequence[Picture]) -> None:
        """Put pictures on the disk: each whole and durable when this returns, none of them when it raises.

        Raises:
            OSError: what the disk said.
        """
        try:
            for day in sorted({picture.day for picture in pictures}):
                self._write_day(day, [picture for picture in pictures if picture.day == day])
        except OSError:
            for picture in pictures:
                with contextlib.suppress(OSError):
                    self.remove(picture.id, picture.day)
            raise

    def read(self, id_: str, day: str, *, small: bool, sha256: str) -> bytes | None:
        """The published file's bytes; None when it is not there, or not what was written."""
        with contextlib.suppress(OSError), self._folder(day) as folder:
            fd = os.open(_name(id_, SMALL if small else FULL), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        return None

    def remove(self, id_: str, day: str) -> None:
        """Unlink a picture's files, and its folder when that is empty then.

        Raises:
            OSError: a file is there and can't be removed.
        """
        try:
            with self._folder(day) as folder:
                for name in (_name(id_, FULL), _name(id_, SMALL)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return
        with contextlib.suppress(OSError):
            (self.root / day).rmdir()

    def path(self, id_: str, day: str) -> Path:
        """Where the kept picture is."""
        return self.root / _day(day) / _name(id_, FULL)

    def names(self) -> Iterator[tuple[str, str]]:
        """Every (day, file name) on the disk, ours or not."""
        if not self.root.is_dir():
            return
        for day in sorted(entry.name for entry in self.root.iterdir() if DAY.fullmatch(entry.name)):
            with contextlib.suppress(OSError), self._folder(day) as folder, os.scandir(folder) as entries:
                yield from [(day, entry.name) for entry in entries]

    def sweep(self, keep: Callable[[str, str], bool]) -> int:
        """Unlink files that no row of the journal knows: an agent was killed before its commit, or after an eviction.

        Args:
            keep: told an id and a day, says whether the journal has it.

        Returns:
            How many were removed. Files with other names than ours are left alone.
        """
        removed = 0
        for day, name in list(self.names()):
            id_ = name.split(".", 1)[0]
            ours = ID.fullmatch(id_) and name[len(id_) :] in {FULL, SMALL, FULL + ".tmp", SMALL + ".tmp"}
            if ours and (name.endswith(".tmp") or not keep(id_, day)):
                with contextlib.suppress(OSError), self._folder(day) as folder:
                    os.unlink(name, dir_fd=folder)
                    removed += 1
        return removed

    def _write_day(self, day: str, pictures: Sequence[Picture]) -> None:
        if not (self.root / _day(day)).is_dir():
            (self.root / day).mkdir(mode=0o700, exist_ok=True)
            sync_directory(self.root)
        with self._folder(day) as folder:
            for picture in pictures:
                _write_file(folder, _name(picture.id, FULL), picture.full)
                if picture.small is not None:
                    _write_file(folder, _name(picture.id, SMALL), picture.small)
            os.fsync(folder)

    @contextlib.contextmanager
    def _folder(self, day: str) -> Iterator[int]:
        fd = os.open(self.root / _day(day), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)


def _write_file(folder: int, name: str, data: bytes) -> None:
    temporary = name + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _day(day: str) -> str:
    if not DAY.fullmatch(day):
        raise FileNotFoundError(f"{day!r} is no folder of pictures")
    return day


def _name(id_: str, suffix: str) -> str:
    if not ID.fullmatch(id_):
        raise FileNotFoundError(f"{id_!r} is no picture")
    return id_ + suffix
