"""What is known of one rung of a ladder: what it loses against the top, what it costs, and whether it may be chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from agent.bundle.manifest import Severity, Task
from agent.profile import GraphTiming

__all__ = ["ClassCount", "FellClass", "Figures", "Flip", "LossRule", "LostClass", "Recovery", "Rung", "Side"]

LossRule: TypeAlias = Literal["none", "half", "proven"]
"""By what a class is called lost, see `optimize.ladder.figures`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """Recall of one class, as counts: 3 of 7 says more than 0.43.

    Attributes:
        name: of the class.
        severity: how bad an escape of it is.
        hits: images called so (classify), boxes found (detect).
        n: images, or boxes, that are so.
    """

    name: str
    severity: Severity
    hits: int
    n: int

    def words(self) -> str:
        """`3/7`."""
        return f"{self.hits}/{self.n}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LostClass:
    """A class that a rung lost; a rung with one is refused.

    Attributes:
        name: of the class.
        before: hits of the top.
        after: hits of this rung.
        n: images, or boxes, that are so.
        p_value: how probable so large a loss is if both are alike: exact, paired, one-sided; by group, or by image
            where the class has hits in fewer than five groups.
        rule: `none` is left; `half` or less of what the top found, and three fewer or more; `proven` by the p-value.
    """

    name: str
    before: int
    after: int
    n: int
    p_value: float
    rule: LossRule

    def sentence(self) -> str:
        """For a person."""
        how = {
            "none": "none is left",
            "half": "half or less is left, which is refused without a proof",
            "proven": f"p {self.p_value:.2g}, paired",
        }[self.rule]
        return f"loses the class {self.name}: {self.before} of {self.n} before, {self.after} now ({how})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FellClass:
    """A class of which a rung finds less than the top, but not so much less that it is refused.

    Attributes:
        name: of the class.
        before: hits of the top.
        after: hits of this rung, fewer.
        n: images, or boxes, that are so.
        p_value: as of `LostClass`.
    """

    name: str
    before: int
    after: int
    n: int
    p_value: float

    def sentence(self) -> str:
        """For a person."""
        return f"finds less of {self.name}: {self.before} of {self.n} before, {self.after} now (p {self.p_value:.2g})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the last resort brought an INT8 rung: its float network learned again while it rounded, and quantized again.

    Attributes:
        drop_before: points lost as it was quantized first.
        lost_before: classes lost then.
        drop_after: points lost by the recovered one; None when none could be made.
        lost_after: classes lost by the recovered one.
        is_kept: the rung is the recovered one, which is the better one.
        why_not: why none could be made; empty when one was.
    """

    drop_before: float
    lost_before: tuple[str, ...]
    drop_after: float | None = None
    lost_after: tuple[str, ...] = ()
    is_kept: bool = False
    why_not: str = ""

    def sentence(self) -> str:
        """For a person."""
        before = _loss_words(self.drop_before, self.lost_before)
        if self.drop_after is None:
            return f"loses {before}, and could not be recovered: {self.why_not}"
        after = _loss_words(self.drop_after, self.lost_after)
        if self.is_kept:
            return f"lost {before}; recovered while rounding, without a label: {after}"
        return f"loses {before}; recovered while rounding it lost {after}, so it stays as it was"


def _loss_words(points: float, classes: tuple[str, ...]) -> str:
    return f"{points:.2f} points" + (f" and {', '.join(classes)}" if classes else "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one model made of an image.

    Attributes:
        decision: the policy's.
        predicted: the class that was called; None where there was none.
        score: the defect score; None when it could not be judged.
    """

    decision: str
    predicted: str | None
    score: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An image that the top and a rung judge differently.

    Attributes:
        file: the image, relative to its data set.
        label: its true class; None where nobody says.
        severity: how bad the part is.
        before: what the top made of it.
        after: what the rung makes of it.
        kind: `escape` (bad, stopped before, passes now), `broke` (right before), `mended` (right now), `changed`.
    """

    file: str
    label: str | None
    severity: Severity
    before: Side
    after: Side
    kind: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the images say of a rung.

    Attributes:
        n: images that were judged.
        accuracy: share of images called right; of a detector mAP50.
        drop_points: accuracy lost against the top, in points; negative when it is better.
        drop_95: where the drop lies with 95 % confidence, paired, by group; None for a detector.
        recall: of each class, as counts.
        escapes: bad parts judged ok.
        defects: bad parts.
        escape_rate: escapes / defects; None without bad parts.
        escape_upper_95: the escape rate lies below this with 95 % confidence, one-sided (Clopper-Pearson, by group).
        overkills: good parts judged defect.
        goods: good parts.
        decisions_changed: images whose decision is another than the top's.
        flips: images whose decision or class is another than the top's.
        lost: classes that it lost.
        fell: classes of which it finds less, without being refused for it.
        unjudged: images that it could not judge; they count as wrong, and as stopped.
        failure: the first image that it could not judge though the top could, and why; empty where there is none.
    """

    n: int
    accuracy: float
    drop_points: float
    drop_95: tuple[float, float] | None
    recall: tuple[ClassCount, ...]
    escapes: int
    defects: int
    escape_rate: float | None
    escape_upper_95: float | None
    overkills: int
    goods: int
    decisions_changed: int
    flips: tuple[Flip, ...]
    lost: tuple[LostClass, ...]
    fell: tuple[FellClass, ...]
    unjudged: int
    failure: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rung(Figures):
    """One network of a ladder; truthy when it lost no class, and judged every image that the top could judge.

    Attributes:
        name: of the rung.
        file: where it lies.
        sha256: of the file, hex.
        graph: `fp32`, or `cpu` for INT8.
        made_from: the rung that it was made from; None for the top.
        task: what it does.
        macs: multiplications of one inference.
        parameters: weights and biases, in numbers.
        size_bytes: of the graph.
        structure: its structure digest.
        temperature: its logits were divided by it, as they are on the device when it is taken.
        latency: of one inference, here or on the device; None where the device's profile does not know it.
        recovery: what the last resort brought; None where it was not needed.
    """

    name: str
    file: str
    sha256: str
    graph: str
    made_from: str | None
    task: Task
    macs: int
    parameters: int
    size_bytes: int
    structure: str
    temperature: float
    latency: GraphTiming | None
    recovery: Recovery | None = None

    def __bool__(self) -> bool:
        return not self.lost and not self.failure

    @property
    def size_mb(self) -> float:
        """Millions of bytes."""
        return self.size_bytes / 1e6

    def flipped(self) -> Mapping[str, int]:
        """How many flips of each kind."""
        kinds = ("escape", "broke", "mended", "changed")
        return {kind: sum(flip.kind == kind for flip in self.flips) for kind in kinds}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and ladder.json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["drop_95"] = None if self.drop_95 is None else list(self.drop_95)
        values["recall"] = {c.name: {"hits": c.hits, "n": c.n, "severity": c.severity} for c in self.recall}
        values["flips"] = [dataclasses.asdict(flip) for flip in self.flips]
        values["flipped"] = dict(self.flipped())
        for key in ("lost", "fell"):
            values[key] = [{**dataclasses.asdict(fall), "sentence": fall.sentence()} for fall in values[key]]
        values["recovery"] = self.recovery and {
            **dataclasses.asdict(self.recovery),
            "sentence": self.recovery.sentence(),
        }
        values["latency"] = None if self.latency is None else dataclasses.asdict(self.latency)
        return values
