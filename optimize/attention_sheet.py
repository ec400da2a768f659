"""Where a network with spatial attention looked, as a picture: a gate that opens beside the defect is a warning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from optimize.export import normalize
from optimize.networks.attention import spatial_map
from optimize.networks.classifier import Classifier
from optimize.trainset import Pictures

__all__ = ["draw_attention"]

PER_CLASS = 4
CELL_PX, CAPTION_PX, GAP_PX = 144, 22, 4
FLAT = 0.02
"""A gate that differs by less from place to place is drawn on the scale from closed to open."""

_BACK, _INK = 30, (235, 235, 235)


def draw_attention(network: Classifier, pictures: Pictures, classes: Sequence[str], *, channels: int) -> bytes:
    """Draw some pictures of each class, and beside each what the last spatial gate lets through.

    Args:
        network: with CBAM, in evaluation mode.
        pictures: (S, S, 3) uint8 RGB each, at the network's size.
        classes: names by number.
        channels: 3, or 1 for a grey network.

    Returns:
        A PNG file. Bright is open; each map is stretched from its own least to its own largest value, given above it,
        unless they are the same.
    """
    rows = []
    for number, name in enumerate(classes):
        members = np.flatnonzero(pictures.targets == number)
        chosen = [int(members[k * len(members) // PER_CLASS]) for k in range(min(PER_CLASS, len(members)))]
        if chosen:
            images = np.stack([pictures.images[i] for i in chosen])
            with torch.inference_mode():
                maps = spatial_map(network, normalize(np.ascontiguousarray(images[..., :channels]))).numpy()
            rows.append(_row(name, images, maps))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=_BACK) for r in rows]
    return bytes(cv2.imencode(".png", np.vstack(padded))[1].tobytes())


def _row(name: str, images: NDArray[np.uint8], maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    pairs = []
    for image, gate in zip(images, maps, strict=True):
        pair = np.hstack([_cell(image[:, :, ::-1]), _cell(_heat(gate))])
        caption = np.full((CAPTION_PX, pair.shape[1], 3), _BACK, dtype=np.uint8)
        text = f"{name}: gate {gate.min():.2f} to {gate.max():.2f}"
        _write(caption, text)
        pairs.append(np.vstack([caption, pair]))
    return np.hstack(pairs)


def _heat(gate: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(h, w) to BGR, dark blue closed, yellow open."""
    low, high = float(gate.min()), float(gate.max())
    if high - low < FLAT:
        low, high = 0.0, 1.0  # a gate that is open everywhere must not look like a pattern
    level = np.rint(255 * (gate - low) / (high - low)).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS), dtype=np.uint8)


def _cell(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    how = cv2.INTER_NEAREST if picture.shape[0] < CELL_PX else cv2.INTER_AREA
    small: Any = cv2.resize(np.ascontiguousarray(picture), (CELL_PX, CELL_PX), interpolation=how)
    framed = cv2.copyMakeBorder(small, 0, GAP_PX, 0, GAP_PX, cv2.BORDER_CONSTANT, value=(_BACK,) * 3)
    return np.asarray(framed, dtype=np.uint8)


def _write(canvas: Any, text: str) -> None:
    """OpenCV's fonts know ASCII only."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, plain, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
