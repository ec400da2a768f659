"""What has to outlive the process: the number of the last session, and which records were sent."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from agent.log import log_event

__all__ = ["FILE_NAME", "Memory", "Remembered"]

FILE_NAME = "sparkplug.json"
MAX_BYTES = 1 << 20
BDSEQ_MODULUS = 256

log = logging.getLogger("agent.sparkplug")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The file's content.

    Attributes:
        next_bdseq: what the next CONNECT says, 0 to 255.
        last: up to here records have been looked at; None in a new file.
        unsent: ranges of records that the host has still to get.
    """

    next_bdseq: int = 0
    last: int | None = None
    unsent: tuple[tuple[int, int], ...] = ()


class Memory:
    """`STATE_DIR/sparkplug.json`, replaced as a whole and synced; used by one thread.

    A disk that takes nothing costs repeats after the next start, and is told once; the session goes on.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._told = ""
        self.now = self._read()
        self._written = self.now

    def take_bdseq(self) -> int:
        """The number of the session that begins; durable, so that no restart takes it again."""
        taken = self.now.next_bdseq
        self.keep(dataclasses.replace(self.now, next_bdseq=(taken + 1) % BDSEQ_MODULUS))
        return taken

    def keep(self, remembered: Remembered) -> None:
        """Write it, if it is not what stands there."""
        self.now = remembered
        if remembered == self._written:
            return
        new = self._path.with_suffix(".new")
        data = json.dumps(dataclasses.asdict(remembered)).encode()
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            self._tell("sparkplug_not_remembered", error.strerror or str(error))
        else:
            self._written, self._told = remembered, ""

    def _read(self) -> Remembered:
        try:
            with self._path.open("rb") as file:
                return _checked(json.loads(file.read(MAX_BYTES)))
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self._tell("sparkplug_memory_damaged", f"{self._path}: {error!r:.200}")
            return Remembered()

    def _tell(self, event: str, reason: str) -> None:
        if self._told != reason:
            self._told = reason
            log_event(log, event, logging.WARNING, file=str(self._path), reason=reason)


def _checked(raw: Any) -> Remembered:
    ranges = tuple((_count(start), _count(end)) for start, end in raw["unsent"])
    last = None if raw["last"] is None else _count(raw["last"])
    if any(start > end for start, end in ranges) or (ranges and (last is None or max(e for _, e in ranges) > last)):
        raise ValueError("ranges that can't be")
    return Remembered(next_bdseq=_count(raw["next_bdseq"]) % BDSEQ_MODULUS, last=last, unsent=ranges)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"expected a record number, got {value!r:.40}")
    return value
