"""`defect-opt evaluate`: what a bundle does on labelled images, through the agent's own code."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, FAILED, print_json
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from agent.bundle import Bundle
    from agent.config import EngineConfig
    from optimize.dataset import Dataset
    from optimize.detection_card import DetectionScorecard
    from optimize.evaluate import Scorecard
    from optimize.ledger import PriorUses

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "evaluate"
HELP = (
    "Judge labelled images with a bundle as the device would: accuracy or average precision, escapes with a bound, "
    "overkill, latency."
)
EPILOG = """examples:
  defect-opt evaluate neu-1.0.0.defect --data NEU
  defect-opt evaluate neu-1.0.0.defect --data NEU --split test --graph fp32 --json
  defect-opt evaluate neu-1.0.0.defect --data NEU --min-accuracy 0.9 --confusion confusion.png
  defect-opt evaluate neu-boxes-1.0.0.defect --data NEU --min-map50 0.65 --picture misses.png

An image that can't be judged counts as wrong and is listed. Exit code 1: a gate (--min-accuracy, --min-map50) does not
hold. The run is noted in the ledger, which says how often this test split was judged before: choose nothing by it.
Intervals are by group: whole parts are drawn, as ten pictures of one part are one part.

A detector takes boxes: boxes.csv (file,class,xmin,ymin,xmax,ymax), COCO, Pascal VOC or YOLO files, with splits and good
parts in splits.csv. map50 and map50_95 are COCO's, over all findings. A part escapes when it has a defect and is judged
ok; an outlined defect escapes when no finding over the lower limit overlaps it (IoU 0.1, or the finding's centre within
it), of whatever class, and is missed when none of its class does (IoU 0.5).

--json of a detector: bundle, split, engine, n, groups, map50, map50_95, map_by_area {small, medium, large},
per_class {class: {severity, ap50, ap50_95, support, escape_rate}}, escapes, escape_rate = image_escape_rate,
escape_upper_95, overkill_rate, overkill_per_1000, review_rate, decisions, by_severity {severity: {parts, escapes,
escape_rate, escape_upper_95, escape_95, boxes, box_escapes, box_escape_rate, box_escape_95, box_misses,
box_miss_rate}}, boxes, box_escapes, box_escape_rate, box_misses, box_miss_rate, size_unit, by_size[], by_area {},
false_per_picture, froc[] (false_per_picture, sensitivity, sensitivity_95), froc_curve[], limit, latency_ms,
intervals_95, notes[], errors[], failures[]. What nothing is known of is null.
"""


_CORNER = "truth | seen as"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the .defect file")
    add("--data", type=Path, metavar="DIR", help="labelled images (else `data` of defect-opt.yaml)")
    add("--split", default="test", choices=("train", "calib", "val", "test"), help="which split, where there are any")
    add("--engine", default="auto", choices=("auto", "onnxruntime"), help="what runs the graph (auto)")
    add("--graph", default="auto", choices=("auto", "cpu", "fp32"), help="auto runs what the device runs; cpu is INT8")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads of one inference (1)")
    add("--min-accuracy", type=float, metavar="A", help="smallest accuracy that will do, 0 to 1 (classifiers)")
    add("--min-map50", type=float, metavar="M", help="smallest map50 that will do, 0 to 1 (detectors)")
    add("--confusion", type=Path, metavar="OUT.png", help="draw the confusion matrix (classifiers)")
    add("--picture", type=Path, metavar="OUT.png", help="draw the FROC curve and the worst misses (detectors)")
    add("--ledger", type=Path, metavar="FILE", help="where the run is noted (defect-opt.ledger.jsonl)")
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the scorecard, and say whether its gates hold."""
    from agent.bundle import open_bundle
    from agent.config import EngineConfig

    if args.threads < 1:
        raise OptimizeError(f"--threads: got {args.threads}, expected 1 or more")
    for option, example in (("min_accuracy", "0.9 means 90 %"), ("min_map50", "0.65 is a good figure for NEU-DET")):
        given = getattr(args, option)
        if given is not None and not 0 <= given <= 1:
            raise OptimizeError(f"--{option.replace('_', '-')}: got {given:g}, expected 0 to 1", hint=example)
    bundle = open_bundle(args.bundle)
    _refuse_foreign(args, bundle)
    dataset = _images(_data(args.data), bundle).take(args.split)
    config = EngineConfig(kind=args.engine, graph=args.graph, threads=args.threads)
    judge = _run_detector if bundle.manifest.task == "detect" else _run_classifier
    return judge(args, bundle, dataset, config)


def _refuse_foreign(args: argparse.Namespace, bundle: Bundle) -> None:
    """Options that say nothing to this kind of bundle: a gate that is overlooked would seem to hold."""
    is_detector = bundle.manifest.task == "detect"
    for option in ("min_accuracy", "confusion") if is_detector else ("min_map50", "picture"):
        if getattr(args, option) is not None:
            kind, other = ("detector", "a classifier") if is_detector else ("classifier", "a detector")
            instead = "--min-map50 and --picture" if is_detector else "--min-accuracy and --confusion"
            raise OptimizeError(
                f"--{option.replace('_', '-')}: is for {other}, and {args.bundle} is a {kind}",
                hint=f"a {kind} has {instead}",
            )


def _images(path: Path, bundle: Bundle) -> Dataset:
    """A detector's with boxes where there are any; a classifier's with labels, if need be from the boxes."""
    from optimize.box_readers import has_boxes, read_boxes, read_labels
    from optimize.dataset import read_dataset

    if bundle.manifest.task == "classify":
        good = [c.name for c in bundle.manifest.classes if c.severity == "ok"]
        return read_labels(path, good=good[0] if len(good) == 1 else "ok")
    return read_boxes(path, needs_boxes=False) if path.exists() and has_boxes(path) else read_dataset(path)


def _run_classifier(args: argparse.Namespace, bundle: Bundle, dataset: Dataset, config: EngineConfig) -> int:
    from optimize.evaluate import evaluate
    from optimize.progress import open_progress

    with open_progress() as progress:
        card, engine = evaluate(bundle, dataset, config, progress=progress)
    card = card.gated(min_accuracy=args.min_accuracy)
    if args.confusion is not None:
        _draw(args.confusion, card)
    split = args.split if dataset.splits else None
    keys = ("n", "accuracy", "balanced_recall", "escape_rate", "ece")
    uses = _noted(args, bundle, dataset, {key: getattr(card, key) for key in keys})
    if args.json:
        print_json({**_origin(bundle, engine, split), **card.to_json(), "test_uses": _uses_json(uses)})
    else:
        print("\n".join(_lines(card, bundle, engine, split, uses)))
    return DONE if card else FAILED


def _run_detector(args: argparse.Namespace, bundle: Bundle, dataset: Dataset, config: EngineConfig) -> int:
    from optimize.detection_picture import write_detection
    from optimize.detection_score import evaluate_detector
    from optimize.progress import open_progress

    with open_progress() as progress:
        card, outcomes, engine = evaluate_detector(bundle, dataset, config, progress=progress)
        if args.picture is not None:
            progress.step(f"drawing {args.picture}")
            write_detection(args.picture, card, outcomes, dataset, bundle.manifest)
    card = card.gated(min_map50=args.min_map50)
    split = args.split if dataset.splits else None
    keys = ("n", "map50", "map50_95", "escape_rate", "box_escape_rate", "overkill_rate")
    uses = _noted(args, bundle, dataset, {key: getattr(card, key) for key in keys})
    if args.json:
        print_json({**_origin(bundle, engine, split), **card.to_json(), "test_uses": _uses_json(uses)})
    else:
        print("\n".join(_detection_lines(card, bundle, engine, split, uses)))
    return DONE if card else FAILED


def _detection_lines(
    card: DetectionScorecard, bundle: Bundle, engine: str, split: str | None, uses: PriorUses | None
) -> Iterator[str]:
    from optimize.detection_text import detection_lines

    yield from detection_lines(card, bundle, engine, split)
    if uses is not None:
        yield f"note: {uses.sentence()}"
    for failure in card.failures:
        yield f"FAILED: {failure}"


def _data(given: Path | None) -> Path:
    from optimize.recipe import RECIPE_FILE, read_recipe

    data = given or read_recipe(Path.cwd()).data
    if data is None:
        raise OptimizeError("--data: not given", hint=f"add --data DIR, or the key `data` to {RECIPE_FILE} here")
    return data


def _noted(args: argparse.Namespace, bundle: Bundle, dataset: Dataset, figures: Mapping[str, Any]) -> PriorUses | None:
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
    splits = dict(dataset.splits) or {"all": len(dataset)}
    uses = prior_uses(digest, args.ledger) if args.split == "test" else None
    entry = Entry(
        command="evaluate",
        data=(DataUse(path=str(dataset.root), sha256=digest, splits=splits),),
        inputs=(FileUse(path=str(args.bundle), sha256=bundle.digest),),
        figures={**figures, "graph": args.graph},
        model=f"{bundle.manifest.name}-{bundle.manifest.version} ({bundle.digest[:12]})",
    )
    record(entry, args.ledger)
    return uses


def _uses_json(uses: PriorUses | None) -> dict[str, Any] | None:
    import dataclasses

    return None if uses is None else dataclasses.asdict(uses)


def _origin(bundle: Bundle, engine: str, split: str | None) -> dict[str, Any]:
    return {
        "bundle": f"{bundle.manifest.name}-{bundle.manifest.version}",
        "bundle_digest": bundle.digest,
        "gate_passed": bundle.manifest.gate_passed,
        "engine": engine,
        "split": split,
    }


def _lines(card: Scorecard, bundle: Bundle, engine: str, split: str | None, uses: PriorUses | None) -> Iterator[str]:
    name = f"{bundle.manifest.name}-{bundle.manifest.version}"
    yield f"{name} on {card.n} images{f' of {split}' if split else ''} ({engine})"
    yield ""
    yield f"accuracy   {card.accuracy:.2%}{_interval(card, 'accuracy')}"
    if card.balanced_recall is not None:
        yield f"recall     {card.balanced_recall:.2%}, the mean over classes{_interval(card, 'balanced_recall')}"
    escapes = _counted(card.escapes, card.defects, card.escape_rate, "defective parts")
    yield f"escapes    {escapes}{_bound(card, bundle)}{_interval(card, 'escape_rate')}"
    overkill = _counted(card.overkills, card.goods, card.overkill_rate, "good parts")
    yield f"overkill   {overkill}{_interval(card, 'overkill_rate')}"
    yield f"review     {card.decisions['review']} of {card.n} ({card.review_rate:.2%})"
    yield f"decisions  {', '.join(f'{key} {count}' for key, count in card.decisions.items())}"
    if card.ece is not None:
        yield f"ece        {card.ece:.4f}, the gap between how sure and how right{_interval(card, 'ece')}"
    if card.p50_ms is not None:
        yield f"latency    {card.p50_ms:.2f} ms median, {card.p99_ms:.2f} ms at 99 %"
    yield ""
    yield from _class_table(card)
    yield ""
    yield from _confusion_table(card)
    for entry in card.unjudged:
        yield f"error: {entry.file}: {entry.reason}"
    for reason in bundle.manifest.gate_reasons:
        yield f"note: this bundle failed its gate at the build: {reason}"
    if uses is not None:
        yield f"note: {uses.sentence()}"
    for failure in card.failures:
        yield f"FAILED: {failure}"


def _bound(card: Scorecard, bundle: Bundle) -> str:
    if card.escape_upper_95 is None:
        return ""
    if not any(c.severity == "ok" for c in bundle.manifest.classes):
        return "; no class of this bundle is ok, so it never passes a part and this says nothing"
    return f"; with 95 % confidence under {card.escape_upper_95:.2%}"


def _interval(card: Scorecard, key: str) -> str:
    """Where a figure lies, by group."""
    if key not in card.intervals_95:
        return ""
    low, high = card.intervals_95[key]
    ends = f"{low:.4f} to {high:.4f}" if key == "ece" else f"{low:.2%} to {high:.2%}"
    return f"; 95 % by group: {ends} ({card.groups} groups)" if key == "accuracy" else f"; 95 % by group: {ends}"


def _counted(part: int, whole: int, rate: float | None, what: str) -> str:
    return f"no {what} here" if rate is None else f"{part} of {whole} {what} ({rate:.2%})"


def _class_table(card: Scorecard) -> Iterator[str]:
    width = max(len("class"), *(len(name) for name in card.classes))
    yield f"{'class':{width}}  precision  recall  images  recall, 95 % by group"
    for name, entry in card.per_class.items():
        rates = f"{_percent(entry.precision):>9}  {_percent(entry.recall):>6}"
        yield f"{name:{width}}  {rates}  {entry.support:>6}  {_ends(card, name)}"


def _ends(card: Scorecard, name: str) -> str:
    found = card.recall_95.get(name)
    return "-" if found is None else f"{found[0]:.1%} to {found[1]:.1%}"


def _confusion_table(card: Scorecard) -> Iterator[str]:
    """Rows are the truth; columns carry the number of their class, so that long names keep the table narrow."""
    width = max(len(_CORNER), *(len(name) + 4 for name in card.classes))
    cell = max(3, *(len(str(value)) for row in card.confusion for value in row)) + 2
    yield f"{_CORNER:{width}}" + "".join(f"{i:>{cell}}" for i in range(len(card.classes)))
    for i, (name, row) in enumerate(zip(card.classes, card.confusion, strict=True)):
        yield f"{f'{i:>2}  {name}':{width}}" + "".join(f"{value or '.':>{cell}}" for value in row)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _draw(path: Path, card: Scorecard) -> None:
    """Draw the confusion matrix: rows the truth, darker is more, each cell its share of the row."""
    import cv2

    try:
        done = cv2.imwrite(str(path), _picture(card))
    except cv2.error as error:
        raise OptimizeError(f"{path}: can't be drawn ({error})", hint="--confusion takes a .png file") from error
    if not done:
        raise OptimizeError(f"{path}: can't be written", hint="does its folder exist, and does it end in .png?")


def _picture(card: Scorecard) -> Any:
    """(H, W, 3) uint8 BGR."""
    import cv2
    import numpy as np

    cell, font, black = 56, cv2.FONT_HERSHEY_SIMPLEX, (30, 30, 30)
    names = [f"{i} {name}"[:24] for i, name in enumerate(card.classes)]
    left, top = 14 + max(cv2.getTextSize(name, font, 0.5, 1)[0][0] for name in names), 44
    side = cell * len(names)
    image = np.full((top + side + 12, left + side + 12, 3), 255, np.uint8)
    cv2.putText(image, "rows: truth, columns: seen as", (8, 16), font, 0.45, black, 1, cv2.LINE_AA)
    for i, (name, row) in enumerate(zip(names, card.confusion, strict=True)):
        y, total = top + i * cell, max(sum(row), 1)
        cv2.putText(image, name, (8, y + cell // 2 + 5), font, 0.5, black, 1, cv2.LINE_AA)
        cv2.putText(image, str(i), (left + i * cell + cell // 2 - 6, top - 8), font, 0.5, black, 1, cv2.LINE_AA)
        for j, value in enumerate(row):
            x, share = left + j * cell, value / total
            base = (170, 110, 40) if i == j else (60, 60, 200)
            colour = [round(255 - (255 - channel) * share) for channel in base]
            cv2.rectangle(image, (x + 1, y + 1), (x + cell - 2, y + cell - 2), colour, cv2.FILLED)
            ink = (255, 255, 255) if share > 0.6 else black
            cv2.putText(image, str(value), (x + 10, y + cell // 2 + 5), font, 0.5, ink, 1, cv2.LINE_AA)
    return image
