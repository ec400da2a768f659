"""`defect-opt compare`: which bundle misses fewer critical defects at equal overkill, and whether it is chance."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.console import DONE, number, print_json
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from agent.bundle import Bundle
    from optimize.compare import Comparison, ModelResult
    from optimize.dataset import Dataset
    from optimize.ledger import PriorUses

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "compare"
HELP = "Say which of two or more bundles misses fewer critical defects at equal overkill, and whether that is chance."
EPILOG = """examples:
  defect-opt compare yolo-1.0.0.defect ssd-1.0.0.defect --data NEU
  defect-opt compare yolo-1.0.0.defect ssd-1.0.0.defect --data NEU --out compare.png --json
  defect-opt compare small-1.0.0.defect large-1.0.0.defect --data parts --overkill 0.01

Each bundle gets the limit at which it stops the same share of good parts: the largest that one of their own limits
costs, or --overkill. Limits are chosen on val where it has good parts, and the bundles are compared on --split. Where
nothing but detectors is compared and no part is good, the unit is the labelled box, at equal false boxes per picture.
Which one is recommended depends on missed defects, then on speed, never on mAP. The run is noted in the ledger.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("bundles", type=Path, nargs="+", metavar="BUNDLE", help="two or more .defect files; detectors and classifiers")
    add("--data", type=Path, metavar="DIR", help="labelled images (else `data` of defect-opt.yaml)")
    splits = ("train", "calib", "val", "test")
    add("--split", default="test", choices=splits, help="what they are compared on, where there are any (test)")
    add("--limits-from", choices=splits, metavar="SPLIT", help="what limits are chosen on (val, else --split)")
    add("--overkill", type=number(float, 0, 1), metavar="R", help="share of good parts that may be stopped: 0.01")
    add(
        "--false-boxes",
        type=number(float, 0, 100),
        metavar="F",
        help="false boxes per picture, where boxes are compared",
    )
    add("--graph", default="auto", choices=("auto", "cpu", "fp32"), help="auto runs what the device runs; cpu is INT8")
    add("--out", type=Path, metavar="OUT.png", help="draw the curves and the table")
    add("--ledger", type=Path, metavar="FILE", help="where the run is noted (defect-opt.ledger.jsonl)")
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Compare, draw, and say which one to deploy."""
    from agent.bundle import open_bundle
    from agent.config import EngineConfig
    from optimize.compare import CompareOptions, compare_bundles
    from optimize.progress import open_progress

    _check_out(args.out)
    bundles = [open_bundle(path) for path in args.bundles]
    dataset = _read(args.data, bundles)
    options = CompareOptions(
        split=args.split,
        overkill=args.overkill,
        false_boxes=args.false_boxes,
        limits_from=args.limits_from,
        engine=EngineConfig(graph=args.graph, threads=1),
    )
    with open_progress() as progress:
        found = compare_bundles(bundles, dataset, options, progress=progress)
    if args.out is not None:
        _draw(args.out, found)
    split = args.split if dataset.splits else None
    uses = _noted(args, bundles, dataset.take(args.split), found)
    if args.json:
        import dataclasses

        origin = {"data": str(dataset.root), "split": split}
        print_json({**origin, **found.to_json(), "test_uses": None if uses is None else dataclasses.asdict(uses)})
    else:
        print("\n".join(_lines(found, split, uses)))
    return DONE


def _check_out(path: Path | None) -> None:
    """Before minutes of judging."""
    if path is not None and (path.suffix.lower() != ".png" or not path.parent.is_dir()):
        raise OptimizeError(f"--out: {path} can't be written", hint="does its folder exist, and does it end in .png?")


def _read(given: Path | None, bundles: Sequence[Bundle]) -> Dataset:
    from optimize.box_readers import has_boxes, read_boxes
    from optimize.dataset import read_dataset
    from optimize.recipe import RECIPE_FILE, read_recipe

    data = given or read_recipe(Path.cwd()).data
    if data is None:
        raise OptimizeError("--data: not given", hint=f"add --data DIR, or the key `data` to {RECIPE_FILE} here")
    is_boxes = any(bundle.manifest.task == "detect" for bundle in bundles) and has_boxes(data)
    return read_boxes(data) if is_boxes else read_dataset(data)


def _draw(path: Path, found: Comparison) -> None:
    from optimize.compare import draw_comparison

    try:
        path.write_bytes(draw_comparison(found))
    except OSError as error:
        raise OptimizeError(
            f"--out: {path} can't be written ({error.strerror})", hint="give a folder that is yours"
        ) from error


def _noted(
    args: argparse.Namespace, bundles: Sequence[Bundle], dataset: Dataset, found: Comparison
) -> PriorUses | None:
    """Note the run in the ledger; gives how often a test split was judged before, None for another split."""
    import sys

    from agent.errors import ImageError
    from optimize.dataset import data_digest
    from optimize.ledger import DataUse, Entry, FileUse, prior_uses, record

    try:
        digest = data_digest(dataset)
    except ImageError as error:  # it was judged as an error already; without its bytes nobody knows which data it was
        print(f"warning: {error.message}, so this run stands in no ledger", file=sys.stderr)
        return None
    uses = prior_uses(digest, args.ledger) if args.split == "test" else None
    entry = Entry(
        command="compare",
        data=(DataUse(path=str(dataset.root), sha256=digest, splits=dict(dataset.splits) or {"all": len(dataset)}),),
        inputs=tuple(FileUse(path=str(b.path), sha256=b.digest) for b in bundles),
        figures={
            "recommended": found.choice.name,
            "p_value": found.choice.p_value,
            "n": found.n,
            "missed": {model.name: model.missed for model in found.models},
            "graph": args.graph,
        },
        model=", ".join(f"{b.manifest.name}-{b.manifest.version} ({b.digest[:12]})" for b in bundles),
    )
    record(entry, args.ledger)
    return uses


def _lines(found: Comparison, split: str | None, uses: PriorUses | None) -> Iterator[str]:
    where = f" of {split}" if split else ""
    yield f"{found.n} {found.noun}{where}, {found.groups} groups"
    yield found.limits_text
    yield ""
    yield from _table(found)
    yield ""
    yield found.choice.reason
    for note in found.notes:
        yield f"note: {note}"
    if uses is not None:
        yield f"note: {uses.sentence()}"


def _table(found: Comparison) -> Iterator[str]:
    width = max(len("model"), *(len(model.name) for model in found.models))
    alarm = "false/picture" if found.unit == "box" else "overkill"
    yield (
        f"{'model':{width}}  task        missed  escapes  95 % under  {alarm:>13}   limit  mAP50      ms  (middle half)"
    )
    for model in found.models:
        missed = f"{model.missed} of {model.n}"
        yield (
            f"{model.name:{width}}  {model.task:8}  {missed:>8}  {model.escape_rate:>7.2%}  "
            f"{model.escape_upper_95:>10.2%}  {_alarm(model):>13}  {model.limit:>6.3f}  {_map(model)}  {_ms(model)}"
        )


def _alarm(model: ModelResult) -> str:
    if model.overkill_rate is not None:
        return f"{model.overkill_rate:.2%}"
    return "-" if model.false_boxes_per_image is None else f"{model.false_boxes_per_image:.2f}"


def _map(model: ModelResult) -> str:
    return f"{'-' if model.map50 is None else f'{model.map50:.3f}':>5}"


def _ms(model: ModelResult) -> str:
    if model.latency is None:
        return f"{'-':>6}"
    return f"{model.latency.median:>6.1f}  ({model.latency.low:.1f} to {model.latency.high:.1f})"
