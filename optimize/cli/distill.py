"""`defect-opt distill`: from a teacher to a small student."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.console import DONE, print_json
from optimize.cli.bars import open_training
from optimize.cli.train import (
    add_loss_arguments,
    add_network_arguments,
    add_regularization_arguments,
    add_run_arguments,
    config_from_arguments,
    epoch_line,
    require_torch,
    student_lines,
)
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.card import CardFiles
    from optimize.distill import DistillResult
    from optimize.train_config import TrainConfig

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "distill"
HELP = "Teach a small classifier what a large one knows."
EPILOG = """examples:
  defect-opt distill --teacher large.onnx --student mobilenetv2 --data parts/ --out small.onnx
  defect-opt distill --teacher cv/ensemble.onnx --student tiny --data NEU --unlabelled line/ --out tiny.onnx --json
  defect-opt distill --teacher resnet50.onnx vgg16.onnx --student resnet18 --data NEU --out small.onnx
  defect-opt distill --teacher steel-1.0.0.defect --student tiny --unlabelled line/ --out tiny.onnx

The same training run as `defect-opt train`, with another lesson: the student learns to say what its teacher says, also
how sure it is and what it would take a part for instead (softened by --temperature), and where --label-weight is not 0
what the labels say. --unlabelled adds pictures that nobody labelled, such as fresh ones from the line; with these alone
the best epoch is chosen by agreement with the teacher. test is only opened to see that no unlabelled picture is one of
it, by bytes or by pixels, which is refused. Several teachers are averaged. Classes are matched by name.

The same command gives the same file, and one that was stopped goes on when it is given again. Beside the model lie
MODEL.onnx.json (recipe, teacher's sha256, figures of both), MODEL.onnx.png and MODEL.onnx.train/ (the checkpoint).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--teacher", type=Path, nargs="+", metavar="T", help="who teaches: float ONNX files, or bundles; their mean")
    add("--student", dest="arch", metavar="ARCH", help="network to train (`defect-opt train --arch list` shows them)")
    add("--data", type=Path, metavar="DIR", help="labelled images: a folder per class, or splits.csv")
    add("--unlabelled", type=Path, metavar="DIR", help="more pictures; labels, if any, count for nothing")
    add("--temperature", type=float, default=2.0, metavar="T", help="softens what both say before comparing (2)")
    add(
        "--label-weight",
        type=float,
        default=0.1,
        metavar="X",
        help="share of the labels; the teacher's is the rest (0.1)",
    )
    add(
        "--feature-weight",
        type=float,
        default=0.0,
        metavar="X",
        help="imitate the teacher's features as well (0; try 5)",
    )
    add_run_arguments(add)
    add_network_arguments(parser.add_argument_group("network and published weights").add_argument)
    add_loss_arguments(parser.add_argument_group("how labels teach").add_argument)
    add_regularization_arguments(parser.add_argument_group("augmentation and regularization").add_argument)
    # What `train` has besides: a teacher knows no masks.
    parser.set_defaults(masks=None, mask_weight=1.0, window=None)


def run(args: argparse.Namespace) -> int:
    """Train, export, and say what came out."""
    if not args.teacher:
        raise OptimizeError(
            "distill: --teacher is missing", hint="--teacher MODEL.onnx, as `defect-opt train` wrote it"
        )
    if args.arch is None:
        raise OptimizeError(
            "distill: --student is missing", hint="--student mobilenetv2; `defect-opt train --arch list` shows them all"
        )
    if args.data is None and args.unlabelled is None:
        raise OptimizeError("distill: got no images", hint="--data DIR with labels, --unlabelled DIR, or both")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptimizeError("distill: a student learns in one process", hint="leave torchrun out; one GPU is used")
    require_torch()
    config = config_from_arguments(args)
    result = _distilled(config, args)
    return _told(result, args)


def _distilled(config: TrainConfig, args: argparse.Namespace) -> DistillResult:
    import torch

    from optimize.dataset import read_dataset
    from optimize.distill import Shares, Source, distill, open_teacher, read_unlabelled
    from optimize.pretrained import scratch_notice

    shares = Shares(temperature=args.temperature, label_weight=args.label_weight, feature_weight=args.feature_weight)
    teacher = open_teacher(args.teacher, threads=args.threads or torch.get_num_threads())
    source = Source(
        labelled=None if args.data is None else read_dataset(args.data),
        unlabelled=None if args.unlabelled is None else read_unlabelled(args.unlabelled),
    )
    for notice in scratch_notice(config):
        print(f"note: {notice}", file=sys.stderr)
    with open_training(functools.partial(epoch_line, epochs=config.schedule)) as progress:
        try:
            return distill(
                config, teacher, shares, source, args.out, progress, workdir=args.workdir, is_fresh=args.fresh
            )
        except KeyboardInterrupt:
            print("distill: stopped; the same command without --fresh goes on after the last epoch", file=sys.stderr)
            raise


def _told(result: DistillResult, args: argparse.Namespace) -> int:
    from optimize.card import report_from_result, write_card
    from optimize.distill import distill_entry
    from optimize.ledger import record

    written = write_card(result.student, result.report())
    record(distill_entry(result, args.data, args.unlabelled), args.ledger)
    if args.json:
        print_json({**report_from_result(result.student), **result.report()})
    else:
        print("\n".join(_lines(result, written)))
    return DONE


def _lines(result: DistillResult, written: CardFiles) -> Iterator[str]:
    compared, student = result.compared, result.student
    if compared.teacher is None:
        yield "the figures on val are agreement with the teacher: no label was read"
    yield from student_lines(student, written)
    if compared.teacher is not None:
        right = f"{compared.teacher.accuracy:.2%} right, the student {student.val.accuracy:.2%}"
        yield f"teacher {result.teacher.name}: on val {right}"
    yield f"both say the same of {compared.same} of {compared.n} images of val ({compared.same / compared.n:.2%})"
    for notice in result.notices[len(student.notices) :]:
        yield f"note: {notice}"
    yield ""
    yield f"Next: defect-opt build --int8 --model {student.onnx} --data DIR --calib DIR"
