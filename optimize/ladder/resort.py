"""The last resort for an INT8 rung that misses the budget though its float network keeps it.

Quantization needs no training, so it comes first. Where it costs too much, the float network is taught once more by
itself while every layer rounds (`optimize.distill.recover_rounded`), and quantized again. That takes minutes, so it is
done for rungs that break `max_drop`, or lose a class, and whose float network does neither. The better one of both
stays, and what it was before is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from agent.errors import UserError
from optimize.ladder.choice import Budget
from optimize.ladder.model import RungFile, RungModel
from optimize.ladder.rung import Figures, Recovery
from optimize.outcomes import Outcome

__all__ = ["Again", "JudgedRung", "recovered"]

Again: TypeAlias = Callable[[RungFile], RungFile]
"""From a float rung to an INT8 one that was recovered while rounding; raises `UserError` where that can't be done."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedRung:
    """A rung, and what it made of the images.

    Attributes:
        model: the rung, opened.
        outcomes: one per image.
        figures: what they say of it.
        recovery: what the last resort brought; None where it was not needed.
    """

    model: RungModel
    outcomes: Sequence[Outcome]
    figures: Figures
    recovery: Recovery | None = None


def recovered(
    rungs: Sequence[JudgedRung], budget: Budget, again: Again, judge: Callable[[RungFile], JudgedRung]
) -> Iterator[JudgedRung]:
    """The same rungs, with the recovered one where an INT8 rung was worse.

    Args:
        rungs: the top first.
        budget: `max_drop` counts.
        again: makes the recovered one.
        judge: opens a file and judges it on the same images.
    """
    by_name = {rung.model.name: rung for rung in rungs}
    for rung in rungs:
        source = by_name.get(rung.model.file.made_from or "")
        is_needed = source is not None and rung.model.kind == "cpu" and source.model.kind == "fp32"
        if source is None or not is_needed or not _broke(source.figures, rung.figures, budget):
            yield rung
        else:
            yield _better(rung, source, again, judge)


def _broke(source: Figures, own: Figures, budget: Budget) -> bool:
    """Whether quantization did it: the float network keeps what this one breaks."""
    if {lost.name for lost in own.lost} - {lost.name for lost in source.lost}:
        return True
    most = budget.max_drop
    return most is not None and own.drop_points > most >= source.drop_points


def _better(rung: JudgedRung, source: JudgedRung, again: Again, judge: Callable[[RungFile], JudgedRung]) -> JudgedRung:
    before = Recovery(drop_before=rung.figures.drop_points, lost_before=_names(rung.figures))
    try:
        made = again(source.model.file)
    except UserError as error:  # it is a last resort: a network that can't be trained here is judged as it is
        return dataclasses.replace(rung, recovery=dataclasses.replace(before, why_not=error.message))
    own = rung.model.file
    found = judge(dataclasses.replace(own, path=made.path, first=own.path))
    is_kept = _loss(found.figures) < _loss(rung.figures)
    recovery = dataclasses.replace(
        before, drop_after=found.figures.drop_points, lost_after=_names(found.figures), is_kept=is_kept
    )
    return dataclasses.replace(found if is_kept else rung, recovery=recovery)


def _loss(figures: Figures) -> tuple[int, float]:
    return len(figures.lost), figures.drop_points


def _names(figures: Figures) -> tuple[str, ...]:
    return tuple(lost.name for lost in figures.lost)
