"""Bytes of a picture file in, (H, W, 3) uint8 BGR out: the one decoder that training and the device share.

A picture that is not whole is refused. That is not what the libraries do by themselves: OpenCV 4.8 decodes half a JPEG
and fills the rest with grey, and OpenCV 4.8 and 5.0 both do so when an end marker follows (tried on 200 files); such a
picture would be judged as if it were the part. So, before a pixel is decoded, the header gives the size (a
decompression bomb is refused unseen) and the structure shows whether the end is there; and afterwards what the codecs
said on stderr is read, because a JPEG has no checksum and libjpeg's warnings are its only trace of damage (64 bytes
overwritten at random were noticed in 196 of 200 JPEG files, 64 bytes of zeros in 180, one flipped bit in 70).

The rules, all fixed, none depending on the picture's content:

- 8-bit grey becomes three equal channels; palettes and 1-, 2-, 4-bit grey become colours.
- 16-bit values lose their low byte (`value >> 8`). Never a stretch per picture: two exposures must stay comparable. A
  12-bit camera must therefore save its values left-justified, or the picture is nearly black.
- Alpha is dropped, not composited: the colours as stored are what the camera saw, and no background has to be made up.
- EXIF orientation is ignored: a line's camera does not rotate, and the boxes of the labels are in stored pixels.
- Gamma and colour profiles are ignored. Of a TIFF with several pages the first is taken.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.errors import ImageError

__all__ = ["PICTURE_SUFFIXES", "decode_image", "path_in_words", "read_image"]

PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
"""File names that end so (in lower case) are pictures; what is inside is told by the content, not by the name."""

DEFAULT_MAX_PIXELS = 200_000_000
_READABLE = "JPEG, PNG, BMP, TIFF, WebP, PGM or PPM"
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION


class _DamagedError(Exception):
    """Why a picture can't be used, in words, without its name."""


def read_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Read and decode one picture file.

    Args:
        path: the file.
        max_pixels: a picture with more is refused before it is decoded.

    Returns:
        (H, W, 3) uint8 BGR, C-contiguous, owned by the caller.

    Raises:
        ImageError: the file can't be read, or is not a whole picture.
    """
    source = path_in_words(path)
    try:
        found = path.stat()
        largest = 8 * max_pixels + 2**24  # 16-bit RGBA, uncompressed, with 16 MiB of metadata
        if stat.S_ISREG(found.st_mode) and found.st_size <= largest:
            return decode_image(path.read_bytes(), max_pixels=max_pixels, source=source)
    except OSError as error:
        raise ImageError(f"{source}: can't be read ({error.strerror})", hint=_remedy_of(error)) from error
    if stat.S_ISREG(found.st_mode):
        raise ImageError(f"{source}: {found.st_size:,} bytes, more than any picture of {max_pixels:,} pixels has")
    what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
    raise ImageError(f"{source}: is {what}, expected a picture file", hint="name a picture file")


def path_in_words(path: Path) -> str:
    """A path that can be printed and sent: bytes of a name that are no UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, source: str = "image") -> NDArray[np.uint8]:
    """Decode one whole picture, or refuse it.

    May be called from several threads; one at a time decodes.

    Args:
        data: the whole file.
        max_pixels: a picture with more is refused before it is decoded.
        source: what messages call it.

    Returns:
        (H, W, 3) uint8 BGR, C-contiguous, owned by the caller. The module's docstring has the rules.

    Raises:
        ImageError: no picture, of a kind that we don't read, too large, truncated or damaged.
    """
    try:
        width, height = _size(data)
        if width * height <= max_pixels:
            return _pixels(data)
    except _DamagedError as error:
        hint = "copy or save it again; if that does not help, save it as PNG"
        raise ImageError(f"{source}: {error}", hint=hint) from error
    except MemoryError as error:
        raise ImageError(f"{source}: not enough memory for {len(data):,} bytes and their pixels") from error
    raise ImageError(
        f"{source}: {width}x{height} is {width * height / 1e6:,.1f} megapixels, more than the limit of "
        f"{max_pixels / 1e6:,.1f}",
        hint="raise camera.max_pixels if that is meant, or save the picture smaller",
    )


def _remedy_of(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "check the path"
    if isinstance(error, PermissionError):
        return "give the user that runs this the right to read it (chmod, chown)"
    return "check the disk or the network share"


def _size(data: bytes) -> tuple[int, int]:
    """Width and height from the header, and the proof that the file is whole as far as its structure shows it."""
    for start, read_size in _READERS:
        if re.match(start, data, re.DOTALL):
            try:
                width, height = read_size(data)
            except (struct.error, IndexError) as error:
                raise _DamagedError("truncated: the file ends within its header") from error
            if width < 1 or height < 1:
                raise _DamagedError(f"damaged: the header says {width}x{height} pixels")
            return width, height
    raise _DamagedError(_what_it_is(data))


def _what_it_is(data: bytes) -> str:
    if not data:
        return "empty (0 bytes)"
    if not data.strip(b"\x00"):
        return f"holds only zeros ({len(data):,} bytes), as after a power cut while it was written"
    for pattern, name in _STRANGERS:
        if re.match(pattern, data[:2000], re.DOTALL | re.IGNORECASE):
            return f"is {name}, expected {_READABLE}"
    return f"is not a picture that we know (begins with {data[:8]!r}), expected {_READABLE}"


_STRANGERS = (
    (rb"GIF8[79]a", "a GIF"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.*)?(<!--.*)?(<!DOCTYPE svg.*)?<svg", "an SVG drawing"),
    (rb"\s*<(!DOCTYPE )?html", "a web page (a download that went wrong?)"),
    (rb"....ftyp(avif|avis)", "an AVIF"),
    (rb"....ftyp(heic|heix|hevc|mif1|msf1)", "a HEIC photo"),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000"),
    (rb"%PDF", "a PDF"),
    (rb"8BPS", "a Photoshop file"),
    (rb"v/1\x01", "an OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance HDR"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
)


def _size_of_jpeg(data: bytes) -> tuple[int, int]:
    """Walks the segments to the first scan, then looks for the end-of-image marker behind it (ITU-T T.81, annex B).

    Thumbnails, which have an end marker of their own, lie in segments that are stepped over; in the scan itself 0xFF is
    always followed by 0x00 or a restart marker, so 0xFF 0xD9 can only be the end.
    """
    size, position = None, 2
    while True:
        if data[position] != 0xFF:
            raise _DamagedError(f"damaged JPEG: no marker at byte {position:,}")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xD9:
            raise _DamagedError("damaged JPEG: it ends before a picture begins")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = (width, height)
        position += 2 + length
        if marker == 0xDA:
            break
    if size is None:
        raise _DamagedError("damaged JPEG: no frame header before the picture")
    if data.find(b"\xff\xd9", position) < 0:
        raise _DamagedError(f"truncated JPEG: no end-of-image marker in {len(data):,} bytes")
    return size


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _size_of_png(data: bytes) -> tuple[int, int]:
    """Walks every chunk and checks its CRC, which covers each byte of a PNG (W3C PNG, section 5)."""
    view, position = memoryview(data), 8
    while True:
        if position + 12 > len(data):
            raise _DamagedError(f"truncated PNG: no end chunk in {len(data):,} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise _DamagedError(f"truncated PNG: the {_ascii(kind)} chunk at byte {position:,} is cut off")
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _DamagedError(f"damaged PNG: wrong checksum in the {_ascii(kind)} chunk at byte {position:,}")
        if kind == b"acTL":
            raise _DamagedError("is an animated PNG, expected one picture")
        if kind == b"IEND":
            break
        position = end + 4
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _ascii(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")


def _size_of_bmp(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)


def _size_of_webp(data: bytes) -> tuple[int, int]:
    """Simple lossy, simple lossless and extended (RFC 9649)."""
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise _DamagedError(f"truncated WebP: {len(data):,} bytes of {length + 8:,}")
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise _DamagedError("is an animated WebP, expected one picture")
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _size_of_pnm(data: bytes) -> tuple[int, int]:
    found = re.match(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3 + rb"\s", data)
    if found is None:
        raise _DamagedError("damaged PGM or PPM: width, height or the largest value is missing in its header")
    kind, width, height, largest = (int(group) for group in found.groups())
    if largest not in (255, 65_535):
        raise _DamagedError(f"PGM or PPM whose largest value is {largest}, expected 255 or 65535")
    expected = found.end() + width * height * (3 if kind == 6 else 1) * (2 if largest > 255 else 1)
    if expected > len(data):
        raise _DamagedError(f"truncated PGM or PPM: {len(data):,} bytes of {expected:,}")
    return width, height


def _size_of_tiff(data: bytes) -> tuple[int, int]:
    """Reads the first directory and checks that every strip or tile lies within the file (TIFF 6.0; BigTIFF)."""
    tags = _TiffTags(data)
    width, height = tags.values(256), tags.values(257)
    if not (width.size and height.size):
        raise _DamagedError("damaged TIFF: width or height is missing")
    for offsets_tag, counts_tag in ((273, 279), (324, 325)):
        offsets, counts = tags.values(offsets_tag), tags.values(counts_tag)
        if offsets.size == counts.size and np.any(offsets.astype(float) + counts.astype(float) > len(data)):
            raise _DamagedError(f"truncated TIFF: its pixels lie beyond the {len(data):,} bytes of the file")
    return int(width[0]), int(height[0])


_TIFF_DTYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}


class _TiffTags:
    """Whole-number values of the first directory of a TIFF."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        big = struct.unpack_from(f"{self._order}H", data, 2)[0] == 43
        # Formats and byte counts of: directory offset, entry count, one entry (tag, type, count) and its inline value.
        self._offset, count, self._entry, self._inline = ("Q", "Q", "HHQ", 8) if big else ("I", "H", "HHI", 4)
        (start,) = struct.unpack_from(self._order + self._offset, data, 8 if big else 4)
        if start >= len(data):
            raise _DamagedError("truncated TIFF: its directory lies beyond the end of the file")
        (entries,) = struct.unpack_from(self._order + count, data, start)
        self._first = start + struct.calcsize(self._order + count)
        self._count = min(entries, 65_535)

    def values(self, wanted: int) -> NDArray[np.unsignedinteger]:
        """The numbers of one tag, in the file's own width; empty when the tag is absent or holds no whole numbers."""
        head = struct.calcsize(self._order + self._entry)
        for index in range(self._count):
            at = self._first + index * (head + self._inline)
            tag, kind, count = struct.unpack_from(self._order + self._entry, self._data, at)
            if tag != wanted or kind not in _TIFF_DTYPES:
                continue
            dtype = np.dtype(self._order + _TIFF_DTYPES[kind])
            place = at + head
            if count * dtype.itemsize > self._inline:
                (place,) = struct.unpack_from(self._order + self._offset, self._data, place)
            if place + count * dtype.itemsize > len(self._data):
                raise _DamagedError("truncated TIFF: a tag lies beyond the end of the file")
            return np.frombuffer(self._data, dtype, count, place)
        return np.empty(0, np.uint8)


_READERS: tuple[tuple[bytes, Callable[[bytes], tuple[int, int]]], ...] = (
    (rb"\xff\xd8\xff", _size_of_jpeg),
    (rb"\x89PNG\r\n\x1a\n", _size_of_png),
    (rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]", _size_of_tiff),
    (rb"RIFF....WEBP", _size_of_webp),
    (rb"P[56]\s", _size_of_pnm),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", _size_of_bmp),
)


def _pixels(data: bytes) -> NDArray[np.uint8]:
    """Decode, with everything that the codecs print taken as evidence."""
    with _codecs_heard() as lines:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
        except cv2.error as error:
            raise _DamagedError(f"OpenCV refuses it ({_gist(str(error))})") from error
    damage = [line for line in lines if _DAMAGE.search(line)]
    if image is None or damage:
        reason = _gist(damage[0]) if damage else "OpenCV gives no reason"
        raise _DamagedError(f"truncated or damaged ({reason})")
    if image.dtype == np.uint16:
        return np.right_shift(image, 8, out=image).astype(np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise _DamagedError(f"has {image.dtype} values of shape {image.shape}, expected 8 or 16 bits, grey or colour")
    return np.ascontiguousarray(image, dtype=np.uint8)


_DAMAGE = re.compile(
    r"Corrupt JPEG|Premature end|Invalid SOS|Inconsistent progression|libpng error|TIFF_Error|\[ERROR|imdecode_\("
)
"""What libjpeg, libpng, libtiff and OpenCV print when pixels are missing or wrong; other lines are harmless advice."""
_FROM_CODECS = re.compile(_DAMAGE.pattern + r"|libpng warning|TIFF|\[ ?(WARN|INFO)|unknown JFIF|^OpenCV|^\s*$")


def _gist(line: str) -> str:
    """The words of an OpenCV message without its file names, line numbers and functions."""
    text = re.sub(r"^\[.*?\] global \S+ (TIFF_Error |imdecode_ )?", "", line.strip())
    found = re.search(r"error: \(-?\d+:[^)]*\)\s*(.*?)(?: in function .*)?$", text, re.DOTALL)
    return " ".join((found.group(1) if found else text).split())[:200]


_STDERR = threading.Lock()


@contextlib.contextmanager
def _codecs_heard() -> Iterator[list[str]]:
    """Collect the lines that C libraries write to file descriptor 2 meanwhile.

    There is no other way to hear libjpeg through OpenCV. The descriptor belongs to the whole process, hence the lock;
    what others wrote in the meantime is passed on afterwards. Without a descriptor 2 nothing is heard.
    """
    lines: list[str] = []
    with _STDERR, contextlib.ExitStack() as stack:
        try:
            real = os.dup(2)
            stack.callback(os.close, real)
            heard = os.memfd_create("codecs")
            stack.callback(os.close, heard)
        except OSError:
            yield lines
            return
        os.dup2(heard, 2)
        try:
            yield lines
        finally:
            os.dup2(real, 2)
            text = os.pread(heard, 1_000_000, 0).decode("utf-8", "replace")
            lines += [line for line in text.splitlines() if _FROM_CODECS.search(line)]
            others = "".join(line for line in text.splitlines(keepends=True) if not _FROM_CODECS.search(line))
            with contextlib.suppress(OSError):
                os.write(2, others.encode("utf-8", "replace"))
