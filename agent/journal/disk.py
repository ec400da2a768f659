"""The disk under the journal: who may write to it, what happens when it is full, and a reserve for that day.

Measured: at SQLITE_FULL a DELETE and a checkpoint fail like an INSERT, so nobody prunes his way out of a full disk.
Space comes from unlinking files: first pictures, then the reserve.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from agent.errors import JournalError

__all__ = [
    "DiskFullError",
    "Reserve",
    "StateLock",
    "free_bytes",
    "headroom_bytes",
    "is_full",
    "make_private_dir",
    "sync_directory",
]

MAX_HEADROOM_BYTES = 16 << 20
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, or the process's file size limit: each may pass when files are removed."""


class DiskFullError(JournalError):
    """No space left. It stays inside the journal, which makes room and tries again, and gives up as a JournalError."""


def is_full(error: OSError) -> bool:
    """Whether a failed write may work once space is made."""
    return error.errno in FULL_ERRNOS


def free_bytes(path: Path) -> int:
    """Bytes that we may still write on the file system of `path`."""
    try:
        stat = os.statvfs(path)
    except OSError as error:
        raise JournalError(f"{path}: can't be looked at ({error.strerror})") from error
    return stat.f_bavail * stat.f_frsize


def headroom_bytes(path: Path) -> int:
    """Free space from which on pictures are kept again: 16 MB, or an eighth of a small file system."""
    stat = os.statvfs(path)
    return min(MAX_HEADROOM_BYTES, stat.f_blocks * stat.f_frsize // 8)


def make_private_dir(path: Path) -> None:
    """Make a directory that only we can enter (0700), durably; one that is there keeps its mode.

    Raises:
        JournalError: it can't be made, or something else has its name.
    """
    if path.is_dir():
        return
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise JournalError(
            f"{path}: can't be made a directory ({error.strerror})",
            hint="check state_dir in the configuration, and that the agent's user may write there",
        ) from error


def sync_directory(path: Path) -> None:
    """Make names that were put into a directory durable.

    Raises:
        OSError: what the disk said.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class StateLock:
    """One agent per state directory, held by `flock` on `journal.lock` until closed or until the process ends."""

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / "journal.lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise JournalError(f"{path}: can't be opened ({error.strerror})") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise JournalError(
                f"{state_dir}: another defect-agent (process {holder}) works in this state directory",
                hint="stop it, or give this station its own state_dir",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let the next agent in."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Reserve:
    """A file that does nothing but hold space, to be given up when the disk is full.

    Args:
        path: the file.
        size_bytes: how much; 0 keeps none.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    @property
    def held(self) -> bool:
        """Whether there is something to give up."""
        return self._path.exists()

    @property
    def wanted(self) -> bool:
        """Whether there should be one, and is not."""
        return self._size_bytes > 0 and not self.held

    def hold(self) -> bool:
        """Take the space if it leaves room for the work itself; False when it doesn't fit."""
        if self._size_bytes == 0:
            self.release()
            return False
        if self._path.exists() and self._path.stat().st_size == self._size_bytes:
            return True
        self.release()
        if free_bytes(self._path.parent) < self._size_bytes + headroom_bytes(self._path.parent):
            return False
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size_bytes)
            finally:
                os.close(fd)
        except OSError:  # no space, or a file system without fallocate: then there is no reserve, and stats say so
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Give the space back; False when there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
