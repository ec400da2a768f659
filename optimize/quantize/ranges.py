"""What values each tensor takes on the calibration pictures, and which span of them INT8 should hold.

`collect` runs the float graph over all pictures and keeps, per tensor, exact extremes and a histogram: memory is that
of one picture's tensors, however many pictures there are. `candidates` reads a span off them in four ways; which of
them is taken is decided by measuring.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from optimize.errors import DataError, ModelError
from optimize.progress import Progress, SilentProgress
from optimize.quantize.histogram import (
    Histogram,
    count_values,
    entropy_span,
    percentile_span,
    span_error,
    squared_error_span,
)

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["METHODS", "MIN_WIDTH", "Method", "Range", "TensorStats", "candidates", "collect", "expected_error"]

Method = Literal["minmax", "percentile", "mse", "kl"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "kl")

MIN_WIDTH = float(np.nextafter(np.float32(1e-6), np.float32(1)))
"""No span is narrower, so that no scale is 0: a tensor that is always 0 is quantized to 0 by any scale."""

Run: TypeAlias = "Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorStats:
    """The values of one tensor over all calibration pictures.

    Attributes:
        name: the tensor's.
        low: the smallest value, exact.
        high: the largest.
        counts: (2048,) int64, values in bins of equal width from `low` to `high`; all in the first where both are one.
        zeros: how many of the values are exactly 0 (they are in `counts` too).
        image_low: (images,) float32, the smallest value in each picture.
        image_high: (images,) float32.
        channel_low: (C,) float32, the smallest value of each channel, which is axis 1; tensors with fewer than two
            axes have one channel.
        channel_high: (C,) float32.
        channel_mean: (C,) float32, the mean over all pictures and places.
    """

    name: str
    low: float
    high: float
    counts: NDArray[np.int64]
    zeros: int
    image_low: NDArray[np.float32]
    image_high: NDArray[np.float32]
    channel_low: NDArray[np.float32]
    channel_high: NDArray[np.float32]
    channel_mean: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The span that a tensor's INT8 levels hold.

    Attributes:
        low: 0 or below; a float32 number.
        high: 0 or above, at least `MIN_WIDTH` over `low`; a float32 number.
    """

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """The largest magnitude: the top level of a symmetric grid."""
        return max(-self.low, self.high)


def collect(
    model: onnx.ModelProto,
    source: str,
    images: Sequence[NDArray[np.uint8]],
    tensors: Sequence[str],
    *,
    progress: Progress | None = None,
    threads: int = 1,
) -> Mapping[str, TensorStats]:
    """Run a float graph over pictures and keep what its tensors hold.

    Every picture is asked for twice, in order: first for the extremes, then for the histogram between them. Nothing of
    a picture is kept but the extremes.

    Args:
        model: a float graph; it is not changed.
        source: the name of its input.
        images: pictures, each as the graph takes it, such as (1, height_px, width_px, 3) uint8 RGB.
        tensors: names of tensors of the graph (or the input); a name that stands twice is measured once.
        progress: hears which picture is in work.
        threads: of ONNX Runtime. Where its kernels give the same on any number of threads, so does this.

    Returns:
        Each tensor's values, in the order of `tensors`.

    Raises:
        DataError: there is no picture.
        ModelError: a tensor that the graph does not have, that is empty, or that has a NaN or an infinity; a graph
            that ONNX Runtime can't run.
    """
    if not len(images):
        raise DataError("calibration images: got none, expected at least one")
    progress = progress or SilentProgress()
    names = list(dict.fromkeys(tensors))
    run = _open(model, source, names, threads)
    extremes = {name: _Extremes(name) for name in names}
    numbers: Sequence[int] = range(len(images))
    for index in progress.track(numbers, "measuring how far values reach"):
        for name, values in run(images[index]).items():
            extremes[name].add(values, index)
    tallies = {name: _Tally(found) for name, found in extremes.items()}
    for index in progress.track(numbers, "counting values"):
        for name, values in run(images[index]).items():
            tallies[name].add(values)
    return {name: extremes[name].stats(tallies[name]) for name in names}


def _open(model: onnx.ModelProto, source: str, names: Sequence[str], threads: int) -> Run:
    """A function from a picture to the named tensors."""
    import onnx
    import onnxruntime

    made = {name for node in model.graph.node for name in node.output if name}
    missing = [name for name in names if name not in made and name != source]
    if missing:
        raise ModelError(f"tensor {missing[0]}: is not in the graph ({len(missing)} of {len(names)} are not)")
    wanted = [name for name in names if name != source]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    options = onnxruntime.SessionOptions()
    # Basic optimizations keep a tensor that is an output; layouts and fusions of the higher levels would cost time
    # here, as every tensor has to come back to its own layout. The arena would keep the largest picture's memory.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with _translated("can't be opened"):
        session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        with _translated("can't be run on a calibration image"):
            values = dict(zip(wanted, session.run(wanted, {source: image}) if wanted else (), strict=True))
        if source in names:
            values[source] = image
        return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}

    return run


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"the float graph {what} ({type(error).__name__}: {first})") from error


class _Extremes:
    """The extremes of one tensor, picture by picture."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._image_low: list[float] = []
        self._image_high: list[float] = []
        self._low = self._high = np.zeros(0, dtype=np.float32)
        self._sum: NDArray[np.float64] = np.zeros(0)
        self._count = 0

    @property
    def low(self) -> float:
        return min(self._image_low)

    @property
    def high(self) -> float:
        return max(self._image_high)

    def add(self, values: NDArray[np.float32], index: int) -> None:
        if not values.size:
            raise ModelError(f"tensor {self.name}: is empty for calibration image {index}")
        channels = _by_channel(values)
        low, high = channels.min(axis=1), channels.max(axis=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise ModelError(
                f"tensor {self.name}: {bad} of {values.size} values are NaN or infinite for calibration image {index}",
                hint="the float model overflows on this picture: look at its weights and its normalization",
            )
        if not self._count:
            self._low, self._high, self._sum = low, high, np.zeros(low.shape)
        elif low.shape != self._low.shape:
            raise ModelError(
                f"tensor {self.name}: got {low.size} channels for calibration image {index}, {self._low.size} before"
            )
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._sum = self._sum + channels.sum(axis=1, dtype=np.float64)
        self._count += channels.shape[1]
        self._image_low.append(float(low.min()))
        self._image_high.append(float(high.max()))

    def stats(self, tally: _Tally) -> TensorStats:
        return TensorStats(
            name=self.name,
            low=self.low,
            high=self.high,
            counts=tally.counts,
            zeros=tally.zeros,
            image_low=np.array(self._image_low, dtype=np.float32),
            image_high=np.array(self._image_high, dtype=np.float32),
            channel_low=self._low,
            channel_high=self._high,
            channel_mean=(self._sum / self._count).astype(np.float32),
        )


class _Tally:
    """The histogram of one tensor."""

    def __init__(self, extremes: _Extremes) -> None:
        self._low, self._high = extremes.low, extremes.high
        self.counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.zeros = 0

    def add(self, values: NDArray[np.float32]) -> None:
        counted = count_values(values, self._low, self._high)
        self.counts = self.counts + counted if self.counts.size else counted
        self.zeros += values.size - int(np.count_nonzero(values))


def _by_channel(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, all else); axis 1 is the channel."""
    if values.ndim < 2:
        return values.reshape(1, -1)
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def candidates(stats: TensorStats, *, percentile: float = 99.99, symmetric: bool) -> Mapping[Method, Range]:
    """The span that each method reads off a tensor's values.

    All spans hold 0. A tensor without negative values (after a ReLU) starts at exactly 0, also in the symmetric form;
    one without positive values ends there. Other symmetric spans are as wide below 0 as above.

    - `minmax`: every value that was seen.
    - `percentile`: the share `percentile` of the values; the rest is cut off, half of it at each tail, or all of it at
      the only one.
    - `mse`: the least squared error of rounding and clipping; see `squared_error_span`.
    - `kl`: the least lost information; see `entropy_span`.

    Args:
        stats: the values.
        percentile: share of values that `percentile` keeps, 0 to 100 percent.
        symmetric: for a grid of 255 levels around 0 (TensorRT); else 256 from low to high (CPUs).
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: got {percentile}, expected more than 0 to 100")
    seen = (stats.low, stats.high)
    if stats.low == stats.high:
        return {method: _range(stats, *seen, symmetric=symmetric) for method in METHODS}
    histogram = _histogram(stats)
    spans: dict[Method, tuple[float, float]] = {
        "minmax": seen,
        "percentile": percentile_span(histogram, percentile, symmetric=symmetric),
        "mse": squared_error_span(histogram, symmetric=symmetric),
        "kl": entropy_span(histogram, symmetric=symmetric),
    }
    return {method: _range(stats, *span, symmetric=symmetric) for method, span in spans.items()}


def expected_error(stats: TensorStats, span: Range, *, symmetric: bool) -> float:
    """The mean squared error of quantizing this tensor to this range with 8 bits, as a model; see `span_error`."""
    return span_error(_histogram(stats), span.low, span.high, symmetric=symmetric)


def _histogram(stats: TensorStats) -> Histogram:
    return Histogram.of(stats.counts, stats.low, stats.high, stats.zeros)


def _range(stats: TensorStats, low: float, high: float, *, symmetric: bool) -> Range:
    """A span made one that can be quantized to, in float32; never beyond the values that were seen."""
    low, high = (float(np.float32(end)) for end in (max(min(low, 0.0), stats.low), min(max(high, 0.0), stats.high)))
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < MIN_WIDTH:
        low, high = (high - MIN_WIDTH, high) if stats.low < 0 and stats.high <= 0 else (low, low + MIN_WIDTH)
    if symmetric and stats.low < 0 < stats.high:
        high = max(-low, high)
        low = -high
    return Range(low=float(np.float32(low)), high=float(np.float32(high)))
