"""Which layer's INT8 costs how much: signal to noise with one layer at a time back in float."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest

from optimize.quantize.sensitivity import MAX_SNR_DB, Probe, sensitivity, snr_db
from tests.kit.coarse import CoarseEmitter
from tests.kit.float_models import CLASSES, conv_classifier, picture

LAYERS = ("conv1", "conv2", "linear")


@functools.cache
def probe(count: int = 12) -> Probe:
    """Pictures of every class and what the float graph says to them."""
    rng = np.random.default_rng(5)
    labels = np.arange(count) % len(CLASSES)
    images = [picture(CLASSES[label], rng)[None] for label in labels]
    session = onnxruntime.InferenceSession(conv_classifier(), providers=["CPUExecutionProvider"])
    reference = np.concatenate([session.run(["logits"], {"image": image})[0] for image in images])
    return Probe(images=images, reference=reference, labels=labels)


def test_snr_refuses_outputs_of_another_shape() -> None:
    """Broadcasting would compare one picture with all others and give a number."""
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        snr_db(np.zeros((2, 3)), np.zeros((1, 3)))


def test_outputs_that_are_no_numbers_are_the_worst() -> None:
    """A layer that makes NaN must not rank as harmless."""
    assert snr_db(np.array([[1.0, 2.0]]), np.array([[1.0, np.nan]])) == -MAX_SNR_DB


def test_a_probe_needs_an_output_for_every_picture() -> None:
    """Else pictures would be compared with the outputs of others."""
    with pytest.raises(ValueError, match="got 12 images and 11 outputs"):
        Probe(images=probe().images, reference=probe().reference[:-1])


def test_snr_is_signal_over_noise_in_decibels() -> None:
    """A hundredth of the signal's power is 20 dB; worked out by hand."""
    reference = np.array([[3.0, -3.0]])
    other = np.array([[3.3, -3.3]])

    assert snr_db(reference, other) == pytest.approx(20.0)


def test_snr_does_not_count_what_is_added_to_all_logits_alike() -> None:
    """It changes no decision and no softmax."""
    reference = np.array([[1.0, 2.0, 4.0], [0.0, 1.0, -1.0]])

    assert snr_db(reference, reference + np.array([[100.0], [-7.0]])) == MAX_SNR_DB


@pytest.mark.parametrize(("noisy", "other"), [("conv1", "conv2"), ("conv2", "conv1")])
def test_layers_are_ranked_by_what_float_would_win(noisy: str, other: str) -> None:
    """The noisiest layer is the one that was rounded most coarsely, wherever it stands."""
    make = CoarseEmitter(conv_classifier(), {noisy: 3, other: 60})

    ranking = sensitivity(make, [other, noisy], probe())

    assert [entry.layer for entry in ranking] == [noisy, other]
    assert ranking[0].gain_db > 5
    assert 0.6 < ranking[0].noise_removed < 1


def test_gain_is_the_difference_to_the_graph_with_no_layer_in_float() -> None:
    """With a single rounded layer, float gives back the whole signal."""
    make = CoarseEmitter(conv_classifier(), {"conv2": 4})
    base = snr_db(probe().reference, probe().run(make(frozenset())))

    (entry,) = sensitivity(make, ["conv2"], probe())

    assert entry.snr_db > 100
    assert entry.gain_db == pytest.approx(entry.snr_db - base)


def test_gain_in_points_needs_labels() -> None:
    """Without labels nobody knows what is right, and no number stands for it."""
    make = CoarseEmitter(conv_classifier(), {"conv2": 1})
    blind = Probe(images=probe().images, reference=probe().reference)

    (with_labels,) = sensitivity(make, ["conv2"], probe())
    (without,) = sensitivity(make, ["conv2"], blind)

    assert with_labels.gain_points is not None
    assert with_labels.gain_points >= 0
    assert without.gain_points is None


def test_layers_already_in_float_are_kept_there_and_not_ranked() -> None:
    """A search goes on from where it is."""
    make = CoarseEmitter(conv_classifier(), {"conv1": 4, "conv2": 4})

    ranking = sensitivity(make, ["conv1", "conv2"], probe(), in_float=frozenset({"conv1"}))

    assert [entry.layer for entry in ranking] == ["conv2"]
    assert make.asked == [frozenset({"conv1"}), frozenset({"conv1", "conv2"})]


def test_few_pictures_are_spread_over_all() -> None:
    """The first ones of a sorted folder would all be of one class."""
    few = probe().take(4)

    assert few.labels is not None
    assert probe().labels is not None
    assert len(few.images) == len(few.reference) == 4
    assert np.array_equal(few.reference[-1], probe().reference[-1])
    assert np.array_equal(few.reference[0], probe().reference[0])


def test_the_same_inputs_give_the_same_numbers() -> None:
    """`sensitivity.json` is part of a bundle that must be byte-equal when built twice."""
    make = CoarseEmitter(conv_classifier(), {"conv1": 8, "conv2": 8})

    assert sensitivity(make, LAYERS, probe()) == sensitivity(make, LAYERS[::-1], probe())


def test_fused_and_plain_arithmetic_agree_on_a_float_graph() -> None:
    """Optimizations change the last digits of float arithmetic only."""
    import dataclasses

    plain, fused = probe(), dataclasses.replace(probe(), fused=True)

    assert np.allclose(plain.run(conv_classifier()), fused.run(conv_classifier()), atol=1e-3)
