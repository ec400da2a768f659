"""The builder on a real TensorRT: TensorRT-RTX parses and builds without a GPU, by the names of TensorRT 11.

Its plan says which convolutions are INT8: a graph that it takes may still run in float, and only the plan shows it.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.engines.trt_api import TensorRt, tensorrt_of
from agent.engines.trt_build import BuildOptions, BuiltPlan, Graphs, build_plan
from agent.engines.trt_open import graphs_of
from agent.errors import EngineError
from optimize.halved import halved
from optimize.quantize import QuantizeOptions, Quantizer
from tests.kit.bundles import make_bundle
from tests.kit.qdq_models import MISTAKES, qdq_net
from tests.kit.topologies import TOPOLOGIES, pictures, saved
from tests.kit.trt_graphs import trt_graphs
from tests.kit.trt_parser import plan_layers
from tools.bench_models.trt_plan import meant_layers

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.filterwarnings("ignore:.*TensorRT-RTX:DeprecationWarning"),
]


@pytest.fixture
def api() -> TensorRt:
    import tensorrt_rtx

    return tensorrt_of(tensorrt_rtx)


def planted(name: str) -> Graphs:
    """A Q/DQ graph with one of the mistakes."""
    model = qdq_net()
    MISTAKES[name].plant(model)
    return Graphs(fp32=b"", qdq=model.SerializeToString())


def floats_of(built: BuiltPlan, graph: bytes | None) -> list[str]:
    """Layers that the graph means to be INT8, and that are not so in the plan; all are there."""
    assert graph is not None
    layers = {layer.name: layer for layer in plan_layers(built.plan)}
    meant = list(meant_layers(graph))
    assert meant
    return [name for name in meant if not layers[name].is_int8]


def test_a_bundles_fp16_graph_becomes_a_plan_with_int8_convolutions(api: TensorRt, tmp_path: Path) -> None:
    """The way that TensorRT 10 and 11 take: INT8 where it is meant, FP16 around it."""
    made = trt_graphs()
    parts = {"fp32": made.fp32, "cpu": made.fp32, "trt": made.qdq, "trt16": made.qdq16}
    files: dict[str, bytes] = {f"model.{kind}.onnx": data for kind, data in parts.items() if data is not None}
    bundle = make_bundle(tmp_path, files=files, graphs={kind: f"model.{kind}.onnx" for kind in parts})

    built = build_plan(api, graphs_of(bundle), BuildOptions())

    assert (built.graph, built.typing, built.notes) == ("trt16", "strong", ())
    assert floats_of(built, made.qdq16) == []
    others = [layer.types for layer in plan_layers(built.plan) if not layer.is_int8]
    assert others
    assert all("half" in types[:2] for types in others)


def test_without_it_the_float32_form_is_built_and_its_rest_is_float32(api: TensorRt) -> None:
    made = dataclasses.replace(trt_graphs(), qdq16=None)
    built = build_plan(api, made, BuildOptions())

    assert (built.graph, built.typing) == ("trt", "strong")
    assert "runs in FP32" in built.notes[0]
    assert floats_of(built, made.qdq) == []
    assert all("half" not in layer.types for layer in plan_layers(built.plan))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_every_way_of_joining_layers_is_built_in_int8(api: TensorRt, name: str, tmp_path: Path) -> None:
    options = QuantizeOptions(method="minmax", equalize="none", correction="none")
    qdq = Quantizer(saved(TOPOLOGIES[name](), tmp_path / "m.onnx"), pictures(4), options).quantize("trt").graph
    half = halved(qdq, pictures(4)).graph

    built = build_plan(api, Graphs(fp32=b"", qdq=qdq, qdq16=half), BuildOptions())

    assert built.graph == ("trt16" if half is not None else "trt")
    assert floats_of(built, half if half is not None else qdq) == []


@pytest.mark.parametrize("name", ["zero point of an activation", "zero points of weights", "int32 bias"])
def test_a_planted_mistake_is_refused_with_the_layers_name(api: TensorRt, name: str) -> None:
    with pytest.raises(EngineError, match="does not build this engine") as raised:
        build_plan(api, planted(name), BuildOptions())

    assert MISTAKES[name].tensorrt in raised.value.message
    node = {"zero points of weights": "conv2.weight: ", "int32 bias": "bias.dq: "}.get(name, "relu1.q: ")
    assert node in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("name", "floats"),
    [("per-channel activation", ["conv1"]), ("float weights", []), ("U8 from 0", [])],
)
def test_per_channel_activations_are_built_without_a_word_and_found_in_the_plan(
    api: TensorRt, name: str, floats: list[str]
) -> None:
    """They run in float: the plan alone shows it."""
    graphs = planted(name)
    built = build_plan(api, graphs, BuildOptions())

    assert floats_of(built, graphs.qdq) == floats


def test_a_refused_fp16_graph_falls_back_to_the_float32_form(api: TensorRt) -> None:
    """And says which graph was refused, and why."""
    made = dataclasses.replace(trt_graphs(), qdq16=planted("negative scale").qdq)
    built = build_plan(api, made, BuildOptions())

    assert built.graph == "trt"
    assert "refused: strongly typed trt16 graph: relu1.q: " in built.notes[0]
    assert "must all be positive" in built.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        {"optimization_level": 0},
        {"workspace_mb": 64},
        {"sparse": True},
        {"precision": "fp32"},
        {"precision": "fp32", "optimization_level": 5},
    ],
)
def test_options_are_taken(api: TensorRt, options: dict[str, Any]) -> None:
    assert len(build_plan(api, trt_graphs(), BuildOptions(**options)).plan) > 1000


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"use_calibration_cache": True}, {"dla_core": 0}])
def test_what_only_older_ones_can_is_refused_in_words(api: TensorRt, options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"TensorRT 1\.7\.1 ") as raised:
        build_plan(api, trt_graphs(), BuildOptions(**options))

    assert raised.value.hint


def test_an_open_batch_is_built_for_one(api: TensorRt) -> None:
    graph = qdq_net(batch="n").SerializeToString()

    assert floats_of(build_plan(api, Graphs(fp32=b"", qdq=graph), BuildOptions()), graph) == []


def test_progress_is_told_step_by_step(api: TensorRt) -> None:
    told: list[tuple[str, int, int]] = []
    build_plan(api, trt_graphs(), BuildOptions(), heard=lambda *step: told.append(step))

    phases = {phase for phase, _step, _steps in told}
    assert len(phases) > 3
    assert all(0 <= step <= steps for _phase, step, steps in told)
    assert told[0][1] == 0
    assert told[-1][0] == told[0][0]
    assert told[-1][1] == told[-1][2]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_listener_ends_the_build(api: TensorRt, kind: type[BaseException]) -> None:
    """Ctrl-C in the middle comes out of `build_plan`, not of TensorRT's own frames."""

    def stop(_phase: str, step: int, _steps: int) -> None:
        if step == 2:
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        build_plan(api, trt_graphs(), BuildOptions(), heard=stop)


def test_timings_in_pieces_do_not_end_the_build(api: TensorRt) -> None:
    assert build_plan(api, trt_graphs(), BuildOptions(), timing_cache=b"\x00torn").plan


REFUSAL = """
import warnings
warnings.simplefilter("ignore")
import tensorrt_rtx
from agent.engines.trt_api import tensorrt_of
from agent.engines.trt_build import BuildOptions, Graphs, build_plan
from agent.errors import EngineError
try:
    build_plan(tensorrt_of(tensorrt_rtx), Graphs(fp32=b"hello"), BuildOptions(precision="fp32"))
except EngineError as error:
    print(error.message)
"""


def test_what_the_builder_logs_is_in_the_message() -> None:
    """In a process of its own: TensorRT hears one logger per process, and here that may be another test's."""
    done = subprocess.run([sys.executable, "-c", REFUSAL], capture_output=True, text=True, check=True, timeout=120)

    assert "TensorRT 1.7.1 does not build this engine: strongly typed fp32 graph: " in done.stdout
    assert "Network must have at least one output" in done.stdout
