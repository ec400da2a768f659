"""Pictures in, pixels out: everything that is not a whole picture is refused in words."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cameras import decode_image, read_image
from agent.cameras.decode import _codecs_heard
from agent.errors import ImageError
from tests.kit.pictures import encoded, flat, png, textured, with_size
from tests.kit.users import without_root

KINDS = [".jpg", ".png", ".bmp", ".tiff", ".webp", ".ppm"]
PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def refusal(data: bytes, **limits: int) -> str:
    """What `decode_image` says when it refuses."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, source="part.jpg", **limits)
    assert caught.value.message.startswith("part.jpg: ")
    return caught.value.message.removeprefix("part.jpg: ")


@pytest.mark.parametrize("params", [(), PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_jpeg_is_refused(params: tuple[int, ...], kept: float) -> None:
    """OpenCV 4.8 decodes half of it and fills up with grey, which a model may well call good."""
    data = encoded(textured(160, 120), ".jpg", params)

    assert "truncated" in refusal(data[: int(len(data) * kept)])


def test_a_truncated_jpeg_with_an_end_marker_is_refused() -> None:
    """No OpenCV notices this one; only libjpeg's warning tells."""
    data = encoded(textured(160, 120), ".jpg")

    assert "premature end" in refusal(data[: len(data) // 2] + b"\xff\xd9")


def test_a_thumbnails_end_marker_is_not_taken_for_the_pictures() -> None:
    """EXIF carries a whole small JPEG: a file cut behind it ends in 0xFF 0xD9 and has no picture."""
    data = encoded(textured(160, 120), ".jpg")
    thumbnail = encoded(textured(16, 16), ".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(thumbnail)) + b"Exif\x00\x00" + thumbnail
    whole = data[:2] + segment + data[2:]

    np.testing.assert_array_equal(decode_image(whole), decode_image(data))
    assert "truncated" in refusal(whole[: 2 + len(segment)])
    assert "no end-of-image marker" in refusal(whole[: len(whole) * 3 // 4])


def test_a_jpeg_with_overwritten_data_is_refused_when_libjpeg_notices() -> None:
    """A JPEG has no checksum; 64 bytes of noise are noticed nearly always, and then must not be passed over."""
    data = bytearray(encoded(textured(160, 120), ".jpg"))
    data[len(data) // 2 : len(data) // 2 + 64] = np.random.default_rng(3).bytes(64)

    assert "Corrupt JPEG" in refusal(bytes(data))


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.5, 0.98])
def test_every_truncated_kind_is_refused(suffix: str, kept: float) -> None:
    """A copy that was broken off is an error, whatever the format."""
    data = encoded(textured(160, 120), suffix)

    assert refusal(data[: max(1, int(len(data) * kept))])


@pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
def test_a_damaged_png_is_refused(at: float) -> None:
    """Each byte of a PNG is under a checksum; we check it, whatever libpng does about it."""
    data = bytearray(encoded(textured(160, 120), ".png"))
    data[int(len(data) * at)] ^= 1

    assert "wrong checksum in the IDAT chunk" in refusal(bytes(data))


@pytest.mark.parametrize("suffix", KINDS)
def test_a_decompression_bomb_is_refused_by_its_header(suffix: str) -> None:
    """A few bytes that claim gigapixels must not cost gigabytes; the pixels that they lack are never looked for."""
    side = 16_000 if suffix == ".webp" else 60_000
    data = with_size(suffix, side, side)

    reason = refusal(data)

    assert len(data) < 3000
    assert "megapixels" in reason or (suffix == ".ppm" and "truncated" in reason)


def test_the_pixel_limit_is_the_callers() -> None:
    """A station that knows its camera sets a tight limit, and is told the size that came."""
    data = encoded(textured(100, 50))

    assert decode_image(data, max_pixels=5000).shape == (50, 100, 3)
    assert "100x50 is 0.0 megapixels" in refusal(data, max_pixels=4999)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty (0 bytes)"),
        (bytes(4096), "only zeros"),
        (b"hello, I am no picture", "not a picture that we know"),
        (b"GIF89a\x01\x00\x01\x00", "a GIF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "a HEIC photo"),
        (b"%PDF-1.7", "a PDF"),
        (b"\xff\xd8\xff\xd9", "ends before a picture begins"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
        (b"II\x2a\x00\x08\x00\x00\x00", "truncated TIFF"),
        (b"P5\n12 ", "damaged PGM"),
        (b"P5\n2 2\n1023\n" + bytes(8), "expected 255 or 65535"),
        (b"P5\n0 2\n255\n" + bytes(8), "0x2 pixels"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    """The person at the line learns what the file is, not what a library said."""
    assert words in refusal(data)


def test_animations_are_refused() -> None:
    """Which of its pictures was the part?"""
    animated = png(2, 1, depth=8, colour_type=0, rows=bytes(3), chunks=[(b"acTL", bytes(8))])

    assert "animated PNG" in refusal(animated)


def test_float_pixels_are_refused() -> None:
    """There is no fixed rule that turns unbounded values into 8 bits."""
    assert refusal(encoded(np.ones((4, 4), np.float32), ".tiff"))


@given(data=st.binary(max_size=400))
def test_no_bytes_raise_anything_but_image_error(data: bytes) -> None:
    """The decoder stands at the door: whatever comes, it answers in its own words."""
    try:
        image = decode_image(data)
    except ImageError:
        return
    assert image.dtype == np.uint8


@given(data=st.data(), suffix=st.sampled_from(KINDS))
def test_damaged_files_raise_nothing_but_image_error(data: st.DataObject, suffix: str) -> None:
    """Headers that lie about lengths and offsets must not lead outside the file or round in circles."""
    content = bytearray(encoded(textured(16, 12), suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(content), max_pixels=1_000_000)
    except ImageError:
        return
    assert image.ndim == 3


@given(data=st.data(), suffix=st.sampled_from(KINDS))
def test_a_beginning_of_a_file_is_refused_or_shows_the_whole_picture(data: st.DataObject, suffix: str) -> None:
    """Where nothing of the picture is in the last bytes they may be missing; never may pixels be."""
    content = encoded(textured(16, 12), suffix)
    whole = decode_image(content)
    try:
        part = decode_image(content[: data.draw(st.integers(0, len(content) - 1))])
    except ImageError:
        return
    np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_colours_come_back_as_they_were(suffix: str) -> None:
    """The shape and order that every other module builds on: (H, W, 3) uint8 BGR, rows first."""
    image = textured(33, 17)

    decoded = decode_image(encoded(image, suffix))

    np.testing.assert_array_equal(decoded, image)
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp", ".pgm"])
def test_grey_becomes_three_equal_channels(suffix: str) -> None:
    """A monochrome camera and a colour model go together."""
    grey = textured(33, 17)[..., 0]

    decoded = decode_image(encoded(grey, suffix))

    assert decoded.shape == (17, 33, 3)
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_16_bit_grey_loses_its_low_byte(suffix: str) -> None:
    """`value >> 8`, never stretched: the same exposure gives the same grey in every picture."""
    grey = np.arange(0, 65_536, 16, dtype=np.uint16).reshape(64, 64)

    decoded = decode_image(encoded(grey, suffix))

    np.testing.assert_array_equal(decoded, np.repeat((grey >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
def test_16_bit_colour_loses_its_low_byte(suffix: str) -> None:
    """The same rule for colour."""
    colour = np.random.default_rng(0).integers(0, 65_536, (20, 30, 3), dtype=np.uint16)

    np.testing.assert_array_equal(decode_image(encoded(colour, suffix)), colour >> 8)


def test_a_dark_16_bit_picture_stays_dark() -> None:
    """A stretch would turn a failed lamp into a good exposure."""
    assert decode_image(encoded(np.full((8, 8), 700, np.uint16))).max() == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_dropped(dtype: type[np.uint8 | np.uint16]) -> None:
    """The colours under transparent pixels are what the camera saw; nothing is mixed in."""
    top = np.iinfo(dtype).max
    rgba = np.random.default_rng(0).integers(0, top, (20, 30, 4), dtype=dtype)

    decoded = decode_image(encoded(rgba))

    np.testing.assert_array_equal(decoded, rgba[..., :3] >> (8 * (rgba.itemsize - 1)))


def test_grey_with_alpha_is_grey() -> None:
    """Some scanners write it."""
    decoded = decode_image(png(2, 1, depth=8, colour_type=4, rows=bytes([0, 10, 0, 20, 255])))

    assert decoded.tolist() == [[[10] * 3, [20] * 3]]


def test_a_palette_becomes_its_colours() -> None:
    """Also with transparency in the palette."""
    chunks = [(b"PLTE", bytes([10, 20, 30, 40, 50, 60])), (b"tRNS", bytes([0, 128]))]

    decoded = decode_image(png(2, 1, depth=8, colour_type=3, rows=bytes([0, 0, 1]), chunks=chunks))

    assert decoded.tolist() == [[[30, 20, 10], [60, 50, 40]]]


def test_one_bit_grey_is_black_and_white() -> None:
    """Bits are spread over the whole range."""
    decoded = decode_image(png(4, 1, depth=1, colour_type=0, rows=bytes([0, 0b10110000])))

    assert decoded[0, :, 0].tolist() == [255, 0, 255, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp", ".ppm"])
def test_one_pixel_is_a_picture(suffix: str) -> None:
    """The smallest one there is."""
    assert decode_image(encoded(flat(80, 1, 1), suffix)).shape == (1, 1, 3)


def test_a_12000_by_9000_picture_decodes() -> None:
    """A line-scan camera's picture is within the limit."""
    data = encoded(np.full((9000, 12_000), 90, np.uint8), ".jpg")

    assert decode_image(data).shape == (9000, 12_000, 3)


def test_exif_orientation_is_ignored() -> None:
    """A line's camera does not rotate, and boxes are in stored pixels."""
    data = encoded(textured(32, 16), ".jpg")
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6: turn right by 90 degrees
    tiff = b"II\x2a\x00\x08\x00\x00\x00" + struct.pack("<H", 1) + tag + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(tiff)) + b"Exif\x00\x00" + tiff

    np.testing.assert_array_equal(decode_image(data[:2] + segment + data[2:]), decode_image(data))


def test_gamma_is_ignored() -> None:
    """Pixel values are taken as stored."""
    data = png(1, 1, depth=8, colour_type=0, rows=bytes([0, 100]), chunks=[(b"gAMA", struct.pack(">I", 100_000))])

    assert decode_image(data).tolist() == [[[100, 100, 100]]]


def test_bytes_behind_the_end_do_no_harm() -> None:
    """Some cameras append their own data or pad to a sector."""
    image = textured()

    assert decode_image(encoded(image, ".jpg") + b"maker notes").shape == image.shape
    np.testing.assert_array_equal(decode_image(encoded(image, ".png") + bytes(512)), image)


@pytest.mark.parametrize("suffix", KINDS)
def test_nothing_is_printed_about_bad_files(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The agent's output is its log; libjpeg, libpng and OpenCV write to stderr as they please."""
    data = bytearray(encoded(textured(64, 48), suffix))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    for broken in (bytes(data), bytes(data[: len(data) // 2]) + b"\xff\xd9"):
        with contextlib.suppress(ImageError):
            decode_image(broken)

    assert capfd.readouterr().err == ""


def test_what_others_write_to_stderr_meanwhile_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """The codecs are overheard on a descriptor that the whole process shares."""
    with _codecs_heard() as lines:
        os.write(2, b"Traceback of another thread\nCorrupt JPEG data: premature end of data segment\n")

    assert lines == ["Corrupt JPEG data: premature end of data segment"]
    assert capfd.readouterr().err == "Traceback of another thread\n"


def test_a_process_without_stderr_can_decode(tmp_path: Path) -> None:
    """A daemon may run with its standard descriptors closed."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(flat(70)))
    program = (
        f"from agent.cameras import read_image; from pathlib import Path; print(read_image(Path({str(path)!r})).min())"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert done.stdout == b"70\n"


def file_refusal(path: Path) -> str:
    """What `read_image` says when it refuses."""
    with pytest.raises(ImageError) as caught:
        read_image(path, max_pixels=1_000_000)
    return str(caught.value)


def _nothing(_path: Path) -> None:
    """There is no file."""


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_nothing, "No such file"),
        (Path.mkdir, "is a folder"),
        (Path.touch, "empty (0 bytes)"),
        (os.mkfifo, "not a regular file"),
        (_huge, "4,294,967,296 bytes, more than any picture"),
    ],
    ids=["missing", "folder", "empty", "pipe", "huge"],
)
def test_files_that_can_not_be_read_are_refused(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    """Nothing here may block (a pipe), fill the memory (a huge file) or pass for a picture."""
    path = tmp_path / "part.png"
    make(path)

    reason = file_refusal(path)

    assert reason.startswith(f"{path}: ")
    assert words in reason


def test_a_forbidden_file_is_refused(tmp_path: Path) -> None:
    """The service's own user often lacks a right that the installer had."""
    path = tmp_path / "part.png"
    path.write_bytes(encoded(flat(70)))
    path.chmod(0)

    with without_root():
        assert "Permission denied" in file_refusal(path)


def test_a_name_that_is_no_utf_8_can_be_printed(tmp_path: Path) -> None:
    """Its reason goes into a log and a JSON message."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(b"no")

    assert "caf\\xe9.png" in file_refusal(path).encode("utf-8").decode("utf-8")
