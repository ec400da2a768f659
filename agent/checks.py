"""The look before the leap: configuration, disk, clock, bundle, engine, camera and broker, one finding each.

Every check runs even when an earlier one failed, as far as it can; none changes anything but the state directory, which
it makes when it is absent, as `run` would.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agent.acceptance import ACCEPT_AGAIN, check_admission, reference_graph
from agent.bundle import Bundle, is_as_recorded, open_bundle
from agent.cameras import Camera, open_camera, open_view
from agent.checks_device import Finding, device_findings, is_tensorrt_wanted
from agent.config import (
    AgentConfig,
    FrameTriggerConfig,
    RoiConfig,
    ViewConfig,
    read_config,
)
from agent.cores import line_cores, running_on
from agent.engines import Engine, fell_back, open_cache, open_engine, time_for_one
from agent.errors import AgentError, ConfigError
from agent.frame import Fault, Part, Stamp
from agent.health import clock_synced
from agent.outputs import open_outputs
from agent.publisher import probe
from agent.roi import NotFound, Roi
from agent.triggers import open_trigger
from agent.verdict import policy_from_config

__all__ = ["Finding", "check_station"]

LOW_DISK_BYTES = 500_000_000
FIRST_FRAME_S = 5.0
SLOW_ENGINE_MS = 200.0


def check_station(path: Path, *, with_camera: bool = True, with_broker: bool = True) -> Iterator[Finding]:
    """Check one station, giving each finding as it is made.

    Args:
        path: the configuration file.
        with_camera: open the camera and take one picture; not while the agent itself is running on it.
        with_broker: connect to the broker.
    """
    try:
        config = read_config(path)
    except ConfigError as error:
        yield _failed("config", error, "configs/agent.reference.yaml holds every key")
        return
    yield Finding(subject="config", level="ok", text=f"{path}: station {config.station}")
    yield from _guarded("disk", lambda: _disk(config))
    yield from _guarded("clock", _clock)
    yield from _guarded("pace", lambda: _pace(config))
    yield from _bundle_and_engine(config)
    if with_camera:
        yield from _guarded("camera", lambda: _camera(config))
        for view in config.views:
            yield from _guarded("camera", lambda view=view: _view(config, view))  # type: ignore[misc]
        yield from _guarded("trigger", lambda: _trigger_and_outputs(config))
    if with_broker:
        yield from _guarded("broker", lambda: _broker(config))


def _guarded(subject: str, check: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield check()
    except AgentError as error:
        yield _failed(subject, error, "see the message")


def _failed(subject: str, error: AgentError, remedy: str) -> Finding:
    return Finding(subject=subject, level="fail", text=error.message, remedy=error.hint or remedy)


_DISK_REMEDIES = {
    errno.EACCES: "give the agent's user a directory of its own: install -d -o defect-agent -m 700 STATE_DIR",
    errno.EPERM: "give the agent's user a directory of its own: install -d -o defect-agent -m 700 STATE_DIR",
    errno.ENOSPC: f"free at least {LOW_DISK_BYTES // 1_000_000} MB there, or move state_dir to a larger disk",
    errno.EROFS: "the file system is mounted read-only: move state_dir to one that is not",
    errno.ENOTDIR: "a file stands where a folder should: choose another state_dir",
    errno.EEXIST: "a file stands where a folder should: choose another state_dir",
}


def _disk(config: AgentConfig) -> Finding:
    where = config.state_dir
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"\0")
            start = time.perf_counter()
            os.fsync(file.fileno())
            sync_ms = (time.perf_counter() - start) * 1000
    except OSError as error:
        return Finding(
            subject="disk",
            level="fail",
            text=f"{where}: can't be written ({error.strerror})",
            remedy=_DISK_REMEDIES.get(error.errno or 0, "see the message, and `dmesg` for the disk's own words"),
        )
    free, quota = shutil.disk_usage(where).free, config.journal.evidence.quota_mb * 1_000_000
    text = f"{where}: {free / 1e9:.1f} GB free, one sync to disk takes {sync_ms:.1f} ms"
    if free < LOW_DISK_BYTES:
        return Finding(
            subject="disk",
            level="fail",
            text=text,
            remedy=f"free at least {LOW_DISK_BYTES // 1_000_000} MB, or move state_dir",
        )
    if free < quota:
        remedy = f"set journal.evidence.quota_mb under {free // 1_000_000} (it is {quota // 1_000_000})"
        return Finding(subject="disk", level="warn", text=f"{text}, less than the pictures' quota", remedy=remedy)
    return Finding(subject="disk", level="ok", text=text)


def _clock() -> Finding:
    state = clock_synced()
    if state == "synced":
        return Finding(subject="clock", level="ok", text="synchronized")
    return Finding(
        subject="clock",
        level="warn",
        text=f"{state}: verdicts are marked with it; their order does not depend on it",
        remedy="timedatectl set-ntp true, with a time server that the plant's network lets through",
    )


def _bundle_and_engine(config: AgentConfig) -> Iterator[Finding]:
    try:
        bundle = open_bundle(config.bundle)
    except AgentError as error:
        yield _failed("bundle", error, "copy the bundle again")
        yield Finding(
            subject="engine", level="fail", text="not tried: there is no bundle", remedy="mend the bundle first"
        )
        return
    manifest = bundle.manifest
    text = f"{manifest.name}-{manifest.version}, {len(manifest.files)} files verified, digest {bundle.digest[:12]}"
    if manifest.gate_passed:
        yield Finding(subject="bundle", level="ok", text=text)
    else:
        reasons = "; ".join(manifest.gate_reasons)
        yield Finding(
            subject="bundle",
            level="warn",
            text=f"{text}; it failed its gate: {reasons}",
            remedy="defect-opt build says which layers hold it back; raise --max-drop only with your eyes open",
        )
    yield from _guarded("policy", lambda: _policy(bundle, config))
    is_compiled = True
    if is_tensorrt_wanted(config):
        for finding in _device(config, bundle):
            is_compiled = is_compiled and (finding.subject != "cache" or finding.level == "ok")
            yield finding
    identity: dict[str, str] = {}
    if is_compiled:
        yield from _guarded("engine", lambda: _engine(bundle, config, identity))
    else:
        text, remedy = "not tried: it is not compiled yet", "defect-agent build-engine, then check again"
        yield Finding(subject="engine", level="warn", text=text, remedy=remedy)
        identity.update(_identity(bundle, config))
    yield from _guarded("accept", lambda: _accepted(bundle, config, identity))


def _device(config: AgentConfig, bundle: Bundle) -> Iterator[Finding]:
    try:
        yield from device_findings(config, bundle)
    except AgentError as error:
        yield _failed("gpu", error, "see the message")


def _identity(bundle: Bundle, config: AgentConfig) -> Mapping[str, str]:
    """What the TensorRT engine would be, which is not compiled yet; empty where nobody can say."""
    from agent.engines.trt_open import identity_here

    with contextlib.suppress(AgentError):
        return identity_here(bundle, config.engine)
    return {}


def _accepted(bundle: Bundle, config: AgentConfig, identity: Mapping[str, str]) -> Finding:
    """What `defect-agent accept` said of this bundle on the engine that would run, and so whether `run` would start.

    Raises:
        ConfigError: it would not; the reason and the remedy.
    """
    if not identity:
        text, remedy = "not compared: nobody knows which engine would run", "mend the engine first"
        return Finding(subject="accept", level="warn", text=text, remedy=remedy)
    admission = check_admission(config, bundle, identity)
    accepted = admission.accepted
    if accepted is not None and admission.differs:
        text = f"accepted on {accepted.time[:10]} was another engine ({'; '.join(admission.differs)})"
        return Finding(subject="accept", level="warn", text=text, remedy=ACCEPT_AGAIN)
    if accepted is not None:
        text = f"accepted on {accepted.time[:10]}: {accepted.engine}, {accepted.p50_ms:.1f} ms"
        return Finding(subject="accept", level="ok", text=text)
    text = "this bundle was not accepted on this device: nothing tells when its engine gets slow"
    if config.engine.kind == "trt":
        return Finding(subject="accept", level="warn", text=text, remedy=ACCEPT_AGAIN)
    return Finding(subject="accept", level="ok", text=text)


def _policy(bundle: Bundle, config: AgentConfig) -> Finding:
    policy = policy_from_config(config.policy, bundle.manifest)
    limits, zones = policy.limits, policy.zones
    text = f"defect from {limits.defect_above:g}, review from {limits.review_above:g}"
    if zones:
        text += f", {len(zones)} zone{'s' * (len(zones) > 1)}"
    if bundle.manifest.detection is not None:
        return _policy_of_detector(bundle, config, text)
    return Finding(subject="policy", level="ok", text=text)


def _policy_of_detector(bundle: Bundle, config: AgentConfig, text: str) -> Finding:
    """Sizes need a pixel pitch; without one every finding counts, and that is said."""
    assert bundle.manifest.detection is not None
    pitch = config.policy.pixel_mm or bundle.manifest.detection.pixel_mm
    if pitch is not None:
        return Finding(subject="policy", level="ok", text=f"{text}, {pitch:g} mm per pixel")
    if any(c.min_size_mm for c in bundle.manifest.classes):
        return Finding(
            subject="policy",
            level="warn",
            text=f"{text}; the bundle has smallest sizes in mm, but nobody said how large a pixel is: all sizes count",
            remedy="give policy.pixel_mm, one pixel of the frame in millimetres",
        )
    return Finding(subject="policy", level="ok", text=text)


def _engine(bundle: Bundle, config: AgentConfig, identity: dict[str, str]) -> Finding:
    """Open it and replay the goldens; `identity` gets what it is."""
    with running_on(line_cores(config.line.pin_cores)):  # as `run` does: threads are chosen for these cores
        engine = open_engine(bundle, config.engine, cache=open_cache(config), within_ms=time_for_one(config))
    identity.update(engine.identity)
    try:
        found = _golden(bundle, engine, reference_graph(bundle, engine, config.engine))
    finally:
        engine.close()
    if found.level == "ok" and fell_back(engine):
        remedy = "mend that, or set engine.kind: onnxruntime if the CPU is meant to run the model"
        return Finding(subject="engine", level="warn", text=found.text, remedy=remedy)
    return found


def _golden(bundle: Bundle, engine: Engine, kind: str) -> Finding:
    """Replay the golden pictures: the same class or detections as on the workbench, in a sane time."""
    is_detector = bundle.manifest.detection is not None
    role = "detections" if is_detector else "logits"
    goldens = [g for g in bundle.goldens() if role in g.outputs.get(kind, {})]
    if not goldens:
        return Finding(subject="engine", level="ok", text=f"{engine.name}; no golden pictures to replay")
    changed, taken = 0, []
    for golden in goldens:
        start = time.perf_counter()
        outputs = engine.infer(golden.image[None])
        taken.append((time.perf_counter() - start) * 1000)
        changed += not is_as_recorded(golden, kind, outputs, bundle.manifest)
    text = f"{engine.name}: {len(goldens)} golden pictures, median {sorted(taken)[len(taken) // 2]:.1f} ms"
    if changed:
        return Finding(
            subject="engine",
            level="fail",
            text=f"{text}, {changed} with {'other detections' if is_detector else 'another class'} than at the build",
            remedy="try engine.graph: fp32; then compare onnxruntime's version with the one in `bundle show --json`",
        )
    if max(taken[1:] or taken) > SLOW_ENGINE_MS:
        return Finding(
            subject="engine", level="warn", text=f"{text}, one took {max(taken):.0f} ms", remedy="try engine.threads: 2"
        )
    every = "all detections" if is_detector else "every class"
    return Finding(subject="engine", level="ok", text=f"{text}, {every} as at the build")


def _pace(config: AgentConfig) -> Finding:
    """Whether the threads that compute have a core each."""
    pinned = line_cores(config.line.pin_cores)
    cores = pinned or os.sched_getaffinity(0)
    reading = not isinstance(config.trigger, FrameTriggerConfig) or config.line.ahead > 0
    wanted = 1 if config.engine.threads == "auto" else config.engine.threads
    threads = wanted + len(config.views) + reading
    text = f"{threads} threads of engine and cameras on {len(cores)} cores{' of their own' if pinned else ''}"
    if config.engine.threads == "auto":
        text = f"{text}, more of the engine where the start-up test finds that they pay"
    if wanted > len(cores):
        return Finding(
            subject="pace",
            level="warn",
            text=f"{text}: the engine waits for itself",
            remedy=f"set engine.threads to {len(cores)} at most; one takes half the CPU of two and is steadier",
        )
    return Finding(subject="pace", level="ok", text=text)


def _trigger_and_outputs(config: AgentConfig) -> Finding:
    """Open lines and addresses, and give them back; the camera is only asked by triggers that are frames."""
    with contextlib.ExitStack() as opened:
        trigger = open_trigger(config.trigger, _NoCamera())
        opened.callback(trigger.close)
        outputs = open_outputs(config.outputs, trigger)
        for output in outputs:
            opened.callback(output.close)
    names = ", ".join(name for name in ("gpio", "tcp") if getattr(config.outputs, name) is not None)
    text = f"{config.trigger.kind}; fast results over {names or 'nothing: MQTT alone tells the plant'}"
    return Finding(subject="trigger", level="ok", text=text)


class _NoCamera:
    """Has no frames."""

    name, ended, upcoming = "none", True, None

    def poll(self, timeout_s: float) -> bool:  # noqa: ARG002 - the port's
        return False


def _view(config: AgentConfig, view: ViewConfig) -> Finding:
    delay_ms = view.delay_ms + getattr(config.trigger, "delay_ms", 0.0)
    camera = open_view(view.camera, delay_ms=delay_ms, window_ms=view.window_ms, is_judged=lambda _part: False)
    return _first_picture(camera, f"view {view.name}: {camera.name}", view.roi)


def _camera(config: AgentConfig) -> Finding:
    camera = open_camera(config.camera, trigger=config.trigger, is_judged=lambda _part: False)
    return _first_picture(camera, camera.name, config.roi)


def _first_picture(camera: Camera, name: str, roi: RoiConfig | None) -> Finding:
    try:
        start = time.monotonic()
        part = Part(id="check", trigger="check", sequence=1, triggered=Stamp.now())
        if not camera.poll(FIRST_FRAME_S):
            return Finding(
                subject="camera",
                level="fail",
                text=f"{name}: no picture within {FIRST_FRAME_S:g} s ({camera.lost or 'and no reason why'})",
                remedy="is it plugged in, switched on, and not in use by another program?",
            )
        frame = camera.read(part)
        if isinstance(frame, Fault):
            return Finding(
                subject="camera",
                level="warn",
                text=f"{name}: {frame.reason}",
                remedy="such a picture gives an `error` verdict",
            )
        region = None if roi is None else Roi(roi).take(frame.image)
        if isinstance(region, NotFound):
            return Finding(
                subject="camera",
                level="warn",
                text=f"{name}: {region.reason}",
                remedy="such a part goes to review; lay one as it should lie, or mend roi.locate",
            )
        height, width = frame.image.shape[:2]
        seconds = time.monotonic() - start
        return Finding(
            subject="camera",
            level="ok",
            text=f"{name}: {width} x {height} px from {frame.source} after {seconds:.2f} s",
        )
    finally:
        camera.close()


def _broker(config: AgentConfig) -> Finding:
    if config.mqtt is None:
        return Finding(subject="broker", level="warn", text="none configured: verdicts stay in the journal", remedy="")
    result = probe(config.mqtt, config.station)
    if not result.ok:
        return Finding(
            subject="broker",
            level="fail",
            text=f"{result.broker}: {result.problem}",
            remedy=result.hint or "the agent runs without a broker: verdicts wait on disk until it is there",
        )
    return Finding(
        subject="broker",
        level="ok",
        text=f"{result.broker}: MQTT {result.protocol}, {result.round_trip_ms or 0:.1f} ms there and back",
    )
