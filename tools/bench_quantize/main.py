"""INT8: ours beside float, ONNX Runtime's and NNCF's, on 20 views of each NEU test image.

Needs NEU-DET (`--data`) and four float nets: resnet18.onnx, mobilenetv2.onnx, lite0.onnx, yolo.onnx. They are looked
for in `--models`; without it they are trained into the work folder (two hours on two cores, PyTorch). NNCF gets an
environment of its own in the work folder (about 300 MB). Everything is kept there: a run that was stopped goes on.

Two arithmetics are measured. `here` is ONNX Runtime with all optimizations on this CPU. `exact` is Q/DQ computed with
optimizations off, which is what a CPU with VNNI or an ARM core gives. Without VNNI 8-bit weights saturate here, so
others' graphs are also made with 7 bits for `here`, and the checks are of `exact`; with VNNI the checks are of `here`.
The TensorRT graph is always scored in `exact`. The best of theirs is the best in the same arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from agent.errors import AgentError  # noqa: E402
from optimize.machine import describe, int8_flags  # noqa: E402
from optimize.quantize import read_model  # noqa: E402
from tools.bench_quantize import theirs  # noqa: E402
from tools.bench_quantize.accuracy import MODES, NetScores, score_net  # noqa: E402
from tools.bench_quantize.candidates import Candidate, Maker, Peers  # noqa: E402
from tools.bench_quantize.checks import accuracy_checks, speed_checks  # noqa: E402
from tools.bench_quantize.extras import deterministic_check, hostile_checks, trt_check, yolo_checks  # noqa: E402
from tools.bench_quantize.figures import Figure, absent  # noqa: E402
from tools.bench_quantize.nets import CLASSIFIERS, find_nets  # noqa: E402
from tools.bench_quantize.report import document_of, save, tables  # noqa: E402
from tools.bench_quantize.scoring import Scorer  # noqa: E402
from tools.bench_quantize.speed import latencies_ms  # noqa: E402
from tools.bench_quantize.views import VIEWS_EACH, Pictures, Source, read_split, views_of  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench_quantize.sessions import Mode

PARTS = ("accuracy", "speed", "hostile", "yolo", "trt", "deterministic")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--quick", action="store_true", help="24 views, 24 calibration pictures, no training, no NNCF: does it run?")
    add("--models", type=Path, metavar="DIR", help="folder with the four float nets")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data" / "neu-det", metavar="DIR", help="NEU-DET")
    add("--work", type=Path, default=ROOT / ".bench", metavar="DIR", help="what is kept between runs (.bench)")
    add("--nncf", type=Path, metavar="DIR", help="NNCF's environment (WORK/nncf, made when absent)")
    add("--no-nncf", action="store_true", help="leave NNCF out")
    add("--parts", default=",".join(PARTS), metavar="A,B", help=f"which of {', '.join(PARTS)}")
    add("--nets", default=",".join(CLASSIFIERS), metavar="A,B", help=f"which of {', '.join(CLASSIFIERS)}")
    add("--views", type=int, default=VIEWS_EACH, metavar="N", help=f"views of each test image ({VIEWS_EACH})")
    add("--rounds", type=int, default=30, metavar="N", help="rounds of the speed measurement (30)")
    add(
        "--arithmetic",
        choices=("both", "checks"),
        default="both",
        help="score in both, or only in the one that the checks are of (half the time)",
    )
    add("--save", action="store_true", help="also write tools/bench_results/DATE-quantize.json")
    found = parser.parse_args(words)
    found.parts = frozenset(found.parts.split(","))
    found.nets = tuple(found.nets.split(","))
    if strange := sorted(found.parts - set(PARTS) | set(found.nets) - set(CLASSIFIERS)):
        parser.error(f"unknown: {', '.join(strange)}")
    if found.quick:
        found.views, found.rounds, found.no_nncf = 2, 5, True
    return found


@dataclasses.dataclass(slots=True, kw_only=True)
class Run:
    """What a run has, and what it found so far."""

    args: argparse.Namespace
    nets: dict[str, Path | str]
    peers: Peers
    mode: Mode
    has_vnni: bool
    scores: dict[str, NetScores | str] = dataclasses.field(default_factory=dict)
    times: dict[str, dict[str, list[float]] | str] = dataclasses.field(default_factory=dict)
    graphs: dict[str, bytes | str] = dataclasses.field(default_factory=dict)
    checks: dict[str, Figure] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The arithmetics that candidates are scored in."""
        return MODES if self.args.arithmetic == "both" else (self.mode,)

    @property
    def images(self) -> int | None:
        """How many test images; None takes all."""
        return 12 if self.args.quick else None


def classifier(run: Run, net: str, path: Path) -> None:
    """All about one classifier: candidates, scores, speed; and the hostile net made from it."""
    views, calibration = pictures_for(run, path)
    tensors = calibration.tensors()
    candidates = list(Maker(path, tensors, run.peers, run.args.work).all())
    for candidate in candidates:
        if candidate.target == "tensorrt":
            run.graphs[net] = candidate.graph if isinstance(candidate, Candidate) else candidate.why
    made = [candidate for candidate in candidates if isinstance(candidate, Candidate) and candidate.target == "cpu"]
    medians: dict[str, float] = {}
    if "speed" in run.args.parts:
        graphs = {"float": path.read_bytes(), **{_timed_name(c): c.graph for c in made}}
        print(f"bench: {net}: timing {len(graphs)} graphs in turn", file=sys.stderr, flush=True)
        times = latencies_ms(graphs, views.tensors()[:16], rounds=run.args.rounds)
        run.times[net] = times
        medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    if run.args.parts & {"accuracy", "hostile"}:
        with Scorer(views, run.args.work) as scorer:
            if "accuracy" in run.args.parts:
                scores = score_net(net, path.read_bytes(), views, candidates, scorer, run.modes)
                run.scores[net] = scores
                run.rows += [_timed(row, medians) for row in scores.rows()]
            if "hostile" in run.args.parts and net == "mobilenetv2":
                checks, row = hostile_checks(path, tensors, views, scorer, run.mode)
                run.checks |= checks
                run.rows.append(row)


def pictures_for(run: Run, path: Path) -> tuple[Pictures, Pictures]:
    """Views to score and pictures to calibrate on, at the net's input."""
    model = read_model(path)
    source = Source(root=run.args.data, spec=model.input, classes=model.classes or ())
    calibration = read_split(source, "calib", limit=24 if run.args.quick else None)
    return views_of(source, "test", each=run.args.views, limit=run.images), calibration


def _timed_name(candidate: Candidate) -> str:
    return "ours" if candidate.maker == "ours" else candidate.name


def _timed(row: dict[str, Any], medians: dict[str, float]) -> dict[str, Any]:
    name = "ours" if row["name"] == "ours cpu" else row["name"]
    return {**row, "ms": round(medians[name], 3)} if name in medians and row.get("arithmetic") != "exact" else row


def measure(run: Run) -> None:
    """Everything that was asked for, one part after the other."""
    parts = run.args.parts
    for net in CLASSIFIERS:
        path = run.nets[net]
        if net not in run.args.nets or isinstance(path, str):
            why = path if isinstance(path, str) else f"{net} was left out by --nets"
            run.scores[net] = run.times[net] = run.graphs[net] = why
        elif parts & {"accuracy", "speed", "hostile", "trt"}:
            classifier(run, net, path)
    if "accuracy" in parts:
        run.checks |= accuracy_checks(run.scores, run.mode)
    if "speed" in parts:
        run.checks |= speed_checks(run.times, has_vnni=run.has_vnni)
    if "hostile" in parts and "hostile_drop" not in run.checks:
        source = run.nets["mobilenetv2"]
        missing = absent(source if isinstance(source, str) else "mobilenetv2 was left out by --nets")
        run.checks |= {"hostile_naive_drop": missing, "hostile_drop": missing}
    single_artefacts(run)


def single_artefacts(run: Run) -> None:
    """The detector, TensorRT's plans, and building twice."""
    yolo, resnet = run.nets["yolo"], run.nets["resnet18"]
    if "yolo" in run.args.parts:
        if isinstance(yolo, str):
            run.checks |= {"yolo_naive_kept": absent(yolo), "yolo_kept": absent(yolo)}
        else:
            checks, rows = yolo_checks(yolo, run.args.data, has_vnni=run.has_vnni, limit=run.images)
            run.checks |= checks
            run.rows += rows
    if "trt" in run.args.parts:
        checks, rows = trt_check(run.graphs)
        run.checks |= checks
        run.rows += rows
    if "deterministic" in run.args.parts:
        found = absent(resnet) if isinstance(resnet, str) else None
        run.checks |= {"deterministic": found} if found else deterministic_check(Path(resnet), run.args.data)


def peers_for(args: argparse.Namespace, *, has_vnni: bool) -> Peers:
    """How others' graphs are made here."""
    nncf: Path | str = "left out by --no-nncf or --quick"
    if not args.no_nncf:
        try:
            nncf = theirs.make_nncf(args.nncf or args.work / "nncf")
        except theirs.Unavailable as error:
            nncf = str(error)
    return Peers(nncf=nncf, with_reduced=not has_vnni and args.arithmetic == "both")


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    if not (args.data / "splits.csv").is_file():
        print(f"bench: {args.data}: no splits.csv there\nTry: --data DIR with NEU-DET", file=sys.stderr)
        return 2
    if args.models is not None and not args.models.is_dir():
        print(f"bench: {args.models}: no such folder\nTry: --models DIR with the four float nets", file=sys.stderr)
        return 2
    args.work = args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    has_vnni = bool(int8_flags())
    nets = find_nets(args.models or args.work / "models", args.data, train=not (args.models or args.quick))
    run = Run(
        args=args,
        nets=nets,
        peers=peers_for(args, has_vnni=has_vnni),
        mode="here" if has_vnni else "exact",
        has_vnni=has_vnni,
    )
    try:
        measure(run)
    except AgentError as error:
        print(f"bench: {error.message}", *([f"Try: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    document = document_of(
        run.checks,
        run.rows,
        describe(1),
        arithmetic_of_checks=run.mode,
        views=f"{args.views} of each test image, originals not among them",
        by_net={net: s.figures() for net, s in run.scores.items() if isinstance(s, NetScores)},
        seconds=round(time.monotonic() - started),
    )
    print(json.dumps(document, indent=2, ensure_ascii=False) if args.json else "\n".join(tables(document)))
    if args.save:
        print(f"bench: written to {save(document)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
