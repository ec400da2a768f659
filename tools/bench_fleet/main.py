"""A fleet: 1,000 simulated agents at one mosquitto, and at a site's mosquitto with a bridge to a central one.

Every agent has a connection, a client id, a will and a retained status of its own and publishes whole verdicts with
QoS 1; two consumers share the verdicts (`$share`). Told are lost and repeated records, the age of a verdict when a
consumer has it, and what the broker costs. Agents and consumers are on the same machine as the broker and take most
of it. Needs mosquitto; three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.bench_frame import Bench  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench_quantize.figures import Figure

HERE = Path(__file__).parent
FILTER = "$share/filers/acme/+/+/+/+/verdict"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetBench(Bench):
    """A bench that trains nothing and needs no data."""

    def arguments(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the command line; `rates` are verdicts per second of each agent."""
        parser = argparse.ArgumentParser(
            prog=f"tools/bench {self.name}", description=self.text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = parser.add_argument
        add("--json", action="store_true", help="one JSON document on standard output")
        add("--quick", action="store_true", help=f"{self.quick} (figures mean little)")
        add("--work", type=Path, default=ROOT / ".bench" / self.name, metavar="DIR", help="for the brokers' files")
        add("--agents", type=int, default=1_000, metavar="N", help="simulated agents (1,000)")
        add("--processes", type=int, default=4, metavar="N", help="that they share (4)")
        add("--rates", default="0.5,1", metavar="A,B", help="verdicts per second of each agent (0.5,1)")
        add("--seconds", type=float, default=20.0, metavar="S", help="of every run (20)")
        add("--parts", default=",".join(self.parts), metavar="A,B", help=f"which of {', '.join(self.parts)}")
        add("--save", action="store_true", help="also write tools/bench_results/DATE-fleet.json")
        found = parser.parse_args(words)
        found.parts, found.threads = frozenset(found.parts.split(",")), 1
        if strange := sorted(found.parts - set(self.parts)):
            parser.error(f"unknown parts: {', '.join(strange)}")
        found.rates = [float(rate) for rate in found.rates.split(",")]
        if found.quick:
            found.agents, found.processes, found.rates, found.seconds = min(found.agents, 40), 2, [1.0], 3.0
        found.work = found.work.absolute()
        return found


BENCH = FleetBench(
    name="fleet",
    text=__doc__ or "",
    parts=("site", "bridge"),
    bounds={"fleet_lost": ("<=", 0), "fleet_p99_ms": ("<=", 1_000), "fleet_broker_cores": ("<=", 1.0)},
    sets="",
    quick="40 agents, three seconds",
)


class Worker:
    """A process of ours that talks in lines."""

    def __init__(self, script: str, *args: object) -> None:
        command = [sys.executable, str(HERE / script), *map(str, args)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str = "go") -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Wait for a line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """Wait until it is over."""
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class Broker:
    """One mosquitto; a context manager."""

    def __init__(self, folder: Path, name: str, lines: Sequence[str] = ()) -> None:
        from tools.bench_line.broker import find_mosquitto

        folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        conf = folder / f"{name}.conf"
        base = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 100000", "user root"]
        conf.write_text("\n".join([*base, *lines, ""]))
        self._process = subprocess.Popen(
            [find_mosquitto(), "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _await_port(self.port)

    def cost(self) -> tuple[float, int]:
        """Seconds on a core so far, and resident kB at the highest."""
        from tools.bench_line.process_facts import facts_of_process

        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds, facts_of_process(self._process.pid)["peak_kb"]

    def __enter__(self) -> Broker:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _await_port(port: int) -> None:
    import socket

    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"mosquitto does not answer on port {port}")


def _bridge_lines(port: int) -> list[str]:
    """What configs/fleet/bridge.conf has, with another address and without TLS."""
    text = (ROOT / "configs" / "fleet" / "bridge.conf").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "bridge_cafile", "bridge_cert"))]
    lines = [line for line in lines if not line.startswith("bridge_key")]
    return [f"address 127.0.0.1:{port}" if line.startswith("address ") else line for line in lines]


def measured(args: argparse.Namespace) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Every part at every rate."""
    rows = []
    for part in (part for part in BENCH.parts if part in args.parts):
        for rate_hz in args.rates:
            with contextlib.ExitStack() as stack:
                centre = None
                if part == "bridge":
                    centre = stack.enter_context(Broker(args.work, "centre"))
                lines = _bridge_lines(centre.port) if centre else []
                site = stack.enter_context(Broker(args.work, "site", lines))
                rows.append({"part": part, **_run(args, rate_hz, site, centre or site)})
    return _checks(rows), rows


def _run(args: argparse.Namespace, rate_hz: float, site: Broker, heard_at: Broker) -> dict[str, Any]:
    load = os.getloadavg()[0]
    consumers = [Worker("consumer.py", heard_at.port, FILTER) for _ in range(2)]
    for consumer in consumers:
        consumer.answer()
    share = args.agents // args.processes
    begun = time.monotonic()
    fleets = [Worker("agents.py", site.port, i * share, share, rate_hz, args.seconds) for i in range(args.processes)]
    for fleet in fleets:
        fleet.answer()
    connected_s = time.monotonic() - begun
    before, _ = site.cost()
    begun = time.monotonic()
    for fleet in fleets:
        fleet.ask()
    sent = [_loads(fleet.answer()) for fleet in fleets]
    after, peak_kb = site.cost()
    took = time.monotonic() - begun
    total = sum(each["sent"] for each in sent)
    heard = _collect(consumers, total)
    for fleet in fleets:
        fleet.ask("leave")
        fleet.end()
    return {
        "agents": share * args.processes,
        "rate_hz": rate_hz,
        "seconds": round(took, 1),
        "load_before": round(load, 2),
        "connected_s": round(connected_s, 2),
        **{key: sum(each[key] for each in sent) for key in ("sent", "acked", "lost_connections")},
        "bytes_each": round(sum(each["bytes"] for each in sent) / total),
        "agents_late_ms": round(1e3 * max(each["late_s"] for each in sent), 1),
        "broker_cores": round((after - before) / took, 3),
        "broker_peak_mb": round(peak_kb / 1024, 1),
        **_received(heard, total),
    }


def _collect(consumers: list[Worker], total: int) -> list[dict[str, Any]]:
    """Wait until as many came as were sent, or nothing more comes for five seconds."""
    seen, at = -1, time.monotonic()
    while seen < total and time.monotonic() - at < 5.0:
        for consumer in consumers:
            consumer.ask("count")
        now = sum(int(consumer.answer()) for consumer in consumers)
        if now != seen:
            seen, at = now, time.monotonic()
        time.sleep(0.1)
    for consumer in consumers:
        consumer.ask("stop")
    heard = [_loads(consumer.answer()) for consumer in consumers]
    for consumer in consumers:
        consumer.end()
    return heard


def _received(heard: list[dict[str, Any]], total: int) -> dict[str, Any]:
    import numpy as np

    pairs = [(station, rec) for each in heard for station, recs in each["recs"].items() for rec in recs]
    ages = np.array([age for each in heard for age in each["ages_ms"]] or [float("nan")])
    return {
        "received": len(pairs),
        "lost": total - len(set(pairs)),
        "repeated": len(pairs) - len(set(pairs)),
        "shares": [len(each["ages_ms"]) for each in heard],
        **{f"p{p}_ms": round(float(np.percentile(ages, p)), 2) for p in (50, 99)},
        "max_ms": round(float(ages.max()), 1),
    }


def _checks(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    from tools.bench_quantize.figures import Figure

    def worst(key: str, scale: float = 1.0) -> Figure:
        row = max(rows, key=lambda row: row[key])
        why = f"the worst: {row['part']}, {row['agents']} agents at {row['rate_hz']:g} per second each"
        return Figure(value=row[key] * scale, low=None, high=None, why=why)

    return {"fleet_lost": worst("lost"), "fleet_p99_ms": worst("p99_ms"), "fleet_broker_cores": worst("broker_cores")}


def _loads(line: str) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(line)
    return found


if __name__ == "__main__":
    sys.exit(BENCH.run(None, measured))
