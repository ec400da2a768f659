"""Layer by layer: corrections help on pictures that they have not seen, and come out the same on every machine."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.quantize.graph import Graph
from optimize.quantize.interpret import Interpreter, session_of
from optimize.quantize.layers import find_layers
from optimize.quantize.moments import Moments, padding, patches
from optimize.quantize.place import Target
from optimize.quantize.quantizer import QuantizeOptions, Quantizer
from optimize.quantize.reconstruct import Correction
from optimize.quantize.weights import column_order
from tests.kit.topologies import SIDE, TOPOLOGIES, WIDTH, Net, pictures, prepared, run, saved, snr

TARGETS: tuple[Target, ...] = ("cpu", "trt")


def conv(
    sides: tuple[int, int, int], shape: tuple[int, int, int, int], **attributes: Any
) -> tuple[Graph, NDArray[np.float32], NDArray[np.float32]]:
    """A convolution alone; what it reads, and what ONNX Runtime makes of it."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 1, shape).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="layer", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.normal(0, 1, (1, *sides)).astype(np.float32)
    return Graph(model), x, session_of(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("sides", "shape", "attributes"),
    [
        ((4, 9, 7), (6, 4, 3, 3), {}),
        ((4, 9, 7), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((4, 9, 7), (6, 4, 3, 3), {"pads": [2, 0, 1, 3]}),
        ((4, 9, 7), (6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((4, 9, 8), (6, 4, 3, 5), {"pads": [1, 2, 1, 2], "strides": [1, 3]}),
        ((4, 11, 9), (6, 4, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
        ((4, 12, 9), (6, 4, 3, 3), {"dilations": [2, 1], "strides": [2, 2]}),
        ((6, 8, 8), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
        ((5, 8, 8), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((5, 8, 8), (10, 1, 3, 3), {"group": 5}),
        ((7, 6, 6), (3, 7, 1, 1), {"strides": [2, 2]}),
        ((4, 9, 7), (6, 4, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
        *(
            ((4, *sides), (6, 4, *kernel), {"auto_pad": auto, "strides": strides})
            for auto in ("SAME_UPPER", "SAME_LOWER")
            for sides in ((9, 8), (8, 9))
            for kernel in ((3, 3), (2, 4))
            for strides in ([1, 1], [2, 2], [3, 2])
        ),
        ((6, 9, 8), (6, 2, 3, 3), {"auto_pad": "SAME_LOWER", "group": 3, "strides": [2, 2]}),
    ],
)
def test_patches_times_weights_are_the_convolution(
    sides: tuple[int, int, int], shape: tuple[int, int, int, int], attributes: dict[str, Any]
) -> None:
    """A patch from the wrong place would fit weights to what the layer never reads."""
    graph, x, wanted = conv(sides, shape, **attributes)
    layer = find_layers(graph)["layer"]
    outputs = wanted[0].reshape(layer.channels, -1)
    places = np.random.default_rng(2).permutation(outputs.shape[1])[:20]

    found = patches(layer, x, places)

    rows = layer.rows()[:, column_order(layer.weight.shape[1:])].reshape(layer.groups, -1, found.shape[2])
    made = np.einsum("gpk,gok->gop", found, rows).reshape(layer.channels, -1)
    assert made == pytest.approx(outputs[:, places], rel=1e-4, abs=1e-4)


def test_auto_padding_that_needs_none_gives_none() -> None:
    """A kernel smaller than its stride."""
    graph, x, _ = conv((2, 8, 8), (3, 2, 1, 1), auto_pad="SAME_UPPER", strides=[2, 2])

    assert padding(find_layers(graph)["layer"], x.shape) == (0, 0, 0, 0)


def test_moments_are_those_of_all_places_at_once() -> None:
    """However they come in, and in whichever fold."""
    rng = np.random.default_rng(3)
    x, y = (rng.normal(3, 1, (2, 60, n)).astype(np.float32) for n in (5, 4))
    moments = Moments.empty(2, 4, 5)
    for fold, places in ((0, slice(0, 10)), (1, slice(10, 35)), (0, slice(35, 60))):
        moments.add(fold, x[:, places], y[:, places])

    xx, yx, yy = moments.centred()
    first, *_ = moments.centred((1,))

    for group in range(2):
        both = np.cov(np.concatenate([x[group], y[group]], axis=1).T, bias=True)
        assert xx[group] == pytest.approx(both[:5, :5], rel=1e-3, abs=1e-4)
        assert yx[group] == pytest.approx(both[5:, :5], rel=1e-3, abs=1e-4)
        assert yy[group] == pytest.approx(np.diagonal(both)[5:], rel=1e-3, abs=1e-4)
        assert first[group] == pytest.approx(np.cov(x[group, 10:35].T, bias=True), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("has_names", [True, False])
def test_nodes_run_one_by_one_give_what_the_graph_gives(has_names: bool) -> None:
    """Layers are fitted to these values; names of nodes may be missing."""
    graph = prepared(TOPOLOGIES["gate"]())
    image = pictures(1)[0]
    for node in [] if has_names else graph.nodes:
        node.name = ""
    interpreter = Interpreter(graph)
    values: dict[str, NDArray[Any]] = {"image": image}

    for node in graph.nodes:
        outputs = interpreter.run(node, [values.get(name) for name in node.input])
        values |= dict(zip(node.output, outputs, strict=True))

    assert values["logits"] == pytest.approx(run(graph.model.SerializeToString(), [image]), rel=1e-5, abs=1e-5)


def biased() -> onnx.ModelProto:
    """A layer whose weights lie 0.45 steps above one, all of them: to nearest, every output loses by it."""
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    wrong = net.feature(last, "wrong", (WIDTH, WIDTH))
    weights = np.full((WIDTH, WIDTH, 3, 3), 0.45 / 127)
    weights[np.arange(WIDTH), np.arange(WIDTH), 1, 1] = 1
    net.constant("wrong.weight", weights * np.linspace(0.5, 2, WIDTH)[:, None, None, None])
    net.classify(net.feature(wrong, "last", (WIDTH, WIDTH)))
    return net.finish({"logits": [1, 4], "wrong_relu": [1, WIDTH, SIDE // 2, SIDE // 2]})


@functools.cache
def losses(correction: Correction, target: Target) -> tuple[float, float]:
    """Largest mean error of the biased layer's channels relative to the values' spread, and dB of the logits."""
    options = QuantizeOptions(correction=correction, equalize="none", method="minmax")
    with tempfile.TemporaryDirectory() as folder:
        model = saved(biased(), Path(folder) / "m.onnx")
        quantizer = Quantizer(model, pictures(32), options)
    found = quantizer.quantize(target).graph
    fresh = pictures(32, seed=44)
    exact = quantizer.graph.model.SerializeToString()
    wanted, got = (run(graph, fresh, output="wrong_relu") for graph in (exact, found))
    mean = np.abs((got - wanted).mean(axis=(0, 2, 3))) / wanted.std()
    return float(mean.max()), snr(run(exact, fresh), run(found, fresh))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("correction", ["fast", "full", "weights"])
def test_a_mean_error_goes_away_on_pictures_that_were_not_seen(correction: Correction, target: Target) -> None:
    """All of the planted error has one sign."""
    before, after = losses("none", target), losses(correction, target)

    assert before[0] > 0.03
    assert after[0] < 0.35 * before[0]
    assert after[1] > before[1] + 3


@pytest.mark.parametrize("target", TARGETS)
def test_fitted_weights_leave_less_noise_than_corrected_biases(target: Target) -> None:
    """What the mean can't take."""
    assert losses("weights", target)[1] > losses("full", target)[1]


@pytest.mark.parametrize("name", ["residual", "depthwise", "gate", "grouped", "two_filters", "resized"])
def test_correcting_makes_no_topology_worse(name: str, tmp_path: Path) -> None:
    """Held against rounding alone, on pictures that were not seen."""
    model = saved(TOPOLOGIES[name](), tmp_path / "m.onnx")
    fresh = pictures(32, seed=45)
    found = {}
    for correction in ("none", "weights"):
        options = QuantizeOptions(correction=correction, equalize="none", method="minmax")
        quantizer = Quantizer(model, pictures(32), options)
        wanted = run(quantizer.graph.model.SerializeToString(), fresh)
        found[correction] = snr(wanted, run(quantizer.quantize("cpu").graph, fresh))

    assert found["weights"] > found["none"] - 0.5


def faint() -> onnx.ModelProto:
    """Edges of a bright and nearly even picture: eight bits hold little of them, and the last layer makes up for it."""
    rng = np.random.default_rng(0)
    net = Net()
    last = net.feature("x", "stem", (3, WIDTH), stride=2)
    net.constant("stem.weight", 0.003 * rng.normal(size=(WIDTH, 3, 3, 3)))
    net.constant("stem.bias", np.full(WIDTH, 3.0))
    edges = net.feature(last, "edges", (WIDTH, WIDTH))
    weights = rng.normal(size=(WIDTH, WIDTH, 3, 3))
    net.constant("edges.weight", 5 * (weights - weights.mean(axis=(1, 2, 3), keepdims=True)))
    net.constant("edges.bias", np.zeros(WIDTH))
    return net.classify(net.feature(edges, "last", (WIDTH, WIDTH)))


@pytest.mark.parametrize("target", TARGETS)
def test_layers_behind_one_in_float_make_up_for_nothing_that_is_not_there(target: Target, tmp_path: Path) -> None:
    """Seen on a detector: 19 dB in INT8, and 5 dB with the worst layer in float, fitted to errors that were gone."""
    options = QuantizeOptions(equalize="none", method="minmax")
    quantizer = Quantizer(saved(faint(), tmp_path / "m.onnx"), pictures(32), options)
    fresh = pictures(32, seed=45)
    wanted = run(quantizer.graph.model.SerializeToString(), fresh)

    whole, partly = (
        snr(wanted, run(quantizer.quantize(target, in_float).graph, fresh))
        for in_float in (frozenset(), frozenset({"stem", "edges"}))
    )

    assert partly > whole + 1


def wide() -> onnx.ModelProto:
    """Wide enough that a linear algebra library shares its work among threads."""
    net = Net()
    last = net.feature("x", "stem", (3, 32), stride=2)
    last = net.feature(last, "middle", (32, 32))
    return net.classify(net.feature(last, "last", (32, 32)), channels=32)


def digests(path: Path) -> list[str]:
    """Of both targets' graphs."""
    from optimize.quantize.model import read_model

    quantizer = Quantizer(read_model(path), pictures(16), QuantizeOptions(equalize="none", method="minmax"))
    return [hashlib.sha256(quantizer.quantize(target).graph).hexdigest() for target in TARGETS]


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    """A bundle must come out the same on a laptop and on a server: sums in another order round other weights."""
    path = tmp_path / "m.onnx"
    saved(wide(), path)
    script = (
        "import pathlib; from tests.optimize.test_reconstruct import digests;"
        f"print(digests(pathlib.Path({str(path)!r})))"
    )
    root = Path(__file__).resolve().parents[2]

    printed = []
    for threads in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        }
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
        )
        printed.append(done.stdout)

    assert len(printed[0]) > 100
    assert printed[0] == printed[1]
