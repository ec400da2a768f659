"""From what the top and a rung made of the same images to the rung's figures; pure.

**No rung may lose a class silently.** A mean hides a rare class: of 1000 tiles with 12 frayed ones a rung may lose all
twelve for 1.2 points. So each class is looked at by itself, and a rung is refused by its name where one of these holds:

- none: no hit is left where the top had one;
- half: it finds at most half of what the top found, and at least three fewer, however few images or groups these are. A
  test of six images can prove nothing, but four of six that are gone are gone;
- proven: the images (or boxes) that the top got and the rung did not, against those the other way round, by the exact
  paired test of `optimize.compare.paired`, one-sided, less than 5 %. Images of one part hang together, so whole groups
  are compared; but a class with hits in fewer than five groups could lose much and still be called chance, so there
  images are counted.

What fell at all and is not refused is told as well (`fell`), with its counts. Nothing can be lost of a class that the
top itself does not find: `optimize.ladder.assess` names each that it finds less than half of. Nothing is corrected for
looking at many classes: a rung that is refused by chance costs some milliseconds, a class that is lost costs parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import Manifest
from agent.bundle.manifest import Severity
from agent.verdict import Decision
from optimize.compare.paired import ALPHA, escape_upper, net_by_group, paired_p
from optimize.detection_score import box_fates, score_detections
from optimize.intervals import group_draws, ratio
from optimize.ladder.rung import ClassCount, FellClass, Figures, Flip, LossRule, LostClass, Side
from optimize.outcomes import Outcome, group_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LOSS_RULE", "figures_of", "flips_of", "lost_classes"]


FEWEST_GROUPS = 5
"""So many that all get worse are 1/32 by chance; four are 1/16, which shows nothing."""

LOSS_RULE = (
    "lost, and the rung refused: `none` is left where the top found some; `half` or less of what the top found is left "
    "and three or more are gone, however few there are; `proven` fell by more than chance (paired by group, one-sided, "
    "5 %). `fell`: finds less than the top, and is not refused for it."
)
"""The rule in words, for ladder.json."""

LEFT, FEWEST_LOST = 0.5, 3
"""At most this share of the top's hits left, and at least so many gone: refused without a proof. One of two, or two of
four, is what a second picture of the same part may do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Hits:
    """Whether each image, or box, of one class was got."""

    severity: Severity
    groups: tuple[str, ...]
    is_hit: NDArray[np.bool_]


def figures_of(top: Sequence[Outcome], own: Sequence[Outcome], manifest: Manifest) -> Figures:
    """Count.

    Args:
        top: what the top made of each image.
        own: what the rung made of the same images, in the same order.
        manifest: the rung's, with the classes and limits of the top's.
    """
    first, second = (_accuracy(outcomes, manifest) for outcomes in (top, own))
    hits = _hits(own, manifest)
    falls = list(_falls(_hits(top, manifest), hits))
    bad = [o for o in own if o.severity != "ok"]
    escaped = np.array([o.decision is Decision.OK for o in bad], dtype=np.bool_)
    good = [o for o in own if o.severity == "ok"]
    return Figures(
        n=len(own),
        accuracy=second,
        drop_points=round(100 * (first - second), 6),
        drop_95=_drop_95(top, own) if manifest.task == "classify" else None,
        recall=tuple(_counted(name, found) for name, found in hits.items()),
        escapes=int(escaped.sum()),
        defects=len(bad),
        escape_rate=float(escaped.mean()) if bad else None,
        escape_upper_95=escape_upper(escaped, [group_of(o) for o in bad]) if bad else None,
        overkills=sum(o.decision is Decision.DEFECT for o in good),
        goods=len(good),
        decisions_changed=sum(a.decision is not b.decision for a, b in zip(top, own, strict=True)),
        flips=flips_of(top, own, manifest),
        lost=tuple(fall for fall in falls if isinstance(fall, LostClass)),
        fell=tuple(fall for fall in falls if isinstance(fall, FellClass)),
        unjudged=sum(o.decision is Decision.ERROR for o in own),
        failure=_failure(top, own),
    )


def lost_classes(top: Sequence[Outcome], own: Sequence[Outcome], manifest: Manifest) -> tuple[LostClass, ...]:
    """The classes whose recall fell from something to far less, or to nothing; arguments as of `figures_of`."""
    falls = _falls(_hits(top, manifest), _hits(own, manifest))
    return tuple(fall for fall in falls if isinstance(fall, LostClass))


def flips_of(top: Sequence[Outcome], own: Sequence[Outcome], manifest: Manifest) -> tuple[Flip, ...]:
    """Images whose decision or class changed: escapes first, then what broke, what changed, and what was mended.

    Arguments as of `figures_of`.
    """
    is_detector = manifest.task == "detect"
    flips = [
        Flip(
            file=after.file,
            label=after.label,
            severity=after.severity,
            before=_side(before),
            after=_side(after),
            kind=_kind(before, after, is_detector=is_detector),
        )
        for before, after in zip(top, own, strict=True)
        if before.decision is not after.decision or before.predicted != after.predicted
    ]
    order = {"escape": 0, "broke": 1, "changed": 2, "mended": 3}
    return tuple(sorted(flips, key=lambda flip: (order[flip.kind], flip.file)))


def _side(outcome: Outcome) -> Side:
    score_ = None if outcome.score is None else round(outcome.score, 4)
    return Side(decision=outcome.decision.value, predicted=outcome.predicted, score=score_)


def _kind(before: Outcome, after: Outcome, *, is_detector: bool) -> str:
    if after.severity != "ok" and after.decision is Decision.OK and before.decision is not Decision.OK:
        return "escape"
    was, is_ = (_is_right(outcome, is_detector=is_detector) for outcome in (before, after))
    if was == is_:
        return "changed"
    return "broke" if was else "mended"


def _is_right(outcome: Outcome, *, is_detector: bool) -> bool:
    """Called right and not passed by mistake; of a detector's part: stopped if it is bad, passed if it is good."""
    if outcome.decision is Decision.ERROR:
        return False
    passed = outcome.decision is Decision.OK
    if not is_detector:
        return outcome.predicted == outcome.label and not (passed and outcome.severity != "ok")
    return passed == (outcome.severity == "ok")


def _accuracy(outcomes: Sequence[Outcome], manifest: Manifest) -> float:
    if manifest.task == "classify":
        return sum(o.predicted == o.label for o in outcomes) / len(outcomes)
    found = score_detections(outcomes, manifest).map50
    return 0.0 if found is None else float(found)


def _hits(outcomes: Sequence[Outcome], manifest: Manifest) -> dict[str, _Hits]:
    return dict(_box_hits(outcomes, manifest) if manifest.task == "detect" else _image_hits(outcomes, manifest))


def _image_hits(outcomes: Sequence[Outcome], manifest: Manifest) -> Iterator[tuple[str, _Hits]]:
    for cls in manifest.classes:
        own = [o for o in outcomes if o.label == cls.name]
        is_hit = np.array([o.predicted == o.label for o in own], dtype=np.bool_)
        yield cls.name, _Hits(severity=cls.severity, groups=tuple(group_of(o) for o in own), is_hit=is_hit)


def _box_hits(outcomes: Sequence[Outcome], manifest: Manifest) -> Iterator[tuple[str, _Hits]]:
    fates = box_fates(outcomes, manifest)
    is_hit = fates.records.found >= manifest.policy.review_above
    for number, cls in enumerate(manifest.classes):
        own = np.flatnonzero(fates.classes == number)
        groups = tuple(group_of(outcomes[int(fates.records.images[i])]) for i in own)
        yield cls.name, _Hits(severity=cls.severity, groups=groups, is_hit=np.asarray(is_hit[own]))


def _counted(name: str, found: _Hits) -> ClassCount:
    return ClassCount(name=name, severity=found.severity, hits=int(found.is_hit.sum()), n=len(found.is_hit))


def _falls(top: Mapping[str, _Hits], own: Mapping[str, _Hits]) -> Iterator[LostClass | FellClass]:
    """Each class of which the rung finds less than the top: lost, or only fell."""
    for name, after in own.items():
        before = top[name]
        was, is_, n = int(before.is_hit.sum()), int(after.is_hit.sum()), len(after.is_hit)
        if is_ >= was:
            continue
        p_value = _chance(before, after)
        rule = _rule(was, is_, p_value)
        if rule is None:
            yield FellClass(name=name, before=was, after=is_, n=n, p_value=p_value)
        else:
            yield LostClass(name=name, before=was, after=is_, n=n, p_value=p_value, rule=rule)


def _chance(before: _Hits, after: _Hits) -> float:
    """How probable so large a loss is if both are alike: by group, or by image where groups are few."""
    known = {group for group, is_hit in zip(before.groups, before.is_hit.tolist(), strict=True) if is_hit}
    groups: Sequence[Hashable] = before.groups if len(known) >= FEWEST_GROUPS else range(len(before.groups))
    net = net_by_group(~before.is_hit, ~after.is_hit, groups)
    # The distribution under the null is symmetric, so one side is half of both.
    return paired_p(net) / 2 if int(net.sum()) > 0 else 1.0


def _rule(before: int, after: int, p_value: float) -> LossRule | None:
    """By which rule a class that fell is lost."""
    if after == 0:
        return "none"
    if p_value < ALPHA:
        return "proven"
    return "half" if after <= LEFT * before and before - after >= FEWEST_LOST else None


def _failure(top: Sequence[Outcome], own: Sequence[Outcome]) -> str:
    """What the first image says that the rung could not judge, though the top could."""
    failed = (
        b for a, b in zip(top, own, strict=True) if b.decision is Decision.ERROR and a.decision is not Decision.ERROR
    )
    first = next(failed, None)
    return "" if first is None else f"{first.file}: {first.reason}"


def _drop_95(top: Sequence[Outcome], own: Sequence[Outcome]) -> tuple[float, float]:
    """In points, by bootstrap over groups of the paired differences."""
    lost: list[Any] = [
        ((a.predicted == a.label) - (b.predicted == b.label), 1.0) for a, b in zip(top, own, strict=True)
    ]
    draws = group_draws([group_of(o) for o in own], np.array(lost, dtype=np.float64), ratio)
    low, high = (round(100 * float(value), 4) for value in np.percentile(draws, (2.5, 97.5)))
    return low, high
