"""What training needs, looked at before torch is loaded: that takes seconds, and most mistakes need none of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import MissingExtra
from optimize.errors import ModelError, OptimizeError
from optimize.networks.cards import ARCHITECTURES
from optimize.networks.detectors.cards import DETECTORS

__all__ = ["find_torch", "refuse_foreign", "refuse_missing_weights", "refuse_other_task", "require_torch"]


def find_torch() -> None:
    """See that torch is installed, without loading it.

    Raises:
        MissingExtra: it is not.
    """
    try:
        found = importlib.util.find_spec("torch")
    except ModuleNotFoundError:  # a finder may refuse it by name
        found = None
    if found is None:
        raise _missing("torch", "training")


def require_torch(work: str = "training") -> None:
    """Load torch, and say in one place what is missing.

    Args:
        work: what needs it, in words.

    Raises:
        MissingExtra: torch, or a package that it needs, is not installed.
    """
    # Threads that wait spin by default: with other work on the machine that is three times slower (measured: 26
    # against 8 pictures/s on 2 cores). Must be set before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401 - to see that it can be loaded
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), work) from error


def _missing(package: str, work: str) -> MissingExtra:
    return MissingExtra(
        f"the Python package {package} is not installed, and {work} needs it",
        hint="pip install -e '.[train]' in the checkout of defect-agent",
    )


def refuse_other_task(args: argparse.Namespace) -> None:
    """Refuse a classifier where a detector is to be trained, and the reverse.

    Raises:
        OptimizeError: `arch` is of the other task; the hint says what to add or to change.
    """
    if args.task == "classify" and args.arch in DETECTORS:
        raise OptimizeError(
            f"arch: {args.arch} is a detector, and without --task detect a classifier is trained",
            hint="add --task detect; or take a classifier, such as --arch resnet18",
        )
    if args.task == "detect" and args.arch in ARCHITECTURES:
        alike = [card.name for card in DETECTORS.values() if card.backbone == args.arch]
        raise OptimizeError(
            f"arch: {args.arch} is a classifier, and --task detect trains a detector",
            hint=f"take --arch {' or '.join(alike or ['yolo-lite0'])}; or leave --task detect out",
        )


def refuse_foreign(args: argparse.Namespace, flags: Mapping[str, Any], why: str, hint: str) -> None:
    """Refuse a flag that would do nothing.

    Raises:
        OptimizeError: one of them was given.
    """
    for name, default in flags.items():
        if getattr(args, name) != default:
            raise OptimizeError(f"{name.replace('_', '-')}: {why}", hint=hint)


def refuse_missing_weights(weights: Path | str | None, backbone: str) -> None:
    """See that a file of published weights is there; what is in it takes torch to read.

    Args:
        weights: a path, `imagenet`, or None.
        backbone: the network they are for, a name from `ARCHITECTURES`.

    Raises:
        ModelError: there is no such file.
    """
    if isinstance(weights, Path) and not weights.exists():
        raise ModelError(f"{weights}: no such file of weights", hint=ARCHITECTURES[backbone].weights or None)
