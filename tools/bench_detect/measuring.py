"""What the detection bench measures, part by part; loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.box_readers import read_boxes
from optimize.compare import CompareOptions, compare_bundles, draw_comparison
from optimize.files import write_atomically
from tools.bench_detect.decoding import decode_figure
from tools.bench_detect.planted import planted_pair, planted_verdict
from tools.bench_detect.published import PUBLISHED, WARNING
from tools.bench_detect.recipes import RECIPES, Trained, trained
from tools.bench_detect.scoring import CRITICAL, built, drop, kept, scored, without_floor
from tools.bench_frame import lite0_wheel, say
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from agent.bundle import Bundle
    from optimize.dataset import Dataset

__all__ = ["measured"]


def measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Train or take what was trained, build, judge, compare: the checks by name, and the rows of the tables.

    Args:
        args: what `Bench.arguments` gave.

    Raises:
        AgentError: the images or the weights are not there, or a step can't be done.
    """
    checks: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    if args.parts - {"decode"}:
        root = args.data / "neu-det"
        dataset = read_boxes(root)
        bundles: dict[str, Bundle] = {}
        for name in RECIPES:
            model = trained(name, dataset, lite0_wheel(args), args.work, threads=args.threads, is_quick=args.quick)
            say(f"{name}: building the INT8 bundle")
            bundles[name] = built(name, model.onnx, root, dataset.classes, args.work)
            if "trained" in args.parts:
                rows.append(_judged(model, bundles[name], dataset.take("test"), args.work, checks))
        rows += [{"part": "published", **row, "warning": WARNING} for row in PUBLISHED] if rows else []
        rows += _compared(args, bundles, dataset)
    if "decode" in args.parts:
        checks["decode_ms"], row = decode_figure()
        rows.append(row)
    return checks, rows


def _judged(model: Trained, bundle: Bundle, test: Dataset, work: Path, checks: dict[str, Figure]) -> dict[str, Any]:
    """One detector's row; its checks go into `checks`."""
    say(f"{model.name}: judging {len(test)} test pictures with both graphs")
    bare = without_floor(bundle, work)
    fp32, int8 = (scored(bare, graph, test) for graph in ("fp32", "cpu"))
    lost = drop(fp32, int8, len(bundle.manifest.classes))
    share = kept(bundle, test)
    checks[f"{model.name}_map50"] = fp32.map50
    checks[f"{model.name}_int8_drop"] = lost
    checks[f"{model.name}_kept"] = Figure(value=share.share_given, low=None, high=None, why=_kept_why(share))
    return {
        "part": "detectors",
        "model": model.name,
        "arch": model.arch,
        "epochs": model.epochs,
        "minutes": round(model.minutes, 1),
        "cpu_minutes": round(model.cpu_minutes, 1),
        "val_map50": round(model.val_map50, 4),
        "test_map50": round(fp32.map50.value or 0, 4),
        "test_map50_95": round(fp32.map50_95, 4),
        "int8_map50": round(int8.map50.value or 0, 4),
        "int8_map50_95": round(int8.map50_95, 4),
        "unjudged": fp32.unjudged + int8.unjudged,
        "ap50": {name: None if ap is None else round(ap, 4) for name, ap in fp32.ap50.items()},
        "int8_ap50": {name: None if ap is None else round(ap, 4) for name, ap in int8.ap50.items()},
        "kept": {"total": share.total, "kept": share.kept, "swapped": share.swapped, "invented": share.invented},
        "cpu_graph": bundle.manifest.cpu_graph,
        "int8_bytes": len(bundle.graph("cpu")),
    }


def _kept_why(share: Any) -> str:
    return (
        f"{share.total} float detections from 0.25: {share.kept} are detections of INT8 too ({share.share:.3f}), of "
        f"{share.swapped} more INT8 gives box, class and score, but suppression chose a neighbour"
    )


def _compared(args: argparse.Namespace, bundles: dict[str, Bundle], dataset: Dataset) -> list[dict[str, Any]]:
    rows = []
    if "compare" in args.parts:
        say("comparing the two INT8 bundles")
        found = compare_bundles(tuple(bundles.values()), dataset, CompareOptions())
        write_atomically(args.work / "compare.png", draw_comparison(found))
        rows.append({"part": "compare", "sentence": found.choice.reason, **found.to_json()})
    if "planted" in args.parts:
        say("comparing the planted pair")
        found = planted_verdict(planted_pair(bundles["yolo"], CRITICAL, args.work), dataset)
        write_atomically(args.work / "planted.png", draw_comparison(found))
        rows.append({"part": "planted", "sentence": found.choice.reason, **found.to_json()})
    return rows
