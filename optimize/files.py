"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from optimize.errors import ModelError

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: bytes, *, hint: str = "choose another --out") -> None:
    """Write a file, and its folder, so that it is there whole or as before, even when the power fails.

    Args:
        path: the file.
        data: all of it.
        hint: what to do when it can't be written.

    Raises:
        ModelError: the file can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ModelError(f"{path}: can't be written ({error.strerror})", hint=hint) from error
