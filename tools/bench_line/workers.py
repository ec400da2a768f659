"""Worker processes: each has an environment of its own, is told over a pipe what to do, and idles in between."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ROOT", "STATION", "Worker", "agent_worker", "bare_worker", "environment", "fresh", "station_config"]

ROOT = Path(__file__).resolve().parents[2]
STATION = "bench/line"

LONGEST_S = 300.0
"""A worker that takes longer for one order hangs; it is killed and the bench ends with its log's last words."""


def environment() -> dict[str, str]:
    """One thread for each process, as engines have by default; our tree first."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}


class Worker:
    """A process that answers orders; a context manager that leaves none behind.

    Args:
        command: without the file descriptor for its answers, which becomes the last argument.
        log: its standard output and error.

    Attributes:
        ready: its first answer.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        receive, send = os.pipe()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, str(send)],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, pass_fds=[send], text=True, cwd=ROOT,
                env=environment(),
            )  # fmt: skip
        os.close(send)
        self._answers = os.fdopen(receive)
        self.ready = self._answer()

    def ask(self, **order: object) -> dict[str, Any]:
        """Give an order and wait until it is done."""
        self.begin(**order)
        return self.end()

    def begin(self, **order: object) -> None:
        """Give an order; `end` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the order that was begun."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._answers], [], [], LONGEST_S)
        line = self._answers.readline() if ready else ""
        if not ready:
            self.process.kill()
        if not line:
            self.process.wait()
            last = " ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])
            raise OptimizeError(f"{self._log}: the process ended with {self.process.returncode}: {last[-500:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()


def fresh(folder: Path) -> Path:
    """The folder, empty: a journal of an earlier run would be resumed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def station_config(
    folder: Path, bundle: Path, *, port: int | None, station: str = STATION, **more: Mapping[str, object]
) -> Path:
    """Write a station's configuration: the defaults, but for what a bench needs."""
    folder.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {
        "station": station,
        "state_dir": str(folder / "state"),
        "bundle": str(bundle),
        "camera": {"kind": "folder", "path": str(folder)},
        "trigger": {"kind": "frame"},
        "engine": {"kind": "onnxruntime"},
        "mqtt": None if port is None else {"port": port},
        "log": {"format": "json"},
    }
    for key, values in more.items():
        raw[key] = {**(raw.get(key) or {}), **values}
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def agent_worker(config: Path, size_px: tuple[int, int], *, stamps: bool = False) -> Worker:
    """The real agent with frames in memory; see the module `agent_worker`."""
    width, height = map(str, size_px)
    command = [sys.executable, "-m", "tools.bench_line.agent_worker", str(config), width, height]
    command += ["stamps"] * stamps
    return Worker(command, config.with_name("agent.log"))


def bare_worker(model: Path, size_px: tuple[int, int], log: Path, *, with_frames: bool = False) -> Worker:
    """The bare loop; see the module `bare_worker`."""
    width, height = map(str, size_px)
    kind = "frames" if with_frames else "tensors"
    return Worker([sys.executable, "-m", "tools.bench_line.bare_worker", str(model), width, height, kind], log)
