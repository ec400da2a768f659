"""Which findings of a detector count, and by which limits: severity, size, zone. Pure.

```text
no defect: severity ok · entirely in an ignored zone · smaller than the least of its zone, else of its class
the rest:  compared with the limits of every place that it lies in; the strictest decides
```

A size that is not known is never too small: a part does not pass because a number is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from agent.bundle.decode import Finding
from agent.bundle.manifest import PolicySpec
from agent.zones import Zone

__all__ = ["Counted", "FindingCounter"]

_SEVERITIES = ("ok", "minor", "major", "critical")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One finding that counts, with the limits that decide about it.

    Attributes:
        finding: with its zone.
        limits: of its zone, or of the picture around the zones.
        level: 0 under both limits, 1 from `review_above`, 2 from `defect_above`.
    """

    finding: Finding
    limits: PolicySpec
    level: int

    @property
    def rank(self) -> tuple[int, int, float]:
        """The foremost is the highest: by what it decides, then severity, then score."""
        return self.level, _SEVERITIES.index(self.finding.severity), self.finding.score


class FindingCounter:
    """Tells which findings count.

    Args:
        limits: around the zones.
        zones: with limits of their own.
        min_sizes_mm: class to the size under which its findings are no defects.
    """

    def __init__(self, limits: PolicySpec, zones: Sequence[Zone], min_sizes_mm: Mapping[str, float]) -> None:
        self._limits = limits
        self._zones = tuple(zones)
        self._min_sizes_mm = dict(min_sizes_mm)

    def count(self, findings: Sequence[Finding]) -> list[Counted]:
        """Those that count, foremost first, each by the strictest of the places that it lies in."""
        counted = (self._strictest(finding) for finding in findings if finding.severity != "ok")
        return sorted((one for one in counted if one is not None), key=lambda one: one.rank, reverse=True)

    def _strictest(self, finding: Finding) -> Counted | None:
        if not self._zones:  # the commonest, and on the way of every part
            return None if self._is_small(finding, None) else _counted(finding, self._limits)
        places = (
            _counted(dataclasses.replace(finding, zone=zone.name) if zone else finding, limits)
            for zone, limits in self._places(finding)
            if not self._is_small(finding, zone)
        )
        return max(places, key=lambda place: (place.level, -place.limits.defect_above), default=None)

    def _places(self, finding: Finding) -> Iterator[tuple[Zone | None, PolicySpec]]:
        """Zones that it overlaps, and the picture around them unless one holds all of it; none when it is ignored."""
        if finding.box_px is None:
            yield None, self._limits
            return
        shares = [(zone, zone.overlap(finding.box_px)) for zone in self._zones]
        if any(zone.is_ignored and overlap == "all" for zone, overlap in shares):
            return
        touched = [(zone, overlap) for zone, overlap in shares if overlap != "none" and not zone.is_ignored]
        yield from ((zone, zone.limits) for zone, _ in touched)
        if not any(overlap == "all" for _, overlap in touched):
            yield None, self._limits

    def _is_small(self, finding: Finding, zone: Zone | None) -> bool:
        least = zone.min_size_mm if zone is not None and zone.min_size_mm is not None else None
        if least is None:
            least = self._min_sizes_mm.get(finding.class_name)
        return least is not None and finding.size_mm is not None and finding.size_mm < least


def _counted(finding: Finding, limits: PolicySpec) -> Counted:
    level = (finding.score >= limits.review_above) + (finding.score >= limits.defect_above)
    return Counted(finding=finding, limits=limits, level=level)
