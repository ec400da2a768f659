"""The configuration: one YAML file, read once, into frozen types.

Every key has a type, a unit in its name and bounds; an unknown key is refused with its path and the nearest known one.
Nothing keeps the raw YAML, and no environment variable stands beside it (but for secrets, which never stand in it).
`configs/agent.reference.yaml` holds every key with its default; a test holds it to these types.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from agent.errors import ConfigError
from agent.yaml_file import HINT, read_yaml, shown

__all__ = [
    "AgentConfig",
    "CameraConfig",
    "EngineConfig",
    "EvidenceConfig",
    "FolderCameraConfig",
    "FrameTriggerConfig",
    "FreeRunConfig",
    "JournalConfig",
    "LogConfig",
    "MqttConfig",
    "OpenCvCameraConfig",
    "PolicyConfig",
    "TlsConfig",
    "TriggerConfig",
    "WatchdogConfig",
    "ZoneConfig",
    "config_from_mapping",
    "read_config",
    "read_yaml",
]

T = TypeVar("T")


def _key(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    pattern: str | None = None,
    form: str = "",
    path: bool = False,
) -> Any:
    """One key with its bounds; `form` is its `pattern` in words, a relative `path` starts at the file's folder."""
    bounds = {"low": low, "high": high, "pattern": pattern, "form": form, "path": path}
    return dataclasses.field(default=default, metadata=bounds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderCameraConfig:
    """Pictures from a folder, in the order of their names: for tests, acceptance and replays.

    Attributes:
        kind: `folder`.
        name: how messages and logs call it.
        path: the folder; sub-folders are searched too, files that are no pictures are left alone and counted.
        rate_hz: parts per second; 0 is as fast as the line can.
        loop: start again at the end, for ever.
        resume: leave out pictures that the journal already holds a verdict for.
        max_pixels: a picture with more is refused before it is decoded (default 200 MP).
    """

    kind: Literal["folder"]
    name: str = _key("folder", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    path: Path = _key(path=True)
    rate_hz: float = _key(0.0, low=0, high=10_000)
    loop: bool = False
    resume: bool = True
    max_pixels: int = _key(200_000_000, low=1, high=2_000_000_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenCvCameraConfig:
    """A video file, an RTSP or HTTP stream, or a USB camera, through OpenCV.

    Attributes:
        kind: `opencv`.
        name: how messages and logs call it.
        source: device number (`"0"`), `/dev/v4l/by-id/…`, a video file, or an `rtsp://` or `http://` URL.
        width_px: asked of the device; 0 leaves it alone.
        height_px: asked of the device; 0 leaves it alone.
        fps: asked of the device; 0 leaves it alone.
        open_timeout_ms: longest time to open a stream.
        read_timeout_ms: longest time without a frame; then the camera counts as lost.
        reopen_s: shortest wait before a lost camera is opened again; grows to eight times that.
    """

    kind: Literal["opencv"]
    name: str = _key("camera", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    source: str = _key()
    width_px: int = _key(0, low=0, high=16_384)
    height_px: int = _key(0, low=0, high=16_384)
    fps: float = _key(0.0, low=0, high=1_000)
    open_timeout_ms: int = _key(3_000, low=100, high=60_000)
    read_timeout_ms: int = _key(2_000, low=50, high=60_000)
    reopen_s: float = _key(1.0, low=0.1, high=60)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameTriggerConfig:
    """Every frame that the camera delivers is one part; none is left out.

    Attributes:
        kind: `frame`.
    """

    kind: Literal["frame"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FreeRunConfig:
    """The newest frame is judged, as often as the line can; frames that came meanwhile are no parts.

    Attributes:
        kind: `free`.
        part_prefix: generated part ids begin with it.
    """

    kind: Literal["free"]
    part_prefix: str = _key("part", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")


CameraConfig = Union[FolderCameraConfig, OpenCvCameraConfig]  # noqa: UP007 - read at run time on Python 3.10
TriggerConfig = Union[FrameTriggerConfig, FreeRunConfig]  # noqa: UP007


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What runs the model.

    Attributes:
        kind: `onnxruntime`, or `auto` for the best one here (said in every verdict).
        threads: CPU threads of one inference; one takes half the CPU of two and is steadier.
        graph: `auto` takes what the bundle calls its CPU graph; `cpu` (INT8) or `fp32` insists.
    """

    kind: Literal["auto", "onnxruntime"] = "auto"
    threads: int = _key(1, low=1, high=256)
    graph: Literal["auto", "cpu", "fp32"] = "auto"


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
    """

    name: str = _key(pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    box: tuple[float, ...] | None = _key(None, low=0, high=65_535)
    polygon: tuple[tuple[float, ...], ...] | None = _key(None, low=0, high=65_535)
    defect_above: float | None = _key(None, low=0, high=1)
    review_above: float | None = _key(None, low=0, high=1)
    min_size_mm: float | None = _key(None, low=0, high=100_000)
    ignore: bool = False

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
        trigger: what makes a part.
        engine: what runs the model.
        policy: decision limits.
        journal: the durable record.
        mqtt: the broker; null runs without one.
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
    trigger: TriggerConfig = FrameTriggerConfig(kind="frame")
    engine: EngineConfig = EngineConfig()
    policy: PolicyConfig = PolicyConfig()
    journal: JournalConfig = JournalConfig()
    mqtt: MqttConfig | None = MqttConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        low, high = self.policy.review_above, self.policy.defect_above
        if low is not None and high is not None and low > high:
            raise ConfigError(f"policy.review_above: got {low}, expected at most policy.defect_above ({high})")
        if isinstance(self.camera, OpenCvCameraConfig) and isinstance(self.trigger, FrameTriggerConfig):
            self._leave_time_for(self.camera)

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


def config_from_mapping(cls: type[T], raw: dict[str, Any], *, source: Path) -> T:
    """Build frozen types from a YAML mapping; used for `defect-opt.yaml` too.

    Args:
        cls: a frozen dataclass whose fields are scalars, `Path`, `Literal`, tuples, other such classes, or a union
            of classes told apart by their `kind`.
        raw: what `read_yaml` gave.
        source: the file, for messages, and the folder that relative paths start from.

    Raises:
        ConfigError: with the path of the key, what was got and what was expected.
    """
    try:
        return _Reader(source).build(cls, raw, "")
    except ConfigError as error:
        if str(source) in error.message:
            raise
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error


class _Reader:
    """Walks types and values side by side."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def build(self, cls: type[T], raw: Any, where: str) -> T:
        if not isinstance(raw, dict):
            self._refuse(where, f"got {shown(raw)}, expected keys and values")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in raw:
            if key not in fields:
                self._refuse(_join(where, key), "unknown key", _did_you_mean(str(key), where, list(fields)))
        values = {}
        for name, field in fields.items():
            if name in raw:
                values[name] = self._value(hints[name], raw[name], _join(where, name), field.metadata)
            elif field.default is dataclasses.MISSING:
                self._refuse(_join(where, name), "missing")
        return cls(**values)

    def _value(self, hint: Any, raw: Any, where: str, meta: Any) -> Any:
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._union(get_args(hint), raw, where, meta)
        if origin is Literal:
            return self._choice(get_args(hint), raw, where)
        if origin is tuple:
            if not isinstance(raw, list):
                self._refuse(where, f"got {shown(raw)}, expected a list")
            return tuple(self._value(get_args(hint)[0], item, f"{where}[{i}]", meta) for i, item in enumerate(raw))
        if dataclasses.is_dataclass(hint):
            return self.build(typing.cast("type[Any]", hint), raw, where)
        return self._scalar(hint, raw, where, meta)

    def _choice(self, choices: tuple[Any, ...], raw: Any, where: str) -> Any:
        if raw not in choices or isinstance(raw, bool):
            quoted = f' (in quotes: "{raw}")' if isinstance(raw, (int, float)) and str(raw) in choices else ""
            self._refuse(where, f"got {shown(raw)}, expected one of {', '.join(map(str, choices))}{quoted}")
        return raw

    def _union(self, options: tuple[Any, ...], raw: Any, where: str, meta: Any) -> Any:
        if raw is None and type(None) in options:
            return None
        options = tuple(o for o in options if o is not type(None))
        if len(options) == 1:
            return self._value(options[0], raw, where, meta)
        if not isinstance(raw, dict):
            self._refuse(where, f"got {shown(raw)}, expected keys and values")
        kinds = {get_args(typing.get_type_hints(o)["kind"])[0]: o for o in options}
        kind = raw.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            self._refuse(f"{where}.kind", f"got {shown(kind)}, expected one of {', '.join(kinds)}")
        return self.build(kinds[kind], raw, where)

    def _scalar(self, hint: Any, raw: Any, where: str, meta: Any) -> Any:
        if hint is Path:
            return self._path(raw, where)
        number = hint is float and isinstance(raw, int) and not isinstance(raw, bool)
        if not number and (not isinstance(raw, hint) or (hint is not bool and isinstance(raw, bool))):
            self._refuse(where, f"got {shown(raw)}, expected {_WORDS.get(hint, hint.__name__)}{_quotes(hint, raw)}")
        low, high, pattern = meta.get("low"), meta.get("high"), meta.get("pattern")
        if isinstance(raw, float) and not math.isfinite(raw):
            self._refuse(where, f"got {raw}, expected a finite number")
        if (low is not None and raw < low) or (high is not None and raw > high):
            self._refuse(where, f"got {shown(raw)}, expected {low:.10g} to {high:.10g}")
        if pattern is not None and not re.fullmatch(pattern, raw):
            self._refuse(where, f"got {shown(raw)}, expected {meta.get('form') or f'the form {pattern}'}")
        return float(raw) if number else raw  # only now: a whole number of 400 digits is no float

    def _path(self, raw: Any, where: str) -> Path:
        if not isinstance(raw, str) or not raw or "\x00" in raw:
            self._refuse(where, f"got {shown(raw)}, expected a path")
        try:
            return (self._source.parent / Path(raw).expanduser()).absolute()
        except RuntimeError:  # ~somebody
            self._refuse(where, f"got {shown(raw)}, expected a path (there is no such user)")

    def _refuse(self, where: str, problem: str, suggestion: str = "") -> typing.NoReturn:
        place = where or "the top level"
        raise ConfigError(f"{self._source}: {place}: {problem}{suggestion}", hint=HINT)


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _did_you_mean(key: str, where: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [k for k in known if key and k.startswith(key)]
    return f" (did you mean {_join(where, near[0])}?)" if near else f" (known here: {', '.join(known)})"


def _quotes(hint: Any, raw: Any) -> str:
    """The remedy for `source: 0` and `recipe: no`, which YAML reads as a number and as false."""
    if hint is not str or raw is None or isinstance(raw, (list, dict)):
        return ""
    return " (in quotes)" if isinstance(raw, bool) or not isinstance(raw, (int, float)) else f' (in quotes: "{raw}")'
