"""What `tools/test --gpu` does on a machine with a GPU: build a bundle, compile it, accept it, and report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent import __version__
from optimize.build import build
from optimize.inputs import gather
from optimize.recipe import QuantizeRecipe, Recipe
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import write_model, write_parts

__all__ = ["REPORT", "GpuSession", "report_of", "run_session", "write_report"]

REPORT = "DEFECT_AGENT_GPU_REPORT"
"""Environment variable: the file that the report goes to."""

SPLITS = {"calib": 20, "val": 12}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpuSession:
    """The commands' answers.

    Attributes:
        built: of `defect-agent build-engine --json`.
        accepted: of `defect-agent accept --json`.
    """

    built: Ran
    accepted: Ran

    @property
    def is_good(self) -> bool:
        """Whether the engine was compiled and accepted."""
        return self.built.code == 0 and self.accepted.code == 0


def run_session(folder: Path, *, runs: int = 500) -> GpuSession:
    """Build a small network's bundle here, compile it with this machine's TensorRT, and accept it as a station does.

    Args:
        folder: for all that is written.
        runs: inferences that are timed.
    """
    parts = write_parts(folder / "parts", SPLITS)
    recipe = Recipe(
        model=write_model(folder / "m.onnx"),
        data=parts,
        calib=parts,
        out=folder / "gpu-1.0.0.defect",
        quantize=QuantizeRecipe(cpu_graph="int8"),
    )
    build(gather(recipe))
    config = folder / "station.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "station": "check/gpu",
                "state_dir": "state",
                "bundle": "gpu-1.0.0.defect",
                "camera": {"kind": "folder", "path": str(parts)},
                "trigger": {"kind": "frame"},
                "mqtt": None,
                "engine": {"kind": "trt"},
            }
        )
    )
    built = run_command("agent.cli.build_engine", "--config", config, "--rebuild", "--json")
    accepted = run_command("agent.cli.accept", "--config", config, "--runs", runs, "--json")
    return GpuSession(built=built, accepted=accepted)


def report_of(session: GpuSession) -> str:
    """Markdown, for the support table and for whoever reads it there; figures as measured, nothing rounded up."""
    return "\n".join(_lines(session)) + "\n"


def write_report(session: GpuSession) -> Path | None:
    """Where `tools/test --gpu` wants it; None when nobody asked."""
    wanted = os.environ.get(REPORT)
    if not wanted:
        return None
    path = Path(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_of(session), encoding="utf-8")
    return path


def _lines(session: GpuSession) -> Iterator[str]:
    yield f"### defect-agent {__version__} on {_machine()}"
    yield ""
    if session.built.code:
        yield f"`build-engine` failed (exit {session.built.code}):"
        yield from ("", "```text", session.built.err.strip(), "```")
        return
    built = session.built.json
    yield "| what | |"
    yield "| --- | --- |"
    yield f"| system | {platform.platform()}, Python {platform.python_version()}{_jetson()} |"
    yield f"| engine | {built['name']} |"
    yield f"| compiled | {built['seconds']} s, {built['typing']} typing, from graph `{built['graph']}` |"
    yield f"| for | {', '.join(f'{key} {value}' for key, value in built['key'].items())} |"
    for note in built["notes"] or ():
        yield f"| note | {note} |"
    if not session.accepted.out:
        yield f"| accept | failed (exit {session.accepted.code}): {' '.join(session.accepted.err.split())} |"
        return
    yield from _acceptance(session.accepted.json)


def _acceptance(accepted: dict[str, Any]) -> Iterator[str]:
    goldens, board = accepted["goldens"], accepted["board"]
    yield f"| accept | {'accepted' if accepted['accepted'] else 'REFUSED: ' + '; '.join(accepted['problems'])} |"
    yield (
        f"| golden inputs | {goldens['changed']} of {goldens['n']} with another verdict, at most "
        f"{goldens['changed_upper_95']:.1%} of all (95 % bound) |"
    )
    yield f"| largest difference to the Q/DQ graph in ONNX Runtime | {accepted['difference']} |"
    for how, latency in accepted["latency_ms"].items():
        yield f"| one inference, {how} | {', '.join(f'{key} {value}' for key, value in latency.items())} (ms) |"
    yield f"| board | {board['model']}, power mode {board['power_mode'] or 'unknown'} |"
    yield f"| throttled by | {', '.join(board['throttled']) or 'nothing that the board tells of'} |"
    yield f"| °C, MHz | {board['temperatures_c']}, {board['clocks_mhz']} |"


def _machine() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text(errors="replace").rstrip("\0\n")
    return platform.machine()


def _jetson() -> str:
    with contextlib.suppress(OSError):
        return ", " + Path("/etc/nv_tegra_release").read_text(errors="replace").splitlines()[0].lstrip("# ")
    return ""
