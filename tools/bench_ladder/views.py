"""Rungs on fixed views of the NEU test images, and how long they take in turn."""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import onnx

from agent.bundle import InputSpec, open_bundle
from tools.bench_quantize.figures import Figure, Resampling, median_ratio, points
from tools.bench_quantize.sessions import open_session, outputs_of
from tools.bench_quantize.views import VIEWS_EACH, Pictures, Source, views_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from optimize.ladder import RungFile

__all__ = ["OnViews", "graph_of", "speedup"]

ROUNDS, WARM_UPS = 200, 10


def graph_of(rung: RungFile) -> tuple[bytes, InputSpec]:
    """What a CPU runs of a rung, and its input."""
    if rung.path.suffix == ".defect":
        bundle = open_bundle(rung.path)
        return bundle.graph(bundle.manifest.cpu_graph), bundle.manifest.input
    data = rung.path.read_bytes()
    told = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
    return data, InputSpec(**json.loads(told["input"]))


class OnViews:
    """Judges rungs on the views of each test image; views are made once per input size.

    Args:
        root: NEU-DET.
        classes: in the order of the logits.
        each: views of each image.
        limit: at most so many images.
    """

    def __init__(
        self, root: Path, classes: tuple[str, ...], *, each: int = VIEWS_EACH, limit: int | None = None
    ) -> None:
        self._root, self._classes, self._each, self._limit = root, classes, each, limit
        self._views: dict[tuple[int, int, str], Pictures] = {}

    def right(self, rung: RungFile) -> NDArray[np.bool_]:
        """(views,) whether the class is right."""
        graph, spec = graph_of(rung)
        views = self._pictures(spec)
        said = outputs_of(open_session(graph, "here"), views.images)
        return np.asarray(said.argmax(axis=1) == views.labels)

    def drop(self, top: NDArray[np.bool_], other: NDArray[np.bool_], why: str | None = None) -> Figure:
        """Points lost against the top, paired by view, with an interval by group."""
        groups = next(iter(self._views.values())).groups
        lost = points(top, other)
        return Resampling(groups).figure(lambda total, count: total / count, lost, np.ones(len(lost)), why=why)

    def _pictures(self, spec: InputSpec) -> Pictures:
        key = spec.width_px, spec.height_px, spec.resize
        if key not in self._views:
            source = Source(root=self._root, spec=spec, classes=self._classes)
            self._views[key] = views_of(source, "test", each=self._each, limit=self._limit)
        return self._views[key]


def speedup(top: RungFile, other: RungFile, *, rounds: int = ROUNDS) -> tuple[Figure, float, float]:
    """How many times as fast, interleaved in one run, on one thread; and the two medians in milliseconds.

    Of the inferences' own CPU time: on a busy machine the longer one waits for its core more often.
    """
    calls, taken = [], ([], [])  # type: ignore[var-annotated]
    for rung in (top, other):
        graph, spec = graph_of(rung)
        session = open_session(graph, "here")
        image = np.random.default_rng(3).integers(0, 256, (1, spec.height_px, spec.width_px, 3), dtype=np.uint8)
        calls.append((session, {spec.name: image}))
    for number in range(WARM_UPS + rounds):
        for times, (session, feed) in zip(taken, calls, strict=True):
            begin = time.thread_time_ns()
            session.run(None, feed)
            if number >= WARM_UPS:
                times.append((time.thread_time_ns() - begin) / 1e6)
    first, second = (statistics.median(times) for times in taken)
    return median_ratio(*taken, why=f"{first:.2f} ms and {second:.2f} ms, {rounds} rounds in turn"), first, second
