"""`defect-opt`: the program on the workstation."""

from __future__ import annotations

import sys

from agent import __version__
from agent.console import Program

__all__ = ["PROGRAM", "main"]

PROGRAM = Program(
    name="defect-opt",
    description="From labelled images to a bundle that a device can be trusted with.",
    commands=(
        "optimize.cli.init",
        "optimize.cli.data",
        "optimize.cli.train",
        "optimize.cli.distill",
        "optimize.cli.prune",
        "optimize.cli.build",
        "optimize.cli.evaluate",
        "optimize.cli.compare",
        "optimize.cli.ladder",
        "optimize.cli.inspect",
        "optimize.cli.ledger",
    ),
    version=__version__,
)


def main(argv: list[str] | None = None) -> int:
    """Run `defect-opt` and give its exit code."""
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
