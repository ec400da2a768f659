"""The line: its rate beside a bare inference loop, latency, memory, journal, start, outage; Model API beside it.

Frames are in memory; behind them is the real agent: verdicts durable in SQLite on the disk of `--work`, MQTT with QoS 1
to a real mosquitto (apt install mosquitto), all acknowledged. Models of about 5 ms and 1 ms are made for this machine.
OpenVINO Model API gets an environment of its own in the work folder (pip: openvino, openvino-model-api; 0.5 GB);
offline its rows say why they are absent. About half an hour on two cores, most of it a soak of a million parts. All
ratios are of rounds in turn; on a machine with other work they are those of its other work: `waited_for_a_core` says
for what share of the time the line was ready and had none.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.bench_frame import Bench  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench_quantize.figures import Figure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LineBench(Bench):
    """A bench that trains nothing and needs no data."""

    def arguments(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the command line; `parts` is a set, `size_px` width and height."""
        parser = argparse.ArgumentParser(
            prog=f"tools/bench {self.name}", description=self.text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = parser.add_argument
        add("--json", action="store_true", help="one JSON document on standard output")
        add("--quick", action="store_true", help=f"{self.quick}: does it run? (figures mean little)")
        add("--work", type=Path, default=ROOT / ".bench" / self.name, metavar="DIR", help="on the disk to be measured")
        add("--parts", default=",".join(self.parts), metavar="A,B", help=f"which of {', '.join(self.parts)}")
        add("--one-camera", action="store_true", help="rate: leave the four cameras out, which no check asks for")
        add("--rounds", type=int, default=7, metavar="N", help="rounds of every ratio (7)")
        add(
            "--frame",
            default="160x160",
            metavar="WxH",
            help="pixels of a frame (160x160, the models' input)",
        )
        add("--soak", type=int, default=1_000_000, metavar="N", help="parts of the soak (1,000,000)")
        add("--soak-s", type=float, default=900.0, metavar="S", help="longest time of the soak in seconds (900)")
        add("--save", action="store_true", help="also write tools/bench_results/DATE-line.json and its plot")
        found = parser.parse_args(words)
        found.parts, found.threads = frozenset(found.parts.split(",")), 1
        if strange := sorted(found.parts - set(self.parts)):
            parser.error(f"unknown parts: {', '.join(strange)}")
        width, _, height = found.frame.partition("x")
        if not (width.isdigit() and height.isdigit()):
            parser.error(f"--frame: got {found.frame}, expected the form 640x480")
        found.size_px = int(width), int(height)
        found.work = found.work.absolute() / "quick" if found.quick else found.work.absolute()
        return found


BENCH = LineBench(
    name="line",
    text=__doc__ or "",
    parts=("rate", "latency", "memory", "soak", "journal", "start", "outage", "peers"),
    bounds={
        "line_ratio_5ms": (">=", 0.95),
        "line_ratio_1ms": (">=", 0.85),
        "added_ms_p99": ("<=", 2.0),
        "rss_ratio": ("<=", 1.4),
        "rss_slope_kb_per_1000": ("<=", 1.0),
        "fds_grown": ("<=", 0),
        "journal_rate": (">=", 5_000),
        "lone_durable_first": (">=", 1.0),
        "start_s": ("<=", 1.5),
        "vs_model_api_rate": (">=", 1.0),
        "vs_model_api_rate_int8": (">=", 1.2),
        "outage_lost": ("<=", 0),
        "outage_late": ("<=", 0),
    },
    sets="",
    quick="short rounds, 20,000 parts of soak, no peers",
    plots=("pace",),
)
"""What issue 9 asks. A slope of 1 kB per 1,000 parts is 1 MB in a million."""


def _measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    from tools.bench_line.measuring import measured

    return measured(args)


if __name__ == "__main__":
    sys.exit(BENCH.run(None, _measured))
