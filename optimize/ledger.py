"""The ledger: what was done to which data, by which command, with which result; lines are added, never changed.

One JSON document per line in `defect-opt.ledger.jsonl` of the working directory, or where `--ledger FILE` or the
environment's `DEFECT_OPT_LEDGER` says. It answers what nobody remembers: how often a test split was judged before. Each
time something is chosen by it, it is less of a test.

A line is written at once and synced, under a lock, so that two commands do not mix theirs. What a power cut left of a
line stays on a line of its own; it is reported, and the others are read. A ledger that can't be written is a warning:
the work was done all the same.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import __version__
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.build import BuildReport
    from optimize.detect.result import DetectResult
    from optimize.inputs import Inputs
    from optimize.train import TrainResult

__all__ = [
    "LEDGER_FILE",
    "DataUse",
    "Entry",
    "FileUse",
    "Ledger",
    "PriorUses",
    "build_entry",
    "detector_entry",
    "file_of",
    "ledger_path",
    "prior_uses",
    "read_ledger",
    "record",
    "training_entry",
]

LEDGER_FILE = "defect-opt.ledger.jsonl"
VARIABLE = "DEFECT_OPT_LEDGER"
FORMAT = 1
PACKAGES = ("numpy", "onnx", "onnxruntime", "torch")
JUDGING = frozenset({"evaluate", "compare", "ladder"})
"""Commands after which a test split is less of a test."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileUse:
    """A file that was read or written.

    Attributes:
        path: as it was given.
        sha256: of its bytes, hex; a bundle's own digest for a bundle.
    """

    path: str
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataUse:
    """A data set, and what of it was read.

    Attributes:
        path: as it was given.
        sha256: over names, labels, splits and bytes of the images that were read, see `dataset.data_digest`.
        splits: split to images that were read; `all` for a set without splits.
    """

    path: str
    sha256: str
    splits: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line, without the time and the versions, which `record` adds.

    Attributes:
        command: what was run: `train`, `train --cv`, `build`, `evaluate`, `compare`, `ladder`.
        data: the images.
        inputs: other files that were read.
        seed: of the run, where it has one.
        outputs: files that were written.
        figures: what came out, plain values.
        model: name of the model or bundle that was judged.
    """

    command: str
    data: tuple[DataUse, ...] = ()
    inputs: tuple[FileUse, ...] = ()
    seed: int | None = None
    outputs: tuple[FileUse, ...] = ()
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a ledger says.

    Attributes:
        path: the file.
        lines: sound lines, the oldest first, as they were written.
        damaged: numbers of lines that can't be read, from 1.
    """

    path: Path
    lines: tuple[Mapping[str, Any], ...]
    damaged: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PriorUses:
    """How often a test split was judged before.

    Attributes:
        before: how often, as far as the ledger knows.
        last: when last (UTC, RFC 3339); None for never.
        models: by which models, each once, the oldest first.
        ledger: the file that was asked.
        damaged: lines of it that can't be read: they may hold more.
    """

    before: int
    last: str | None
    models: tuple[str, ...]
    ledger: str
    damaged: int = 0

    def sentence(self) -> str:
        """For a person."""
        lost = f"; {self.damaged} damaged lines of {self.ledger} may hold more" if self.damaged else ""
        if not self.before:
            return f"test of this data was never judged before, as far as {self.ledger} knows{lost}"
        times = "once" if self.before == 1 else f"{self.before} times"
        return (
            f"test of this data was judged {times} before, last at {self.last}, by {', '.join(self.models)}{lost}; "
            "choose nothing by it"
        )


def ledger_path(given: Path | None = None) -> Path:
    """Where the ledger is: as given, else as the environment says, else in the working directory."""
    named = os.environ.get(VARIABLE)
    return given or (Path(named) if named else Path(LEDGER_FILE))


def record(entry: Entry, ledger: Path | None = None) -> bool:
    """Add a line; a ledger that can't be written is a warning on standard error.

    Args:
        entry: what was done.
        ledger: the file; None takes the usual one, see `ledger_path`.

    Returns:
        Whether the line is on disk.
    """
    path = ledger_path(ledger)
    line = {"format": FORMAT, "time": _now(), **dataclasses.asdict(entry), "versions": _versions()}
    text = json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n"
    try:
        _append(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        print(
            f"warning: {path}: can't be written ({error.strerror}), so this run stands in no ledger; "
            f"--ledger FILE names another",
            file=sys.stderr,
        )
        return False
    return True


def read_ledger(ledger: Path | None = None) -> Ledger:
    """Read all lines; damaged ones are counted, not fatal. No file is an empty ledger.

    Raises:
        OptimizeError: the file is there, but can't be read.
    """
    path = ledger_path(ledger)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Ledger(path=path, lines=())
    except OSError as error:
        raise OptimizeError(f"{path}: can't be read ({error.strerror})", hint="--ledger FILE names another") from error
    lines, damaged = [], []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        line = _line_of(raw)
        if line is None:
            damaged.append(number)
        else:
            lines.append(line)
    return Ledger(path=path, lines=tuple(lines), damaged=tuple(damaged))


def prior_uses(sha256: str, ledger: Path | None = None) -> PriorUses:
    """How often images were judged before, by `evaluate`, `compare` or `ladder`.

    Args:
        sha256: of the test split, see `dataset.data_digest`: wherever the folder lies, the same images are meant.
        ledger: the file; None takes the usual one.
    """
    try:
        found = read_ledger(ledger)
    except OptimizeError:
        found = Ledger(path=ledger_path(ledger), lines=(), damaged=(1,))
    uses = [line for line in found.lines if line["command"] in JUDGING and _holds(line, sha256)]
    return PriorUses(
        before=len(uses),
        last=str(uses[-1]["time"]) if uses else None,
        models=tuple(dict.fromkeys(str(line.get("model")) for line in uses)),
        ledger=str(found.path),
        damaged=len(found.damaged),
    )


def file_of(path: Path, sha256: str | None = None) -> FileUse:
    """A file with its hash; an empty hash where it can't be read any more."""
    if sha256 is None:
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            sha256 = ""
    return FileUse(path=str(path), sha256=sha256)


def training_entry(result: TrainResult, data: Path) -> Entry:
    """The line of `defect-opt train`.

    Args:
        result: what came out.
        data: the folder, as it was given.
    """
    weights = result.config.weights
    splits = {split: len(files) for split, files in result.files.items()}
    return Entry(
        command="train",
        data=(DataUse(path=str(data), sha256=result.data_sha256, splits=splits),),
        inputs=(file_of(weights),) if isinstance(weights, Path) else (),
        seed=result.config.seed,
        outputs=(FileUse(path=str(result.onnx), sha256=result.sha256),),
        figures={
            "arch": result.config.arch,
            "val_accuracy": result.val.accuracy,
            "val_balanced_recall": result.val.balanced_recall,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
        },
    )


def detector_entry(result: DetectResult, data: Path) -> Entry:
    """The line of `defect-opt train --task detect`; arguments as of `training_entry`."""
    weights = result.config.weights
    splits = {split: len(files) for split, files in result.files.items()}
    return Entry(
        command="train",
        data=(DataUse(path=str(data), sha256=result.data_sha256, splits=splits),),
        inputs=(file_of(weights),) if isinstance(weights, Path) else (),
        seed=result.config.seed,
        outputs=(FileUse(path=str(result.onnx), sha256=result.sha256),),
        figures={
            "arch": result.config.arch,
            "val_map50": result.val.map50,
            "val_map50_95": result.val.map50_95,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
        },
    )


def build_entry(inputs: Inputs, report: BuildReport) -> Entry:
    """The line of `defect-opt build`.

    Args:
        inputs: what it read.
        report: what came out.
    """
    manifest, data = report.bundle.manifest, []
    for split, part in (("calib", inputs.calibration.dataset), ("val", inputs.val)):
        digest = str(manifest.provenance["data"][split]["sha256"])
        data.append(DataUse(path=str(part.root), sha256=digest, splits=dict(part.splits) or {"all": len(part)}))
    cards = {("int8" if kind == "cpu" else kind): card.accuracy for kind, card in report.cards.items()}
    boxes = {("int8" if kind == "cpu" else kind): card.map50 for kind, card in report.detections.items()}
    return Entry(
        command="build",
        data=tuple(data),
        inputs=(FileUse(path=str(inputs.model.path), sha256=inputs.model.sha256),),
        seed=inputs.recipe.seed,
        outputs=(FileUse(path=str(report.bundle.path), sha256=report.bundle.digest),),
        figures={
            **({"val_map50": boxes} if boxes else {"val_accuracy": cards}),
            "drop_points": report.drop_points,
            "temperature": manifest.temperature,
            "ece": None if report.tempered is None else report.tempered.ece_after,
            "gate_passed": manifest.gate_passed,
        },
        model=f"{manifest.name}-{manifest.version} ({report.bundle.digest[:12]})",
    )


def _append(path: Path, line: bytes) -> None:
    """One write at the end of the file, synced; after a line that a power cut left unfinished, on a new one."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):  # the disk is full: what is there of the line will be read as damaged
            raise OSError(28, "no space left on device")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line_of(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    is_sound = isinstance(line, dict) and isinstance(line.get("command"), str) and isinstance(line.get("time"), str)
    return line if is_sound else None


def _holds(line: Mapping[str, Any], sha256: str) -> bool:
    uses = line.get("data")
    return isinstance(uses, list) and any(isinstance(use, dict) and use.get("sha256") == sha256 for use in uses)


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _versions() -> dict[str, str]:
    found = {"defect-opt": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203 - each is asked for
            continue
    return found
