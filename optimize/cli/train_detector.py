"""`defect-opt train --task detect`: from outlined defects to a float ONNX."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agent.console import DONE, print_json
from optimize.cli.bars import open_training
from optimize.cli.train_needs import refuse_foreign, refuse_missing_weights, require_torch
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.dataset import Dataset
    from optimize.detect.card import DetectorFiles
    from optimize.detect.config import DetectConfig
    from optimize.detect.result import DetectRecord, DetectResult

__all__ = ["BOX_FLAGS", "add_box_arguments", "run_detector"]

BOX_FLAGS: Mapping[str, Any] = MappingProxyType({"finest": 8, "tile": None, "tile_overlap": 0.2, "small_until": None})
"""What only detectors have, and what it is when nobody gave it."""

CLASSIFIER_FLAGS: Mapping[str, Any] = MappingProxyType(
    {
        "optimizer": "sgd",
        "unfreeze_every": 0,
        "freeze_norms": False,
        "stage_lr": 1.0,
        "attention": "none",
        "width": None,
        "pooling": "mean",
        "until": None,
        "loss": "cross-entropy",
        "focal_gamma": 2.0,
        "sampler": "shuffled",
        "masks": None,
        "mask_weight": 1.0,
        "window": None,
        "logit_adjust": 0.0,
        "mixup": None,
        "label_smoothing": 0.1,
        "cv": None,
        "ensemble": False,
    }
)
"""What only classifiers have."""


def add_box_arguments(add: Callable[..., object]) -> None:
    """Declare the arguments that only detectors have."""
    add("--finest", type=int, default=8, metavar="PX", help="stride of the finest level (8; 4 for tiny defects, 16)")
    add("--tile", type=int, metavar="PX", help="learn from, and look at, windows of so many pixels of large pictures")
    add("--tile-overlap", type=float, default=0.2, metavar="X", help="share of a tile that its neighbour has too (0.2)")
    add("--small-until", type=float, metavar="X", help="share of the schedule at three quarters of the size (0)")


def run_detector(args: argparse.Namespace) -> int:
    """Train, export, and say what came out; what a user can get wrong is looked at before torch is loaded."""
    refuse_foreign(args, CLASSIFIER_FLAGS, "is for a classifier", "leave it out, or leave out --task detect")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptimizeError("train: a detector trains in one process", hint="leave torchrun out; one GPU is used")
    from optimize.detect.parts import parts_of
    from optimize.networks.detectors import detector_card

    config = _config(args)
    refuse_missing_weights(config.weights, detector_card(config.arch).backbone)
    from optimize.box_readers import read_boxes

    dataset = read_boxes(args.data)
    if args.preview is not None:
        return _preview(config, dataset, args)
    parts_of(dataset, config.seed)  # a set that can't be trained on is told before torch is loaded
    return _train(config, dataset, args)


def _preview(config: DetectConfig, dataset: Dataset, args: argparse.Namespace) -> int:
    require_torch()
    from optimize.detect.preview import write_box_preview

    n = write_box_preview(config, dataset, args.preview)
    if args.json:
        print_json({"preview": str(args.preview), "pictures": n})
    else:
        print(f"{args.preview}  {n} pictures: each row an image as it is, then as training changes it")
    return DONE


def _train(config: DetectConfig, dataset: Dataset, args: argparse.Namespace) -> int:
    require_torch()
    from optimize.detect.card import report_from_detector, write_detector_card
    from optimize.detect.training import train_detector
    from optimize.ledger import detector_entry, record

    with open_training(functools.partial(_epoch_line, epochs=config.schedule)) as progress:
        try:
            result = train_detector(config, dataset, args.out, progress, workdir=args.workdir, is_fresh=args.fresh)
        except KeyboardInterrupt:
            print("train: stopped; the same command without --fresh goes on after the last epoch", file=sys.stderr)
            raise
    written = write_detector_card(result)
    record(detector_entry(result, args.data), args.ledger)
    if args.json:
        print_json(report_from_detector(result))
    else:
        print("\n".join(_lines(result, written)))
    return DONE


def _config(args: argparse.Namespace) -> DetectConfig:
    from optimize.augment import augmentation_from_text
    from optimize.detect.config import BOX_AUGMENTATION, DetectConfig

    given = {
        "arch": args.arch,
        "batch": args.batch,
        "weight_decay": args.weight_decay,
        "average": args.ema,
        "class_weights": args.class_weights,
        "clip": args.clip_grad,
        "small_until": args.small_until,
    }
    return DetectConfig(
        epochs=args.epochs,
        lr=args.lr,
        size_px=args.size,
        seed=args.seed,
        minutes=args.minutes,
        threads=args.threads,
        patience=args.patience,
        augmentation=augmentation_from_text(
            args.augment, is_upright=args.upright, is_turned=not args.no_turns, default=BOX_AUGMENTATION
        ),
        resize="letterbox" if args.letterbox else "stretch",
        weights=args.weights if args.weights in {None, "imagenet"} else Path(args.weights),
        freeze_until=args.freeze_until,
        features_lr=args.features_lr,
        finest=args.finest,
        tile_px=args.tile,
        tile_overlap=args.tile_overlap,
        device=args.device,
        tensorboard=args.tensorboard,
        **{key: value for key, value in given.items() if value is not None},
    )


def _epoch_line(record: DetectRecord, epochs: int) -> str:
    return (
        f"epoch {record.epoch:>3}/{epochs}  {record.size_px} px  loss {record.train_loss:.3f}  "
        f"val: mAP50 {record.map50:.2%}, mAP50-95 {record.map50_95:.2%}  {record.seconds:.1f} s"
    )


def _lines(result: DetectResult, written: DetectorFiles) -> Iterator[str]:
    val = result.val
    why = {"finished": "to the end", "patience": "no better val result came", "minutes": "the time was up"}
    if result.resumed_at:
        yield f"went on after epoch {result.resumed_at} (--fresh starts anew)"
    yield f"{result.config.arch}: {len(result.history)} epochs in {result.seconds / 60:.1f} min ({why[result.stopped]})"
    yield f"kept epoch {result.best_epoch}: on val mAP50 {val.map50:.2%}, mAP50-95 {val.map50_95:.2%}"
    yield f"  {'AP50 on val (rarest first)':28} {'':>4}  found        boxes in train"
    for i in sorted(range(len(result.classes)), key=lambda i: result.counts[i]):
        name = result.classes[i]
        ap = val.ap50[name]
        found = "no box" if ap is None else f"{ap:>8.2%}  of {val.support[name]:<4}"
        yield f"  {name:24.24} {found:22} {result.counts[i]:>8}"
    yield f"{result.empty} training images without a box (good parts)"
    if result.origin is not None:
        yield f"started from {result.origin.file}, sha256 {result.origin.sha256[:16]}…"
    for notice in result.notices:
        yield f"note: {notice}"
    yield f"ONNX Runtime and torch differ by {result.parity.max_abs:.1e} at most on {result.parity.n} images"
    yield f"{result.onnx}  {result.size_bytes / 1e6:.2f} MB, sha256 {result.sha256[:16]}…"
    yield f"{written.curves}  curves and AP by class;  {written.card}  recipe and data"
    yield ""
    yield f"Next: defect-opt build --int8 --model {result.onnx} --data DIR --calib DIR"
