"""`tools/bench line`: what it says of a measurement is what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tools.bench_line.latency import latency_checks
from tools.bench_line.memory import slope_of
from tools.bench_line.plot import draw_line
from tools.bench_line.rate import rate_checks

ROOT = Path(__file__).resolve().parents[2]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEFECT_AGENT_VENV": sys.prefix}
    return subprocess.run(
        [str(ROOT / "tools" / "bench"), "line", *words], capture_output=True, text=True, check=False, env=environment
    )


def rate_row(model: str, value: float, *, cameras: int = 1) -> dict[str, Any]:
    ratio = {"value": value, "low": value - 0.01, "high": value + 0.01}
    return {
        "part": "rate", "model": model, "cameras": cameras, "ratio": ratio, "ratio_median": value, "line_per_s": 900.0,
        "waited_for_a_core": 0.02,
    }  # fmt: skip


def latency_row(model: str, p99: float) -> dict[str, Any]:
    stages = ("preprocess", "infer", "decide", "added", "decided", "disk", "broker", "received")
    return {
        "part": "latency", "model": model, "per_s": 80.0, "added_p99": {"value": p99, "low": p99, "high": p99},
        **{f"{name}_ms": [0.1, 0.2, 0.3, p99] for name in stages},
    }  # fmt: skip


def test_the_worst_model_is_the_check_and_four_cameras_are_told() -> None:
    """One slow model must not hide behind three fast ones."""
    rows = [rate_row("classify fp32 1 ms", 0.97), rate_row("detect fp32 1 ms", 0.88)]
    rows.append(rate_row("detect fp32 1 ms", 0.61, cameras=4))

    found = rate_checks(rows)

    assert found["line_ratio_1ms"].value == 0.88
    assert "detect fp32 1 ms; four cameras: 0.61" in str(found["line_ratio_1ms"].why)
    assert found["line_ratio_5ms"].value is None


def test_the_worst_pace_is_the_added_latency() -> None:
    """A line that is quick at 20 parts per second may not be so at 400."""
    found = latency_checks([latency_row("classify fp32 1 ms", 0.9), latency_row("detect fp32 1 ms", 1.4)])

    assert found["added_ms_p99"].value == 1.4


def test_a_leak_is_told_from_noise() -> None:
    """2 kB per 1,000 parts are found under noise of 300 kB; flat memory has 0 in its interval."""
    noise = np.random.default_rng(3).normal(0, 300, 100)
    flat = [{"parts": 10_000 * (i + 1), "rss_kb": 100_000 + noise[i]} for i in range(100)]
    leak = [{**sample, "rss_kb": sample["rss_kb"] + sample["parts"] / 500} for sample in flat]

    steady, growing = slope_of(flat), slope_of(leak)

    assert steady.low is not None
    assert steady.high is not None
    assert steady.low < 0 < steady.high
    assert growing.value == pytest.approx(2.0, abs=0.5)
    assert growing.low is not None
    assert growing.low > 0


def test_the_plot_shows_what_was_measured_and_needs_nothing_else() -> None:
    """A run of one part draws that part; a run of neither draws nothing."""
    both = draw_line([rate_row("detect fp32 1 ms", 0.9), latency_row("detect fp32 1 ms", 1.4)])
    rates = draw_line([rate_row("detect fp32 1 ms", 0.9)])

    assert both is not None
    assert rates is not None
    heights = []
    for png in (both, rates):
        picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        heights.append(picture.shape[0])
    assert heights[0] > heights[1]
    assert draw_line([]) is None


def test_a_part_that_is_not_there_is_refused() -> None:
    """A typing mistake is no half hour of measuring something else."""
    done = bench("--parts", "rates")

    assert done.returncode == 2
    assert "unknown parts: rates" in done.stderr


@pytest.mark.mosquitto
def test_an_outage_of_the_broker_is_measured_and_nothing_is_lost(tmp_path: Path) -> None:
    """The real agent, a real broker that is killed for five seconds; every check stands in the JSON."""
    done = bench("--quick", "--json", "--parts", "outage", "--work", str(tmp_path))

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["checks"]["outage_lost"]["value"] == 0
    assert document["checks"]["line_ratio_5ms"] == {
        "value": None, "low": None, "high": None, "why": "not asked for in this run"
    }  # fmt: skip
    assert [row["part"] for row in document["rows"]] == ["outage"]
