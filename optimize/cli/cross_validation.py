"""`defect-opt train --cv K`: K networks, each judged on parts that it never saw, and what follows from it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, print_json

if TYPE_CHECKING:
    from optimize.crossval import CrossValidation, FoldProgress
    from optimize.crossval_report import CrossReport, Figure
    from optimize.dataset import Dataset
    from optimize.ensemble import Ensemble
    from optimize.intervals import Interval
    from optimize.train_config import TrainConfig

__all__ = ["run_cross_validation"]

NAMES = {
    "accuracy": "accuracy",
    "balanced_recall": "balanced recall",
    "escape_rate": "escapes",
    "overkill_rate": "overkill",
}
SHOWN = 12


def run_cross_validation(args: argparse.Namespace, config: TrainConfig, dataset: Dataset) -> int:
    """Train and judge the folds, write the report beside `--out`, and say what came out.

    Args:
        args: `data`, `out`, `cv`, `ensemble`, `workdir` (where the folds go; `OUT.cv` by default), `fresh`, `json`,
            and `ledger` where there is one.
        config: the recipe.
        dataset: what was read of `data`.

    Raises:
        OptimizeError: data, folds or remains of another run that can't be used.
    """
    from optimize.crossval import cross_validate
    from optimize.crossval_report import report_of

    folder = args.workdir or args.out.with_name(f"{args.out.name}.cv")
    with _open_progress(config.schedule) as progress:
        try:
            found = cross_validate(config, dataset, folder, args.cv, progress, is_fresh=args.fresh)
        except KeyboardInterrupt:
            print("train: stopped; the same command without --fresh goes on where it was", file=sys.stderr)
            raise
    report = report_of(found)
    ensemble = _ensemble(args.out, report) if args.ensemble else None
    document, files = _document(report, ensemble, args.data, folder), _write(report, folder)
    _write_json(files["report"], document)
    _record(args, found, document, files, ensemble)
    if args.json:
        print_json(document)
    else:
        print("\n".join(_lines(report, document, ensemble)))
    return DONE


def _ensemble(out: Path, report: CrossReport) -> Ensemble:
    from optimize.ensemble import merge_folds

    temperatures = [fold.temperature for fold in report.folds]
    document = report.to_json()
    figures = {key: document[key] for key in (*NAMES, "folds", "n", "groups", "seed", "data_sha256", "ece")}
    return merge_folds([result.onnx for result in report.found.results], out, temperatures, figures)


def _document(report: CrossReport, ensemble: Ensemble | None, data: Path, folder: Path) -> dict[str, Any]:
    files = {key: str(path) for key, path in _paths(folder).items()}
    return {
        "data": str(data),
        **report.to_json(),
        "ensemble": None if ensemble is None else ensemble.to_json(),
        "files": files,
    }


def _paths(folder: Path) -> dict[str, Path]:
    names = {"report": "report.json", "picture": "report.png", "predictions": "predictions.csv", "labels": "labels.png"}
    return {key: folder / name for key, name in names.items()}


def _write(report: CrossReport, folder: Path) -> dict[str, Path]:
    from optimize.crossval_picture import draw_report
    from optimize.crossval_report import predictions_csv
    from optimize.files import write_atomically
    from optimize.label_faults import draw_label_sheet

    paths = _paths(folder)
    write_atomically(paths["predictions"], predictions_csv(report))
    write_atomically(paths["picture"], draw_report(report))
    write_atomically(paths["labels"], draw_label_sheet(report.label_faults))
    return paths


def _write_json(path: Path, document: dict[str, Any]) -> None:
    from optimize.files import write_atomically

    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def _record(
    args: argparse.Namespace,
    found: CrossValidation,
    document: dict[str, Any],
    files: dict[str, Path],
    ensemble: Ensemble | None,
) -> None:
    from optimize.ledger import DataUse, Entry, file_of, record

    splits = dict(found.folds.dataset.splits) or {"all": len(found.folds.dataset)}
    outputs = [file_of(files["report"]), *(file_of(result.onnx) for result in found.results)]
    if ensemble is not None:
        outputs.append(file_of(ensemble.onnx))
    figures = {key: document[key] and document[key]["mean"] for key in NAMES}
    entry = Entry(
        command="train --cv",
        data=(DataUse(path=str(args.data), sha256=found.data_sha256, splits=splits),),
        seed=found.config.seed,
        outputs=tuple(outputs),
        figures={**figures, "ece": document["ece"]["after"], "folds": found.folds.count},
    )
    record(entry, getattr(args, "ledger", None))


@contextlib.contextmanager
def _open_progress(epochs: int) -> Iterator[Callable[[FoldProgress], None]]:
    """On standard error: a line per epoch, and in a terminal a bar over all folds with the time left."""

    def say(where: FoldProgress) -> None:
        if where.record is not None:
            print(_epoch_line(where, epochs), file=sys.stderr, flush=True)

    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ModuleNotFoundError:
        yield say
        return
    if not sys.stderr.isatty():
        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("training", total=1.0)

        def show(where: FoldProgress) -> None:
            text = f"fold {where.fold}/{where.count}, epoch {where.epoch}, {_left(where.seconds_left)}"
            bars.update(task, completed=where.done, description=text)
            if where.record is not None:
                bars.console.print(_epoch_line(where, epochs), highlight=False)

        yield show


def _epoch_line(where: FoldProgress, epochs: int) -> str:
    record = where.record
    assert record is not None
    return (
        f"fold {where.fold}/{where.count}  epoch {record.epoch:>3}/{epochs}  loss {record.train_loss:.3f}  "
        f"inner val: accuracy {record.val_accuracy:.2%}, balanced recall {record.val_balanced_recall:.2%}  "
        f"{record.seconds:.1f} s  {where.done:.0%} of all, {_left(where.seconds_left)}"
    )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left not known yet"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min left" if hours else f"{minutes}:{rest:02} left"


def _lines(report: CrossReport, document: dict[str, Any], ensemble: Ensemble | None) -> Iterator[str]:
    found = report.found
    there = sum(result.was_there for result in found.results)
    if there:
        yield f"{there} of {found.folds.count} folds were there from an earlier run (--fresh starts anew)"
    yield (
        f"{found.config.arch}, {found.folds.count} folds: {len(found.logits)} images of {report.groups} groups, each "
        "judged once by a network that saw none of its group; test was not opened"
    )
    yield ""
    yield f"{'':17}{'mean':>8}{'spread':>9}{'over all':>10}   95 % by group"
    yield from (_figure_line(NAMES[key], figure) for key, figure in report.figures.items())
    if "escape_rate" not in report.figures:
        yield "no class is a good part (ok, good, ...), so nothing is said of escapes and overkill"
    yield ""
    yield from _class_table(report)
    yield ""
    yield from _confusion_table(report)
    yield ""
    yield from _fold_table(report)
    yield ""
    yield from _calibration_lines(report)
    yield from _label_lines(report)
    yield from (f"note: {notice}" for notice in report.notices)
    if ensemble is not None:
        yield from ensemble.lines()
    files = document["files"]
    yield f"{files['report']}, {files['picture']}, {files['predictions']}, {files['labels']}"


def _figure_line(name: str, figure: Figure) -> str:
    spread = "-" if figure.spread is None else f"{100 * figure.spread:.2f}"
    return f"{name:17}{figure.mean:>8.2%}{spread:>9}{figure.overall:>10.2%}   {_range(figure.interval)}"


def _range(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:.2%} to {interval.high:.2%}"


def _class_table(report: CrossReport) -> Iterator[str]:
    width = max(len("class"), *(len(entry.name) for entry in report.classes))
    yield f"{'class (rarest first)':{max(width, 20)}}  recall  images  groups  95 % by group"
    for entry in report.classes:
        recall = "-" if entry.recall is None else f"{entry.recall:.1%}"
        few = "  (few groups: an anecdote)" if entry.groups < 10 else ""
        yield (
            f"{entry.name:{max(width, 20)}}  {recall:>6}  {entry.images:>6}  {entry.groups:>6}  "
            f"{_range(entry.interval)}{few}"
        )


def _confusion_table(report: CrossReport) -> Iterator[str]:
    """Rows are the truth, in the order of the table above; columns carry the number of their class."""
    classes = report.found.classes
    order = [classes.index(entry.name) for entry in report.classes]
    corner = "truth | seen as"
    width = max(len(corner), *(len(name) + 4 for name in classes))
    cell = max(3, *(len(str(value)) for row in report.confusion for value in row)) + 2
    yield f"{corner:{width}}" + "".join(f"{i + 1:>{cell}}" for i in range(len(order)))
    for i, row in enumerate(order):
        counts = [report.confusion[row][column] for column in order]
        yield f"{f'{i + 1:>2}  {classes[row]}':{width}}" + "".join(f"{value or '.':>{cell}}" for value in counts)


def _fold_table(report: CrossReport) -> Iterator[str]:
    has_ok = "escape_rate" in report.figures
    rates = "  escapes  overkill" if has_ok else ""
    yield f"fold  images  accuracy  balanced{rates}  epochs (kept)  trained on, stopped by"
    for fold in report.folds:
        rates = f"  {_percent(fold.escape_rate):>7}  {_percent(fold.overkill_rate):>8}" if has_ok else ""
        yield (
            f"{fold.fold:>4}  {fold.n:>6}  {fold.accuracy:>8.2%}  {fold.balanced_recall:>8.2%}{rates}  "
            f"{f'{fold.epochs} ({fold.best_epoch})':>13}  {fold.train_images}, {fold.val_images}"
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _calibration_lines(report: CrossReport) -> Iterator[str]:
    found = report.calibration
    yield (
        f"calibration error (ECE) {found.before:.4f} raw, {found.after:.4f} at temperature {found.temperature:g} "
        f"({found.after_unseen:.4f} on folds that it was not fitted on)"
    )


def _label_lines(report: CrossReport) -> Iterator[str]:
    from optimize.label_faults import MANY

    faults = report.label_faults
    if not faults:
        yield "labels: the folds agree with every label"
        return
    certain = sum(fault.is_suspicious for fault in faults)
    if len(faults) > MANY * len(report.found.logits):
        yield f"labels: the folds disagree with {len(faults)} of {len(report.found.logits)}: too often to accuse one"
        return
    yield (
        f"labels: {certain} of {len(report.found.logits)} suspicious, {len(faults) - certain} more doubted; look at "
        "labels.png:"
    )
    for fault in faults[:SHOWN]:
        yield (
            f"  {fault.sample.file}: is {fault.given} ({fault.probability_given:.0%}), "
            f"the folds say {fault.suggested} ({fault.probability:.0%})"
        )
    if len(faults) > SHOWN:
        yield f"  … and {len(faults) - SHOWN} more"
