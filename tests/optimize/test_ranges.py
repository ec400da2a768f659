"""Ranges of tensors: what is refused, what is measured, where values are clipped, and whether pictures were enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.errors import DataError, ModelError
from optimize.quantize.histogram import BINS, count_values
from optimize.quantize.ranges import METHODS, MIN_WIDTH, Method, Range, TensorStats, candidates, collect, expected_error
from optimize.quantize.stability import ranges_json, stability
from tests.kit.float_models import CLASSES, conv_classifier, picture

TENSORS = ("normalized", "c1", "r1", "c2", "r2", "embedding", "logits")
Floats = NDArray[np.float32]


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(4)
    return [picture(CLASSES[i % 3], rng)[None] for i in range(count)]


def classifier() -> onnx.ModelProto:
    return onnx.load_model_from_string(conv_classifier())


def run_plainly(tensor: str, images: Sequence[NDArray[np.uint8]]) -> list[Floats]:
    """One tensor of the classifier, a picture at a time, with the same kernels as `collect`."""
    model = classifier()
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run([tensor], {"image": image})[0] for image in images]


def passing() -> onnx.ModelProto:
    """A graph that gives back float32 (1, C, N) values as `same`, and the positive ones as `positive`."""
    shape = [1, None, None]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["values", "one"], ["same"]), helper.make_node("Relu", ["same"], ["positive"])],
        "passing",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("positive", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ones(1, dtype=np.float32), "one")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measured(values: Floats | Sequence[Floats], tensor: str = "same") -> TensorStats:
    images: Any = [values.reshape(1, 1, -1)] if isinstance(values, np.ndarray) else list(values)
    return collect(passing(), "values", images, [tensor])[tensor]


def gauss(count: int = 200_000, *, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 1, count).astype(np.float32)


class Reads(Sequence[NDArray[np.uint8]]):
    """Pictures that note which were asked for."""

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self.asked: list[int] = []
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | Sequence[NDArray[np.uint8]]:
        assert isinstance(index, int)
        self.asked.append(index)
        return self._images[index]


def test_no_picture_at_all_is_refused() -> None:
    """There is nothing that a range could be read off."""
    with pytest.raises(DataError, match="got none, expected at least one"):
        collect(classifier(), "image", [], ["r1"])


def test_a_tensor_that_the_graph_does_not_have_is_named() -> None:
    """A wrong name would else end in ONNX Runtime's words, or in a range of something else."""
    with pytest.raises(ModelError, match="tensor nowhere: is not in the graph"):
        collect(classifier(), "image", pictures(1), ["r1", "nowhere"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_tensor_and_picture(bad: float) -> None:
    """A range of NaN makes an INT8 graph that answers the same whatever it sees."""
    good, broken = np.ones((1, 2, 3), np.float32), np.ones((1, 2, 3), np.float32)
    broken[0, 1, 1] = bad

    with pytest.raises(ModelError, match=r"tensor same: 1 of 6 values are NaN or infinite for calibration image 2"):
        measured([good, good, broken])


def test_an_empty_tensor_is_refused() -> None:
    """It has no extremes."""
    with pytest.raises(ModelError, match="tensor same: is empty for calibration image 0"):
        measured([np.ones((1, 1, 0), np.float32)])


def test_channels_that_come_and_go_are_refused() -> None:
    """Ranges by channel would be of other channels."""
    with pytest.raises(ModelError, match="got 3 channels for calibration image 1, 2 before"):
        measured([np.ones((1, 2, 5), np.float32), np.ones((1, 3, 5), np.float32)])


def test_a_picture_that_does_not_fit_the_graph_is_a_sentence() -> None:
    """ONNX Runtime's exceptions stay behind this door."""
    with pytest.raises(ModelError, match="can't be run on a calibration image"):
        collect(classifier(), "image", [np.zeros((1, 5, 5, 3), np.uint8)], ["r1"])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 1e-12, -1e-12, 3e38])
def test_a_constant_tensor_gets_a_range_that_can_be_divided_by(value: float, symmetric: bool) -> None:
    """Dead channels and fixed inputs exist; a scale of 0 or NaN would spread."""
    stats = measured(np.full(50, value, np.float32))

    found = candidates(stats, symmetric=symmetric)

    assert tuple(found) == METHODS
    for span in found.values():
        assert span.low <= 0 <= span.high
        assert span.high - span.low >= MIN_WIDTH
        assert span.low <= stats.low
        assert span.high >= stats.high
        assert 0 <= expected_error(stats, span, symmetric=symmetric) <= (span.magnitude / 127) ** 2 / 12 * (1 + 1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_negative_values_only_end_at_exactly_zero(symmetric: bool) -> None:
    """0 must be a level: padding is 0."""
    stats = measured(-np.abs(gauss()) - np.float32(0.5))

    for span in candidates(stats, symmetric=symmetric).values():
        assert span.high == 0
        assert span.low < -2


@pytest.mark.parametrize("symmetric", [False, True])
def test_values_after_a_relu_start_at_exactly_zero(symmetric: bool) -> None:
    """Then the ReLU costs nothing on a CPU: the grid's lowest level is its 0."""
    stats = measured(gauss(), "positive")

    assert stats.zeros == pytest.approx(100_000, rel=0.02)
    for span in candidates(stats, symmetric=symmetric).values():
        assert span.low == 0
        assert 2 < span.high <= stats.high


def test_one_picture_with_one_value_will_do() -> None:
    """Nothing divides by the number of pictures less one."""
    stats = measured(np.array([2.0], np.float32))

    assert candidates(stats, symmetric=False)["minmax"] == Range(low=0.0, high=2.0)


@pytest.mark.parametrize("percentile", [0, -1, 100.1])
def test_a_percentile_that_is_no_share_is_refused(percentile: float) -> None:
    """It would clip all, or nothing, in silence."""
    with pytest.raises(ValueError, match="percentile"):
        candidates(measured(gauss(100)), percentile=percentile, symmetric=False)


def test_extremes_are_exact_by_picture_and_by_channel() -> None:
    """They are what the ranges, the equalization and the stability report stand on."""
    images = pictures(7)
    values = run_plainly("c1", images)
    whole = np.concatenate(values)

    stats = collect(classifier(), "image", images, ["c1"])["c1"]

    assert (stats.low, stats.high) == (whole.min(), whole.max())
    assert stats.image_low.tolist() == [v.min() for v in values]
    assert stats.image_high.tolist() == [v.max() for v in values]
    assert np.array_equal(stats.channel_low, whole.min(axis=(0, 2, 3)))
    assert np.array_equal(stats.channel_high, whole.max(axis=(0, 2, 3)))
    assert np.allclose(stats.channel_mean, whole.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
    assert stats.channel_mean.dtype == np.float32


def test_the_histogram_is_that_of_all_pictures_together() -> None:
    """It must not depend on how the values came in pieces."""
    images = pictures(7)
    whole = np.concatenate(run_plainly("c1", images)).astype(np.float64)

    stats = collect(classifier(), "image", images, ["c1"])["c1"]

    expected, _ = np.histogram(whole, bins=BINS, range=(stats.low, stats.high))
    assert stats.counts.dtype == np.int64
    assert stats.counts.sum() == whole.size
    # A value on an edge may fall to either side: numpy rounds its edges in another order.
    assert np.abs(np.cumsum(stats.counts) - np.cumsum(expected)).max() <= 1


def test_a_2d_tensor_has_its_channels_on_axis_1() -> None:
    """The linear layer's bias is corrected by them."""
    stats = collect(classifier(), "image", pictures(5), ["embedding"])["embedding"]

    assert stats.channel_mean.shape == stats.channel_low.shape == stats.channel_high.shape == (16,)


def test_the_input_itself_can_be_measured() -> None:
    """A foreign model's float input is a tensor with a range like any other."""
    images = pictures(3)

    stats = collect(classifier(), "image", images, ["image", "r1"])

    assert stats["image"].high == max(image.max() for image in images)
    assert list(stats) == ["image", "r1"]


def test_the_model_is_left_as_it_was() -> None:
    """The emitters write it out afterwards."""
    model = classifier()
    before = model.SerializeToString(deterministic=True)

    collect(model, "image", pictures(2), TENSORS)

    assert model.SerializeToString(deterministic=True) == before


def test_one_and_two_threads_give_the_same() -> None:
    """A bundle's bytes must not depend on the machine's cores."""
    one, two = (collect(classifier(), "image", pictures(6), TENSORS, threads=n) for n in (1, 2))

    for name in TENSORS:
        for field in ("counts", "image_low", "image_high", "channel_low", "channel_high", "channel_mean"):
            assert np.array_equal(getattr(one[name], field), getattr(two[name], field)), (name, field)
        assert candidates(one[name], symmetric=False) == candidates(two[name], symmetric=False)


def test_pictures_are_read_one_by_one_in_order_and_at_most_twice() -> None:
    """Thousands of pictures do not fit in memory."""
    images = Reads(pictures(9))

    collect(classifier(), "image", images, TENSORS)

    assert images.asked == [*range(9), *range(9)]


def test_counting_holds_both_ends_and_takes_strays_to_the_nearest_bin() -> None:
    """Two runs of one graph may differ in the last bit; no value may be lost for it."""
    counts = count_values(np.array([-1, -1.1, 0, 1, 1.1], np.float32), -1, 1)

    assert counts[0] == 2
    assert counts[BINS // 2] == 1
    assert counts[-1] == 2
    assert counts.sum() == 5


def quantized(values: Floats, span: Range, *, symmetric: bool) -> NDArray[np.float64]:
    """Values on the grid of 8 bits: the least step that holds the span, and 0 on a level."""
    exact = values.astype(np.float64)
    if symmetric:
        step = span.magnitude / 127
        return np.asarray(np.clip(np.rint(exact / step), -127, 127) * step)
    step = (span.high - span.low) / 255
    zero = np.rint(-span.low / step)
    return np.asarray((np.clip(np.rint(exact / step) + zero, 0, 255) - zero) * step)


def true_error(values: Floats, span: Range, *, symmetric: bool) -> float:
    return float(np.mean((quantized(values, span, symmetric=symmetric) - values) ** 2))


def planted(name: str) -> Floats:
    rng = np.random.default_rng(8)
    if name == "gauss":
        values = rng.normal(0, 1, 40_000)
    elif name == "laplace":
        values = rng.laplace(0, 1, 40_000)
    elif name == "relu":
        values = np.maximum(rng.normal(-0.5, 1, 40_000), 0)
    elif name == "skewed":
        values = rng.exponential(1, 40_000) - 0.3
    elif name == "uniform":
        values = rng.uniform(-1, 2, 40_000)
    else:
        values = np.concatenate([rng.normal(0, 1, 40_000), [25]])
    return values.astype(np.float32)


DISTRIBUTIONS = ("gauss", "laplace", "relu", "skewed", "uniform", "outlier")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_mse_range_has_the_least_error_on_the_data(name: str, symmetric: bool) -> None:
    """Measured by really quantizing with hundreds of other ranges."""
    values = planted(name)
    stats = measured(values)
    low, high = stats.low, stats.high
    tried = [
        true_error(values, Range(low=min(low * a, 0.0), high=high * b), symmetric=symmetric)
        for a in np.linspace(0.05, 1, 15)
        for b in np.linspace(0.05, 1, 30)
    ]

    chosen = candidates(stats, symmetric=symmetric)["mse"]

    assert true_error(values, chosen, symmetric=symmetric) <= min(tried) * 1.02


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_expected_error_is_the_measured_one(name: str, symmetric: bool) -> None:
    """Whoever compares ranges by it compares what will happen."""
    values = planted(name)
    stats = measured(values)

    for method, span in candidates(stats, symmetric=symmetric).items():
        real = true_error(values, span, symmetric=symmetric)

        assert expected_error(stats, span, symmetric=symmetric) == pytest.approx(real, rel=0.1), method


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_far_value_is_clipped_by_all_but_minmax(symmetric: bool) -> None:
    """One hot pixel must not cost all others three bits of five."""
    stats = measured(np.concatenate([gauss(), np.array([30], np.float32)]))

    found = candidates(stats, symmetric=symmetric)

    assert found["minmax"].high == 30
    assert 3 < found["percentile"].high < 7
    assert 3 < found["kl"].high < 7
    # The square of what is cut off one of 200,000 values against a twelfth of the squared step of all, derived by hand.
    assert found["mse"].high == pytest.approx(14.8 if symmetric else 23.1, abs=0.2)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_even_values_are_not_clipped(low: float, symmetric: bool) -> None:
    """There is no tail to gain from."""
    values = np.random.default_rng(2).uniform(low, 1, 400_000).astype(np.float32)

    for method, span in candidates(measured(values), symmetric=symmetric).items():
        assert span.high > 0.97, method
        assert span.low < 0.97 * low or span.low == low == 0, method


@pytest.mark.parametrize("far", [1e3, 1e6, 1e30])
def test_a_value_beyond_all_bins_breaks_nothing(far: float) -> None:
    """All other values lie in one bin then: no method can see inside, but none may fall for it."""
    stats = measured(np.concatenate([gauss(), np.array([far], np.float32)]))

    for symmetric in (False, True):
        for span in candidates(stats, symmetric=symmetric).values():
            assert np.isfinite([span.low, span.high]).all()
            assert span.low <= 0 < span.high <= np.float32(far)


def test_percentile_divides_what_it_cuts_between_both_tails() -> None:
    """The recipe promises the share that is kept."""
    values = gauss()
    span = candidates(measured(values), percentile=99, symmetric=False)["percentile"]

    assert span.low == pytest.approx(np.quantile(values, 0.005), abs=0.01)
    assert span.high == pytest.approx(np.quantile(values, 0.995), abs=0.01)
    assert np.mean((values >= span.low) & (values <= span.high)) == pytest.approx(0.99, abs=0.001)


def test_symmetric_percentile_keeps_a_share_of_the_magnitudes() -> None:
    """A skewed tensor's short tail must not be cut for the long one."""
    values = gauss() + np.float32(1)
    span = candidates(measured(values), percentile=99, symmetric=True)["percentile"]

    assert span.low == -span.high
    assert span.high == pytest.approx(np.quantile(np.abs(values), 0.99), abs=0.01)


def test_symmetric_ranges_of_two_sided_values_are_as_wide_below_as_above() -> None:
    """TensorRT knows no zero point."""
    for span in candidates(measured(gauss() * np.float32(2) + np.float32(1)), symmetric=True).values():
        assert span.low == -span.high
        assert span.magnitude == span.high


def by_picture(height: Callable[[int], float], count: int = 200) -> list[Floats]:
    """Pictures whose values go from 0 to a height that depends on the picture."""
    return [np.array([[[0.0, height(i)]]], np.float32) for i in range(count)]


def test_a_range_that_still_grows_is_named_and_a_full_one_is_not() -> None:
    """The user should add pictures for the one, and not for the other."""
    rng = np.random.default_rng(1)
    tail = rng.pareto(1.5, 200)
    stats = {
        "growing": measured(by_picture(lambda i: float(tail[i]))),
        "saturated": measured(by_picture(lambda i: 6.0)),
        "zero": measured(by_picture(lambda i: 0.0)),
    }

    report = stability(stats, seed=3)

    assert report.growing == ("growing",)
    assert report.images == 200
    growing, saturated, zero = (report.growth[name] for name in stats)
    assert growing is not None
    assert growing.low <= growing.mean <= growing.high
    assert growing.mean > 0.05
    assert saturated == zero
    assert saturated is not None
    assert saturated.high == 0


def test_one_picture_tells_nothing_of_growth() -> None:
    """What could not be checked is not said to be well."""
    report = stability({"same": measured(gauss(100))})

    assert report.growth == {"same": None}
    assert report.growing == ("same",)


def test_growth_is_the_share_of_the_range_that_a_half_had_not_shown() -> None:
    """One of two pictures has the largest value: half of the halves miss half of the range."""
    report = stability({"same": measured(by_picture(lambda i: float(i + 1), count=2))}, rounds=2000)

    growth = report.growth["same"]
    assert growth is not None
    assert growth.mean == pytest.approx(0.25, abs=0.02)
    assert (growth.low, growth.high) == (0, 0.5)


def test_ranges_are_written_the_same_every_time_and_read_back_as_float32() -> None:
    """The file goes into the bundle, whose bytes are compared."""
    stats = collect(classifier(), "image", pictures(6), TENSORS)
    picked: dict[str, tuple[Method, Range]] = {
        name: ("mse", candidates(stats[name], symmetric=False)["mse"]) for name in TENSORS
    }
    report = stability(stats, 0)

    data = ranges_json(stats, picked, report)

    assert ranges_json(dict(reversed(list(stats.items()))), dict(reversed(list(picked.items()))), report) == data
    table = json.loads(data)
    assert table["images"] == 6
    assert set(table["tensors"]) == set(TENSORS)
    entry = table["tensors"]["c1"]
    assert entry["method"] == "mse"
    assert np.float32(entry["low"]) == np.float32(picked["c1"][1].low)
    assert np.float32(entry["seen"]["high"]) == np.float32(stats["c1"].high)
    assert len(entry["histogram"]) == 64
    assert report.to_json()["growth"]["c1"] == entry["growth"]


def test_other_values_have_another_digest() -> None:
    """It says whether two builds saw the same, also where both ranges are alike."""
    ends = np.array([-3, 3], np.float32)
    digests = set()
    for seed in (0, 1):
        stats = {"same": measured(np.concatenate([gauss(1000, seed=seed) / 2, ends]))}
        span = candidates(stats["same"], symmetric=False)["minmax"]
        table = json.loads(ranges_json(stats, {"same": ("minmax", span)}, stability(stats)))
        assert table["tensors"]["same"]["high"] == 3
        digests.add(table["tensors"]["same"]["histogram"])

    assert len(digests) == 2
