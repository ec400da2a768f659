"""TensorRT's calibration cache: what TensorRT wrote is read, what we write is the same, and nothing else is taken."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.errors import ModelError
from optimize.quantize.cache import STEPS, read_cache, write_cache

FROM_TENSORRT = b"""TRT-7202-EntropyCalibration2
data: 3c008912
conv1: 3c60dd38
(Unnamed Layer* 4) [Fully Connected]_output: 3d65992f
prob: 3c083ffd
"""
"""The form of a cache that TensorRT 7.2 wrote for an MNIST network whose pixels lie in 0 to 1."""

names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=("L", "N", "P", "S")), min_size=1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "line 1: got ''"),
        (b"\xff\xfe", "is no text"),
        (b"data: 3c008912\n", "line 1: got 'data: 3c008912', expected TRT-NUMBER-EntropyCalibration2"),
        (b"TRT-8601-MinMaxCalibration\ndata: 3c008912\n", "line 1"),
        (b"TRT-8601-EntropyCalibration2\ndata 3c008912\n", "line 2: got 'data 3c008912'"),
        (b"TRT-8601-EntropyCalibration2\na: 3c008912\nb: 3c0089123\n", "line 3"),
        (b"TRT-8601-EntropyCalibration2\na: 0.0078\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\na: 3C008912\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\na: \n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\n: 3c008912\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\na: 7f800000\n", "line 2: the scale of 'a' is inf"),
        (b"TRT-8601-EntropyCalibration2\na: 7fc00000\n", "line 2: the scale of 'a' is nan"),
        (b"TRT-8601-EntropyCalibration2\na: bc008912\n", "line 2: the scale of 'a' is -0.0"),
        (b"TRT-8601-EntropyCalibration2\na: 3c008912\na: 3c008912\n", "line 3: tensor 'a' stands there a second time"),
        (b"TRT-8601-EntropyCalibration2\na: 3c008912\n\nb: 3c008912\n", "line 3: got an empty line"),
    ],
)
def test_what_is_no_calibration_cache_is_refused_with_the_line(data: bytes, expected: str) -> None:
    """A cache that is half understood gives an engine with wrong ranges, and nobody sees why."""
    with pytest.raises(ModelError, match=re.escape(expected)):
        read_cache(data)


@pytest.mark.parametrize("name", ["", "a: b", "a\nb", "a\rb", " a", "a ", "a\x00"])
def test_a_name_that_a_line_cannot_hold_is_refused(name: str) -> None:
    """It would be read as another tensor's line."""
    with pytest.raises(ModelError, match="tensor name"):
        write_cache({name: 1.0}, version="8.6.1")


@pytest.mark.parametrize("largest", [0.0, -1.0, math.nan, math.inf, 1e-45, 1e300])
def test_a_range_that_is_none_is_refused(largest: float) -> None:
    """TensorRT would take infinity, and run the layer in float or give noise (NVIDIA/TensorRT#672)."""
    with pytest.raises(ModelError, match="tensor 'a'"):
        write_cache({"a": largest}, version="8.6.1")


@pytest.mark.parametrize("version", ["", "8", "8.6", "8.6.x", "trt-8.6.1", "-8.6.1"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    """TensorRT takes a cache of its own release only."""
    with pytest.raises(ModelError, match="TensorRT version"):
        write_cache({"a": 1.0}, version=version)


def test_a_cache_from_tensorrt_is_read() -> None:
    """The scale of pixels up to 0.9963 is 0.9963 / 127: the digits are a scale, not a range."""
    scales = read_cache(FROM_TENSORRT)

    assert list(scales) == ["data", "conv1", "(Unnamed Layer* 4) [Fully Connected]_output", "prob"]
    assert scales["data"] * STEPS == pytest.approx(0.99634, abs=1e-5)


def test_what_tensorrt_wrote_is_written_again_byte_for_byte() -> None:
    """Order, digits and line ends are TensorRT's."""
    ranges = {name: scale * STEPS for name, scale in read_cache(FROM_TENSORRT).items()}

    assert write_cache(ranges, version="7.2.2") == FROM_TENSORRT


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.6.1", b"TRT-8601-"), ("8.5.2.2", b"TRT-8502-"), ("10.3.0", b"TRT-100300-"), ("10.13.3.9", b"TRT-101303-")],
)
def test_the_first_line_has_the_number_that_the_release_calls_itself(version: str, header: bytes) -> None:
    """NV_TENSORRT_VERSION: two digits more since release 10."""
    assert write_cache({"a": 1.0}, version=version).startswith(header)


def test_a_scale_without_its_leading_zeros_is_read() -> None:
    """TensorRT writes none, so a tensor that was always 0 has the single digit 0."""
    assert read_cache(b"TRT-8601-EntropyCalibration2\na: 0\nb: 3c008912\r\n")["a"] == 0.0


@given(st.dictionaries(names, st.floats(1e-30, 1e30), max_size=5))
def test_ranges_come_back_as_scales(ranges: dict[str, float]) -> None:
    """Whatever names an exporter invents; to the precision of a float32."""
    scales = read_cache(write_cache(ranges, version="8.6.1"))

    assert scales == {name: pytest.approx(largest / STEPS, rel=1e-6) for name, largest in ranges.items()}
    assert list(scales) == list(ranges)
