"""Where a network may be written: never over one that it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from optimize.errors import OptimizeError

__all__ = ["refuse_overwriting"]


def refuse_overwriting(out: Path, sources: Iterable[Path], what: str) -> None:
    """Before hours go into it.

    Args:
        out: the file to write.
        sources: what it is made from; a link to one, hard or symbolic, or another spelling of its path, is the same.
        what: what messages call a source: `model`, `teacher`.

    Raises:
        OptimizeError: one of them would be lost.
    """
    for source in sources:
        if out.resolve() == source.resolve() or _is_one_file(out, source):
            raise OptimizeError(
                f"out: {out} is the {what} itself ({source}), and would be lost", hint="give another --out"
            )


def _is_one_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them is not there
        return False
