"""The bundle of the rung that was taken: it runs that rung, and hides nothing that its build had said."""

from __future__ import annotations

from pathlib import Path

from agent.bundle import open_bundle
from optimize.ladder import RungFile, deploy
from tests.kit.bundles import make_bundle
from tests.kit.rungs import rung

TOP = RungFile(name="top", path=Path("top.onnx"))


def int8_of_top(path: Path) -> RungFile:
    return RungFile(name="top-int8", path=path, graph="cpu", made_from="top")


def test_a_float_rung_runs_from_its_bundle_and_a_failed_gate_stays_failed(tmp_path: Path) -> None:
    """Its INT8 graphs are still inside, and a device may be told to run them."""
    made = make_bundle(tmp_path, gate_passed=False, gate_reasons=("INT8 loses 7 points",))

    found = deploy(rung("top"), [TOP, int8_of_top(made.path)], tmp_path / "out-1.0.0.defect")

    assert found is not None
    manifest = open_bundle(found).manifest
    assert manifest.cpu_graph == "fp32"
    assert (manifest.gate_passed, manifest.gate_reasons) == (False, ("INT8 loses 7 points",))


def test_what_the_build_counted_at_its_own_temperature_goes_with_it(tmp_path: Path) -> None:
    """Decisions are other ones at another temperature; classes, and what hangs on no temperature, are not."""
    counts = {"n": 12, "accuracy": 0.75, "recall": {"good": 1.0}, "errors": 0}
    card = {**counts, "escapes": 1, "overkills": 2, "review_rate": 0.5}
    metrics = {
        "split": "val",
        "drop_points": 7.0,
        "fp32": card,
        "int8": card,
        "calibration": {"temperature": 1.0, "ece_before": 0.2, "ece_after": 0.1, "n": 12},
    }
    made = make_bundle(tmp_path, metrics=metrics)
    files = [TOP, int8_of_top(made.path)]

    alike, other = (
        deploy(rung("top", temperature=value), files, tmp_path / f"at-{value}.defect") for value in (1.0, 2.0)
    )

    assert alike is not None
    assert other is not None
    assert open_bundle(alike).manifest.metrics == metrics
    manifest = open_bundle(other).manifest
    assert manifest.temperature == 2.0
    assert manifest.metrics == {
        "split": "val",
        "drop_points": 7.0,
        "fp32": counts,
        "int8": counts,
        "calibration": {"temperature": 2.0},
    }


def test_an_int8_rung_is_the_bundle_that_it_came_in(tmp_path: Path) -> None:
    """To the byte, when the bundle runs that graph already."""
    made = make_bundle(tmp_path)

    found = deploy(rung("top-int8", graph="cpu"), [TOP, int8_of_top(made.path)], tmp_path / "out-1.0.0.defect")

    assert found is not None
    assert found.read_bytes() == made.path.read_bytes()


def test_a_float_rung_without_a_bundle_gives_none(tmp_path: Path) -> None:
    """Nothing is invented: `build` makes one."""
    assert deploy(rung("top"), [TOP], tmp_path / "out-1.0.0.defect") is None
    assert not list(tmp_path.iterdir())
