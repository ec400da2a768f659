"""What a good bundle gives, and how each mistake with the file is answered."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agent.bundle import Bundle, open_bundle
from agent.bundle.manifest import manifest_from_json
from agent.errors import BundleError
from tests.kit.bundles import make_bundle
from tests.kit.models import classifier


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return caught.value


def test_a_missing_bundle_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """A typo in a name is the commonest mistake; the right name stands in the hint."""
    make_bundle(tmp_path)

    error = refusal(tmp_path / "kit-1.0.1.defect")

    assert f"{tmp_path}/kit-1.0.1.defect: no such file" in error.message
    assert "kit-1.0.0.defect" in str(error.hint)


def test_a_missing_bundle_in_a_missing_folder_is_refused_in_words(tmp_path: Path) -> None:
    """The hint must not fail on a folder that isn't there."""
    assert "no such file" in refusal(tmp_path / "nowhere" / "kit.defect").message


def test_a_folder_is_refused_in_words(tmp_path: Path) -> None:
    """Some unpack a bundle and name the folder."""
    assert "is a folder" in refusal(tmp_path).message


def test_an_empty_file_is_refused_in_words(tmp_path: Path) -> None:
    """What a copy leaves on a full disk."""
    path = tmp_path / "empty.defect"
    path.touch()

    assert "is empty (0 bytes)" in refusal(path).message


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    """Opening a FIFO would block the start for ever."""
    path = tmp_path / "pipe.defect"
    os.mkfifo(path)

    assert "is a pipe or a device" in refusal(path).message


@pytest.mark.parametrize(
    ("name", "start", "words"),
    [
        ("photo.defect", b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG picture, not a bundle"),
        ("photo.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG picture, not a bundle"),
        ("model.onnx", b"\x08\x08" + bytes(100), "is an ONNX model, not a bundle"),
        ("notes.defect", b"hello, line 3", "does not begin as one"),
        ("one.defect", b"P", "does not begin as one"),
        ("zip.defect", b"PK\x03\x04", "was cut off"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(tmp_path: Path, name: str, start: bytes, words: str) -> None:
    """`not a zip file` helps nobody who picked the wrong file."""
    path = tmp_path / name
    path.write_bytes(start)

    error = refusal(path)

    assert words in error.message
    assert str(path) in error.message
    assert error.hint is not None


def test_a_zip_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    """An empty ZIP is a whole, valid ZIP."""
    path = tmp_path / "empty-zip.defect"
    with zipfile.ZipFile(path, "w"):
        pass

    assert "is a ZIP without manifest.json" in refusal(path).message


def test_a_bundle_gives_back_what_was_packed(bundle: Bundle) -> None:
    """Byte for byte, by name and by kind."""
    assert bundle.read("model.cpu.onnx") == classifier()
    assert bundle.graph("fp32") == classifier()
    assert bundle.manifest == manifest_from_json(bundle.read("manifest.json"))
    assert bundle.goldens() == ()


def test_the_digest_is_that_of_the_manifest(bundle: Bundle) -> None:
    """Auditors compute it with sha256sum; as the manifest holds all hashes, it covers every file."""
    with zipfile.ZipFile(bundle.path) as archive:
        manifest = archive.read("manifest.json")

    assert bundle.digest == hashlib.sha256(manifest).hexdigest()
    for name, digest in json.loads(manifest)["files"].items():
        assert digest == hashlib.sha256(bundle.read(name)).hexdigest()


def test_a_bundle_is_a_zip_for_every_tool(bundle: Bundle) -> None:
    """Sorted, stored, dated 1980: people look into bundles with what they have."""
    with zipfile.ZipFile(bundle.path) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()

    assert [entry.filename for entry in entries] == ["manifest.json", "model.cpu.onnx", "model.fp32.onnx"]
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}


def test_a_file_that_is_not_there_is_refused_with_those_that_are(bundle: Bundle) -> None:
    """The hint saves a look into the ZIP."""
    with pytest.raises(BundleError, match=r"no file report\.html in it \(it has: manifest\.json"):
        bundle.read("report.html")


def test_a_graph_that_is_not_there_is_refused_with_those_that_are(bundle: Bundle) -> None:
    """A bundle without TensorRT graph on a Jetson must say so."""
    with pytest.raises(BundleError, match=r"no graph 'trt' in it \(it has: cpu, fp32\)"):
        bundle.graph("trt")


def test_a_bundle_written_over_while_in_use_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    """What was verified and what is read later must be the same bytes."""
    other = make_bundle(tmp_path / "other.defect", graph=classifier(cell=8))
    shutil.copyfile(other.path, bundle.path)

    with pytest.raises(BundleError, match="changed on disk since the bundle was opened"):
        bundle.read("model.cpu.onnx")


def test_a_bundle_deleted_while_in_use_is_a_bundle_error(bundle: Bundle) -> None:
    """OSError must not get past this door."""
    bundle.path.unlink()

    with pytest.raises(BundleError, match="can't be read"):
        bundle.read("model.cpu.onnx")


def test_describe_is_json_with_sizes_and_hashes(bundle: Bundle) -> None:
    """`bundle show --json` prints it as it is."""
    shown = json.loads(json.dumps(bundle.describe(), allow_nan=False))

    assert shown["bytes"] == bundle.path.stat().st_size
    assert shown["digest"] == bundle.digest
    assert shown["graphs"]["cpu"]["bytes"] == len(classifier())
    assert shown["classes"][1] == {"name": "scratch", "severity": "major", "min_size_mm": None}
    assert set(shown["files"]) == {"model.cpu.onnx", "model.fp32.onnx"}
    assert shown["goldens"] == 0


def test_a_bundle_is_opened_with_little_memory(tmp_path: Path) -> None:
    """A Pi has 1 GB: verifying must not hold the weights."""
    import tracemalloc

    weights = np.zeros(64 << 20, dtype=np.uint8).tobytes()
    path = make_bundle(tmp_path / "big.defect", files={"weights.bin": weights}).path
    del weights
    tracemalloc.start()
    try:
        open_bundle(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 8 << 20
