"""What a detector is taught: which priors answer for which box, and how far they are off.

```text
yolo   a box's answers are the 13 places inside it whose class score and overlap are best together (TOOD); scores by
       cross-entropy against that agreement, boxes by generalized IoU, distances as distributions (GFL)
ssd    a box's answers are the anchors that overlap it by half, and the best one; scores by softmax with the hardest
       negatives only, three for each answer; boxes by smooth L1 on the deltas (SSD)
```

Sources: Feng et al., "TOOD", ICCV 2021 (sections 3.2 and 3.3, alpha 1, beta 6, 13 places); Li et al., "Generalized
focal loss", NeurIPS 2020 (section 3.2); Rezatofighi et al., "Generalized IoU", CVPR 2019; weights 1, 2.5 and 0.5 of the
three terms: Xu et al., "PP-YOLOE", arXiv 2203.16250, section 2.2. Liu et al., "SSD", ECCV 2016, section 2.2.

A good part has no boxes: all of its priors are taught to be silent. SSD's three negatives per answer would leave such
pictures out, so every picture brings at least `FEWEST_NEGATIVES`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from agent.bundle.detection import PriorLevel
from optimize.detect.pictures import Truth
from optimize.networks.detectors.detector import SCALE_WH, SCALE_XY, Detector
from optimize.networks.detectors.heads import BINS

__all__ = ["DetectionLoss", "iou", "prior_boxes"]

PLACES, ALPHA, BETA = 13, 1.0, 6.0
BOX_WEIGHT, BINS_WEIGHT = 2.5, 0.5
MATCH_IOU = 0.5
NEGATIVES = 3
FEWEST_NEGATIVES = 8

SPECK = 0.25
"""The least that the nearest place is told to score for a box that no place would answer for: nothing in the papers
says so, and without it such a box would teach nothing."""

TINY = 1e-30
"""Against division by nought only: before anything is learned overlaps of 0.01 are usual, and their sixth power is the
best that there is."""


def prior_boxes(levels: Sequence[PriorLevel]) -> Tensor:
    """(P, 4) centre x, centre y, width, height in pixels, in the order of the outputs."""
    found = []
    for level in levels:
        y = (torch.arange(level.rows) + level.offset) * level.step_y_px
        x = (torch.arange(level.columns) + level.offset) * level.step_x_px
        sizes = torch.tensor(level.sizes_px, dtype=torch.float32)
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 1, 2)
        shape = len(centres), len(sizes), 2
        found.append(torch.cat([centres.expand(shape), sizes.expand(shape)], -1).reshape(-1, 4))
    return torch.cat(found)


def iou(left: Tensor, right: Tensor, *, is_generalized: bool = False) -> Tensor:
    """Intersection over union of boxes x0, y0, x1, y1, broadcast; generalized: -1 to 1, and told apart when apart."""
    overlap = (torch.minimum(left[..., 2:], right[..., 2:]) - torch.maximum(left[..., :2], right[..., :2])).clamp(min=0)
    shared = overlap.prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (left, right)]
    union = (areas[0] + areas[1] - shared).clamp(min=1e-6)
    if not is_generalized:
        return shared / union
    hull = torch.maximum(left[..., 2:], right[..., 2:]) - torch.minimum(left[..., :2], right[..., :2])
    around = hull.prod(-1).clamp(min=1e-6)
    return shared / union - (around - union) / around


class DetectionLoss:
    """The loss of a batch.

    Args:
        detector: whose outputs are judged; its family decides.
        class_weights: (C,) how much a box of each class counts.
    """

    def __init__(self, detector: Detector, class_weights: Tensor) -> None:
        self._detector, self._weights = detector, class_weights
        self._priors: dict[int, Tensor] = {}

    def __call__(self, inputs: Tensor, truths: Sequence[Truth]) -> Tensor:
        """From normalized pictures (N, C, S, S) and what is to be found in them."""
        boxes, scores = self._detector.raw(inputs)
        size = inputs.shape[-1]
        if size not in self._priors:
            self._priors[size] = prior_boxes(self._detector.levels(size, size)).to(scores.device)
        judge = self._yolo if self._detector.family == "yolo" else self._ssd
        return judge(boxes, scores, self._priors[size], [_Goal.of(truth, scores.device) for truth in truths])

    def _yolo(self, logits: Tensor, scores: Tensor, priors: Tensor, goals: Sequence[_Goal]) -> Tensor:
        distances = self._detector.expected(logits)
        boxes = _corners(distances, priors)
        answers = [
            _aligned(s.detach().sigmoid(), b.detach(), priors, g) for s, b, g in zip(scores, boxes, goals, strict=True)
        ]
        targets = torch.stack([answer.targets for answer in answers])
        spared = torch.stack([answer.spared for answer in answers])
        weights = torch.where(targets > 0, self._weights.expand_as(targets), 1.0) * (~spared)[..., None]
        total = targets.sum().clamp(min=1.0)
        loss = (functional.binary_cross_entropy_with_logits(scores, targets, reduction="none") * weights).sum()
        chosen = torch.stack([answer.box_of >= 0 for answer in answers])
        if chosen.any():
            wanted = torch.cat([g.boxes[a.box_of[a.box_of >= 0]] for a, g in zip(answers, goals, strict=True)])
            agreement = targets[chosen].sum(-1)
            apart = 1 - iou(boxes[chosen], wanted, is_generalized=True)
            loss = loss + BOX_WEIGHT * (apart * agreement).sum()
            at = priors.expand(len(goals), -1, -1)[chosen]
            loss = loss + BINS_WEIGHT * (_spread(logits[chosen], _distances(wanted, at)) * agreement).sum()
        return loss / total

    def _ssd(self, deltas: Tensor, scores: Tensor, priors: Tensor, goals: Sequence[_Goal]) -> Tensor:
        matched = [_matched(priors, goal) for goal in goals]
        box_of = torch.stack([box for box, _ in matched])
        spared = torch.stack([rest for _, rest in matched])
        chosen = box_of >= 0
        labels = torch.zeros_like(box_of)
        for row, goal in enumerate(goals):
            labels[row, chosen[row]] = 1 + goal.classes[box_of[row, chosen[row]]]
        weights = torch.cat([torch.ones(1, device=scores.device), self._weights])[labels]
        losses = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        hardest = losses.detach().masked_fill(chosen | spared, -1.0).flatten()
        count = max(NEGATIVES * int(chosen.sum()), FEWEST_NEGATIVES * len(goals))
        negatives = torch.zeros_like(hardest, dtype=torch.bool)
        negatives[hardest.topk(min(count, len(hardest))).indices] = True
        negatives &= hardest >= 0
        loss = (losses * weights)[chosen].sum() + losses.flatten()[negatives].sum()
        if chosen.any():
            wanted = torch.cat([g.boxes[b[b >= 0]] for b, g in zip(box_of, goals, strict=True)])
            at = priors.expand(len(goals), -1, -1)[chosen]
            found = functional.smooth_l1_loss(deltas[chosen], _deltas(wanted, at), reduction="none")
            loss = loss + (found.sum(-1) * weights[chosen]).sum()
        return loss / chosen.sum().clamp(min=1)


class _Goal:
    """A picture's truth as tensors: boxes to be found (n, 4) and their classes, and (m, 4) boxes to be let alone."""

    def __init__(self, boxes: Tensor, classes: Tensor, ignored: Tensor) -> None:
        self.boxes, self.classes, self.ignored = boxes, classes, ignored

    @classmethod
    def of(cls, truth: Truth, device: torch.device) -> _Goal:
        boxes = torch.from_numpy(truth.boxes).float().to(device)
        known = torch.from_numpy(~truth.is_ignored).to(device)
        return cls(boxes[known], torch.from_numpy(truth.classes).to(device)[known], boxes[~known])


class _Answer:
    """Who answers for what: `targets` (P, C), `box_of` (P,) or -1, and `spared` (P,) which nobody judges."""

    def __init__(self, targets: Tensor, box_of: Tensor, spared: Tensor) -> None:
        self.targets, self.box_of, self.spared = targets, box_of, spared


def _aligned(scores: Tensor, boxes: Tensor, priors: Tensor, goal: _Goal) -> _Answer:
    """Task-aligned assignment of one picture (TOOD, section 3.2)."""
    count, spared = len(priors), _inside(priors, goal.ignored).any(0)
    targets, box_of = torch.zeros_like(scores), torch.full((count,), -1, device=scores.device)
    if not len(goal.boxes):
        return _Answer(targets, box_of, spared)
    overlap = iou(goal.boxes[:, None], boxes[None])
    inside = _inside(priors, goal.boxes)
    agreement = scores[:, goal.classes].T.pow(ALPHA) * overlap.pow(BETA) * inside
    best = agreement.topk(min(PLACES, count), dim=1)
    is_answer = torch.zeros_like(inside).scatter_(1, best.indices, True) & inside
    # A place inside several boxes answers for the one that it overlaps best.
    highest, owner = torch.where(is_answer, overlap, -1.0).max(0)
    box_of = torch.where(highest >= 0, owner, box_of)
    # A box without an answer, as it holds no place's centre or others took them, gets the place nearest to its middle.
    lost = torch.tensor([i for i in range(len(goal.boxes)) if not (box_of == i).any()], dtype=torch.long)
    if len(lost):
        centres = (goal.boxes[lost, :2] + goal.boxes[lost, 2:]) / 2
        box_of[torch.cdist(centres, priors[:, :2]).argmin(1)] = lost.to(box_of.device)
    at = (box_of >= 0).nonzero()[:, 0]
    mine = torch.zeros_like(is_answer)
    mine[box_of[at], at] = True
    agreement, overlap = torch.where(mine, agreement, 0.0), torch.where(mine, overlap, 0.0)
    share = agreement / agreement.amax(1, keepdim=True).clamp(min=TINY) * overlap.amax(1, keepdim=True)
    share[lost] = share[lost].clamp(min=SPECK) * mine[lost]
    targets[at, goal.classes[box_of[at]]] = share[box_of[at], at]
    return _Answer(targets, box_of, spared & (box_of < 0))


def _matched(priors: Tensor, goal: _Goal) -> tuple[Tensor, Tensor]:
    """SSD's matching of one picture: the box of each anchor (or -1), and which anchors nobody judges."""
    corners = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    box_of = torch.full((len(priors),), -1, device=priors.device)
    spared = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
    if len(goal.ignored):
        spared = (iou(goal.ignored[:, None], corners[None]) > MATCH_IOU).any(0) | _inside(priors, goal.ignored).any(0)
    if len(goal.boxes):
        overlap = iou(goal.boxes[:, None], corners[None])
        highest, owner = overlap.max(0)
        box_of = torch.where(highest >= MATCH_IOU, owner, box_of)
        best = overlap.max(1).indices
        box_of[best] = torch.arange(len(goal.boxes), device=priors.device)
    return box_of, spared & (box_of < 0)


def _inside(priors: Tensor, boxes: Tensor) -> Tensor:
    """(G, P): whether the prior's centre lies in the box."""
    x, y = priors[None, :, 0], priors[None, :, 1]
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _corners(distances: Tensor, priors: Tensor) -> Tensor:
    """Left, top, right, bottom in parts of the prior, to x0, y0, x1, y1 in pixels."""
    low = priors[:, :2] - distances[..., :2] * priors[:, 2:]
    return torch.cat([low, priors[:, :2] + distances[..., 2:] * priors[:, 2:]], -1)


def _distances(boxes: Tensor, priors: Tensor) -> Tensor:
    """The way back."""
    low = (priors[:, :2] - boxes[:, :2]) / priors[:, 2:]
    return torch.cat([low, (boxes[:, 2:] - priors[:, :2]) / priors[:, 2:]], -1)


def _deltas(boxes: Tensor, priors: Tensor) -> Tensor:
    """Boxes x0, y0, x1, y1 as SSD's head gives them, relative to anchors."""
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    shift = (centres - priors[:, :2]) / priors[:, 2:] / SCALE_XY
    return torch.cat([shift, (sides / priors[:, 2:]).log() / SCALE_WH], -1)


def _spread(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss: (M, 4 bins) logits against (M, 4) distances, which lie between two bins (GFL, eq. 6)."""
    target = distances.clamp(0, BINS - 1 - 0.01)
    low = target.floor()
    share = target - low
    rows, bins = logits.reshape(-1, BINS), low.reshape(-1).long()
    near = functional.cross_entropy(rows, bins, reduction="none").view_as(target) * (1 - share)
    far = functional.cross_entropy(rows, bins + 1, reduction="none").view_as(target) * share
    return (near + far).mean(-1)
