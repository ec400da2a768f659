"""Integer weights: one scale per output channel, and steps that make a layer's outputs right, not each weight.

Rounding each weight to the nearest step is best only when inputs are unrelated. Here columns are rounded one after the
other, and what one column loses is made up by those that follow, by the inputs' second moments (Frantar et al., "GPTQ",
arXiv 2210.17323, after Hassibi and Stork's optimal brain surgeon, 1993).

On x86 without VNNI a kernel multiplies bytes with weights and adds two neighbouring products in 16 bits, with
saturation (`vpmaddubsw`): 255 * (a + b) must stay within -32,768 and 32,767, that is -128 <= a + b <= 128 for
neighbours a and b. `Pairs` keeps that while rounding, so that 8-bit weights give the same answers on every CPU.
Neighbours are consecutive in the order (kernel row, kernel column, input channel), in which ONNX Runtime's
channels-last convolution multiplies; depthwise kernels add in 32 bits and need nothing (tests/optimize/test_weights.py
holds both against the fused kernels).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PAIR_LIMIT", "IntWeights", "column_order", "paired_columns", "round_weights"]

PAIR_LIMIT = 128
"""Largest sum of two neighbouring weights: 255 * 128 = 32,640 fits 16 bits, 255 * 129 does not."""

STEPS = 127
BLOCK = 128
"""Columns rounded before the others hear of it; only speed depends on it."""

DAMPING = 0.01
"""Share of the mean second moment that is added to each input's, so that unseen directions cost something (GPTQ)."""

FACTORS = np.geomspace(2.0, 0.5, 21)
"""Scales that are tried, as parts of the one that lets the largest weight take the largest step. At 2 no two neighbours
can exceed `PAIR_LIMIT`; below 1 large weights are cut off."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntWeights:
    """A layer's integer weights.

    Attributes:
        steps: (out, products) int8, -127 to 127.
        scale: (out,) float32, what one step is worth.
    """

    steps: NDArray[np.int8]
    scale: NDArray[np.float32]

    def rows(self) -> NDArray[np.float32]:
        """(out, products) float32, as they count."""
        return self.steps.astype(np.float32) * self.scale[:, None]


def column_order(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The columns of `Layer.rows()` in the order in which a CPU's kernel multiplies.

    Args:
        shape: of the weights without the output channel: (in, kh, kw) of a convolution, (in,) of a linear layer.
    """
    index = np.arange(int(np.prod(shape)))
    if len(shape) < 2:
        return index
    return np.moveaxis(index.reshape(shape), 0, -1).reshape(-1)


def paired_columns(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """For each column, in kernel order, whether its product may be added to the one before it in 16 bits.

    Kernels that gather a whole patch pair every two products; those that go from place to place pair every two
    channels of one place. Where channels are even both are the same.
    """
    count, channels = int(np.prod(shape)), shape[0]
    column = np.arange(count)
    return np.asarray((column % 2 == 1) | (column % channels % 2 == 1))


def round_weights(
    rows: NDArray[np.float64],
    moments: NDArray[np.float64] | None,
    *,
    pairs: NDArray[np.bool_] | None,
    floor: NDArray[np.float64],
    limit: int = STEPS,
) -> IntWeights:
    """Choose scales and steps.

    Args:
        rows: (groups, out, products) float weights, columns in kernel order.
        moments: (groups, products, products) second moments of the inputs, about their mean; None when they are not
            known: each weight goes to its nearest step.
        pairs: which columns may be added to the one before in 16 bits; None when none are.
        floor: (groups, out) smallest scale that the bias can live with.
        limit: largest step.

    Returns:
        The weights with (groups * out) rows, columns still in kernel order.
    """
    groups, out, products = rows.shape
    if moments is None:
        scale = _scales(rows, np.ones((groups, products)), pairs, floor, limit)
        steps = _nearest(rows, scale, pairs, limit)
    else:
        damped = _damped(moments)
        scale = _scales(rows, np.diagonal(damped, axis1=1, axis2=2), pairs, floor, limit)
        steps = _rounded(rows, damped, scale, pairs, limit)
    return IntWeights(
        steps=steps.reshape(groups * out, products).astype(np.int8),
        scale=scale.reshape(-1).astype(np.float32),
    )


def _damped(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = np.trace(moments, axis1=1, axis2=2) / moments.shape[1]
    added = np.maximum(DAMPING * mean, 1e-12)
    return np.asarray(moments + added[:, None, None] * np.eye(moments.shape[1]))


def _scales(
    rows: NDArray[np.float64],
    importance: NDArray[np.float64],
    pairs: NDArray[np.bool_] | None,
    floor: NDArray[np.float64],
    limit: int,
) -> NDArray[np.float64]:
    """Per channel the scale whose nearest steps lose least, weighted by how large the inputs are."""
    largest = np.abs(rows).max(axis=2)
    whole = np.maximum(np.where(largest > 0, largest, limit) / limit, floor)
    best, least = whole.copy(), np.full(whole.shape, np.inf)
    for factor in FACTORS:
        scale = np.float32(np.maximum(whole * factor, floor)).astype(np.float64)
        steps = _nearest(rows, scale, pairs, limit)
        lost = (((steps * scale[:, :, None] - rows) ** 2) * importance[:, None, :]).sum(axis=2)
        better = lost < least
        best, least = np.where(better, scale, best), np.where(better, lost, least)
    return np.asarray(best)


def _nearest(
    rows: NDArray[np.float64], scale: NDArray[np.float64], pairs: NDArray[np.bool_] | None, limit: int
) -> NDArray[np.float64]:
    steps = np.clip(np.rint(rows / scale[:, :, None]), -limit, limit)
    if pairs is not None:
        for odd in (1, 0):  # a column that was bounded is the neighbour of the next one
            later = np.flatnonzero(pairs[1:]) + 1
            later = later[later % 2 == odd]
            steps[:, :, later] = _bounded(steps[:, :, later], steps[:, :, later - 1])
    return np.asarray(steps)


def _rounded(
    rows: NDArray[np.float64],
    damped: NDArray[np.float64],
    scale: NDArray[np.float64],
    pairs: NDArray[np.bool_] | None,
    limit: int,
) -> NDArray[np.float64]:
    left = rows.copy()
    factor = _inverse_factor(damped)
    steps = np.zeros_like(rows)
    products = rows.shape[2]
    for start in range(0, products, BLOCK):
        stop = min(start + BLOCK, products)
        errors = np.zeros((*rows.shape[:2], stop - start))
        for column in range(start, stop):
            step = np.clip(np.rint(left[:, :, column] / scale), -limit, limit)
            if pairs is not None and pairs[column] and column:
                step = _bounded(step, steps[:, :, column - 1])
            steps[:, :, column] = step
            error = (left[:, :, column] - step * scale) / factor[:, column, column, None]
            left[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return steps


def _inverse_factor(damped: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper A with inverse(damped) = A.T A: row i says how later columns make up for what column i lost.

    Factored from the last column to the first, so that only a triangle must be inverted.
    """
    lower = np.linalg.cholesky(damped[:, ::-1, ::-1])
    return np.asarray(np.linalg.inv(lower)[:, ::-1, ::-1])


def _bounded(steps: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steps whose sum with their neighbours stays within 16 bits of products."""
    return np.clip(steps, -PAIR_LIMIT - np.minimum(before, 0), PAIR_LIMIT - np.maximum(before, 0))
