"""Train a small YOLO-like detector on NEU-DET and export it the way customers do: for the bench of quantization.

    python tools/bench_models/yolo.py --data ../shared/data/neu-det --out yolo.onnx --minutes 12 --threads 2

Anchor-free, three levels, decoupled head, ReLU. Written from papers: levels and neck are PANet's (arXiv 1803.01534),
the decoupled anchor-free head is YOLOX's (2107.08430), boxes as distributions with their loss are DFL's (2006.04388),
the assignment of targets is TOOD's (2108.07755), the box loss is GIoU (1902.09630).

The file has the usual one-output form: `images` (1, 3, S, S) float32 RGB from 0 to 1; `output0` (1, 4 + C, N) with
centre x, centre y, width and height in pixels, then C scores after the sigmoid, all in one Concat.

The learning rate follows the clock, so the weights depend on the machine's speed too, not on the seed alone.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from optimize.quantize.kept import Detections, box_iou, decode_v8, detect  # noqa: E402

CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
STRIDES = (8, 16, 32)
BINS = 16  # distances are distributions over 0..15 strides
WIDTH = 48  # of neck and head
TOP_K, SCORE_POWER, IOU_POWER = 10, 1.0, 6.0  # TOOD, section 3.2
WEIGHTS = {"score": 1.0, "box": 2.5, "dfl": 0.5}
SMALL_UNTIL, SMALL_PX = 0.6, 128  # most of the time on small pictures, at a third of the cost


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Block(nn.Module):
    """A bottleneck with a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width // 2, 1), conv(width // 2, width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        skip: Tensor = x + self.body(x)
        return skip


class Pyramid(nn.Module):
    """Three max pools in a row, joined: the deepest level sees the whole picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = conv(width, width // 2, 1), conv(width * 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        parts = [self.before(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        joined: Tensor = self.after(torch.cat(parts, 1))
        return joined


class Detector(nn.Module):
    """The network; `forward` gives raw levels, `export` what the file gives."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.stem = conv(3, 32, 7, 4)
        self.down = nn.ModuleList(
            [
                nn.Sequential(conv(32, 64, 3, 2), Block(64)),
                nn.Sequential(conv(64, 128, 3, 2), Block(128), Block(128)),
                nn.Sequential(conv(128, 192, 3, 2), Block(192), Pyramid(192)),
            ]
        )
        self.lateral = nn.ModuleList(conv(width, WIDTH, 1) for width in (64, 128, 192))
        self.fuse_up = nn.ModuleList(nn.Sequential(conv(2 * WIDTH, WIDTH, 1), Block(WIDTH)) for _ in range(2))
        self.shrink = nn.ModuleList(conv(WIDTH, WIDTH, 3, 2) for _ in range(2))
        self.fuse_down = nn.ModuleList(nn.Sequential(conv(2 * WIDTH, WIDTH, 1), Block(WIDTH)) for _ in range(2))
        self.box = nn.ModuleList(nn.Sequential(conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, 4 * BINS, 1)) for _ in STRIDES)
        self.score = nn.ModuleList(nn.Sequential(conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, classes, 1)) for _ in STRIDES)
        for branch in self.score:
            # A probability of 0.01 (RetinaNet, arXiv 1708.02002, section 4.1).
            nn.init.constant_(branch.get_parameter("1.bias"), -4.6)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Per level (B, 4 * BINS + C, h, w), before any decoding."""
        x = self.stem(x)
        levels = []
        for stage, lateral in zip(self.down, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for at in (1, 0):
            upper = functional.interpolate(levels[at + 1], scale_factor=2.0, mode="nearest")
            levels[at] = self.fuse_up[at](torch.cat([levels[at], upper], 1))
        for at in (1, 2):
            levels[at] = self.fuse_down[at - 1](torch.cat([self.shrink[at - 1](levels[at - 1]), levels[at]], 1))
        return [torch.cat([box(x), score(x)], 1) for box, score, x in zip(self.box, self.score, levels, strict=True)]

    def flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All cells in a row: distributions (B, 4 * BINS, N) and scores (B, C, N), both raw."""
        joined = torch.cat([level.flatten(2) for level in self(x)], 2)
        return joined[:, : 4 * BINS], joined[:, 4 * BINS :]


class Exported(nn.Module):
    """The detector with its decoding, for one input size."""

    def __init__(self, detector: Detector, size_px: int) -> None:
        super().__init__()
        self.detector = detector
        points, strides = cells(size_px)
        self.points: Tensor
        self.strides: Tensor
        self.register_buffer("points", (points / strides[:, None]).T[None].contiguous())
        self.register_buffer("strides", strides[None, None])
        self.mean = nn.Conv2d(BINS, 1, 1, bias=False)
        self.mean.weight.data = torch.arange(BINS, dtype=torch.float32).reshape(1, BINS, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(1, 3, S, S) from 0 to 1 to (1, 4 + C, N)."""
        raw, scores = self.detector.flat(images)
        count = self.points.shape[2]
        shares = raw.reshape(1, 4, BINS, count).transpose(1, 2).softmax(1)
        low, high = self.mean(shares).reshape(1, 4, count).chunk(2, 1)
        first, last = self.points - low, self.points + high
        box = torch.cat([(first + last) / 2, last - first], 1) * self.strides
        return torch.cat([box, scores.sigmoid()], 1)


def cells(size_px: int) -> tuple[Tensor, Tensor]:
    """The middle of every cell (N, 2) in pixels, x first, and its stride (N,)."""
    points, strides = [], []
    for stride in STRIDES:
        side = torch.arange(size_px // stride, dtype=torch.float32) * stride + stride / 2
        y, x = torch.meshgrid(side, side, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], 1))
        strides.append(torch.full((len(side) ** 2,), float(stride)))
    return torch.cat(points), torch.cat(strides)


# --- targets and loss ---------------------------------------------------------------------------------------------


def pair_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of boxes x0, y0, x1, y1 in the last axis; the other axes broadcast."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = shared / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, points: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the cells that learn each defect: those that already find it best (TOOD).

    Args:
        scores: (N, C) after the sigmoid.
        boxes: (N, 4) predicted, pixels.
        points: (N, 2) pixels.
        truth: (M, 5) class, x0, y0, x1, y1; M of 1 or more.

    Returns:
        Cells (n,), the defect of each (n,), and the score it shall give (n,).
    """
    labels, targets = truth[:, 0].long(), truth[:, 1:]
    inside = ((points[None] > targets[:, None, :2]) & (points[None] < targets[:, None, 2:])).all(-1)
    iou = pair_iou(targets[:, None], boxes[None])[0].clamp(min=0)
    metric = scores[:, labels].T ** SCORE_POWER * iou**IOU_POWER * inside
    best = torch.zeros_like(metric, dtype=torch.bool).scatter_(1, metric.topk(TOP_K, 1).indices, True) & (metric > 0)
    owner = torch.where(best, iou, torch.full_like(iou, -1)).argmax(0)
    cells_of = best.any(0).nonzero()[:, 0]
    defect = owner[cells_of]
    chosen = torch.zeros_like(metric)
    chosen[defect, cells_of] = metric[defect, cells_of]
    peak_iou = torch.where(chosen > 0, iou, torch.zeros_like(iou)).amax(1)
    wanted = chosen / chosen.amax(1, keepdim=True).clamp(min=1e-12) * peak_iou[:, None]
    return cells_of, defect, wanted[defect, cells_of]


def loss_of(detector: Detector, images: Tensor, truths: list[Tensor]) -> Tensor:
    """The training loss of a batch."""
    raw, logits = detector.flat(images)
    points, strides = cells(images.shape[-1])
    distances = raw.reshape(len(raw), 4, BINS, -1).permute(0, 3, 1, 2)  # (B, N, 4, BINS)
    length = distances.softmax(-1) @ torch.arange(BINS, dtype=torch.float32) * strides[None, :, None]
    boxes = torch.cat([points - length[..., :2], points + length[..., 2:]], -1)
    logits = logits.transpose(1, 2)
    wanted = torch.zeros_like(logits)
    box_loss = dfl_loss = torch.zeros(())
    for i, truth in enumerate(truths):
        if not len(truth):
            continue
        index, defect, weight = assign(logits[i].detach().sigmoid(), boxes[i].detach(), points, truth)
        wanted[i, index, truth[defect, 0].long()] = weight
        target = truth[defect, 1:]
        box_loss = box_loss + ((1 - pair_iou(boxes[i, index], target)[1]) * weight).sum()
        sides = torch.cat([points[index] - target[:, :2], target[:, 2:] - points[index]], 1) / strides[index, None]
        dfl_loss = dfl_loss + (distribution_loss(distances[i, index], sides) * weight).sum()
    score_loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    total = WEIGHTS["score"] * score_loss + WEIGHTS["box"] * box_loss + WEIGHTS["dfl"] * dfl_loss
    return total / wanted.sum().clamp(min=1)


def distribution_loss(logits: Tensor, sides: Tensor) -> Tensor:
    """DFL: cross-entropy with the two bins around a distance in strides, summed over the four sides."""
    sides = sides.clamp(0, BINS - 1.01)
    low = sides.floor().long()
    share = sides - low
    log = logits.log_softmax(-1)
    below, above = (log.gather(-1, at[..., None])[..., 0] for at in (low, low + 1))
    return -(below * (1 - share) + above * share).sum(-1)


# --- pictures -----------------------------------------------------------------------------------------------------


def read_split(data: Path, split: str) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """Pictures (n, H, W) uint8 grey, and of each the defects (m, 5): class, x0, y0, x1, y1 in pixels."""
    with (data / "splits.csv").open(encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["split"] == split]
    boxes: dict[str, list[list[float]]] = {name: [] for name in names}
    with (data / "boxes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["file"] in boxes:
                sides = [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")]
                # Pascal VOC counts pixels from 1, and its last pixel belongs to the box.
                boxes[row["file"]].append([CLASSES.index(row["class"]), sides[0] - 1, sides[1] - 1, *sides[2:]])
    pictures = [np.asarray(cv2.imread(str(data / name), cv2.IMREAD_GRAYSCALE), np.uint8) for name in names]
    return np.stack(pictures), [np.array(boxes[name], np.float32).reshape(-1, 5) for name in names]


def changed(
    picture: NDArray[np.uint8], truth: NDArray[np.float32], size_px: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A random view: zoom, shift, mirror, light."""
    side = picture.shape[0]
    zoom = size_px / side * float(np.exp(rng.uniform(-0.25, 0.35)))
    room = size_px - side * zoom
    shift = rng.uniform(min(room, 0), max(room, 0), 2)
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    view = cv2.warpAffine(picture, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    boxes = truth.copy()
    boxes[:, 1:] = (truth[:, 1:] * zoom + np.tile(shift, 2)).clip(0, size_px)
    boxes = boxes[(boxes[:, 3:] - boxes[:, 1:3]).min(axis=1, initial=size_px) >= 0.03 * size_px]
    for axis in (0, 1):
        if rng.random() < 0.5:
            view = np.flip(view, 1 - axis)
            boxes[:, [1 + axis, 3 + axis]] = size_px - boxes[:, [3 + axis, 1 + axis]]
    light = view.astype(np.float32) / 255 * rng.uniform(0.75, 1.3) + rng.uniform(-0.1, 0.1)
    return light.clip(0, 1).astype(np.float32), boxes


def tensor_of(picture: NDArray[np.uint8], size_px: int) -> NDArray[np.float32]:
    """A picture as the exported file wants it: (1, 3, S, S) float32 from 0 to 1, stretched."""
    fitted = cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    return np.repeat(fitted[None, None], 3, axis=1)


# --- training -----------------------------------------------------------------------------------------------------


def train(data: Path, *, minutes: float, size_px: int, seed: int, batch: int = 8, rate: float = 1.5e-3) -> Detector:
    """Train until the time is up; what is given is the running average of the weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pictures, truths = read_split(data, "train")
    detector = Detector(len(CLASSES))
    average = copy.deepcopy(detector)
    optimizer = torch.optim.AdamW(groups(detector), lr=rate)
    start, step, epoch = time.monotonic(), 0, 0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        losses = []
        for chosen in np.array_split(rng.permutation(len(pictures)), len(pictures) // batch):
            done = (time.monotonic() - start) / (60 * minutes)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(done, 1))))
            px = SMALL_PX if done < SMALL_UNTIL else size_px
            views = [changed(pictures[i], truths[i], px, rng) for i in chosen]
            images = torch.from_numpy(np.stack([view for view, _ in views]))[:, None].expand(-1, 3, -1, -1)
            loss = loss_of(detector, images, [torch.from_numpy(boxes) for _, boxes in views])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            step += 1
            follow(average, detector, min(0.998, step / (step + 20)))
            losses.append(loss.item())
            if done >= 1:
                break
        epoch += 1
        print(f"epoch {epoch}: {done:.0%} of the time, {px} px, loss {np.mean(losses):.3f}", flush=True)
    return average.eval()


def groups(detector: nn.Module) -> list[dict[str, object]]:
    """Decay for weights, none for norms and biases."""
    parameters = list(detector.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def follow(average: nn.Module, detector: nn.Module, keep: float) -> None:
    """One step of the running average, statistics of the norms included."""
    for ours, theirs in zip(average.state_dict().values(), detector.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - keep)
        else:
            ours.copy_(theirs)


def export(detector: Detector, size_px: int) -> bytes:
    """Write the file with torch's own exporter, as a customer would."""
    import io

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Exported(detector, size_px).eval(),
            (torch.zeros(1, 3, size_px, size_px),),
            buffer,  # type: ignore[arg-type]  # a buffer is documented, its type is not
            input_names=["images"],
            output_names=["output0"],
            opset_version=17,
            dynamo=False,
        )
    return named(buffer.getvalue())


def named(data: bytes) -> bytes:
    """Add the metadata that customers' exporters write: names of classes, stride, input size."""
    import onnx

    model = onnx.load_model_from_string(data)
    names = str(dict(enumerate(CLASSES)))
    onnx.helper.set_model_props(model, {"names": names, "stride": str(max(STRIDES)), "task": "detect"})
    return bytes(model.SerializeToString(deterministic=True))


# --- figures ------------------------------------------------------------------------------------------------------


def outputs_of(model: bytes, tensors: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Run the exported file on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for tensor in tensors:
        yield session.run(["output0"], {"images": tensor})[0]


def average_precision(found: list[Detections], truths: list[NDArray[np.float32]]) -> float:
    """Mean average precision at IoU 0.5 over the classes, area under the whole curve; boxes in the same pixels."""
    scores = []
    for label in range(len(CLASSES)):
        rows, count = [], 0
        for detections, truth in zip(found, truths, strict=True):
            wanted = truth[truth[:, 0] == label, 1:]
            count += len(wanted)
            mine = detections.classes == label
            rows += hits(detections.boxes[mine], detections.scores[mine], wanted)
        right = np.array([hit for _, hit in sorted(rows, key=lambda row: -row[0])], dtype=float)
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        scores.append(float((envelope * right).sum() / max(count, 1)))
    return float(np.mean(scores))


def hits(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], wanted: NDArray[np.float32]
) -> list[tuple[float, bool]]:
    """Of each detection, best first: its score, and whether it is the first to find a defect."""
    overlap = box_iou(boxes, wanted)
    rows, taken = [], np.zeros(len(wanted), bool)
    for at, score in enumerate(scores.tolist()):
        candidates = np.where(taken, 0, overlap[at])
        best = int(candidates.argmax()) if len(wanted) else -1
        hit = best >= 0 and candidates[best] >= 0.5
        if hit:
            taken[best] = True
        rows.append((score, bool(hit)))
    return rows


def figures(model: bytes, data: Path, size_px: int) -> dict[str, float]:
    """What it finds on `val`."""
    pictures, truths = read_split(data, "val")
    outputs = [decode_v8(o) for o in outputs_of(model, (tensor_of(p, size_px) for p in pictures))]
    ratio = size_px / pictures.shape[1]
    for truth in truths:
        truth[:, 1:] *= ratio
    return {
        "pictures": len(pictures),
        "map50": round(average_precision([detect(*pair, score=0.01) for pair in outputs], truths), 4),
        "detections_from_0.25": sum(len(detect(*pair, score=0.25)) for pair in outputs),
        "largest_score": round(max(float(scores.max()) for _, scores in outputs), 4),
    }


def main() -> int:
    """Read the arguments, train, export, and print the figures."""
    parser = argparse.ArgumentParser(prog="yolo", description="Train the bench's detector on NEU-DET.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "neu-det", metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="a multiple of 32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    detector = train(args.data, minutes=args.minutes, size_px=args.size, seed=args.seed)
    model = export(detector, args.size)
    args.out.write_bytes(model)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(figures(model, args.data, args.size)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
