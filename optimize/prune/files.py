"""From a trained ONNX file to a pruned one: recovered without labels, proven, and timed against what it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from agent.bundle.manifest import InputSpec, Task
from optimize.calibration import Selection
from optimize.dataset import data_digest
from optimize.distill import Agreement, NetworkTeacher, RecoverConfig, agreement, recover, tell_epochs
from optimize.distill.recover_config import BATCH, passes_for
from optimize.errors import ModelError, OptimizeError
from optimize.latency import median_of
from optimize.machine import describe
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector
from optimize.places import refuse_overwriting
from optimize.progress import Progress, SilentProgress
from optimize.prune.importance import ImportanceName
from optimize.prune.pictures import Pictures, read_pictures, recovery_pictures
from optimize.prune.pruning import Pruned, prune_network
from optimize.prune.sparse import Sparsity, check_2_4, hold_2_4, sparsify_2_4
from optimize.quantize.interpret import session_of
from optimize.train.processes import device_of
from optimize.train.training import check_writable, torch_threads
from optimize.trained import Saved, Trained, checkpoint_of, load_trained, save_trained

__all__ = ["PruneConfig", "PruneResult", "prune_file"]

N = TypeVar("N", Classifier, Detector)

PARITY_PICTURES = 16
STEPS: Mapping[Task, int] = MappingProxyType({"classify": 1500, "detect": 600})
"""Steps of a recovery unless told otherwise: a hundred pictures are passed over often, thousands a few times."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """The recipe.

    Attributes:
        keep_macs: share of the multiplications that may be left.
        importance: what chooses the channels, see `prune_network`.
        rounds: cuts, each recovered.
        recover_epochs: passes over the pictures behind each cut; None takes as many as make `STEPS`, 0 recovers
            nothing.
        lr: highest learning rate of the recovery; None takes 0.02 (SGD), or 0.001 (AdamW) of a detector.
        is_sparse: zero two of every four weights too, for TensorRT.
        images: pictures at most.
        seed: decides which pictures, and how they are shown.
        threads: CPU threads; 0 leaves it to torch.
        device: `auto` recovers on a GPU where there is one.
    """

    keep_macs: float = 0.5
    importance: ImportanceName | Literal["auto"] = "auto"
    rounds: int = 1
    recover_epochs: int | None = None
    lr: float | None = None
    is_sparse: bool = False
    images: int = 500
    seed: int = 0
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.keep_macs == 1 and not self.is_sparse:
            raise OptimizeError("keep-macs: got 1, which leaves nothing to do", hint="--keep-macs 0.5 keeps half")
        if self.recover_epochs is not None and self.recover_epochs < 0:
            raise OptimizeError(f"recover-epochs: got {self.recover_epochs}, expected 0 or more")
        if self.images < 8:
            raise OptimizeError(f"images: got {self.images}, expected 8 or more")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PruneResult:
    """What came out.

    Attributes:
        config: the recipe.
        source: the file that was pruned.
        source_sha256: of that file.
        source_bytes: of that file.
        arch: its network.
        saved: the file that was written.
        pruned: what went, and how far each round agrees with the source.
        agreement: how far what was written says what the source says, on the pictures.
        sparsity: layers of the written file with or without the 2:4 pattern; empty unless it was asked for.
        latency_ms: median inference of `before` and `after`, in turn, one thread.
        machine: that measured it.
        pictures: how many were used.
        data_sha256: of them, see `optimize.dataset.data_digest`.
        warnings: what the user should know, one sentence each.
    """

    config: PruneConfig
    source: Path
    source_sha256: str
    source_bytes: int
    arch: str
    saved: Saved
    pruned: Pruned[Any]
    agreement: Agreement
    sparsity: tuple[Sparsity, ...]
    latency_ms: Mapping[str, float]
    machine: str
    pictures: int
    data_sha256: str
    warnings: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """How many times as fast, measured here."""
        return self.latency_ms["before"] / self.latency_ms["after"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        pruned = self.pruned
        return {
            "model": str(self.source),
            "model_sha256": self.source_sha256,
            "onnx": str(self.saved.onnx),
            "onnx_sha256": self.saved.sha256,
            "checkpoint": str(self.saved.checkpoint),
            "arch": self.arch,
            "config": dataclasses.asdict(self.config),
            "importance": pruned.importance,
            "tried": {name: _told(found) for name, found in pruned.tried.items()},
            "rounds": [
                {"macs": each.macs, "cut": _told(each.cut), "recovered": each.recovered and _told(each.recovered)}
                for each in pruned.rounds
            ],
            "agreement": _told(self.agreement),
            "macs": {"before": pruned.macs_before, "after": pruned.macs_after, "kept": pruned.kept},
            "parameters": {"before": pruned.parameters_before, "after": pruned.parameters_after},
            "size_bytes": {"before": self.source_bytes, "after": self.saved.size_bytes},
            "latency_ms": dict(self.latency_ms),
            "speedup": self.speedup,
            "machine": self.machine,
            "widths": {name: list(pair) for name, pair in pruned.widths.items()},
            "sparsity": [dataclasses.asdict(found) for found in self.sparsity],
            "parity": dataclasses.asdict(self.saved.parity),
            "pictures": self.pictures,
            "data_sha256": self.data_sha256,
            "warnings": list(self.warnings),
        }


def prune_file(
    onnx: Path,
    calib: Path,
    out: Path,
    config: PruneConfig,
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a trained network, recover it without labels, and write it with its checkpoint.

    Args:
        onnx: a file that `defect-opt train`, `distill` or `prune` wrote, its checkpoint beside it.
        calib: pictures, see `recovery_pictures`.
        out: the ONNX file to write.
        config: the recipe.
        data: a set whose `test` split must not be among the pictures.
        progress: hears what is done.

    Raises:
        DataError: pictures that can't be used.
        MissingExtra: a package is not installed.
        ModelError: the network can't be opened or pruned, or the file would compute something else.
        OptimizeError: a share that the network does not reach, or a place that can't be written.
    """
    progress = progress or SilentProgress()
    _check_out(onnx, out)
    progress.step(f"reading {onnx.name} and its checkpoint")
    trained = load_trained(onnx)
    selection = Selection(limit=config.images, seed=config.seed)
    dataset, warnings = recovery_pictures(calib, trained, selection, data=data, progress=progress)
    pictures = read_pictures(dataset, trained.spec, progress)
    with torch_threads(config.threads):
        pruned, network, n_sparse = _pruned(trained, pictures, config, progress)
        seen = pictures.fitted[..., : trained.channels]
        agrees = agreement(network, NetworkTeacher(trained.network), seen)
        made_by = {"pruned_from": trained.sha256, "prune": str(dataclasses.asdict(config))}
        some = pictures.fitted[:PARITY_PICTURES]
        saved = save_trained(dataclasses.replace(trained, network=network), out, some, made_by=made_by)
    progress.step("timing both in turn")
    return PruneResult(
        config=config,
        source=onnx,
        source_sha256=trained.sha256,
        source_bytes=onnx.stat().st_size,
        arch=trained.arch,
        saved=saved,
        pruned=pruned,
        agreement=agrees,
        sparsity=_proven_sparsity(out, n_sparse) if config.is_sparse else (),
        latency_ms=_timed({"before": onnx, "after": out}, trained.spec, some),
        machine=describe(1),
        pictures=len(dataset),
        data_sha256=data_digest(dataset),
        warnings=warnings,
    )


def _pruned(
    trained: Trained, pictures: Pictures, config: PruneConfig, progress: Progress
) -> tuple[Pruned[Any], Any, int]:
    """What went, the network that is left, and how many of its layers were made sparse."""
    bring_back: Callable[[Any], Any] | None = None
    if config.recover_epochs != 0:
        bring_back = _recovery(trained, pictures.whole, config, progress)
    network: Any = trained.network
    pruned: Pruned[Any] = prune_network(
        network,
        torch.zeros(1, trained.channels, trained.spec.height_px, trained.spec.width_px),
        config.keep_macs,
        config.importance,
        pictures=np.ascontiguousarray(pictures.fitted[..., : trained.channels]),
        rounds=config.rounds,
        recover=None if config.keep_macs == 1 else bring_back,
        progress=progress,
    )
    left = pruned.network
    if not config.is_sparse:
        return pruned, left, 0
    progress.step("zeroing two of every four weights")
    n_sparse = len(sparsify_2_4(left))
    return pruned, left if bring_back is None else bring_back(left), n_sparse


def _recovery(
    trained: Trained, images: list[NDArray[np.uint8]], config: PruneConfig, progress: Progress
) -> Callable[[N], N]:
    """What brings a cut network back to what the trained one says."""
    is_detector = trained.task == "detect"
    epochs = config.recover_epochs or passes_for(STEPS[trained.task], len(images), trained.task)
    recipe = RecoverConfig(
        spec=trained.spec,
        epochs=epochs,
        batch=BATCH[trained.task],
        patience=epochs,  # the rate falls along the whole schedule: what is best comes at its end
        optimizer="adamw" if is_detector else "sgd",
        peak_lr=config.lr or (1e-3 if is_detector else 0.02),
        seed=config.seed,
    )
    device = device_of(config.device)
    teacher = NetworkTeacher(trained.network)

    def bring_back(network: N) -> N:
        progress.step(f"recovering on {len(images)} pictures without labels")
        for parameter in network.parameters():
            parameter.requires_grad_(True)
            if parameter.ndim == 4:  # as oneDNN wants them, see `optimize.train.learner`
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        network.to(device)
        with hold_2_4(network):
            return recover(network, teacher, images, recipe, tell_epochs(progress, epochs)).network

    return bring_back


def _check_out(onnx: Path, out: Path) -> None:
    if out.is_dir():
        raise OptimizeError(f"out: {out} is a folder, expected a file", hint=f"--out {out / 'pruned.onnx'}")
    refuse_overwriting(out, [onnx], "model")
    for place in (out.parent, checkpoint_of(out).parent):
        check_writable(place)


def _proven_sparsity(out: Path, n_sparse: int) -> tuple[Sparsity, ...]:
    """The pattern in the file; refused when fewer layers have it than were given it."""
    found = check_2_4(out)
    n_found = sum(each.has_pattern for each in found)
    if n_found < n_sparse:
        raise ModelError(
            f"{out}: {n_found} layers have the 2:4 pattern, expected {n_sparse}",
            hint="report it with the architecture's name; the file must not be used as a sparse one",
        )
    return found


def _told(found: Agreement) -> dict[str, float]:
    return {"n": found.n, "same": found.same, "share": found.share, "divergence": found.divergence}


def _timed(files: Mapping[str, Path], spec: InputSpec, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, float]:
    """Median inference in milliseconds, in turn, one thread each."""
    calls: dict[str, Callable[[NDArray[np.uint8]], object]] = {}
    for name, path in files.items():
        session = session_of(path.read_bytes(), threads=1, is_optimized=True)
        calls[name] = lambda image, session=session: session.run(None, {spec.name: image})  # type: ignore[misc]
    return median_of(calls, [picture[None] for picture in pictures], own_time=True)
