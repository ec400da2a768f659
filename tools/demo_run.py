"""The demo: parts in, verdicts out over MQTT, each step with the programs that a plant would use.

`tools/demo` makes the environment and runs this in it; `tools/demo --help` has the options. Nothing here judges a
part: `defect-opt build` makes the bundle, `defect-agent run` judges, and this looks on from the broker's other side.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
# The checkout goes before whatever is installed: the demo shows these sources.
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from demo_scada import DemoError, Received, Scada  # noqa: E402
from demo_sheet import write_sheet  # noqa: E402
from demo_view import View, open_view  # noqa: E402

from agent.console import DONE, FAILED, Parser, print_json, run_program  # noqa: E402
from optimize.synthetic import LINE, generate, write_image, write_parts  # noqa: E402

MODEL = ROOT / "configs" / "demo" / "demo_parts.onnx"
CALIB, VAL, DATA_SEED = 64, 200, 2_000
LOOP_RATE_HZ, SHOW_RATE_HZ = 20.0, 10.0
BROKER_S, QUIET_S, STUCK_S = 20.0, 2.0, 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run showed.

    Attributes:
        received: what came over MQTT.
        ended_well: whether the agent did.
        missing: parts without a verdict, in line order.
        repeated: parts that got more than one verdict.
        build: the report of `defect-opt build --json`.
        truth: part to its true class.
    """

    received: Received
    ended_well: bool
    missing: list[str]
    repeated: list[str]
    build: dict[str, Any]
    truth: dict[str, str]

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """In the order of their records."""
        return [v for _, v in sorted(self.received.verdicts.items())]

    @property
    def is_good(self) -> bool:
        """One verdict for each part, and every picture whole and there."""
        return self.ended_well and not (self.missing or self.repeated or self.received.damaged or self.received.awaited)

    def to_json(self, parts: int, sheet: Path | None) -> dict[str, Any]:
        """The document of `--json`."""
        verdicts = self.verdicts
        right = sum(_seen(v) == self.truth[_file(v["part"])] for v in verdicts)
        total_ms = [v["ms"]["total"] for v in verdicts] or [0.0]
        span_s = (verdicts[-1]["mono_ns"] - verdicts[0]["mono_ns"]) / 1e9 if len(verdicts) > 1 else 0.0
        decisions = Counter(v["decision"] for v in verdicts)
        return {
            "parts": parts,
            "verdicts": len(verdicts),
            "by_decision": {name: decisions[name] for name in ("ok", "defect", "review", "error")},
            "images": len(self.received.pictures),
            "accuracy": round(right / len(verdicts), 4) if verdicts else 0.0,
            "drop_points": self.build["drop_points"],
            "latency_ms": {
                "p50": round(float(np.percentile(total_ms, 50)), 2),
                "p99": round(float(np.percentile(total_ms, 99)), 2),
            },
            "fps": round((len(verdicts) - 1) / span_s, 1) if span_s > 0 else 0.0,
            "contact_sheet": None if sheet is None else str(sheet),
            "missing": self.missing,
        }


def _seen(verdict: dict[str, Any]) -> str | None:
    """The class that the model holds most probable; a part that could not be judged has none."""
    findings = verdict["findings"]
    return findings[0]["class"] if findings and verdict["decision"] != "error" else None


def _file(part: str) -> str:
    """The picture's name: later passes of a loop append `#2`, `#3` and so on."""
    return part.split("#", maxsplit=1)[0]


def main() -> int:
    """Run the demo; SIGTERM and a closed terminal clean up as Ctrl-C does."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    return run_program(_parser(), run)


def _parser() -> Parser:
    parser = Parser(prog="demo", description="Parts in, verdicts out over MQTT. See tools/demo --help.")
    add = parser.add_argument
    add("--parts", type=_number(1, 100_000), default=40, metavar="N", help="how many parts (40)")
    add("--seconds", type=_number(1, 86_400), metavar="S", help="let the line run that long, with the parts in a loop")
    add("--keep", type=Path, metavar="DIR", help="keep everything in DIR, and say how to go on from there")
    add("--broker", type=_address, metavar="HOST:PORT", help="use this broker")
    add("--seed", type=_number(0, 2**31 - 1), default=7, metavar="N", help="other parts (7)")
    add("--json", action="store_true", help="one JSON document")
    return parser


def _number(low: int, high: int) -> Any:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {low} to {high}")
        return int(text)

    return number


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected HOST:PORT")
    return host, int(port)


def run(args: argparse.Namespace) -> int:
    """Make, build, run, look on, report."""
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(open_view(as_json=args.json))
        folder = stack.enter_context(_workplace(args.keep))
        view.step(f"making {args.parts} parts to judge, {CALIB} to calibrate with, {VAL} to measure on")
        truth = _make_parts(folder, args.parts, args.seed)
        view.step("defect-opt build --int8: from the float ONNX to a bundle")
        build = _build(folder)
        outcome, judged = _watch(args, folder, truth, build, view)
        sheet = _contact_sheet(args, folder, outcome, judged)
        if args.keep is not None:
            _keep(folder, outcome)
    if args.json:
        print_json(outcome.to_json(judged, sheet))
    else:
        print("\n".join(_summary(args, folder, outcome, judged, sheet)))
    for problem in _problems(outcome):
        print(f"demo: {problem}", file=sys.stderr)
    return DONE if outcome.is_good else FAILED


def _problems(outcome: Outcome) -> Iterator[str]:
    """What must not happen, with the parts that it happened to."""
    for problem, parts in (
        ("no verdict for", outcome.missing),
        ("more than one verdict for", outcome.repeated),
        ("damaged picture of", outcome.received.damaged),
        ("announced but never came: the picture of", [v["part"] for v in outcome.received.awaited]),
    ):
        if parts:
            yield f"{problem} {', '.join(parts)}"


@contextlib.contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    """The folder that is kept, or one that is gone afterwards; temporary files of libraries go the same way.

    (onnxruntime leaves a session file in TMPDIR.)
    """
    with tempfile.TemporaryDirectory(prefix="defect-agent-demo-", ignore_cleanup_errors=True) as name:
        os.environ["TMPDIR"] = name
        if keep is None:
            (Path(name) / "demo").mkdir()
            yield Path(name) / "demo"
        else:
            yield _fresh(keep.absolute())


def _fresh(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise DemoError(f"--keep {folder}: {error.strerror}", hint="give a new folder that is yours") from error
    if occupied:
        raise DemoError(f"--keep {folder}: is not empty", hint="give a new folder")
    return folder


def _make_parts(folder: Path, parts: int, seed: int) -> dict[str, str]:
    """Write the parts of the line, flat and without labels, and the set for the build; gives part to true class."""
    write_parts(folder / "data", {"calib": CALIB, "val": VAL}, seed=DATA_SEED)
    truth = {}
    width = max(4, len(str(parts)))
    for number, part in enumerate(generate(parts, seed=seed, mix=LINE), start=1):
        name = f"part-{number:0{width}}.jpg"
        write_image(folder / "parts" / name, part.image)
        truth[name] = part.label
    with (folder / "truth.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "class"), *truth.items()])
    return truth


def _build(folder: Path) -> dict[str, Any]:
    """Run the real `defect-opt build`; gives its JSON report."""
    data = str(folder / "data")
    out = str(folder / "demo-parts-1.0.0.defect")
    options = ["--name", "demo-parts", "--version", "1.0.0", "--out", out, "--json"]
    command = _program("optimize", "build", "--int8", "--model", str(MODEL), "--data", data, "--calib", data, *options)
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=_environment())
    if not result.stdout.strip():
        raise DemoError(f"defect-opt build failed ({result.returncode}):\n{result.stderr.strip()}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def _program(package: str, *arguments: str) -> list[str]:
    """`defect-opt` or `defect-agent`, from these sources with this interpreter."""
    return [sys.executable, "-m", package, *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def _watch(
    args: argparse.Namespace, folder: Path, truth: dict[str, str], build: dict[str, Any], view: View
) -> tuple[Outcome, int]:
    """Broker, subscriber, agent, in this order; then look on until the line has ended."""
    with contextlib.ExitStack() as stack:
        host, port = args.broker or stack.enter_context(_own_broker(folder, view))
        # On a broker that others use, nobody else's station may have our name.
        station = f"demo/{uuid.uuid4().hex[:8]}/line1/cam1"
        scada = stack.enter_context(Scada(host, port, station))
        config = _write_config(args, folder, station, host, port)
        view.step(f"defect-agent run: verdicts come on {station}/verdict at {host}:{port}")
        agent = stack.enter_context(_agent(config, folder))
        received = _follow(args, scada, agent, truth, view)
        judged = _judged(agent, folder)
    if args.seconds is None:
        expected = list(truth)
    else:
        expected = _parts_in_order(list(truth), len(received.verdicts) if judged is None else judged)
    counts = Counter(v["part"] for v in received.verdicts.values())
    outcome = Outcome(
        received=received,
        ended_well=judged is not None,
        missing=[part for part in expected if not counts[part]],
        repeated=[part for part, n in counts.items() if n > 1],
        build=build,
        truth=truth,
    )
    return outcome, len(expected)


def _parts_in_order(names: list[str], n: int) -> list[str]:
    """The first n part ids of the folder camera in a loop."""
    passes = (("" if k == 0 else f"#{k + 1}") for k in range(-(-n // len(names))))
    return [name + suffix for suffix in passes for name in names][:n]


@contextlib.contextmanager
def _own_broker(folder: Path, view: View) -> Iterator[tuple[str, int]]:
    """Start amqtt on a free loopback port; it ends with us, however we end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    view.step(f"broker: amqtt on 127.0.0.1:{port} (MQTT 3.1.1, for trying out)")
    command = [sys.executable, str(ROOT / "tools" / "demo_broker.py"), "--port", str(port), "--until-eof"]
    with (folder / "broker.log").open("wb") as log, _child(command, log, stdin=subprocess.PIPE) as broker:
        deadline = time.monotonic() + BROKER_S
        while not _answers(port):
            if broker.poll() is not None or time.monotonic() > deadline:
                text = (folder / "broker.log").read_text(errors="replace").strip()[-500:]
                raise DemoError(f"the broker did not start: {text}", hint="tools/demo --broker HOST:PORT uses yours")
            time.sleep(0.05)
        yield "127.0.0.1", port


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def _child(command: list[str], log: IO[bytes], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone when the block is left: asked first, then killed.

    It has a session of its own, so that Ctrl-C reaches only us and children end in the right order.
    """
    process = subprocess.Popen(command, stderr=log, env=_environment(), start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _write_config(args: argparse.Namespace, folder: Path, station: str, host: str, port: int) -> Path:
    """The station's configuration, as a person would write it."""
    # People can't read a table at full speed; whoever wants figures gets full speed.
    shown = SHOW_RATE_HZ if sys.stdout.isatty() and not args.json else 0.0
    rate_hz = LOOP_RATE_HZ if args.seconds else shown
    looped = bool(args.seconds)
    config = {
        "station": station,
        "state_dir": "state",
        "bundle": "demo-parts-1.0.0.defect",
        "camera": {"kind": "folder", "path": "parts", "rate_hz": rate_hz, "loop": looped, "resume": not looped},
        # amqtt does not answer an MQTT 5 CONNECT with a will at all; finding that out takes three seconds.
        "mqtt": {"host": host, "port": port, "protocol": "auto" if args.broker else "3.1.1"},
        "log": {"format": "text"},
    }
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@contextlib.contextmanager
def _agent(config: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real `defect-agent run`, as a process."""
    command = _program("agent", "run", "--config", str(config), "--json")
    with (folder / "agent.log").open("wb") as log, _child(command, log, stdout=subprocess.PIPE) as process:
        yield process


def _follow(
    args: argparse.Namespace, scada: Scada, agent: subprocess.Popen[bytes], truth: dict[str, str], view: View
) -> Received:
    """Take messages until the agent has ended and nothing more comes."""
    received = Received()
    last, stop_at = time.monotonic(), None
    while True:
        verdict = scada.receive(received, 0.1)
        now = time.monotonic()
        if verdict is not None:
            if len(received.verdicts) == 1 and args.seconds is not None:
                stop_at = now + args.seconds
            last = now
            view.verdict(verdict, truth[_file(verdict["part"])])
        if stop_at is not None and now >= stop_at and agent.poll() is None:
            agent.send_signal(signal.SIGTERM)
            stop_at = None
        complete = args.seconds is None and len(received.verdicts) >= args.parts and not received.awaited
        if agent.poll() is not None and (complete or now - last > QUIET_S):
            return received
        if now - last > STUCK_S:
            return received


def _judged(agent: subprocess.Popen[bytes], folder: Path) -> int | None:
    """How many parts the agent says it judged; None when it did not end well, and then its last words are shown."""
    assert agent.stdout is not None
    if agent.poll() == 0:
        return int(json.loads(agent.stdout.read())["judged"])
    end = "hangs" if agent.poll() is None else f"ended with {agent.poll()}"
    words = (folder / "agent.log").read_text(errors="replace").strip().splitlines()[-8:]
    print(f"demo: the agent {end}; its last words:", *words, sep="\n  ", file=sys.stderr)
    return None


def _contact_sheet(args: argparse.Namespace, folder: Path, outcome: Outcome, judged: int) -> Path | None:
    """Draw it where it stays: in the kept folder, in the checkout's `.demo`, or in the working directory."""
    flagged = [(v, p) for v in outcome.verdicts if (p := outcome.received.picture_of(v)) is not None]
    title = f"{judged} parts, {len(flagged)} flagged; pictures and verdicts as received over MQTT"
    places = [folder] if args.keep is not None else [ROOT / ".demo", Path.cwd()]
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(exist_ok=True)
            if os.access(place, os.W_OK):
                path = place / "contact-sheet.png"
                write_sheet(path, flagged, outcome.truth, folder / "demo-parts-1.0.0.defect", title)
                return path
    print("demo: no contact sheet: neither the checkout nor the working directory can be written", file=sys.stderr)
    return None


def _keep(folder: Path, outcome: Outcome) -> None:
    """Write down what was received, for whoever looks into the folder later."""
    with (folder / "received.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(v, ensure_ascii=False) + "\n" for v in outcome.verdicts)
    (folder / "received").mkdir()
    for verdict in outcome.verdicts:
        picture = outcome.received.picture_of(verdict)
        if picture is not None:
            (folder / "received" / f"{verdict['rec']:06}-{_file(verdict['part'])}").write_bytes(picture)


def _summary(
    args: argparse.Namespace, folder: Path, outcome: Outcome, judged: int, sheet: Path | None
) -> Iterator[str]:
    facts = outcome.to_json(judged, sheet)
    build = outcome.build
    escapes = [v["part"] for v in outcome.verdicts if v["decision"] == "ok" and outcome.truth[_file(v["part"])] != "ok"]
    decisions = ", ".join(f"{n} {name}" for name, n in facts["by_decision"].items() if n)
    yield ""
    yield f"{facts['parts']} parts, {facts['verdicts']} verdicts: {decisions}; {facts['images']} pictures"
    yield f"accuracy {facts['accuracy']:.1%} on these synthetic parts" + (
        f"; passed though defective: {', '.join(escapes)}" if escapes else "; no defective part was passed"
    )
    sizes = build["size_bytes"]
    yield (
        f"INT8 against FP32: {0 - build['drop_points']:+.2f} points of accuracy on {VAL} other parts, "
        f"{build['speedup']:.1f} times as fast, {sizes['fp32'] / sizes['int8']:.1f} times smaller"
    )
    if build["cpu_graph"] != "cpu":
        yield f"this bundle runs FP32 on a CPU: {build['cpu_graph_why']}"
    yield f"one part takes {facts['latency_ms']['p50']:.1f} ms (99 %: {facts['latency_ms']['p99']:.1f} ms)"
    if sheet is not None:
        yield f"look at: {sheet}"
    if args.keep is not None:
        yield from _go_on(folder)


def _go_on(folder: Path) -> Iterator[str]:
    def line(*words: object) -> str:
        return "  " + shlex.join(str(word) for word in words)

    scripts = Path(sys.executable).parent
    agent = (
        scripts / "defect-agent"
        if (scripts / "defect-agent").exists()
        else shutil.which("defect-agent") or "defect-agent"
    )
    opt = Path(agent).with_name("defect-opt")
    bundle = folder / "demo-parts-1.0.0.defect"
    yield ""
    yield f"everything is in {folder}; go on with:"
    yield line(agent, "journal", "tail", "--config", folder / "agent.yaml")
    yield line(agent, "bundle", "show", bundle)
    yield line(agent, "inspect", folder / "parts" / "part-0001.jpg", "--bundle", bundle, "--overlay", "seen.png")
    yield line(opt, "evaluate", bundle, "--data", folder / "data", "--split", "val")
    yield line(opt, "data", "check", folder / "data")


if __name__ == "__main__":
    sys.exit(main())
