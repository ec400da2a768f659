"""Device profiles: what a workstation refuses to believe, and what a device measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from agent.errors import BundleError, ConfigError, EngineError
from agent.profile import (
    DeviceProfile,
    GraphTiming,
    graphs_of,
    profile_from_json,
    profile_graphs,
    profile_to_json,
    read_profile,
    write_profile,
)
from optimize.structure import stamp_structure
from tests.kit.bundles import make_bundle
from tests.kit.commands import run_command
from tests.kit.models import classifier

COMMAND = "agent.cli.bench"
DIGEST = "ab" * 32


def timing(**changes: Any) -> dict[str, Any]:
    return {"file": "m.onnx", "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "n": 15, **changes}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "device": "Pi 5",
        "engine": "onnxruntime 1.23.0 CPU, 1 thread",
        "threads": 1,
        "measured_at": "2026-11-24T18:00:00Z",
        "graphs": {DIGEST: timing()},
        **changes,
    }


def stamped(width: int = 32, *, scale: float = 1.0) -> bytes:
    """The kit's classifier with its structure; `scale` changes weights only."""
    model = onnx.load_model_from_string(classifier(width=width))
    for tensor in model.graph.initializer:
        if tensor.name == "head":
            values = onnx.numpy_helper.to_array(tensor) * scale
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), "head"))
    stamp_structure(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", "not JSON"),
        ("[1, 2]", "expected an object with a version"),
        ("{}", "expected an object with a version"),
        (json.dumps(document(version=2)), "version: got 2, this program reads 1"),
        (json.dumps(document(version=True)), "version: got True"),
        (json.dumps(document(sped="fast")), "sped: unknown key"),
        (json.dumps({k: v for k, v in document().items() if k != "threads"}), "threads: missing"),
        (json.dumps(document(threads=0)), "threads: got 0"),
        (json.dumps(document(threads=1.5)), "threads: got 1.5"),
        (json.dumps(document(device="")), "device: got ''"),
        (json.dumps(document(graphs={})), "graphs: expected an object with at least one graph"),
        (json.dumps(document(graphs={"xyz": timing()})), "graphs: got the key 'xyz'"),
        (json.dumps(document(graphs={DIGEST: timing(p50_ms=float("nan"))})), "NaN is no number"),
        (json.dumps(document(graphs={DIGEST: timing(p50_ms=float("inf"))})), "Infinity is no number"),
        (json.dumps(document()).replace("3.0", "1e999"), "p99_ms: got inf"),
        (json.dumps(document(graphs={DIGEST: timing(p50_ms=0)})), "p50_ms: got 0, expected milliseconds over 0"),
        (json.dumps(document(graphs={DIGEST: timing(p50_ms="1")})), "p50_ms: got 1, expected milliseconds"),
        (json.dumps(document(graphs={DIGEST: timing(p50_ms=True)})), "p50_ms: got True"),
        (json.dumps(document(graphs={DIGEST: timing(p95_ms=0.5)})), "expected them in this order"),
        (json.dumps(document(graphs={DIGEST: timing(n=0)})), "n: got 0"),
        (json.dumps(document(graphs={DIGEST: timing(ms=1)})), "ms: unknown key"),
        (json.dumps(document(graphs={DIGEST: 3})), "got int, expected an object"),
        (f'{{"version": 1, {json.dumps(document())[1:]}', "key 'version' stands there twice"),
    ],
)
def test_a_profile_that_cannot_be_believed_is_refused_by_its_key(tmp_path: Path, raw: str, expected: str) -> None:
    """A network would be chosen by a number that no device measured."""
    path = tmp_path / "p.json"
    path.write_text(raw, encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        read_profile(path)

    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint is not None


def test_a_profile_that_is_not_there_is_said_to_be_made_on_the_device(tmp_path: Path) -> None:
    """The workstation can't make it."""
    with pytest.raises(ConfigError, match="can't be read") as caught:
        read_profile(tmp_path / "none.json")

    assert "on the device" in str(caught.value.hint)


def test_a_graph_without_a_structure_is_refused(tmp_path: Path) -> None:
    """Its timing would be taken for that of another network, or of none."""
    path = tmp_path / "old.onnx"
    path.write_bytes(classifier())

    with pytest.raises(BundleError, match=r"old\.onnx: holds no `structure`"):
        list(graphs_of(path))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    """In one sentence that names the file."""
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")

    with pytest.raises(EngineError, match=r"x\.onnx: the model can't be loaded"):
        list(graphs_of(path))
    with pytest.raises(BundleError, match="can't be read"):
        list(graphs_of(tmp_path / "none.onnx"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Device and workstation mean the same."""
    profile = DeviceProfile(
        device="Pi 5",
        engine="onnxruntime",
        threads=4,
        measured_at="2026-11-24T18:00:00Z",
        graphs={DIGEST: GraphTiming(file="m.onnx", p50_ms=1.25, p95_ms=2.0, p99_ms=2.0, n=20)},
    )
    write_profile(tmp_path / "p.json", profile)

    assert read_profile(tmp_path / "p.json") == profile
    assert profile_from_json(json.dumps(profile_to_json(profile)).encode()) == profile


def test_one_structure_is_timed_once_and_another_apart(tmp_path: Path) -> None:
    """Other weights keep the timing, another size does not."""
    (tmp_path / "a.onnx").write_bytes(stamped())
    (tmp_path / "b.onnx").write_bytes(stamped(scale=0.5))
    (tmp_path / "wide.onnx").write_bytes(stamped(64))
    bundle = make_bundle(tmp_path, graph=stamped())

    heard: list[int] = []
    profile = profile_graphs(
        [tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "wide.onnx", bundle.path],
        seconds=0.01,
        heard=lambda rounds, seconds: heard.append(rounds),
    )

    assert sorted(timing.file for timing in profile.graphs.values()) == ["a.onnx", "wide.onnx"]
    assert {timing.n for timing in profile.graphs.values()} == {heard[-1]}
    assert "onnxruntime" in profile.engine
    assert profile_from_json(json.dumps(profile_to_json(profile)).encode()) == profile


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected either --bundle B, or --profile OUT.json FILE..."),
        (["--bundle", "b.defect", "--profile", "p.json"], "expected either --bundle B"),
        (["--profile", "p.json"], "--profile: no files to time"),
        (["--bundle", "b.defect", "a.onnx"], "bench: got a.onnx beside --bundle"),
        (["--profile", "no/such/folder/p.json", "a.onnx"], "does not exist"),
        (["--profile", "p.json", "a.onnx", "--seconds", "0"], "got '0'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], expected: str) -> None:
    """Before anything is measured."""
    ran = run_command(COMMAND, *arguments)

    assert (ran.code, expected in ran.err, "Traceback" in ran.err) == (2, True, False)


def test_the_command_writes_a_profile_and_says_what_it_measured(tmp_path: Path) -> None:
    """Each graph with its percentiles; engine, threads and device beside them."""
    (tmp_path / "a.onnx").write_bytes(stamped())
    out = tmp_path / "p.json"

    ran = run_command(COMMAND, "--profile", out, tmp_path / "a.onnx", "--seconds", "0.1")

    assert ran.code == 0
    assert "a.onnx" in ran.out
    assert "1 thread" in ran.out
    assert "timing 1 files in turn" in ran.err
    (timing,) = read_profile(out).graphs.values()
    assert timing.n >= 15

    ran = run_command(COMMAND, "--profile", out, tmp_path / "a.onnx", "--seconds", "0.1", "--json")
    assert profile_from_json(ran.out.encode()).threads == 1


def test_how_long_inferences_waited_is_told_and_older_profiles_lack_it() -> None:
    """A busy machine is seen; a profile made before still counts."""
    older = profile_from_json(json.dumps(document()).encode())
    busy = profile_from_json(json.dumps(document(graphs={DIGEST: timing(waited=0.5)})).encode())

    assert (older.graphs[DIGEST].waited, busy.graphs[DIGEST].waited) == (0.0, 0.5)
    with pytest.raises(ConfigError, match=r"waited: got 1\.5, expected a share"):
        profile_from_json(json.dumps(document(graphs={DIGEST: timing(waited=1.5)})).encode())
