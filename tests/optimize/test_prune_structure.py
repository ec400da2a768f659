"""Half the multiplications of every topology: widths, file, twin, and that it can be opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")
pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install -e '.[train]'")

import torch
from torch import Tensor, nn

from optimize.export import normalize
from optimize.networks.attention import ChannelGate
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector
from optimize.prune import Pruned, channel_groups, count_macs, prune_network
from optimize.trained import load_trained, save_trained
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
    squeezes = [module.squeeze.out_channels for module in network.modules() if isinstance(module, ChannelGate)]
    pruned = halved(network, 32)
    left: Classifier = pruned.network
    recipe = {key: str(value) for key, value in built.items()}
    out = tmp_path / "pruned.onnx"
    save_trained(trained_pair(left, arch, recipe=recipe), out, noise(2))
    inputs = normalize(noise(1, seed=9))

    agree(outputs_of(out, ["logits", "embedding"]), [left(inputs), left.embed(inputs)])
    assert squeezes == [module.squeeze.out_channels for module in left.modules() if isinstance(module, ChannelGate)]
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


def widths_of(layers: nn.ModuleList) -> list[int]:
    return [len(layer.get_parameter("weight")) for layer in layers]


def count_stem_inputs(network: nn.Module) -> int:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d)).in_channels
