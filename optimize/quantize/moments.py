"""What a layer reads, summed up: second moments of its patches, and how its wanted outputs go with them.

Kept in two halves of the pictures, so that what is fitted on one can be judged on the other.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from optimize.quantize.layers import Layer, attribute
from optimize.quantize.weights import column_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Moments", "patches"]

FOLDS = 2


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Moments:
    """Sums over sampled places of one layer; columns in kernel order.

    Attributes:
        count: (folds,) how many places.
        x: (folds, groups, products) sums of inputs.
        y: (folds, groups, out) sums of wanted outputs, without bias.
        xx: (folds, groups, products, products) sums of products of inputs.
        yx: (folds, groups, out, products) sums of products of wanted outputs and inputs.
        yy: (folds, groups, out) sums of squared wanted outputs.
    """

    count: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    yx: NDArray[np.float64]
    yy: NDArray[np.float64]

    @classmethod
    def empty(cls, groups: int, out: int, products: int) -> Moments:
        """Nothing seen yet."""
        return cls(
            count=np.zeros(FOLDS),
            x=np.zeros((FOLDS, groups, products)),
            y=np.zeros((FOLDS, groups, out)),
            xx=np.zeros((FOLDS, groups, products, products)),
            yx=np.zeros((FOLDS, groups, out, products)),
            yy=np.zeros((FOLDS, groups, out)),
        )

    def add(self, fold: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Take places of one picture in.

        Args:
            fold: 0 or 1.
            x: (groups, places, products) inputs.
            y: (groups, places, out) wanted outputs.
        """
        turned = np.swapaxes(y, 1, 2).astype(np.float64)
        self.count[fold] += x.shape[1]
        self.x[fold] += x.sum(axis=1, dtype=np.float64)
        self.y[fold] += y.sum(axis=1, dtype=np.float64)
        wide = x.astype(np.float64)
        self.xx[fold] += np.swapaxes(wide, 1, 2) @ wide
        self.yx[fold] += turned @ wide
        self.yy[fold] += (y.astype(np.float64) ** 2).sum(axis=1)

    def centred(
        self, folds: tuple[int, ...] = (0, 1)
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Means of xx, yx and yy about the means of x and y, over some folds."""
        use = list(folds)
        count = self.count[use].sum()
        x, y = self.x[use].sum(axis=0) / count, self.y[use].sum(axis=0) / count
        xx = self.xx[use].sum(axis=0) / count - x[:, :, None] * x[:, None, :]
        yx = self.yx[use].sum(axis=0) / count - y[:, :, None] * x[:, None, :]
        yy = self.yy[use].sum(axis=0) / count - y**2
        return xx, yx, yy


def patches(layer: Layer, values: NDArray[np.float32], places: NDArray[np.intp]) -> NDArray[np.float32]:
    """What a layer multiplies its weights with, at some places of its output.

    Args:
        layer: a Conv over pictures, a Gemm or a MatMul.
        values: what it reads: (1, C, H, W), or (…, in).
        places: numbers of output places, row by row.

    Returns:
        (groups, places, products), columns in kernel order.
    """
    if layer.op != "Conv":
        return values.reshape(-1, values.shape[-1])[places][None]
    _, per_group, *kernel = layer.weight.shape
    top, left, bottom, right = padding(layer, values.shape)
    padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
    stride, dilation = attribute(layer.node, "strides", [1, 1]), attribute(layer.node, "dilations", [1, 1])
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))
    windows = windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    rows, columns = np.divmod(places, windows.shape[2])
    picked = windows[:, rows, columns].reshape(layer.groups, per_group, len(places), -1)
    return np.ascontiguousarray(
        picked.transpose(0, 2, 1, 3).reshape(layer.groups, len(places), -1)[:, :, column_order(layer.weight.shape[1:])]
    )


def padding(layer: Layer, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Rows and columns of zeros around a convolution's input: top, left, bottom, right."""
    auto = attribute(layer.node, "auto_pad", b"NOTSET").decode()
    if auto == "NOTSET":
        top, left, bottom, right = attribute(layer.node, "pads", [0, 0, 0, 0])
        return top, left, bottom, right
    if auto == "VALID":
        return 0, 0, 0, 0
    stride, dilation = attribute(layer.node, "strides", [1, 1]), attribute(layer.node, "dilations", [1, 1])
    ends = []
    for side, k, s, d in zip(shape[2:], layer.weight.shape[2:], stride, dilation, strict=True):
        total = max((-(-side // s) - 1) * s + (k - 1) * d + 1 - side, 0)
        ends.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]
