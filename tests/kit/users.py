"""Rights of an ordinary user, also when the tests run as root (who may read everything)."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["let_others_in", "without_root"]

NOBODY = 65_534


def let_others_in(folder: Path) -> None:
    """Others may enter a folder of the tests, and those that it lies in: pytest's are ours alone."""
    for each in itertools.takewhile(lambda at: at != Path(tempfile.gettempdir()), [folder, *folder.parents]):
        each.chmod(0o755)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Run the block without root's rights; nothing changes for an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
