"""Which channels go, what it costs, and two weights of four: each against what must come out by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agent.bundle.manifest import InputSpec
from optimize.errors import OptimizeError

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")
pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install -e '.[train]'")

import copy

import torch
from torch import Tensor, nn

from optimize.export import export_onnx, normalize
from optimize.networks import ARCHITECTURES, build_network
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector
from optimize.prune import (
    IMPORTANCES,
    ChannelGroup,
    ImportanceName,
    channel_groups,
    check_2_4,
    count_macs,
    hold_2_4,
    prune_network,
    sparsify_2_4,
)
from optimize.prune.costs import costs_of
from optimize.prune.graph import removed
from optimize.prune.importance import measure
from optimize.trained import cut_to
from tests.kit.living import classifier, detector, noise

pytestmark = pytest.mark.torch

EXAMPLE = torch.zeros(1, 3, 32, 32)
CLASSES = ("ok", "scratch", "spot")


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    """Before anything is traced."""
    with pytest.raises(OptimizeError, match="keep-macs"):
        prune_network(classifier("tiny"), EXAMPLE, share, "norm", pictures=noise(2))


def test_an_unknown_importance_is_refused_with_the_known_ones() -> None:
    """The plain mistake of a name."""
    with pytest.raises(OptimizeError, match="expected one of auto, taylor, norm, activation"):
        prune_network(classifier("tiny"), EXAMPLE, 0.5, "size", pictures=noise(2))  # type: ignore[arg-type]


def test_a_single_picture_is_refused() -> None:
    """A norm sees no spread in it."""
    with pytest.raises(OptimizeError, match="at least two"):
        prune_network(classifier("tiny"), EXAMPLE, 0.5, "norm", pictures=noise(1))


def test_a_share_below_what_multiples_of_eight_leave_is_refused_with_that_share() -> None:
    """The user learns what is possible."""
    with pytest.raises(OptimizeError, match=r"leave 0\.\d\d of the multiplications"):
        prune_network(classifier("tiny"), EXAMPLE, 0.02, "norm", pictures=noise(2))


def test_scores_of_the_wrong_shape_are_refused_by_the_group() -> None:
    """An importance of one's own."""
    with pytest.raises(OptimizeError, match=r"features\.layer"):
        prune_network(classifier("tiny"), EXAMPLE, 0.5, lambda _: np.ones(3), pictures=noise(2))


def dead(network: nn.Module, group: ChannelGroup, channels: np.ndarray) -> None:
    """Make channels say nothing, wherever they are."""
    with torch.no_grad():
        for part in group.parts:
            if isinstance(part.layer, nn.BatchNorm2d):
                part.layer.weight[part.at(channels)] = 0
                part.layer.bias[part.at(channels)] = 0


def said(network: nn.Module, inputs: Tensor) -> Sequence[Tensor]:
    with torch.no_grad():
        found = network(inputs)
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize(
    ("kind", "arch", "built"),
    [
        pytest.param("classify", "resnet18", {"width": 0.25, "attention": "se"}, id="residual-SE"),
        pytest.param("classify", "densenet-small", {"until": "block2"}, id="concat"),
        pytest.param("classify", "mobilenetv2", {"width": 0.5, "until": "block6"}, id="depthwise"),
        pytest.param("detect", "yolo-mobilenetv2", {}, id="yolo"),
    ],
)
def test_channels_that_say_nothing_go_without_a_trace_and_cost_what_was_foretold(
    kind: str, arch: str, built: dict[str, object]
) -> None:
    """Would an index be off anywhere, a channel that says something would go in place of a silent one."""
    if arch.startswith("densenet"):
        pytest.importorskip("torchvision", reason="needs torchvision: pip install torchvision")
    network: Classifier | Detector = (
        detector(arch) if kind == "detect" else classifier(arch, **built)  # type: ignore[arg-type]
    )
    side = 64 if kind == "detect" else 32
    example = torch.zeros(1, 3, side, side)
    groups = channel_groups(network, example)
    random = np.random.default_rng(0)
    gone = [
        np.sort(random.permutation(group.width)[: group.width // 3])
        if group.norms and not group.is_protected
        else np.array([], dtype=np.int64)
        for group in groups
    ]
    for group, channels in zip(groups, gone, strict=True):
        dead(network, group, channels)
    inputs = normalize(noise(2, side))
    wanted = said(network, inputs)
    foretold = costs_of(network, groups, example).without(np.array([len(channels) for channels in gone]))
    cut = copy.deepcopy(network)
    cut_to(cut, removed(network, list(zip(groups, gone, strict=True))))

    assert sum(len(channels) for channels in gone) > 50
    for found, expected in zip(said(cut, inputs), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert count_macs(cut, example) == round(foretold)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_a_channel_that_says_nothing_matters_least(name: ImportanceName) -> None:
    """Whatever is asked, silence scores nothing; so does a channel that no picture woke, but those are the fewer."""
    network = classifier("tiny", attention="se")
    groups = [group for group in channel_groups(network, EXAMPLE) if not group.is_protected]
    silent = np.array([1, 5, 6])
    for group in groups:
        dead(network, group, silent)
    importance = measure(name, network, groups, noise(4))

    for group in groups:
        scores = importance(group)
        loud = np.delete(scores, silent)
        assert scores.shape == (group.width,)
        assert scores[silent].max() < 1e-9 * loud.max()
        assert np.count_nonzero(loud) > 0.5 * len(loud)


@pytest.mark.parametrize("arch", ["yolo-mobilenetv2", "ssd-mobilenetv2"])
@pytest.mark.parametrize("name", ["taylor", "activation"])
def test_channels_of_a_detector_are_scored_by_boxes_and_scores(arch: str, name: ImportanceName) -> None:
    """Its answers are two tensors of many priors: silence scores nothing there too."""
    network = detector(arch)
    groups = [group for group in channel_groups(network, torch.zeros(1, 3, 64, 64)) if not group.is_protected]
    silent = np.array([0, 3])
    for group in groups:
        dead(network, group, silent)
    importance = measure(name, network, groups, noise(2, 64))

    for group in groups:
        scores = importance(group)
        assert np.isfinite(scores).all()
        assert scores.min() >= 0
        assert scores[silent].max() < 1e-9 * scores.max()


def test_taylor_leaves_the_network_and_its_gradients_as_they_were() -> None:
    """It is asked in the middle of other work."""
    network = classifier("tiny").train()
    groups = channel_groups(network, EXAMPLE)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure("taylor", network, groups, noise(4))

    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_a_callable_values_stays() -> None:
    """An importance of one's own, asked by group."""
    network = classifier("tiny")
    pruned = prune_network(
        network, EXAMPLE, 0.6, lambda group: np.arange(group.width, dtype=np.float64) + 1, pictures=noise(2)
    )
    old, new = (net.get_parameter("features.layer6.0.weight") for net in (network, pruned.network))
    kept = len(pruned.network.get_parameter("features.layer5.0.weight"))

    assert pruned.importance == "given"
    assert len(new) < len(old)
    assert torch.equal(new, old[-len(new) :, -kept:])


def test_auto_takes_the_importance_that_leaves_the_network_nearest() -> None:
    """Measured on the pictures, without a label; all three are reported."""
    pruned = prune_network(classifier("tiny"), EXAMPLE, 0.6, pictures=noise(6))

    assert set(pruned.tried) == set(IMPORTANCES)
    assert pruned.importance == min(pruned.tried, key=lambda name: pruned.tried[name].divergence)
    assert pruned.rounds[0].cut == pruned.tried[pruned.importance]


def test_each_round_cuts_the_same_share_and_goes_on_from_what_was_recovered() -> None:
    """The second round must see the recovered network, not the first one."""
    seen: list[Classifier] = []

    def recover(network: Classifier) -> Classifier:
        with torch.no_grad():
            network.head.bias.add_(1)
        seen.append(network)
        return network

    network = classifier("tiny")
    pruned = prune_network(network, EXAMPLE, 0.5, "norm", pictures=noise(2), rounds=2, recover=recover)
    shares = [each.macs / pruned.macs_before for each in pruned.rounds]

    assert len(seen) == len(pruned.rounds) == 2
    assert 0.6 < shares[0] <= math.sqrt(0.5)
    assert 0.4 < shares[1] <= 0.5
    assert all(each.recovered is not None for each in pruned.rounds)
    torch.testing.assert_close(pruned.network.head.bias, network.head.bias + 2)


class Odd(nn.Module):
    """Two groups in one convolution, a sum and a join behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.free = nn.Conv2d(64, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 5, H, W)."""
        first = self.first(images)
        found: Tensor = self.last(self.free(torch.cat([first + self.grouped(first), first], 1)).relu())
        return found


def test_channels_of_a_grouped_convolution_and_outputs_are_protected_all_others_are_not() -> None:
    """A group of channels that must keep its width takes all that share it along."""
    groups = {group.name: group.is_protected for group in channel_groups(Odd(), EXAMPLE)}

    assert groups["last"]
    assert not groups["free"]
    assert all(shared for name, shared in groups.items() if name in {"first", "grouped"})


def test_multiplications_are_those_on_the_card() -> None:
    """Counted in two places, they must be one number."""
    card = ARCHITECTURES["tiny"]
    network = build_network("tiny", 6)

    assert count_macs(network, torch.zeros(1, 3, card.size_px, card.size_px)) == card.macs


def test_the_two_largest_of_four_stay() -> None:
    """By size, along the inputs, at each place by itself."""
    conv = nn.Conv2d(4, 1, (1, 2), bias=False)
    network = nn.Sequential(conv)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, -9.0]], [[-3.0, 1.0]], [[2.0, 2.0]], [[0.5, 7.0]]]]))
    kept = sparsify_2_4(network)

    assert conv.weight[0, :, 0].tolist() == [[0, -9], [-3, 0], [2, 0], [0, 7]]
    assert kept == {"0": pytest.approx((9 + 4 + 81 + 49) / (1 + 9 + 4 + 0.25 + 81 + 1 + 4 + 49))}


def test_zeros_stay_while_a_sparse_network_learns() -> None:
    """With momentum and decay, and no longer than it is held."""
    network = classifier("tiny").train()
    sparsify_2_4(network)
    zeros = {name: value == 0 for name, value in network.named_parameters() if value.ndim == 4}
    weight = network.get_parameter("features.layer2.0.weight")
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    with hold_2_4(network):
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(network(torch.randn(4, 3, 32, 32)).square().sum())
            optimizer.step()

    assert not torch.equal(weight, before)
    assert all(bool((network.get_parameter(name)[where] == 0).all()) for name, where in zeros.items())
    optimizer.zero_grad()
    torch.autograd.backward(network(torch.randn(4, 3, 32, 32)).square().sum())
    assert weight.grad is not None
    assert bool((weight.grad[zeros["features.layer2.0.weight"]] != 0).any())


@pytest.mark.parametrize("is_sparse", [True, False])
def test_the_pattern_is_looked_for_in_the_file(is_sparse: bool, tmp_path: Path) -> None:
    """What TensorRT reads is the file: the first layer can't have the pattern, those behind have it or not."""
    network = classifier("tiny", attention="se")
    made = sparsify_2_4(network) if is_sparse else {}
    out = tmp_path / "m.onnx"
    export_onnx(network, out, InputSpec(width_px=32, height_px=32), CLASSES, arch="tiny")
    found = check_2_4(out)
    able = [each for each in found if each.has_pattern]

    assert len(able) == len(made) == (6 if is_sparse else 0)
    assert "3 inputs" in found[0].why
    assert all(each.zeros >= 0.5 for each in able)
    assert all(each.why for each in found if not each.has_pattern)
