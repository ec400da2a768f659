"""What the findings mean: one line per question, ok, warn or fail, with the remedy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from optimize.data_check.findings import Findings, is_leak
from optimize.data_check.pairs import Pair, components

__all__ = ["Check", "Level", "judge", "worst"]

Level = Literal["ok", "warn", "fail"]
_LEVELS: tuple[Level, ...] = ("ok", "warn", "fail")

USUAL_IMAGES = 1_000
SAFETY_IMAGES = 10_000
"""How many images surface inspection usually takes: 1,000 to 5,000, and 10,000 and more where safety depends on it."""
MIN_TRAIN_PER_CLASS = 50
MIN_JUDGE_PER_CLASS = 20
"""With n defects and none missed, the escape rate may still be 3/n at 95 % (rule of three): 15 % at 20."""
MAX_IMBALANCE, LEVEL = 10.0, 1.1
_GROUP_REMEDY = (
    "give pictures of one part (or strip, or tile) the same `group` in splits.csv, and keep a group in one split"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer.

    Attributes:
        name: of the question.
        verdict: `ok`, `warn` or `fail`.
        text: what was found, in words.
        remedy: what to do; empty when ok.
    """

    name: str
    verdict: Level
    text: str
    remedy: str = ""


def judge(findings: Findings) -> tuple[Check, ...]:
    """Answer every question, in the order in which to act on them."""
    return tuple(question(findings) for question in _QUESTIONS)


def worst(checks: Iterable[Check]) -> Level:
    """The gravest verdict."""
    return max((c.verdict for c in checks), key=_LEVELS.index, default="ok")


def _readable(found: Findings) -> Check:
    if not found.unreadable:
        return Check(name="readable", verdict="ok", text=f"all {len(found.pictures):,} pictures can be read")
    names = _few([f"{u.sample.file} ({u.reason})" for u in found.unreadable])
    text = f"{len(found.unreadable)} of {len(found.dataset):,} pictures can't be read: {names}"
    return Check(name="readable", verdict="fail", text=text, remedy="save them again, or take them out of the set")


def _labels(found: Findings) -> Check:
    if not found.dataset.classes:
        remedy = "fine for calibration; to train or evaluate, put them in a folder per class or write splits.csv"
        return Check(name="labels", verdict="warn", text="no picture has a class", remedy=remedy)
    exact = [group for group in found.exact if len(set(found.labels(group))) > 1]
    near = [(p.first, p.second) for p in found.near if len(set(found.labels((p.first, p.second)))) > 1]
    if not exact and not near:
        return Check(name="labels", verdict="ok", text="no picture has two classes")
    shown = _few([_with_labels(found, group) for group in [*exact, *near]])
    text = f"{len(exact) + len(near)} pictures stand under two classes ({len(exact)} with the same pixels): {shown}"
    remedy = "look at them and keep one class each"
    return Check(name="labels", verdict="fail" if exact else "warn", text=text, remedy=remedy)


def _exact(found: Findings) -> Check:
    if not found.exact:
        return Check(name="exact copies", verdict="ok", text="no two pictures have the same pixels")
    leaks = [group for group in found.exact if is_leak(found.pictures, group)]
    extra = sum(len(group) - 1 for group in found.exact)
    shown = _few([_with_splits(found, group) for group in leaks or found.exact])
    where = f"{len(leaks)} sets lie across splits" if leaks else "none across splits that must not meet"
    text = f"{len(found.exact)} pictures are there more than once ({extra} copies), {where}: {shown}"
    return Check(name="exact copies", verdict="fail" if leaks else "warn", text=text, remedy="keep one of each")


def _near(found: Findings) -> Check:
    if not found.near:
        return Check(name="near copies", verdict="ok", text="no two pictures are nearly the same")
    leaks = found.leaks(found.near)
    involved = {i for p in found.near for i in (p.first, p.second)}
    scenes = len(components(found.near))
    text = f"{len(involved)} pictures show only {scenes} scenes (saved again, or at another exposure)"
    return _pairs_check(found, "near copies", found.near, leaks, text)


def _overlaps(found: Findings) -> Check:
    if not found.overlaps:
        where = "lie in different splits" if found.dataset.splits else "were found"
        return Check(name="overlapping crops", verdict="ok", text=f"no crops of one surface {where}")
    leaks = found.leaks(found.overlaps)
    shares = sorted(p.share for p in found.overlaps)
    text = (
        f"{len(found.overlaps)} pairs are crops of one surface "
        f"(they share {shares[0]:.0%} to {shares[-1]:.0%}, half of them over {shares[len(shares) // 2]:.0%})"
    )
    return _pairs_check(found, "overlapping crops", found.overlaps, leaks, text)


def _pairs_check(found: Findings, name: str, pairs: Sequence[Pair], leaks: Sequence[Pair], text: str) -> Check:
    shown = _few([_with_splits(found, (p.first, p.second)) for p in sorted(leaks or pairs, key=lambda p: -p.share)])
    if not leaks:
        where = ", none across splits that must not meet" if found.dataset.splits else ""
        return Check(name=name, verdict="warn", text=f"{text}{where}: {shown}", remedy=_GROUP_REMEDY)
    judged = {i for p in leaks for i in (p.first, p.second)}
    by_split = Counter(str(found.pictures[i].sample.split) for i in judged)
    splits = ", ".join(f"{n} {split}" for split, n in sorted(by_split.items()))
    text = f"{text}; {len(leaks)} pairs lie across splits ({splits} pictures): {shown}"
    return Check(name=name, verdict="fail", text=text, remedy=_GROUP_REMEDY)


def _structure(found: Findings) -> Check:
    if not found.alike:
        return Check(name="told apart", verdict="ok", text="parts differ enough to be told apart")
    text = (
        f"most pictures of {', '.join(found.alike)} share a frame, an outline or a pattern: copies can't be told there"
    )
    remedy = "crop to the surface that is inspected, and split by part number yourself (`group` in splits.csv)"
    return Check(name="told apart", verdict="warn", text=text, remedy=remedy)


def _splits(found: Findings) -> Check:
    splits = found.dataset.splits
    shown = ", ".join(f"{name} {n:,}" for name, n in splits.items())
    if not splits:
        remedy = "fine for a first try: commands deal them out by themselves; write splits.csv to compare numbers later"
        return Check(name="splits", verdict="warn", text="the set has no splits", remedy=remedy)
    missing = [name for name in ("train", "val", "test") if name not in splits]
    if missing:
        remedy = f"mark some groups as {' and '.join(missing)} in splits.csv"
        return Check(name="splits", verdict="warn", text=f"{shown}; no {', no '.join(missing)}", remedy=remedy)
    return Check(name="splits", verdict="ok", text=shown)


def _size(found: Findings) -> Check:
    n = len(found.pictures)
    usual = f"{USUAL_IMAGES:,} to 5,000 are usual, {SAFETY_IMAGES:,} and more where safety depends on it"
    if n < USUAL_IMAGES:
        return Check(
            name="size", verdict="warn", text=f"{n:,} pictures; {usual}", remedy="collect more, of every class"
        )
    return Check(name="size", verdict="ok", text=f"{n:,} pictures ({usual})")


def _classes(found: Findings) -> Check:
    if not found.counts:
        return Check(name="classes", verdict="ok", text="none to count")
    thin = []
    for name, row in found.counts.items():
        needs = {"train": MIN_TRAIN_PER_CLASS, "val": MIN_JUDGE_PER_CLASS, "test": MIN_JUDGE_PER_CLASS, "calib": 1}
        if not found.dataset.splits:
            needs = {"all": MIN_TRAIN_PER_CLASS + 2 * MIN_JUDGE_PER_CLASS}
        thin += [
            f"{name} has {row[s]} in {s} (at least {least})" for s, least in needs.items() if row.get(s, least) < least
        ]
    if thin:
        remedy = "collect more; where n defects are tested and none is missed, 3/n may still escape (n = 20: 15 %)"
        return Check(name="classes", verdict="warn", text=_few(thin, 6), remedy=remedy)
    return Check(
        name="classes", verdict="ok", text=f"{len(found.counts)} classes, each with enough pictures in each split"
    )


def _balance(found: Findings) -> Check:
    split = "train" if "train" in found.dataset.splits else "all"
    counts = {name: row[split] for name, row in found.counts.items() if row[split]}
    if len(counts) < 2:
        return Check(name="balance", verdict="ok", text="fewer than two classes to compare")
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[most] / counts[least]
    if ratio <= LEVEL:
        return Check(name="balance", verdict="ok", text=f"every class has about as many pictures ({split})")
    text = f"{most} has {ratio:.1f} times as many pictures as {least} ({counts[most]:,} and {counts[least]:,}, {split})"
    if ratio <= MAX_IMBALANCE:
        return Check(name="balance", verdict="ok", text=text)
    remedy = f"collect more of {least}; training weighs classes, but can't invent what it never saw"
    return Check(name="balance", verdict="warn", text=text, remedy=remedy)


def _form(found: Findings) -> Check:
    sizes = Counter((p.width_px, p.height_px) for p in found.pictures)
    colour = sum(p.colour for p in found.pictures)
    dark = [p.sample.file for p in found.pictures if p.dark]
    kinds = "grey" if not colour else "colour" if colour == len(found.pictures) else f"{colour} of them in colour"
    shown = ", ".join(f"{w}x{h}" for (w, h), _ in sizes.most_common(3)) + (", …" if len(sizes) > 3 else "")
    text = f"{len(sizes)} size{'s' if len(sizes) != 1 else ''} ({shown}), {kinds}"
    if dark:
        remedy = "12-bit pictures must be saved left-justified in 16 bits; else light the part better"
        text = f"{len(dark)} pictures are nearly black: {_few(dark)}; {text}"
        return Check(name="form", verdict="warn", text=text, remedy=remedy)
    if 0 < colour < len(found.pictures):
        remedy = "take all with one camera set-up, or a model may learn the colour instead of the defect"
        return Check(name="form", verdict="warn", text=text, remedy=remedy)
    edges = [max(size) for size in sizes]
    if edges and max(edges) > 2 * min(edges):
        remedy = "the model sees every picture at one size: crop to the same field of view"
        return Check(name="form", verdict="warn", text=text, remedy=remedy)
    return Check(name="form", verdict="ok", text=text)


_QUESTIONS: tuple[Callable[[Findings], Check], ...] = (
    _readable,
    _labels,
    _exact,
    _near,
    _overlaps,
    _structure,
    _splits,
    _size,
    _classes,
    _balance,
    _form,
)


def _few(items: Sequence[str], n: int = 3) -> str:
    more = f" and {len(items) - n} more" if len(items) > n else ""
    return "; ".join(items[:n]) + more


def _with_splits(found: Findings, indices: Sequence[int]) -> str:
    pairs = zip(found.files(indices), found.splits(indices), strict=True)
    return " = ".join(file if split is None else f"{file} [{split}]" for file, split in pairs)


def _with_labels(found: Findings, indices: Sequence[int]) -> str:
    return " = ".join(f"{file} [{c}]" for file, c in zip(found.files(indices), found.labels(indices), strict=True))
