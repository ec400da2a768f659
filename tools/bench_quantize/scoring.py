"""Logits of a graph on all views: two processes, one thread each, and nothing computed twice."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_quantize.sessions import Mode, open_session, outputs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from tools.bench_quantize.views import Pictures

__all__ = ["Scorer"]

CHUNK = 180
WORKERS = 2


class Scorer:
    """Runs graphs on one set of pictures; a context manager.

    Logits are kept as `.npy` in the work folder, named by the sha256 of graph, arithmetic and pictures: a bench that
    was stopped goes on where it was.

    Args:
        pictures: what is scored.
        folder: the work folder.
    """

    def __init__(self, pictures: Pictures, folder: Path) -> None:
        self._pictures = pictures
        self._folder = folder / "logits"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._images = folder / f"views-{pictures.digest[:16]}.npy"
        if not self._images.is_file():
            _save(self._images, pictures.images)
        # A fork would inherit ONNX Runtime's threads without their owner.
        self._pool = ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def logits(self, graph: bytes, mode: Mode, name: str) -> NDArray[np.float32]:
        """(n, classes) float32.

        Args:
            graph: ONNX bytes with one picture input.
            mode: the arithmetic.
            name: what progress calls it.
        """
        digest = hashlib.sha256(graph).hexdigest()
        key = hashlib.sha256(f"{digest} {mode} {self._pictures.digest}".encode()).hexdigest()[:32]
        target = self._folder / f"{key}.npy"
        if target.is_file():
            return np.asarray(np.load(target))
        started = time.monotonic()
        path = self._folder.parent / f"graph-{digest[:16]}.onnx"
        path.write_bytes(graph)
        try:
            starts = range(0, len(self._pictures), CHUNK)
            jobs = [self._pool.submit(_chunk, str(path), mode, str(self._images), start) for start in starts]
            found = []
            for number, job in enumerate(jobs, 1):
                found.append(job.result())
                _say(f"{name} ({mode}): {min(number * CHUNK, len(self._pictures))} of {len(self._pictures)}", end="\r")
        finally:
            path.unlink(missing_ok=True)
        logits = np.concatenate(found)
        _save(target, logits)
        _say(f"{name} ({mode}): {len(logits)} views in {time.monotonic() - started:.0f} s        ", end="\n")
        return logits


def _chunk(graph: str, mode: Mode, images: str, start: int) -> NDArray[np.float32]:
    """One part of the pictures, in a worker."""
    pictures: Any = np.load(images, mmap_mode="r")[start : start + CHUNK]
    return outputs_of(_session(graph, mode), (np.ascontiguousarray(picture) for picture in pictures))


@functools.lru_cache(maxsize=1)
def _session(graph: str, mode: Mode) -> Any:
    return open_session(Path(graph).read_bytes(), mode)


def _save(path: Path, values: NDArray[Any]) -> None:
    """Whole or not at all: a bench that is stopped must not leave half a file."""
    part = path.with_suffix(".part.npy")
    np.save(part, values)
    part.replace(path)


def _say(text: str, *, end: str) -> None:
    if end == "\n" or sys.stderr.isatty():
        print(f"bench: {text}", end=end, file=sys.stderr, flush=True)
