"""Learning while every layer rounds: the rounding is the integer graph's, and what it cost comes back."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from optimize.errors import DataError
from optimize.quantize.grid import affine_of, on_grid

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch
from torch import nn

from agent.bundle import InputSpec
from optimize.distill import NetworkTeacher, RecoverConfig, agreement
from optimize.distill.rounded import recover_rounded, round_like_int8, rounded, unrounded
from optimize.networks.classifier import Classifier
from tests.kit.tiny_networks import pictures, trained

pytestmark = pytest.mark.torch

QUICK = RecoverConfig(spec=InputSpec(width_px=32, height_px=32), epochs=4, batch=8)
LOUD = 1000


@pytest.fixture(scope="module")
def sound() -> Classifier:
    return trained()


def loud(network: Classifier) -> Classifier:
    """The same function, but one channel is a thousand times as large: one range per tensor is ruin for those."""
    changed = copy.deepcopy(network)
    norms = [module for module in changed.features.modules() if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module for module in changed.features.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for norm, behind in zip(norms[:-1], convolutions[1:], strict=True):
            norm.weight[0] *= LOUD
            norm.bias[0] *= LOUD
            behind.weight[:, 0] /= LOUD
    return changed


def test_nothing_to_learn_from_is_refused(sound: Classifier) -> None:
    """As by any recovery."""
    with pytest.raises(DataError, match="got 0 pictures"):
        recover_rounded(sound, NetworkTeacher(sound), [], QUICK)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 0.992), (-3.0, 0.5), (0.0, 0.0)])
def test_values_are_rounded_to_the_integer_graphs_grid(low: float, high: float) -> None:
    """Zero points, halves to even, and what lies beyond the range: as `optimize.quantize` computes it for a CPU."""
    values = np.random.default_rng(0).uniform(low - 1, high + 1, 1000).astype(np.float32)

    found = round_like_int8(torch.from_numpy(values), low, high).numpy()

    grid = affine_of(low, high, "cpu")
    assert np.abs(found - on_grid(values, grid)).max() <= grid.scale * 1.001
    assert (np.abs(found - on_grid(values, grid)) < 1e-5).mean() > 0.99


def test_a_rounding_network_is_nearly_the_same_and_can_be_turned_back(sound: Classifier) -> None:
    """A sound one loses little; back in float it is the same to the bit, with layers that export knows."""
    seen = np.stack(pictures(32, seed=3))[..., :1]

    network = rounded(sound, seen)

    assert agreement(network, NetworkTeacher(sound), seen).share > 0.9
    assert agreement(network, NetworkTeacher(sound), seen).divergence > 0
    assert network.state_dict().keys() == sound.state_dict().keys()
    back = unrounded(network)
    assert {type(module) for module in back.modules()} == {type(module) for module in sound.modules()}
    assert agreement(back, NetworkTeacher(sound), seen).divergence == pytest.approx(0, abs=1e-6)


def test_what_rounding_cost_is_learned_back(sound: Classifier) -> None:
    """Without a label; the network that was given stays as it is."""
    given = loud(sound)
    before = copy.deepcopy(given.state_dict())
    config = dataclasses.replace(QUICK, epochs=6, peak_lr=0.002, optimizer="adamw")

    recovered = recover_rounded(given, NetworkTeacher(sound), pictures(72, seed=1), config)

    assert recovered.after.divergence < 0.75 * recovered.before.divergence
    assert not any(type(module).__name__.startswith("_Rounded") for module in recovered.network.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), given.state_dict().values(), strict=True))
