"""Recovery without labels: what it refuses, that it brings agreement back, and that it repeats itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from agent.bundle import InputSpec
from optimize.errors import DataError, ModelError, OptimizeError

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch
from torch import Tensor, nn

from optimize.distill import NetworkTeacher, RecoverConfig, Recovered, RecoverProgress, Taught, agreement, recover
from optimize.networks import build_network
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import build_detector
from tests.kit.tiny_networks import pictures, trained

pytestmark = pytest.mark.torch

SPEC = InputSpec(width_px=32, height_px=32)
QUICK = RecoverConfig(spec=SPEC, epochs=4, batch=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums come out the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sound() -> Classifier:
    return trained()


def damaged(network: Classifier) -> Classifier:
    """A quarter of the channels of every convolution are lost, as pruning does it."""
    hurt = copy.deepcopy(network)
    with torch.no_grad():
        for module in hurt.features.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[: max(1, module.out_channels // 4)] = 0
    return hurt


def weights(recovered: Recovered[Classifier]) -> list[Tensor]:
    return list(recovered.network.state_dict().values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"batch": 1}, "batch: got 1"),
        ({"peak_lr": float("nan")}, "peak-lr: got nan"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"label_weight": 1.5}, "label-weight: got 1.5"),
        ({"held_out": 0.9}, "held-out: got 0.9"),
        ({"optimizer": "lion"}, "optimizer: got 'lion'"),
        ({"minutes": 0.0}, "minutes: got 0.0"),
        ({"spec": InputSpec(width_px=32, height_px=64)}, "32 x 64, expected a square"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, object], words: str) -> None:
    """Before a picture is looked at."""
    with pytest.raises(OptimizeError, match=words):
        dataclasses.replace(QUICK, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_pictures_are_refused(sound: Classifier, count: int) -> None:
    """Nothing could be held out, and the best epoch would be chosen on what was trained on."""
    with pytest.raises(DataError, match=f"got {count} picture"):
        recover(copy.deepcopy(sound), NetworkTeacher(sound), pictures(count), QUICK)


def test_a_teacher_of_other_classes_is_refused(sound: Classifier) -> None:
    """Three logits can't be compared with four."""
    other = build_network("tiny", 4, in_channels=1).eval()

    with pytest.raises(ModelError, match=r"the teacher gives \(2, 4\) logits"):
        recover(copy.deepcopy(sound), NetworkTeacher(other), pictures(12), QUICK)


def test_labels_that_do_not_go_with_the_pictures_are_refused(sound: Classifier) -> None:
    """One class for each picture, or none at all."""
    with pytest.raises(DataError, match="expected one class for each of 12"):
        recover(copy.deepcopy(sound), NetworkTeacher(sound), pictures(12), QUICK, labels=np.zeros(5, dtype=np.int64))


def test_features_that_the_teacher_does_not_give_are_refused(sound: Classifier) -> None:
    """A weight on nothing would quietly do nothing."""
    teacher = NetworkTeacher(sound)

    def mute(pictures: Tensor) -> Taught:
        return Taught(logits=teacher(pictures).logits)

    with pytest.raises(ModelError, match="gives no features"):
        recover(copy.deepcopy(sound), mute, pictures(12), dataclasses.replace(QUICK, feature_weight=1.0))


def test_a_loss_that_is_no_number_ends_with_a_remedy(sound: Classifier) -> None:
    """Going on would give back a network of NaN."""
    wild = dataclasses.replace(QUICK, peak_lr=100.0, weight_decay=1e20)

    with pytest.raises(OptimizeError, match="recover: the loss became") as caught:
        recover(copy.deepcopy(sound), NetworkTeacher(sound), pictures(48), wild)

    assert "lower learning rate" in str(caught.value.hint)


def test_a_damaged_network_agrees_with_its_teacher_again(sound: Classifier) -> None:
    """Without a label; and it holds on pictures that it never saw."""
    hurt = damaged(sound)
    unseen = np.stack(pictures(60, seed=77))[..., :1]
    lost = agreement(hurt, NetworkTeacher(sound), unseen)

    recovered = recover(hurt, NetworkTeacher(sound), pictures(90, seed=1), dataclasses.replace(QUICK, epochs=10))

    found = agreement(recovered.network, NetworkTeacher(sound), unseen)
    assert lost.share < 0.8
    assert found.share > lost.share + 0.15
    assert found.divergence < lost.divergence / 2
    assert recovered.after.share > recovered.before.share
    assert recovered.n_train + recovered.n_held_out == 90


def test_what_comes_back_never_agrees_less_than_what_was_given(sound: Classifier) -> None:
    """A recovery that goes wrong costs time, not the network: its start counts as an epoch."""
    wild = dataclasses.replace(QUICK, epochs=2, peak_lr=5.0, average=0.0)

    recovered = recover(copy.deepcopy(sound), NetworkTeacher(sound), pictures(30), wild)

    assert recovered.before.share == 1.0
    assert recovered.after == recovered.before
    assert recovered.best_epoch == 0
    for found, given in zip(weights(recovered), sound.state_dict().values(), strict=True):
        assert torch.equal(found, given)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(sound: Classifier) -> None:
    """Whoever repeats a recovery must get the network that was released."""
    found = [
        recover(damaged(sound), NetworkTeacher(sound), pictures(24), dataclasses.replace(QUICK, epochs=2, seed=seed))
        for seed in (1, 1, 2)
    ]

    assert all(torch.equal(a, b) for a, b in zip(weights(found[0]), weights(found[1]), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(found[0]), weights(found[2]), strict=True))


def test_pictures_held_out_are_not_trained_on(sound: Classifier) -> None:
    """Broken ones among them would change no weight, only the choice."""
    given = pictures(24)
    held_out = np.random.default_rng(QUICK.seed).permutation(24)[:4]
    other = [np.zeros_like(image) if i in held_out else image for i, image in enumerate(given)]
    seen = []
    for images in (given, other):
        network = damaged(sound)
        recover(network, NetworkTeacher(sound), images, dataclasses.replace(QUICK, epochs=1))
        seen.append(list(network.state_dict().values()))

    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_labels_count_where_they_are_known(sound: Classifier) -> None:
    """-1 is nobody's class."""
    config = dataclasses.replace(QUICK, epochs=1, label_weight=0.5)
    given = np.arange(24) % 3
    found = []
    for labels in (given, np.where(given == 2, -1, given), np.full(24, -1)):
        network = damaged(sound)
        recover(network, NetworkTeacher(sound), pictures(24), config, labels=labels)
        found.append(list(network.state_dict().values()))

    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))


def test_features_are_imitated_where_that_is_wanted(sound: Classifier) -> None:
    """The teacher may have more of them than the student: a projection lies between, which does not come back."""
    torch.manual_seed(3)
    wide = build_network("resnet18", 3, in_channels=1).eval()
    config = dataclasses.replace(QUICK, epochs=1, feature_weight=1.0)

    recovered = recover(damaged(sound), NetworkTeacher(wide), pictures(24), config)

    assert recovered.network.state_dict().keys() == sound.state_dict().keys()


def test_progress_is_told_after_each_step_and_each_epoch(sound: Classifier) -> None:
    """A bar moves, and a line is printed per epoch."""
    told: list[RecoverProgress] = []

    recovered = recover(
        copy.deepcopy(sound), NetworkTeacher(sound), pictures(20), dataclasses.replace(QUICK, epochs=2), told.append
    )

    records = [where.record for where in told if where.record is not None]
    assert tuple(records) == recovered.history
    assert [where.done for where in told] == sorted(where.done for where in told)
    assert told[-1].done == 1.0


@pytest.mark.parametrize("arch", ["yolo-lite0", "ssd-lite0"])
def test_a_detector_is_recovered_by_its_boxes_and_scores(arch: str) -> None:
    """Raw outputs against raw outputs: nothing is decoded, nothing needs a label."""
    torch.manual_seed(0)
    detector = build_detector(arch, 2, in_channels=1)
    seen = torch.from_numpy(np.stack(pictures(12))[..., 0][:, None]).float() / 128 - 1
    with torch.no_grad():
        for parameter in detector.head.parameters():  # fresh ones see nothing anywhere
            parameter.copy_(0.05 * torch.randn_like(parameter))
        for _ in range(20):  # what its norms expect is what they will see
            detector(seen)
    teacher, hurt = NetworkTeacher(detector), copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in hurt.head.parameters():
            parameter.mul_(1.5)
    config = RecoverConfig(spec=SPEC, epochs=3, batch=5, peak_lr=0.003, optimizer="adamw")

    recovered = recover(hurt, teacher, pictures(12), config)

    assert recovered.after.divergence < recovered.before.divergence


def test_a_classifier_can_not_teach_a_detector(sound: Classifier) -> None:
    """It knows no boxes."""
    detector = build_detector("yolo-lite0", 2, in_channels=1)

    with pytest.raises(ModelError, match="the teacher gives"):
        recover(detector, NetworkTeacher(sound), pictures(12), QUICK)
