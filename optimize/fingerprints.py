"""When two files are the same picture: one file, the same bytes, or the same pixels in another file format."""

from __future__ import annotations

import hashlib

from agent.errors import ImageError
from optimize.dataset import read_image
from optimize.samples import Sample

__all__ = ["fingerprint"]


def fingerprint(sample: Sample) -> tuple[str, ...] | str:
    """What makes two samples the same picture (the file, its bytes, its pixels); or why it is none, in words.

    Two are the same where they share one of the three: a picture that was saved again as PNG has other bytes.
    """
    try:
        pixels = read_image(sample.path)
        content = sample.path.read_bytes()
    except (ImageError, OSError) as error:
        reason = error.message if isinstance(error, ImageError) else str(error)
        return reason.replace(str(sample.path), sample.file)
    return (
        f"path {sample.path.resolve()}",
        f"bytes {hashlib.sha256(content).hexdigest()}",
        f"pixels {pixels.shape} {hashlib.sha256(pixels.tobytes()).hexdigest()}",
    )
