"""`engine.threads: auto`: the fewest threads that pay, tested once, on real sessions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from agent.config import AgentConfig, EngineConfig, LineConfig
from agent.engines import open_engine, time_for_one
from agent.engines.threads import ThreadTiming, choose_threads, counts_up_to
from agent.engines.trt_cache import EngineCache
from agent.errors import ConfigError
from agent.typed_yaml import config_from_mapping
from tests.kit.bundles import make_bundle


def timing(threads: int, ms: float, *, slow_ms: float | None = None, cpu_ms: float | None = None) -> ThreadTiming:
    return ThreadTiming(
        threads=threads, ms=ms, slow_ms=ms if slow_ms is None else slow_ms, cpu_ms=10.0 if cpu_ms is None else cpu_ms
    )


@pytest.mark.parametrize(
    ("measured", "within_ms", "expected"),
    [
        ([timing(1, 10)], None, 1),
        ([timing(1, 10), timing(2, 5.2)], None, 2),
        ([timing(1, 10), timing(2, 5.2), timing(4, 2.9)], None, 4),
        ([timing(1, 10), timing(2, 5.2), timing(4, 4.4)], None, 2),
        ([timing(1, 10), timing(2, 7.5)], None, 1),
        ([timing(1, 10), timing(2, 5.2, cpu_ms=20)], None, 1),
        ([timing(1, 10, slow_ms=11), timing(2, 5.2, slow_ms=14)], None, 1),
        ([timing(1, 10), timing(2, 5.2)], 12.0, 1),
        ([timing(1, 10), timing(2, 7.5, cpu_ms=20)], 8.0, 2),
        ([timing(1, 10), timing(2, 7.5, cpu_ms=20), timing(4, 7.0, cpu_ms=40)], 8.0, 2),
        ([timing(1, 10), timing(2, 10.5)], 8.0, 1),
    ],
    ids=[
        "nothing to compare",
        "twice as fast at the same CPU time",
        "and again",
        "the second doubling does not pay",
        "a quarter off is too little",
        "twice the CPU time",
        "less steady",
        "the deadline needs no more",
        "the deadline needs more, whatever they cost",
        "but not more than it needs",
        "the deadline is missed either way",
    ],
)
def test_the_fewest_threads_that_are_fast_enough_are_taken(
    measured: list[ThreadTiming], within_ms: float | None, expected: int
) -> None:
    """More take cores from camera and journal, so they must bring something."""
    threads, why = choose_threads(measured, within_ms)

    assert threads == expected
    assert why


def test_the_reason_is_told_in_words() -> None:
    """What was measured, and what decided."""
    _, why = choose_threads([timing(1, 10), timing(2, 5.2, cpu_ms=20)])

    assert why == "2 threads 5.20 ms (CPU 20.00) after 1 thread 10.00 ms (CPU 10.00): 2.0 times the CPU time"


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))])
def test_numbers_of_threads_are_doubled_up_to_the_cores(cores: int, counts: tuple[int, ...]) -> None:
    """Never more threads than cores: the engine would wait for itself."""
    assert counts_up_to(cores) == counts


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_choice_is_tested_once_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next start runs the engine that was accepted, without a test."""
    bundle, cache = make_bundle(tmp_path), EngineCache(tmp_path / "engines", 1_000_000)
    config = EngineConfig(kind="onnxruntime")
    caplog.set_level("INFO", "agent.engines")
    one = open_engine(bundle, config, cache=cache)
    two = open_engine(bundle, config, cache=cache)
    one.infer(np.zeros((1, 32, 32, 3), dtype=np.uint8))

    assert two.identity == one.identity
    assert events(caplog) == ["engine_threads"]
    assert str(caplog.records[0].__dict__["fields"]["threads"]) == one.identity["threads"]
    assert 1 <= int(one.identity["threads"]) <= len(os.sched_getaffinity(0))


def test_what_was_kept_is_what_is_opened(tmp_path: Path) -> None:
    """Also where this moment's test would find otherwise; what is no number of threads here is tested anew."""
    bundle, cache = make_bundle(tmp_path), EngineCache(tmp_path / "engines", 1_000_000)
    config = EngineConfig(kind="onnxruntime")
    found = open_engine(bundle, config, cache=cache).identity["threads"]
    (kept,) = cache.folder.glob("*.threads")
    other = next((n for n in counts_up_to(len(os.sched_getaffinity(0))) if str(n) != found), 1)
    kept.write_text(f"{other}\n")
    assert open_engine(bundle, config, cache=cache).identity["threads"] == str(other)

    for damaged in ("", "many", "0", "-1", "100000"):
        kept.write_text(damaged)
        opened = open_engine(bundle, config, cache=cache)

        assert kept.read_text() == f"{opened.identity['threads']}\n"


def test_a_number_in_the_configuration_is_not_tested(tmp_path: Path) -> None:
    """Somebody has decided."""
    bundle, cache = make_bundle(tmp_path), EngineCache(tmp_path / "engines", 1_000_000)
    opened = open_engine(bundle, EngineConfig(kind="onnxruntime", threads=2), cache=cache)

    assert opened.identity["threads"] == "2"
    assert not cache.folder.exists()


def test_a_choice_that_cannot_be_kept_is_told_and_the_line_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk without room keeps no line from judging."""
    (tmp_path / "engines").write_text("a file in the folder's place")
    cache = EngineCache(tmp_path / "engines", 1_000_000)
    caplog.set_level("INFO", "agent.engines")
    opened = open_engine(make_bundle(tmp_path), EngineConfig(kind="onnxruntime"), cache=cache)

    assert opened.infer(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    assert events(caplog) == ["engine_threads_not_kept", "engine_threads"]


def test_an_inference_has_half_of_the_deadline() -> None:
    """The other half is for exposure, preparation and the verdict."""
    config = config_from_mapping(
        AgentConfig,
        {
            "station": "a/b",
            "bundle": "b.defect",
            "state_dir": "state",
            "camera": {"kind": "folder", "path": "p"},
            "line": {"deadline_ms": 30},
        },
        source=Path("/tmp/station.yaml"),
    )

    assert config.line == LineConfig(deadline_ms=30.0)
    assert time_for_one(config) == 15.0


@pytest.mark.parametrize("threads", ["auto", 1, 256])
def test_threads_are_auto_or_a_number(threads: object) -> None:
    """Both are written as they are meant."""
    read = config_from_mapping(EngineConfig, {"threads": threads}, source=Path("station.yaml"))

    assert read.threads == threads


@pytest.mark.parametrize(
    ("threads", "words"),
    [
        ("two", "got 'two', expected auto or a whole number"),
        (0, "got 0, expected 1 to 256"),
        (1.5, "got 1.5, expected a whole number"),
        (None, "got None, expected a whole number"),
    ],
)
def test_other_threads_are_refused(threads: object, words: str) -> None:
    """What was got, and what was expected."""
    with pytest.raises(ConfigError, match=words):
        config_from_mapping(EngineConfig, {"threads": threads}, source=Path("station.yaml"))
