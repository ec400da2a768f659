"""A tiny torch network that tells the kit's three classes apart, and pictures for it; trained here in seconds."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from optimize.networks import build_network
from optimize.networks.classifier import Classifier
from tests.kit.float_models import CLASSES, picture

__all__ = ["pictures", "trained", "unequal"]


def pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Grey parts (32, 32, 3) uint8, the classes in turn."""
    rng = np.random.default_rng(seed)
    return [picture(CLASSES[i % 3], rng) for i in range(count)]


def trained() -> Classifier:
    """A tiny network that tells the three classes apart, after a few steps on labelled pictures."""
    torch.manual_seed(0)
    network = build_network("tiny", 3, in_channels=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    images = torch.from_numpy(np.stack(pictures(96, seed=5))[..., 0][:, None]).float() / 128 - 1
    targets = torch.arange(96) % 3
    for _ in range(60):
        rows = torch.randperm(96)[:24]
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(images[rows]), targets[rows]))
        optimizer.step()
    with torch.no_grad():
        assert float((network.eval()(images).argmax(1) == targets).float().mean()) > 0.9
    return network.eval()


def unequal(network: Classifier, most: float) -> Classifier:
    """The same function, but channels up to so many times as loud: one scale per tensor ruins the quiet ones."""
    changed, rng = copy.deepcopy(network), np.random.default_rng(0)
    norms = [module for module in changed.features.modules() if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module for module in changed.features.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for norm, behind in zip(norms[:-1], convolutions[1:], strict=True):
            louder = torch.from_numpy(most ** rng.uniform(0, 1, norm.num_features)).float()
            norm.get_parameter("weight").mul_(louder)
            norm.get_parameter("bias").mul_(louder)
            behind.weight.div_(louder[None, :, None, None])
    return changed
