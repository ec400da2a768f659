"""What a build does for the devices that it was asked for by name, once the bundle is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from agent.bundle import Bundle
from agent.errors import EngineError
from optimize.progress import Progress, SilentProgress

__all__ = ["ForDevices", "serve_devices"]

JETSON = (
    "jetson: no engine is in the bundle; the device compiles it at its first start, or before with "
    "`defect-agent build-engine` and `defect-agent accept`"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForDevices:
    """What was done, in words and for `--json`; truthy unless an engine was to be had and could not be built.

    Attributes:
        lines: for people, one per line of text.
        report: device to plain values.
        failed: TensorRT and a GPU are here, and gave no engine.
    """

    lines: tuple[str, ...]
    report: dict[str, Any]
    failed: bool = False

    def __bool__(self) -> bool:
        return not self.failed


def serve_devices(bundle: Bundle, names: Sequence[str], progress: Progress | None = None) -> ForDevices:
    """See to `jetson`, `tensorrt` and `trtexec`.

    Args:
        bundle: as it was written.
        names: what `--target` named; others are left alone.
        progress: hears what is done.

    Raises:
        OptimizeError: a file beside the bundle can't be written.
    """
    progress = progress or SilentProgress()
    found = []
    if "jetson" in names:
        found.append(ForDevices(lines=(JETSON,), report={"jetson": {"engine": "compiled on the device"}}))
    if "tensorrt" in names:
        found.append(_engine_here(bundle, progress))
    if "trtexec" in names:
        found.append(_trtexec(bundle, progress))
    return ForDevices(
        lines=tuple(line for one in found for line in one.lines),
        report={name: value for one in found for name, value in one.report.items()},
        failed=any(one.failed for one in found),
    )


def _engine_here(bundle: Bundle, progress: Progress) -> ForDevices:
    from optimize.workstation import EngineHere, NoEngine, build_here

    def heard(phase: str, step: int, steps: int) -> None:  # noqa: ARG001  # TensorRT's steps are too many to show
        if step == 0:
            progress.step(f"TensorRT: {phase}")

    try:
        made: EngineHere = build_here(bundle, heard)
    except NoEngine as why:
        line = f"tensorrt: no engine was built here, the bundle is whole without: {why}"
        return ForDevices(lines=(line,), report={"tensorrt": {"engine": None, "why": str(why)}})
    except EngineError as error:
        line = f"tensorrt: no engine came of it: {error.message}" + (f"; try: {error.hint}" if error.hint else "")
        return ForDevices(lines=(line,), report={"tensorrt": {"engine": None, "why": error.message}}, failed=True)
    lines = (
        f"tensorrt: {made.path.name}, for this machine alone: {made.engine}",
        f"  compiled in {made.seconds:g} s from {bundle.manifest.graphs[made.graph]}, {made.typing}ly typed",
        f"  one inference {made.p50_ms:.3f} ms (median), {made.p95_ms:.3f} ms (95 %), copies included",
        f"  {made.changed} of {made.goldens} golden inputs judged otherwise than the Q/DQ graph was",
        *(f"  {note}" for note in made.notes),
    )
    return ForDevices(lines=lines, report={"tensorrt": {"engine": made.to_json()}})


def _trtexec(bundle: Bundle, progress: Progress) -> ForDevices:
    from optimize.trtexec import write_trtexec

    folder = bundle.path.with_suffix(".trtexec")
    progress.step(f"writing {folder}")
    made = write_trtexec(bundle, folder)
    scripts = [name for name in made.files if name.endswith(".sh")]
    lines = (
        f"trtexec: {folder}: copy it to the device and run there the script of its TensorRT: {', '.join(scripts)}",
        *(f"  warning: {warning}" for warning in made.warnings),
    )
    report = {"folder": str(folder), "files": list(made.files), "warnings": list(made.warnings)}
    return ForDevices(lines=lines, report={"trtexec": report})
