"""A detector's scorecard as tables to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.bundle import Bundle
from optimize.detection_card import DetectionScorecard, Ends, SizeCounts

__all__ = ["detection_lines"]


def detection_lines(card: DetectionScorecard, bundle: Bundle, engine: str, split: str | None) -> Iterator[str]:
    """The scorecard line by line, without gates and notes of the ledger.

    Args:
        card: what came out.
        bundle: what was judged with.
        engine: in words.
        split: of the data; None for all of it.
    """
    name = f"{bundle.manifest.name}-{bundle.manifest.version}"
    yield f"{name} on {card.n} images{f' of {split}' if split else ''}, {card.groups} groups ({engine})"
    yield ""
    if card.has_boxes:
        areas = ", ".join(f"{key} {_percent(value)}" for key, value in card.map_by_area.items() if value is not None)
        yield f"map50      {_percent(card.map50)}{_interval(card, 'map50')}"
        yield f"map50-95   {_percent(card.map50_95)}{f' ({areas})' if areas else ''}"
    yield f"escapes    {_parts(card)}"
    if card.boxes:
        yield (
            f"boxes      {card.box_escapes} of {card.boxes} outlined defects have no finding over the limit "
            f"on them ({_percent(card.box_escape_rate)}){_interval(card, 'box_escape_rate')}"
        )
        yield (
            f"misses     {card.box_misses} of {card.boxes} without a finding of their class and place "
            f"({_percent(card.box_miss_rate)}){_interval(card, 'box_miss_rate')}"
        )
        yield f"false      {card.false_per_picture:.2f} false boxes per picture reach the limit {card.limit:.2f}"
    yield f"overkill   {_overkill(card)}"
    yield f"review     {card.decisions['review']} of {card.n} ({card.review_rate:.2%})"
    yield f"decisions  {', '.join(f'{key} {count}' for key, count in card.decisions.items())}"
    if card.p50_ms is not None:
        yield f"latency    {card.p50_ms:.2f} ms median, {card.p99_ms:.2f} ms at 99 %"
    for table in (_severity_table(card), _class_table(card), _size_table(card), _froc_table(card)):
        rows = list(table)
        if rows:
            yield ""
            yield from rows
    yield ""
    for note in card.notes:
        yield f"note: {note}"
    for entry in card.unjudged:
        yield f"error: {entry.file}: {entry.reason}"
    for reason in bundle.manifest.gate_reasons:
        yield f"note: this bundle failed its gate at the build: {reason}"


def _parts(card: DetectionScorecard) -> str:
    if card.escape_rate is None or card.escape_upper_95 is None:
        return "no defective parts here"
    bound = f"; with 95 % confidence under {card.escape_upper_95:.2%}"
    counted = f"{card.escapes} of {card.defects} defective parts judged ok ({card.escape_rate:.2%})"
    return f"{counted}{bound}{_interval(card, 'escape_rate')}"


def _overkill(card: DetectionScorecard) -> str:
    if card.overkill_per_1000 is None:
        return "no good parts here"
    counted = f"{card.overkills} of {card.goods} good parts judged defect"
    return f"{counted}, {card.overkill_per_1000:.1f} of 1,000{_interval(card, 'overkill_rate')}"


def _severity_table(card: DetectionScorecard) -> Iterator[str]:
    rows = [("severity", "parts", "escapes", "rate", "under", "boxes", "escapes", "rate", "95 % by group")]
    for name, entry in card.by_severity.items():
        parts = (str(entry.parts), str(entry.escapes), _percent(entry.escape_rate), _percent(entry.escape_upper_95))
        boxes = (str(entry.boxes), str(entry.box_escapes), _percent(entry.box_escape_rate), _ends(entry.box_escape_95))
        rows.append((name, *parts, *(boxes if card.has_boxes else ("-", "-", "-", "-"))))
    yield from _aligned(rows)


def _class_table(card: DetectionScorecard) -> Iterator[str]:
    rows = [("class", "severity", "boxes", "AP50", "AP50-95", "not found")]
    for name, entry in card.per_class.items():
        figures = (_percent(entry.ap50), _percent(entry.ap50_95), _percent(entry.escape_rate))
        rows.append((name, entry.severity, str(entry.support), *figures))
    yield from _aligned(rows)


def _size_table(card: DetectionScorecard) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("size", "boxes", "escapes", "rate", "misses", "rate")]
    rows += [_sized(f"{_range(entry)} {card.size_unit}, longer side", entry) for entry in card.by_size]
    rows += [_sized(f"{name} (area {_range(entry)} px)", entry) for name, entry in card.by_area.items()]
    yield from _aligned(rows)


def _sized(name: str, entry: SizeCounts) -> tuple[str, ...]:
    escapes = str(entry.escapes), _percent(entry.escape_rate)
    return name, str(entry.boxes), *escapes, str(entry.misses), _percent(entry.miss_rate)


def _range(entry: SizeCounts) -> str:
    return f"from {entry.low:g}" if entry.high is None else f"{entry.low:g} to {entry.high:g}"


def _froc_table(card: DetectionScorecard) -> Iterator[str]:
    rows = [("false boxes per picture", "defects found", "95 % by group")]
    rows += [(f"{p.false_per_picture:g}", _percent(p.sensitivity), _ends(p.sensitivity_95)) for p in card.froc]
    yield from _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns: the first to the left, the others to the right; nothing for a head alone."""
    if len(rows) < 2:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([f"{first:{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(others, widths[1:], strict=True))])


def _interval(card: DetectionScorecard, key: str) -> str:
    found = card.intervals_95.get(key)
    return "" if found is None else f"; 95 % by group: {found[0]:.2%} to {found[1]:.2%}"


def _ends(found: Ends | None) -> str:
    return "-" if found is None else f"{found[0]:.1%} to {found[1]:.1%}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
