"""Two weights of four: the pattern that NVIDIA's sparse tensor cores skip at twice the rate.

Of every four weights that follow each other along the input channels, at each output and each place of the kernel, two
at least are 0 (NVIDIA, TensorRT developer guide, "Structured sparsity"; Mishra et al., "Accelerating sparse deep neural
networks", arXiv 2104.08378, section 3). Nothing but TensorRT on Ampere and later is faster by it; a CPU is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from optimize.networks.attention import ChannelGate
from optimize.networks.detectors.detector import Detector

__all__ = ["Sparsity", "check_2_4", "hold_2_4", "sparsify_2_4"]

OF, KEPT = 4, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """Whether a layer's weights have the pattern.

    Attributes:
        layer: its node's name.
        has_pattern: of every four inputs two are 0, everywhere.
        zeros: share of its weights that are 0.
        why: what is against it; empty where it has the pattern.
    """

    layer: str
    has_pattern: bool
    zeros: float
    why: str = ""


def sparsify_2_4(network: nn.Module) -> Mapping[str, float]:
    """Zero the two smallest of every four weights, in place, where the pattern is possible.

    Left alone: convolutions of several groups (filters per channel), those whose inputs are no multiple of four (the
    first one), channel gates, and the last layers, which are small and stay in float. Behind the export the pattern is
    still there: a folded norm scales outputs, not inputs.

    Args:
        network: any.

    Returns:
        For each layer that was changed, by name: the share of its energy (sum of squares) that was kept.
    """
    kept: dict[str, float] = {}
    with torch.no_grad():
        for name, module in _sparsifiable(network):
            before = float(module.weight.double().square().sum())
            module.weight.mul_(mask_2_4(module.weight))
            kept[name] = float(module.weight.double().square().sum()) / max(before, 1e-30)
    return kept


def mask_2_4(weight: Tensor) -> Tensor:
    """1 for the two largest of every four weights along the inputs, 0 for the others; of equals the first.

    Args:
        weight: (outputs, inputs, ...), inputs a multiple of four.
    """
    last = weight.detach().abs().movedim(1, -1)
    fours = last.reshape(*last.shape[:-1], -1, OF)
    order = fours.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours).scatter_(-1, order[..., :KEPT], 1.0)
    return mask.flatten(-2).movedim(-1, 1)


@contextlib.contextmanager
def hold_2_4(network: nn.Module) -> Iterator[None]:
    """While it learns, keep the zeros of a network that has the pattern: a weight that is 0 gets no gradient.

    What decays or averages 0 leaves 0, so that any optimizer of ours keeps the pattern.
    """
    hooks = []
    for _, module in _sparsifiable(network):
        mask = (module.weight.detach() != 0).to(module.weight.dtype)
        if _has_pattern(mask.cpu().numpy()):
            hooks.append(_masked(module.weight, mask))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _masked(weight: Tensor, mask: Tensor) -> RemovableHandle:
    handle: RemovableHandle = weight.register_hook(lambda slope: slope * mask.to(slope.device))  # type: ignore[no-untyped-call]
    return handle


def check_2_4(onnx: Path) -> tuple[Sparsity, ...]:
    """Which layers of an ONNX file have the pattern.

    Args:
        onnx: any ONNX file with float weights inside.

    Returns:
        One entry for each convolution and matrix product with constant weights, in order.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the file is no ONNX model.
    """
    from onnx import numpy_helper

    from optimize.quantize.model import load_onnx

    graph = load_onnx(onnx).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or len(node.input) < 2 or node.input[1] not in constants:
            continue
        weight = np.asarray(numpy_helper.to_array(constants[node.input[1]]))
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if weight.ndim < 2:
            continue
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transB", 0)):
            weight = np.swapaxes(weight, -1, -2)
        found.append(_sparsity(node.name or node.output[0], weight, attributes.get("group", 1)))
    return tuple(found)


def _sparsity(layer: str, weight: NDArray[np.floating], groups: int) -> Sparsity:
    why = ""
    if groups > 1:
        why = f"it has {groups} groups"
    elif weight.shape[1] % OF:
        why = f"{weight.shape[1]} inputs are no multiple of {OF}"
    elif not _has_pattern(weight):
        why = f"more than {KEPT} of {OF} weights are not 0"
    return Sparsity(layer=layer, has_pattern=not why, zeros=float((weight == 0).mean()), why=why)


def _has_pattern(weight: NDArray[np.floating]) -> bool:
    """Of weights (outputs, inputs, ...)."""
    last = np.moveaxis(weight, 1, -1)
    fours = last.reshape(*last.shape[:-1], -1, OF)
    return bool(((fours != 0).sum(-1) <= KEPT).all())


def _sparsifiable(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Convolutions in which there is much to skip."""
    spared: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, ChannelGate) or type(module).__name__ == "SqueezeExcitation":
            spared.update(module.modules())
        elif isinstance(module, Detector):
            spared |= {*module.head.boxes, *module.head.scores}
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or module in spared:
            continue
        if module.groups == 1 and module.weight.shape[1] % OF == 0:
            yield name, module
