"""Which model is recommended, and the sentence that says why.

The rule, in this order:

1. The model that misses fewest is the best one; of equals the fastest, then the first given.
2. Every other one is held against it (Holm over all pairs, as which is best was seen on the same parts): shown to miss
   more (p < 0.05), doubtful (p < 0.2), or alike as far as these parts can tell.
3. None alike: the best one is taken, whatever its speed and its mAP. A doubtful difference is no proof, but a missed
   defect costs more than a millisecond; the sentence says which it was.
4. Else the fastest of the best and those alike. What differs less than pictures do among themselves is no faster; then
   the one that missed fewer is taken, then the first given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from optimize.compare.paired import ALPHA
from optimize.compare.timing import Latency
from optimize.compare.units import Counted, Unit

__all__ = ["Choice", "Contender", "Question", "choose", "noun_of", "p_text"]

DOUBTFUL = 0.2
"""Under this, chance is too poor an excuse to take the faster one; a choice of ours, not a test."""

MAP_DIGITS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """What is known of one model when it is chosen.

    Attributes:
        name: of the model.
        missed: units that count and passed at its limit.
        latency: on this machine; None when it could not be timed.
        map50: of a detector on a set with boxes, else None.
        unjudged: images that it could not judge.
    """

    name: str
    missed: int
    latency: Latency | None = None
    map50: float | None = None
    unjudged: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked of all of them.

    Attributes:
        n: units that count.
        unit: part or box.
        counted: which defects count.
        p_values: for each two names, in both orders, how probable their difference is by chance.
        is_equal: they stand at equal overkill (or false boxes); False: each at its own limit, as no part is good.
    """

    n: int
    unit: Unit
    counted: Counted
    p_values: Mapping[tuple[str, str], float]
    is_equal: bool = True

    @property
    def noun(self) -> str:
        """What is counted, in words."""
        return noun_of(self.unit, self.counted, self.n)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The recommendation.

    Attributes:
        name: of the model.
        reason: one sentence.
        against: the next one, that `p_value` compares it with.
        p_value: of the two.
        is_shown: whether these parts show the difference.
    """

    name: str
    reason: str
    against: str
    p_value: float
    is_shown: bool


def choose(contenders: Sequence[Contender], question: Question) -> Choice:
    """Apply the rule of the module's docstring.

    Args:
        contenders: at least two, with different names, in the order in which they were given.
        question: what was asked.
    """
    order = {c.name: i for i, c in enumerate(contenders)}
    ranked = sorted(contenders, key=lambda c: (c.missed, _median(c), order[c.name]))
    best = ranked[0]
    p_of = {c.name: question.p_values[best.name, c.name] for c in ranked[1:]}
    alike = [c for c in ranked[1:] if p_of[c.name] >= DOUBTFUL]
    if not alike:
        chosen, against = best, ranked[1]
        text = _deploy(best, ranked[1:], question)
    else:
        field = [best, *alike]
        chosen = _fastest(field, order)
        against = next(c for c in field if c is not chosen)
        text = _no_difference(chosen, field, ranked, question)
    clauses = [text, *_map_clause(chosen, contenders), *_unjudged_clause(contenders)]
    if not question.is_equal:
        clauses.append("without good parts equal overkill can't be had, so each stands at its own limit")
    return Choice(
        name=chosen.name,
        reason="; ".join(clauses),
        against=against.name,
        p_value=question.p_values[chosen.name, against.name],
        is_shown=all(p < ALPHA for p in p_of.values()),
    )


def noun_of(unit: Unit, counted: Counted, n: int) -> str:
    """`critical parts`, `defect boxes`, …, in the singular for one."""
    kind = "critical" if counted == "critical" else {"part": "defective", "box": "defect"}[unit]
    plural = {"part": "parts", "box": "boxes"}[unit]
    return f"{kind} {unit if n == 1 else plural}"


def p_text(p: float) -> str:
    """`p = 0.04`; never rounded to the other side of what counts as shown."""
    if p < 0.001:
        return "p < 0.001"
    for digits in range(2, 8):
        text = f"{p:.{digits}g}"
        if (float(text) < ALPHA) == (p < ALPHA):
            break
    return f"p = {text}"


def _median(contender: Contender) -> float:
    return float("inf") if contender.latency is None else contender.latency.median


def _is_faster(one: Contender, other: Contender) -> bool:
    """Whether somebody would notice; a model that could not be timed is faster than none."""
    if one.latency is None or other.latency is None:
        return one.latency is not None
    return one.latency.median < other.latency.median and one.latency.is_apart_from(other.latency)


def _fastest(field: Sequence[Contender], order: Mapping[str, int]) -> Contender:
    """The fastest; of those as fast as it the one that missed fewest, then the first given."""
    quickest = min(field, key=lambda c: (_median(c), c.missed, order[c.name]))
    alike = [c for c in field if not _is_faster(quickest, c)]
    return min(alike, key=lambda c: (c.missed, order[c.name]))


def _deploy(best: Contender, others: Sequence[Contender], question: Question) -> str:
    p_of = {c.name: p_text(question.p_values[best.name, c.name]) for c in others}
    if len(others) == 1:
        against = f"{others[0].missed}, {p_of[others[0].name]}"
    else:
        against = " and ".join(f"{c.missed} ({c.name}, {p_of[c.name]})" for c in others)
    counted = f"{best.missed} of {question.n} {question.noun} missed against {against}"
    is_shown = all(question.p_values[best.name, c.name] < ALPHA for c in others)
    verb, doubt = ("deploy", "") if is_shown else ("take", "; that is no proof, but the safer choice")
    beside = "" if len(others) == 1 else others[0].name
    return f"{verb} {best.name}: {counted}{doubt}{_speed_clause(best, others[0], beside)}"


def _speed_clause(best: Contender, next_one: Contender, beside: str) -> str:
    if best.latency is None or next_one.latency is None:
        return ""
    slower = best.latency.median - next_one.latency.median
    if not best.latency.is_apart_from(next_one.latency):
        return "; as fast" + (f" as {beside}" if beside else "")
    return f"; {_ms(abs(slower))} ms {'slower' if slower > 0 else 'faster'}" + (f" than {beside}" if beside else "")


def _no_difference(
    chosen: Contender, field: Sequence[Contender], ranked: Sequence[Contender], question: Question
) -> str:
    """What can't be told apart, who is out of it, and who is taken all the same."""
    best = ranked[0]
    others = [c for c in field if c is not chosen]
    these = f"{'this' if question.n == 1 else 'these'} {question.n} {question.noun}"
    between, counts = "", f"{chosen.missed} against {others[0].missed} missed"
    if len(ranked) > 2:
        between = f" between {', '.join(c.name for c in field[:-1])} and {field[-1].name}"
        counts = f"{', '.join(f'{c.name} {c.missed}' for c in (chosen, *others))} missed"
    lowest = p_text(min(question.p_values[best.name, c.name] for c in field if c is not best))
    worse = [c for c in ranked if c not in field]
    behind = "".join(
        f"; {c.name} missed more ({c.missed}, {p_text(question.p_values[best.name, c.name])})" for c in worse
    )
    return f"no difference{between} that {these} can show ({counts}, {lowest}){behind}; {_take(chosen, field)}"


def _take(chosen: Contender, field: Sequence[Contender]) -> str:
    others = [c for c in field if c is not chosen]
    fewer = [c.name for c in others if c.missed < chosen.missed]
    chance = f"; {' and '.join(fewer)} missed fewer, which may be chance" if fewer else ""
    if chosen.latency is not None and all(_is_faster(chosen, c) for c in others):
        times = " and ".join("?" if c.latency is None else _ms(c.latency.median) for c in others)
        word = "faster" if len(field) == 2 else "fastest"
        return f"take the {word}: {chosen.name}, {_ms(chosen.latency.median)} against {times} ms{chance}"
    alike = [c for c in others if not _is_faster(chosen, c)]
    why = "which missed fewer" if all(c.missed > chosen.missed for c in alike) else "the first given"
    speed = "they are as fast" if all(c.latency is not None for c in field) else "they could not be timed"
    return f"{speed}: take {chosen.name}, {why}{chance}"


def _map_clause(chosen: Contender, contenders: Sequence[Contender]) -> Iterator[str]:
    rated = [c for c in contenders if c.map50 is not None]
    if chosen.map50 is None or len(rated) < 2:
        return
    highest = max(rated, key=lambda c: c.map50 or 0.0)
    if highest.map50 is not None and round(highest.map50 - chosen.map50, MAP_DIGITS) > 0:
        figures = f"{highest.map50:.{MAP_DIGITS}f} against {chosen.map50:.{MAP_DIGITS}f}"
        yield f"by mAP50 it would have been {highest.name} ({figures})"


def _unjudged_clause(contenders: Sequence[Contender]) -> Iterator[str]:
    failed = [c for c in contenders if c.unjudged]
    if failed:
        counts = ", ".join(f"{c.unjudged} by {c.name}" for c in failed)
        yield f"images that could not be judged ({counts}) count as stopped"


def _ms(value: float) -> str:
    """One decimal under ten and for what is compared, none over a hundred."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
