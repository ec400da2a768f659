"""Which rung: the fastest that keeps every limit, or the nearest one and what it breaks by how much; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimize.errors import OptimizeError
from optimize.ladder.rung import Rung

__all__ = ["Breach", "Budget", "LadderChoice", "breaches_of", "choose_rung", "pareto_front"]

ALIKE = 1.03
"""Latencies within 3 % are alike, as timings of one machine vary by some percent: there the loss decides."""

LEAST_DROP, LEAST_ESCAPE = 0.1, 0.001
"""What a limit of 0 is taken for where breaches are put in order: a tenth of a point, a part in a thousand."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits that a rung must keep; None sets none.

    Attributes:
        max_drop: accuracy (mAP50) lost against the top, in points.
        max_latency_ms: median of one inference, in milliseconds.
        max_size_mb: the graph, in millions of bytes.
        max_escape: escape rate, 0 to 1, that its 95 % upper bound may reach.
    """

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_escape: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A limit that a rung breaks.

    Attributes:
        limit: its key in the recipe; `recall` for a class that was lost, `judged` for images that it could not judge.
        got: what the rung has; None when it is not known.
        allowed: the limit; None for `recall` and `judged`.
        excess: how far it lies over the limit, in parts of it: 0.5 is half as much again.
        words: the same for a person.
    """

    limit: str
    got: float | None
    allowed: float | None
    excess: float
    words: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LadderChoice:
    """Truthy when a rung keeps every limit.

    Attributes:
        name: that rung; None when there is none.
        nearest: the rung that comes nearest, which is `name` where there is one.
        breaches: what the nearest breaks.
        reason: in words.
    """

    name: str | None
    nearest: str
    breaches: tuple[Breach, ...]
    reason: str

    def __bool__(self) -> bool:
        return self.name is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def choose_rung(rungs: Sequence[Rung], budget: Budget) -> LadderChoice:
    """Pick the fastest rung that lost no class, judged what the top could judge, and keeps every limit.

    Args:
        rungs: the top first.
        budget: the limits.

    Raises:
        OptimizeError: no rung has a latency.
    """
    timed = [rung for rung in rungs if rung.latency is not None]
    if not timed:
        raise OptimizeError(
            "the profile holds no timing of any rung, so none can be chosen by it",
            hint="defect-agent bench --profile OUT.json FILE... on the device, with the rungs' files",
        )
    broken = {rung.name: tuple(breaches_of(rung, budget)) for rung in rungs}
    sound = [rung for rung in timed if not broken[rung.name]]
    if sound:
        fastest = min(_ms(rung) for rung in sound)
        best = min((rung for rung in sound if _ms(rung) <= ALIKE * fastest), key=lambda r: (r.drop_points, _ms(r)))
        return LadderChoice(name=best.name, nearest=best.name, breaches=(), reason=_why(best, rungs[0], budget))
    nearest = min(rungs, key=lambda rung: _farness(broken[rung.name]))
    found = broken[nearest.name]
    reason = f"no rung keeps every limit; the nearest is {nearest.name}: {'; '.join(b.words for b in found)}"
    return LadderChoice(name=None, nearest=nearest.name, breaches=found, reason=reason)


def breaches_of(rung: Rung, budget: Budget) -> Iterator[Breach]:
    """What a rung breaks; a class that was lost is always a breach, and so are images that it could not judge."""
    if rung.failure:
        words = f"judged: could not judge {rung.unjudged} of {rung.n} images ({rung.failure})"
        yield Breach(limit="judged", got=float(rung.unjudged), allowed=None, excess=1.0, words=words)
    for lost in rung.lost:
        excess = 1 - lost.after / lost.before
        yield Breach(limit="recall", got=lost.after / lost.n, allowed=None, excess=excess, words=lost.sentence())
    if budget.max_drop is not None:
        yield from _over("max_drop", rung.drop_points, budget.max_drop, LEAST_DROP, "{:.2f} points lost")
    ms = None if rung.latency is None else rung.latency.p50_ms
    if ms is None:
        words = "max_latency_ms: the profile holds no timing of its structure"
        yield Breach(limit="max_latency_ms", got=None, allowed=budget.max_latency_ms, excess=1.0, words=words)
    elif budget.max_latency_ms is not None:
        yield from _over("max_latency_ms", ms, budget.max_latency_ms, 1e-3, "{:.2f} ms")
    if budget.max_size_mb is not None:
        yield from _over("max_size_mb", rung.size_mb, budget.max_size_mb, 1e-3, "{:.2f} MB")
    if budget.max_escape is not None:
        yield from _escape(rung, budget.max_escape)


def pareto_front(rungs: Sequence[Rung]) -> tuple[str, ...]:
    """The rungs that no other one beats in latency and in loss at once; those that lost a class stand apart.

    Returns:
        Names, the fastest first.
    """
    able = sorted((r for r in rungs if r and r.latency is not None), key=lambda r: (_ms(r), r.drop_points))
    front: list[Rung] = []
    for rung in able:
        if not front or rung.drop_points < front[-1].drop_points:
            front.append(rung)
    return tuple(rung.name for rung in front)


def _ms(rung: Rung) -> float:
    assert rung.latency is not None
    return rung.latency.p50_ms


def _over(limit: str, got: float, allowed: float, least: float, form: str) -> Iterator[Breach]:
    if not got <= allowed:  # also refuses NaN
        by = got - allowed
        words = f"{limit}: {form.format(got)}, {by:.3g} over {allowed:g}"
        yield Breach(limit=limit, got=got, allowed=allowed, excess=by / max(allowed, least), words=words)


def _escape(rung: Rung, allowed: float) -> Iterator[Breach]:
    bound = rung.escape_upper_95
    if bound is None:
        words = "max_escape: no part of this set is bad, so nothing is known of escapes"
        yield Breach(limit="max_escape", got=None, allowed=allowed, excess=1.0, words=words)
    elif not bound <= allowed:
        words = (
            f"max_escape: {rung.escapes} of {rung.defects} escape, which is under {bound:.2%} with 95 % confidence, "
            f"{bound - allowed:.2%} over {allowed:.2%}"
        )
        excess = (bound - allowed) / max(allowed, LEAST_ESCAPE)
        yield Breach(limit="max_escape", got=bound, allowed=allowed, excess=excess, words=words)


def _farness(found: Sequence[Breach]) -> tuple[bool, float, float]:
    """What is always a breach is farther than any number; then the limit that is missed by most, then all of them."""
    excess = [breach.excess for breach in found]
    return any(breach.limit in ("recall", "judged") for breach in found), max(excess, default=0.0), sum(excess)


def _why(best: Rung, top: Rung, budget: Budget) -> str:
    limits: Mapping[str, float] = {k: v for k, v in dataclasses.asdict(budget).items() if v is not None}
    kept = ", ".join(f"{key} {value:g}" for key, value in limits.items()) or "no limit was set"
    speed = "" if top.latency is None or best is top else f", {_ms(top) / _ms(best):.1f} times as fast as {top.name}"
    return (
        f"{best.name}: {_ms(best):.2f} ms{speed}, {best.drop_points:.2f} points lost, "
        f"the fastest within the limits ({kept})"
    )
