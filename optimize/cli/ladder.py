"""`defect-opt ladder`: from a large network to the fastest one that keeps the budget, and what each rung costs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, FAILED, number, print_json
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.cli.ladder_plan import Plan
    from optimize.dataset import Dataset
    from optimize.ladder import Ladder, Rung, RungFile
    from optimize.ledger import PriorUses
    from optimize.progress import Progress
    from optimize.recipe import Recipe

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """The bundle of the rung that was taken, and where an earlier one was put out of the way; None for none."""

    bundle: Path | None
    set_aside: Path | None

    def to_json(self) -> dict[str, str | None]:
        """Plain values."""
        values = {"bundle": self.bundle, "set_aside": self.set_aside}
        return {key: None if path is None else str(path) for key, path in values.items()}


NAME = "ladder"
HELP = "Distil, prune and quantize a network, show what each rung costs, and take the fastest that keeps the budget."
EPILOG = """examples:
  defect-opt ladder --top resnet18.onnx --data NEU --calib NEU --work ladder --student mobilenetv2 --max-drop 0.75
  defect-opt ladder --top large.onnx --data NEU --calib NEU --work ladder --keep-macs 0.7 0.5 --max-latency-ms 20
  defect-opt ladder --top large.onnx --data NEU --calib NEU --work ladder --profile pi5.json --json
  defect-opt ladder --top large.onnx --data NEU --work ladder --keep-macs --no-int8 --rung small=small.onnx

Rungs are made in WORK/steps, each once: run it again and only what changed is done. All are judged on the same images,
paired with the top, and timed in turn here, or by --profile, which `defect-agent bench --profile` makes on the device.
A rung that loses a class is refused by name (`!`): none of it is left where the top found some; or half or less of what
the top found is left and three or more are gone, however few pictures there are; or it fell by more than chance (paired
by group, one-sided, 5 %). What fell less than that has a `?` and a note with its counts; a class of which the top finds
less than half is named (`~`), as nothing is seen to be lost of it. An INT8 rung that loses one, or more than
--max-drop, though its float network does not, is the last resort's: it is recovered while it rounds, without labels,
and quantized again.

What is not given comes from `ladder:` in defect-opt.yaml. WORK gets ladder.json, ladder.png, sheets/RUNG.png (the
pictures that a rung judges otherwise, with heatmaps) and the bundle of the rung that was taken. Exit code 1: no rung
keeps every limit; the nearest is named, and what it breaks by how much. A bundle that an earlier run left in this place
is renamed to *.old where this one takes no rung, or one without a bundle.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--top", "--teacher", type=Path, metavar="MODEL", help="the large network: a float .onnx, or a .defect")
    add("--data", type=Path, metavar="DIR", help="labelled images: trained on, and judged on --split")
    add("--calib", type=Path, metavar="DIR", help="pictures for recovery and INT8: a labelled set, or a flat folder")
    add("--work", type=Path, metavar="DIR", help="where rungs and results lie (ladder)")
    add("--student", metavar="ARCH", help="distil the top into this network first; `none` prunes the top itself")
    add("--keep-macs", type=number(float, 0.01, 0.99), nargs="*", metavar="SHARE", help="pruned rungs (0.7 0.5 0.35)")
    add("--rung", action="append", default=[], metavar="NAME=FILE", help="another network, as it is; may be repeated")
    add("--no-int8", action="store_true", help="make no INT8 bundles")
    add("--distill", default="", metavar="FLAGS", help="more flags for `defect-opt distill`, in one word")
    add("--prune", default="", metavar="FLAGS", help="more flags for `defect-opt prune`, in one word")
    add("--max-drop", type=number(float, 0, 100), metavar="POINTS", help="largest loss against the top")
    add("--max-latency-ms", type=number(float, 1e-3, 1e6), metavar="MS", help="largest median of one inference")
    add("--max-size-mb", type=number(float, 1e-3, 1e6), metavar="MB", help="largest graph")
    add("--max-escape", type=number(float, 0, 1), metavar="R", help="largest escape rate, by its 95 %% upper bound")
    add("--recover-epochs", type=number(int, 0, 10_000), metavar="N", help="last resort for INT8: passes (0: none)")
    add("--profile", type=Path, metavar="P.json", help="a device's timings, from `defect-agent bench --profile`")
    add("--split", default="val", choices=("calib", "val", "test"), help="what rungs are judged on (val)")
    add("--threads", type=number(int, 1, 256), metavar="N", help="CPU threads of one inference (1)")
    add("--seconds", type=number(float, 0.1, 3600), default=10.0, metavar="S", help="how long to time all rungs (10)")
    add("--out", type=Path, metavar="FILE", help="the bundle of the rung that is taken (WORK/NAME-VERSION.defect)")
    add("--ledger", type=Path, metavar="FILE", help="where the run is noted (defect-opt.ledger.jsonl)")
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Climb, judge, choose, write."""
    from agent.profile import read_profile
    from optimize.ladder import LadderOptions, RungFile, assess, climb
    from optimize.places import refuse_overwriting
    from optimize.progress import open_progress

    recipe = _recipe(args)
    top = RungFile(name="top", path=_top(args, recipe))
    more = [_given_rung(text) for text in args.rung]
    work = args.work or Path("ladder")
    profile = None if args.profile is None else read_profile(args.profile)
    options = LadderOptions(
        budget=_budget(recipe), split=args.split, threads=recipe.threads, seconds=args.seconds, profile=profile
    )
    _check_places(args, work)
    out = _out(args, recipe, top, work)
    refuse_overwriting(out, [top.path], "top")
    refuse_overwriting(out, [file.path for file in more], "rung")
    with open_progress() as progress:
        dataset = _read(recipe, top)
        _check_data(args, recipe, dataset)
        plan = _plan(args, top, recipe, work, progress)
        _check_names([top.name, *(planned.name for planned in plan.rungs)], [file.name for file in more])
        files = (*climb(top, plan.rungs, work, progress), *more)
        ladder = assess(files, dataset, recipe, options, again=plan.again, progress=progress)
    written = _write(ladder, work, out)
    uses = _noted(args, ladder, dataset)
    if args.json:
        document = {**ladder.to_json(), "data": str(dataset.root), **written.to_json()}
        print_json({**document, "test_uses": None if uses is None else dataclasses.asdict(uses)})
    else:
        print("\n".join(_lines(ladder, work, written, uses)))
    return DONE if ladder else FAILED


def _recipe(args: argparse.Namespace) -> Recipe:
    """The file's words with the command line's before them."""
    from optimize.recipe import read_recipe, with_flags

    recipe = with_flags(
        read_recipe(Path.cwd()),
        {
            "model": ("--top", args.top),
            "data": ("--data", args.data),
            "calib": ("--calib", args.calib),
            "threads": ("--threads", args.threads),
        },
    )
    keys = ("student", "max_drop", "max_latency_ms", "max_size_mb", "max_escape", "recover_epochs")
    given: dict[str, Any] = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    if args.keep_macs is not None:
        given["keep_macs"] = tuple(args.keep_macs)
    if given.get("student") == "none":
        given["student"] = ""
    return dataclasses.replace(recipe, ladder=dataclasses.replace(recipe.ladder, **given))


def _top(args: argparse.Namespace, recipe: Recipe) -> Path:
    from optimize.recipe import RECIPE_FILE

    if recipe.model is None:
        raise OptimizeError("--top: not given", hint=f"add --top MODEL.onnx, or the key `model` to {RECIPE_FILE} here")
    if not recipe.model.is_file():
        flag = "--top" if args.top is not None else f"{RECIPE_FILE}: model"
        raise OptimizeError(f"{flag}: {recipe.model}: no such file", hint="give a float .onnx file, or a bundle")
    return recipe.model


def _given_rung(text: str) -> RungFile:
    from optimize.ladder import RungFile
    from optimize.recipe import bundle_name

    name, _, file = text.partition("=")
    if not name or bundle_name(name) != name or not file:
        raise OptimizeError(f"--rung: got {text!r}, expected NAME=FILE", hint="--rung small=small.onnx")
    if not Path(file).is_file():
        raise OptimizeError(f"--rung: {file}: no such file")
    return RungFile(name=name, path=Path(file))


def _budget(recipe: Recipe) -> Any:
    from optimize.ladder import Budget

    ladder = recipe.ladder
    return Budget(
        max_drop=ladder.max_drop,
        max_latency_ms=ladder.max_latency_ms,
        max_size_mb=ladder.max_size_mb,
        max_escape=ladder.max_escape,
    )


def _read(recipe: Recipe, top: RungFile) -> Dataset:
    """The set, with its boxes where the top is a detector."""
    from optimize.cli.ladder_plan import read_set
    from optimize.ladder import task_of
    from optimize.recipe import RECIPE_FILE

    if recipe.data is None:
        raise OptimizeError("--data: not given", hint=f"add --data DIR, or the key `data` to {RECIPE_FILE} here")
    return read_set(recipe.data, task_of(top.path, recipe))


def _check_places(args: argparse.Namespace, work: Path) -> None:
    """Before hours of training."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptimizeError(f"--work: {work} can't be made ({error.strerror})") from error
    if args.out is not None and (args.out.suffix != ".defect" or not args.out.absolute().parent.is_dir()):
        raise OptimizeError(
            f"--out: {args.out} can't be written", hint="does its folder exist, and does it end in .defect?"
        )


def _check_data(args: argparse.Namespace, recipe: Recipe, dataset: Dataset) -> None:
    """The same: what is judged on, and what INT8 is calibrated with."""
    dataset.take(args.split)
    if not args.no_int8 and recipe.calib is None and "calib" not in dataset.splits:
        raise OptimizeError(
            "--calib: not given, and the data have no calib split, which INT8 needs",
            hint="add --calib DIR: 100 to 500 pictures from the line's own camera; or --no-int8",
        )


def _check_names(made: list[str], given: list[str]) -> None:
    names = [*made, *given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None and twice not in given:
        raise OptimizeError(f"--keep-macs: {twice} is asked for twice", hint="give each share once")
    if twice is not None:
        raise OptimizeError(f"--rung: there is a rung called {twice} already", hint="give it another name")


def _plan(args: argparse.Namespace, top: RungFile, recipe: Recipe, work: Path, progress: Progress) -> Plan:
    from optimize.cli.ladder_plan import Wanted, planned_rungs

    wanted = Wanted(
        recipe=recipe, distill=args.distill, prune=args.prune, has_int8=not args.no_int8, ledger=args.ledger
    )
    return planned_rungs(top, wanted, work, progress)


def _out(args: argparse.Namespace, recipe: Recipe, top: RungFile, work: Path) -> Path:
    from optimize.recipe import bundle_name

    name = recipe.name or bundle_name(top.path.stem) or "ladder"
    return args.out or work / f"{name}-{recipe.version}.defect"


def _write(ladder: Ladder, work: Path, out: Path) -> _Written:
    """Report, plot, sheets, and the bundle of the rung that was taken."""
    import json

    from optimize.files import write_atomically
    from optimize.ladder import deploy, draw_ladder

    hint = "choose another --work"
    taken = next((rung for rung in ladder.rungs if rung.name == ladder.choice.name), None)
    bundle = None if taken is None else deploy(taken, ladder.files, out)
    written = _Written(bundle=bundle, set_aside=_set_aside(out) if bundle is None else None)
    told = {**ladder.to_json(), **written.to_json()}
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(work / "ladder.json", f"{text}\n".encode(), hint=hint)
    write_atomically(work / "ladder.png", draw_ladder(ladder), hint=hint)
    for stale in (work / "sheets").glob("*.png"):  # of an earlier run: no picture may speak of another rung
        stale.unlink()
    for name, picture in ladder.sheets:
        write_atomically(work / "sheets" / f"{name}.png", picture, hint=hint)
    return written


def _set_aside(out: Path) -> Path | None:
    """Rename what an earlier run left: it would be shipped as if this run had taken it."""
    if not out.is_file():
        return None
    names = (f"{out.name}.old", *(f"{out.name}.old{number}" for number in range(2, 1000)))
    old = next(path for path in map(out.with_name, names) if not path.exists())
    try:
        out.replace(old)
    except OSError as error:
        raise OptimizeError(
            f"{out}: is of an earlier run, and can't be renamed to {old.name} ({error.strerror})",
            hint="take it away: no bundle was taken in this run",
        ) from error
    return old


def _noted(args: argparse.Namespace, ladder: Ladder, dataset: Dataset) -> PriorUses | None:
    """Note the run in the ledger; gives how often a test split was judged before, None for another split."""
    import sys

    from agent.errors import ImageError
    from optimize.dataset import data_digest
    from optimize.ledger import DataUse, Entry, file_of, prior_uses, record

    judged = dataset.take(args.split)
    try:
        digest = data_digest(judged)
    except ImageError as error:  # it was judged as an error already
        print(f"warning: {error.message}, so this run stands in no ledger", file=sys.stderr)
        return None
    uses = prior_uses(digest, args.ledger) if args.split == "test" and dataset.splits else None
    figures = {
        rung.name: {"drop_points": rung.drop_points, "lost": [c.name for c in rung.lost]} for rung in ladder.rungs
    }
    entry = Entry(
        command="ladder",
        data=(DataUse(path=str(dataset.root), sha256=digest, splits=dict(judged.splits) or {"all": len(judged)}),),
        inputs=tuple(file_of(file.path) for file in ladder.files),
        figures={"chosen": ladder.choice.name, "n": ladder.rungs[0].n, "rungs": figures},
        model=f"ladder of {ladder.files[0].path.name}",
    )
    record(entry, args.ledger)
    return uses


def _lines(ladder: Ladder, work: Path, written: _Written, uses: PriorUses | None) -> Iterator[str]:
    split = f" of {ladder.split}" if ladder.split else ""
    yield f"{ladder.rungs[0].n} images{split}; latency: {ladder.engine} on {ladder.timed_on}"
    yield ""
    yield from _table(ladder)
    yield ""
    yield from _recalls(ladder)
    yield ""
    for rung in ladder.rungs:
        if rung.failure:
            yield f"refused: {rung.name} could not judge {rung.unjudged} of {rung.n} images: {rung.failure}"
        if rung.unjudged < rung.n:  # what judged nothing lost every class, which goes without saying
            yield from (f"refused: {rung.name} {lost.sentence()}" for lost in rung.lost)
    yield f"{'taken' if ladder else 'NOT MET'}: {ladder.choice.reason}"
    for note in ladder.notes:
        yield f"note: {note}"
    if uses is not None:
        yield f"note: {uses.sentence()}"
    yield f"written: {work / 'ladder.json'}, ladder.png" + (
        f", sheets of {len(ladder.sheets)} rungs" * bool(ladder.sheets)
    )
    if written.set_aside is not None:
        yield f"set aside: {written.set_aside}, the bundle of an earlier run: this one wrote none"
    if written.bundle is not None:
        yield f"Next: defect-opt evaluate {written.bundle} --data DIR --split test"
    elif ladder:
        taken = next(rung for rung in ladder.rungs if rung.name == ladder.choice.name)
        yield f"Next: defect-opt build --int8 --model {taken.file}"
    if not ladder.is_profile:
        files = " ".join(dict.fromkeys(rung.file for rung in ladder.rungs))
        yield f"On the device: defect-agent bench --profile device.json {files}"


def _table(ladder: Ladder) -> Iterator[str]:
    width = max(len("rung"), *(len(rung.name) for rung in ladder.rungs))
    yield (
        f"{'rung':{width}}  {ladder.measure:>8}    lost  {'95 %':>16}  {'escapes':>8}  {'under':>7}  changed  "
        f"{'M MACs':>8}  {'k par.':>8}  {'MB':>6}  {'ms':>8}  faster"
    )
    for rung in ladder.rungs:
        yield f"{rung.name:{width}}  {_figures(rung)}  {_cost(rung, ladder)}  {' '.join(_marks(rung, ladder))}".rstrip()


def _marks(rung: Rung, ladder: Ladder) -> Iterator[str]:
    if rung.name == ladder.choice.name:
        yield "*"
    if rung.name in ladder.front:
        yield "front"
    if rung.recovery is not None:
        yield "recovered" if rung.recovery.is_kept else "not recovered"


def _figures(rung: Rung) -> str:
    between = "-" if rung.drop_95 is None else f"{rung.drop_95[0]:.2f} to {rung.drop_95[1]:.2f}"
    under = "-" if rung.escape_upper_95 is None else f"{rung.escape_upper_95:.2%}"
    escapes = f"{rung.escapes}/{rung.defects}"
    return (
        f"{rung.accuracy:>8.2%}  {rung.drop_points:>6.2f}  {between:>16}  {escapes:>8}  {under:>7}  "
        f"{rung.decisions_changed:>3}/{len(rung.flips):<3}"
    )


def _cost(rung: Rung, ladder: Ladder) -> str:
    ms = "-" if rung.latency is None else f"{rung.latency.p50_ms:.2f}"
    speedup = ladder.speedup(rung)
    faster = "-" if speedup is None else f"{speedup:.2f}x"
    return f"{rung.macs / 1e6:>8.1f}  {rung.parameters / 1e3:>8.1f}  {rung.size_mb:>6.2f}  {ms:>8}  {faster:>6}"


def _recalls(ladder: Ladder) -> Iterator[str]:
    """Each class through all rungs, as counts: lost `!`, fell `?`, hardly found by the top itself `~`."""
    from optimize.ladder import hardly_found

    hardly = {count.name for count in hardly_found(ladder.rungs[0])}
    names = [count.name for count in ladder.rungs[0].recall if count.n]
    width = max(len("found of each class"), *(len(name) for name in names)) if names else 0
    columns = [max(len(rung.name), 9) for rung in ladder.rungs]
    heads = "  ".join(f"{rung.name:>{column}}" for rung, column in zip(ladder.rungs, columns, strict=True))
    yield f"{'found of each class':{width}}  {heads}"
    for name in names:
        cells = []
        for rung, column in zip(ladder.rungs, columns, strict=True):
            count = next(c for c in rung.recall if c.name == name)
            marks = {
                **dict.fromkeys((c.name for c in rung.fell), "?"),
                **dict.fromkeys((c.name for c in rung.lost), "!"),
            }
            mark = "~" if rung is ladder.rungs[0] and name in hardly else marks.get(name, "")
            cells.append(f"{count.words() + mark:>{column}}")
        yield f"{name:{width}}  {'  '.join(cells)}"
