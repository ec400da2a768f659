"""A whole station for a journey: pictures, a bundle, a configuration, and the agent as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import yaml

from tests.kit.bundles import make_bundle
from tests.kit.frames import plain_image

__all__ = ["ROOT", "AgentProcess", "make_parts", "make_station"]

ROOT = "acme/plant1/finishing/line3/cam1"


def make_parts(folder: Path, count: int, *, side_px: int = 40) -> list[str]:
    """Pictures `part_0000.png`, …: for `tests.kit.models.classifier` in turn good, a scratch, a stain, undecided."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = ((255, 255, 255), (0, 0, 0), (0, 0, 255), (128, 128, 128))
    pictures = [plain_image(colour, width=side_px, height=side_px) for colour in colours]
    encoded = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
    names = [f"part_{i:04}.png" for i in range(count)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(encoded[i % len(encoded)])
    return names


def make_station(folder: Path, *, port: int | None, parts: Path | None = None, **changes: Any) -> Path:
    """Write a bundle and a configuration for it; `camera={"rate_hz": 50}` and so on are merged into its sections."""
    bundle = make_bundle(folder)
    raw: dict[str, Any] = {
        "station": ROOT,
        "state_dir": "state",
        "bundle": bundle.path.name,
        "camera": {"kind": "folder", "path": str(parts or folder / "parts")},
        "trigger": {"kind": "frame"},
        "mqtt": None if port is None else {"port": port, "metrics_s": 0},
        "log": {"format": "json"},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) and isinstance(value, dict) else value
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


class AgentProcess:
    """`defect-agent run` as a process of its own; a context manager that leaves none behind.

    Args:
        config: its configuration.
        arguments: more arguments.
        environment: more environment variables.
    """

    def __init__(self, config: Path, arguments: Sequence[str] = (), environment: dict[str, str] | None = None) -> None:
        self._log = config.with_suffix(".log")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(config), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).resolve().parents[2],
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )

    def log(self) -> str:
        """What all runs of this configuration have said."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """`kill -9`, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM, as systemd stops it; gives its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 120) -> int:
        """Wait for its end and give its exit code."""
        return self.process.wait(timeout_s)

    def __enter__(self) -> AgentProcess:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
