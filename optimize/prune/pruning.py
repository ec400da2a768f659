"""Prune a network in rounds: score, choose, cut, set the norms' statistics right, recover."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.distill import Agreement, NetworkTeacher, agreement
from optimize.errors import ModelError, OptimizeError
from optimize.export import normalize
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector
from optimize.progress import Progress, SilentProgress
from optimize.prune.choose import choose
from optimize.prune.costs import Costs, costs_of, count_macs
from optimize.prune.graph import ChannelGroup, channel_groups, removed
from optimize.prune.importance import IMPORTANCES, Importance, ImportanceName, measure
from optimize.trained import cut_to

__all__ = ["Pruned", "Round", "prune_network"]

N = TypeVar("N", Classifier, Detector)

LOOKED_AT = 128
"""Pictures that importance, statistics and agreement are read off, at most: dealt evenly."""

BATCH = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One cut, and what was recovered behind it.

    Attributes:
        macs: multiplications per picture after it.
        cut: how far the network still says what it said before any pruning, on the pictures.
        recovered: the same after the recovery; None without one.
    """

    macs: int
    cut: Agreement
    recovered: Agreement | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruned(Generic[N]):
    """What is left.

    Attributes:
        network: in evaluation mode.
        importance: the one that chose the channels; `given` for a callable.
        tried: agreement that each importance left in the first round; empty unless the choice was left to it.
        macs_before: multiplications per picture.
        macs_after: the same of what is left.
        parameters_before: weights.
        parameters_after: the same of what is left.
        widths: of each group of channels that became narrower: before and after, by its layer's name.
        rounds: one by one.
    """

    network: N
    importance: str
    tried: Mapping[str, Agreement]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    widths: Mapping[str, tuple[int, int]]
    rounds: tuple[Round, ...]

    @property
    def kept(self) -> float:
        """Share of the multiplications."""
        return self.macs_after / self.macs_before


def prune_network(
    network: N,
    example: Tensor,
    keep_macs: float,
    importance: ImportanceName | Literal["auto"] | Callable[[ChannelGroup], NDArray[np.float64]] = "auto",
    *,
    pictures: NDArray[np.uint8],
    rounds: int = 1,
    recover: Callable[[N], N] | None = None,
    progress: Progress | None = None,
) -> Pruned[N]:
    """Take whole channels away until so many multiplications are left; the given network stays as it is.

    Args:
        network: a trained network.
        example: (1, C, H, W) float32 of the size that multiplications are counted at.
        keep_macs: share of the multiplications that may be left, more than 0, at most 1.
        importance: a name from `IMPORTANCES`; `auto` tries them all, and takes the one whose first cut leaves the
            network nearest to what it said; or a callable from a group to one score per channel. A callable is asked
            again in each round, with that round's groups.
        pictures: (N, H, W, C) uint8 at the network's size, with as many channels as it takes, at least two; no labels.
        rounds: cuts, each with the same share of what is there.
        recover: brings a cut network back, after each round; gives the network to go on with.
        progress: hears what is done.

    Returns:
        The pruned network. Its widths are multiples of 8 wherever something went.

    Raises:
        MissingExtra: torch-pruning is not installed.
        ModelError: the network can't be traced, or can't run without the channels that were to go.
        OptimizeError: a share or a name that makes no sense, or a share that no network of these layers reaches.
    """
    _check(keep_macs, importance, rounds, pictures)
    pictures = pictures[np.unique(np.linspace(0, len(pictures) - 1, min(LOOKED_AT, len(pictures))).round().astype(int))]
    work = _Pruning(network, example, pictures, keep_macs, progress or SilentProgress())
    tried: dict[ImportanceName, Agreement] = {}
    current, done = copy.deepcopy(network).eval(), []
    for number in range(1, rounds + 1):
        budget = work.macs * keep_macs ** (number / rounds)
        if importance == "auto" and not tried:
            tried, importance, current = work.best_of(current, budget, number)
        else:
            current = work.cut(current, budget, importance, number)
        cut = work.agreement(current)
        recovered = None
        if recover is not None:
            current = recover(current).eval()
            recovered = work.agreement(current)
        done.append(Round(macs=count_macs(current, example), cut=cut, recovered=recovered))
    after = {name: len(current.get_parameter(f"{name}.weight")) for name in work.widths}
    return Pruned(
        network=current,
        importance=importance if isinstance(importance, str) else "given",
        tried={str(name): found for name, found in tried.items()},
        macs_before=work.macs,
        macs_after=count_macs(current, example),
        parameters_before=sum(parameter.numel() for parameter in network.parameters()),
        parameters_after=sum(parameter.numel() for parameter in current.parameters()),
        widths={name: (old, after[name]) for name, old in work.widths.items() if after[name] != old},
        rounds=tuple(done),
    )


class _Pruning(Generic[N]):
    """What all rounds share: the unpruned network's answers, its costs, and the pictures."""

    def __init__(
        self,
        network: N,
        example: Tensor,
        pictures: NDArray[np.uint8],
        keep: float,
        progress: Progress,
    ) -> None:
        self.macs = count_macs(network, example)
        self._teacher = NetworkTeacher(network)
        self._example, self._pictures, self._keep, self._progress = example, pictures, keep, progress
        self.widths = {group.name: group.width for group in channel_groups(network, example)}

    def agreement(self, network: N) -> Agreement:
        """How far a network says what the unpruned one said."""
        return agreement(network, self._teacher, self._pictures)

    def best_of(
        self, network: N, budget: float, number: int
    ) -> tuple[dict[ImportanceName, Agreement], ImportanceName, N]:
        """Cut by each importance, and take the network that still says most of what was said."""
        seen = self._look(network)
        cuts = {name: self.cut(network, budget, name, number, seen) for name in IMPORTANCES}
        tried = {name: self.agreement(cut) for name, cut in cuts.items()}
        best = min(IMPORTANCES, key=lambda name: tried[name].divergence)
        return tried, best, cuts[best]

    def _look(self, network: N) -> tuple[tuple[ChannelGroup, ...], Costs]:
        groups = channel_groups(network, self._example)
        return groups, costs_of(network, groups, self._example)

    def cut(
        self,
        network: N,
        budget: float,
        importance: ImportanceName | Importance | str,
        number: int,
        seen: tuple[tuple[ChannelGroup, ...], Costs] | None = None,
    ) -> N:
        """A narrower copy of the network, its norms' statistics measured again where that brings it nearer."""
        label = importance if isinstance(importance, str) else "the given importance"
        self._progress.step(f"round {number}: choosing channels by {label}")
        groups, costs = seen or self._look(network)
        asked: Any = importance
        if isinstance(importance, str):
            asked = measure(importance, network, groups, self._pictures)  # type: ignore[arg-type]
        gone = choose(
            groups,
            [_scored(asked, group) for group in groups],
            costs,
            budget,
            widths=[self.widths[group.name] for group in groups],
            share=self._keep,
        )
        cut = copy.deepcopy(network)
        try:
            cut_to(cut, removed(network, list(zip(groups, gone, strict=True))))
            with torch.no_grad():
                cut(self._example)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"prune: {type(network).__name__} can't run without the channels ({error})") from error
        measured = _with_statistics(cut, self._pictures)
        return min((cut, measured), key=lambda each: self.agreement(each).divergence)


def _scored(importance: Importance, group: ChannelGroup) -> NDArray[np.float64]:
    if group.is_protected:
        return np.ones(group.width)
    found = np.asarray(importance(group), dtype=np.float64)
    if found.shape != (group.width,):
        raise OptimizeError(f"importance: got shape {found.shape} for {group.name}, expected ({group.width},)")
    return found


def _with_statistics(network: N, pictures: NDArray[np.uint8]) -> N:
    """A copy whose norms have seen the pictures as they are now (Li et al., "EagleEye", ECCV 2020, section 3.3)."""
    measured = copy.deepcopy(network)
    norms = [module for module in measured.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    device = next(measured.parameters()).device
    with torch.no_grad():
        # Even parts: one of a single picture has no spread at a level of one place.
        for part in np.array_split(pictures, -(-len(pictures) // BATCH)):
            measured(normalize(part).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return measured.eval()


def _check(keep_macs: float, importance: object, rounds: int, pictures: NDArray[np.uint8]) -> None:
    if not 0 < keep_macs <= 1:
        raise OptimizeError(f"keep-macs: got {keep_macs}, expected more than 0, at most 1", hint="0.5 keeps half")
    known: Sequence[str] = ("auto", *IMPORTANCES)
    if isinstance(importance, str) and importance not in known:
        raise OptimizeError(f"importance: got {importance!r}, expected one of {', '.join(known)}")
    if not 1 <= rounds <= 100:
        raise OptimizeError(f"rounds: got {rounds}, expected 1 to 100")
    if pictures.ndim != 4 or len(pictures) < 2:
        raise OptimizeError(f"prune: got pictures of shape {pictures.shape}, expected (N, H, W, C) and at least two")
