"""CUDA graphs: one inference recorded once and launched for each picture, and never one that misses a part of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from agent.bundle import Outputs
from agent.engines.onnxrt import OnnxRuntimeEngine
from agent.engines.trt import is_same
from agent.errors import EngineError
from tests.kit.gpus import Machine, machine, why_not
from tests.kit.libcuda import LibCuda
from tests.kit.models import classifier, constant_classifier
from tests.kit.tensorrt import World, installed
from tests.kit.tensorrt.running import ContextPart
from tests.kit.trt_engines import SPEC, VERSION, assert_same, opened, picture, plan_of


@pytest.fixture
def world() -> Iterator[World]:
    with installed(VERSION) as made:
        yield made


@pytest.fixture
def enqueued(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """cuda-python, and a TensorRT whose work goes to the stream, as the real one's does: it can be recorded."""
    reason = why_not("cuda-python")
    if reason is not None:
        pytest.skip(f"cuda-python: {reason}")
    with machine("cuda-python") as made:
        kept = _enqueue_work(made, monkeypatch)
        yield made
        assert made.live == {}
        assert kept


def _enqueue_work(made: Machine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    assert isinstance(made.ledger, LibCuda)
    library, run = made.ledger.library, ContextPart.execute_async_v3
    kept: list[Any] = []

    def execute_async_v3(part: ContextPart, stream_handle: int) -> bool:
        kept.append(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _data: _work(run, part, stream_handle)))
        code = library.cuLaunchHostFunc(ctypes.c_void_p(stream_handle), kept[-1], None)
        return int(code) == 0

    monkeypatch.setattr(ContextPart, "execute_async_v3", execute_async_v3)
    return kept


def _work(run: Callable[[ContextPart, int], bool], part: ContextPart, stream_handle: int) -> None:
    """What the GPU does when it gets there."""
    run(part, stream_handle)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_launch_that_writes_nothing_leaves_no_numbers(
    world: World, enqueued: Machine, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """The outputs are spoiled before each launch, too: the last part's result does not stand in them."""
    engine = opened(enqueued, mapped=mapped)
    assert engine.name.endswith(", CUDA graph")
    assert_same(engine)
    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}._work", lambda *_: None)
        got = engine.infer(picture(7))

    assert all(np.isnan(values).all() for values in got.values())
    assert_same(engine)
    engine.close()


def test_a_cuda_graph_is_recorded_once_and_launched_for_each_picture(world: World, enqueued: Machine) -> None:
    """The name says so; TensorRT is not asked again."""
    engine = opened(enqueued)
    asked = world.calls["IExecutionContext.execute_async_v3"]

    assert engine.name.endswith(", CUDA graph")
    assert engine.notes == ()
    assert_same(engine)
    assert world.calls["IExecutionContext.execute_async_v3"] == asked
    engine.close()


def test_a_cuda_graph_works_on_mapped_memory_too(world: World, enqueued: Machine) -> None:
    """Nothing is left to record but the run."""
    engine = opened(enqueued, mapped=True)

    assert engine.name.endswith(", mapped memory, CUDA graph")
    assert_same(engine)
    engine.close()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("graph", [classifier(), constant_classifier((0.0, 1.0, 0.0))], ids=["sees", "blind"])
def test_a_recording_that_misses_the_work_is_not_used(world: World, graph: bytes, mapped: bool) -> None:
    """It would give the last picture's results for ever: the plain way is taken, and a note says why."""
    if (reason := why_not("cuda-python")) is not None:
        pytest.skip(f"cuda-python: {reason}")
    with machine("cuda-python") as gpu:  # here the stand-in runs at once, and the recording has the copies only
        engine = opened(gpu, plan_of(graph), mapped=mapped, outputs=Outputs(logits="logits"))

        assert "CUDA graph" not in engine.name
        assert engine.notes == ("no CUDA graph: the recorded one gives other results than the plain way",)
        expected = OnnxRuntimeEngine(graph, threads=1, label="", spec=SPEC, outputs=Outputs(logits="logits"))
        got = engine.infer(picture(5))["logits"]
        np.testing.assert_allclose(got, expected.infer(picture(5))["logits"], rtol=1e-4, atol=1e-5)
        engine.close()
        assert gpu.live == {}


def test_a_recording_that_the_driver_refuses_is_done_without(world: World, enqueued: Machine) -> None:
    """The plain way works as before."""
    enqueued.fail(call="cuGraphInstantiate", code=801)
    engine = opened(enqueued)

    assert "CUDA graph" not in engine.name
    assert "operation not supported" in engine.notes[0]
    assert_same(engine)
    engine.close()


def test_a_recording_that_misses_the_picture_is_not_used(world: World, enqueued: Machine) -> None:
    """It would judge one and the same picture for ever, and write fresh results each time."""
    assert isinstance(enqueued.ledger, LibCuda)
    enqueued.ledger.library.standin_be_forgetful()
    engine = opened(enqueued)

    assert "CUDA graph" not in engine.name
    assert engine.notes == ("no CUDA graph: the recorded one gives other results than the plain way",)
    assert_same(engine)
    engine.close()


def test_a_recording_is_not_used_where_nothing_can_prove_it(world: World, enqueued: Machine) -> None:
    """A model that says the same to both test pictures may say it to every part: the recording may miss them."""
    assert isinstance(enqueued.ledger, LibCuda)
    enqueued.ledger.library.standin_be_forgetful()
    blind = constant_classifier((0.0, 1.0, 0.0))
    engine = opened(enqueued, plan_of(blind), outputs=Outputs(logits="logits"))

    assert "CUDA graph" not in engine.name
    assert engine.notes == ("no CUDA graph: the model says the same to both test pictures, so it can't be proven",)
    engine.close()


def test_a_launch_that_fails_is_a_fault_and_the_next_picture_is_judged(world: World, enqueued: Machine) -> None:
    """The results of the part before lie in the buffers."""
    engine = opened(enqueued)
    assert_same(engine)
    enqueued.fail(call="cuGraphLaunch")

    with pytest.raises(EngineError, match="launching a graph failed"):
        engine.infer(picture(7))

    enqueued.fail()
    assert_same(engine)
    engine.close()


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ([1.0, 2.0], [1.0, 2.01], True),
        ([1.0, 2.0], [1.0, 2.5], False),
        ([900.0, np.inf], [1.0, np.inf], False),
        ([np.nan], [np.nan], False),
        ([np.nan, 1.0], [1.0, 1.0], False),
    ],
)
def test_what_is_no_number_proves_nothing(got: list[float], expected: list[float], same: bool) -> None:
    """FP16 overflows; all that is finite would lie within a percent of infinity."""
    assert is_same(np.array(got, np.float32), np.array(expected, np.float32)) is same
