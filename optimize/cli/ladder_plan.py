"""Which rungs a ladder has, and the commands and steps that make them.

Distilling and pruning are the commands of the same names, run as a user would; what they print goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import Parser
from optimize.cli.train_needs import require_torch
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from agent.bundle.manifest import Task
    from optimize.dataset import Dataset
    from optimize.ladder import Again, PlannedRung, RungFile, Step
    from optimize.progress import Progress
    from optimize.recipe import Recipe

__all__ = ["Plan", "Wanted", "planned_rungs", "read_set"]

WRITTEN = frozenset({"out", "workdir", "ledger", "tensorboard", "preview"})
"""Arguments that name what is written, not what is read."""

PATHS = frozenset({"weights"})
"""Arguments that are text, and name a file."""

RECOVERY_IMAGES = 500
"""Pictures that a network is recovered on while it rounds, at most; as many as `defect-opt prune` takes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a ladder is made of.

    Attributes:
        recipe: what the file and the command line say; `ladder` gives student and shares.
        distill: more flags of `defect-opt distill`.
        prune: more flags of `defect-opt prune`.
        has_int8: make an INT8 bundle of each float rung.
        ledger: where the steps note what they did; None takes the usual one.
    """

    recipe: Recipe
    distill: str = ""
    prune: str = ""
    has_int8: bool = True
    ledger: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is made below the top.

    Attributes:
        rungs: in the order in which they are made.
        again: makes an INT8 rung once more, recovered while rounding; None where none may be.
    """

    rungs: tuple[PlannedRung, ...]
    again: Again | None


def planned_rungs(top: RungFile, wanted: Wanted, work: Path, progress: Progress) -> Plan:
    """The rungs below the top, and the last resort.

    Raises:
        OptimizeError: data that steps need are not given or can't be read.
    """
    from optimize.ladder import PlannedRung, task_of

    recipe, ladder = wanted.recipe, wanted.recipe.ladder
    digests = _digests(recipe, task_of(top.path, recipe), progress)
    plan: list[PlannedRung] = []
    base = top.name
    if ladder.student:
        flags = ["--student", ladder.student, *_words("distill", wanted.distill)]
        places = ("--data", str(recipe.data))
        step = _Command(name="distill", source_flag="--teacher", flags=flags, places=places, ledger=wanted.ledger)
        reads = {**digests, "flags": _told(flags), **step.contents(top.path)}
        plan.append(PlannedRung(name="distilled", source=top.name, make=step, reads=reads))
        base = "distilled"
    for share in ladder.keep_macs:
        flags = ["--keep-macs", f"{share:g}", *_words("prune", wanted.prune)]
        own = ("--calib", str(recipe.calib or recipe.data), "--data", str(recipe.data))
        step = _Command(name="prune", source_flag="--model", flags=flags, places=own, ledger=wanted.ledger)
        reads = {**digests, "flags": _told(flags), **step.contents(top.path)}
        plan.append(PlannedRung(name=f"pruned-{share:g}", source=base, make=step, reads=reads))
    again: Again | None = None
    if wanted.has_int8:
        is_float = top.path.suffix.lower() == ".onnx"
        sources = [*([top.name] if is_float else []), *(planned.name for planned in plan)]
        reads = {**digests, "recipe": _settings(recipe)}
        made = _int8(recipe, top, progress)
        plan += [PlannedRung(name=f"{s}-int8", source=s, make=made, reads=reads, graph="cpu") for s in sources]
        if ladder.recover_epochs != 0:
            again = _again(recipe, reads, made, work, progress)
    return Plan(rungs=tuple(plan), again=again)


def _again(recipe: Recipe, reads: Mapping[str, str], int8: Step, work: Path, progress: Progress) -> Again:
    """The float network recovered while rounding, and quantized as the first time; each a step that is done once."""
    from optimize.ladder import PlannedRung, climb

    def make(source: Path, folder: Path) -> Path:
        require_torch("recovering an INT8 network")
        from optimize.calibration import Selection
        from optimize.ladder.rounded_file import recover_rounded_file

        out, calib = folder / "model.onnx", recipe.calib or recipe.data
        assert calib is not None
        selection = Selection(limit=RECOVERY_IMAGES, seed=recipe.seed)
        epochs = recipe.ladder.recover_epochs
        recover_rounded_file(
            source, calib, out, data=recipe.data, epochs=epochs, selection=selection, progress=progress
        )
        return out

    def again(source: RungFile) -> RungFile:
        name = f"{source.name}-rounded"
        own = {**reads, "recover_epochs": str(recipe.ladder.recover_epochs)}
        plan = (
            PlannedRung(name=name, source=source.name, make=make, reads=own),
            PlannedRung(name=f"{name}-int8", source=name, make=int8, reads=reads, graph="cpu"),
        )
        return climb(source, plan, work, progress)[-1]

    return again


def _int8(recipe: Recipe, top: RungFile, progress: Progress) -> Step:
    """Build a bundle that runs INT8: the device's timings decide, not this machine's."""
    from optimize.recipe import bundle_name

    name = recipe.name or bundle_name(top.path.stem) or "ladder"

    def make(source: Path, folder: Path) -> Path:
        from optimize.build import build
        from optimize.inputs import gather

        out = folder / f"{name}-{recipe.version}.defect"
        quantize = dataclasses.replace(recipe.quantize, cpu_graph="int8")
        own = dataclasses.replace(recipe, name=name, model=source, out=out, quantize=quantize)
        build(gather(own, progress=progress), progress=progress)
        return out

    return make


def _words(name: str, text: str) -> list[str]:
    """The flags of `--distill` or `--prune`, as a shell would take them apart."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise OptimizeError(
            f"--{name}: {text!r} can't be taken apart ({str(error).lower()})",
            hint=f'close each quotation: --{name} "--seed 1"',
        ) from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """Runs `defect-opt NAME SOURCE_FLAG source FLAGS PLACES --out folder/model.onnx`, see `optimize.ladder.Step`.

    Attributes:
        name: the command.
        source_flag: before the file that it starts from.
        flags: more words.
        places: those that name the ladder's own data.
        ledger: where it notes what it did; None takes the usual place.
    """

    name: str
    source_flag: str
    flags: Sequence[str]
    places: Sequence[str]
    ledger: Path | None

    def __call__(self, source: Path, folder: Path) -> Path:
        """Run it."""
        out = folder / "model.onnx"
        noted = [] if self.ledger is None else ["--ledger", str(self.ledger)]
        words = [self.source_flag, str(source), *self.flags, *self.places, "--out", str(out), *noted]
        module = _module(self.name)
        args = self._parsed(words)
        with contextlib.redirect_stdout(sys.stderr):
            code = int(module.run(args))
        if code != 0:
            raise OptimizeError(f"ladder: `defect-opt {self.name} {shlex.join(words)}` ended with {code}")
        return out

    def contents(self, source: Path) -> dict[str, str]:
        """Of each file or folder that the flags name, what is in it: the same path may hold other pictures tomorrow.

        Args:
            source: any file, in place of the one that the step starts from.
        """
        from optimize.ladder import content_digest

        args = vars(self._parsed([self.source_flag, str(source), *self.flags]))
        return {
            f"contents of {key} {i}": content_digest(path)
            for key, value in sorted(args.items())
            if key not in WRITTEN
            for i, path in enumerate(_named(value, is_path=key in PATHS))
            if path != source
        }

    def _parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; a wrong one ends the ladder, in the command's own words."""
        parser = Parser(prog=f"defect-opt {self.name}")
        _module(self.name).add_arguments(parser)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return parser.parse_args(words)
        except SystemExit as error:
            if error.code:
                raise
            raise OptimizeError(
                f"--{self.name}: {shlex.join(self.flags)} asks for help, and would make no rung",
                hint=f"defect-opt {self.name} --help",
            ) from error


def _named(value: Any, *, is_path: bool) -> Iterator[Path]:
    """The files and folders that an argument names and that are there; a text is a path where it is said to be."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _named(each, is_path=is_path)
    elif isinstance(value, Path) or (is_path and isinstance(value, str)):
        path = Path(value)
        if path.exists():
            yield path


def _module(name: str) -> Any:
    module = f"optimize.cli.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise OptimizeError(f"ladder: this defect-opt has no command {name}") from error


def read_set(root: Path, task: Task) -> Dataset:
    """A set, with its boxes where a detector is meant and it has some."""
    from optimize.box_readers import has_boxes, read_boxes
    from optimize.dataset import read_dataset

    return read_boxes(root) if task == "detect" and has_boxes(root) else read_dataset(root)


def _digests(recipe: Recipe, task: Task, progress: Progress) -> Mapping[str, str]:
    """What of the data decides a step's result: every name, label, split, box and byte."""
    from optimize.dataset import data_digest

    roots = {"data": recipe.data, "calib": recipe.calib, "val": recipe.val}
    found: dict[str, str] = {}
    known: dict[Path, str] = {}
    for key, root in roots.items():
        if root is None:
            continue
        if root not in known:
            progress.step(f"hashing {root}")
            known[root] = data_digest(read_set(root, task))
        found[key] = known[root]
    return found


def _settings(recipe: Recipe) -> str:
    """What of the recipe decides a bundle; paths do not, the bytes behind them do."""
    keys = ("version", "classes", "preprocess", "detector", "policy", "max_drop_points", "targets", "quantize", "seed")
    values = dataclasses.asdict(recipe)
    return _told({key: values[key] for key in (*keys, "name", "threads")})


def _told(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
