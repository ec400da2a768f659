"""`defect-agent`: the program on the device."""

from __future__ import annotations

import sys

from agent import __version__
from agent.console import Program

__all__ = ["PROGRAM", "main"]

PROGRAM = Program(
    name="defect-agent",
    description="Judge every part that a camera sees, record each verdict, and tell the plant over MQTT.",
    commands=(
        "agent.cli.run",
        "agent.cli.check",
        "agent.cli.inspect",
        "agent.cli.bench",
        "agent.cli.build_engine",
        "agent.cli.accept",
        "agent.cli.journal",
        "agent.cli.lines",
        "agent.cli.bundle",
    ),
    version=__version__,
)


def main(argv: list[str] | None = None) -> int:
    """Run `defect-agent` and give its exit code."""
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
