"""Curves for TensorBoard, while a run is on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from agent.errors import MissingExtra
from optimize.errors import OptimizeError
from optimize.train.result import EpochRecord
from optimize.validation import Validation

__all__ = ["Record", "Scalars", "open_events", "open_scalars"]

Record = Callable[[EpochRecord, Validation], None]
Scalars = Callable[[int, Mapping[str, float]], None]
"""Takes an epoch, from 1, and its figures by name."""


@contextlib.contextmanager
def open_events(folder: Path | None, classes: Sequence[str], *, epochs_done: int) -> Iterator[Record]:
    """Open the event file of a classifier's run.

    Args:
        folder: where TensorBoard looks; None writes nothing.
        classes: names, for the recalls.
        epochs_done: of an earlier run in the same folder; what it wrote beyond is dropped by TensorBoard.

    Yields:
        What to call after each epoch.

    Raises:
        MissingExtra: TensorBoard is not installed.
        OptimizeError: the folder can't be written.
    """
    with open_scalars(folder, epochs_done=epochs_done) as write:

        def record(epoch: EpochRecord, val: Validation) -> None:
            figures = {
                "loss/train": epoch.train_loss,
                "loss/val": epoch.val_loss,
                "val/accuracy": epoch.val_accuracy,
                "val/balanced_recall": epoch.val_balanced_recall,
                "learning rate": epoch.lr,
            }
            recalls = zip(classes, val.recalls, strict=True)
            write(epoch.epoch, figures | {f"val recall/{name}": r for name, r in recalls if r is not None})

        yield record


@contextlib.contextmanager
def open_scalars(folder: Path | None, *, epochs_done: int) -> Iterator[Scalars]:
    """Open the event file of any run; arguments and errors as of `open_events`."""
    if folder is None:
        yield lambda _, __: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the Python package {error.name} is not installed, and --tensorboard needs it",
            hint="pip install tensorboard",
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)
    except OSError as error:
        raise OptimizeError(
            f"tensorboard: {folder} can't be written ({error.strerror})", hint="choose another --tensorboard DIR"
        ) from error
    with writer:

        def write(step: int, figures: Mapping[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield write
