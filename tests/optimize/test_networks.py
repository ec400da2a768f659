"""Every network, with every attention: its stages, its file, its integers, and what its card says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch
from torch import nn

from agent.bundle.manifest import InputSpec
from optimize.cli.architectures import print_architectures
from optimize.errors import ModelError, OptimizeError
from optimize.export import check_parity, export_onnx, normalize, onnx_from_network
from optimize.networks import ARCHITECTURES, Architecture, build_network, resolve_width
from optimize.networks.attention import ChannelGate, SpatialGate, spatial_map
from optimize.networks.classifier import Classifier
from optimize.quantize import QuantizeOptions, Quantizer, read_model
from optimize.quantize.place import Target
from tests.kit.pictures import textured

pytestmark = pytest.mark.torch

CLASSES = ("ok", "scratch", "spot")
SIDE = 64
SPEC = InputSpec(width_px=SIDE, height_px=SIDE)
QUICK = QuantizeOptions(method="minmax", equalize="none", correction="none")
MATRIX = [
    (card.name, attention)
    for card in ARCHITECTURES.values()
    for attention in (("none", "se", "cbam") if card.attention else ("none",))
]
FEW = [("tiny", "cbam"), ("resnet18", "se"), ("mobilenetv2", "cbam"), ("densenet-small", "none")]


def network(arch: str, attention: str = "none", *, channels: int = 3, until: str | None = None) -> Classifier:
    """A network as after training: every norm has statistics and factors of its own."""
    if ARCHITECTURES[arch].needs:
        pytest.importorskip("torchvision", reason=f"{arch} needs torchvision: pip install torchvision")
    torch.manual_seed(5)
    made = build_network(arch, len(CLASSES), in_channels=channels, attention=attention, until=until)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d) and module.num_features > 1:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        for _ in range(2):
            made(torch.randn(4, channels, SIDE, SIDE))
    return made.eval()


def pictures(n: int = 3) -> list[NDArray[np.uint8]]:
    return [textured(SIDE, SIDE, seed=seed) for seed in range(n)]


def embeddings(graph: bytes, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["embedding"], {"image": image[None]})[0] for image in images])


def check_file_and_integers(made: Classifier, arch: str, path: Path, targets: Sequence[Target]) -> None:
    """The file computes what torch does, and unfitted integers stay within a tenth of it.

    Of a DenseNet within three tenths: every layer of random weights hears the noise of all before it.
    """
    limit = 0.3 if arch.startswith("densenet") else 0.1
    export_onnx(made, path, SPEC, CLASSES, arch=arch)
    assert check_parity(made, path, pictures()).max_relative < 1e-3
    expected = embeddings(path.read_bytes(), pictures(4))
    quantizer = Quantizer(read_model(path), [image[None] for image in pictures(4)], QUICK)
    for target in targets:
        found = embeddings(quantizer.quantize(target).graph, pictures(4))

        assert np.linalg.norm(found - expected) < limit * np.linalg.norm(expected)


@pytest.mark.parametrize(("arch", "attention"), FEW)
def test_a_network_becomes_a_file_and_integers(tmp_path: Path, arch: str, attention: str) -> None:
    """One of each kind, quickly."""
    check_file_and_integers(network(arch, attention), arch, tmp_path / "m.onnx", ("cpu",))


@pytest.mark.every_network
@pytest.mark.parametrize(("arch", "attention"), [pair for pair in MATRIX if pair[0] != "densenet121"])
def test_every_network_becomes_a_file_and_integers_for_both_targets(tmp_path: Path, arch: str, attention: str) -> None:
    """The whole matrix; DenseNet-121 has a test of its own."""
    check_file_and_integers(network(arch, attention), arch, tmp_path / "m.onnx", ("cpu", "trt"))


@pytest.mark.every_network
@pytest.mark.parametrize("attention", ["none", "se", "cbam"])
def test_a_deep_densenet_becomes_a_file_and_integers(tmp_path: Path, attention: str) -> None:
    """Fifty-eight layers of random weights each make noise louder: what integers must hold here is the structure."""
    made = network("densenet121", attention)
    export_onnx(made, tmp_path / "m.onnx", SPEC, CLASSES, arch="densenet121")
    quantizer = Quantizer(read_model(tmp_path / "m.onnx"), [image[None] for image in pictures(2)], QUICK)

    in_float = {layer.name for layer in quantizer.quantize("cpu").float_layers}

    assert check_parity(made, tmp_path / "m.onnx", pictures()).max_relative < 1e-3
    assert in_float == {"head/linear", "cam/conv"}


@pytest.mark.parametrize(
    ("arch", "attention", "islands"),
    [
        ("resnet18", "se", set()),
        ("mobilenetv2", "se", set()),
        ("densenet-small", "none", set()),
        ("tiny", "cbam", {"ReduceMean", "ReduceMax"}),
    ],
)
def test_what_stays_float_on_a_cpu_is_what_the_card_says(
    tmp_path: Path, arch: str, attention: str, islands: set[str]
) -> None:
    """SE's gates and DenseNet's lone norms are integers; CBAM's view over the channels is not."""
    export_onnx(network(arch, attention), tmp_path / "m.onnx", SPEC, CLASSES, arch=arch)
    quantizer = Quantizer(read_model(tmp_path / "m.onnx"), [image[None] for image in pictures(2)], QUICK)
    integer = quantizer.quantize("cpu")

    assert integer.fusion is not None
    of_integers = {kind for kind in integer.fusion.operators if kind.startswith(("QLinear", "Quantize", "Dequantize"))}
    of_head = {"Conv", "Gemm", "Flatten", "GlobalAveragePool"}
    found = set(integer.fusion.operators) - of_integers - of_head - {"Transpose", "MaxPool", "DequantizeLinear"}
    assert found == islands
    assert {layer.name for layer in integer.float_layers} == {"head/linear", "cam/conv"}


def test_the_parts_of_a_network_are_its_stages() -> None:
    """What is frozen, and cut after, has the names of the papers' tables."""
    expected = {
        "resnet18": ("stem", "layer1", "layer2", "layer3", "layer4"),
        "mobilenetv2": ("stem", *(f"block{i}" for i in range(17)), "last"),
        "efficientnet-lite0": ("stem", *(f"block{i}" for i in range(16)), "last"),
        "tiny": tuple(f"layer{i}" for i in range(1, 8)),
    }

    assert {arch: build_network(arch, 2).stages for arch in expected} == expected


@pytest.mark.parametrize(
    ("arch", "until", "channels", "stride"),
    [
        ("efficientnet-lite0", "block10", 112, 16),
        ("resnet18", "layer3", 128, 16),
        ("mobilenetv2", "block12", 48, 16),
        ("tiny", "layer4", 32, 4),
        ("vgg16-bn", "block4", 512, 16),
        ("densenet-small", "block3", 192, 16),
        ("mobilenetv3-small", "block7", 48, 16),
    ],
)
def test_a_cut_network_reads_its_last_stage(tmp_path: Path, arch: str, until: str, channels: int, stride: int) -> None:
    """Smaller, and its map is finer."""
    made = network(arch, until=until)
    export_onnx(made, tmp_path / "m.onnx", SPEC, CLASSES, arch=arch)

    parity = check_parity(made, tmp_path / "m.onnx", pictures(1))
    cells = made.activation_map(normalize(np.stack(pictures(1)))).shape[2:]
    assert made.head.in_features == channels
    assert cells == (SIDE // stride, SIDE // stride)
    assert until in made.stages[-2:]
    assert parity.max_relative < 1e-3


def test_a_stage_that_is_not_there_is_refused() -> None:
    """With those that are."""
    with pytest.raises(OptimizeError, match="until: got 'layer5', expected one of stem, layer1"):
        build_network("resnet18", 2, until="layer5")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "efficientnet-lite0", "attention": "se"}, "attention: efficientnet-lite0 takes none"),
        ({"arch": "tiny", "attention": "simam"}, "attention: got 'simam', expected one of none, se, cbam"),
        ({"arch": "tiny", "width": 0.5}, "width: got 0.5, and tiny has one width only"),
        ({"arch": "resnet18", "width": 0.0}, "width: got 0, expected 0.125 to 4"),
        ({"arch": "resnet18", "n_classes": 1}, "n_classes: got 1, expected at least 2"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: dict[str, str], words: str) -> None:
    """Before an hour of training goes into another network than was meant."""
    arch, n_classes = options.pop("arch"), int(options.pop("n_classes", "2"))

    with pytest.raises(OptimizeError, match=words):
        build_network(arch, n_classes, **options)  # type: ignore[arg-type]


def test_the_width_is_the_cards_and_1_with_published_weights() -> None:
    """Published weights fit one width; another one with them is a mistake."""
    assert resolve_width("resnet18") == 0.5
    assert resolve_width("resnet18", is_pretrained=True) == 1.0
    assert resolve_width("resnet18", 0.25) == 0.25
    with pytest.raises(OptimizeError, match="published weights fit width 1 only"):
        resolve_width("resnet18", 0.5, is_pretrained=True)


def test_the_same_seed_gives_the_same_weights() -> None:
    """A report then means one network."""

    def made() -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        return build_network("resnet18", 3, attention="cbam").state_dict()

    first, again = made(), made()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_gates_start_near_open(attention: str) -> None:
    """A network with attention starts close to the one without, and every gate can move both ways."""
    torch.manual_seed(1)
    made = build_network("mobilenetv2", 3, attention=attention).eval()
    gates: list[torch.Tensor] = []
    for module in made.modules():
        if isinstance(module, ChannelGate | SpatialGate):
            module.gate.register_forward_hook(lambda _module, _inputs, output: gates.append(output))

    with torch.no_grad():
        made(normalize(np.stack(pictures())))

    values = torch.cat([gate.flatten() for gate in gates])
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1


def test_one_channel_gate_is_what_the_paper_has() -> None:
    """CBAM's equation 2: both poolings through the same two layers, and their sum; computed here as written there."""
    torch.manual_seed(2)
    gate = ChannelGate(16, with_max=True)
    inputs = torch.randn(2, 16, 5, 6)

    def layers(pooled: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(torch.relu(gate.squeeze(pooled)), gate.excite.weight)

    with torch.no_grad():
        assert gate.excite.bias is not None
        found, mean, highest = gate(inputs), inputs.mean((2, 3), keepdim=True), inputs.amax((2, 3), keepdim=True)
        weights = layers(mean) + layers(highest) + gate.excite.bias[:, None, None]
        expected = inputs * torch.clip(weights / 6 + 0.5, 0, 1)
    torch.testing.assert_close(found, expected)


def test_the_spatial_map_says_where_features_pass() -> None:
    """One map per picture, between closed and open, of the last gate."""
    made = network("resnet18", "cbam")

    found = spatial_map(made, normalize(np.stack(pictures())))

    assert found.shape == (3, 2, 2)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_a_network_without_spatial_gates_has_no_map() -> None:
    """A blank picture would look like an answer."""
    with pytest.raises(OptimizeError, match="has no spatial gates"):
        spatial_map(network("tiny", "se"), normalize(np.stack(pictures())))


class Odd(nn.Module):
    """Something that computes like a known operator, but not quite."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.conv(values)
        if self.kind == "mean over places":
            return made + made.mean((2, 3), keepdim=True)
        if self.kind == "joined in height":
            return torch.cat([made, made], 2)
        if self.kind == "factor":
            return made * 2
        return nn.functional.silu(made)


@pytest.mark.parametrize("kind", ["mean over places", "joined in height", "factor", "silu"])
def test_an_operator_with_other_arguments_is_refused(kind: str) -> None:
    """A known name is not enough."""
    made = Classifier(nn.Sequential(Odd(kind)), 4, 3).eval()

    with pytest.raises(ModelError, match=r"can't export call_(method|function)"):
        onnx_from_network(made, SPEC, CLASSES, arch="odd")


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2)])
def test_a_pooling_of_another_kind_is_refused(pool: nn.Module) -> None:
    """Its borders would be others."""
    made = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), pool), 4, 3).eval()

    with pytest.raises(ModelError, match="can't export features/1"):
        onnx_from_network(made, SPEC, CLASSES, arch="odd")


def test_a_norm_that_several_read_or_that_stands_alone_is_kept(tmp_path: Path) -> None:
    """Folding is right only behind a convolution that nothing else reads."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.alone = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            made = self.conv(values)
            joined: torch.Tensor = self.alone(self.norm(made) + made)
            return joined

    torch.manual_seed(3)
    made = Classifier(nn.Sequential(Forked()), 4, 3)
    with torch.no_grad():
        for _ in range(2):
            made(torch.randn(4, 3, SIDE, SIDE))
    made.eval()
    export_onnx(made, tmp_path / "m.onnx", SPEC, CLASSES, arch="odd")

    assert check_parity(made, tmp_path / "m.onnx", pictures()).max_relative < 1e-4


@pytest.mark.parametrize("card", ARCHITECTURES.values(), ids=lambda card: card.name)
def test_the_cards_state_the_true_cost(card: Architecture) -> None:
    """`--arch list` is what people choose by: weights, multiplications, cells of the map."""
    if card.needs:
        pytest.importorskip("torchvision", reason=f"{card.name} needs torchvision: pip install torchvision")
    macs = 0

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        places = output.numel() if isinstance(module, nn.Conv2d) else len(module.weight)
        macs += places * module.weight[0].numel()

    with torch.device("meta"):
        picture = torch.zeros(1, 3, card.size_px, card.size_px)
        made = build_network(card.name, 6).eval()
        cells = made.features(picture).shape[2]
        for module in made.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        made(picture)

    assert sum(parameter.numel() for parameter in made.parameters()) == card.parameters
    assert macs == card.macs
    assert cells == card.size_px // card.stride


@pytest.mark.slow
def test_the_list_of_networks_is_a_table_and_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    """For people in 120 columns, and for programs."""
    print_architectures(as_json=False)
    printed = capsys.readouterr().out
    print_architectures(as_json=True)
    cards = json.loads(capsys.readouterr().out)

    assert max(map(len, printed.splitlines())) <= 120
    assert [card["name"] for card in cards] == list(ARCHITECTURES)
    assert all(card["name"] in printed and card["advice"] for card in cards)
    assert any(card["latency_ms"] for card in cards)


def test_without_torchvision_its_networks_are_refused_and_the_others_are_there() -> None:
    """Torch alone trains the default; the message says what to install."""
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from optimize.networks import build_network\n"
        "build_network('resnet34', 2)\n"
        "build_network('densenet-small', 2)\n"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "MissingExtra: the Python package torchvision is not installed, and densenet-small needs it" in found.stderr
