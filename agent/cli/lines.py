"""`defect-agent lines`: set the electrical result lines inactive, when the process that held them has died."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.console import DONE

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "lines"
HELP = "Set a station's electrical result lines inactive; systemd does it when a station ends."
EPILOG = """examples:
  defect-agent lines --off --config /etc/defect-agent/line3.yaml

Some GPIO drivers leave a line as it was when a process is killed, an `ok` too. Lines that a living station holds are
left alone (exit 2). A station without electrical lines has nothing to do (exit 0).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the station's YAML file")
    parser.add_argument("--off", action="store_true", required=True, help="set them inactive")


def run(args: argparse.Namespace) -> int:
    """Set them inactive and say so."""
    from agent.config import read_config
    from agent.outputs.gpio import set_inactive

    gpio = read_config(args.config).outputs.gpio
    if gpio is None:
        print("this station has no electrical result lines")
        return DONE
    set_inactive(gpio)
    print(f"{gpio.chip}: the result lines are inactive")
    return DONE
