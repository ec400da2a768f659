"""How much each channel matters, asked in three ways; none needs a label.

`norm_scale`  the size of the batch norms' factors, which is what a channel is multiplied by (Liu et al., "Learning
              efficient convolutional networks through network slimming", ICCV 2017); looks at no picture.
`activation`  which part of what its readers compute comes from the channel, on given pictures: its mean square times
              the square of the weights that read it (as Sun et al., "A simple and effective pruning approach for large
              language models", ICLR 2024, score single weights).
`taylor`      how far the network's answer would move without the channel, to second order: with t the change of an
              answer per picture to first order (Molchanov et al., "Importance estimation for neural network pruning",
              CVPR 2019), E[t^2] under the curvature of the Kullback-Leibler divergence (Theis et al., "Faster gaze
              prediction with dense networks and Fisher pruning", 2018). At the unpruned network that divergence is
              0 and flat, so its slope says nothing and its curvature all.

Each is a plain callable from a group to one score per channel, 0 or more and comparable between groups: `taylor` in
nats, the others as shares of the group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.export import normalize
from optimize.networks.detectors.detector import Detector
from optimize.prune.graph import ChannelGroup, Part, traced_outputs

__all__ = ["IMPORTANCES", "Importance", "ImportanceName", "activation", "measure", "norm_scale", "taylor"]

Importance: TypeAlias = Callable[[ChannelGroup], NDArray[np.float64]]
"""From a group to (width,) scores."""

ImportanceName = Literal["taylor", "norm", "activation"]
IMPORTANCES: tuple[ImportanceName, ...] = get_args(ImportanceName)

DRAWS = 4
"""Directions that the curvature is asked in, for each picture."""

TEMPERATURE = 2.0
"""Of the answers: a network that is sure has no curvature left at 1, and yet what it is sure by matters."""

BATCH = 16


def measure(
    name: ImportanceName,
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    pictures: NDArray[np.uint8],
    *,
    seed: int = 0,
) -> Importance:
    """One of the three by its name, measured on pictures where it looks at any.

    Args:
        name: which.
        network: in evaluation mode.
        groups: its channels.
        pictures: (N, H, W, C) uint8 at the network's size, with as many channels as it takes.
        seed: of the directions that `taylor` asks in.
    """
    if name == "norm":
        return norm_scale
    if name == "activation":
        return activation(network, groups, pictures)
    return taylor(network, groups, pictures, seed=seed)


def norm_scale(group: ChannelGroup) -> NDArray[np.float64]:
    """Size of the norms' factors, or of the filters where no norm is; as shares of the group."""
    found = np.zeros(group.width)
    for part in group.norms or group.producers:
        weight = part.layer.weight.detach().double()
        size = weight.abs() if weight.ndim == 1 else weight.flatten(1).norm(dim=1)
        found += _shares(part.summed(size.cpu().numpy(), group.width))
    return _shares(found)


def activation(network: nn.Module, groups: Sequence[ChannelGroup], pictures: NDArray[np.uint8]) -> Importance:
    """What part of its readers' results a channel makes; as shares of the group."""
    layers = {part.name: part.layer for group in groups for part in group.readers}
    energy: dict[str, NDArray[np.float64]] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].detach().double().square()
            found = squares.mean(tuple(range(2, squares.ndim))).sum(0) if squares.ndim > 2 else squares.sum(0)
            energy[name] = energy.get(name, 0) + found.cpu().numpy() / len(pictures)

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in _batches(network, pictures):
                traced_outputs(network, batch)
    finally:
        for handle in hooks:
            handle.remove()

    def scores(group: ChannelGroup) -> NDArray[np.float64]:
        found = np.zeros(group.width)
        for part in group.readers:
            weights = part.layer.weight.detach().double().transpose(0, 1).flatten(1).square().sum(1).cpu().numpy()
            made = energy[part.name] * weights
            found += part.summed(made / max(float(made.sum()), 1e-30), group.width)
        return _shares(found) if group.readers else norm_scale(group)

    return scores


def taylor(
    network: nn.Module, groups: Sequence[ChannelGroup], pictures: NDArray[np.uint8], *, seed: int = 0
) -> Importance:
    """How far answers move without a channel, in nats per picture (up to a factor that all share)."""
    points = {part.name: part.layer for group in groups for part in _points(group)}
    moved = {group.name: np.zeros(group.width) for group in groups}
    random = torch.Generator().manual_seed(seed)
    for batch in _batches(network, pictures):
        for _ in range(DRAWS):
            slopes = _slopes(network, batch, points, random)
            for group in groups:
                each = np.zeros((len(batch), group.width))
                for part in _points(group):
                    if part.name in slopes:
                        each += np.stack([part.summed(found, group.width) for found in slopes[part.name]])
                moved[group.name] += np.square(each).sum(0) / (2 * DRAWS * len(pictures))
    return lambda group: moved[group.name]


def _points(group: ChannelGroup) -> tuple[Part, ...]:
    """Where a channel is set to 0 when it goes."""
    return group.norms or group.producers


def _slopes(
    network: nn.Module,
    batch: Tensor,
    points: dict[str, nn.Conv2d | nn.Linear | nn.BatchNorm2d],
    random: torch.Generator,
) -> dict[str, NDArray[np.float64]]:
    """For each point (N, channels): the change of one direction of the answer per picture, were the channel 0."""
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.setdefault(name, []).append(output)
            return output.clone()  # what comes behind may overwrite it in place

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in points.items()]
    try:
        with torch.enable_grad():
            answer = _direction(network, batch, random)
            outputs = [(name, output) for name, found in kept.items() for output in found if output.requires_grad]
            slopes = torch.autograd.grad(answer, [output for _, output in outputs], allow_unused=True)
    finally:
        for handle in hooks:
            handle.remove()
    found: dict[str, NDArray[np.float64]] = {}
    for (name, output), slope in zip(outputs, slopes, strict=True):
        if slope is not None:
            change = (output * slope).detach().flatten(2).sum(2) if output.ndim > 2 else (output * slope).detach()
            found[name] = found.get(name, 0) + change.double().cpu().numpy()
    return found


def _direction(network: nn.Module, batch: Tensor, random: torch.Generator) -> Tensor:
    """The answer along a random direction whose covariance is the curvature of the divergence there."""
    found = network(batch)
    if not isinstance(network, Detector):
        return _softmax_direction(found if isinstance(found, Tensor) else found[0], random)
    boxes, scores = found
    if network.family == "ssd":
        sure = 1 - scores.detach().softmax(-1)[..., :1]
        answer = _softmax_direction(scores, random)
    else:
        share: Tensor = (scores.detach() / TEMPERATURE).sigmoid()
        sure = share.amax(-1, keepdim=True)
        answer = ((share * (1 - share)).sqrt() * _noise(scores, random) * scores).sum()
    whole: Tensor = answer + (sure.sqrt() * _noise(boxes, random) * boxes).sum()
    return whole


def _softmax_direction(logits: Tensor, random: torch.Generator) -> Tensor:
    """Of covariance diag(p) - p p^T, which is the Hessian of KL at its minimum."""
    share = (logits.detach() / TEMPERATURE).softmax(-1)
    noise = share.sqrt() * _noise(logits, random)
    return ((noise - share * noise.sum(-1, keepdim=True)) * logits).sum()


def _noise(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random).to(like.device)


def _batches(network: nn.Module, pictures: NDArray[np.uint8]) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    with _evaluated(network):
        for start in range(0, len(pictures), BATCH):
            yield normalize(pictures[start : start + BATCH]).to(device)


@contextlib.contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, trains in was_training.items():
            module.training = trains


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    total = float(values.sum())
    return values / total if total > 0 else np.full(len(values), 1 / max(len(values), 1))
