"""Label faults: planted ones are found, sound ones are not accused, and an empty sheet says so."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from optimize.dataset import Sample
from optimize.label_faults import confident_joint, draw_label_sheet, find_label_faults
from tests.kit.pictures import encoded, textured

CLASSES = ("dent", "ok", "scratch")


def samples(n: int, folder: Path = Path("/nowhere")) -> tuple[Sample, ...]:
    return tuple(Sample(path=folder / f"{i:03}.png", file=f"{i:03}.png", label=None) for i in range(n))


def probabilities(truth: NDArray[np.int64], sure: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of networks that are so sure of the true class, and find the others alike."""
    chances = np.repeat(((1 - sure) / 2)[:, None], 3, axis=1)
    chances[np.arange(len(truth)), truth] = sure
    return chances


def test_planted_label_faults_are_found_and_ranked_first() -> None:
    """Nine labels of 300 were swapped; networks that never saw them know better."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    chances = probabilities(truth, random.uniform(0.7, 0.99, 300))
    planted = set(random.choice(300, 9, replace=False).tolist())
    given = np.array([(t + 1) % 3 if i in planted else t for i, t in enumerate(truth)])

    found = find_label_faults(samples(300), chances, given, CLASSES)

    assert {int(fault.sample.file[:3]) for fault in found} == planted
    assert {int(f.sample.file[:3]): f.suggested for f in found} == {i: CLASSES[truth[i]] for i in planted}
    assert [fault.probability_given for fault in found] == sorted(fault.probability_given for fault in found)


def test_networks_that_agree_with_every_label_accuse_none() -> None:
    """However unsure they are."""
    truth = np.arange(30) % 3

    assert find_label_faults(samples(30), probabilities(truth, np.linspace(0.34, 0.9, 30)), truth, CLASSES) == ()


def test_a_class_that_is_hard_to_be_sure_of_asks_for_less() -> None:
    """Its threshold is what its own images get (Northcutt et al., equation 2), not one for all."""
    chances = np.array([[0.5, 0.5]] * 4 + [[0.05, 0.95]] * 4 + [[0.45, 0.55]])
    given = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])

    counted = confident_joint(chances, given)

    assert counted[-1] == -1  # reaches neither 0.5 of the first nor 0.87 of the second
    assert counted[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_what_is_only_doubted_comes_after_what_is_suspicious() -> None:
    """On a hard set most disagreements are the network's mistakes: they must not hide the label faults."""
    chances = np.array([[0.99, 0.01]] * 10 + [[0.01, 0.99]] * 10 + [[0.6, 0.4], [0.99, 0.01]])
    given = np.array([0] * 10 + [1] * 10 + [1, 1])
    chances[0] = [0.9, 0.1]

    found = find_label_faults(samples(22), chances, given, ("dent", "ok"))

    assert [(fault.sample.file, fault.is_suspicious) for fault in found] == [("021.png", True), ("020.png", False)]


def test_networks_that_learned_nothing_accuse_nobody() -> None:
    """A quarter of the labels is contradicted by a hair: that says something of the networks, not of the labels."""
    given = np.arange(40) % 2
    chances = np.array([[0.5001, 0.4999]] * 20 + [[0.4999, 0.5001]] * 20)

    found = find_label_faults(samples(40), chances, given, ("a", "b"))

    assert len(found) == 20
    assert not any(fault.is_suspicious for fault in found)


def test_a_class_that_nobody_judged_suggests_nothing() -> None:
    """Its one group only trained."""
    chances = np.array([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]])

    assert confident_joint(chances, np.array([0, 0])).max() < 2


def test_the_sheet_shows_every_suspicious_picture(tmp_path: Path) -> None:
    """A person decides by looking."""
    for i in range(20):
        (tmp_path / f"{i:03}.png").write_bytes(encoded(textured(40, 30 + i, seed=i)))
    truth = np.arange(20) % 2
    chances = np.column_stack([probabilities(truth, np.full(20, 0.9))[:, :2]])
    found = find_label_faults(samples(20, tmp_path), chances, 1 - truth, ("a", "b"))

    sheet = cv2.imdecode(np.frombuffer(draw_label_sheet(found), np.uint8), cv2.IMREAD_COLOR)

    assert sheet is not None
    rows = -(-len(found) // 8)
    assert sheet.shape == (26 + rows * 210, 8 * 144, 3)


def test_an_empty_sheet_says_so() -> None:
    """A missing file would leave open whether anything was looked for."""
    sheet = cv2.imdecode(np.frombuffer(draw_label_sheet(()), np.uint8), cv2.IMREAD_COLOR)

    assert sheet is not None
    assert sheet.shape == (26, 8 * 144, 3)
    assert sheet.max() > 200
