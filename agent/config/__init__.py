"""The configuration: one YAML file, read once, into frozen types.

Every key has a type, a unit in its name and bounds; an unknown key is refused with its path and the nearest known one.
Nothing keeps the raw YAML, and no environment variable stands beside it (but for secrets, which never stand in it).
`configs/agent.reference.yaml` holds every key with its default; a test holds it to these types.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from agent.config.cameras import (
    ArgusCameraConfig,
    CameraConfig,
    FolderCameraConfig,
    GenicamCameraConfig,
    GStreamerCameraConfig,
    OpenCvCameraConfig,
    PiCameraConfig,
    lag_ms_of,
)
from agent.config.line import GpioOutputConfig, LineConfig, OutputsConfig, TcpOutputConfig
from agent.config.roi import LocateConfig, MaskConfig, PerspectiveConfig, RoiConfig, ViewConfig
from agent.config.triggers import (
    FrameTriggerConfig,
    FreeRunConfig,
    GpioTriggerConfig,
    IntervalTriggerConfig,
    MqttTriggerConfig,
    TcpTriggerConfig,
    TriggerConfig,
)
from agent.errors import ConfigError
from agent.typed_yaml import config_from_mapping
from agent.typed_yaml import key as _key
from agent.yaml_file import read_yaml

__all__ = [
    "AcceptanceConfig",
    "AgentConfig",
    "ArgusCameraConfig",
    "CameraConfig",
    "EngineConfig",
    "EvidenceConfig",
    "FolderCameraConfig",
    "FrameTriggerConfig",
    "FreeRunConfig",
    "GStreamerCameraConfig",
    "GenicamCameraConfig",
    "GpioOutputConfig",
    "GpioTriggerConfig",
    "IntervalTriggerConfig",
    "JournalConfig",
    "LineConfig",
    "LocateConfig",
    "LogConfig",
    "MaskConfig",
    "MqttConfig",
    "MqttTriggerConfig",
    "OpenCvCameraConfig",
    "OutputsConfig",
    "PerspectiveConfig",
    "PiCameraConfig",
    "PolicyConfig",
    "RoiConfig",
    "SparkplugConfig",
    "TcpOutputConfig",
    "TcpTriggerConfig",
    "TensorRtConfig",
    "TlsConfig",
    "TriggerConfig",
    "ViewConfig",
    "WatchdogConfig",
    "ZoneConfig",
    "config_from_mapping",
    "lag_ms_of",
    "read_config",
    "read_yaml",
]

_SPARKPLUG_ID = r"[^/+#\x00-\x1f\x7f\ud800-\udfff]"
_SPARKPLUG_FORM = "a name without `/`, `+`, `#` and control characters"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtConfig:
    """How TensorRT compiles the bundle's graph on this device, and how its engine runs.

    Attributes:
        precision: `auto` is INT8 where the bundle has a graph for it, else FP16; or insist on one.
        workspace_mb: GPU memory that TensorRT may use while it tries kernels.
        optimization_level: 0 builds fast, 5 runs fastest; empty is TensorRT's own choice (3).
        version_compatible: the engine may run on the next TensorRT too, perhaps slower.
        dla_core: compile for this deep learning accelerator; empty is the GPU.
        sparse: use 2:4 sparse kernels where the weights are so.
        calibration_cache: INT8 by the bundle's calibration cache instead of its Q/DQ graph (TensorRT 8 and 10).
        cuda: the library that moves pictures to the GPU; `auto` takes PyCUDA, else cuda-python.
        memory: `mapped` lets the GPU read the picture where it lies (boards whose GPU shares the memory), `copied`
            does not; `auto` is what `accept` measured to be faster.
        cache_dir: where compiled engines are kept; empty is `engines` in the state directory.
        cache_mb: megabytes of engines; the oldest go first, the newest and the last good one stay.
    """

    precision: Literal["auto", "int8", "fp16", "fp32"] = "auto"
    workspace_mb: int = _key(1_024, low=16, high=1_000_000)
    optimization_level: int | None = _key(None, low=0, high=5)
    version_compatible: bool = False
    dla_core: int | None = _key(None, low=0, high=7)
    sparse: bool = False
    calibration_cache: bool = False
    cuda: Literal["auto", "pycuda", "cuda-python"] = "auto"
    memory: Literal["auto", "mapped", "copied"] = "auto"
    cache_dir: Path | None = _key(None, path=True)
    cache_mb: int = _key(2_000, low=1, high=1_000_000)

    def __post_init__(self) -> None:
        if self.dla_core is not None and self.precision == "fp32":
            raise ConfigError(
                "engine.tensorrt.precision: got fp32 beside dla_core, whose accelerators compute in int8 or fp16",
                hint="leave dla_core or precision out",
            )
        if self.calibration_cache and self.precision in ("fp16", "fp32"):
            raise ConfigError(
                f"engine.tensorrt.precision: got {self.precision} beside calibration_cache, which is for int8",
                hint="leave calibration_cache or precision out",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What runs the model.

    Attributes:
        kind: `onnxruntime` (the CPU), `trt` (TensorRT, never anything else), or `auto` for the best one here: TensorRT
            where it and its GPU are there, else ONNX Runtime. A fall-back is said in every verdict.
        threads: CPU threads of one inference; `auto` tests at the first start, and takes more than one only where they
            pay, or where the deadline needs them.
        graph: `auto` takes what the bundle calls its CPU graph; `cpu` (INT8) or `fp32` insists, on the CPU.
        tensorrt: how TensorRT compiles and runs.
    """

    kind: Literal["auto", "onnxruntime", "trt"] = "auto"
    threads: int | Literal["auto"] = _key("auto", low=1, high=256)
    graph: Literal["auto", "cpu", "fp32"] = "auto"
    tensorrt: TensorRtConfig = TensorRtConfig()

    def __post_init__(self) -> None:
        if self.kind == "trt" and self.graph != "auto":
            raise ConfigError(
                f"engine.graph: got {self.graph}, which is a graph for the CPU, beside engine.kind: trt",
                hint="leave engine.graph out; engine.tensorrt.precision chooses INT8, FP16 or FP32",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceConfig:
    """When an engine may go live, and what happens when it is no longer what was accepted.

    Attributes:
        required: `run` refuses a bundle, or an engine, that `defect-agent accept` did not take on this device.
        max_changed: golden pictures that may get another verdict than at the build.
        max_changed_bound: largest rate of changed verdicts (95 % upper bound) to accept; empty asks for none.
        max_p99_ms: largest 99th percentile of one inference, warm, in milliseconds; empty asks for none.
        slow_factor: an engine that takes this many times its time at acceptance is too slow.
        replay_hours: hours between two replays of the golden pictures; 0 replays at the start only.
        on_change: an engine that is not what was accepted makes the status `degraded`, or stops the line.
    """

    required: bool = False
    max_changed: int = _key(0, low=0, high=200)
    max_changed_bound: float | None = _key(None, low=0, high=1)
    max_p99_ms: float | None = _key(None, low=0.001, high=100_000)
    slow_factor: float = _key(2.0, low=1.1, high=100)
    replay_hours: float = _key(24.0, low=0, high=8_760)
    on_change: Literal["degrade", "stop"] = "degrade"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZoneConfig:
    """A part of the picture with limits of its own (detectors only); empty keys keep what holds around it.

    Attributes:
        name: how verdicts call it.
        box: x, y, width and height in pixels of the frame; this or `polygon`.
        polygon: 3 to 64 corners in order, x and y each, in pixels of the frame.
        defect_above: score (0 to 1) from which a finding in it makes the part a defect.
        review_above: score (0 to 1) from which a person looks at the part.
        min_size_mm: findings in it whose longer side is shorter are no defects; empty leaves that to their class.
        ignore: findings that lie in it entirely are no defects.
        view: whose frames it lies in, where several cameras look at a part; empty is each of them.
    """

    name: str = _key(pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    box: tuple[float, ...] | None = _key(None, low=0, high=65_535)
    polygon: tuple[tuple[float, ...], ...] | None = _key(None, low=0, high=65_535)
    defect_above: float | None = _key(None, low=0, high=1)
    review_above: float | None = _key(None, low=0, high=1)
    min_size_mm: float | None = _key(None, low=0, high=100_000)
    ignore: bool = False
    view: str = _key("", pattern=r"[\w.-]{0,40}", form="the name of a view")

    def __post_init__(self) -> None:
        problem, limits = "", (self.defect_above, self.review_above, self.min_size_mm)
        corners = ((0.0, 0.0),) * 3 if self.polygon is None else self.polygon
        if (self.box is None) == (self.polygon is None):
            problem = f"box, polygon: got {'neither' if self.box is None else 'both'}, expected one of them"
        elif self.box is not None and (len(self.box) != 4 or min(self.box[2:]) <= 0):
            problem = f"box: got {list(self.box)}, expected x, y, width and height, the last two over 0"
        elif not 3 <= len(corners) <= 64 or any(len(corner) != 2 for corner in corners):
            problem = f"polygon: got {len(corners)} corners, expected 3 to 64 of the form [x, y]"
        elif self.ignore and limits != (None, None, None):
            problem = "ignore: got true beside limits, which would never be used: expected one or the other"
        if problem:
            raise ConfigError(f"policy.zones: {self.name}: {problem}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Decision limits in place of the bundle's; empty keys keep the bundle's.

    Attributes:
        defect_above: defect score (0 to 1) from which a part is a defect.
        review_above: defect score (0 to 1) from which a person looks at it.
        pixel_mm: one pixel of the frame in millimetres (detectors only), for sizes.
        zones: parts of the picture with limits of their own (detectors only), 50 at most.
    """

    defect_above: float | None = _key(None, low=0, high=1)
    review_above: float | None = _key(None, low=0, high=1)
    pixel_mm: float | None = _key(None, low=0.000001, high=1000)
    zones: tuple[ZoneConfig, ...] = ()

    def __post_init__(self) -> None:
        names = [zone.name for zone in self.zones]
        if len(set(names)) != len(names) or len(names) > 50:
            raise ConfigError(f"policy.zones: got {', '.join(names)[:200]}, expected at most 50 different names")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceConfig:
    """Pictures of judged parts, kept as files beside the journal.

    Attributes:
        keep: `flagged` keeps defect, review and error; `all` also the good ones; `none` keeps nothing.
        quota_mb: megabytes on disk; the oldest pictures go first, and the loss is an event.
        jpeg_quality: 1 to 100.
        max_image_kb: largest picture that goes over MQTT; a larger one is encoded again, smaller.
    """

    keep: Literal["flagged", "all", "none"] = "flagged"
    quota_mb: int = _key(2_000, low=1, high=10_000_000)
    jpeg_quality: int = _key(90, low=1, high=100)
    max_image_kb: int = _key(100, low=4, high=100_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalConfig:
    """The durable record.

    Attributes:
        retention_days: how long verdicts are kept after they were published.
        max_pending: verdicts that may wait for the disk before the line waits.
        reserve_mb: disk space kept back for verdicts when the disk is full.
        evidence: pictures.
    """

    retention_days: float = _key(365.0, low=0.01, high=36_500)
    max_pending: int = _key(256, low=1, high=100_000)
    reserve_mb: int = _key(16, low=0, high=10_000)
    evidence: EvidenceConfig = EvidenceConfig()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS to the broker; host names are always checked.

    Attributes:
        ca_file: certificates that sign the broker's; empty takes the system's.
        cert_file: our certificate, for mutual TLS.
        key_file: its key.
    """

    ca_file: Path | None = _key(None, path=True)
    cert_file: Path | None = _key(None, path=True)
    key_file: Path | None = _key(None, path=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MqttConfig:
    """The broker, and how we speak to it.

    Attributes:
        host: name or address.
        port: 1883, or 8883 with TLS.
        protocol: `auto` tries MQTT 5 and falls back to 3.1.1.
        client_id: empty makes one of the station's name; two agents must never share one.
        username: empty for none.
        password_file: a file that holds the password and that others can't read.
        keepalive_s: a dead link is noticed after twice that.
        inflight: messages sent and not yet acknowledged.
        backlog_rate_hz: messages per second while a backlog is drained (brokers drop faster bursts).
        reconnect_max_s: longest wait between two tries.
        metrics_s: seconds between two metrics messages; 0 sends none.
        tls: empty for none.
    """

    host: str = _key("127.0.0.1", pattern=r"[\w.:-]{1,253}", form="a host name or address")
    port: int = _key(1883, low=1, high=65_535)
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    client_id: str = _key("", pattern=r"[\w./-]{0,64}", form="up to 64 letters, digits, `_`, `.`, `/` or `-`")
    username: str = _key("", pattern=r"[^\x00-\x1f]{0,256}", form="up to 256 characters, no control characters")
    password_file: Path | None = _key(None, path=True)
    keepalive_s: int = _key(15, low=2, high=3_600)
    inflight: int = _key(20, low=1, high=100)
    backlog_rate_hz: float = _key(200.0, low=1, high=100_000)
    reconnect_max_s: float = _key(2.0, low=0.1, high=600)
    metrics_s: float = _key(10.0, low=0, high=3_600)
    tls: TlsConfig | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SparkplugConfig:
    """The station as a Sparkplug B edge node with one device, over a connection of its own to the broker of `mqtt`.

    Attributes:
        group_id: empty takes the station's path without its last level, with `-` for `/`.
        edge_node_id: empty takes the last level of the station's path; unique within the group.
        device_id: of the station below its node.
        primary_host_id: births and data wait for this host; empty waits for none.
        primary_host_form: how it says that it is there: JSON on `spBv1.0/STATE/ID`, or text on `STATE/ID`.
        history_limit: verdicts that are sent late after an outage; of more the newest.
        history_rate_hz: of those per second, beside the live ones.
        metrics_s: seconds between two looks at counters and health; what has changed is sent.
        rebirth_s: shortest time between two births on request.
        datatype_in_data: also in data, where the specification would leave it out and a common decoder reads null.
    """

    group_id: str = _key("", pattern=_SPARKPLUG_ID + "{0,300}", form=_SPARKPLUG_FORM)
    edge_node_id: str = _key("", pattern=_SPARKPLUG_ID + "{0,128}", form=_SPARKPLUG_FORM)
    device_id: str = _key("inspection", pattern=_SPARKPLUG_ID + "{1,128}", form=_SPARKPLUG_FORM)
    primary_host_id: str = _key("", pattern=_SPARKPLUG_ID + "{0,128}", form=_SPARKPLUG_FORM)
    primary_host_form: Literal["3.0", "2.2"] = "3.0"
    history_limit: int = _key(100_000, low=0, high=100_000_000)
    history_rate_hz: float = _key(50.0, low=0.1, high=100_000)
    metrics_s: float = _key(10.0, low=0.1, high=3_600)
    rebirth_s: float = _key(2.0, low=0.0, high=60)
    datatype_in_data: bool = True

    def __post_init__(self) -> None:
        if self.group_id == "STATE":
            raise ConfigError("sparkplug.group_id: got STATE, which is where hosts tell their state, expected another")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogConfig:
    """When the line counts as stuck.

    Attributes:
        stuck_s: longest time one part may take before the watchdog is no longer fed.
    """

    stuck_s: float = _key(10.0, low=1, high=600)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """One line per part on standard output.

    Attributes:
        format: `text` for people, `json` for collectors, `auto` is text on a terminal and JSON elsewhere.
        level: `debug`, `info`, `warning` or `error`.
    """

    format: Literal["auto", "text", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Everything that one station needs.

    Attributes:
        station: ROOT, an ISA-95 path of one to five levels: `acme/plant1/finishing/line3/cam1`.
        state_dir: where the journal and its pictures live; made when absent.
        bundle: the `.defect` file.
        recipe: the recipe's name in every verdict; empty for none.
        camera: where frames come from.
        roi: what the model sees of a frame; null is all of it.
        views: further cameras that look at the same part, 15 at most.
        trigger: what makes a part.
        line: how the line keeps its pace.
        outputs: the fast result lines.
        engine: what runs the model.
        acceptance: when an engine may go live.
        policy: decision limits.
        journal: the durable record.
        mqtt: the broker; null runs without one.
        sparkplug: the same verdicts as Sparkplug B; null is none.
        watchdog: when the line counts as stuck.
        log: the log.
    """

    station: str = _key(
        pattern=r"[^/+#$\s\x00-\x1f][^/+#\x00-\x1f]{0,63}(/[^/+#\x00-\x1f]{1,64}){0,4}",
        form="one to five names with slashes between, without `+`, `#` or a leading `$`: acme/plant1/line3/cam1",
    )
    state_dir: Path = _key(path=True)
    bundle: Path = _key(path=True)
    recipe: str = _key("", pattern=r"[\w.-]{0,64}", form="up to 64 letters, digits, `_`, `.` or `-`")
    camera: CameraConfig = _key()
    roi: RoiConfig | None = None
    views: tuple[ViewConfig, ...] = ()
    trigger: TriggerConfig = FrameTriggerConfig(kind="frame")
    line: LineConfig = LineConfig()
    outputs: OutputsConfig = OutputsConfig()
    engine: EngineConfig = EngineConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()
    policy: PolicyConfig = PolicyConfig()
    journal: JournalConfig = JournalConfig()
    mqtt: MqttConfig | None = MqttConfig()
    sparkplug: SparkplugConfig | None = None
    watchdog: WatchdogConfig = WatchdogConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        low, high = self.policy.review_above, self.policy.defect_above
        if low is not None and high is not None and low > high:
            raise ConfigError(f"policy.review_above: got {low}, expected at most policy.defect_above ({high})")
        if isinstance(self.camera, OpenCvCameraConfig) and isinstance(self.trigger, FrameTriggerConfig):
            self._leave_time_for(self.camera)
        self._leave_time_for_triggered()
        self._know_the_lag()
        self._check_views()
        if isinstance(self.trigger, MqttTriggerConfig) and self.mqtt is None:
            raise ConfigError("trigger.kind: got mqtt beside mqtt: null, expected a broker that the commands come from")
        if self.sparkplug is not None and self.mqtt is None:
            raise ConfigError("sparkplug: got keys beside mqtt: null, expected a broker, which is that of mqtt")

    @property
    def engines_dir(self) -> Path:
        """Where compiled engines are kept."""
        return self.engine.tensorrt.cache_dir or self.state_dir / "engines"

    def _check_views(self) -> None:
        """Names that tell views apart, pictures that can be joined, and zones of a view that is there."""
        names = [self.camera.name, *(view.name for view in self.views)]
        if len(set(names)) != len(names) or len(names) > 16:
            raise ConfigError(
                f"views: got the names {', '.join(names)[:200]}, expected at most 16 different ones (the first is "
                "camera.name)"
            )
        for view in self.views:
            if isinstance(view.camera, FolderCameraConfig) != isinstance(self.camera, FolderCameraConfig):
                raise ConfigError(
                    f"views: {view.name}: got {view.camera.kind} beside {self.camera.kind}: pictures of a folder are "
                    "joined by their names, those of a camera by their times, expected folders only, or none"
                )
            if view.delay_ms + view.window_ms > self.watchdog.stuck_s * 1000:
                raise ConfigError(
                    f"views: {view.name}: got delay_ms and window_ms of {view.delay_ms + view.window_ms:g} together, "
                    f"expected at most watchdog.stuck_s ({self.watchdog.stuck_s:g} s)"
                )
        for zone in self.policy.zones:
            if zone.view and zone.view not in names:
                raise ConfigError(
                    f"policy.zones: {zone.name}: view: got {zone.view}, expected one of {', '.join(names)}"
                )

    def _leave_time_for_triggered(self) -> None:
        """A part may wait for its frame as long as the camera is slow; the watchdog must not take that for stuck."""
        if isinstance(self.camera, FolderCameraConfig) or isinstance(self.trigger, FrameTriggerConfig | FreeRunConfig):
            return
        latency_ms = 0.0 if isinstance(self.camera, PiCameraConfig) else lag_ms_of(self.camera)
        delay_ms = self.trigger.delay_ms + self.outputs.settle_ms
        wait_s = (delay_ms + self.camera.read_timeout_ms + latency_ms) / 1000
        if wait_s > self.watchdog.stuck_s:
            raise ConfigError(
                f"watchdog.stuck_s: got {self.watchdog.stuck_s:g}, expected at least {wait_s:g}: a triggered part may "
                "wait for trigger.delay_ms, outputs.settle_ms, camera.read_timeout_ms and camera.latency_ms together"
            )

    def _know_the_lag(self) -> None:
        """A stream that lags by more than somebody guessed shows the part before: it must not be guessed."""
        if isinstance(self.trigger, FrameTriggerConfig | FreeRunConfig):
            return
        for where, camera in (
            ("camera", self.camera),
            *((f"views: {view.name}: camera", view.camera) for view in self.views),
        ):
            if isinstance(camera, OpenCvCameraConfig | GStreamerCameraConfig) and camera.is_lag_unknown:
                raise ConfigError(
                    f"{where}.latency_ms: missing: a triggered part needs to know by how much a stream lags, or "
                    "it may get the picture of the part before",
                    hint="film a running stopwatch with it: latency_ms is the most by which the picture lags, from the "
                    "start of the exposure to the frame's arrival",
                )

    def _leave_time_for(self, camera: OpenCvCameraConfig) -> None:
        """With one part per frame the line itself waits for the camera; the watchdog must not take that for stuck."""
        wait_s = (camera.open_timeout_ms + camera.read_timeout_ms) / 1000
        if wait_s > self.watchdog.stuck_s:
            raise ConfigError(
                f"watchdog.stuck_s: got {self.watchdog.stuck_s:g}, expected at least {wait_s:g}: with one part per "
                "frame the line may wait for camera.open_timeout_ms and camera.read_timeout_ms together"
            )


def read_config(path: Path) -> AgentConfig:
    """Read and check one configuration file.

    Raises:
        ConfigError: the file can't be read, is no YAML, or holds a key, type or value that we don't know.
    """
    return config_from_mapping(AgentConfig, read_yaml(path), source=path)
