"""From the start of the process to its first verdict, as the log tells it; and what is imported on the way."""

from __future__ import annotations

import collections
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import cv2

from optimize.errors import OptimizeError
from tools.bench_frame import say
from tools.bench_line.broker import Broker
from tools.bench_line.frames import frames_of
from tools.bench_line.rate import model_for
from tools.bench_line.workers import ROOT, environment, fresh, station_config
from tools.bench_quantize.figures import Figure, absent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["start_checks", "start_rows"]

TOP = 10


def start_rows(work: Path, *, rounds: int) -> list[dict[str, Any]]:
    """`defect-agent run` on a folder of pictures: seconds to the first verdict's line, and its imports."""
    _, _, bundle = model_for("classify", "fp32", 5.0, work)
    folder = fresh(work / "start")
    (folder / "parts").mkdir()
    for i, frame in enumerate(frames_of(640, 480, 2)):
        cv2.imwrite(str(folder / "parts" / f"part{i}.png"), frame)
    seconds = []
    with Broker(folder / "broker") as broker:
        camera = {"path": str(folder / "parts"), "loop": True}
        config = station_config(folder, bundle, port=broker.port, camera=camera)
        for _ in range(rounds + 1):
            seconds.append(_once(config))
            say(f"start: first verdict after {seconds[-1]:.2f} s")
        imports = _imports(config)
    return [{
        "part": "start",
        "seconds": [round(took, 3) for took in seconds[1:]],  # the first one may read from the disk
        "import_ms": imports,
    }]  # fmt: skip


def _command(config: Path, *options: str, parts: int) -> list[str]:
    return [sys.executable, *options, "-m", "agent", "run", "--config", str(config), "--max-parts", str(parts)]


def _once(config: Path) -> float:
    started = time.monotonic()
    with subprocess.Popen(
        _command(config, parts=1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=environment()
    ) as process:
        assert process.stdout is not None
        said = b""
        for line in process.stdout:
            said += line
            if b'"event": "verdict"' in line:
                took = time.monotonic() - started
                process.communicate(timeout=60)
                return took
    raise OptimizeError(f"the agent gave no verdict: {said[-500:].decode(errors='replace')}")


def _imports(config: Path) -> dict[str, float]:
    """Milliseconds of import by top-level package, the ten dearest; the agent's own modules are `agent`."""
    command = _command(config, "-X", "importtime", parts=1)
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120
    )
    spent: collections.Counter[str] = collections.Counter()
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and "self [us]" not in line:
            own_us, _, name = line.removeprefix("import time:").split("|")
            spent[name.strip().partition(".")[0]] += int(own_us)
    return {name: round(us / 1000, 1) for name, us in spent.most_common(TOP)}


def start_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """The median start."""
    row = next((row for row in rows if row["part"] == "start"), None)
    if row is None:
        return {"start_s": absent("not asked for in this run")}
    seconds = row["seconds"]
    why = "imports, ms: " + ", ".join(f"{name} {ms:g}" for name, ms in row["import_ms"].items())
    return {"start_s": Figure(value=statistics.median(seconds), low=min(seconds), high=max(seconds), why=why)}
