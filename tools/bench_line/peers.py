"""Beside OpenVINO Model API: the same ONNX model and the same images, rounds in turn, all acknowledged by one broker.

Ours is the whole agent, with its journal on the disk; theirs keeps nothing. Both get one thread.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import ClassSpec, Manifest, Outputs, PolicySpec
from agent.bundle.preprocess import fit
from optimize.pack import pack_bundle
from optimize.quantize import FloatModel, QuantizeOptions, Quantizer, read_model
from optimize.quantize.model import bytes_from_model
from optimize.recipe import PreprocessRecipe
from tools.bench_frame import say
from tools.bench_line.broker import Broker
from tools.bench_line.frames import frames_of
from tools.bench_line.mobilenet import CLASSES, mobilenet_v2
from tools.bench_line.workers import Worker, agent_worker, fresh, station_config
from tools.bench_quantize.figures import Figure, absent, median_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["float_mobilenet", "peer_checks", "peer_rows"]

PACKAGES = ("openvino", "openvino-model-api", "onnx", "paho-mqtt>=2", "opencv-python-headless", "numpy")
FRAME_PX = (200, 200)
"""As NEU-DET's pictures, which ../shared/notes/peers.md measured with."""

THEIRS, SHIPPED, OURS, OURS_INT8 = "model_api float32", "model_api as shipped", "agent float32", "agent int8"


def peer_rows(work: Path, *, rounds: int, parts: int) -> list[dict[str, Any]]:
    """One row for each runtime, or one with the reason why there is none."""
    folder = work / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = _environment(folder / "model_api")
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        return [{"part": "peers", "who": THEIRS, "skipped": f"can't be installed here: {said[-1] if said else error}"}]
    source, bundles = _models(folder)
    frames = folder / "frames.npy"
    np.save(frames, np.stack(frames_of(*FRAME_PX)))
    worker = [str(python), str(Path(__file__).with_name("peer_worker.py")), str(source), str(frames)]
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder / "broker"))
        workers = {}
        for who, precision in ((THEIRS, "f32"), (SHIPPED, "shipped")):
            command = [*worker, str(broker.port), precision, "1"]
            workers[who] = stack.enter_context(Worker(command, folder / f"{precision}.log"))
        for who, bundle in bundles.items():
            place = fresh(folder / who.replace(" ", "-"))
            config = station_config(place, bundle, port=broker.port, station=f"bench/{place.name}")
            workers[who] = stack.enter_context(agent_worker(config, FRAME_PX))
        return _measured(workers, rounds=rounds, parts=parts)


def _environment(folder: Path) -> Path:
    """Model API's own environment, made once: its pins must not touch ours."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        say(f"peers: pip installs {', '.join(PACKAGES)} into {folder} (once; about 0.5 GB)")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
        subprocess.run(install, check=True, capture_output=True, text=True)
        (folder / "ready").touch()
    return python


def float_mobilenet(folder: Path) -> tuple[FloatModel, Path, Path]:
    """MobileNetV2 as our tools take it in; its file with bytes as input, and its bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    source, adopted = folder / "mobilenetv2.onnx", folder / "mobilenetv2.adopted.onnx"
    source.write_bytes(mobilenet_v2())
    model = read_model(source, PreprocessRecipe())
    adopted.write_bytes(bytes_from_model(model.proto))
    return model, adopted, _bundle(folder, OURS, model, adopted.read_bytes())


def _models(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The float ONNX file, and our bundles of it: as it is, and quantized."""
    model, _, ours = float_mobilenet(folder)
    kept = folder / "mobilenetv2.int8.onnx"
    if not kept.is_file():
        say("peers: quantizing MobileNetV2")
        tensors = [fit(frame, model.input)[None] for frame in frames_of(*FRAME_PX)]
        kept.write_bytes(Quantizer(model, tensors, QuantizeOptions()).quantize("cpu").graph)
    return model.path, {OURS: ours, OURS_INT8: _bundle(folder, OURS_INT8, model, kept.read_bytes())}


def _bundle(folder: Path, who: str, model: FloatModel, graph: bytes) -> Path:
    kind = "cpu" if who == OURS_INT8 else "fp32"
    severities = ("ok", *["major"] * (len(CLASSES) - 1))
    manifest = Manifest(
        name="mobilenetv2",
        version="1.0.0",
        task="classify",
        input=model.input,
        classes=tuple(
            ClassSpec(name=name, severity=severity)  # type: ignore[arg-type]
            for name, severity in zip(CLASSES, severities, strict=True)
        ),
        outputs=Outputs(logits=model.logits),
        graphs={kind: f"model.{kind}.onnx"},
        cpu_graph=kind,
        # Random weights call anything a defect, whose picture would be kept: here every part is good.
        policy=PolicySpec(defect_above=1.0, review_above=1.0),
    )
    path = folder / f"mobilenetv2-{kind}.defect"
    pack_bundle(path, manifest, {f"model.{kind}.onnx": graph})
    return path


def _measured(workers: Mapping[str, Worker], *, rounds: int, parts: int) -> list[dict[str, Any]]:
    answers: dict[str, list[dict[str, Any]]] = {who: [] for who in workers}
    for turn in range(-1, rounds):
        say(f"peers: round {turn + 1} of {rounds}")
        for who, worker in workers.items():
            answer = worker.ask(parts=parts, worked=True)
            if turn >= 0:
                answers[who].append(answer)
    rows = []
    for who, mine in answers.items():
        ratio = median_ratio([a["seconds"] for a in answers[THEIRS]], [a["seconds"] for a in mine])
        took = [ms for answer in mine for ms in answer.get("ms", ())]
        rows.append({
            "part": "peers",
            "who": who,
            "per_s": round(statistics.median(parts / answer["seconds"] for answer in mine), 1),
            "times_theirs": round(ratio.value or 0, 3),
            "p50_ms": round(float(np.percentile(took, 50)), 2) if took else None,
            "p99_ms": round(float(np.percentile(took, 99)), 2) if took else None,
            "cpu_s_per_1000": round(statistics.median(1000 * answer["cpu_s"] / parts for answer in mine), 3),
            "rss_mb": round(mine[-1]["rss_kb"] / 1024, 1),
            "ratio": ratio.to_json(),
        })  # fmt: skip
    return rows


def peer_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Our rate over theirs in float32: with the same float32 graph, and with our INT8."""
    names = {"vs_model_api_rate": OURS, "vs_model_api_rate_int8": OURS_INT8}
    mine = {row["who"]: row for row in rows if row["part"] == "peers"}
    if OURS not in mine:
        why = mine[THEIRS]["skipped"] if THEIRS in mine else "not asked for in this run"
        return dict.fromkeys(names, absent(why))
    theirs = mine[THEIRS]
    found = {}
    for check, who in names.items():
        ratio, row = mine[who]["ratio"], mine[who]
        why = (
            f"{row['per_s']}/s over {theirs['per_s']}/s; p99 {row['p99_ms']} and {theirs['p99_ms']} ms; "
            f"CPU s per 1,000 parts {row['cpu_s_per_1000']} and "
            f"{theirs['cpu_s_per_1000']}; RSS {row['rss_mb']} and {theirs['rss_mb']} MB"
        )
        found[check] = Figure(value=ratio["value"], low=ratio["low"], high=ratio["high"], why=why)
    return found
