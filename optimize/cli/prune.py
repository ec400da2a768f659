"""`defect-opt prune`: from a trained ONNX file to one of fewer multiplications."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, number, print_json
from optimize.cli.train_needs import require_torch
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.prune.files import PruneResult

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "prune"
HELP = "Take channels out of a trained network, and recover it on pictures that nobody labelled."
EPILOG = """examples:
  defect-opt prune model.onnx --calib calib/ --out small.onnx
  defect-opt prune model.onnx --calib NEU --keep-macs 0.5 --rounds 2 --recover-epochs 30 --out small.onnx --json
  defect-opt prune yolo.onnx --calib NEU --importance taylor --out small.onnx
  defect-opt prune model.onnx --calib calib/ --keep-macs 1 --sparsity 2:4 --out sparse.onnx     # for TensorRT

The model is a file of `defect-opt train`, `distill` or `prune`, with its checkpoint (MODEL.onnx.train/) beside it. What
it was before is its teacher: labels are not looked at. Where a folder has splits, --calib takes its calib split; the
test split is never opened but to see that no picture of it is used. Beside OUT lies its own checkpoint, so that it can
be pruned further. Half the multiplications are rarely twice as fast: both files are timed in turn, here.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("onnx", type=Path, nargs="?", metavar="MODEL.onnx", help="the trained network")
    add("--model", type=Path, metavar="MODEL.onnx", help="the same, as a flag")
    add("--keep-macs", type=number(float, 0.01, 1), default=0.5, metavar="X", help="share of multiplications (0.5)")
    add("--calib", type=Path, metavar="DIR", help="pictures from the line, 100 to 500; labels are not needed")
    add("--data", type=Path, metavar="DIR", help="labelled images, to see that no test picture is among --calib")
    add("--out", type=Path, metavar="OUT.onnx", help="the ONNX file to write")
    add(
        "--importance",
        default="auto",
        choices=("auto", "taylor", "norm", "activation"),
        help="which channels go: by curvature, norm factors or activations; auto tries all and measures",
    )
    add("--rounds", type=number(int, 1, 20), default=1, metavar="N", help="cuts, each recovered (1)")
    add("--recover-epochs", type=number(int, 0, 10_000), metavar="N", help="passes behind each cut (1500 steps' worth)")
    add("--lr", type=number(float, 1e-8, 100), metavar="X", help="highest learning rate (0.02; a detector: 0.001)")
    add("--sparsity", choices=("2:4",), help="zero two of every four weights too: TensorRT, Ampere and later")
    add("--images", type=number(int, 8, 100_000), default=500, metavar="N", help="pictures at most (500)")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, metavar="N", help="which pictures, how shown (0)")
    add("--threads", type=number(int, 0, 1024), default=0, metavar="N", help="CPU threads (0: all cores)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where it is recovered (auto)")
    add("--ledger", type=Path, metavar="FILE", help="where the run is noted (defect-opt.ledger.jsonl)")
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prune, recover, export, and say what it brought."""
    onnx, calib, out = _given(args)
    require_torch("pruning")
    from optimize.progress import open_progress
    from optimize.prune.files import PruneConfig, prune_file
    from optimize.prune.graph import torch_pruning_library

    torch_pruning_library()
    config = PruneConfig(
        keep_macs=args.keep_macs,
        importance=args.importance,
        rounds=args.rounds,
        recover_epochs=args.recover_epochs,
        lr=args.lr,
        is_sparse=args.sparsity is not None,
        images=args.images,
        seed=args.seed,
        threads=args.threads,
        device=args.device,
    )
    with open_progress() as progress:
        result = prune_file(onnx, calib, out, config, data=args.data, progress=progress)
    _note(result, calib, args.ledger)
    if args.json:
        print_json(result.to_json())
    else:
        print("\n".join(_lines(result)))
    return DONE


def _given(args: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Model, pictures and what to write, or which of them is missing."""
    onnx = args.onnx or args.model
    wanted: list[tuple[str, Any]] = [("MODEL.onnx", onnx), ("--calib DIR", args.calib), ("--out OUT.onnx", args.out)]
    missing = [name for name, value in wanted if value is None]
    if missing:
        raise OptimizeError(
            f"prune: {' and '.join(missing)} missing", hint="defect-opt prune MODEL.onnx --calib DIR --out OUT.onnx"
        )
    if args.onnx is not None and args.model is not None:
        raise OptimizeError(f"prune: got two models, {args.onnx} and {args.model}", hint="leave --model out")
    return onnx, args.calib, args.out


def _note(result: PruneResult, calib: Path, ledger: Path | None) -> None:
    from optimize.ledger import DataUse, Entry, FileUse, record

    pruned = result.pruned
    entry = Entry(
        command="prune",
        data=(DataUse(path=str(calib), sha256=result.data_sha256, splits={"calib": result.pictures}),),
        inputs=(FileUse(path=str(result.source), sha256=result.source_sha256),),
        seed=result.config.seed,
        outputs=(FileUse(path=str(result.saved.onnx), sha256=result.saved.sha256),),
        figures={
            "importance": pruned.importance,
            "macs_before": pruned.macs_before,
            "macs_after": pruned.macs_after,
            "agreement": result.agreement.share,
            "divergence": result.agreement.divergence,
            "latency_ms": dict(result.latency_ms),
        },
        model=result.arch,
    )
    record(entry, ledger)


def _lines(result: PruneResult) -> Iterator[str]:
    pruned, saved, found = result.pruned, result.saved, result.agreement
    for name, tried in pruned.tried.items():
        chosen = "  <- chosen" if name == pruned.importance else ""
        yield f"  by {name:10} agrees on {tried.share:7.2%}, divergence {tried.divergence:.4f}{chosen}"
    for i, each in enumerate(pruned.rounds, start=1):
        after = "" if each.recovered is None else f", recovered {each.recovered.share:.2%}"
        yield f"round {i}: {each.macs / 1e6:.1f} million multiplications; agrees on {each.cut.share:.2%}{after}"
    yield f"agrees with {result.source.name} on {found.share:.2%} of {found.n} pictures, without a label"
    yield ""
    yield f"{'':18}{'before':>12}{'after':>12}"
    yield _row("multiplications", pruned.macs_before / 1e6, pruned.macs_after / 1e6, "M")
    yield _row("weights", pruned.parameters_before / 1e6, pruned.parameters_after / 1e6, "M")
    yield _row("size", result.source_bytes / 1e6, saved.size_bytes / 1e6, "MB")
    yield _row("latency, median", result.latency_ms["before"], result.latency_ms["after"], "ms")
    yield f"measured in turn on {result.machine}: {result.speedup:.2f} times as fast"
    if result.sparsity:
        able = [layer for layer in result.sparsity if layer.has_pattern]
        yield f"2:4 pattern in {len(able)} of {len(result.sparsity)} layers"
        yield from (f"  {layer.layer}: no, {layer.why}" for layer in result.sparsity if not layer.has_pattern)
    for warning in result.warnings:
        yield f"warning: {warning}"
    yield f"ONNX Runtime and torch differ by {saved.parity.max_abs:.1e} at most on {saved.parity.n} images"
    yield f"{saved.onnx}  {saved.size_bytes / 1e6:.2f} MB, sha256 {saved.sha256[:16]}…"
    yield ""
    yield f"Next: defect-opt build --int8 --model {saved.onnx} --data DIR --calib DIR"


def _row(name: str, before: float, after: float, unit: str) -> str:
    return f"{name:18}{before:>9.2f} {unit:2}{after:>9.2f} {unit:2}   {after / before:.2f} of it"
