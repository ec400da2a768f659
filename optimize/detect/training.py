"""The whole run: images and boxes in, an ONNX file out that is proven to compute what was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agent.bundle.detection import Tiling
from agent.bundle.preprocess import fit
from optimize.checkpoint import Checkpoint
from optimize.dataset import Dataset, data_digest
from optimize.detect.config import DetectConfig
from optimize.detect.export import check_detector_parity, export_detector
from optimize.detect.parts import parts_of
from optimize.detect.pictures import read_pictures
from optimize.detect.result import BoxValidation, DetectProgress, DetectResult
from optimize.detect.run import Run
from optimize.errors import OptimizeError
from optimize.export import Parity
from optimize.files import write_atomically
from optimize.networks.detectors import detector_card
from optimize.pretrained import Pretrained, read_weights
from optimize.train.events import open_scalars
from optimize.train.training import check_writable, torch_threads

__all__ = ["train_detector"]

PARITY_PICTURES = 16

NEXT_TO_NOTHING = 0.02
"""mAP50 that boxes at random places reach by chance."""


def train_detector(
    config: DetectConfig,
    dataset: Dataset,
    out: Path,
    progress: Callable[[DetectProgress], None] | None = None,
    *,
    workdir: Path | None = None,
    is_fresh: bool = False,
) -> DetectResult:
    """Train on `train`, stop and choose on `val`, export, and prove that the file computes the same.

    Args:
        config: the recipe.
        dataset: a whole set with boxes; its own `train` and `val` are taken. Without `val`, a part of `train` becomes
            it. `test` is never opened.
        out: the ONNX file to write.
        progress: called after each step.
        workdir: where the checkpoint is; `OUT.train` beside the file by default.
        is_fresh: forget a checkpoint that is there.

    Returns:
        What came out; the file is written.

    Raises:
        DataError: images, boxes or splits that can't be trained on.
        ModelError: the published weights can't be used.
        OptimizeError: the loss is no number any more, or the checkpoint belongs to another run.
    """
    if out.is_dir():
        raise OptimizeError(f"out: {out} is a folder, expected a file", hint=f"--out {out / 'model.onnx'}")
    folder = workdir or out.with_name(f"{out.name}.train")
    for place in (out.parent, folder):
        check_writable(place)
    pretrained = None if config.weights is None else read_weights(config.weights, detector_card(config.arch).backbone)
    parts, notices = parts_of(dataset, config.seed)
    used = parts["train"].samples + parts["val"].samples
    digest = data_digest(dataclasses.replace(dataset, samples=used))
    checkpoint = Checkpoint(folder / "checkpoint.pt", _run_of(config, digest, pretrained))
    if is_fresh:
        checkpoint.forget()
    pictures = {name: read_pictures(part) for name, part in parts.items()}
    with torch_threads(config.threads):
        run = Run(config, pictures["train"], pictures["val"], dataset.classes, pretrained)
        resumed_at = _go_on(run, checkpoint, progress or (lambda _: None))
        sha256, parity = _export(run, out, folder / "unproven.onnx")
    assert run.best is not None
    return DetectResult(
        config=config,
        classes=dataset.classes,
        onnx=out,
        sha256=sha256,
        size_bytes=out.stat().st_size,
        parameters=sum(parameter.numel() for parameter in run.network.parameters()),
        counts=tuple(run.counts.tolist()),
        empty=sum(not len(truth.boxes) for truth in pictures["train"].truths),
        history=tuple(run.history),
        best_epoch=run.learner.best_epoch,
        val=run.best,
        parity=parity,
        stopped=str(run.stopped),
        data_sha256=digest,
        files={name: tuple(sample.file for sample in part) for name, part in parts.items()},
        notices=notices + run.notices + _unlearned(run.best),
        seconds=run.learner.seconds,
        cpu_seconds=run.cpu_seconds,
        resumed_at=resumed_at,
        origin=pretrained.origin if pretrained else None,
    )


def _go_on(run: Run, checkpoint: Checkpoint, progress: Callable[[DetectProgress], None]) -> int:
    """Epoch after epoch, each kept on disk; gives the epoch that an earlier run had reached."""
    resumed_at = run.restore(checkpoint.load())
    with open_scalars(run.config.tensorboard, epochs_done=resumed_at) as write:
        while run.stopped is None:
            told = run.epoch(progress)
            last = run.history[-1]
            figures = {"loss/train": last.train_loss, "val/map50": last.map50, "val/map50_95": last.map50_95}
            write(last.epoch, figures | {"learning rate": last.lr})
            checkpoint.save(run.state())
            progress(told)  # only now: whoever stops the run behind this line goes on after this epoch
    return resumed_at


def _export(run: Run, out: Path, unproven: Path) -> tuple[str, Parity]:
    """Write the best network; the file appears under its name only when ONNX Runtime has agreed with torch."""
    network, config = run.learner.best(), run.config
    detection = dataclasses.replace(network.spec(config.size, config.size), tiling=_tiling(config))
    sha256 = export_detector(network, unproven, config.spec, detection, run.classes, arch=config.arch)
    images = [fit(np.ascontiguousarray(i[:, :, ::-1]), config.spec) for i in run.val.images[:PARITY_PICTURES]]
    parity = check_detector_parity(network, unproven, images)
    write_atomically(out, unproven.read_bytes())
    unproven.unlink()
    return sha256, parity


def _unlearned(val: BoxValidation) -> tuple[str, ...]:
    """One sentence when the network finds next to nothing yet: its INT8 would be built for nothing."""
    if val.map50 >= NEXT_TO_NOTHING:
        return ()
    found = f"on val it finds next to nothing yet (mAP50 {val.map50:.3f})"
    return (f"{found}: train longer, or start from published weights (--weights)",)


def _tiling(config: DetectConfig) -> Tiling | None:
    if config.tile_px is None:
        return None
    return Tiling(tile_px=config.tile_px, overlap=config.tile_overlap)


def _run_of(config: DetectConfig, digest: str, pretrained: Pretrained | None) -> dict[str, str]:
    """What a checkpoint must agree on; what only ends a run sooner or later, or makes it faster, may change."""
    recipe = dataclasses.asdict(config) | {"size_px": config.size, "epochs": config.schedule, "lr": config.peak_lr}
    recipe["weights"] = pretrained.origin.sha256[:16] if pretrained else "none"
    for key in ("minutes", "patience", "threads", "device", "tensorboard", "tile_overlap"):
        del recipe[key]
    return {key: str(value) for key, value in recipe.items()} | {"images": digest[:16]}
