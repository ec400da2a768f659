"""What both programs do with their command line: exit codes, errors in one sentence, JSON on standard output.

Exit codes: 0 done, 1 a gate or check failed (the work itself ran), 2 the user's mistake, 70 our bug (sysexits.h
EX_SOFTWARE), 130 interrupted. `--json` prints exactly one JSON document on standard output; progress and logs go to
standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from agent.errors import AgentError, NotDurable

__all__ = ["BUG", "DONE", "FAILED", "MISTAKE", "Parser", "Program", "number", "print_json", "run_program"]

EXIT_CODES = "Exit codes: 0 done, 1 a gate or check failed, 2 your mistake, 70 our bug, 130 interrupted."
T = TypeVar("T", int, float)

DONE, FAILED, MISTAKE, BUG, INTERRUPTED = 0, 1, 2, 70, 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help keeps examples as written, and whose errors are one sentence and a hint."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and leave with 2."""
        self.exit(MISTAKE, f"{self.prog}: {message}\nTry: {self.prog} --help\n")


def run_program(parser: Parser, run: Callable[[argparse.Namespace], int], argv: list[str] | None = None) -> int:
    """Parse, run, and turn whatever happens into an exit code.

    Args:
        parser: the program's parser.
        run: does the work and gives the exit code.
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0, 1, 2, 70 or 130 as in the module's docstring.
    """
    args = parser.parse_args(argv)
    try:
        code = run(args)
        sys.stdout.flush()
    except AgentError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return FAILED if isinstance(error, NotDurable) else MISTAKE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:
        traceback.print_exc()
        print(f"{parser.prog}: this is our bug; please report it with the lines above", file=sys.stderr)
        return BUG
    return code


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """One command line: a name, and one module per command.

    Attributes:
        name: as typed.
        description: one sentence.
        commands: dotted module names; each has `NAME`, `HELP`, `EPILOG` (examples), `add_arguments(parser)` and
            `run(args) -> int`, and imports nothing heavy at its head.
        version: for `--version`.
    """

    name: str
    description: str
    commands: tuple[str, ...]
    version: str

    def main(self, argv: list[str] | None = None) -> int:
        """Run the command that the arguments name, and give its exit code."""
        try:
            return self._main(argv)
        except KeyboardInterrupt:  # while modules are still loading
            print(f"{self.name}: interrupted", file=sys.stderr)
            return INTERRUPTED

    def _main(self, argv: list[str] | None) -> int:
        epilog = f"`{self.name} COMMAND --help` shows examples. {EXIT_CODES}"
        parser = Parser(prog=self.name, description=self.description, epilog=epilog)
        parser.add_argument("--version", action="version", version=f"%(prog)s {self.version}")
        subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
        for name in self.commands:
            module = importlib.import_module(name)
            sub = subparsers.add_parser(
                module.NAME, help=module.HELP, description=module.HELP, epilog=getattr(module, "EPILOG", "")
            )
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
        return run_program(parser, lambda args: int(args.run(args)), argv)


def number(kind: type[T], low: float, high: float) -> Callable[[str], T]:
    """A type for `add_argument` that keeps bounds: `type=number(int, 1, 256)`."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {words} from {low:g} to {high:g}")
        return value

    return parse


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
