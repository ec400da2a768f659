"""Writing what a ladder found: each file is there whole, or as it was before."""

from __future__ import annotations

import os
from pathlib import Path

from optimize.errors import OptimizeError

__all__ = ["write_file"]


def write_file(path: Path, data: bytes) -> None:
    """Write a file and its folder, synced.

    Raises:
        OptimizeError: it can't be written.
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
        raise OptimizeError(f"{path}: can't be written ({error.strerror})", hint="choose another --work") from error
