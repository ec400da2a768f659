"""`tools/bench` as a reader of the README types it: on tiny nets, in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kit.float_models import write_model, write_parts
from tools.bench_quantize.checks import NAMES

ROOT = Path(__file__).resolve().parents[2]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEFECT_AGENT_VENV": sys.prefix}
    return subprocess.run(
        [str(ROOT / "tools" / "bench"), *words], capture_output=True, text=True, check=False, env=environment
    )


def test_without_a_name_it_lists_what_there_is() -> None:
    """Nobody remembers names."""
    done = bench()

    assert done.returncode == 0
    assert "quantize: INT8: ours beside float" in done.stdout


def test_a_bench_that_is_not_there_is_named_with_those_that_are() -> None:
    """A typing mistake is no traceback."""
    done = bench("quantise")

    assert done.returncode == 2
    assert "no bench quantise" in done.stderr
    assert "quantize:" in done.stderr


def test_a_folder_without_pictures_is_said_in_a_sentence(tmp_path: Path) -> None:
    """NEU-DET is not part of the repository, so it is often absent."""
    done = bench("quantize", "--quick", "--data", str(tmp_path), "--work", str(tmp_path))

    assert done.returncode == 2
    assert "no splits.csv there" in done.stderr
    assert "Traceback" not in done.stderr


def test_quick_gives_every_check_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """One JSON document on standard output; what can't be measured has no value and a reason."""
    data = write_parts(tmp_path / "parts", {"test": 4, "calib": 8, "val": 2})
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models" / "resnet18.onnx")
    words = ["quantize", "--quick", "--json", "--parts", "accuracy,speed"]
    words += ["--data", str(data), "--models", str(tmp_path / "models"), "--work", str(tmp_path / "work")]

    first, second = bench(*words), bench(*words)

    assert first.returncode == 0, first.stderr
    document, again = json.loads(first.stdout), json.loads(second.stdout)
    checks = document["checks"]
    assert tuple(checks) == NAMES
    drop = checks["resnet18_drop_cpu"]
    assert drop["low"] <= drop["value"] <= drop["high"]
    assert checks["resnet18_speedup"]["value"] > 0
    assert checks["lite0_snr_gain_db"]["value"] is None
    assert "lite0.onnx is not there" in checks["lite0_snr_gain_db"]["why"]
    assert again["checks"]["resnet18_drop_cpu"] == drop
    assert "views in" in first.stderr
    assert "views in" not in second.stderr
