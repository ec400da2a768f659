"""Golden inputs: pixels and numbers come back exactly, and a broken set is refused."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from agent.bundle import Golden, InputSpec, golden_files, golden_name
from agent.bundle.golden import GOLDEN_INDEX, goldens_from_files
from agent.errors import BundleError
from tests.kit.bundles import make_bundle

SPEC = InputSpec(width_px=32, height_px=32)


def golden(index: int = 0, *, seed: int = 0, logits: Any = (1.5, -0.1, 0.0)) -> Golden:
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    values = np.array([logits], dtype=np.float32)
    outputs = {"cpu": {"logits": values}, "fp32": {"logits": values * 2}}
    return Golden(file=golden_name(index), label="scratch" if index % 2 else None, image=image, outputs=outputs)


def read_back(files: dict[str, bytes]) -> tuple[Golden, ...]:
    return goldens_from_files(files[GOLDEN_INDEX], files.__getitem__, SPEC)


def edited(change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    """Files of one golden whose index went through `change`."""
    files = golden_files([golden()])
    raw = json.loads(files[GOLDEN_INDEX])
    change(raw)
    return {**files, GOLDEN_INDEX: json.dumps(raw).encode()}


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(schema=2),
        lambda raw: raw.pop("goldens"),
        lambda raw: raw.update(goldens={}),
        lambda raw: raw.update(goldens=[None]),
        lambda raw: raw.update(goldens=raw["goldens"] * 201),
        lambda raw: raw["goldens"][0].pop("label"),
        lambda raw: raw["goldens"][0].update(file=3),
        lambda raw: raw["goldens"][0].update(file="golden/999.png"),
        lambda raw: raw["goldens"][0].update(outputs=[]),
        lambda raw: raw["goldens"][0]["outputs"]["cpu"]["logits"].update(shape=[1, 4]),
        lambda raw: raw["goldens"][0]["outputs"]["cpu"]["logits"].update(shape=[-1, 3]),
        lambda raw: raw["goldens"][0]["outputs"]["cpu"]["logits"].update(shape=3),
        lambda raw: raw["goldens"][0]["outputs"]["cpu"]["logits"].update(values=["a", "b", "c"]),
        lambda raw: raw["goldens"][0]["outputs"]["cpu"]["logits"].update(values=[1, 2, float("nan")]),
        lambda raw: raw["goldens"][0]["outputs"]["cpu"]["logits"].update(values=[1, 2, 10**400]),
    ],
)
def test_an_index_that_is_not_as_it_must_be_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    """Acceptance must not run on half a reference."""
    with pytest.raises(BundleError, match=r"golden/golden\.json"):
        read_back(edited(change))


@pytest.mark.parametrize("index", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_index_is_refused(index: bytes) -> None:
    """No ValueError and no RecursionError gets out."""
    with pytest.raises(BundleError, match=r"golden/golden\.json"):
        goldens_from_files(index, lambda name: b"", SPEC)


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + chunk + struct.pack(">L", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (b"", "expected a PNG of 32 x 32 px"),
        (b"\xff\xd8\xff", "expected a PNG of 32 x 32 px"),
        (png_header(60_000, 60_000), "expected a PNG of 32 x 32 px"),
        (png_header(64, 32), "expected a PNG of 32 x 32 px"),
        (png_header(32, 32)[:20], "expected a PNG of 32 x 32 px"),
        (png_header(32, 32), "can't be decoded"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused_before_memory_is_taken(picture: bytes, words: str) -> None:
    """60,000 x 60,000 pixels would be 11 GB."""
    files = {**golden_files([golden()]), "golden/000.png": picture}

    with pytest.raises(BundleError, match=rf"golden/000\.png: {words}"):
        read_back(files)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_a_number_is_not_written(value: float) -> None:
    """Every comparison with NaN is false, and acceptance would pass or fail for nothing."""
    with pytest.raises(BundleError, match="NaN or infinity"):
        golden_files([golden(logits=(0, value, 1))])


def test_an_image_that_is_no_image_is_not_written() -> None:
    """The builder's mistake shows at the build."""
    wrong = Golden(file="golden/000.png", label=None, image=np.zeros((4, 4), dtype=np.uint8), outputs={})

    with pytest.raises(BundleError, match=r"expected \(H, W, 3\) uint8 RGB"):
        golden_files([wrong])


def test_goldens_come_back_through_a_bundle(tmp_path: Path) -> None:
    """Pixels, labels, graphs and roles, colours in their order."""
    written = [golden(i, seed=i) for i in range(3)]

    bundle = make_bundle(tmp_path, files=golden_files(written))

    assert bundle.describe()["goldens"] == 3
    for before, after in zip(written, bundle.goldens(), strict=True):
        assert (after.file, after.label) == (before.file, before.label)
        np.testing.assert_array_equal(after.image, before.image)
        assert after.outputs.keys() == before.outputs.keys()
        np.testing.assert_array_equal(after.outputs["fp32"]["logits"], before.outputs["fp32"]["logits"])


@given(
    values=st_numpy.arrays(
        np.float32,
        st_numpy.array_shapes(max_dims=4, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_reference_outputs_come_back_bit_for_bit(values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """A bound of one quantization step can't be checked against rounded references."""
    before = Golden(file="golden/000.png", label=None, image=golden().image, outputs={"cpu": {"cam": values}})

    (after,) = read_back(golden_files([before]))

    assert after.outputs["cpu"]["cam"].dtype == np.float32
    assert after.outputs["cpu"]["cam"].shape == values.shape
    assert after.outputs["cpu"]["cam"].tobytes() == values.tobytes()
