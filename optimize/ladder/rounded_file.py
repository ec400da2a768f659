"""From a float rung's file to one that loses less when it is quantized: the file side of `recover_rounded`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from optimize.calibration import Selection
from optimize.distill import NetworkTeacher, RecoverConfig, recover_rounded, tell_epochs
from optimize.distill.recover_config import BATCH, passes_for
from optimize.progress import Progress, SilentProgress
from optimize.prune.pictures import read_pictures, recovery_pictures
from optimize.train.processes import device_of
from optimize.trained import Saved, Trained, load_trained, save_trained

__all__ = ["recover_rounded_file"]

STEPS = 600
"""Of a recovery unless told otherwise: the network is whole, so little has to change."""

PARITY_PICTURES = 16


def recover_rounded_file(
    onnx: Path,
    calib: Path,
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | None = None,
    selection: Selection,
    progress: Progress | None = None,
) -> Saved:
    """Teach a network to say the same while it rounds, with itself as teacher, and write it with its checkpoint.

    Args:
        onnx: a file that `defect-opt train`, `distill` or `prune` wrote, its checkpoint beside it.
        calib: pictures; their labels count for nothing.
        out: the ONNX file to write.
        data: a set whose `test` split must not be among the pictures.
        epochs: passes over the pictures; None takes as many as make `STEPS`.
        selection: how many pictures at most, and the seed.
        progress: hears what is done.

    Raises:
        DataError: pictures that can't be used.
        MissingExtra: a package is not installed.
        ModelError: the network can't be opened, or the file would compute something else.
    """
    progress = progress or SilentProgress()
    progress.step(f"reading {onnx.name} and its checkpoint")
    trained = load_trained(onnx)
    dataset, told = recovery_pictures(calib, trained, selection, data=data, progress=progress)
    for sentence in told:
        progress.step(f"note: {sentence}")
    pictures = read_pictures(dataset, trained.spec, progress)
    config = _config(trained, len(dataset), epochs, selection.seed)
    progress.step(f"recovering on {len(dataset)} pictures without labels, while every layer rounds")
    network: Any = trained.network
    teacher = NetworkTeacher(network)
    network.to(device_of("auto")).requires_grad_(True)
    found = recover_rounded(network, teacher, pictures.whole, config, tell_epochs(progress, config.epochs))
    made_by = {"rounded_from": trained.sha256, "rounded": str(dataclasses.asdict(config))}
    learned = dataclasses.replace(trained, network=found.network)
    return save_trained(learned, out, pictures.fitted[:PARITY_PICTURES], made_by=made_by)


def _config(trained: Trained, count: int, epochs: int | None, seed: int) -> RecoverConfig:
    passes = epochs or passes_for(STEPS, count, trained.task)
    return RecoverConfig(
        spec=trained.spec,
        epochs=passes,
        batch=BATCH[trained.task],
        patience=passes,  # the rate falls along the whole schedule: what is best comes at its end
        optimizer="adamw",
        peak_lr=1e-4,  # a tenth of a usual one: at 1e-3 values outgrew the ranges, and nothing came back
        average=0.9,
        seed=seed,
    )
