"""How many of the bench detector's float detections an INT8 graph of it keeps, whoever made that graph.

    python tools/bench_models/yolo_kept.py yolo.onnx int8.onnx --data ../shared/data/neu-det --split val

Both graphs may be the customer's export (`images` (1, 3, S, S) float from 0 to 1, one output (1, 4 + C, N)) or the
adopted form (one uint8 (1, S, S, 3) RGB input, outputs `boxes` (1, N, 4) and `scores` (1, N, C)); boxes are centre,
width and height in pixels in both. No torch.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from optimize.quantize.kept import KeptShare, decode_v8, kept_share  # noqa: E402

__all__ = ["boxes_and_scores", "detections_kept", "pictures", "tensor_of"]

SIZE_PX = 224


def detections_kept(
    float_model: bytes,
    int8_model: bytes,
    images: Sequence[NDArray[np.uint8]],
    *,
    score: float = 0.25,
    optimized: bool = True,
) -> KeptShare:
    """Run both graphs on the same pictures and compare what they find.

    Args:
        float_model: ONNX bytes.
        int8_model: the same.
        images: each (S, S, 3) uint8 RGB, of the models' size.
        score: detections are from here up.
        optimized: False runs the INT8 graph as it is written, as the reference for TensorRT.
    """
    ours = boxes_and_scores(float_model, images)
    theirs = boxes_and_scores(int8_model, images, optimized=optimized)
    return kept_share(ours, theirs, score=score)


def boxes_and_scores(
    model: bytes, images: Iterable[NDArray[np.uint8]], *, optimized: bool = True
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Corners (N, 4) in pixels and scores (N, C) of each picture; one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    names = [value.name for value in session.get_outputs()]
    for image in images:
        outputs = dict(zip(names, session.run(None, {source.name: tensor_of(image, source.type)}), strict=True))
        yield decode_v8(_joined(outputs))


def tensor_of(image: NDArray[np.uint8], kind: str = "tensor(float)") -> NDArray[Any]:
    """A picture (S, S, 3) as the graph wants it: bytes as they are, or (1, 3, S, S) float32 from 0 to 1."""
    if kind == "tensor(uint8)":
        return image[None]
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def _joined(outputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    joined: NDArray[Any] = np.concatenate([outputs["boxes"], outputs["scores"]], axis=2).transpose(0, 2, 1)
    return joined


def pictures(data: Path, split: str, size_px: int = SIZE_PX) -> list[NDArray[np.uint8]]:
    """A split of NEU-DET, each (S, S, 3) uint8 RGB, stretched."""
    import cv2

    with (data / "splits.csv").open(encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["split"] == split]
    read = (np.asarray(cv2.imread(str(data / name), cv2.IMREAD_COLOR), np.uint8)[:, :, ::-1] for name in names)
    fitted = (cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_LINEAR) for image in read)
    return [np.asarray(image, np.uint8) for image in fitted]


def main() -> int:
    """Print what is kept as one JSON object."""
    parser = argparse.ArgumentParser(prog="yolo_kept", description="Detections that an INT8 detector keeps.")
    parser.add_argument("float_model", type=Path)
    parser.add_argument("int8_model", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "neu-det", metavar="DIR")
    parser.add_argument("--split", default="val")
    parser.add_argument("--score", type=float, default=0.25)
    parser.add_argument("--unoptimized", action="store_true", help="run the INT8 graph without graph optimizations")
    args = parser.parse_args()
    found = detections_kept(
        args.float_model.read_bytes(),
        args.int8_model.read_bytes(),
        pictures(args.data, args.split),
        score=args.score,
        optimized=not args.unoptimized,
    )
    counts = {"total": found.total, "kept": found.kept, "swapped": found.swapped, "invented": found.invented}
    print(json.dumps(counts | {"share": round(found.share, 4), "share_given": round(found.share_given, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
