"""Running one command of a program in this process, as its command line would."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
from typing import Any

from agent.console import Program

__all__ = ["Ran", "run_command"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)


def run_command(module: str, *arguments: object) -> Ran:
    """Run `defect-opt NAME ARGUMENTS` for the command in `module`, such as `optimize.cli.build`."""
    name = importlib.import_module(module).NAME
    program = Program(name="defect-opt", description="for tests", commands=(module,), version="0")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = program.main([name, *map(str, arguments)])
        except SystemExit as leaving:  # argparse leaves so
            code = int(leaving.code or 0)
    return Ran(code=code, out=out.getvalue(), err=err.getvalue())
