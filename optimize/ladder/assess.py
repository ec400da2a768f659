"""All rungs on the same images and on one machine: from files to a ladder.

Every rung judges the same pictures through the agent's own Inspector and Policy (`optimize.outcomes.judge_all`). Their
latency is inference alone, of all of them in turn in one run here (`agent.profile.time_graphs`), or what a device's
profile says of their structures.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.bundle import Manifest
from agent.bundle.manifest import Severity
from agent.profile import DeviceProfile, GraphTiming, time_graphs
from agent.verdict import Decision
from optimize.dataset import Dataset
from optimize.errors import DataError, ModelError, OptimizeError
from optimize.evaluate import check_labels
from optimize.ladder.choice import Budget, LadderChoice, choose_rung, pareto_front
from optimize.ladder.figures import LOSS_RULE, figures_of
from optimize.ladder.model import RungFile, RungModel, open_rung
from optimize.ladder.resort import Again, JudgedRung, recovered
from optimize.ladder.rung import ClassCount, Rung
from optimize.ladder.sheet import draw_flips
from optimize.machine import describe
from optimize.outcomes import Outcome, judge_all
from optimize.progress import Progress, SilentProgress
from optimize.recipe import Recipe

__all__ = ["Ladder", "LadderOptions", "assess", "hardly_found"]

ENOUGH = 0.5
"""Of a class of which the top finds a smaller share, a ladder says nothing: what is not found can't be lost."""


UNEVEN = 1.5
"""The 95th percentile over the median from which times on several threads are told to be uneven."""

BUSY = 0.2
"""Share of the time that inferences may wait for a core before the user hears of it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LadderOptions:
    """How rungs are judged and timed.

    Attributes:
        budget: what a rung must keep.
        split: what they are judged on.
        threads: CPU threads of one inference.
        seconds: how long the timing takes, over all rungs.
        profile: the device's timings, in place of this machine's.
        with_sheets: draw what flipped.
    """

    budget: Budget = dataclasses.field(default_factory=Budget)
    split: str = "val"
    threads: int = 1
    seconds: float = 10.0
    profile: DeviceProfile | None = None
    with_sheets: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What came out; truthy when a rung keeps every limit.

    Attributes:
        rungs: the top first.
        front: rungs that no other one beats in latency and in loss at once, the fastest first.
        choice: which one, or the nearest and why not.
        budget: the limits.
        split: what they were judged on; None for a set without splits.
        measure: what `accuracy` is: `accuracy`, or `mAP50` of detectors.
        timed_on: the machine or device that the latencies are of, in words.
        engine: what ran the graphs there, in words.
        is_profile: whether they are a device's.
        files: what was judged in the end: a recovered bundle stands in the place of the first one.
        sheets: by rung the picture of what flipped, a PNG file; none for a rung where nothing did.
        notes: what whoever decides should know, one sentence each.
    """

    rungs: tuple[Rung, ...]
    front: tuple[str, ...]
    choice: LadderChoice
    budget: Budget
    split: str | None
    measure: str
    timed_on: str
    engine: str
    is_profile: bool
    files: tuple[RungFile, ...]
    sheets: tuple[tuple[str, bytes], ...]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.choice)

    def speedup(self, rung: Rung) -> float | None:
        """How many times as fast as the top; None where one of them was not timed."""
        top = self.rungs[0].latency
        return None if top is None or rung.latency is None else top.p50_ms / rung.latency.p50_ms

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and ladder.json."""
        speedups = {rung.name: self.speedup(rung) for rung in self.rungs}
        return {
            "chosen": self.choice.name,
            "reason": self.choice.reason,
            "nearest": self.choice.nearest,
            "breaches": [dataclasses.asdict(breach) for breach in self.choice.breaches],
            "budget": dataclasses.asdict(self.budget),
            "split": self.split,
            "measure": self.measure,
            "latency_of": self.timed_on,
            "engine": self.engine,
            "from_profile": self.is_profile,
            "front": list(self.front),
            "loss_rule": LOSS_RULE,
            "hardly_found": [dataclasses.asdict(count) for count in hardly_found(self.rungs[0])],
            "rungs": [{**r.to_json(), "speedup": _rounded(speedups[r.name])} for r in self.rungs],
            "notes": list(self.notes),
        }


def assess(
    files: Sequence[RungFile],
    dataset: Dataset,
    recipe: Recipe,
    options: LadderOptions,
    *,
    again: Again | None = None,
    progress: Progress | None = None,
) -> Ladder:
    """Judge, time, compare with the top, and choose.

    Args:
        files: the top first; names differ.
        dataset: a whole set, with labels (classify) or boxes (detect); a float classifier's temperature is fitted on
            its val split, or on all of it where there are no splits.
        recipe: gives classes and limits.
        options: budget, split, threads, profile.
        again: recovers an INT8 rung that misses the budget though its float network keeps it, see `recovered`; None
            leaves it as it is.
        progress: hears what is judged.

    Raises:
        DataError: images that can't be judged by.
        ModelError: rungs that do not know the same classes.
        OptimizeError: the top can judge nothing, or the profile knows no rung.
        EngineError: a graph can't be run.
    """
    progress = progress or SilentProgress()
    judged = dataset.take(options.split)
    val = dataset.take("val") if not dataset.splits or "val" in dataset.splits else judged
    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        models = [_opened(file, recipe, val, Path(folder), progress) for file in files]
        _check_models(models)
        _check_data(models[0], judged)
        _check_profile(models, options.profile)
        found = _judged(models, judged, options, progress)
        if again is not None:
            first = found[0]

            def judge(file: RungFile) -> JudgedRung:
                model = _opened(file, recipe, val, Path(folder), progress)
                return _judged_rung(model, first.outcomes, judged, options.threads, progress)

            found = list(recovered(found, options.budget, again, judge))
        progress.step("timing all rungs in turn" if options.profile is None else "reading the device's profile")
        timings, engine = _timings([each.model for each in found], options)
        rungs = tuple(_rung(each, timing) for each, timing in zip(found, timings, strict=True))
        sheets = _sheets([each.model for each in found], rungs, judged, options.threads) if options.with_sheets else ()
    profile = options.profile
    return Ladder(
        rungs=rungs,
        front=pareto_front(rungs),
        choice=choose_rung(rungs, options.budget),
        budget=options.budget,
        split=options.split if dataset.splits else None,
        measure="mAP50" if rungs[0].task == "detect" else "accuracy",
        timed_on=describe(options.threads) if profile is None else _plain(profile.device),
        engine=_plain(engine),
        is_profile=profile is not None,
        files=tuple(each.model.file for each in found),
        sheets=tuple(sheets),
        notes=tuple(_notes(rungs, options, judged)),
    )


def _opened(file: RungFile, recipe: Recipe, val: Dataset, folder: Path, progress: Progress) -> RungModel:
    progress.step(f"{file.name}: reading {file.path}")
    return open_rung(file, recipe, val, folder)


def _check_models(models: Sequence[RungModel]) -> None:
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise OptimizeError(f"ladder: two rungs are called {next(n for n in names if names.count(n) > 1)}")
    top = models[0].bundle.manifest
    for model in models[1:]:
        own = model.bundle.manifest
        for what, first, other in (("task", top.task, own.task), ("classes", _classes(top), _classes(own))):
            if first != other:
                is_order = what == "classes" and sorted(first) == sorted(other)
                raise ModelError(
                    f"{model.file.path}: {'the order of its ' * is_order}{what}: got {other}, "
                    f"{models[0].file.path} has {first}",
                    hint="make all rungs from one set, with one defect-opt.yaml",
                )


def _classes(manifest: Manifest) -> list[tuple[str, Severity]]:
    """Names and severities; of a classifier in no order, as its classes are matched by name."""
    found = [(cls.name, cls.severity) for cls in manifest.classes]
    return sorted(found) if manifest.task == "classify" else found


def _check_data(top: RungModel, judged: Dataset) -> None:
    manifest = top.bundle.manifest
    if manifest.task == "classify":
        check_labels(judged, manifest.class_names)
        return
    if any(sample.boxes is None for sample in judged) or not any(sample.boxes for sample in judged):
        raise DataError(
            f"{judged.root}: a detector's rungs are compared by boxes, and these images have none",
            hint="give a set with boxes.csv, VOC, COCO or YOLO labels",
        )


def _check_profile(models: Sequence[RungModel], profile: DeviceProfile | None) -> None:
    """Before minutes of judging."""
    if profile is not None and not any(model.structure in profile.graphs for model in models):
        files = " ".join(str(model.file.path) for model in models)
        raise OptimizeError(
            f"--profile: {_plain(profile.device)}: holds no timing of any of the {len(models)} rungs",
            hint=f"on the device: defect-agent bench --profile OUT.json {files}",
        )


def _plain(text: str) -> str:
    """On one line and without control characters, which a terminal would obey: a profile comes from elsewhere."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _judged(
    models: Sequence[RungModel], judged: Dataset, options: LadderOptions, progress: Progress
) -> list[JudgedRung]:
    found: list[JudgedRung] = []
    for model in models:
        top = found[0].outcomes if found else None
        found.append(_judged_rung(model, top, judged, options.threads, progress))
    return found


def _judged_rung(
    model: RungModel, top: Sequence[Outcome] | None, judged: Dataset, threads: int, progress: Progress
) -> JudgedRung:
    """What a rung makes of the images, compared with what the top made of them; the top itself with itself."""
    progress.step(f"{model.name}: judging {len(judged)} images")
    outcomes, _ = judge_all(model.bundle, judged, model.engine_config(threads), progress=progress)
    if top is None and all(outcome.decision is Decision.ERROR for outcome in outcomes):
        raise OptimizeError(f"{model.name}: could judge none of {len(outcomes)} images: {outcomes[0].reason}")
    figures = figures_of(top or outcomes, outcomes, model.bundle.manifest)
    return JudgedRung(model=model, outcomes=outcomes, figures=figures)


def _timings(models: Sequence[RungModel], options: LadderOptions) -> tuple[list[GraphTiming | None], str]:
    profile = options.profile
    if profile is not None:
        return [profile.graphs.get(model.structure) for model in models], profile.engine
    found, engine = time_graphs([model.timed() for model in models], threads=options.threads, seconds=options.seconds)
    return list(found), engine


def _rung(found: JudgedRung, timing: GraphTiming | None) -> Rung:
    model, figures = found.model, found.figures
    manifest, summary = model.bundle.manifest, model.summary
    return Rung(
        name=model.name,
        file=str(model.file.path),
        sha256=model.sha256,
        graph=model.kind,
        made_from=model.file.made_from,
        task=manifest.task,
        macs=summary.macs,
        parameters=summary.parameters,
        size_bytes=summary.size_bytes,
        structure=model.structure,
        temperature=manifest.temperature,
        latency=timing,
        recovery=found.recovery,
        **{field.name: getattr(figures, field.name) for field in dataclasses.fields(figures)},
    )


def _sheets(
    models: Sequence[RungModel], rungs: Sequence[Rung], judged: Dataset, threads: int
) -> list[tuple[str, bytes]]:
    return [
        (rung.name, draw_flips(models[0], model, rung.flips, judged, threads=threads))
        for model, rung in zip(models[1:], rungs[1:], strict=True)
        if rung.flips
    ]


def _notes(rungs: Sequence[Rung], options: LadderOptions, judged: Dataset) -> Iterator[str]:
    untimed = [rung.name for rung in rungs if rung.latency is None]
    if untimed:
        yield (
            f"the profile holds no timing of {', '.join(untimed)}: they can't be chosen; time their files on the "
            "device with `defect-agent bench --profile`"
        )
    waited = max((rung.latency.waited for rung in rungs if rung.latency is not None), default=0.0)
    if waited > BUSY:
        where = "here" if options.profile is None else "on the device of the profile"
        yield (
            f"the machine was busy while the rungs were timed {where}: inferences waited up to {waited:.0%} of the "
            "time for a core, which is left out; time them on a quiet machine before you rely on milliseconds"
        )
    threads = options.threads if options.profile is None else options.profile.threads
    uneven = [r.name for r in rungs if r.latency is not None and r.latency.p95_ms > UNEVEN * r.latency.p50_ms]
    if threads > 1 and uneven:
        yield (
            f"on {threads} threads waiting for a core counts, and the times of {', '.join(uneven)} are uneven: "
            "time them on a quiet machine, or with --threads 1, before you rely on them"
        )
    yield from (f"{rung.name} {rung.recovery.sentence()}" for rung in rungs if rung.recovery is not None)
    if options.profile is not None and options.profile.threads != options.threads:
        yield f"the profile was made with {options.profile.threads} threads"
    if options.split == "val" and judged.splits:
        yield "trainings stop by val too, so these figures flatter a little: evaluate what is taken on test, once"
    if options.split == "test" and judged.splits:
        yield "the choice was made on test: it is less of a test now, see `defect-opt ledger`"
    if not rungs[0].defects:
        yield "no part of this set is bad: nothing is known of escapes"
    elif not rungs[0].goods:
        yield "no part of this set is good: every part is stopped, so escapes say nothing of these networks"
    yield from _class_notes(rungs)
    failing = [rung.name for rung in rungs if rung.unjudged]
    if failing:
        yield f"images that could not be judged count as wrong: {', '.join(failing)}"


def _class_notes(rungs: Sequence[Rung]) -> Iterator[str]:
    """What can be said of single classes, and what can't."""
    rare = [f"{c.name} ({c.n})" for c in rungs[0].recall if 0 < c.n < 5 and c.severity != "ok"]
    if rare:
        yield (
            f"of {', '.join(rare)} there are too few to prove a loss: a rung is refused where three are gone or none "
            "is left, what else fell has a `?`"
        )
    yield from (
        f"the top finds {count.hits} of {count.n} of {count.name}: this ladder says nothing of it"
        for count in hardly_found(rungs[0])
    )
    for rung in rungs:
        if rung.fell:
            yield f"{rung.name}, not refused for it (`?` in the table): {'; '.join(f.sentence() for f in rung.fell)}"
    absent = [c.name for c in rungs[0].recall if not c.n]
    if absent:
        yield f"no image shows {', '.join(absent)}: nothing is known of them"


def hardly_found(top: Rung) -> tuple[ClassCount, ...]:
    """The classes that the top itself finds less than half of: nothing can be seen to be lost of them."""
    return tuple(count for count in top.recall if count.n and count.hits < ENOUGH * count.n)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
