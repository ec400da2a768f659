"""What the stand-in's build-time objects do: builder, network, parser, configuration, calibrator, monitor, caches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx

from tests.kit.tensorrt import graph as graphs
from tests.kit.tensorrt.building import ON_DLA, build
from tests.kit.tensorrt.surface import Words, part_of, shell

if TYPE_CHECKING:
    from tests.kit.tensorrt.world import World

__all__ = ["PARTS", "Part", "data_of"]

MIB = 1 << 20
CACHE_MAGIC = "timings "


class Part:
    """The hidden half of an object."""

    public_kind = ""

    def __init__(self, world: World) -> None:
        self.world = world


class LoggerPart(Part):
    """`ILogger`: a Python subclass overrides `log`."""

    def log(self, severity: Any, msg: str) -> None:
        raise TypeError(f'Tried to call pure virtual function "ILogger::log" ({severity}, {msg})')


class PrintingLoggerPart(Part):
    """`Logger`: keeps what it hears; the real one prints it."""

    def __init__(self, world: World, min_severity: Any = None) -> None:
        super().__init__(world)
        self.min_severity = min_severity if min_severity is not None else world.module.ILogger.Severity.WARNING
        self.lines: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            self.lines.append(f"[{severity.name}] {msg}")


class MonitorPart(Part):
    """`IProgressMonitor`: a Python subclass overrides all three."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise TypeError('Tried to call pure virtual function "IProgressMonitor::phaseStart"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise TypeError('Tried to call pure virtual function "IProgressMonitor::stepComplete"')

    def phase_finish(self, phase_name: str) -> None:
        raise TypeError('Tried to call pure virtual function "IProgressMonitor::phaseFinish"')


class CalibratorPart(Part):
    """`IInt8EntropyCalibrator2`: a Python subclass overrides four methods."""

    def get_batch_size(self) -> int:
        raise TypeError('Tried to call pure virtual function "IInt8EntropyCalibrator2::getBatchSize"')

    def get_batch(self, names: list[str]) -> list[int] | None:
        raise TypeError('Tried to call pure virtual function "IInt8EntropyCalibrator2::getBatch"')

    def read_calibration_cache(self) -> bytes | None:
        raise TypeError('Tried to call pure virtual function "IInt8EntropyCalibrator2::readCalibrationCache"')

    def write_calibration_cache(self, cache: bytes) -> None:
        raise TypeError('Tried to call pure virtual function "IInt8EntropyCalibrator2::writeCalibrationCache"')


class MemoryPart(Part):
    """`IHostMemory`: `bytes(memory)` is its content."""

    def __init__(self, world: World, data: bytes) -> None:
        super().__init__(world)
        self.data = data

    @property
    def nbytes(self) -> int:
        return len(self.data)

    @property
    def dtype(self) -> Any:
        return self.world.module.DataType.INT8


def data_of(buffer: Any) -> bytes:
    """The bytes of what a call takes as a buffer.

    Raises:
        TypeError: it is none.
    """
    if type(buffer).__name__ == "IHostMemory":
        data: bytes = part_of(buffer, "IHostMemory").data
        return data
    return bytes(memoryview(buffer))


class TensorPart(Part):
    def __init__(self, world: World, name: str, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__(world)
        self.name = name
        self.dtype = getattr(world.module.DataType, kind)
        self.shape = world.dims(shape)


class LayerPart(Part):
    def __init__(self, world: World, node: graphs.Node) -> None:
        super().__init__(world)
        self.name = node.name
        self.type = getattr(world.module.LayerType, node.kind)
        self.num_outputs = len(node.outputs)
        self._outputs = node.outputs

    def get_output(self, index: int) -> Any:
        part = TensorPart(self.world, self._outputs[index], "FLOAT", ())
        return shell(self.world.module, "ITensor", part)


class NetworkPart(Part):
    def __init__(self, world: World, flags: frozenset[str]) -> None:
        super().__init__(world)
        self.flag_names = flags
        self.graph = b""
        self.model: onnx.ModelProto | None = None
        self.name = ""
        self._layers: list[graphs.Node] = []
        self._inputs: list[graphs.Tensor] = []
        self._outputs: list[graphs.Tensor] = []

    def take(self, graph: bytes, model: onnx.ModelProto) -> None:
        self.graph, self.model, self.name = graph, model, model.graph.name
        self._layers = graphs.nodes_of(model)
        self._inputs, self._outputs = graphs.inputs_of(model), graphs.outputs_of(model)

    @property
    def is_strong(self) -> bool:
        """All networks are from TensorRT 11 on."""
        return "STRONGLY_TYPED" in self.flag_names or not hasattr(self.world.module.BuilderFlag, "FP16")

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_layer(self, index: int) -> Any:
        return shell(self.world.module, "ILayer", LayerPart(self.world, self._layers[index]))

    def get_input(self, index: int) -> Any:
        return self._tensor(self._inputs[index])

    def get_output(self, index: int) -> Any:
        return self._tensor(self._outputs[index])

    def get_flag(self, flag: Any) -> bool:
        return self.world.enum(flag, "NetworkDefinitionCreationFlag") in self.flag_names

    def _tensor(self, tensor: graphs.Tensor) -> Any:
        part = TensorPart(self.world, tensor.name, tensor.kind, tensor.shape)
        return shell(self.world.module, "ITensor", part)


class ProfilePart(Part):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, smallest: Any, best: Any, largest: Any) -> None:
        self.shapes[name] = [tuple(smallest), tuple(best), tuple(largest)]

    def get_shape(self, name: str) -> list[Any]:
        return [self.world.dims(shape) for shape in self.shapes[name]]


class TimingCachePart(Part):
    """Its bytes: the version and GPU that it is of, and how many timings it holds."""

    def __init__(self, world: World, data: bytes) -> None:
        super().__init__(world)
        self.owner, self.entries = world.machine_words, 0
        if data:
            if not data.startswith(CACHE_MAGIC.encode()):
                raise Words("[timingCache] Deserialization of the timing cache failed: it is corrupt")
            owner, entries = json.loads(data[len(CACHE_MAGIC) :])
            self.owner, self.entries = str(owner), int(entries)

    def serialize(self) -> Any:
        text = CACHE_MAGIC + json.dumps([self.owner, self.entries])
        return shell(self.world.module, "IHostMemory", MemoryPart(self.world, text.encode()))

    def reset(self) -> bool:
        self.entries = 0
        return True


class ConfigPart(Part):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        module = world.module
        self.flag_names = {"TF32"}
        self.builder_optimization_level = 3
        self.profiling_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.default_device_type = module.DeviceType.GPU
        self.DLA_core = -1
        self.progress_monitor: Any = None
        self.int8_calibrator: Any = None
        self.max_aux_streams = -1
        self.pools = {"WORKSPACE": world.faults.memory_mb * MIB}
        self.profiles: list[Any] = []
        self.cache: Any = None

    def set_flag(self, flag: Any) -> None:
        self.flag_names.add(self.world.enum(flag, "BuilderFlag"))

    def clear_flag(self, flag: Any) -> None:
        self.flag_names.discard(self.world.enum(flag, "BuilderFlag"))

    def get_flag(self, flag: Any) -> bool:
        return self.world.enum(flag, "BuilderFlag") in self.flag_names

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        if not isinstance(size, int):
            raise TypeError(f"set_memory_pool_limit(): incompatible function arguments: got {size!r}")
        self.pools[self.world.enum(pool, "MemoryPoolType")] = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.pools.get(self.world.enum(pool, "MemoryPoolType"), 0)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(part_of(profile, "IOptimizationProfile"))
        return len(self.profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def create_timing_cache(self, data: Any) -> Any:
        return shell(self.world.module, "ITimingCache", TimingCachePart(self.world, data_of(data)))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        part = part_of(cache, "ITimingCache")
        if part.owner != self.world.machine_words and not ignore_mismatch:
            raise Words("[timingCache] The timing cache is of another version or device, it is ignored", gives=False)
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
        return self.world.dla_cores > 0 and part_of(layer, "ILayer").type.name in ON_DLA


class ErrorPart(Part):
    def __init__(self, world: World, fault: graphs.Fault, code: str) -> None:
        super().__init__(world)
        self._fault, self._code = fault, code

    def code(self) -> Any:
        return getattr(self.world.module.ErrorCode, self._code)

    def desc(self) -> str:
        return self._fault.text

    def node(self) -> int:
        return self._fault.index

    def node_name(self) -> str:
        return self._fault.node

    def node_operator(self) -> str:
        return self._fault.operator


class ParserPart(Part):
    def __init__(self, world: World, network: Any, logger: Any) -> None:
        super().__init__(world)
        world.take_logger(logger)
        self._network = part_of(network, "INetworkDefinition")
        self._errors: list[ErrorPart] = []

    def parse(self, data: Any, path: str | None = None) -> bool:
        if self._network.model is not None:
            raise Words("the network holds a graph already", gives=False)
        graph = data_of(data)
        try:
            model = onnx.load_model_from_string(graph)
        except Exception as error:  # protobuf's own class
            self._refuse(graphs.Fault(node="", operator="", index=-1, text=f"Failed to parse: {error}"))
            return False
        if self.world.needs_explicit_batch and "EXPLICIT_BATCH" not in self._network.flag_names:
            text = "Parser only supports an INetworkDefinition with an explicit batch dimension"
            self._refuse(graphs.Fault(node="", operator="", index=-1, text=text))
            return False
        for fault in graphs.faults_of(model):
            if fault.is_error:
                self._refuse(fault)
            else:
                self.world.log("WARNING", fault.text)
        if self._errors:
            return False
        self._network.take(graph, model)
        return True

    def _refuse(self, fault: graphs.Fault) -> None:
        code = "MODEL_DESERIALIZE_FAILED" if fault.index < 0 else "UNSUPPORTED_NODE"
        self._errors.append(ErrorPart(self.world, fault, code))
        self.world.log("ERROR", f"In node {fault.index} with name: {fault.node} and operator: {fault.operator}")

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return shell(self.world.module, "ParserError", self._errors[index])

    def clear_errors(self) -> None:
        self._errors.clear()


class BuilderPart(Part):
    def __init__(self, world: World, logger: Any) -> None:
        super().__init__(world)
        world.take_logger(logger)
        world.need_gpu()
        self.logger = logger
        self.num_DLA_cores = world.dla_cores
        self.platform_has_fast_int8 = True
        self.platform_has_fast_fp16 = True

    def create_network(self, flags: Any = 0) -> Any:
        named = frozenset(
            name
            for name, value in self.world.module.NetworkDefinitionCreationFlag.__members__.items()
            if int(flags) & (1 << int(value))
        )
        return shell(self.world.module, "INetworkDefinition", NetworkPart(self.world, named))

    def create_builder_config(self) -> Any:
        return shell(self.world.module, "IBuilderConfig", ConfigPart(self.world))

    def create_optimization_profile(self) -> Any:
        return shell(self.world.module, "IOptimizationProfile", ProfilePart(self.world))

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        plan = build(self.world, part_of(network, "INetworkDefinition"), part_of(config, "IBuilderConfig"))
        return shell(self.world.module, "IHostMemory", MemoryPart(self.world, plan))


PARTS: dict[str, type[Part]] = {
    "ILogger": LoggerPart,
    "Logger": PrintingLoggerPart,
    "IProgressMonitor": MonitorPart,
    "IInt8EntropyCalibrator2": CalibratorPart,
    "Builder": BuilderPart,
    "OnnxParser": ParserPart,
}
