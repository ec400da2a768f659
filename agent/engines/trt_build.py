"""Building: an ONNX graph becomes a plan for this machine's GPU, on TensorRT 8.6, 10 and 11.

```text
              has STRONGLY_TYPED   has FP16, INT8   int8 is built as
8.6           no                   yes              weak: explicit batch, FP16 + INT8 flags, on the Q/DQ graph
10.x          yes                  yes              strong, on the Q/DQ graph whose rest is FP16; where that fails
                                                    (SM 8.7: NVIDIA/TensorRT#4832), weak as in 8.6
11.x, RTX     yes, without effect  no               no flags: every network is strong; where the graph in FP16
                                                    fails, the Q/DQ graph whose rest is FP32
```

*Weak* typing: the builder chooses each layer's precision among those whose flags are set. *Strong*: the types in the
graph decide. Which way goes is told by the names that a version has. DLA takes no Q/DQ: it is built from the float
graph and the bundle's calibration cache, and so is an engine with `use_calibration_cache`; TensorRT 10.7 is the last
release that runs DLA so.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from agent.engines.trt_api import TensorRt
from agent.errors import ConfigError, EngineError

__all__ = ["BuildOptions", "BuiltPlan", "Graphs", "Heard", "build_plan"]

Precision = Literal["int8", "fp16", "fp32"]
Typing = Literal["strong", "weak"]
GraphName = Literal["trt16", "trt", "fp32"]
Heard = Callable[[str, int, int], None]
"""Phase, step, steps: called at a phase's start with step 0, and after each step, from any thread."""

MIB = 1 << 20
LEVELS = range(6)
"""Builder optimization levels; 3 is TensorRT's own."""
SHOWN = 6
"""Names in a note, before it says how many more there are."""
CACHE_HEADER = re.compile(rb"TRT-\d+-EntropyCalibration2\r?\n")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What an engine is to be.

    Attributes:
        precision: `int8` (with FP16 around it), `fp16` or `fp32`.
        workspace_mb: memory that one layer may use for its working space, MiB.
        optimization_level: 0 (builds fast) to 5 (looks longest for the fastest); None: TensorRT's own.
        version_compatible: the plan runs on later releases of the same major version, too; it may be slower.
        dla_core: run what can on this DLA core, the rest on the GPU; None: all on the GPU.
        sparse: let it use weights of which 2 in 4 are zero.
        use_calibration_cache: INT8 by calibration ranges instead of the Q/DQ graph: TensorRT 8 and 10.

    Raises:
        ConfigError: options out of range, or that exclude one another.
    """

    precision: Precision = "int8"
    workspace_mb: int = 1024
    optimization_level: int | None = None
    version_compatible: bool = False
    dla_core: int | None = None
    sparse: bool = False
    use_calibration_cache: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("int8", "fp16", "fp32"):
            raise ConfigError(f"engine precision: got {self.precision!r}, expected int8, fp16 or fp32")
        if self.workspace_mb < 1:
            raise ConfigError(
                f"engine workspace: got {self.workspace_mb} MiB, expected 1 or more", hint="1024 is usual"
            )
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise ConfigError(f"engine optimization level: got {self.optimization_level}, expected 0 to 5")
        if self.dla_core is not None and self.dla_core < 0:
            raise ConfigError(f"DLA core: got {self.dla_core}, expected 0 or more")
        if self.dla_core is not None and self.precision == "fp32":
            raise ConfigError("DLA computes in int8 or fp16, got precision fp32", hint="leave the DLA core out")
        if self.use_calibration_cache and self.precision != "int8":
            raise ConfigError(f"a calibration cache is for precision int8, got {self.precision}")

    def key(self) -> str:
        """All options as one line: engines with the same line may replace one another."""
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return ",".join(f"{name}={'default' if value is None else value}" for name, value in pairs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """What a bundle has for TensorRT, each as ONNX bytes.

    Attributes:
        qdq: `model.trt.onnx`: Q/DQ pairs, all else float32.
        qdq16: `model.trt16.onnx`: Q/DQ pairs, all else FP16; inputs uint8, outputs float32.
        fp32: `model.fp32.onnx`.
        calibration: `calib.cache`, of the tensors of `fp32`.
    """

    fp32: bytes
    qdq: bytes | None = None
    qdq16: bytes | None = None
    calibration: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan, and how it came to be.

    Attributes:
        plan: for this TensorRT and this GPU alone.
        timing_cache: what the builder measured; makes the next build on this machine faster.
        typing: how the network was typed.
        graph: which graph was built.
        notes: what is not as asked for, and why: a fall-back, layers that left the DLA.
        seconds: what the build took.
    """

    plan: bytes
    timing_cache: bytes | None
    typing: Typing
    graph: GraphName
    notes: tuple[str, ...]
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """One way to build: a graph, its typing, names of builder flags, and the calibration cache's text."""

    graph: GraphName
    data: bytes
    typing: Typing
    flags: tuple[str, ...] = ()
    calibration: bytes | None = None


class _Refused(Exception):  # noqa: N818  # inside this module only
    """TensorRT would not build this recipe; the words are its own."""


def build_plan(
    api: TensorRt,
    graphs: Graphs,
    options: BuildOptions,
    *,
    timing_cache: bytes | None = None,
    heard: Heard | None = None,
) -> BuiltPlan:
    """Build an engine's plan; takes minutes on a Jetson.

    Args:
        api: the TensorRT to build with.
        graphs: what the bundle has.
        options: what the engine is to be.
        timing_cache: that of an earlier build on this machine; one that does not fit is left unused, with a note.
        heard: hears of the progress; TensorRT 8 tells only the start and the end. What it raises ends the build.

    Raises:
        EngineError: this TensorRT can't build it; the message has TensorRT's words, the hint what to do.
    """
    started = time.monotonic()
    refusals: list[str] = []
    for recipe in _recipes(api, graphs, options):
        job = _Job(api, recipe, options, heard)
        try:
            plan, timings = job.run(timing_cache)
        except _Refused as refusal:
            refusals.append(f"{recipe.typing}ly typed {recipe.graph} graph: {refusal}")
            continue
        fallen = [
            f"built {recipe.typing}ly typed from the {recipe.graph} graph; refused: {words}" for words in refusals
        ]
        return BuiltPlan(
            plan=plan,
            timing_cache=timings,
            typing=recipe.typing,
            graph=recipe.graph,
            notes=(*fallen, *_graph_notes(api, graphs, options, recipe), *job.notes),
            seconds=time.monotonic() - started,
        )
    said = "; ".join(refusals)
    raise EngineError(f"{api.name} does not build this engine: {said}", hint=_remedy(said))


def _recipes(api: TensorRt, graphs: Graphs, options: BuildOptions) -> Iterator[_Recipe]:
    """The ways to build what is asked for, best first."""
    has_flags = api.has("BuilderFlag.FP16") and api.has("BuilderFlag.INT8")
    if options.precision == "fp32":
        yield _Recipe(graph="fp32", data=graphs.fp32, typing="weak" if has_flags else "strong")
    elif options.precision == "fp16":
        if not has_flags:
            raise EngineError(
                f"{api.name} takes the precision from the graph, and the bundle has no FP16 graph without INT8",
                hint="engine.tensorrt.precision: int8 (what is not INT8 is FP16 then), or fp32",
            )
        yield _Recipe(graph="fp32", data=graphs.fp32, typing="weak", flags=("FP16",))
    elif options.use_calibration_cache or options.dla_core is not None:
        cache = _calibration(api, graphs)
        yield _Recipe(graph="fp32", data=graphs.fp32, typing="weak", flags=("FP16", "INT8"), calibration=cache)
    else:
        yield from _int8(api, graphs, has_flags=has_flags)


def _int8(api: TensorRt, graphs: Graphs, *, has_flags: bool) -> Iterator[_Recipe]:
    if graphs.qdq is None and graphs.qdq16 is None:
        raise EngineError("the bundle has no INT8 graph for TensorRT", hint="build it with `defect-opt build --int8`")
    may_be_strong = not has_flags or api.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED")
    if graphs.qdq is None and not may_be_strong:
        raise EngineError(f"{api.name} needs the bundle's trt graph, it has only trt16", hint="rebuild the bundle")
    if graphs.qdq16 is not None and may_be_strong:
        yield _Recipe(graph="trt16", data=graphs.qdq16, typing="strong")
    if graphs.qdq is not None and has_flags:
        yield _Recipe(graph="trt", data=graphs.qdq, typing="weak", flags=("FP16", "INT8"))
    elif graphs.qdq is not None:
        yield _Recipe(graph="trt", data=graphs.qdq, typing="strong")


def _calibration(api: TensorRt, graphs: Graphs) -> bytes:
    """The bundle's cache under this release's own first line: TensorRT refuses one of another release.

    The ranges are ours and not a release's, so the number is only a formality. It is NV_TENSORRT_VERSION, whose digits
    grew with release 10: 8601, 100300.
    """
    if not api.has("IInt8EntropyCalibrator2"):
        raise EngineError(
            f"{api.name} has no calibration any more, and so no DLA from a calibration cache",
            hint="leave engine.tensorrt.dla_core and calibration_cache out: the Q/DQ graph needs neither",
        )
    if graphs.calibration is None:
        raise EngineError("the bundle has no calib.cache", hint="rebuild it with `defect-opt build --int8`")
    header = CACHE_HEADER.match(graphs.calibration)
    if header is None:
        got = graphs.calibration[:40]
        raise EngineError(
            f"calib.cache: got {got!r}, expected TRT-NUMBER-EntropyCalibration2", hint="rebuild the bundle"
        )
    major, minor, patch = api.version
    number = major * (10_000 if major >= 10 else 1000) + minor * 100 + patch
    return f"TRT-{number}-EntropyCalibration2\n".encode() + graphs.calibration[header.end() :]


def _graph_notes(api: TensorRt, graphs: Graphs, options: BuildOptions, recipe: _Recipe) -> Iterator[str]:
    if recipe.graph == "trt" and recipe.typing == "strong":
        yield f"what is not INT8 runs in FP32: {api.name} wants the bundle's trt16 graph for FP16"
    elif recipe.graph == "trt" and graphs.qdq16 is None and api.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"):
        yield "weakly typed: the bundle has no trt16 graph for a strongly typed network"
    if options.dla_core is not None and recipe.calibration is not None:
        yield "INT8 from the calibration cache: DLA takes no Q/DQ graph"


class _Job:
    """One recipe on its way through TensorRT."""

    def __init__(self, api: TensorRt, recipe: _Recipe, options: BuildOptions, heard: Heard | None) -> None:
        self._api = api
        self._trt = api.module
        self._recipe = recipe
        self._options = options
        self._heard = heard
        self._raised: BaseException | None = None
        self.notes: list[str] = []

    def run(self, timing_cache: bytes | None) -> tuple[bytes, bytes | None]:
        """Plan and timing cache; `_Refused` where TensorRT says no."""
        self._api.log.errors()
        self._api.log.warnings()
        builder = self._builder()
        try:
            network = self._network(builder)
            config = self._config(builder, network)
            timings = self._timings(config, timing_cache)
            plan = self._build(builder, network, config)
            self._read_warnings()
            return bytes(plan), None if timings is None else bytes(timings.serialize())
        except (RuntimeError, MemoryError) as error:  # what pybind11 makes of C++ exceptions
            if error is self._raised:
                raise
            raise _Refused(self._said(str(error))) from error

    def _builder(self) -> Any:
        try:
            return self._trt.Builder(self._api.log)
        except (TypeError, RuntimeError) as error:  # pybind11's "factory function returned nullptr"
            raise EngineError(
                f"{self._api.name} finds no GPU ({self._said(str(error))})",
                hint="is the user in the groups video and render? `defect-agent check` looks at what is missing",
            ) from error

    def _network(self, builder: Any) -> Any:
        network = builder.create_network(self._network_flags())
        parser = self._trt.OnnxParser(network, self._api.log)
        if not parser.parse(self._recipe.data):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            raise _Refused("; ".join(_parser_words(error) for error in errors) or self._said("no reason given"))
        return network

    def _network_flags(self) -> int:
        flags = self._trt.NetworkDefinitionCreationFlag
        is_choice = self._api.has("BuilderFlag.INT8")
        if self._recipe.typing == "strong":
            return 1 << int(flags.STRONGLY_TYPED) if is_choice else 0
        return 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0

    def _config(self, builder: Any, network: Any) -> Any:
        trt, options = self._trt, self._options
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * MIB)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        for name in self._recipe.flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
        if options.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and 13 bits short of FP32
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.sparse:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if self._recipe.calibration is not None:
            config.int8_calibrator = _calibrator(trt, self._recipe.calibration)
        self._add_profile(builder, network, config)
        if options.dla_core is not None:
            self._use_dla(builder, network, config, options.dla_core)
        return config

    def _add_profile(self, builder: Any, network: Any, config: Any) -> None:
        """Fix a dynamic batch to 1."""
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        for name, shape in shapes.items():
            if -1 in shape[1:]:
                raise EngineError(
                    f"input {name} has the shape {shape}: only the batch may be open",
                    hint="export the model with a fixed height and width",
                )
        if not any(-1 in shape for shape in shapes.values()):
            return
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            one = (1, *shape[1:]) if shape[0] == -1 else shape
            profile.set_shape(name, one, one, one)
        config.add_optimization_profile(profile)

    def _use_dla(self, builder: Any, network: Any, config: Any, core: int) -> None:
        if core >= builder.num_DLA_cores:
            raise EngineError(
                f"DLA core {core}: {self._api.name} finds {builder.num_DLA_cores} on this machine",
                hint="leave engine.tensorrt.dla_core out: Orin Nano has none, TensorRT 10.7 is the last that runs them",
            )
        config.set_flag(self._trt.BuilderFlag.GPU_FALLBACK)
        config.default_device_type = self._trt.DeviceType.DLA
        config.DLA_core = core
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        left = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
        if left:
            self.notes.append(f"DLA core {core}: {len(left)} of {len(layers)} layers run on the GPU: {_listed(left)}")

    def _timings(self, config: Any, data: bytes | None) -> Any:
        cache = config.create_timing_cache(data or b"")
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        self.notes.append(f"the timing cache did not fit, all is timed anew ({self._said('no reason given')})")
        fresh = config.create_timing_cache(b"")
        if fresh is None or not config.set_timing_cache(fresh, False):
            return None
        return fresh

    def _build(self, builder: Any, network: Any, config: Any) -> Any:
        monitor = None
        if self._heard is not None and self._api.has("IBuilderConfig.progress_monitor"):
            monitor = _monitor(self._trt, self._heard)
            config.progress_monitor = monitor
        else:
            self._tell("Building Engine", 0, 1)
        plan = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.raised is not None:
            self._raised = monitor.raised
            raise monitor.raised
        if plan is None:
            raise _Refused(self._said("no plan, and not a word why"))
        if monitor is None:
            self._tell("Building Engine", 1, 1)
        return plan

    def _tell(self, phase: str, step: int, steps: int) -> None:
        if self._heard is None:
            return
        try:
            self._heard(phase, step, steps)
        except BaseException as error:
            self._raised = error
            raise

    def _read_warnings(self) -> None:
        missing = [line for line in self._api.log.warnings() if "Missing scale and zero-point" in line]
        if missing:
            names = [line.split("tensor ", 1)[-1].split(",")[0] for line in missing]
            self.notes.append(f"calib.cache has no range of {len(names)} tensors, so not in INT8: {_listed(names)}")

    def _said(self, otherwise: str) -> str:
        """The last of what TensorRT logged as an error; `otherwise` where it logged nothing."""
        return "; ".join(dict.fromkeys(self._api.log.errors()[-SHOWN:])) or otherwise


def _parser_words(error: Any) -> str:
    """Node and reason; TensorRT 8 knows the node's number only."""
    node = error.node_name() if hasattr(error, "node_name") else f"node {error.node()}"
    return f"{node or 'the graph'}: {' '.join(error.desc().split())}"


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _calibrator(trt: Any, cache: bytes) -> Any:
    """A calibrator that has a cache and no pictures."""

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:  # noqa: ARG002  # TensorRT's signature
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            """Keep none: the bundle's is the one."""

    return Calibrator()


def _monitor(trt: Any, heard: Heard) -> Any:
    """A progress monitor that calls `heard`.

    Nothing may be raised through TensorRT's C++ frames, Ctrl-C included: it is kept, the build is told to stop, and the
    caller raises it.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._told: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 1))

        def _tell(self, phase_name: str, step: int) -> None:
            if self.raised is not None or (step and self._told.get(phase_name) == step):
                return
            self._told[phase_name] = step
            try:
                heard(phase_name, step, self._steps.get(phase_name, 1))
            except BaseException as error:
                self.raised = error

    return Monitor()


def _remedy(said: str) -> str:
    """What to do about TensorRT's words."""
    if "insufficient workspace" in said:
        return "give a layer more: engine.tensorrt.workspace_mb: 4096"
    if "out of memory" in said.lower():
        return "stop other programs, add swap (8 GB on an Orin Nano), or a smaller engine.tensorrt.workspace_mb"
    if "ero point" in said or "cale" in said:
        return "rebuild the bundle with `defect-opt build --int8`; `defect-opt inspect BUNDLE --lint` names the layer"
    return "`defect-opt inspect BUNDLE --lint --target trt` names what TensorRT can't do"
