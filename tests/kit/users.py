"""Rights of an ordinary user, also when the tests run as root (who may read everything)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["without_root"]

NOBODY = 65_534


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
