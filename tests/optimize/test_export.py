"""The exported file computes what torch computed, shows where, and is the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import onnx
import onnxruntime
import torch
from torch import nn

from agent.bundle.manifest import InputSpec
from optimize.errors import ModelError, OptimizeError
from optimize.export import check_parity, export_onnx, normalize, onnx_from_network
from optimize.networks import architecture, build_network
from optimize.networks.classifier import Classifier, conv_norm
from tests.kit.pictures import textured

pytestmark = pytest.mark.torch

CLASSES = ("ok", "scratch", "spot")
SMALL = ("resnet18", "mobilenetv2", "efficientnet-lite0", "tiny")
"""What torch alone trains, and quick to make; test_networks.py has the others."""

SPEC = InputSpec(width_px=64, height_px=64)


def network(arch: str, channels: int = 3) -> Classifier:
    """A network as after training: every norm has statistics and factors of its own."""
    torch.manual_seed(5)
    made = build_network(arch, len(CLASSES), in_channels=channels)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
        for _ in range(3):
            made(torch.randn(8, channels, 64, 64))
    return made.eval()


def pictures(n: int = 3, *, is_grey: bool = False) -> list[NDArray[np.uint8]]:
    made = [textured(64, 64, seed=seed) for seed in range(n)]
    return [np.repeat(image[:, :, :1], 3, axis=2) for image in made] if is_grey else made


def outputs(path: Path, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image[None]}), strict=True))


class Unknown(nn.Module):
    """An activation that the export does not know."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(values)


@pytest.mark.parametrize("odd", [Unknown(), nn.SiLU()], ids=["function", "module"])
def test_an_operator_that_is_not_known_is_refused_by_name(odd: nn.Module) -> None:
    """Leaving it out would give a file that computes something else."""
    made = Classifier(nn.Sequential(*conv_norm(3, 4, 3), odd), 4, len(CLASSES)).eval()

    with pytest.raises(ModelError, match=r"can't export .*(sigmoid|SiLU)"):
        onnx_from_network(made, SPEC, CLASSES, arch="odd")


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """One row of weights off by a tenth is enough; the network on the device must be the one that was validated."""
    made = network("tiny")
    path = tmp_path / "model.onnx"
    export_onnx(made, path, SPEC, CLASSES, arch="tiny")
    with torch.no_grad():
        made.head.weight[1] += 0.1

    with pytest.raises(ModelError, match="differs from torch"):
        check_parity(made, path, pictures())


def test_no_pictures_prove_nothing(tmp_path: Path) -> None:
    """Parity on an empty list would pass anything."""
    made = network("tiny")
    export_onnx(made, tmp_path / "model.onnx", SPEC, CLASSES, arch="tiny")

    with pytest.raises(ModelError, match="on 0 pictures"):
        check_parity(made, tmp_path / "model.onnx", [])


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    """After an hour of training the message must say which path."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ModelError, match=r"file/model\.onnx: can't be written"):
        export_onnx(network("tiny"), tmp_path / "file" / "model.onnx", SPEC, CLASSES, arch="tiny")


def test_an_architecture_that_does_not_exist_is_refused() -> None:
    """With the ones that do."""
    with pytest.raises(OptimizeError, match="expected one of resnet18, mobilenetv2, efficientnet-lite0, tiny"):
        build_network("resnet19", 2)


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_onnx_runtime_agrees_with_torch(tmp_path: Path, arch: str, channels: int) -> None:
    """All three outputs, for colour networks and for grey ones, which take RGB once exported."""
    made = network(arch, channels)
    path = tmp_path / "model.onnx"
    export_onnx(made, path, SPEC, CLASSES, arch=arch)

    parity = check_parity(made, path, pictures(is_grey=channels == 1))

    assert parity.n == 3
    assert parity.max_relative < 1e-4


@pytest.mark.parametrize("arch", SMALL)
def test_the_activation_map_averages_to_the_logits(tmp_path: Path, arch: str) -> None:
    """The heatmap is no picture beside the decision, it is the decision, place by place."""
    made = network(arch)
    export_onnx(made, tmp_path / "model.onnx", SPEC, CLASSES, arch=arch)

    found = outputs(tmp_path / "model.onnx", pictures()[0])

    cells = 64 // architecture(arch).stride
    assert found["cam"].shape == (1, 3, cells, cells)
    bias = made.head.bias.detach().numpy()
    np.testing.assert_allclose(found["cam"].mean((2, 3)) + bias, found["logits"], rtol=1e-4, atol=1e-4)


def test_the_embedding_is_what_the_logits_are_made_of(tmp_path: Path) -> None:
    """A distance in it speaks about the decision."""
    made = network("resnet18")
    export_onnx(made, tmp_path / "model.onnx", SPEC, CLASSES, arch="resnet18")

    found = outputs(tmp_path / "model.onnx", pictures()[0])

    weight, bias = (tensor.detach().numpy() for tensor in (made.head.weight, made.head.bias))
    np.testing.assert_allclose(found["embedding"] @ weight.T + bias, found["logits"], rtol=1e-4, atol=1e-4)


def test_the_file_keeps_the_bundle_contract(tmp_path: Path) -> None:
    """Bytes in, three named outputs, and metadata that say what they mean."""
    spec = InputSpec(width_px=96, height_px=64)
    export_onnx(network("tiny"), tmp_path / "model.onnx", spec, CLASSES, arch="tiny")

    model = onnx.load(tmp_path / "model.onnx")

    image = model.graph.input[0]
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 64, 96, 3]
    assert [output.name for output in model.graph.output] == ["logits", "embedding", "cam"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert metadata["arch"] == "tiny"
    assert metadata["task"] == "classify"
    assert InputSpec(**json.loads(metadata["input"])) == spec
    assert {node.op_type for node in model.graph.node} & {"BatchNormalization", "Identity"} == set()


def test_normalization_in_the_graph_is_that_of_training(tmp_path: Path) -> None:
    """(value - 128) / 128, so that the camera's bytes are the quantized input: 0 is -1, 128 is 0."""
    levels = np.array([0, 128, 255], dtype=np.uint8).reshape(1, 1, 3, 1)

    assert normalize(levels).flatten().tolist() == [-1.0, 0.0, 127 / 128]


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    """A hash in a report then means one model, with no time or path inside."""
    first = export_onnx(network("resnet18"), tmp_path / "a.onnx", SPEC, CLASSES, arch="resnet18")
    again = export_onnx(network("resnet18"), tmp_path / "sub" / "b.onnx", SPEC, CLASSES, arch="resnet18")

    assert first == again
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "sub" / "b.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_exporting_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    """Training may go on after an export."""
    made = network("mobilenetv2")
    before = {key: value.clone() for key, value in made.state_dict().items()}

    export_onnx(made, tmp_path / "model.onnx", SPEC, CLASSES, arch="mobilenetv2")

    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_the_tiny_network_stays_under_a_megabyte(tmp_path: Path) -> None:
    """One is committed with the demo."""
    export_onnx(network("tiny"), tmp_path / "model.onnx", SPEC, CLASSES, arch="tiny")

    assert (tmp_path / "model.onnx").stat().st_size < 1_000_000
