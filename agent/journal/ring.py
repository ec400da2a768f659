"""Ring: triggers in shared memory, written before anybody is told of them, and found there after a killed process.

A trigger's row is on the disk only milliseconds after the trigger: the disk must hold up nobody who waits for a part.
What dies in between is the process. So each trigger is first put into a small file that lives in memory (tmpfs): that
takes microseconds, needs no disk, full or not, and outlives the process, though not the machine. Its slot is free again
once the part's verdict is on the disk. What is left there at the next start are parts of which somebody may have heard
and of which the journal may know nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import mmap
import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from agent.errors import JournalError
from agent.frame import Part, Stamp
from agent.journal.compose import plain_text
from agent.log import log_event

__all__ = ["Left", "TriggerRing", "left_in", "ring_places"]

SPARE_SLOTS = 12_288
"""More than `agent.triggers.queue.MAX_REFUSALS` and the parts that wait; 3.5 MB of memory, touched when needed."""

log = logging.getLogger("agent.journal")

CHECK = struct.Struct("<I")
BODY = struct.Struct("<8s?Qqq16s240s")
SLOT = CHECK.size + BODY.size
EMPTY = bytes(CHECK.size)


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """A trigger that an earlier start of the agent left behind.

    Attributes:
        boot: that start.
        part: what was triggered.
        held: its result was to be told only after its verdict was on the disk (`line.result: durable`).
    """

    boot: str
    part: Part
    held: bool


def ring_places(state_dir: Path, *, owner: int | None = None) -> list[Path]:
    """Where the file may lie, best first: systemd's directory of the station, the shared memory, beside the journal.

    Args:
        state_dir: of the station.
        owner: the agent's user; None is ours.
    """
    digest = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]
    name = f"defect-agent-{os.geteuid() if owner is None else owner}-{digest}.triggers"
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    folders = [Path(runtime)] if runtime else []
    return [folder / name for folder in (*folders, Path("/dev/shm"), state_dir) if folder.is_dir()]  # noqa: S108


def left_in(state_dir: Path) -> list[tuple[str, int]]:
    """Boot and sequence of the triggers in a station's memory, read beside a running agent or after a killed one."""
    try:
        places = ring_places(state_dir, owner=state_dir.stat().st_uid)
    except OSError:
        return []
    service = Path("/run/defect-agent", state_dir.name)  # where systemd has it, for who looks from outside
    found: set[tuple[str, int]] = set()
    for path in {*places, *(service / place.name for place in places)}:
        with contextlib.suppress(OSError):
            memory = path.read_bytes()
            found |= {(left.boot, left.part.sequence) for _, left in _slots_in(memory)}
    return sorted(found)


class TriggerRing:
    """The slots. One process at a time: who holds the journal's lock. Any thread may call any method.

    Args:
        places: paths to try, the first one that can be made is taken.
        slots: triggers that fit at once.
        held: stands beside every trigger, see `Left`.

    Raises:
        JournalError: none of them can be made, or one belongs to somebody else.
    """

    def __init__(self, places: list[Path], *, slots: int = SPARE_SLOTS, held: bool = False) -> None:
        self.path, fd = _first_made(places, slots * SLOT)
        self._held = held
        self._lock = threading.Lock()
        self._is_full_told = False
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        taken = {index for index, _ in self._found()}
        self._free = [index for index in reversed(range(len(self._memory) // SLOT)) if index not in taken]
        self._slot_of: dict[int, int] = {}

    def left(self) -> list[Left]:
        """What earlier starts left, in the order of their triggers."""
        found = sorted((left for _, left in self._found()), key=lambda left: (left.boot, left.part.sequence))
        return [left for left in found if left.part.sequence]

    def write(self, boot: str, part: Part) -> bool:
        """Put a trigger in, before anybody is told of it; again does nothing.

        Returns:
            False when all slots are taken, or after `close`: it is only as safe as its row on the disk.
        """
        at = part.triggered
        body = BODY.pack(
            boot.encode(), self._held, part.sequence, at.utc_ms, at.mono_ns,
            _fitting(part.trigger, 16), _fitting(part.id, 240),
        )  # fmt: skip
        with self._lock:
            if part.sequence in self._slot_of:
                return True
            if not self._free or self._memory.closed:
                if not (self._is_full_told or self._memory.closed):
                    self._is_full_told = True
                    log_event(log, "trigger_ring_full", logging.ERROR, slots=len(self._slot_of), file=str(self.path))
                return False
            index = self._slot_of[part.sequence] = self._free.pop()
            start = index * SLOT
            self._memory[start : start + SLOT] = CHECK.pack(zlib.crc32(body)) + body
            return True

    def erase(self, sequence: int) -> None:
        """The verdict of this part is on the disk."""
        with self._lock:
            index = self._slot_of.pop(sequence, None)
            if index is not None:
                self._memory[index * SLOT : index * SLOT + CHECK.size] = EMPTY
                self._free.append(index)

    def forget_left(self) -> None:
        """What earlier starts left is answered."""
        with self._lock:
            for index, _ in list(self._found()):
                self._memory[index * SLOT : index * SLOT + CHECK.size] = EMPTY
                self._free.append(index)

    def close(self) -> None:
        """Let go of the file; where nothing is left in it, it goes. May be called twice."""
        with self._lock:
            if self._memory.closed:
                return
            is_empty = next(self._found(), None) is None
            self._memory.close()
            if is_empty:
                with contextlib.suppress(OSError):
                    self.path.unlink()

    def _found(self) -> Iterator[tuple[int, Left]]:
        """Slots that are whole; one that was being written when the process died was told to nobody yet."""
        return _slots_in(self._memory)


def _slots_in(memory: mmap.mmap | bytes) -> Iterator[tuple[int, Left]]:
    for index in range(len(memory) // SLOT):
        start = index * SLOT
        check = memory[start : start + CHECK.size]
        if check == EMPTY:
            continue
        body = memory[start + CHECK.size : start + SLOT]
        if CHECK.unpack(check)[0] == zlib.crc32(body):
            yield index, _unpacked(body)


def _unpacked(body: bytes) -> Left:
    boot, held, sequence, utc_ms, mono_ns, kind, name = BODY.unpack(body)
    part = Part(
        id=name.rstrip(b"\0").decode(errors="replace"),
        trigger=kind.rstrip(b"\0").decode(errors="replace"),
        sequence=sequence,
        triggered=Stamp(utc_ms, mono_ns),
    )
    return Left(boot=boot.decode(errors="replace"), part=part, held=held)


def _fitting(text: str, size: int) -> bytes:
    return plain_text(text).encode()[:size].decode(errors="ignore").encode()


def _first_made(places: list[Path], size: int) -> tuple[Path, int]:
    said = []
    for path in places:
        try:
            return path, _made(path, size)
        except OSError as error:  # noqa: PERF203
            said.append(f"{path}: {error.strerror}")
    raise JournalError(
        f"no place for the triggers of a process that is killed ({'; '.join(said)})",
        hint=f"{size / 1e6:.1f} MB are needed in one of: {', '.join(str(path.parent) for path in places)}",
    )


def _made(path: Path, size: int) -> int:
    """Open or make the file, with its space really there: memory that is missing would end the process later."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        had = _own_size(path, fd)
        try:
            os.posix_fallocate(fd, 0, max(size, had))
            os.ftruncate(fd, max(size, had))
        except OSError:
            if not had:
                path.unlink(missing_ok=True)
            raise
    except BaseException:
        os.close(fd)
        raise
    return fd


def _own_size(path: Path, fd: int) -> int:
    """Whole slots that are there already, in bytes."""
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path}: belongs to somebody else", hint=f"remove it: sudo rm {path}")
    os.fchmod(fd, 0o600)
    return found.st_size // SLOT * SLOT
