"""The part of `defect-agent check` that is about TensorRT and the board: what is missing, and how to get it."""

from __future__ import annotations

import dataclasses
import getpass
import grp
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent.board import Board
from agent.engines import is_tensorrt_expected, open_cache
from agent.errors import EngineError
from agent.health import disk_free_bytes

if TYPE_CHECKING:
    from agent.bundle import Bundle
    from agent.config import AgentConfig
    from agent.engines.device import Device
    from agent.engines.trt_api import TensorRt

__all__ = ["Finding", "Level", "device_findings", "is_tensorrt_wanted"]

Level = Literal["ok", "warn", "fail"]

LITTLE_MEMORY_MB = 16_000
"""Boards with less are known to end a build for want of memory when they have no swap (NVIDIA/TensorRT#2712, #1404)."""

_DESKTOP = ("dev/nvidiactl", "dev/nvidia0")
_JETSON_GPU = ("dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/nvgpu")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the check.

    Attributes:
        subject: what was looked at.
        level: `ok`, `warn` (runs, but a person should know) or `fail` (won't run right).
        text: what was found.
        remedy: what to do; empty when all is well.
    """

    subject: str
    level: Level
    text: str
    remedy: str = ""


def is_tensorrt_wanted(config: AgentConfig, board: Board | None = None) -> bool:
    """Whether this station would try TensorRT."""
    engine = config.engine
    return engine.kind == "trt" or (engine.kind == "auto" and engine.graph == "auto" and is_tensorrt_expected(board))


def device_findings(config: AgentConfig, bundle: Bundle | None, root: Path = Path("/")) -> Iterator[Finding]:
    """What TensorRT needs here: the module, the GPU (else its device files), power mode, swap, room, and the engine.

    With `engine.kind: auto` what is missing costs a fall-back to the CPU and is a warning; with `trt` it is a failure.
    """
    board = Board(root)
    level: Level = "fail" if config.engine.kind == "trt" else "warn"
    api, found = _module(level)
    yield found
    device, found = _gpu(config, board, level)
    yield found
    if device is None:
        yield _nodes(board, root, level)
    try:
        yield from _board(board)
        if bundle is not None:
            yield _room(config, bundle, level)
            if api is not None and device is not None:
                yield _engine(config, bundle, api, device)
    finally:
        if device is not None:
            device.close()


def _module(level: Level) -> tuple[TensorRt | None, Finding]:
    from agent.engines.trt_api import load_tensorrt

    try:
        api = load_tensorrt()
    except EngineError as error:
        return None, _missing("trt", level, error)
    return api, Finding(subject="trt", level="ok", text=api.name)


def _nodes(board: Board, root: Path, level: Level) -> Finding:
    """The device files, and whether this user may open them."""
    has_desktop = all((root / name).exists() for name in _DESKTOP)  # newer Jetsons (Thor) have these, too
    if board.kind == "jetson" and not has_desktop:
        has_all = (root / "dev/nvmap").exists() and any((root / name).exists() for name in _JETSON_GPU)
        wanted = "/dev/nvmap and /dev/nvhost-gpu (or /dev/nvgpu)"
        remedy = "start the agent on JetPack itself, or its container with `--runtime nvidia`"
        nodes = [root / "dev/nvmap", *sorted((root / "dev").glob("nvhost-*gpu")), *sorted(root.glob("dev/nvgpu/*/*"))]
    else:
        nodes = [root / name for name in _DESKTOP]
        has_all, wanted = has_desktop, "/dev/nvidiactl and /dev/nvidia0"
        remedy = "install NVIDIA's driver; start a container with `--gpus all`"
    if not has_all:
        return Finding(
            subject="nodes", level=level, text=f"the GPU's device files are not there: {wanted}", remedy=remedy
        )
    closed = [node for node in nodes if node.exists() and not os.access(node, os.R_OK | os.W_OK, effective_ids=True)]
    if closed:
        owners = sorted({_group_of(node) for node in closed} | {"video", "render"})
        user = _user()
        return Finding(
            subject="nodes",
            level=level,
            text=f"{user} may not open /{closed[0].relative_to(root)} (in the groups {', '.join(sorted(_groups()))})",
            remedy=f"sudo usermod -aG {','.join(owners)} {user}, then log in again; for the service, "
            "tools/install-device writes SupplementaryGroups=",
        )
    return Finding(subject="nodes", level="ok", text=f"{len(nodes)} device files of the GPU can be opened")


def _user() -> str:
    """Its name; a container may run as one that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return str(os.geteuid())


def _gpu(config: AgentConfig, board: Board, level: Level) -> tuple[Device | None, Finding]:
    from agent.engines.device import open_device

    try:
        device = open_device(config.engine.tensorrt.cuda)
    except EngineError as error:
        return None, _missing("gpu", level, error)
    major, minor = device.compute_capability
    text = f"{device.name} (SM {major}.{minor}), {device.memory_bytes / 1e9:.1f} GB, {device.library}"
    if (driver := board.gpu_driver()) is not None:
        text += f", driver {driver}"
    return device, Finding(subject="gpu", level="ok", text=text)


def _board(board: Board) -> Iterator[Finding]:
    """Power mode and swap: they decide about speed, and whether a build comes to its end. On a Jetson alone."""
    if board.kind != "jetson":
        return
    mode = board.power_mode()
    if mode is None:
        text, remedy = "nvpmodel does not say the power mode", "sudo nvpmodel -q"
        yield Finding(subject="power", level="warn", text=text, remedy=remedy)
    elif mode.isdigit():
        text, remedy = f"power mode {mode}: which that is, nvpmodel does not tell this user", "sudo nvpmodel -q"
        yield Finding(subject="power", level="warn", text=text, remedy=remedy)
    elif "MAXN" not in mode.upper():
        text = f"power mode {mode}: not the fastest one; what accept measures holds for this mode alone"
        remedy = "sudo nvpmodel -p --verbose lists the modes, sudo nvpmodel -m N takes one; then accept again"
        yield Finding(subject="power", level="warn", text=text, remedy=remedy)
    else:
        yield Finding(subject="power", level="ok", text=f"power mode {mode}")
    memory = board.memory()
    total = (memory.available_mb or 0) + (memory.swap_mb or 0)
    if memory.swap_mb == 0 and (memory.available_mb or 0) < LITTLE_MEMORY_MB:
        yield Finding(
            subject="swap",
            level="warn",
            text=f"no swap, and {memory.available_mb or 0:.0f} MB free: compiling an engine may be killed",
            remedy="sudo systemctl enable --now nvzramconfig, or a swap file: sudo fallocate -l 8G /swapfile …",
        )
    else:
        yield Finding(subject="swap", level="ok", text=f"{total:.0f} MB of memory and swap are free")


def _room(config: AgentConfig, bundle: Bundle, level: Level) -> Finding:
    from agent.engines.trt_open import room_for

    where, needed = config.engines_dir, room_for(bundle)
    free = disk_free_bytes(where)
    text = f"{where}: {free / 1e6:.0f} MB free, an engine may take {needed / 1e6:.0f} MB"
    if free < needed:
        remedy = "free some space there, or set engine.tensorrt.cache_dir to a larger disk"
        return Finding(subject="room", level=level, text=text, remedy=remedy)
    return Finding(subject="room", level="ok", text=text)


def _engine(config: AgentConfig, bundle: Bundle, api: TensorRt, device: Device) -> Finding:
    """Whether the engine is compiled; not the compiling itself, which takes minutes."""
    from agent.engines.trt_open import graphs_of, key_for, options_for

    key = key_for(graphs_of(bundle), options_for(bundle, config.engine), api, device)
    if open_cache(config).path(key) is not None:
        return Finding(subject="cache", level="ok", text=f"the engine {key.digest()} is compiled")
    return Finding(
        subject="cache",
        level="warn",
        text="the engine for this bundle, GPU and TensorRT is not compiled yet: the next start would wait for it",
        remedy="defect-agent build-engine --config FILE",
    )


def _missing(subject: str, level: Level, error: EngineError) -> Finding:
    return Finding(subject=subject, level=level, text=error.message, remedy=error.hint or "see the message")


def _group_of(path: Path) -> str:
    try:
        return path.group()
    except (KeyError, OSError):
        return "video"


def _groups() -> set[str]:
    """The names of the groups that this process has; of one without a name the number."""
    names = {group.gr_gid: group.gr_name for group in grp.getgrall()}
    return {names.get(gid, str(gid)) for gid in {*os.getgroups(), os.getegid()}}
