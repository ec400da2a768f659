"""Curves for TensorBoard, while a run is on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.errors import MissingExtra
from optimize.errors import OptimizeError
from optimize.train.result import EpochRecord
from optimize.validation import Validation

__all__ = ["Record", "open_events"]

Record = Callable[[EpochRecord, Validation], None]


@contextlib.contextmanager
def open_events(folder: Path | None, classes: Sequence[str], *, epochs_done: int) -> Iterator[Record]:
    """Open the event file of a run.

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

        def record(epoch: EpochRecord, val: Validation) -> None:
            step = epoch.epoch
            writer.add_scalar("loss/train", epoch.train_loss, step)
            writer.add_scalar("loss/val", epoch.val_loss, step)
            writer.add_scalar("val/accuracy", epoch.val_accuracy, step)
            writer.add_scalar("val/balanced_recall", epoch.val_balanced_recall, step)
            writer.add_scalar("learning rate", epoch.lr, step)
            for name, recall in zip(classes, val.recalls, strict=True):
                if recall is not None:
                    writer.add_scalar(f"val recall/{name}", recall, step)
            writer.flush()

        yield record
