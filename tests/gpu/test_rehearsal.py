"""What `tools/test --gpu` does, rehearsed on the stand-ins: on the first real GPU the check itself must not fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.gpu_session import REPORT, report_of, run_session, write_report
from tests.kit.pycuda import installed as pycuda_installed
from tests.kit.tensorrt import installed as tensorrt_installed


def test_the_whole_session_makes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures that the support table asks for."""
    with tensorrt_installed("10.3.0"), pycuda_installed():
        session = run_session(tmp_path, runs=20)
    monkeypatch.setenv(REPORT, str(tmp_path / "out/report.md"))
    path = write_report(session)

    assert session.is_good, session.built.err + session.accepted.err + session.accepted.out
    assert path is not None
    text = path.read_text(encoding="utf-8")
    for words in ("| engine | TensorRT 10.3.0", "| accept | accepted |", "| golden inputs | 0 of 24", "p50", "graph `"):
        assert words in text


def test_without_tensorrt_the_report_says_so(tmp_path: Path) -> None:
    """In the words that the command has, with what to install."""
    session = run_session(tmp_path, runs=20)

    assert not session.is_good
    assert "`build-engine` failed (exit 2):" in report_of(session)
    assert "Try: " in report_of(session)
