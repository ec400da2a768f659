"""What the stand-in's run-time objects do: runtime, engine, context. Device memory is host memory, at raw addresses."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tests.kit.tensorrt import graph as graphs
from tests.kit.tensorrt.parts import Part, data_of
from tests.kit.tensorrt.plan import Build, unseal
from tests.kit.tensorrt.sessions import session
from tests.kit.tensorrt.surface import Words, shell

if TYPE_CHECKING:
    from tests.kit.tensorrt.world import World

__all__ = ["NUMPY", "RUNNING"]

NUMPY: dict[str, Any] = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "UINT8": np.uint8}
NUMPY |= {"INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


class RuntimePart(Part):
    def __init__(self, world: World, logger: Any) -> None:
        super().__init__(world)
        world.take_logger(logger)
        world.need_gpu()
        self.logger = logger
        self.engine_host_code_allowed = False
        self.DLA_core = 0
        self.num_DLA_cores = world.dla_cores
        self.max_threads = 1

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        try:
            build, graph = unseal(data_of(plan))
        except ValueError as error:
            raise Words(
                f"Error Code 1: Serialization (Serialization assertion magicTagRead failed. {error})"
            ) from error
        self._check(build)
        if self.world.faults.load_out_of_memory:
            raise Words("[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
        return shell(self.world.module, "ICudaEngine", EnginePart(self.world, build, graph))

    def _check(self, build: Build) -> None:
        world = self.world
        if build.compute_capability != world.faults.compute_capability:
            here, there = (".".join(map(str, cc)) for cc in (world.faults.compute_capability, build.compute_capability))
            raise Words(
                "Error Code 6: The engine plan file is generated on an incompatible device, "
                f"expecting compute {here} got compute {there}, please rebuild."
            )
        portable = "VERSION_COMPATIBLE" in build.flags
        if portable and not self.engine_host_code_allowed:
            raise Words("Error Code 4: Cannot deserialize engine with lean runtime (engine_host_code_allowed is False)")
        same_line = build.version.split(".")[0] == world.version.split(".")[0]
        if build.version != world.version and not (portable and same_line):
            raise Words(
                "Error Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed."
                f"Version tag does not match. Note: Current Version: {world.version}, "
                f"Serialized Engine Version: {build.version})"
            )


class EnginePart(Part):
    def __init__(self, world: World, build: Build, graph: bytes) -> None:
        super().__init__(world)
        model = onnx.load_model_from_string(graph)
        self.inputs, self.outputs = graphs.inputs_of(model), graphs.outputs_of(model)
        self.tensors = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        self.session = session(graph)
        self.name = model.graph.name
        self.num_layers = len(graphs.nodes_of(model))
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = 1
        self.refittable = "REFIT" in build.flags
        self.build = build
        self.device_memory_size = self.device_memory_size_v2 = 2 * sum(map(self.size_of, self.tensors))

    def size_of(self, name: str) -> int:
        tensor = self.tensors[name]
        return math.prod(max(side, 1) for side in tensor.shape) * int(np.dtype(NUMPY[tensor.kind]).itemsize)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.world.module.TensorIOMode
        if name not in self.tensors:
            return modes.NONE
        return modes.INPUT if name in {tensor.name for tensor in self.inputs} else modes.OUTPUT

    def get_tensor_shape(self, name: str) -> Any:
        return self.world.dims(self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.world.module.DataType, self._tensor(name).kind)

    def get_tensor_location(self, name: str) -> Any:
        self._tensor(name)
        return self.world.module.TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        self._tensor(name)
        return self.world.module.TensorFormat.LINEAR

    def create_execution_context(self, *_strategy: Any) -> Any:
        if self.world.faults.context_out_of_memory:
            raise Words("[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
        return shell(self.world.module, "IExecutionContext", ContextPart(self.world, self))

    def _tensor(self, name: str) -> graphs.Tensor:
        if name not in self.tensors:
            raise Words(f"Error Code 3: API Usage Error (Given invalid tensor name: {name})")
        return self.tensors[name]


class ContextPart(Part):
    def __init__(self, world: World, engine: EnginePart) -> None:
        super().__init__(world)
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes = {t.name: t.shape for t in engine.inputs if -1 not in t.shape}

    @property
    def all_binding_shapes_specified(self) -> bool:
        return all(tensor.name in self._shapes for tensor in self._engine.inputs)

    def set_input_shape(self, name: str, shape: Any) -> bool:
        wanted = {tensor.name: tensor.shape for tensor in self._engine.inputs}.get(name)
        given = tuple(int(side) for side in shape)
        if wanted is None or not _fits(wanted, given):
            raise Words(f"Error Code 3: API Usage Error (input {name}: {given} does not fit {wanted})", gives=False)
        self._shapes[name] = given
        return True

    def get_tensor_shape(self, name: str) -> Any:
        return self.world.dims(self._shapes.get(name, self._engine.tensors[name].shape))

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._engine.inputs if tensor.name not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if not isinstance(memory, int):
            raise TypeError(f"set_tensor_address(): incompatible function arguments: got {memory!r}, expected int")
        if name not in self._engine.tensors:
            raise Words(f"Error Code 3: API Usage Error (Given invalid tensor name: {name})", gives=False)
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not isinstance(stream_handle, int):
            raise TypeError(f"execute_async_v3(): incompatible function arguments: got {stream_handle!r}, expected int")
        for name in self._engine.tensors:
            if not self._addresses.get(name):
                raise Words(f"Error Code 3: API Usage Error (Address is not set for tensor {name})", gives=False)
        if not self.all_binding_shapes_specified:
            raise Words("Error Code 3: API Usage Error (not all input shapes are specified)", gives=False)
        self.world.executed()
        feed = {tensor.name: self._read(tensor) for tensor in self._engine.inputs}
        names = [tensor.name for tensor in self._engine.outputs]
        for name, value in zip(names, self._engine.session.run(names, feed), strict=True):
            data = np.ascontiguousarray(value)
            ctypes.memmove(self._addresses[name], data.ctypes.data, data.nbytes)
        return True

    def _read(self, tensor: graphs.Tensor) -> np.ndarray[Any, Any]:
        shape, kind = self._shapes[tensor.name], np.dtype(NUMPY[tensor.kind])
        data = ctypes.string_at(self._addresses[tensor.name], math.prod(shape) * kind.itemsize)
        return np.frombuffer(data, kind).reshape(shape)


def _fits(wanted: tuple[int, ...], given: tuple[int, ...]) -> bool:
    return len(wanted) == len(given) and all(w in (-1, g) for w, g in zip(wanted, given, strict=True))


RUNNING: dict[str, type[Part]] = {"Runtime": RuntimePart}
