"""Bytes of industrial cameras to BGR: the right colours, the right bits, no picture from too few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cameras.pixels import FORMATS, bgr_from_bytes, format_in_words
from agent.errors import ImageError
from tests.kit.aravis_cameras import aravis

CODES = {known.name: code for code, known in FORMATS.items()}


def mosaic(layout: str, blue: int, green: int, red: int, dtype: str, shift: int) -> bytes:
    """One colour behind a Bayer filter, 8 by 6 pixels."""
    cell = np.array([{"R": red, "G": green, "B": blue}[letter] << shift for letter in layout]).reshape(2, 2)
    return np.tile(cell, (3, 4)).astype(dtype).tobytes()


@pytest.mark.parametrize("name", sorted(CODES))
def test_every_format_gives_the_colour_that_was_there(name: str) -> None:
    """Blue 40, green 90, red 200; grey formats see 90."""
    known = FORMATS[CODES[name]]
    blue, green, red = (90, 90, 90) if known.layout == "grey" else (40, 90, 200)
    dtype, shift = ("u1", 0) if known.bits == 8 else ("<u2", known.bits - 8)
    if known.layout in ("rgb", "bgr"):
        colour = (red, green, blue) if known.layout == "rgb" else (blue, green, red)
        data = np.tile(np.array(colour, np.uint8), (6, 8, 1)).tobytes()
    else:
        layout = known.layout if len(known.layout) == 4 and known.layout != "grey" else "GGGG"
        data = mosaic(layout, blue, green, red, dtype, shift)

    image = bgr_from_bytes(data, CODES[name], 8, 6)

    assert image.shape == (6, 8, 3)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert (image == (blue, green, red)).all()


def test_the_codes_are_aravis_own() -> None:
    """A wrong code would refuse a good camera, or read it wrongly."""
    module = aravis()

    for code, known in FORMATS.items():
        kind = known.name.rstrip("0123456789")
        bits = known.name.removeprefix(kind)
        name = {"Mono": "MONO", "RGB": "RGB", "BGR": "BGR"}.get(kind) or f"BAYER_{kind[-2:]}"
        packed = "_PACKED" if kind in ("RGB", "BGR") else ""
        assert getattr(module, f"PIXEL_FORMAT_{name}_{bits}{packed}") == code, known.name


def test_padding_behind_the_rows_is_left_out() -> None:
    """Some cameras fill rows up to a multiple of four."""
    rows = np.full((6, 9), 255, np.uint8)
    rows[:, :7] = 50

    assert (bgr_from_bytes(rows.tobytes(), CODES["Mono8"], 7, 6, row_padding=2) == 50).all()


def test_what_follows_the_picture_is_left_alone() -> None:
    """Chunk data."""
    assert bgr_from_bytes(bytes(48) + b"chunks", CODES["Mono8"], 8, 6).shape == (6, 8, 3)


@given(missing=st.integers(1, 96))
def test_too_few_bytes_are_no_picture(missing: int) -> None:
    """The rest of it would be the buffer's picture of before."""
    with pytest.raises(ImageError, match="need 96 bytes"):
        bgr_from_bytes(bytes(96 - missing), CODES["Mono12"], 8, 6)


def test_values_beyond_their_bits_are_refused() -> None:
    """Left-justified values would lose their high bits, and give a picture of noise."""
    with pytest.raises(ImageError, match="holds the value 65520, which has more than 12 bits"):
        bgr_from_bytes(np.full(48, 0xFFF0, "<u2").tobytes(), CODES["Mono12"], 8, 6)


def test_an_unknown_format_is_refused_with_those_that_are_known() -> None:
    """Mono12p: three bytes for two pixels."""
    with pytest.raises(ImageError, match="pixel format 0x010C0047 can't be read") as caught:
        bgr_from_bytes(bytes(96), 0x010C0047, 8, 6)

    assert "Mono12" in str(caught.value.hint)
    assert format_in_words(CODES["BayerRG8"]) == "BayerRG8"


def test_a_single_row_has_no_colours() -> None:
    """OpenCV would crash on it."""
    with pytest.raises(ImageError, match="too few for the colours"):
        bgr_from_bytes(bytes(8), CODES["BayerRG8"], 8, 1)
