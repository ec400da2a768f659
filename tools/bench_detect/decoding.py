"""What decoding and suppression cost for 8,400 candidates, one thread: as many as a YOLO has at 640 px."""

from __future__ import annotations

import time

import numpy as np

from agent.bundle.boxes import BoxDecoder
from agent.bundle.detection import DetectionSpec, PriorLevel
from tools.bench_quantize.figures import RESAMPLES, Figure

__all__ = ["decode_figure"]

CANDIDATES, CLASSES, DEFECTS = 8400, 6, 12
ROUNDS = 400
SEED = 6


def decode_figure() -> tuple[Figure, dict[str, object]]:
    """Milliseconds per picture: the median over rounds, with an interval by resampling them; and what was decoded."""
    spec, boxes, scores = _picture()
    decoder = BoxDecoder(spec, CLASSES)
    found = decoder(boxes, scores)
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        decoder(boxes, scores)
        taken.append(1e3 * (time.perf_counter() - begin))
    random = np.random.default_rng(SEED)
    medians = np.median(np.array(taken)[random.integers(0, ROUNDS, (RESAMPLES, ROUNDS))], axis=1)
    low, high = (float(edge) for edge in np.percentile(medians, (2.5, 97.5)))
    row = {
        "part": "decode",
        "candidates": CANDIDATES,
        "classes": CLASSES,
        "above": int((1 / (1 + np.exp(-scores)) >= spec.score_above).sum()),
        "found": len(found),
        "p99_ms": round(float(np.percentile(taken, 99)), 3),
    }
    return Figure(value=float(np.median(taken)), low=low, high=high), row


def _picture() -> tuple[DetectionSpec, np.ndarray, np.ndarray]:
    """A picture with a dozen defects, each seen by the places around it, in a background of low scores."""
    random = np.random.default_rng(SEED)
    levels = tuple(
        PriorLevel(rows=640 // s, columns=640 // s, step_x_px=s, step_y_px=s, sizes_px=((s, s),)) for s in (8, 16, 32)
    )
    spec = DetectionSpec(boxes="distances", scores="sigmoid", levels=levels, score_above=0.05)
    scores = random.normal(-7, 1, (1, CANDIDATES, CLASSES)).astype(np.float32)
    boxes = random.uniform(0.5, 3, (1, CANDIDATES, 4)).astype(np.float32)
    for _ in range(DEFECTS):
        row, column, width = (int(v) for v in (random.integers(4, 72), random.integers(4, 72), random.integers(2, 6)))
        for y in range(row, row + width):
            at = y * 80 + np.arange(column, column + width)
            scores[0, at, int(random.integers(CLASSES))] = random.normal(0, 2, width)
            left, top = np.arange(width) + 0.5, np.full(width, y - row + 0.5)
            boxes[0, at] = np.stack([left, top, width - left, width - top], 1)
    return spec, boxes, scores
