"""A network as it was trained, from an ONNX file of ours and the checkpoint beside it; and back into such a pair.

The ONNX file is what a device runs; its batch norms are folded, so nothing can be trained on from there. The checkpoint
(`X.onnx.train/checkpoint.pt`) holds the weights as they were learned. They may have parted since, so both are run on
the same picture before anything is built on them.

A pruned network is the architecture's, with fewer channels: it is built whole, and every layer is then cut to the
shapes of the weights. Only tensors and plain values are read (`weights_only`): no file runs code.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.bundle.detection import DetectionSpec
from agent.bundle.manifest import InputSpec, Task
from optimize.checkpoint import Checkpoint, read_checkpoint
from optimize.detect.export import check_detector_parity, export_detector
from optimize.errors import ModelError, OptimizeError
from optimize.export import Parity, check_parity, export_onnx
from optimize.files import write_atomically
from optimize.inputs import severity_by_name
from optimize.networks import ARCHITECTURES, build_network, resolve_width
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.cards import DETECTORS
from optimize.networks.detectors.detector import Detector, build_detector
from optimize.quantize.model import FloatModel, read_model
from optimize.train_config import Pooling

__all__ = ["RECIPE", "Saved", "Trained", "checkpoint_of", "cut_to", "load_trained", "save_trained"]

RECIPE = ("arch", "width", "until", "attention", "pooling", "finest", "weights")
"""Keys of a checkpoint's recipe that say how its network is built; what is missing, or `None`, takes the default."""

AGAIN = "train it again, or give the file that lies beside its checkpoint, as `defect-opt train` wrote both"

Network = Classifier | Detector


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A trained network that is proven to be the file's.

    Attributes:
        path: the ONNX file.
        sha256: of that file, hex.
        network: in evaluation mode, with its batch norms, on the CPU.
        spec: what the file takes.
        classes: in the order of the logits or scores.
        arch: a name from `ARCHITECTURES` or `DETECTORS`.
        channels: 3 for colour, 1 for grey.
        task: `classify` or `detect`.
        recipe: how the architecture is built again, see `RECIPE`.
        detection: how a detector's outputs are read; None for a classifier.
    """

    path: Path
    sha256: str
    network: Network
    spec: InputSpec
    classes: tuple[str, ...]
    arch: str
    channels: int
    task: Task
    recipe: Mapping[str, str]
    detection: DetectionSpec | None = None

    def parity(self, path: Path, images: Iterable[NDArray[np.uint8]]) -> Parity:
        """How far a file computes something else than the network.

        Args:
            path: an ONNX file of this network.
            images: (H, W, 3) uint8 RGB, at the graph's size.

        Raises:
            ModelError: it does.
        """
        if isinstance(self.network, Detector):
            return check_detector_parity(self.network, path, images)
        return check_parity(self.network, path, images)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A pair of files that was written.

    Attributes:
        onnx: what a device runs.
        sha256: of that file, hex.
        size_bytes: of that file.
        checkpoint: what can be trained on.
        parity: how far ONNX Runtime and torch are apart.
    """

    onnx: Path
    sha256: str
    size_bytes: int
    checkpoint: Path
    parity: Parity


def checkpoint_of(onnx: Path) -> Path:
    """Where the checkpoint of a file lies, unless `--workdir` said otherwise."""
    return onnx.with_name(f"{onnx.name}.train") / "checkpoint.pt"


def load_trained(onnx: Path, checkpoint: Path | None = None) -> Trained:
    """Open the network of an ONNX file that `defect-opt train`, `distill` or `prune` wrote.

    Args:
        onnx: the file.
        checkpoint: what lies beside it; None looks where these commands put it.

    Raises:
        MissingExtra: onnx, or a library that the architecture needs, is not installed.
        ModelError: the file is not ours, the checkpoint is missing or damaged, or they do not belong together.
    """
    model = read_model(onnx)
    if model.classes is None or model.arch not in {*ARCHITECTURES, *DETECTORS}:
        what = "names no network of ours" if model.arch is None else f"is {model.arch!r}, no single network of ours"
        raise ModelError(
            f"{onnx}: {what}, so there is no checkpoint to go on from", hint="give a file that `defect-opt train` wrote"
        )
    path = checkpoint or checkpoint_of(onnx)
    recipe, weights = _read(onnx, path)
    if recipe.get("arch") != model.arch:
        raise ModelError(f"{path}: is of {recipe.get('arch')}, {onnx} is of {model.arch}", hint=AGAIN)
    first = next((value for value in weights.values() if value.ndim == 4), None)
    channels = 0 if first is None else int(first.shape[1])
    if channels not in (1, 3):
        raise ModelError(f"{path}: holds weights of no network of ours (it reads {channels} channels)", hint=AGAIN)
    try:
        network = _built(model.arch, model.classes, channels, recipe)
        cut_to(network, weights)
    except (OptimizeError, ValueError) as error:
        raise ModelError(f"{path}: does not fit {model.arch} ({error})", hint=AGAIN) from error
    return _proven(model, network, channels, recipe, path)


def save_trained(
    trained: Trained, out: Path, images: Iterable[NDArray[np.uint8]], *, made_by: Mapping[str, str] | None = None
) -> Saved:
    """Write a network as an ONNX file, with the checkpoint that `load_trained` reads beside it.

    The file appears under its name only when ONNX Runtime has agreed with torch.

    Args:
        trained: the network, and what is known of it.
        out: the ONNX file to write.
        images: (H, W, 3) uint8 RGB, at the graph's size; the files must agree on all of them.
        made_by: what made it, for the checkpoint, so that no other run goes on from there.

    Raises:
        ModelError: the file would compute something else, or can't be written.
    """
    path = checkpoint_of(out)
    unproven = path.with_name("unproven.onnx")
    network = trained.network.eval().cpu()
    if isinstance(network, Detector):
        assert trained.detection is not None
        sha256 = export_detector(network, unproven, trained.spec, trained.detection, trained.classes, arch=trained.arch)
    else:
        sha256 = export_onnx(network, unproven, trained.spec, trained.classes, arch=trained.arch)
    parity = trained.parity(unproven, images)
    run_of = {key: value for key, value in trained.recipe.items() if key in RECIPE} | dict(made_by or {})
    # The checkpoint first: a pair that a power cut tore apart is found out by `load_trained`, and made again.
    Checkpoint(path, run_of).save({"best_weights": network.state_dict()})
    write_atomically(out, unproven.read_bytes())
    unproven.unlink()
    return Saved(onnx=out, sha256=sha256, size_bytes=out.stat().st_size, checkpoint=path, parity=parity)


def cut_to(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Cut every layer of a network to the shapes of weights, and load them.

    Args:
        network: of the weights' architecture, as wide or wider.
        weights: its state, by name.

    Raises:
        ValueError: the weights are of another network.
    """
    for name, module in network.named_modules():
        weight = weights.get(f"{name}.weight")
        if weight is None or not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        if weight.ndim != module.weight.ndim or any(
            new > old for new, old in zip(weight.shape, module.weight.shape, strict=True)
        ):
            got, most = list(weight.shape), list(module.weight.shape)
            raise ValueError(f"{name}.weight has shape {got}, expected at most {most}")
        _cut(module, weight.shape)
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    for block in network.modules():
        # Torchvision's blocks note how many channels they give; nothing here reads it, but a wrong number is a trap.
        convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        if isinstance(getattr(block, "out_channels", None), int) and convolutions and block is not convolutions[0]:
            block.out_channels = convolutions[-1].out_channels  # type: ignore[assignment]


def _cut(module: nn.Conv2d | nn.Linear | nn.BatchNorm2d, shape: torch.Size) -> None:
    if isinstance(module, nn.BatchNorm2d):
        (module.num_features,) = shape
        for name in ("running_mean", "running_var"):
            setattr(module, name, torch.empty(shape))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    else:
        if module.groups > 1:
            module.groups = shape[0] if module.groups == module.out_channels else module.groups
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    module.weight = nn.Parameter(torch.empty(shape))
    if module.bias is not None:
        module.bias = nn.Parameter(torch.empty(shape[0]))


def _read(onnx: Path, path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(
            f"{onnx}: its checkpoint {path} is not there",
            hint="keep MODEL.onnx.train/ beside the file, or train it again",
        )
    try:
        recipe, state = read_checkpoint(path)
    except OptimizeError as error:
        raise ModelError(error.message, hint=AGAIN) from error
    weights: Any = state.get("best_weights")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ModelError(f"{path}: holds no weights", hint=AGAIN)
    return {key: str(value) for key, value in recipe.items()}, weights


def _built(arch: str, classes: tuple[str, ...], channels: int, recipe: Mapping[str, str]) -> Network:
    given = {key: value for key, value in recipe.items() if value != "None"}
    if arch in DETECTORS:
        return build_detector(arch, len(classes), in_channels=channels, finest=int(given.get("finest", "8")))
    width = float(given["width"]) if "width" in given else None
    network = build_network(
        arch,
        len(classes),
        in_channels=channels,
        width=resolve_width(arch, width, is_pretrained=given.get("weights", "none") != "none"),
        attention=given.get("attention", "none"),
        until=given.get("until"),
    )
    pooling: dict[str, Pooling] = {"mean": "mean", "peak": "peak", "both": "both"}
    network.pooling = pooling[given.get("pooling", "mean")]
    network.background = next((i for i, name in enumerate(classes) if severity_by_name(name) == "ok"), None)
    return network


def _proven(model: FloatModel, network: Network, channels: int, recipe: Mapping[str, str], path: Path) -> Trained:
    """The network, when it computes what the file does on a random picture."""
    assert model.classes is not None
    assert model.arch is not None
    trained = Trained(
        path=model.path,
        sha256=hashlib.sha256(model.path.read_bytes()).hexdigest(),
        network=network.eval(),
        spec=model.input,
        classes=model.classes,
        arch=model.arch,
        channels=channels,
        task=model.task,
        recipe=MappingProxyType({key: recipe[key] for key in RECIPE if key in recipe}),
        detection=model.detection,
    )
    shape = (model.input.height_px, model.input.width_px, 3)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    try:
        trained.parity(model.path, [picture])
    except (ModelError, RuntimeError, ValueError) as error:  # shapes may differ too, which numpy and torch refuse
        raise ModelError(f"{path}: holds other weights than {model.path}", hint=AGAIN) from error
    return trained
