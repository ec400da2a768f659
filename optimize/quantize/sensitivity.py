"""Which layers cost accuracy: the signal to noise of a graph's scores with one layer at a time back in float.

The measure is the mean-removed signal-to-noise ratio. A classifier decides by differences between logits, so what is
added to all of them alike changes nothing and is taken off first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.progress import Progress, SilentProgress
from optimize.quantize.interpret import session_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_SNR_DB", "LayerSensitivity", "MakeGraph", "Probe", "sensitivity", "snr_db"]

MAX_SNR_DB = 120.0
"""What equal outputs count as: float32 itself ends near 140 dB, and JSON knows no infinity."""

PICTURES = 32
"""Pictures a layer is judged on by default. On a ResNet-18 (NEU, 128 px) 32 take half a second per layer."""

MakeGraph = Callable[[frozenset[str]], bytes]
"""Gives the INT8 graph in which these layers (nodes of the prepared float graph, by name) stay float."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """What one layer's INT8 costs.

    Attributes:
        layer: the node's name in the prepared float graph.
        snr_db: signal to noise when this layer alone is back in float, dB.
        gain_db: by how much that is better than with no layer in float, dB; below zero when it is worse.
        gain_points: accuracy won by it in percentage points; None without labels.
    """

    layer: str
    snr_db: float
    gain_db: float
    gain_points: float | None = None

    @property
    def noise_removed(self) -> float:
        """Share of the noise that goes away when this layer is in float, 0 to 1; below zero when noise is added."""
        return 1 - 10 ** (-self.gain_db / 10)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """Pictures and what the float graph says to them.

    Attributes:
        images: each as the graph takes it, its batch axis included.
        reference: the float graph's output for each of them, (n, …) float32.
        labels: (n,) index of the right class; None where nobody knows.
        output: the output that is compared.
        fused: run with all of ONNX Runtime's optimizations. Off by default: Q/DQ as the standard defines it, the same
            on every CPU, which is what a reproducible choice needs.
    """

    images: Sequence[NDArray[Any]]
    reference: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    output: str = "logits"
    fused: bool = False

    def __post_init__(self) -> None:
        if len(self.images) != len(self.reference) or not len(self.images):
            raise ValueError(
                f"got {len(self.images)} images and {len(self.reference)} outputs, expected as many, not 0"
            )
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ValueError(f"got {len(self.labels)} labels for {len(self.images)} images")

    def take(self, limit: int) -> Probe:
        """At most `limit` of the pictures, spread evenly over their order."""
        if limit >= len(self.images):
            return self
        chosen = np.linspace(0, len(self.images) - 1, limit).round().astype(int)
        return dataclasses.replace(
            self,
            images=[self.images[i] for i in chosen],
            reference=self.reference[chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )

    def run(self, graph: bytes) -> NDArray[np.float32]:
        """A graph's output for these pictures, in the shape of `reference`; on one thread, so the same on repeats."""
        session = session_of(graph, is_optimized=self.fused)
        source = session.get_inputs()[0].name
        found = [session.run([self.output], {source: image})[0] for image in self.images]
        return np.asarray(found, dtype=np.float32).reshape(self.reference.shape)


def snr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to noise of outputs against the float ones: 10 log10(sum ref² / sum (ref - other)²), in dB.

    Both are taken without their mean over the last axis, picture by picture (see the module).

    Args:
        reference: (…, n) the float graph's outputs.
        other: the same shape.

    Returns:
        At most `MAX_SNR_DB`, at least its negative; that too when an output is not a number.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"got outputs of shape {other.shape}, expected {reference.shape}")
    wanted, found = _centred(reference), _centred(other)
    signal, noise = float(np.sum(wanted**2)), float(np.sum((wanted - found) ** 2))
    if not math.isfinite(noise):
        return -MAX_SNR_DB
    if noise == 0:
        return MAX_SNR_DB
    if signal == 0:
        return -MAX_SNR_DB
    return min(max(10 * math.log10(signal / noise), -MAX_SNR_DB), MAX_SNR_DB)


def sensitivity(
    make: MakeGraph,
    layers: Sequence[str],
    probe: Probe,
    *,
    in_float: frozenset[str] = frozenset(),
    limit: int = PICTURES,
    progress: Progress | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Rank layers by what putting each back to float alone would bring.

    Args:
        make: emits the graph; called once for each layer, and once with `in_float` alone.
        layers: which; the order does not matter.
        probe: pictures and float outputs.
        in_float: layers that are in float anyway.
        limit: at most so many pictures, spread evenly.
        progress: hears where we are.

    Returns:
        One entry for each layer, largest gain first, ties by name.
    """
    progress = progress or SilentProgress()
    probe = probe.take(limit)
    base = probe.run(make(in_float))
    base_db, base_right = snr_db(probe.reference, base), _right(probe, base)
    entries = []
    for layer in progress.track(sorted(set(layers) - in_float), "measuring what each layer's INT8 costs"):
        found = probe.run(make(in_float | {layer}))
        right = _right(probe, found)
        points = None if right is None or base_right is None else 100 * (right - base_right)
        snr = snr_db(probe.reference, found)
        entries.append(LayerSensitivity(layer=layer, snr_db=snr, gain_db=snr - base_db, gain_points=points))
    return tuple(sorted(entries, key=lambda entry: (-entry.gain_db, entry.layer)))


def _centred(values: NDArray[Any]) -> NDArray[np.float64]:
    wide = np.asarray(values, dtype=np.float64)
    return np.asarray(wide - wide.mean(axis=-1, keepdims=True))


def _right(probe: Probe, outputs: NDArray[np.float32]) -> float | None:
    """Share of the pictures whose largest output is their label's."""
    if probe.labels is None:
        return None
    return float(np.mean(outputs.reshape(len(outputs), -1).argmax(axis=1) == probe.labels))
