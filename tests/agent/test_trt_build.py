"""The builder on each TensorRT's stand-in: which graph, which flags, what it falls back to, and what it says."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import onnxruntime
import pytest

from agent.engines.trt_api import TensorRt, load_tensorrt
from agent.engines.trt_build import BuildOptions, BuiltPlan, Graphs, build_plan
from agent.errors import ConfigError, EngineError
from tests.kit.qdq_models import MISTAKES, qdq_net
from tests.kit.tensorrt import VERSIONS, World, installed, read_plan
from tests.kit.trt_graphs import some_pictures, trt_graphs

WITH_FLAGS = ("8.6.1", "10.3.0", "10.13.3", "10.16.1")
TEN = ("10.3.0", "10.13.3", "10.16.1")
ELEVEN = ("11.1.0", "11.4.0")


def build(world: World, options: BuildOptions | None = None, graphs: Graphs | None = None, **more: Any) -> BuiltPlan:
    """Build with the stand-in that is installed."""
    assert load_tensorrt().module is world.module
    return build_plan(load_tensorrt(), graphs or trt_graphs(), options or BuildOptions(), **more)


def sha256(data: bytes | None) -> str:
    assert data is not None
    return hashlib.sha256(data).hexdigest()


def outputs_of(api: TensorRt, plan: bytes, picture: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a plan once, as short as it goes."""
    runtime = api.module.Runtime(api.log)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    values: dict[str, np.ndarray[Any, Any]] = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        is_input = engine.get_tensor_mode(name) == api.module.TensorIOMode.INPUT
        kind = api.module.nptype(engine.get_tensor_dtype(name))
        values[name] = picture.copy() if is_input else np.zeros(tuple(engine.get_tensor_shape(name)), kind)
        assert context.set_tensor_address(name, values[name].ctypes.data)
    assert context.execute_async_v3(0)
    return values


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_an_int8_engine_that_computes_what_the_graph_says(version: str) -> None:
    """ONNX Runtime on the graph that was built is the reference."""
    picture = some_pictures(1)[0]
    with installed(version) as world:
        built = build(world)
        values = outputs_of(load_tensorrt(), built.plan, picture)

    graph = {"trt16": trt_graphs().qdq16, "trt": trt_graphs().qdq}[built.graph]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(graph, options).run(["logits"], {"image": picture})[0]
    assert np.array_equal(values["logits"], expected)
    assert built.notes == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_of_tensorrt_outlives_a_build(version: str) -> None:
    with installed(version) as world:
        build(world)

        assert world.live() == {}


def test_8_6_is_weakly_typed_with_an_explicit_batch() -> None:
    with installed("8.6.1") as world:
        built = build(world)
        asked = world.builds[-1]

    assert (built.typing, built.graph) == ("weak", "trt")
    assert asked.graph_sha256 == sha256(trt_graphs().qdq)
    assert asked.network_flags == ("EXPLICIT_BATCH",)
    assert {"FP16", "INT8"} <= set(asked.flags)


@pytest.mark.parametrize("version", TEN)
def test_10_is_strongly_typed_and_no_precision_flag_is_set(version: str) -> None:
    """TensorRT refuses precision flags there."""
    with installed(version) as world:
        built = build(world)
        asked = world.builds[-1]

    assert (built.typing, built.graph) == ("strong", "trt16")
    assert asked.graph_sha256 == sha256(trt_graphs().qdq16)
    assert asked.network_flags == ("STRONGLY_TYPED",)
    assert not {"FP16", "INT8"} & set(asked.flags)


@pytest.mark.parametrize("version", ELEVEN)
def test_11_gets_no_flag_at_all(version: str) -> None:
    """The bit that meant STRONGLY_TYPED in 10 means something else there."""
    with installed(version) as world:
        built = build(world)
        asked = world.builds[-1]

    assert (built.typing, built.graph) == ("strong", "trt16")
    assert asked.network_flags == ()


@pytest.mark.parametrize("version", TEN)
def test_where_10_refuses_strong_typing_the_weak_way_is_taken_and_told(version: str) -> None:
    """Seen on Orin: NVIDIA/TensorRT#4832."""
    with installed(version, strong_typing_fails=True) as world:
        built = build(world)
        asked = world.builds[-1]

    assert (built.typing, built.graph) == ("weak", "trt")
    assert {"FP16", "INT8"} <= set(asked.flags)
    assert asked.network_flags == ("EXPLICIT_BATCH",)
    (note,) = built.notes
    assert "weakly typed from the trt graph; refused: strongly typed trt16 graph" in note
    assert "Could not infer output types" in note


def test_where_both_ways_fail_both_reasons_are_told() -> None:
    graphs = dataclasses.replace(trt_graphs(), qdq=planted("zero point of an activation"))
    with installed("10.3.0", strong_typing_fails=True) as world:
        with pytest.raises(EngineError) as raised:
            build(world, graphs=graphs)

        assert world.live() == {}

    assert "strongly typed trt16 graph: " in raised.value.message
    assert "weakly typed trt graph: relu1.q: " in raised.value.message
    assert "Non-zero zero point is not supported" in raised.value.message
    assert "rebuild the bundle" in str(raised.value.hint)


@pytest.mark.parametrize("version", ELEVEN)
def test_a_bundle_without_fp16_graph_runs_its_rest_in_fp32_on_11_and_is_told_so(version: str) -> None:
    with installed(version) as world:
        built = build(world, graphs=dataclasses.replace(trt_graphs(), qdq16=None))

    assert (built.typing, built.graph) == ("strong", "trt")
    assert "runs in FP32" in built.notes[0]


def test_a_bundle_without_fp16_graph_is_weakly_typed_on_10() -> None:
    with installed("10.3.0") as world:
        built = build(world, graphs=dataclasses.replace(trt_graphs(), qdq16=None))

    assert (built.typing, built.graph) == ("weak", "trt")
    assert built.notes == ("weakly typed: the bundle has no trt16 graph for a strongly typed network",)


def test_8_6_can_not_take_a_bundle_with_the_fp16_graph_alone() -> None:
    with (
        installed("8.6.1") as world,
        pytest.raises(EngineError, match="needs the bundle's trt graph, it has only trt16"),
    ):
        build(world, graphs=dataclasses.replace(trt_graphs(), qdq=None))


def test_a_bundle_without_int8_graph_says_how_to_get_one() -> None:
    with installed("10.3.0") as world, pytest.raises(EngineError, match="no INT8 graph") as raised:
        build(world, graphs=Graphs(fp32=trt_graphs().fp32))

    assert "defect-opt build --int8" in str(raised.value.hint)


@pytest.mark.parametrize("version", WITH_FLAGS)
def test_fp16_is_a_flag_on_the_float_graph(version: str) -> None:
    with installed(version) as world:
        built = build(world, BuildOptions(precision="fp16"))
        asked = world.builds[-1]

    assert (built.graph, asked.graph_sha256) == ("fp32", sha256(trt_graphs().fp32))
    assert set(asked.flags) == {"FP16", "TF32"}


@pytest.mark.parametrize("version", ELEVEN)
def test_fp16_alone_is_not_to_be_had_on_11_and_no_float32_engine_passes_for_it(version: str) -> None:
    with installed(version) as world, pytest.raises(EngineError, match="takes the precision from the graph"):
        build(world, BuildOptions(precision="fp16"))


@pytest.mark.parametrize("version", VERSIONS)
def test_fp32_is_fp32_and_not_tf32(version: str) -> None:
    with installed(version) as world:
        built = build(world, BuildOptions(precision="fp32"))

        assert world.builds[-1].flags == ()
        assert built.graph == "fp32"


@pytest.mark.parametrize("version", VERSIONS)
def test_options_arrive(version: str) -> None:
    options = BuildOptions(workspace_mb=256, optimization_level=5, version_compatible=True, sparse=True)
    with installed(version) as world:
        build(world, options)
        asked = world.builds[-1]

    assert asked.workspace_bytes == 256 * 2**20
    assert asked.optimization_level == 5
    assert {"VERSION_COMPATIBLE", "SPARSE_WEIGHTS"} <= set(asked.flags)
    assert asked.device_type == "GPU"


def test_without_options_tensorrts_own_defaults_hold() -> None:
    with installed("10.3.0") as world:
        build(world)
        asked = world.builds[-1]

    assert asked.optimization_level == 3
    assert asked.workspace_bytes == 2**30
    assert asked.flags == ("TF32",)


@pytest.mark.parametrize("version", WITH_FLAGS)
def test_int8_by_calibration_reads_the_bundles_cache_under_this_releases_own_header(version: str) -> None:
    """TensorRT refuses a cache whose first line is of another release; the bundle's says 8.6.1."""
    with installed(version) as world:
        built = build(world, BuildOptions(use_calibration_cache=True))
        asked = world.builds[-1]
        expected = world.cache_header

    cache = trt_graphs().calibration
    assert cache is not None
    assert asked.calibration.splitlines()[0] == expected
    assert asked.calibration.splitlines()[1:] == cache.decode().splitlines()[1:]
    assert asked.graph_sha256 == sha256(trt_graphs().fp32)
    assert {"FP16", "INT8"} <= set(asked.flags)
    assert built.notes == ()


@pytest.mark.parametrize("version", ELEVEN)
def test_11_has_no_calibration(version: str) -> None:
    with installed(version) as world, pytest.raises(EngineError, match="has no calibration any more"):
        build(world, BuildOptions(use_calibration_cache=True))


@pytest.mark.parametrize(("cache", "words"), [(None, "no calib.cache"), (b"hello", "expected TRT-NUMBER")])
def test_a_bundle_without_a_cache_that_can_be_read_is_refused(cache: bytes | None, words: str) -> None:
    with installed("10.3.0") as world, pytest.raises(EngineError, match=words):
        build(
            world,
            BuildOptions(use_calibration_cache=True),
            graphs=dataclasses.replace(trt_graphs(), calibration=cache),
        )


def test_tensors_that_the_cache_does_not_know_are_named() -> None:
    """They run in FP16; nobody else would say so."""
    graphs = dataclasses.replace(trt_graphs(), calibration=b"TRT-8601-EntropyCalibration2\nimage: 3c008912\n")
    with installed("10.3.0") as world:
        built = build(world, BuildOptions(use_calibration_cache=True), graphs=graphs)

    (note,) = built.notes
    assert note.startswith("calib.cache has no range of ")
    assert "more" in note


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_dla_takes_the_calibration_cache_and_says_what_stays_on_the_gpu(version: str) -> None:
    with installed(version, dla_cores=2) as world:
        built = build(world, BuildOptions(dla_core=1))
        asked = world.builds[-1]

    assert (asked.device_type, asked.dla_core) == ("DLA", 1)
    assert {"GPU_FALLBACK", "INT8", "FP16"} <= set(asked.flags)
    assert asked.calibration
    assert "INT8 from the calibration cache: DLA takes no Q/DQ graph" in built.notes
    (fallen,) = [note for note in built.notes if note.startswith("DLA core 1: ")]
    assert "of 12 layers run on the GPU: " in fallen
    assert "linear" in fallen


def test_dla_in_fp16_needs_no_calibration() -> None:
    with installed("10.3.0", dla_cores=1) as world:
        build(world, BuildOptions(dla_core=0, precision="fp16"))
        asked = world.builds[-1]

    assert asked.calibration == ""
    assert {"GPU_FALLBACK", "FP16"} <= set(asked.flags)
    assert "INT8" not in asked.flags


@pytest.mark.parametrize(("version", "words"), [("10.3.0", "finds 2 on this machine"), ("10.13.3", "finds 0 on")])
def test_a_dla_core_that_is_not_there_is_told(version: str, words: str) -> None:
    """10.7 was the last release with DLA: later ones find no core, whatever the board has."""
    with installed(version, dla_cores=2) as world, pytest.raises(EngineError, match=words):
        build(world, BuildOptions(dla_core=2))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_second_build_starts_from_the_timings_of_the_first(version: str) -> None:
    with installed(version) as world:
        first = build(world)
        second = build(world, timing_cache=first.timing_cache)

        assert world.builds[0].timing_entries == 0
        assert world.builds[1].timing_entries > 0
        assert second.notes == ()


@pytest.mark.parametrize("device", ["Orin NX", "Orin"])
def test_timings_of_another_device_or_in_pieces_are_left_unused_with_a_note(device: str) -> None:
    with installed("10.3.0") as world:
        cache = build(world).timing_cache
    assert cache is not None
    given = cache if device != "Orin" else b"\x00torn"
    with installed("10.3.0", device=device) as world:
        built = build(world, timing_cache=given)

        assert world.builds[-1].timing_entries == 0
    (note,) = built.notes
    assert note.startswith("the timing cache did not fit")
    assert built.timing_cache


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_is_told_phase_by_phase(version: str) -> None:
    """TensorRT 8 has no monitor: the start and the end are all that can be told."""
    told: list[tuple[str, int, int]] = []
    with installed(version) as world:
        build(world, heard=lambda phase, step, steps: told.append((phase, step, steps)))

        assert world.builds[-1].is_watched == (version != "8.6.1")

    assert all(0 <= step <= steps for _phase, step, steps in told)
    assert told[0][1] == 0
    assert told[-1][1] == told[-1][2]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, EngineError])
def test_what_a_listener_raises_ends_the_build_and_comes_out_as_it_is(version: str, kind: type[BaseException]) -> None:
    """Ctrl-C in a build of ten minutes; nothing may be raised through TensorRT, and no other way is tried after it."""

    def stop(_phase: str, _step: int, _steps: int) -> None:
        raise kind("stop")

    with installed(version) as world:
        with pytest.raises(kind, match="stop"):
            build(world, heard=stop)

        assert world.builds == []


def planted(name: str) -> bytes:
    """A Q/DQ graph with one of the mistakes."""
    model = qdq_net()
    MISTAKES[name].plant(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["zero point of an activation", "U8 around 128", "negative scale", "int32 bias"])
def test_what_the_parser_refuses_is_told_with_the_node_and_its_words(version: str, name: str) -> None:
    with installed(version) as world, pytest.raises(EngineError) as raised:
        build(world, graphs=Graphs(fp32=b"", qdq=planted(name)))

    assert f"TensorRT {version} does not build this engine: " in raised.value.message
    assert MISTAKES[name].tensorrt in raised.value.message.replace("input has type", "has type")
    where = {"8.6.1": "node "}.get(version, "bias.dq: " if name == "int32 bias" else "relu1.q: ")
    assert where in raised.value.message


def test_what_was_said_before_is_not_the_reason() -> None:
    """The process has one logger, and a line has used it for days."""
    with installed("10.3.0", needs_workspace_mb=4096) as world:
        api = load_tensorrt()
        api.log.log(world.module.ILogger.ERROR, "an old error")
        with pytest.raises(EngineError, match="insufficient workspace") as raised:
            build(world)
        assert "an old error" not in raised.value.message
    with installed("10.3.0") as world:
        load_tensorrt().log.log(world.module.ILogger.WARNING, "Missing scale and zero-point for tensor old, expect")

        assert build(world).notes == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_no_onnx_is_refused(version: str) -> None:
    with installed(version) as world, pytest.raises(EngineError, match="does not build this engine"):
        build(world, BuildOptions(precision="fp32"), graphs=Graphs(fp32=b"hello"))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_open_batch_is_built_for_one(version: str) -> None:
    graph = qdq_net(batch="n").SerializeToString()
    with installed(version) as world:
        plan = build(world, graphs=Graphs(fp32=b"", qdq=graph)).plan

    assert read_plan(plan).graph_sha256 == sha256(graph)


def test_an_open_height_is_refused() -> None:
    model = qdq_net()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with installed("10.3.0") as world, pytest.raises(EngineError, match="only the batch may be open"):
        build(world, graphs=Graphs(fp32=b"", qdq=model.SerializeToString()))


@pytest.mark.parametrize("version", VERSIONS)
def test_no_gpu_is_told_with_what_to_look_at(version: str) -> None:
    with installed(version, no_gpu=True) as world, pytest.raises(EngineError, match="finds no GPU") as raised:
        build(world)

    assert "CUDA initialization failure with error: 35" in raised.value.message
    assert "groups video and render" in str(raised.value.hint)


def test_too_little_workspace_says_so() -> None:
    with (
        installed("8.6.1", needs_workspace_mb=512) as world,
        pytest.raises(EngineError, match="insufficient workspace") as raised,
    ):
        build(world, BuildOptions(workspace_mb=16))

    assert "workspace_mb" in str(raised.value.hint)


@pytest.mark.parametrize("version", VERSIONS)
def test_out_of_memory_says_what_to_free(version: str) -> None:
    with (
        installed(version, build_out_of_memory=True) as world,
        pytest.raises(EngineError, match="out of memory") as raised,
    ):
        build(world)

    assert "swap" in str(raised.value.hint)


CALLS = (
    "Builder.create_network",
    "OnnxParser.__init__",
    "OnnxParser.parse",
    "Builder.create_builder_config",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.set_timing_cache",
    "Builder.build_serialized_network",
    "ITimingCache.serialize",
)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("version", ["8.6.1", "11.4.0"])
def test_an_exception_from_any_call_is_an_engine_error_and_leaves_nothing(version: str, name: str) -> None:
    """A C++ exception becomes a RuntimeError in Python."""
    graphs = dataclasses.replace(trt_graphs(), qdq16=None)
    with installed(version) as world:
        world.fail(name)
        with pytest.raises(EngineError, match=f"planted: {name}"):
            build(world, graphs=graphs)

        assert world.calls[name] == 1
        assert world.live() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "got 'int4'"),
        ({"workspace_mb": 0}, "got 0 MiB"),
        ({"optimization_level": 6}, "got 6, expected 0 to 5"),
        ({"optimization_level": -1}, "got -1, expected 0 to 5"),
        ({"dla_core": -1}, "got -1, expected 0 or more"),
        ({"dla_core": 0, "precision": "fp32"}, "DLA computes in int8 or fp16"),
        ({"use_calibration_cache": True, "precision": "fp16"}, "is for precision int8"),
    ],
)
def test_options_that_make_no_sense_are_the_users_mistake(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BuildOptions(**options)


def test_each_option_changes_the_key() -> None:
    """An engine built with other options is another engine."""
    changes: list[dict[str, Any]] = [
        {"precision": "fp16"},
        {"workspace_mb": 512},
        {"optimization_level": 3},
        {"version_compatible": True},
        {"dla_core": 0},
        {"sparse": True},
        {"use_calibration_cache": True},
    ]
    keys = [BuildOptions(**change).key() for change in ({}, *changes)]

    assert {name for change in changes for name in change} == {f.name for f in dataclasses.fields(BuildOptions)}
    assert len(set(keys)) == len(keys)
    assert BuildOptions().key() == BuildOptions().key()
