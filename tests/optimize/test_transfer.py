"""Transfer learning: frozen stages stand still, statistics included; the others wake when and as fast as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from optimize.dataset import read_dataset
from optimize.errors import OptimizeError
from optimize.networks import build_network
from optimize.train import TrainConfig, train
from optimize.train.stages import StagePlan, freeze, optimizer_of
from tests.kit.float_models import write_parts

pytestmark = pytest.mark.torch


def config(weights: Path, **changes: object) -> TrainConfig:
    return TrainConfig(arch="efficientnet-lite0", weights=weights, size_px=32, batch=8, threads=1, **changes)  # type: ignore[arg-type]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file as the publisher's, with random weights and statistics that show when they change."""
    torch.manual_seed(1)
    network = build_network("efficientnet-lite0", 1000)
    state = {published_name(name): tensor for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "lite0.pth")
    return tmp_path / "lite0.pth"


def published_name(name: str) -> str:
    """Our name back to the publisher's."""
    from optimize.networks.efficientnet_lite import IN_BLOCK, OUTSIDE

    layer, _, tensor = name.rpartition(".")
    for theirs, ours in OUTSIDE.items():
        if layer == ours:
            return f"{theirs}.{tensor}"
    _, block, _, inner = layer.split(".")
    theirs = next(theirs for theirs, ours in IN_BLOCK.items() if ours == inner)
    return f"_blocks.{block.removeprefix('block')}.{theirs}.{tensor}"


def test_frozen_stages_keep_their_weights_and_statistics_to_the_bit(weights: Path, tmp_path: Path) -> None:
    """Also the running means of batch norm, which no gradient touches."""
    parts = write_parts(tmp_path / "parts", {"train": 8, "val": 4})
    train(config(weights, epochs=1, freeze_until="block12"), read_dataset(parts), tmp_path / "m.onnx")

    found = torch.load(tmp_path / "m.onnx.train" / "checkpoint.pt", weights_only=True)["state"]["network"]
    published = torch.load(weights, weights_only=True)
    changed: list[str] = []
    kept: list[str] = []
    for name, tensor in found.items():
        if name.startswith(("features.stem", "head")):
            continue
        (kept if torch.equal(tensor, published[published_name(name)]) else changed).append(name)
    frozen = [name for name in kept + changed if "block" in name and int(name.split(".")[1][5:]) <= 12]
    assert len(frozen) > 100
    assert set(frozen) <= set(kept)
    assert any("running_mean" in name for name in changed)
    assert any("block15" in name and name.endswith("weight") for name in changed)


def test_stages_wake_one_by_one_the_deepest_first(weights: Path) -> None:
    """Every two epochs one more."""
    network = build_network("efficientnet-lite0", 3)
    plan = StagePlan(network, config(weights, freeze_until="block1", unfreeze_every=2))

    frozen = [plan.frozen(epoch) for epoch in range(1, 12)]

    index = network.stages.index("block1") + 1
    assert frozen[:5] == [index, index, index - 1, index - 1, index - 2]
    assert frozen[-1] == max(0, index - 5)


def test_freezing_wakes_all_that_it_does_not_freeze() -> None:
    """A stage that woke must learn, and its batch norms must follow."""
    network = build_network("efficientnet-lite0", 3)

    freeze(network, 4)
    freeze(network, 2)

    stages = list(network.features.children())
    learning = [any(p.requires_grad for p in stage.parameters()) for stage in stages if list(stage.parameters())]
    assert learning[0] is False
    assert all(stage.training for stage in stages[2:])
    assert not any(stage.training for stage in stages[:2])
    assert network.head.weight.requires_grad


def test_each_stage_learns_slower_than_the_one_behind_it(weights: Path) -> None:
    """The head at the full rate, the first stage the slowest; no weight is forgotten or in two groups."""
    network = build_network("efficientnet-lite0", 3)

    groups = optimizer_of(network, config(weights, stage_lr=0.5, features_lr=0.1)).param_groups

    factors = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert len(factors) == len(list(network.parameters()))
    assert factors[id(network.head.weight)] == 1.0
    first = next(network.features.children())
    behind = [factors[id(p)] for p in first.parameters()]
    assert not behind or max(behind) == pytest.approx(0.1 * 0.5 ** (len(network.stages) - 1))


def test_a_stage_that_is_not_there_is_refused_and_the_stages_are_named(weights: Path, tmp_path: Path) -> None:
    """Whoever guesses a name needs the list."""
    parts = write_parts(tmp_path / "parts", {"train": 8, "val": 4})

    with pytest.raises(OptimizeError) as caught:
        train(config(weights, epochs=1, freeze_until="layer2"), read_dataset(parts), tmp_path / "m.onnx")

    assert "no stage 'layer2'" in caught.value.message
    assert caught.value.hint is not None
    assert "block12" in caught.value.hint
