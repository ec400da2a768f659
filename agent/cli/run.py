"""`defect-agent run`: the line, until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from agent.console import DONE, FAILED, number, print_json

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "run"
HELP = "Judge every part, record each verdict and publish it, until SIGTERM or the source's end."
EPILOG = """examples:
  defect-agent run --config /etc/defect-agent/line3.yaml
  defect-agent run --config configs/stations/folder-replay.yaml --max-parts 40
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the station's YAML file")
    parser.add_argument("--max-parts", type=number(int, 1, 1e12), metavar="N", help="leave after N parts")
    parser.add_argument("--json", action="store_true", help="print one JSON summary at the end; the log goes to stderr")


def run(args: argparse.Namespace) -> int:
    """Run the station; SIGTERM and SIGINT make it finish its part, drain and leave."""
    from agent.app import run_station
    from agent.config import read_config
    from agent.log import start_logging

    config = read_config(args.config)
    start_logging(config.log, stream=sys.stderr if args.json else sys.stdout)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    summary = run_station(config, stop=stop, max_parts=args.max_parts)
    if args.json:
        print_json(
            {
                "judged": summary.judged,
                "by_decision": summary.by_decision,
                "unsent": summary.unsent,
                "stopped": summary.stopped,
            }
        )
    return DONE if summary.stopped is None else FAILED
