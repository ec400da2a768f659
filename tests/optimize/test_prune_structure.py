"""Half the multiplications of every topology: widths, file, twin, and that it can be opened again.

A file that computes what the pruned network does may still be a wrong network: so each pruned one is also compared with
the whole one, in which exactly the channels that went say nothing (`silenced`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")
pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install -e '.[train]'")

import copy

import torch
from torch import Tensor, nn

from optimize.export import normalize
from optimize.networks.attention import ChannelGate, SpatialGate
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector
from optimize.prune import ChannelGroup, Pruned, channel_groups, count_macs, prune_network
from optimize.prune.choose import choose
from optimize.prune.costs import costs_of
from optimize.prune.graph import removed
from optimize.trained import cut_to, load_trained, save_trained
from tests.kit.living import classifier, detector, noise, trained_pair

pytestmark = pytest.mark.torch

TORCHVISION = ("densenet", "mobilenetv3", "vgg")

# topology, architecture, how it is built
CLASSIFIERS = [
    pytest.param("resnet18", {"width": 0.25}, id="residual"),
    pytest.param("resnet50", {"width": 0.25, "until": "layer2"}, id="bottleneck"),
    pytest.param("densenet-small", {"until": "block2"}, id="concat"),
    pytest.param("mobilenetv2", {"width": 0.5, "until": "block6"}, id="depthwise"),
    pytest.param("efficientnet-lite0", {"until": "block4"}, id="depthwise-padded"),
    pytest.param("resnet18", {"width": 0.25, "attention": "se"}, id="SE"),
    pytest.param("mobilenetv3-small", {"until": "block5"}, id="SE-torchvision"),
    pytest.param("tiny", {"attention": "cbam"}, id="CBAM"),
    pytest.param("mobilenetv2", {"width": 0.5, "until": "block4", "attention": "cbam"}, id="CBAM-depthwise"),
    pytest.param("vgg16-bn", {"until": "block2"}, id="plain"),
]
DETECTORS = [pytest.param("yolo-mobilenetv2", id="yolo"), pytest.param("ssd-mobilenetv2", id="ssd")]


def halved(network: Classifier | Detector, side_px: int) -> Pruned[Any]:
    example = torch.zeros(1, 3, side_px, side_px)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whole: Any = network
    pruned: Pruned[Any] = prune_network(whole, example, 0.5, "norm", pictures=noise(4, side_px))

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert 0.4 <= pruned.kept <= 0.5
    assert pruned.macs_after == count_macs(pruned.network, example)
    assert pruned.widths
    for group in channel_groups(pruned.network, example):
        assert group.is_protected or group.width % 8 == 0, group.name
    check_attributes(pruned.network)
    return pruned


def check_attributes(network: nn.Module) -> None:
    """What modules say of their channels is what their weights hold."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert tuple(module.weight.shape) == shape, name
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.num_features == len(module.weight) == len(module.running_mean), name
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features), name


def outputs_of(onnx: Path, names: list[str]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    image = noise(1, session.get_inputs()[0].shape[1], seed=9)
    return [np.asarray(found) for found in session.run(names, {session.get_inputs()[0].name: image})]


def agree(found: list[np.ndarray], wanted: list[Tensor]) -> None:
    for got, want in zip(found, wanted, strict=True):
        expected = want.detach().numpy()
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("arch", "built"), CLASSIFIERS)
def test_a_classifier_of_every_topology_is_halved_exported_and_opened_again(
    arch: str, built: dict[str, object], tmp_path: Path
) -> None:
    """The file computes what the pruned torch network does, and its checkpoint rebuilds that network."""
    if arch.startswith(TORCHVISION):
        pytest.importorskip("torchvision", reason="needs torchvision: pip install torchvision")
    network = classifier(arch, **built)  # type: ignore[arg-type]
    pruned = halved(network, 32)
    left: Classifier = pruned.network
    recipe = {key: str(value) for key, value in built.items()}
    out = tmp_path / "pruned.onnx"
    save_trained(trained_pair(left, arch, recipe=recipe), out, noise(2))
    inputs = normalize(noise(1, seed=9))

    agree(outputs_of(out, ["logits", "embedding"]), [left(inputs), left.embed(inputs)])
    assert [len(layer.weight) for layer in squeezes_of(left)] == [len(layer.weight) for layer in squeezes_of(network)]
    assert (left.head.out_features, count_stem_inputs(left)) == (3, 3)
    assert torch.equal(load_trained(out).network(inputs), left(inputs))


@pytest.mark.parametrize("arch", DETECTORS)
def test_a_detector_is_halved_exported_and_opened_again(arch: str, tmp_path: Path) -> None:
    """Heads keep what they give: boxes and scores of every prior."""
    network = detector(arch)
    pruned = halved(network, 64)
    left: Detector = pruned.network
    out = tmp_path / "pruned.onnx"
    save_trained(trained_pair(left, arch, side_px=64, recipe={"finest": "16"}), out, noise(2, 64))
    inputs = normalize(noise(1, 64, seed=9))

    agree(outputs_of(out, ["boxes", "scores"]), list(left(inputs)))
    assert widths_of(left.head.boxes) == widths_of(network.head.boxes)
    assert widths_of(left.head.scores) == widths_of(network.head.scores)
    assert all(torch.equal(a, b) for a, b in zip(load_trained(out).network(inputs), left(inputs), strict=True))


@pytest.mark.parametrize(("arch", "built"), CLASSIFIERS)
def test_a_classifier_of_every_topology_says_what_the_whole_one_says_without_these_channels(
    arch: str, built: dict[str, object]
) -> None:
    """Would one index be off anywhere, a channel that says something would go in place of a silent one."""
    if arch.startswith(TORCHVISION):
        pytest.importorskip("torchvision", reason="needs torchvision: pip install torchvision")
    check_surgery(classifier(arch, **built), 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", DETECTORS)
def test_a_detector_says_what_the_whole_one_says_without_these_channels(arch: str) -> None:
    """Boxes and scores of every prior; louder than a fresh head gives them, so that a difference is seen."""
    network = detector(arch)
    with torch.no_grad():
        for layer in (*network.head.boxes, *network.head.scores):
            layer.get_parameter("weight").mul_(20)
    check_surgery(network, 64)


def check_surgery(network: Classifier | Detector, side_px: int) -> None:
    """Prune by scores made up here, and compare with the whole network, silenced where these scores are lowest."""
    example, random = torch.zeros(1, 3, side_px, side_px), np.random.default_rng(0)
    groups = channel_groups(network, example)
    # Asked of the groups: some squeezes here are as narrow as anything may be, and would keep their width by that.
    squeezes = squeezes_of(network)
    assert not [g.name for g in groups if not g.is_protected and any(part.layer in squeezes for part in g.producers)]
    scores = {group.name: random.uniform(0.1, 1, group.width) for group in groups}
    whole: Any = network
    pruned: Pruned[Any] = prune_network(
        whole, example, 0.5, lambda group: scores[group.name], pictures=noise(4, side_px)
    )
    gone = choose(
        groups,
        [np.ones(group.width) if group.is_protected else scores[group.name] for group in groups],
        costs_of(network, groups, example),
        0.5 * pruned.macs_before,
        widths=[group.width for group in groups],
        share=0.5,
    )
    cut = copy.deepcopy(network)
    left = dict(pruned.network.named_parameters())
    quiet = silenced(network, groups, gone)
    network.load_state_dict(with_statistics(quiet, side_px))
    cut_to(cut, removed(network, list(zip(groups, gone, strict=True))))
    # Pruning may measure the norms' statistics again; all else that it did is in these weights.
    assert all(torch.equal(left[name], weight) for name, weight in cut.named_parameters())
    assert sum(len(channels) for channels in gone) > 20

    inputs = normalize(noise(8, side_px, seed=9))
    for found, expected in zip(said(cut, inputs), said(quiet, inputs), strict=True):
        scale = float((expected - expected.mean(0)).abs().max())  # what differs between pictures, not what is always so
        assert scale > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)


def silenced(network: nn.Module, groups: tuple[ChannelGroup, ...], gone: list[NDArray[np.int64]]) -> nn.Module:
    """The whole network with some channels silent.

    Only the layer that makes a channel is looked up, which gives NaN for it from here on. NaN stays NaN through norms,
    activations, filters per channel, sums and joins, and whatever mixes channels hears zero in its place: as if every
    weight and bias that the channel has anywhere were zero. So no index of the surgery's readers is believed here.
    """
    quiet = copy.deepcopy(network)
    layers = dict(quiet.named_modules())
    for group, channels in zip(groups, gone, strict=True):
        for part in group.producers:
            if not is_filter(layers[part.name]):
                layers[part.name].register_forward_hook(giving_nothing_in(part.at(channels)))
    for module in layers.values():
        if isinstance(module, SpatialGate):
            module.register_forward_hook(by_live_channels)
        elif isinstance(module, nn.Linear | nn.Conv2d) and not is_filter(module):
            module.register_forward_pre_hook(hearing_zero)
    return quiet


def with_statistics(network: nn.Module, side_px: int) -> dict[str, Tensor]:
    """The weights, with norms that have seen the network as it is: else half the channels let no signal through.

    A channel of NaN spoils its own statistics only. A norm of one channel looks at all of them, and stays.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.num_features > 1]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    said(network, normalize(noise(32, side_px, seed=7)))
    network.eval()
    return network.state_dict()


def is_filter(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1


def giving_nothing_in(channels: NDArray[np.int64]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    places = torch.from_numpy(channels)
    return lambda _layer, _inputs, outputs: outputs.index_fill(1, places, float("nan"))


def hearing_zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.nan_to_num(each, nan=0.0) for each in inputs)


def by_live_channels(gate: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """Mean and largest value over the channels that are there."""
    assert isinstance(gate, SpatialGate)
    is_live = ~inputs[0].isnan().amax((0, 2, 3))
    return inputs[0] * gate.weights(inputs[0][:, is_live])


def said(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = network(inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def squeezes_of(network: nn.Module) -> list[nn.Conv2d]:
    """The narrow layers of channel gates, ours and torchvision's."""
    ours = [module.squeeze for module in network.modules() if isinstance(module, ChannelGate)]
    theirs = [m.get_submodule("fc1") for m in network.modules() if type(m).__name__ == "SqueezeExcitation"]
    return [layer for layer in (*ours, *theirs) if isinstance(layer, nn.Conv2d)]


def widths_of(layers: nn.ModuleList) -> list[int]:
    return [len(layer.get_parameter("weight")) for layer in layers]


def count_stem_inputs(network: nn.Module) -> int:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d)).in_channels
