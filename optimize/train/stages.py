"""Transfer learning by stages: early ones frozen, deeper ones fine-tuned, each with its own learning rate.

A network's stages are the named children of its `features`, from the picture to the head. What early stages learned on
ImageNet (edges, blobs, textures) serves every surface; what late ones learned serves cats (Yosinski et al., "How
transferable are features in deep neural networks?", NeurIPS 2014).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from optimize.errors import OptimizeError
from optimize.networks.classifier import Classifier
from optimize.train_config import TrainConfig

__all__ = ["StagePlan", "Staged", "decayed", "first_awake", "freeze", "optimizer_of"]


class Staged(Protocol):
    """A network made of stages: a classifier, or a detector."""

    features: nn.Sequential

    @property
    def stages(self) -> tuple[str, ...]:
        """Their names, from the picture to the head."""

    def train(self, mode: bool = True) -> object:
        """Put it into training."""

    def modules(self) -> Iterator[nn.Module]:
        """All that it is made of."""


def first_awake(network: Staged, freeze_until: str | None, arch: str) -> int:
    """The position of the first stage that learns from the beginning.

    Raises:
        OptimizeError: there is no stage of that name.
    """
    if freeze_until is None:
        return 0
    if freeze_until not in network.stages:
        raise OptimizeError(
            f"freeze-until: {arch} has no stage {freeze_until!r}", hint=f"its stages are {', '.join(network.stages)}"
        )
    return network.stages.index(freeze_until) + 1


class StagePlan:
    """Which stages learn, in which epoch.

    Args:
        network: whose stages.
        config: `freeze_until` names the last frozen stage, `unfreeze_every` wakes one more after so many epochs.

    Raises:
        OptimizeError: there is no such stage.
    """

    def __init__(self, network: Classifier, config: TrainConfig) -> None:
        self._every = config.unfreeze_every
        self._frozen_at_first = first_awake(network, config.freeze_until, config.arch)

    def frozen(self, epoch: int) -> int:
        """How many stages stand still in an epoch (from 1); the deepest wake first (Howard and Ruder, ACL 2018)."""
        woken = (epoch - 1) // self._every if self._every else 0
        return max(0, self._frozen_at_first - woken)


def freeze(network: Staged, count: int, *, with_norms: bool = False) -> None:
    """Put a network into training, all but its first stages.

    A frozen stage keeps its weights, and its batch norms keep the statistics that the weights were trained with: those
    of a few pictures of one surface would be others, and the features would no longer be the published ones.

    Args:
        network: changed in place.
        count: how many stages stand still.
        with_norms: batch norms of the other stages keep their statistics as well; their weights learn.
    """
    network.train()
    for i, stage in enumerate(network.features.children()):
        is_learning = i >= count
        stage.train(is_learning)
        for parameter in stage.parameters():
            parameter.requires_grad_(is_learning)
    if with_norms:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def optimizer_of(network: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; norms and biases do not decay.

    Each group carries its `factor`: the head learns at the full rate, the last stage at `features_lr` times that, and
    each stage before it at `stage_lr` times the rate of the one behind it.
    """
    groups: list[dict[str, Any]] = []
    for factor, part in _parts(network, config):
        groups += decayed(list(part.parameters()), factor, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.peak_lr)
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=0.9, nesterov=True)


def decayed(parameters: Sequence[nn.Parameter], factor: float, decay: float) -> Iterator[dict[str, Any]]:
    """An optimizer's groups: weights that decay, and norms and biases, which do not; none that is empty."""
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    for members, share in ((weights, decay), (others, 0.0)):
        if members:
            yield {"params": members, "weight_decay": share, "factor": factor}


def _parts(network: Classifier, config: TrainConfig) -> Iterator[tuple[float, nn.Module]]:
    """The network in one piece, or by stages when they learn at different rates."""
    if config.stage_lr == config.features_lr == 1:
        yield 1.0, network
        return
    yield 1.0, network.head
    for distance, stage in enumerate(reversed(list(network.features.children()))):
        yield config.features_lr * config.stage_lr**distance, stage
