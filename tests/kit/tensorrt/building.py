"""How the stand-in builds: what TensorRT refuses, what it warns of, whom it asks, and the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.kit.tensorrt import graph as graphs
from tests.kit.tensorrt.plan import Build, seal
from tests.kit.tensorrt.sessions import session
from tests.kit.tensorrt.surface import CrashedError, Words, part_of

if TYPE_CHECKING:
    from tests.kit.tensorrt.parts import ConfigPart, NetworkPart
    from tests.kit.tensorrt.world import World

__all__ = ["ON_DLA", "build"]

MIB = 1 << 20
PHASES = (("Building Engine", None, 3), ("Timing graph nodes", "Building Engine", 4))
ON_DLA = frozenset(
    {"CONVOLUTION", "DECONVOLUTION", "ACTIVATION", "ELEMENTWISE", "POOLING", "CONCATENATION", "SCALE", "RESIZE"}
)
"""Kinds of layers that the stand-in's DLA takes; the real one's rules are longer."""


def build(world: World, network: NetworkPart, config: ConfigPart) -> bytes:
    """Build a plan.

    Raises:
        Words: what TensorRT would not build, and why.
    """
    if network.model is None or not network.num_outputs:
        raise Words("Error Code 4: API Usage Error (Network must have at least one output)")
    _check_typing(world, network, config)
    _check_shapes(network, config)
    _check_dla(world, network, config)
    calibration = _calibrate(world, network, config)
    _check_resources(world, network, config)
    _watch(world, config)
    try:
        session(network.graph)
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        raise Words(f"Error Code 10: Internal Error (Could not find any implementation: {error})") from error
    facts = _facts(world, network, config, calibration)
    world.builds.append(facts)
    if config.cache is not None:
        part_of(config.cache, "ITimingCache").entries += network.num_layers
    return seal(facts, network.graph)


def _facts(world: World, network: NetworkPart, config: ConfigPart, calibration: str) -> Build:
    return Build(
        version=world.version,
        compute_capability=world.faults.compute_capability,
        device=world.faults.device,
        flags=tuple(sorted(config.flag_names)),
        network_flags=tuple(sorted(network.flag_names)),
        typing="strong" if network.is_strong else "weak",
        workspace_bytes=config.pools["WORKSPACE"],
        optimization_level=config.builder_optimization_level,
        profiling_verbosity=config.profiling_verbosity.name,
        device_type=config.default_device_type.name,
        dla_core=config.DLA_core,
        calibration=calibration,
        timing_entries=0 if config.cache is None else part_of(config.cache, "ITimingCache").entries,
        is_watched=config.progress_monitor is not None,
        graph_sha256=hashlib.sha256(network.graph).hexdigest(),
    )


def _check_typing(world: World, network: NetworkPart, config: ConfigPart) -> None:
    assert network.model is not None
    precisions = config.flag_names & {"FP16", "INT8", "BF16", "FP8", "INT4"}
    if network.is_strong:
        if precisions:
            raise Words(f"Error Code 3: API Usage Error ({sorted(precisions)} with a strongly typed network)")
        if world.faults.strong_typing_fails and graphs.has_pairs(network.model):
            raise Words(
                "Error Code 9: Internal Error ([type.cpp:infer_type] Could not infer output types for operation: "
                "dequantize: No matching rules found for input operand types)"
            )
        return
    for present, flag in ((graphs.has_pairs(network.model), "INT8"), (graphs.halves(network.model), "FP16")):
        if present and flag not in precisions:
            text = f"{flag.lower()} precision has been set for a layer or layer output, but it is not configured"
            raise Words(f"Error Code 4: Internal Error ({text} in the builder)")


def _check_shapes(network: NetworkPart, config: ConfigPart) -> None:
    assert network.model is not None
    profiled = {name for profile in config.profiles for name in profile.shapes}
    for tensor in graphs.inputs_of(network.model):
        if -1 in tensor.shape and tensor.name not in profiled:
            raise Words("Error Code 4: Network has dynamic inputs, but no optimization profile has been defined")


def _check_dla(world: World, network: NetworkPart, config: ConfigPart) -> None:
    assert network.model is not None
    if config.default_device_type.name != "DLA":
        return
    if not 0 <= config.DLA_core < world.dla_cores:
        raise Words(f"Error Code 3: API Usage Error (DLA core {config.DLA_core}: this device has {world.dla_cores})")
    if not config.flag_names & {"FP16", "INT8"}:
        raise Words("Error Code 4: DLA needs FP16 or INT8")
    if graphs.has_pairs(network.model):
        raise Words("Error Code 4: QuantizeLinear and DequantizeLinear are not supported on DLA")
    others = [node.name for node in graphs.nodes_of(network.model) if node.kind not in ON_DLA]
    if others and "GPU_FALLBACK" not in config.flag_names:
        raise Words(f"Error Code 4: Layer {others[0]} is not supported on DLA and GPU fallback is not enabled")


def _calibrate(world: World, network: NetworkPart, config: ConfigPart) -> str:
    assert network.model is not None
    if config.int8_calibrator is None:
        return ""
    part_of(config.int8_calibrator, "IInt8EntropyCalibrator2")
    if "INT8" not in config.flag_names or graphs.has_pairs(network.model):
        world.log("WARNING", "Calibrator won't be used in explicit quantization mode")
        return ""
    data = _ask(config.int8_calibrator.read_calibration_cache)
    text = bytes(data).decode() if data else ""
    if text.split("\n")[0] != world.cache_header:
        world.log("ERROR", "Calibration table does not match calibrator algorithm type.")
        _ask(config.int8_calibrator.get_batch_size)
        if not _ask(config.int8_calibrator.get_batch, [tensor.name for tensor in graphs.inputs_of(network.model)]):
            raise Words("Error Code 4: Calibration failure occurred with no scaling factors detected")
    known = {line.rpartition(": ")[0] for line in text.split("\n")[1:]}
    for name in (name for node in graphs.nodes_of(network.model) for name in node.outputs):
        if name not in known:
            world.log("WARNING", f"Missing scale and zero-point for tensor {name}, expect fall back to non-int8")
    return text


def _check_resources(world: World, network: NetworkPart, config: ConfigPart) -> None:
    assert network.model is not None
    if world.faults.build_out_of_memory:
        raise Words("[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
    if config.pools["WORKSPACE"] < world.faults.needs_workspace_mb * MIB:
        name = graphs.nodes_of(network.model)[0].name
        text = f"Could not find any implementation for node {name} due to insufficient workspace."
        raise Words(f"Error Code 10: Internal Error ({text})")


def _ask(method: Callable[..., Any], *arguments: object) -> Any:
    """Call Python from a build; what it raises would go through TensorRT's frames."""
    try:
        return method(*arguments)
    except BaseException as error:
        raise CrashedError(f"{method.__qualname__} raised {error!r} through TensorRT") from error


def _watch(world: World, config: ConfigPart) -> None:
    """Tell the monitor of the phases, nested as TensorRT nests them, and hold the build where a test asks for it."""
    monitor = config.progress_monitor
    if monitor is not None:
        part_of(monitor, "IProgressMonitor")
        for name, parent, steps in PHASES:
            _ask(monitor.phase_start, name, parent, steps)
    world.hold()
    if monitor is None:
        return
    for name, _parent, steps in reversed(PHASES):
        for step in range(steps):
            if not _ask(monitor.step_complete, name, step):
                for phase, _above, _steps in reversed(PHASES):
                    _ask(monitor.phase_finish, phase)
                raise Words("Error Code 6: the build was cancelled by the progress monitor")
        _ask(monitor.phase_finish, name)
