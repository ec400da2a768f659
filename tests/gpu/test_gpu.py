"""On a machine with a GPU and TensorRT: `tools/test --gpu`. The whole way once, and a report for the support table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.gpu_session import GpuSession, run_session, write_report

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> GpuSession:
    made = run_session(tmp_path_factory.mktemp("gpu"))
    write_report(made)
    return made


def test_the_engine_is_compiled_here(session: GpuSession) -> None:
    """By this machine's TensorRT, in INT8."""
    assert session.built.code == 0, session.built.err
    assert session.built.json["built"] is True
    assert "int8" in session.built.json["name"]


def test_it_is_accepted(session: GpuSession) -> None:
    """No golden input is judged otherwise than by the Q/DQ graph in ONNX Runtime."""
    assert session.accepted.code == 0, session.accepted.err or session.accepted.out
    assert session.accepted.json["goldens"]["changed"] == 0
    assert session.accepted.json["fell_back"] is False


def test_its_outputs_are_near_the_reference(session: GpuSession) -> None:
    """Steps of INT8 here and there, FP16 elsewhere: less than half a logit, not another function."""
    assert session.accepted.json["difference"]["logits"] < 0.5


def test_the_median_is_no_fiction(session: GpuSession) -> None:
    """Warm inferences differ by less than a factor of ten from the median to the 95th percentile on an idle machine."""
    warm = session.accepted.json["latency_ms"]["warm"]

    assert 0 < warm["p50"] <= warm["p95"] < 10 * warm["p50"]


def test_nothing_of_it_is_left_in_the_home_folder(session: GpuSession, tmp_path: Path) -> None:
    """Engines lie in the station's state directory."""
    assert "/state/" in session.built.json["engine"]
