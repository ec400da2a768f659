"""Our decoders and our suppression against torchvision's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.bundle import BoxDecoder, DetectionSpec, PriorLevel
from agent.bundle.boxes import suppress

pytestmark = pytest.mark.torch

SIDE = 96


def ours(spec: DetectionSpec, coded: Any) -> np.ndarray[Any, Any]:
    """Every box, in the order of the outputs."""
    scores = np.linspace(0.9, 0.1, len(coded), dtype=np.float32)[None, :, None]
    return BoxDecoder(spec, 1)(coded.numpy()[None], scores).boxes


def levels_of(cells: Any, sides: list[int]) -> tuple[PriorLevel, ...]:
    """One level per map; sizes in pixels come from torchvision's cell anchors, centred on zero."""
    return tuple(
        PriorLevel(
            rows=side,
            columns=side,
            step_x_px=SIDE / side,
            step_y_px=SIDE / side,
            offset=0.0,
            sizes_px=tuple((float(x1 - x0), float(y1 - y0)) for x0, y0, x1, y1 in cell.tolist()),
        )
        for cell, side in zip(cells, sides, strict=True)
    )


def settings(**changes: Any) -> Any:
    return {"boxes": "deltas", "score_above": 0.0, "nms_iou": 1.0, "max_findings": 1000, **changes}


def test_retinanets_anchors_and_coder_are_read() -> None:
    """torchvision's RetinaNet: sums of three octaves and three ratios, weights of 1, anchors on cell corners."""
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 2)
    maps = [torch.zeros(1, 8, side, side) for side in (6, 3)]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)]), maps)
    coded = torch.randn(len(anchors), 4, generator=torch.Generator().manual_seed(1))
    coded[:5, 2:] = 30  # beyond the cut-off of the logarithm
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(coded, anchors)

    spec = DetectionSpec(**settings(levels=levels_of(generator.cell_anchors, [6, 3])))

    np.testing.assert_allclose(ours(spec, coded), expected.numpy(), rtol=1e-4, atol=1e-3)


def test_ssds_default_boxes_and_coder_are_read() -> None:
    """torchvision's SSD: centres in the middle of the cell, weights 10 and 5, which are the variances 0.1 and 0.2."""
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    generator = DefaultBoxGenerator([[2], [2, 3]], scales=[0.15, 0.4, 0.7], clip=False)
    sides = [6, 3]
    maps = [torch.zeros(1, 8, side, side) for side in sides]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)]), maps)
    coded = torch.randn(len(anchors), 4, generator=torch.Generator().manual_seed(2))
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(coded, anchors)

    levels = tuple(
        PriorLevel(
            rows=side,
            columns=side,
            step_x_px=SIDE / side,
            step_y_px=SIDE / side,
            sizes_px=tuple((w * SIDE, h * SIDE) for w, h in pairs.tolist()),
        )
        for side, pairs in zip(sides, generator._wh_pairs, strict=True)
    )
    spec = DetectionSpec(**settings(levels=levels, scale_xy=0.1, scale_wh=0.2))

    np.testing.assert_allclose(ours(spec, coded), expected.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_torchvisions(iou: float, seed: int) -> None:
    """On crowded boxes, of one class and of several; torchvision keeps the same and in the same order."""
    import torch
    from torchvision.ops import batched_nms, nms

    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 400, (20, 2))[rng.integers(0, 20, 500)] + rng.normal(0, 8, (500, 2))
    size = rng.uniform(10, 80, (500, 2))
    boxes = np.concatenate([at - size / 2, at + size / 2], axis=1).astype(np.float32)
    scores = rng.permutation(500).astype(np.float32) / 500  # no ties: torchvision does not say who wins one
    classes = rng.integers(0, 4, 500)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)

    assert suppress(boxes, scores, np.zeros(500), iou).tolist() == nms(*tensors, iou).tolist()
    assert (
        suppress(boxes, scores, classes, iou).tolist() == batched_nms(*tensors, torch.from_numpy(classes), iou).tolist()
    )
