"""Teachers that lie in files: a float ONNX, an ensemble of folds, a bundle, or several of them together."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.bundle import InputSpec, fit, open_bundle
from optimize.dataset import Sample, read_image
from optimize.distill.teacher import Taught, at_size, order_of, with_channels
from optimize.errors import ModelError, OptimizeError
from optimize.quantize.interpret import session_of
from optimize.quantize.model import bytes_from_model, read_model

__all__ = ["FileTeacher", "OnnxTeacher", "open_teacher"]

BUNDLE = ".defect"


class OnnxTeacher:
    """One graph, run by ONNX Runtime on the CPU.

    Args:
        graph: the bytes of an ONNX file; it takes (1, H, W, 3) uint8 RGB.
        spec: its input.
        logits: the name of that output.
        embedding: the name of that output; None where there is none.
        threads: of one inference.

    Raises:
        ModelError: ONNX Runtime can't open it.
    """

    def __init__(self, graph: bytes, spec: InputSpec, logits: str, embedding: str | None, *, threads: int = 1) -> None:
        self.spec, self.has_features = spec, embedding is not None
        self.parameters = _weights(graph)
        self._session: Any = session_of(graph, threads=threads, is_optimized=True)
        self._names = [logits] if embedding is None else [logits, embedding]

    def __call__(self, pictures: Tensor) -> Taught:
        """See `Teacher`; pictures are rounded to bytes, as a camera gives them."""
        seen = at_size(with_channels(pictures.cpu(), 3), self.spec.width_px, self.spec.height_px)
        levels = (seen * 128 + 128).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        found = [torch.from_numpy(each).to(pictures.device) for each in self.judge(levels)]
        return Taught(logits=found[0], features=found[1] if self.has_features else None)

    def judge(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Logits (N, C), and where there is one the embedding (N, D), of (N, H, W, 3) uint8 RGB at its own size."""
        # One by one: exported graphs take one picture, as the device has one part in front of it.
        each = [self._session.run(self._names, {self.spec.name: image[None]}) for image in images]
        return [np.concatenate(rows).astype(np.float32) for rows in zip(*each, strict=True)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileTeacher:
    """A teacher from one file or several, with what must be known of it.

    Attributes:
        files: as they were given.
        sha256: of each, hex; a bundle's own digest for a bundle.
        classes: in the order of its logits.
        graphs: of each file; of several, the probabilities are averaged.
        orders: for each graph, which of its logits is the first class, the second, ...
    """

    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    classes: tuple[str, ...]
    graphs: tuple[OnnxTeacher, ...]
    orders: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        return ", ".join(str(file) for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over all members in their order; of one member its own."""
        if len(self.sha256) == 1:
            return self.sha256[0]
        return hashlib.sha256("\0".join(self.sha256).encode()).hexdigest()

    @property
    def size_px(self) -> int:
        """The longest edge that a member looks at."""
        return max(max(graph.spec.width_px, graph.spec.height_px) for graph in self.graphs)

    @property
    def parameters(self) -> int:
        """Weights of all members."""
        return sum(graph.parameters for graph in self.graphs)

    @property
    def has_features(self) -> bool:
        """Whether there are features to imitate: those of all members, one after the other."""
        return all(graph.has_features for graph in self.graphs)

    def __call__(self, pictures: Tensor) -> Taught:
        """See `Teacher`.

        Raises:
            ModelError: a member gives no finite numbers.
        """
        each = [graph(pictures) for graph in self.graphs]
        for file, taught in zip(self.files, each, strict=True):
            is_finite = bool(torch.isfinite(taught.logits).all())
            if not is_finite or not (taught.features is None or bool(torch.isfinite(taught.features).all())):
                raise _not_finite(file)
        logits = [taught.logits[:, list(order)] for taught, order in zip(each, self.orders, strict=True)]
        features = [taught.features for taught in each if taught.features is not None]
        return Taught(
            logits=logits[0] if len(logits) == 1 else _mean(logits),
            features=torch.cat(features, 1) if self.has_features else None,
        )

    def for_classes(self, classes: Sequence[str]) -> FileTeacher:
        """The same teacher with its classes in this order.

        Raises:
            ModelError: they are not the same classes.
        """
        order = order_of(self.classes, classes, self.name)
        orders = tuple(tuple(found[i] for i in order) for found in self.orders)
        return dataclasses.replace(self, classes=tuple(classes), orders=orders)

    def judge(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Probabilities (N, C) of pictures that each member sees as a device would show them to it.

        Raises:
            ImageError: one can't be read.
            ModelError: a member gives no finite numbers.
        """
        return np.array([self._judged(read_image(sample.path)) for sample in samples])

    def _judged(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities (C,) of one (H, W, 3) uint8 BGR."""
        found = []
        for file, graph, order in zip(self.files, self.graphs, self.orders, strict=True):
            logits = graph.judge(fit(image, graph.spec)[None])[0][0].astype(np.float64)[list(order)]
            if not np.isfinite(logits).all():
                raise _not_finite(file)
            shares = np.exp(logits - logits.max())
            found.append(shares / shares.sum())
        return np.asarray(np.mean(found, axis=0))


def open_teacher(files: Sequence[Path], *, threads: int = 1) -> FileTeacher:
    """Open a teacher.

    Args:
        files: float ONNX classifiers (one may be an ensemble of folds), or bundles, whose float graph is taken; of
            several the probabilities are averaged. Logits are taken as the network gives them, without a bundle's
            temperature: the same network teaches the same, whatever file it came in.
        threads: of one inference.

    Raises:
        BundleError: a bundle that can't be trusted.
        MissingExtra: onnx is not installed.
        ModelError: a file is no such model, or the members know different classes.
    """
    if not files:
        raise OptimizeError("teacher: got no file", hint="--teacher MODEL.onnx, or several")
    folder = next((file for file in files if file.is_dir()), None)
    if folder is not None:
        raise ModelError(f"{folder}: is a folder, expected a model", hint=f"--teacher {folder / 'model.onnx'}")
    opened = [_from_bundle(file, threads) if file.suffix == BUNDLE else _from_onnx(file, threads) for file in files]
    classes = opened[0][1]
    return FileTeacher(
        files=tuple(files),
        sha256=tuple(sha256 for _, _, sha256 in opened),
        classes=classes,
        graphs=tuple(graph for graph, _, _ in opened),
        orders=tuple(order_of(found, classes, str(file)) for file, (_, found, _) in zip(files, opened, strict=True)),
    )


def _not_finite(file: Path) -> ModelError:
    return ModelError(
        f"{file}: the teacher gives NaN or infinity for a picture, so nothing can be learned from it",
        hint=f"look at it first: defect-opt inspect {file}; then train it anew",
    )


def _weights(graph: bytes) -> int:
    """How many numbers with a fraction a graph holds."""
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    held = onnx.load_model_from_string(graph).graph.initializer
    return sum(math.prod(tensor.dims) for tensor in held if tensor.data_type in floats)


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """Logits (N, C) whose probabilities are the mean of those that the members give."""
    shares = torch.stack([each.softmax(-1) for each in logits]).mean(0)
    return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()


def _from_onnx(path: Path, threads: int) -> tuple[OnnxTeacher, tuple[str, ...], str]:
    model = read_model(path)
    if model.task != "classify":
        raise ModelError(f"{path}: is a detector, expected a classifier", hint="give a model that `train` wrote")
    if model.classes is None:
        raise ModelError(
            f"{path}: does not say which classes its {model.count} outputs are",
            hint="build a bundle of it with the classes in the recipe, and give that",
        )
    graph, embedding = bytes_from_model(model.proto), model.outputs.embedding
    return OnnxTeacher(graph, model.input, model.logits, embedding, threads=threads), model.classes, model.sha256


def _from_bundle(path: Path, threads: int) -> tuple[OnnxTeacher, tuple[str, ...], str]:
    bundle = open_bundle(path)
    manifest, outputs = bundle.manifest, bundle.manifest.outputs
    if outputs.logits is None:
        raise ModelError(f"{path}: holds a detector, expected a classifier", hint="give a classifier's bundle")
    graph = OnnxTeacher(bundle.graph("fp32"), manifest.input, outputs.logits, outputs.embedding, threads=threads)
    return graph, manifest.class_names, bundle.digest
