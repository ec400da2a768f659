"""A name that a TensorRT lacks fails the build on that TensorRT's stand-in, wherever it is used.

The builder's own source is taken, one line is planted in it, and every version builds with it. A planted line must be
an AttributeError or TypeError (our bug: no fall-back may hide it), just on those versions that lack the name.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agent.engines.trt_build
from agent.engines.trt_api import load_tensorrt
from tests.kit.tensorrt import VERSIONS, NotInStandIn, installed
from tests.kit.trt_graphs import trt_graphs

SOURCE = Path(agent.engines.trt_build.__file__).read_text(encoding="utf-8")
CONFIG = "        config = builder.create_builder_config()\n"
NETWORK = "        network = builder.create_network(self._network_flags())\n"
BUILD = "        plan = builder.build_serialized_network(network, config)\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Plant:
    """A line, what it follows, and the versions that have what it uses."""

    line: str
    after: str
    fits: tuple[str, ...]


EIGHT, TEN, LATE_TEN = ("8.6.1",), ("10.3.0", "10.13.3", "10.16.1"), ("10.13.3", "10.16.1")
ELEVEN = ("11.1.0", "11.4.0")
PLANTS = {
    "workspace size": Plant("config.max_workspace_size = 2**20", CONFIG, EIGHT),
    "max batch": Plant("builder.max_batch_size = 1", CONFIG, EIGHT),
    "FP16 flag": Plant("trt.BuilderFlag.FP16", CONFIG, EIGHT + TEN),
    "calibrator": Plant("config.int8_calibrator = None", CONFIG, EIGHT + TEN),
    "fast INT8": Plant("builder.platform_has_fast_int8", CONFIG, EIGHT + TEN),
    "monitor": Plant("config.progress_monitor", CONFIG, TEN + ELEVEN),
    "explicit batch": Plant("self._trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", NETWORK, EIGHT + TEN),
    "strong typing": Plant("self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED", NETWORK, TEN + ELEVEN),
    "implicit batch": Plant("network.has_implicit_batch_dimension", NETWORK, VERSIONS),
    "editable timings": Plant("self._trt.BuilderFlag.EDITABLE_TIMING_CACHE", BUILD, LATE_TEN + ELEVEN),
    "a flag as a number": Plant("config.get_flag(3)", BUILD, ()),
    "an argument's wrong name": Plant("builder.create_network(flag=0)", BUILD, ()),
    "a name of nobody": Plant("builder.build_engine_now(network, config)", BUILD, ()),
}
NOT_DONE = {"workspace size", "max batch", "implicit batch"}
"""Where TensorRT has these, the stand-in does nothing for them, and says so."""


@pytest.fixture
def planted() -> Iterator[Callable[[Plant | None], ModuleType]]:
    """The builder with a line planted in it, as a module of its own."""
    name = "planted_trt_build"

    def make(plant: Plant | None) -> ModuleType:
        source = SOURCE
        if plant is not None:
            assert source.count(plant.after) == 1
            source = source.replace(plant.after, f"{plant.after}        {plant.line}\n")
        module = ModuleType(name)
        sys.modules[name] = module
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
        return module

    yield make
    sys.modules.pop(name, None)


def build(module: Any, version: str) -> bytes:
    with installed(version):
        graphs = module.Graphs(fp32=trt_graphs().fp32, qdq=trt_graphs().qdq, qdq16=trt_graphs().qdq16)
        return bytes(module.build_plan(load_tensorrt(), graphs, module.BuildOptions()).plan)


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_plant_every_version_builds(version: str, planted: Callable[[Plant | None], ModuleType]) -> None:
    assert build(planted(None), version)


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_name_that_the_version_lacks_fails_the_build(
    version: str, name: str, planted: Callable[[Plant | None], ModuleType]
) -> None:
    plant = PLANTS[name]
    module = planted(plant)
    if version not in plant.fits:
        with pytest.raises((AttributeError, TypeError)):
            build(module, version)
    elif name in NOT_DONE:
        with pytest.raises(NotInStandIn):
            build(module, version)
    else:
        assert build(module, version)
