"""Candidates of one net on all views, paired with the float graph."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_quantize.figures import Figure, Resampling, absent, noise_powers, points

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from tools.bench_quantize.candidates import Candidate, Missing
    from tools.bench_quantize.scoring import Scorer
    from tools.bench_quantize.sessions import Mode
    from tools.bench_quantize.views import Pictures

__all__ = ["MODES", "NetScores", "Score", "score_net"]

MODES: tuple[Mode, ...] = ("here", "exact")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """One candidate in one arithmetic, picture by picture.

    Attributes:
        candidate: which.
        mode: the arithmetic.
        right: (n,) whether its decision is the label.
        same: (n,) whether its decision is the float graph's.
        noise: (n,) power of the difference of mean-removed logits.
    """

    candidate: Candidate
    mode: Mode
    right: NDArray[np.bool_]
    same: NDArray[np.bool_]
    noise: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetScores:
    """All candidates of one net.

    Attributes:
        net: its name.
        right: (n,) whether the float graph's decision is the label.
        signal: (n,) power of the float graph's mean-removed logits.
        scores: what was measured.
        missing: what could not be made.
        resampling: over the pictures' groups.
    """

    net: str
    right: NDArray[np.bool_]
    signal: NDArray[np.float64]
    scores: tuple[Score, ...]
    missing: tuple[Missing, ...]
    resampling: Resampling

    def ours(self, target: str, mode: Mode) -> Score | str:
        """Our candidate, or why there is none."""
        found = next((s for s in self.scores if _is(s, "ours", mode) and s.candidate.target == target), None)
        if found is not None:
            return found
        return next((m.why for m in self.missing if m.maker == "ours" and m.target == target), "not measured")

    def theirs(self, mode: Mode, *makers: str) -> tuple[Score, ...]:
        """Others' candidates in this arithmetic."""
        return tuple(score for score in self.scores for maker in makers if _is(score, maker, mode))

    def drop(self, target: str, mode: Mode) -> Figure:
        """Points of accuracy that ours loses."""
        score = self.ours(target, mode)
        return absent(score) if isinstance(score, str) else self.resampling.mean(points(self.right, score.right))

    def agreement(self, target: str, mode: Mode) -> Figure:
        """Share of the views that ours decides as the float graph does."""
        score = self.ours(target, mode)
        return absent(score) if isinstance(score, str) else self.resampling.mean(score.same.astype(np.float64))

    def lead(self, mode: Mode, maker: str) -> Figure:
        """Points of accuracy that ours is above the best of one peer's."""
        score, others = self.ours("cpu", mode), self.theirs(mode, maker)
        if isinstance(score, str) or not others:
            return absent(score if isinstance(score, str) else self._why_not(maker))
        best = max(others, key=lambda s: float(s.right.mean()))
        figure = self.resampling.mean(points(score.right, best.right))
        return dataclasses.replace(figure, why=f"{self.net}, beside {best.candidate.name}")

    def snr_gain(self, mode: Mode) -> Figure:
        """By how many dB ours is above the best of theirs."""
        score, others = self.ours("cpu", mode), self.theirs(mode, "ort", "nncf")
        if isinstance(score, str) or not others:
            return absent(score if isinstance(score, str) else "nothing of theirs was measured")
        best = min(others, key=lambda s: float(s.noise.sum()))
        figure = self.resampling.snr_gain(self.signal, score.noise, best.noise)
        return dataclasses.replace(figure, why=f"{self.net}, beside {best.candidate.name}")

    def figures(self) -> dict[str, dict[str, Any]]:
        """Everything that checks are made of, by arithmetic."""
        return {
            mode: {
                "drop_cpu": self.drop("cpu", mode).to_json(),
                "agreement": self.agreement("cpu", mode).to_json(),
                "vs_ort_accuracy": self.lead(mode, "ort").to_json(),
                "vs_nncf_accuracy": self.lead(mode, "nncf").to_json(),
                "snr_gain_db": self.snr_gain(mode).to_json(),
            }
            for mode in MODES
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for each candidate and arithmetic, and one for each that could not be made."""
        yield {"net": self.net, "maker": "float", "name": "float", "accuracy": round(float(self.right.mean()), 4)}
        for score in self.scores:
            yield {
                "net": self.net,
                "maker": score.candidate.maker,
                "name": score.candidate.name,
                "arithmetic": score.mode,
                "accuracy": round(float(score.right.mean()), 4),
                "drop_points": self.resampling.mean(points(self.right, score.right)).to_json(),
                "agreement": self.resampling.mean(score.same.astype(np.float64)).to_json(),
                "snr_db": self.resampling.snr(self.signal, score.noise).to_json(),
                "size_bytes": len(score.candidate.graph),
            }
        for missing in self.missing:
            yield {"net": self.net, "maker": missing.maker, "name": missing.name, "why": missing.why}

    def _why_not(self, maker: str) -> str:
        return next((m.why for m in self.missing if m.maker == maker), f"nothing of {maker} was measured")


def score_net(
    net: str,
    graph: bytes,
    views: Pictures,
    made: Iterable[Candidate | Missing],
    scorer: Scorer,
    modes: tuple[Mode, ...] = MODES,
) -> NetScores:
    """Score every candidate in every arithmetic that makes sense for it.

    Args:
        net: its name.
        graph: the float graph's bytes.
        views: labelled pictures.
        made: the candidates.
        scorer: runs graphs on the same views.
        modes: the arithmetics to score in.
    """
    from tools.bench_quantize.candidates import Missing

    reference = scorer.logits(graph, "here", f"{net}: float")
    decisions = reference.argmax(axis=1)
    signal, _ = noise_powers(reference, reference)
    scores, missing = [], []
    for candidate in made:
        if isinstance(candidate, Missing):
            missing.append(candidate)
            continue
        for mode in (mode for mode in candidate.modes() if mode in modes):
            logits = scorer.logits(candidate.graph, mode, f"{net}: {candidate.name}")
            found = logits.argmax(axis=1)
            _, noise = noise_powers(reference, logits)
            right, same = found == views.labels, found == decisions
            scores.append(Score(candidate=candidate, mode=mode, right=right, same=same, noise=noise))
    return NetScores(
        net=net,
        right=decisions == views.labels,
        signal=signal,
        scores=tuple(scores),
        missing=tuple(missing),
        resampling=Resampling(views.groups),
    )


def _is(score: Score, maker: str, mode: Mode) -> bool:
    return score.candidate.maker == maker and score.mode == mode
