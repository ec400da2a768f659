"""Writing bundles: the same bytes every time, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bundle import open_bundle
from agent.errors import BundleError
from optimize.errors import OptimizeError
from optimize.pack import pack_bundle
from tests.kit.bundles import kit_manifest, make_bundle
from tests.kit.models import classifier

FILES = {"model.cpu.onnx": classifier(), "model.fp32.onnx": classifier()}


@pytest.mark.parametrize("name", ["../out.onnx", "/abs", "a b", "golden/", "x" * 121])
def test_a_name_that_no_device_would_take_is_not_packed(tmp_path: Path, name: str) -> None:
    """What is written must open; the builder hears of it, not the line."""
    with pytest.raises(BundleError):
        pack_bundle(tmp_path / "kit.defect", kit_manifest(), {**FILES, name: b"x"})

    assert list(tmp_path.iterdir()) == []


def test_a_manifest_among_the_files_is_refused(tmp_path: Path) -> None:
    """It would be overwritten without a word."""
    with pytest.raises(OptimizeError, match=r"manifest\.json is written by pack_bundle"):
        pack_bundle(tmp_path / "kit.defect", kit_manifest(), {**FILES, "manifest.json": b"{}"})


def test_a_graph_without_its_file_leaves_the_old_bundle_in_place(tmp_path: Path) -> None:
    """A failed build must not take away what runs."""
    old = make_bundle(tmp_path / "kit.defect")

    with pytest.raises(BundleError, match=r"graphs\.fp32: no file"):
        pack_bundle(old.path, kit_manifest(), {"model.cpu.onnx": classifier()})

    assert open_bundle(old.path).digest == old.digest
    assert [path.name for path in tmp_path.iterdir()] == ["kit.defect"]


def test_broken_goldens_are_noticed_at_the_build(tmp_path: Path) -> None:
    """Their hash would be right, and the device would refuse them."""
    with pytest.raises(BundleError, match=r"golden/golden\.json"):
        pack_bundle(tmp_path / "kit.defect", kit_manifest(), {**FILES, "golden/golden.json": b"[]"})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["nowhere/kit.defect", "file/kit.defect"])
def test_a_place_that_can_not_be_written_is_the_users_mistake(tmp_path: Path, place: str) -> None:
    """OSError is translated, with what to do."""
    (tmp_path / "file").touch()

    with pytest.raises(OptimizeError, match="can't be written") as caught:
        pack_bundle(tmp_path / place, kit_manifest(), FILES)

    assert "--out" in str(caught.value.hint)


def test_a_folder_in_the_place_of_the_bundle_is_the_users_mistake(tmp_path: Path) -> None:
    """The rename fails last, and must leave nothing behind."""
    (tmp_path / "kit.defect").mkdir()

    with pytest.raises(OptimizeError, match="can't be written"):
        pack_bundle(tmp_path / "kit.defect", kit_manifest(), FILES)

    assert [path.name for path in tmp_path.iterdir()] == ["kit.defect"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order of the dictionary, the hour and the place: a release can be rebuilt and compared."""
    first = pack_bundle(tmp_path / "a.defect", kit_manifest(), FILES)
    second = pack_bundle(tmp_path / "b.defect", kit_manifest(), dict(reversed(FILES.items())))

    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest


def test_files_of_a_given_manifest_are_filled_anew(tmp_path: Path) -> None:
    """A manifest taken from another bundle brings no stale hashes along."""
    bundle = pack_bundle(tmp_path / "kit.defect", kit_manifest(files={"old.onnx": "0" * 64}), FILES)

    assert set(bundle.manifest.files) == set(FILES)
