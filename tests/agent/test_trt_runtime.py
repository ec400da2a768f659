"""TensorRT's engine on each version's stand-in and on each CUDA library: the same numbers as ONNX Runtime, errors in
words, and nothing that stays behind.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.bundle import Outputs
from agent.engines.device import OutOfDeviceMemory
from agent.engines.onnxrt import OnnxRuntimeEngine
from agent.engines.trt import PlanRefused
from agent.engines.trt_api import load_tensorrt
from agent.engines.trt_build import BuildOptions, Graphs, build_plan
from agent.errors import EngineError
from tests.kit.gpus import KINDS, Machine, machine, why_not
from tests.kit.models import classifier
from tests.kit.tensorrt import VERSIONS, World, installed
from tests.kit.tensorrt.running import ContextPart, RuntimePart
from tests.kit.trt_engines import ROLES, SPEC, VERSION, assert_same, engine_on, opened, picture, plan_of


@pytest.fixture
def world() -> Iterator[World]:
    with installed(VERSION) as made:
        yield made


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine("stand-in pycuda") as made:
        yield made
        assert made.live == {}
        assert (made.n_reclaimed, made.torn) == (0, 0)


@pytest.fixture(params=KINDS)
def any_gpu(request: pytest.FixtureRequest) -> Iterator[Machine]:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with machine(request.param) as made:
        yield made
        assert made.live == {}
        assert (made.n_reclaimed, made.torn) == (0, 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gives_what_onnx_runtime_gives(gpu: Machine, version: str) -> None:
    """Inputs and outputs by name, the same code for 8.6, 10 and 11."""
    with installed(version):
        engine = opened(gpu)
        assert engine.name == f"TensorRT {version} Orin fp32"
        assert engine.kind == "trt"
        assert_same(engine)
        engine.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_every_cuda_library_gives_the_same(world: World, any_gpu: Machine, mapped: bool) -> None:
    """With copies, and without where the memory is shared."""
    engine = opened(any_gpu, mapped=mapped)

    assert_same(engine)
    assert ("mapped memory" in engine.name) == mapped
    engine.close()


def test_mapped_memory_needs_no_memory_of_the_device(world: World, gpu: Machine) -> None:
    """Everything lies in host memory that the GPU sees."""
    engine = opened(gpu, mapped=True)

    kinds = {what.split(" at ")[0] for what in gpu.live}
    assert "memory" not in kinds
    assert "host memory" in kinds
    engine.close()


def test_buffers_are_allocated_once(world: World, gpu: Machine) -> None:
    """Ten inferences take nothing."""
    engine = opened(gpu)
    before = gpu.live

    for seed in range(10):
        engine.infer(picture(seed))

    assert gpu.live == before
    engine.close()


def test_results_are_the_callers_own(world: World, gpu: Machine) -> None:
    """The next inference does not change them, and closing does not take them away."""
    engine = opened(gpu)
    first = engine.infer(picture(1))
    before = {role: value.copy() for role, value in first.items()}
    engine.infer(picture(2))
    engine.close()

    for role in ROLES:
        np.testing.assert_array_equal(first[role], before[role])


def test_outputs_that_nobody_asked_for_are_not_copied(world: World, gpu: Machine) -> None:
    """TensorRT still needs a place to write them."""
    engine = opened(gpu, outputs=Outputs(logits="logits"))

    assert list(engine.infer(picture())) == ["logits"]
    engine.close()


def test_another_picture_size_is_refused(world: World, gpu: Machine) -> None:
    """Before anything is copied."""
    engine = opened(gpu)

    with pytest.raises(EngineError, match=r"got \(1, 16, 16, 3\) uint8, expected \(1, 32, 32, 3\) uint8"):
        engine.infer(np.zeros((1, 16, 16, 3), np.uint8))
    engine.close()


def test_a_closed_engine_says_so(world: World, gpu: Machine) -> None:
    """Closing twice is fine; it gives back the device too."""
    engine = opened(gpu)
    engine.close()
    engine.close()

    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 Orin fp32: is closed"):
        engine.infer(picture())
    assert world.live() == {}


def test_threads_may_share_an_engine(world: World, any_gpu: Machine) -> None:
    """Opened here, run on three others at once, closed on yet another: each gets the results of its own picture."""
    engine = opened(any_gpu)
    expected = {seed: engine.infer(picture(seed))["logits"] for seed in range(3)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        wrong.extend(
            seed for _ in range(30) if not np.array_equal(engine.infer(picture(seed))["logits"], expected[seed])
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    closer = threading.Thread(target=engine.close)
    closer.start()
    closer.join(timeout=60)

    assert wrong == []


def damaged(plan: bytes) -> bytes:
    middle = len(plan) // 2
    return plan[:middle] + bytes([plan[middle] ^ 0xFF]) + plan[middle + 1 :]


@pytest.mark.parametrize("spoil", [damaged, lambda plan: plan[:50], lambda _plan: b"", lambda _plan: b"no plan"])
def test_a_damaged_plan_is_refused(world: World, gpu: Machine, spoil: Any) -> None:
    """It is compiled again, not loaded; the device stays open for that."""
    device, plan = gpu.open(), plan_of()

    with pytest.raises(PlanRefused, match="damaged") as caught:
        engine_on(device, spoil(plan))

    assert "defect-agent build-engine" in str(caught.value)
    engine = engine_on(device, plan)
    assert_same(engine)
    engine.close()


@pytest.mark.parametrize(("built", "here"), [("10.3.0", "10.16.1"), ("8.6.1", "10.3.0"), ("11.1.0", "11.4.0")])
def test_a_plan_of_another_version_is_refused(gpu: Machine, built: str, here: str) -> None:
    """Which TensorRT is here, and the command that compiles a new one."""
    with installed(built):
        plan = plan_of()
    with installed(here), pytest.raises(PlanRefused, match=f"another TensorRT; here is TensorRT {here}") as caught:
        opened(gpu, plan)

    assert "defect-agent build-engine" in str(caught.value)


def test_a_plan_for_another_gpu_is_refused(gpu: Machine) -> None:
    """Which GPU is here."""
    with installed(VERSION, compute_capability=(8, 9)):
        plan = plan_of()
    with (
        installed(VERSION),
        pytest.raises(PlanRefused, match=r"another GPU; this one is Orin, compute capability 8\.7"),
    ):
        opened(gpu, plan)


def test_a_version_compatible_plan_runs_on_the_next_version(gpu: Machine) -> None:
    """That is what the option is for."""
    with installed("10.3.0"):
        plan = plan_of(version_compatible=True)
    with installed("10.16.1"):
        engine = opened(gpu, plan)
        assert_same(engine)
        engine.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("fault", "what"),
    [("load_out_of_memory", "the plan's weights"), ("context_out_of_memory", "the plan's intermediate")],
)
def test_out_of_memory_while_loading_is_no_refusal(gpu: Machine, version: str, fault: str, what: str) -> None:
    """The plan is good: what was asked for (each version has its own name for it), what is free, and what to end."""
    with installed(version):
        plan = plan_of()
    with installed(version, **{fault: True}) as world:
        with pytest.raises(OutOfDeviceMemory, match=rf"MB of device memory for {what}.* 1024\.0 MB is free") as caught:
            opened(gpu, plan)
        assert not isinstance(caught.value, PlanRefused)
        assert world.live() == {}

    assert "tegrastats" in str(caught.value)


def test_out_of_memory_for_the_picture_is_said_in_words(world: World) -> None:
    """The buffers come last, and all that came before is given back."""
    with machine("stand-in pycuda", memory_bytes=3500) as gpu:
        with pytest.raises(OutOfDeviceMemory, match="device memory were asked for"):
            opened(gpu)

        assert gpu.live == {}
        assert world.live() == {}


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (classifier(width=64, height=32), r"input image is \[1, 32, 64, 3\], expected \[1, 32, 32, 3\]"),
        (classifier(input_name="data"), r"inputs are \['data'\], expected \['image'\]"),
        (classifier(with_cam=False), r"no output cam \(cam\); it has \['embedding', 'logits'\]"),
    ],
)
def test_a_plan_that_does_not_fit_the_manifest_is_refused(world: World, gpu: Machine, graph: bytes, words: str) -> None:
    """As ONNX Runtime's engine refuses the graph."""
    with pytest.raises(EngineError, match=words) as caught:
        opened(gpu, plan_of(graph))

    assert "rebuild the bundle" in str(caught.value)


def test_no_gpu_for_tensorrt_is_an_error_in_words(gpu: Machine) -> None:
    """CUDA sees it and TensorRT does not: pybind11 says TypeError."""
    with installed(VERSION):
        plan = plan_of()
    with installed(VERSION, no_gpu=True), pytest.raises(EngineError, match=r"can't start on this GPU .*initialization"):
        opened(gpu, plan)


def test_an_inference_that_fails_says_why_and_the_next_one_works(world: World, any_gpu: Machine) -> None:
    """TensorRT raises; the part becomes an error, the line goes on."""
    engine = opened(any_gpu)
    world.fail("IExecutionContext.execute_async_v3", RuntimeError("cuda error 719"))
    if "CUDA graph" not in engine.name:
        with pytest.raises(EngineError, match=r"inference failed .*cuda error 719"):
            engine.infer(picture())

    assert_same(engine)
    engine.close()


def test_a_gpu_that_fails_while_it_is_waited_for_is_told(world: World, any_gpu: Machine) -> None:
    """An asynchronous fault comes up at the synchronization."""
    engine = opened(any_gpu)
    any_gpu.fail(call="cuStreamSynchronize")

    with pytest.raises(EngineError, match=r"waiting for it failed .*unspecified launch failure"):
        engine.infer(picture())
    any_gpu.fail()
    assert_same(engine)
    engine.close()


def life(gpu: Machine, plan: bytes, *, mapped: bool) -> None:
    """Open, infer twice, close."""
    engine = opened(gpu, plan, mapped=mapped)
    try:
        engine.infer(picture(1))
        engine.infer(picture(2))
    finally:
        engine.close()


def failure_of(work: Callable[[], None]) -> EngineError | None:
    """What it raises; any other exception goes through."""
    try:
        work()
    except EngineError as error:
        return error
    return None


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_whichever_call_of_the_driver_fails_nothing_stays_behind(world: World, kind: str, mapped: bool) -> None:
    """Each in turn, from opening the device to closing the engine."""
    if (reason := why_not(kind)) is not None:
        pytest.skip(f"{kind}: {reason}")
    plan = plan_of()
    with machine(kind) as gpu:
        life(gpu, plan, mapped=mapped)
        n_calls = gpu.n_calls
    told = 0
    for number in range(1, n_calls + 1):
        with machine(kind) as gpu:
            gpu.fail(at=number)
            if (error := failure_of(functools.partial(life, gpu, plan, mapped=mapped))) is not None:
                told += 1
                assert "unspecified launch failure" in str(error), number
            assert gpu.live == {}, f"call {number} failed"
            assert world.live() == {}, f"call {number} failed"
    assert told > n_calls // 2


def test_whichever_call_of_tensorrt_fails_nothing_stays_behind(world: World, gpu: Machine) -> None:
    """Each of its calls that an engine makes, in turn."""
    plan = plan_of()
    before = world.calls.copy()
    life(gpu, plan, mapped=False)
    made = [name for name, count in (world.calls - before).items() if count and "Logger" not in name]
    assert "IExecutionContext.execute_async_v3" in made

    for name in made:
        world.fail(name, RuntimeError("planted"))
        with pytest.raises(EngineError, match="planted"):
            life(gpu, plan, mapped=False)
        assert gpu.live == {}, name
        assert world.live() == {}, name


def test_ten_thousand_inferences_take_nothing(world: World, gpu: Machine) -> None:
    """Every allocation is accounted for, before, during and after."""
    engine = opened(gpu, outputs=Outputs(logits="logits"))
    before, objects, image = gpu.live, world.live(), picture()

    for _ in range(10_000):
        engine.infer(image)

    assert (gpu.live, world.live()) == (before, objects)
    engine.close()
    assert world.live() == {}


@pytest.mark.parametrize("mapped", [False, True])
def test_a_hundred_engines_in_a_row_leave_nothing(world: World, any_gpu: Machine, mapped: bool) -> None:
    """Open, run, close."""
    plan = plan_of()
    for _ in range(100):
        life(any_gpu, plan, mapped=mapped)

    assert any_gpu.live == {}
    assert world.live() == {}


def test_a_run_that_tensorrt_refuses_is_a_fault_and_not_the_part_befores_result(
    world: World, gpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns False and raises nothing: its ordinary way to fail."""
    engine = opened(gpu)
    assert_same(engine)
    with monkeypatch.context() as patch:
        patch.setattr(ContextPart, "execute_async_v3", lambda _part, _stream: False)
        with pytest.raises(EngineError, match="inference failed"):
            engine.infer(picture(7))

    assert_same(engine)
    engine.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_run_that_writes_nothing_leaves_no_numbers_and_not_the_part_befores_result(
    world: World, any_gpu: Machine, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """TensorRT says that all is well: the part's verdict must be an error, and not what the last one got."""
    engine = opened(any_gpu, mapped=mapped)
    assert_same(engine)
    if "CUDA graph" not in engine.name:
        with monkeypatch.context() as patch:
            patch.setattr(ContextPart, "execute_async_v3", lambda _part, _stream: True)
            got = engine.infer(picture(7))
        assert all(np.isnan(got[role]).all() for role in ROLES)

    assert_same(engine)
    engine.close()


def test_an_output_in_fp16_that_is_not_written_is_no_number_either(
    world: World, gpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes make a NaN of either kind."""
    graphs = Graphs(qdq=None, qdq16=None, fp32=with_half_logits(classifier()), calibration=None)
    plan = build_plan(load_tensorrt(), graphs, BuildOptions(precision="fp16")).plan
    engine = opened(gpu, plan, outputs=Outputs(logits="logits"))
    engine.infer(picture(3))
    monkeypatch.setattr(ContextPart, "execute_async_v3", lambda _part, _stream: True)

    assert np.isnan(engine.infer(picture(4))["logits"]).all()
    engine.close()


def test_outputs_in_fp16_come_back_as_float32(world: World, gpu: Machine) -> None:
    """A graph from elsewhere may end in it."""
    graphs = Graphs(qdq=None, qdq16=None, fp32=with_half_logits(classifier()), calibration=None)
    plan = build_plan(load_tensorrt(), graphs, BuildOptions(precision="fp16")).plan
    engine = opened(gpu, plan, outputs=Outputs(logits="logits"))

    got = engine.infer(picture(3))["logits"]

    assert got.dtype == np.float32
    wanted = OnnxRuntimeEngine(classifier(), threads=1, label="", spec=SPEC, outputs=Outputs(logits="logits"))
    np.testing.assert_allclose(got, wanted.infer(picture(3))["logits"], rtol=2e-3, atol=2e-3)
    engine.close()


def with_half_logits(graph: bytes) -> bytes:
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        node.output[:] = ["logits32" if name == "logits" else name for name in node.output]
    model.graph.node.append(helper.make_node("Cast", ["logits32"], ["logits"], to=TensorProto.FLOAT16))
    (output,) = [output for output in model.graph.output if output.name == "logits"]
    output.type.tensor_type.elem_type = TensorProto.FLOAT16
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("mapped", [False, True])
def test_a_tensor_that_tensorrt_will_not_place_is_told_and_all_is_given_back(
    world: World, gpu: Machine, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """An inference would read or write nowhere. The engine itself frees what it took: the device stays the caller's."""
    place = ContextPart.set_tensor_address
    monkeypatch.setattr(
        ContextPart,
        "set_tensor_address",
        lambda part, name, memory: name != "cam" and place(part, name, memory),
    )
    device = gpu.open()
    before = gpu.live

    with pytest.raises(EngineError, match="can't be placed"):
        engine_on(device, mapped=mapped)

    assert gpu.live == before
    device.close()


def test_the_accelerator_that_the_plan_was_built_for_is_the_one_it_runs_on(
    world: World, gpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT asks for it before it loads the plan."""
    asked: list[int] = []
    load = RuntimePart.deserialize_cuda_engine

    def deserialize_cuda_engine(part: RuntimePart, plan: Any) -> Any:
        asked.append(part.DLA_core)
        return load(part, plan)

    monkeypatch.setattr(RuntimePart, "deserialize_cuda_engine", deserialize_cuda_engine)
    opened(gpu, dla_core=1).close()

    assert asked == [1]
