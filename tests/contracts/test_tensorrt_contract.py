"""One suite for the six stand-ins and for the one real TensorRT that builds without a GPU, TensorRT-RTX.

What the stand-ins claim of pybind11 and of the parser is held against the real one here. TensorRT-RTX has the names of
TensorRT 11.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.engines.trt_api import TensorRt, load_tensorrt, tensorrt_of
from tests.kit.qdq_models import MISTAKES, qdq_net
from tests.kit.tensorrt import VERSIONS, installed
from tests.kit.tensorrt.make_names import names_text
from tests.kit.tensorrt.surface import NAMES, table
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*TensorRT-RTX:DeprecationWarning")

REAL = pytest.param("rtx", marks=pytest.mark.tensorrt)


@pytest.fixture(params=[*VERSIONS, REAL])
def api(request: pytest.FixtureRequest) -> Iterator[TensorRt]:
    if request.param != "rtx":
        with installed(request.param):
            yield load_tensorrt()
        return
    import tensorrt_rtx

    yield tensorrt_of(tensorrt_rtx)


@dataclasses.dataclass
class Parts:
    """What a build needs, made in the order that TensorRT wants."""

    builder: Any
    network: Any
    parser: Any
    config: Any


def parts(api: TensorRt) -> Parts:
    trt = api.module
    builder = trt.Builder(api.log)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0)
    config = builder.create_builder_config()
    for name in ("FP16", "INT8"):
        if hasattr(trt.BuilderFlag, name):
            config.set_flag(getattr(trt.BuilderFlag, name))
    return Parts(builder, network, trt.OnnxParser(network, api.log), config)


def test_an_absent_name_is_an_attribute_error(api: TensorRt) -> None:
    made = parts(api)

    for owner in (api.module, api.module.BuilderFlag, made.builder, made.config, made.network, made.parser):
        with pytest.raises(AttributeError):
            _ = owner.name_of_nobody


def test_an_attribute_can_not_be_added(api: TensorRt) -> None:
    """A misspelt option would be lost without a word."""
    made = parts(api)

    with pytest.raises(AttributeError):
        made.config.builder_optimisation_level = 3
    with pytest.raises(AttributeError):
        made.network.num_layers = 3


def test_what_tensorrt_makes_can_not_be_made_by_hand(api: TensorRt) -> None:
    for name in ("ICudaEngine", "IExecutionContext", "IBuilderConfig", "INetworkDefinition", "ITimingCache"):
        with pytest.raises(TypeError):
            getattr(api.module, name)()


def test_an_enum_is_no_number(api: TensorRt) -> None:
    trt, made = api.module, parts(api)

    assert int(trt.BuilderFlag.TF32) != trt.BuilderFlag.TF32
    assert str(trt.ILogger.Severity.ERROR) == "Severity.ERROR"
    assert trt.Logger.ERROR == trt.ILogger.Severity.ERROR
    with pytest.raises(TypeError):
        made.config.set_flag(int(trt.BuilderFlag.TF32))
    with pytest.raises(TypeError):
        made.config.set_flag(trt.MemoryPoolType.WORKSPACE)


def test_wrong_arguments_are_a_type_error(api: TensorRt) -> None:
    made = parts(api)

    with pytest.raises(TypeError):
        made.builder.create_network(flag=0)
    with pytest.raises(TypeError):
        made.builder.build_serialized_network(made.network)
    with pytest.raises(TypeError):
        made.builder.build_serialized_network(made.config, made.network)
    with pytest.raises(TypeError):
        made.config.set_timing_cache(made.config.create_timing_cache(b""))
    with pytest.raises(TypeError):
        made.config.builder_optimization_level = "3"
    with pytest.raises(TypeError):
        made.parser.parse("a path")
    with pytest.raises(TypeError):
        api.module.Builder(None)


def test_arguments_may_be_named(api: TensorRt) -> None:
    made = parts(api)

    made.config.set_memory_pool_limit(pool=api.module.MemoryPoolType.WORKSPACE, pool_size=2**20)

    assert made.config.get_memory_pool_limit(pool=api.module.MemoryPoolType.WORKSPACE) == 2**20


def test_a_subclass_must_call_its_base(api: TensorRt) -> None:
    if not api.has("IProgressMonitor"):
        assert api.version[0] < 10
        return

    class Forgetful(api.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"IProgressMonitor.__init__\(\) must be called when overriding __init__"):
        Forgetful()


def test_a_shape_equals_a_tuple_and_is_none(api: TensorRt) -> None:
    made = parts(api)
    assert made.parser.parse(qdq_net().SerializeToString())
    shape = made.network.get_input(0).shape

    assert not isinstance(shape, tuple)
    assert shape == (1, 8, 16, 16)
    assert tuple(shape) == (1, 8, 16, 16)


def test_a_network_names_its_inputs_and_outputs(api: TensorRt) -> None:
    made = parts(api)
    assert made.parser.parse(qdq_net().SerializeToString())

    assert [made.network.get_input(i).name for i in range(made.network.num_inputs)] == ["x"]
    assert [made.network.get_output(i).name for i in range(made.network.num_outputs)] == ["logits"]
    assert made.network.get_input(0).dtype == api.module.float32
    assert made.network.num_layers > 4


def test_a_good_graph_becomes_a_plan(api: TensorRt) -> None:
    made = parts(api)
    assert made.parser.parse(qdq_net().SerializeToString())
    plan = made.builder.build_serialized_network(made.network, made.config)

    assert len(bytes(plan)) == plan.nbytes > 1000


def test_nothing_to_build_gives_none(api: TensorRt) -> None:
    made = parts(api)

    assert made.builder.build_serialized_network(made.network, made.config) is None


def test_an_open_batch_needs_a_profile(api: TensorRt) -> None:
    made = parts(api)
    assert made.parser.parse(qdq_net(batch="n").SerializeToString())

    assert tuple(made.network.get_input(0).shape) == (-1, 8, 16, 16)
    assert made.builder.build_serialized_network(made.network, made.config) is None
    profile = made.builder.create_optimization_profile()
    profile.set_shape("x", (1, 8, 16, 16), (1, 8, 16, 16), (1, 8, 16, 16))
    made.config.add_optimization_profile(profile)
    assert made.builder.build_serialized_network(made.network, made.config) is not None


REFUSED = ("zero point of an activation", "zero points of weights", "U8 around 128", "negative scale", "scale 0")
TAKEN = ("U8 from 0", "per-channel activation", "tiny scale", "float weights", "Q without DQ")


@pytest.mark.parametrize("name", [*REFUSED, "int32 bias"])
def test_a_planted_mistake_is_refused_with_its_words(api: TensorRt, name: str) -> None:
    """The list of errors has the node's name where the version gives it, and the reason."""
    model = qdq_net()
    MISTAKES[name].plant(model)
    made = parts(api)

    assert not made.parser.parse(model.SerializeToString())
    errors = [made.parser.get_error(i) for i in range(made.parser.num_errors)]
    assert MISTAKES[name].tensorrt.removeprefix("Scale") in errors[0].desc()
    if api.version[0] != 8:
        assert errors[0].node_name().split(".")[0] in ("relu1", "conv2", "bias")


@pytest.mark.parametrize("name", TAKEN)
def test_a_mistake_that_tensorrt_takes_is_taken(api: TensorRt, name: str) -> None:
    """The stand-in is not stricter than TensorRT: else a test would rest on a refusal that never comes."""
    model = qdq_net()
    MISTAKES[name].plant(model)
    made = parts(api)

    assert made.parser.parse(model.SerializeToString())


def test_the_monitor_hears_nested_phases_and_can_end_the_build(api: TensorRt) -> None:
    if not api.has("IProgressMonitor"):
        assert api.version[0] < 10
        return

    class Monitor(api.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, last: int) -> None:
            api.module.IProgressMonitor.__init__(self)
            self.open: list[str] = []
            self.steps = 0
            self.deepest = 0
            self.last = last

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            assert parent_phase in (None, *self.open)
            assert num_steps >= 1
            self.open.append(phase_name)
            self.deepest = max(self.deepest, len(self.open))

        def step_complete(self, phase_name: str, step: int) -> bool:
            assert phase_name in self.open
            assert step >= 0
            self.steps += 1
            return self.steps < self.last

        def phase_finish(self, phase_name: str) -> None:
            self.open.remove(phase_name)

    made = parts(api)
    assert made.parser.parse(qdq_net().SerializeToString())
    made.config.progress_monitor = watching = Monitor(last=100_000)
    assert made.builder.build_serialized_network(made.network, made.config) is not None
    made.config.progress_monitor = Monitor(last=2)

    assert watching.open == []
    assert watching.deepest >= 2
    assert made.builder.build_serialized_network(made.network, made.config) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stand_ins_classes_have_the_tables_names_and_no_other(version: str) -> None:
    names = table(version)
    with installed(version) as world:
        for kind, members in names["classes"].items():
            made = getattr(world.module, kind)
            public = {name for base in made.__mro__[:-1] for name in vars(base) if not name.startswith("_")}
            inherited = {m for b in names["bases"][kind] for m in names["classes"].get(b, ())}
            nested = {"Severity"} if "Logger" in kind else set()
            expected = {name for name in {*members, *inherited, *nested} if not name.startswith("_")}

            assert public == expected, kind


@pytest.mark.shared
def test_the_table_is_the_one_that_was_read_off_the_real_ones() -> None:
    source = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tensorrt_names.json"

    assert names_text(source) == NAMES.read_text()


def test_a_process_of_its_own_can_have_one(tmp_path: Path) -> None:
    """A build that is killed in its middle is one: `hold_build` says that it is there."""
    code = f"""
from pathlib import Path
from tests.kit.tensorrt import installed
from tests.kit.trt_graphs import trt_graphs
from agent.engines.trt_api import load_tensorrt
from agent.engines.trt_build import BuildOptions, build_plan
with installed("10.3.0", hold_build=Path({str(tmp_path / "gate")!r})):
    print(len(build_plan(load_tensorrt(), trt_graphs(), BuildOptions()).plan), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            wait_until((tmp_path / "gate").exists, 120, what="a build")
            assert child.poll() is None
            (tmp_path / "gate").unlink()
            said, _ = child.communicate(timeout=120)
        finally:
            child.kill()

    assert int(said) > 1000


def test_a_timing_cache_starts_empty_and_has_bytes(api: TensorRt) -> None:
    made = parts(api)
    cache = made.config.create_timing_cache(b"")

    assert made.config.set_timing_cache(cache, False)
    assert len(bytes(made.config.get_timing_cache().serialize())) > 0
