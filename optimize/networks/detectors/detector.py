"""A detector: the stages of a backbone, a feature pyramid, and a head per level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agent.bundle.detection import DetectionSpec, PriorLevel
from optimize.errors import OptimizeError
from optimize.networks import backbone_features
from optimize.networks.detectors.cards import Family, detector_card
from optimize.networks.detectors.heads import BINS, SsdHead, YoloHead, anchor_sizes_px
from optimize.networks.detectors.pyramid import Pyramid

__all__ = ["SCALE_WH", "SCALE_XY", "Detector", "build_detector"]

SCALE_XY, SCALE_WH = 0.1, 0.2
"""SSD's variances: what its deltas are multiplied by (the paper's code; torchvision's weights 10 and 5)."""

VOTE_IOU = 0.6
"""Boxes that overlap by so much say together where a defect ends: worth 0.7 to 1.2 points of mAP50-95 on NEU's val
(four trainings)."""

COARSEST = 32
"""Stride of the backbone's last features; SSD gets one level of twice that."""

PROBE_PX = 64


class Detector(nn.Module):
    """Raw boxes and scores of every prior.

    Args:
        features: the backbone's stages.
        taps: after which stages (positions) the pyramid reads, finest first.
        pyramid: makes levels of equal width.
        head: makes boxes and scores of them.
        family: `yolo` or `ssd`.
        strides: of the levels, finest first.
        n_classes: how many classes, the background not counted.
    """

    def __init__(
        self,
        features: nn.Sequential,
        taps: Sequence[int],
        pyramid: Pyramid,
        head: YoloHead | SsdHead,
        *,
        family: Family,
        strides: Sequence[int],
        n_classes: int,
    ) -> None:
        super().__init__()
        self.features, self.pyramid, self.head = features, pyramid, head
        self.taps, self.strides, self.family, self.n_classes = tuple(taps), tuple(strides), family, n_classes
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32), persistent=False)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the backbone's parts, from the picture to the pyramid."""
        return tuple(name for name, _ in self.features.named_children())

    @property
    def score_columns(self) -> int:
        """Columns of `scores`: SSD has one more, for the background."""
        return self.n_classes + (self.family == "ssd")

    def maps(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Raw maps per level, see `heads`."""
        found, values = [], images
        for i, stage in enumerate(self.features):
            values = stage(values)
            if i in self.taps:
                found.append(values)
        return list(self.head(self.pyramid(found)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (N, in_channels, H, W) to boxes (N, P, 4) and score logits (N, P, `score_columns`).

        Boxes are distances in strides (yolo) or deltas (ssd); priors lie row by row, level after level.
        """
        boxes, scores = self.raw(images)
        if self.family == "yolo":
            boxes = self.expected(boxes)
        return boxes, scores

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same, but of yolo the logits of the distances' distributions: (N, P, 4 bins)."""
        maps = self.maps(images)
        boxes = torch.cat([_rows(boxes, self.head.columns) for boxes, _ in maps], 1)
        scores = torch.cat([_rows(scores, self.score_columns) for _, scores in maps], 1)
        return boxes, scores

    def expected(self, logits: Tensor) -> Tensor:
        """Distances (N, P, 4) in strides: the mean of each distribution of (N, P, 4 bins)."""
        shares = logits.reshape(*logits.shape[:-1], 4, BINS).softmax(-1)
        bins: Tensor = self.get_buffer("bins")
        return (shares * bins).sum(-1)

    def levels(self, width_px: int, height_px: int) -> tuple[PriorLevel, ...]:
        """Where the priors lie for an input of this size."""
        return tuple(
            PriorLevel(
                rows=-(-height_px // stride),
                columns=-(-width_px // stride),
                step_x_px=float(stride),
                step_y_px=float(stride),
                sizes_px=((float(stride), float(stride)),) if self.family == "yolo" else anchor_sizes_px(stride),
            )
            for stride in self.strides
        )

    def spec(self, width_px: int, height_px: int) -> DetectionSpec:
        """How the outputs are read."""
        levels = self.levels(width_px, height_px)
        if self.family == "yolo":
            return DetectionSpec(
                boxes="distances", scores="sigmoid", levels=levels, score_above=0.01, vote_iou=VOTE_IOU
            )
        return DetectionSpec(
            boxes="deltas",
            scores="softmax",
            levels=levels,
            scale_xy=SCALE_XY,
            scale_wh=SCALE_WH,
            score_above=0.01,
            vote_iou=VOTE_IOU,
        )


def build_detector(arch: str, n_classes: int, *, in_channels: int = 3, finest: int = 8) -> Detector:
    """Make a detector with fresh weights (from torch's random state; seed it first).

    Args:
        arch: a name from `DETECTORS`.
        n_classes: how many classes of defects, at least one.
        in_channels: 3 for colour, 1 for grey.
        finest: stride of the finest level in pixels: 8, or 4 for defects of a few pixels (and four times the work).

    Returns:
        The detector in training mode. It takes (N, in_channels, H, W) float32, normalized as `(value - 128) / 128`, of
        sides that are multiples of 32.

    Raises:
        OptimizeError: there is no such detector or stride.
        ImportError: torch is not installed.
    """
    card = detector_card(arch)
    if finest not in (4, 8, 16):
        raise OptimizeError(f"finest: got a stride of {finest} px, expected 4, 8 or 16")
    if n_classes < 1:
        raise OptimizeError(f"n_classes: got {n_classes}, expected at least 1")
    features = backbone_features(card.backbone, in_channels)
    ends = _ends(features, in_channels)
    wanted = [stride for stride in (4, 8, 16, COARSEST) if stride >= finest]
    taps = [ends[stride][0] for stride in wanted]
    features = features[: taps[-1] + 1]
    extra = int(card.family == "ssd")
    strides = wanted + [2 * COARSEST] * extra
    pyramid = Pyramid([ends[stride][1] for stride in wanted], card.channels, extra)
    kind = YoloHead if card.family == "yolo" else SsdHead
    head = kind(card.channels, len(strides), n_classes)
    detector = Detector(features, taps, pyramid, head, family=card.family, strides=strides, n_classes=n_classes)
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    head.start()
    return detector.train()


def _rows(maps: Tensor, columns: int) -> Tensor:
    """(N, A columns, h, w) to (N, h w A, columns): row by row, place by place, anchor by anchor."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, columns)


def _ends(features: nn.Sequential, in_channels: int) -> dict[int, tuple[int, int]]:
    """By stride: the last stage that has it, and its channels. A stage named `last` only widens for a linear layer."""
    found: dict[int, tuple[int, int]] = {}
    values = torch.zeros(1, in_channels, PROBE_PX, PROBE_PX)
    was_training = features.training
    features.eval()
    with torch.no_grad():
        for i, (name, stage) in enumerate(features.named_children()):
            values = stage(values)
            if name != "last":
                found[PROBE_PX // values.shape[-1]] = (i, values.shape[1])
    features.train(was_training)
    return found
