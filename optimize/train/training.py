"""The whole run: images in, an ONNX file out that is proven to compute what was trained."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from optimize.attention_sheet import draw_attention
from optimize.checkpoint import Checkpoint
from optimize.dataset import Dataset, data_digest
from optimize.errors import OptimizeError
from optimize.export import Parity, check_parity, export_onnx
from optimize.files import write_atomically
from optimize.pretrained import Pretrained, read_weights, scratch_notice
from optimize.train.events import open_events
from optimize.train.objective import Lesson
from optimize.train.processes import Processes, open_processes
from optimize.train.result import Progress, TrainResult
from optimize.train.run import Run
from optimize.train_config import TrainConfig
from optimize.trainset import fitted_pictures, raw_pictures, train_and_val

__all__ = ["check_writable", "join", "torch_threads", "train"]

PARITY_PICTURES = 16


def train(
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    workdir: Path | None = None,
    is_fresh: bool = False,
    lesson: Lesson | None = None,
) -> TrainResult:
    """Train on `train`, stop and choose on `val`, export, and prove that the file computes the same.

    Args:
        config: the recipe.
        dataset: a whole set; its own `train` and `val` are taken. Without `val`, a part of `train` becomes it.
        out: the ONNX file to write.
        progress: called after each step.
        workdir: where the checkpoint is; `OUT.train` beside the file by default.
        is_fresh: forget a checkpoint that is there.
        lesson: what teaches beside the labels; None for nothing.

    Returns:
        What came out; the file is written.

    Raises:
        DataError: images, labels or splits that can't be trained on.
        MissingExtra: a library that the recipe needs is not installed.
        ModelError: the published weights can't be used.
        OptimizeError: the loss is no number any more, or the checkpoint belongs to another run.
    """
    if out.is_dir():
        raise OptimizeError(f"out: {out} is a folder, expected a file", hint=f"--out {out / 'model.onnx'}")
    folder = workdir or out.with_name(f"{out.name}.train")
    for place in (out.parent, folder):
        check_writable(place)
    plan = _Plan(config, dataset, folder, lesson)
    if is_fresh:
        plan.checkpoint.forget()
    with torch_threads(config.threads), open_processes(config.device) as processes:
        run, resumed_at = plan.run(processes, progress or (lambda _: None))
    sha256, parity = _export(run, out, plan.folder / "unproven.onnx")
    return TrainResult(
        config=config,
        classes=dataset.classes,
        onnx=out,
        sha256=sha256,
        size_bytes=out.stat().st_size,
        parameters=sum(parameter.numel() for parameter in run.network.parameters()),
        counts=tuple(run.counts.tolist()),
        history=tuple(run.history),
        best_epoch=run.learner.best_epoch,
        val=run.best,
        parity=parity,
        stopped=str(run.stopped),
        data_sha256=plan.digest,
        files={name: tuple(sample.file for sample in part) for name, part in plan.parts.items()},
        notices=plan.notices + run.notices,
        seconds=run.learner.seconds,
        resumed_at=resumed_at,
        origin=plan.pretrained.origin if plan.pretrained else None,
        attention=_attention(run),
    )


def join(config: TrainConfig, dataset: Dataset, out: Path, *, workdir: Path | None = None) -> None:
    """Work on a run that `torchrun` started, as any of its processes but the first; nothing is written.

    Args:
        config: the recipe, the same in all.
        dataset: the same images.
        out: what the first process writes.
        workdir: the first process's folder; it must be reachable from here when a run is to be resumed.

    Raises:
        The same as `train`.
    """
    plan = _Plan(config, dataset, workdir or out.with_name(f"{out.name}.train"))
    with torch_threads(config.threads), open_processes(config.device) as processes:
        plan.run(processes, lambda _: None)


class _Plan:
    """What a run starts from: recipe, images, published weights, and where its checkpoint is."""

    def __init__(self, config: TrainConfig, dataset: Dataset, folder: Path, lesson: Lesson | None = None) -> None:
        self.config, self.classes, self.folder, self.lesson = config, dataset.classes, folder, lesson
        self.pretrained = None if config.weights is None else read_weights(config.weights, config.arch)
        self.parts, notices = (train_and_val if lesson is None else lesson.parts)(dataset, config.seed)
        self.notices = notices + scratch_notice(config)
        used = self.parts["train"].samples + self.parts["val"].samples
        self.digest = data_digest(dataclasses.replace(dataset, samples=used))
        run_of = _run_of(config, self.digest, self.pretrained) | dict(lesson.run_of if lesson else {})
        self.checkpoint = Checkpoint(folder / "checkpoint.pt", run_of)

    def run(self, processes: Processes, progress: Callable[[Progress], None]) -> tuple[Run, int]:
        """Epoch after epoch, each kept on disk; gives the run, and the epoch that an earlier one had reached."""
        config = self.config
        view_px = None if self.lesson is None else self.lesson.view_px(config.size)
        pictures = raw_pictures(
            self.parts["train"], view_px or config.size, masks=config.masks, is_letterbox=config.resize == "letterbox"
        )
        if self.lesson is not None:
            pictures = dataclasses.replace(pictures, is_labelled=self.lesson.is_labelled(self.parts["train"]))
        val = fitted_pictures(self.parts["val"], config.spec)
        run = Run(config, pictures, val, self.classes, self.pretrained, processes, self.lesson)
        processes.wait()  # by now the first has forgotten a checkpoint that was not wanted
        resumed_at = run.restore(self.checkpoint.load())
        if processes.told(np.array([float(resumed_at)]))[0] != resumed_at:
            raise OptimizeError(
                f"train: process {processes.rank} does not see the checkpoint of the first one in {self.folder}",
                hint="give all a --workdir on a shared disk, or start with --fresh",
            )
        folder = config.tensorboard if processes.is_first else None
        with open_events(folder, run.classes, epochs_done=resumed_at) as record:
            while run.stopped is None:
                told = run.epoch(progress)
                if processes.is_first:
                    record(run.history[-1], run.last)
                    self.checkpoint.save(run.state())
                progress(told)  # only now: whoever stops the run behind this line goes on after this epoch
        return run, resumed_at


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads; 0 leaves what it chose, one per core unless OMP_NUM_THREADS says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _export(run: Run, out: Path, unproven: Path) -> tuple[str, Parity]:
    """Write the best network; the file appears under its name only when ONNX Runtime has agreed with torch."""
    network = run.learner.best()
    sha256 = export_onnx(network, unproven, run.config.spec, run.classes, arch=run.config.arch)
    parity = check_parity(network, unproven, run.val.images[:PARITY_PICTURES])
    write_atomically(out, unproven.read_bytes())
    unproven.unlink()
    return sha256, parity


def _attention(run: Run) -> bytes | None:
    """A picture of where the best network looked on `val`, when it has spatial attention."""
    if run.config.attention != "cbam":
        return None
    return draw_attention(run.learner.best(), run.val, run.classes, channels=run.channels)


def check_writable(folder: Path) -> None:
    """Before hours go into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptimizeError(
            f"train: {folder} can't be written ({error.strerror})", hint="choose another --out, or --workdir"
        ) from error


def _run_of(config: TrainConfig, digest: str, pretrained: Pretrained | None) -> dict[str, str]:
    """What a checkpoint must agree on; what only ends a run sooner or later, or makes it faster, may change."""
    recipe = dataclasses.asdict(config) | {"size_px": config.size, "epochs": config.schedule, "lr": config.peak_lr}
    recipe["weights"] = pretrained.origin.sha256[:16] if pretrained else "none"
    recipe["masks"] = "none" if config.masks is None else "given"
    for key in ("minutes", "patience", "threads", "device", "tensorboard"):
        del recipe[key]
    return {key: str(value) for key, value in recipe.items()} | {"images": digest[:16]}
