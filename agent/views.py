"""Several cameras for one part: one engine judges view after view, and the worst decision is the part's.

```text
agent.view_cameras ─ a frame or a fault per view ─ inspect, judge: each ─ worst ─▶ PartVerdict: that one's, and all
```

A view that is missing, late or faulty makes the part an `error` that names it: a part that was seen from two sides of
three was not inspected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agent.bundle import Bundle
from agent.config import AgentConfig, CameraConfig, PolicyConfig, RoiConfig
from agent.engines import Engine
from agent.frame import Fault, Frame
from agent.inspection import Inspector, StageMs
from agent.roi import Roi, configured_size
from agent.verdict import Decision, Policy, Verdict, policy_from_config
from agent.view_cameras import Join, View, ViewCameras, joined_by

__all__ = [
    "Join",
    "PartVerdict",
    "View",
    "ViewCameras",
    "ViewJudge",
    "ViewResult",
    "ViewSettings",
    "joined_by",
    "judge_from_config",
    "view_settings",
    "worst_of",
]

WORST_FIRST = (Decision.ERROR, Decision.DEFECT, Decision.REVIEW, Decision.OK)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ViewResult:
    """One view's part in a verdict.

    Attributes:
        name: of the view.
        verdict: as it would be if this were the only camera; its frame is the view's picture.
    """

    name: str
    verdict: Verdict

    @property
    def decision(self) -> Decision:
        """What this view alone would have decided."""
        return self.verdict.decision

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.verdict.reason

    @property
    def class_name(self) -> str | None:
        """The class that decided; None without one."""
        return None if self.verdict.top is None else self.verdict.top.class_name

    @property
    def score(self) -> float | None:
        """The defect score that was compared; None for `error`."""
        return self.verdict.score


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict(Verdict):
    """The verdict of a part that several cameras saw: that of its worst view, and every view's beside it.

    Times are those of all views together: capture the longest, as they ran at once, the others added up.

    Attributes:
        views: one per camera, the first camera first.
    """

    views: tuple[ViewResult, ...] = ()


class ViewJudge:
    """Judges all views of a part, one after the other on one engine; the worst decision is the part's.

    Args:
        eyes: per view, the first camera's first: what looks at its pictures, and what decides. They share the engine.
    """

    def __init__(self, eyes: Mapping[str, tuple[Inspector, Policy]]) -> None:
        self._eyes = dict(eyes)

    def judge(self, seen: Sequence[Frame | Fault]) -> PartVerdict:
        """Decide about one part.

        Args:
            seen: one per view, in the order of `eyes`; all of one part.

        Returns:
            The worst view's verdict as the part's: error, else defect, else review, else ok; of equal ones the one with
            the highest score, else the first.
        """
        views = tuple(
            ViewResult(name=name, verdict=policy.judge(inspector.inspect(item)))
            for (name, (inspector, policy)), item in zip(self._eyes.items(), seen, strict=True)
        )
        return worst_of(views)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What the configuration says of one view.

    Attributes:
        camera: where its frames come from.
        roi: what the model sees of them; None is all.
        policy: decision limits with its own zones and pixel pitch.
    """

    camera: CameraConfig
    roi: RoiConfig | None
    policy: PolicyConfig


def view_settings(config: AgentConfig) -> dict[str, ViewSettings]:
    """The settings of every view by its name, the first camera's first; of a station with one camera, only that."""
    own = config.policy
    first = (config.camera.name, config.camera, config.roi, own.pixel_mm)
    further = [(view.name, view.camera, view.roi, view.pixel_mm or own.pixel_mm) for view in config.views]
    return {
        name: ViewSettings(
            camera=camera,
            roi=roi,
            policy=dataclasses.replace(
                own, pixel_mm=pixel_mm, zones=tuple(zone for zone in own.zones if zone.view in ("", name))
            ),
        )
        for name, camera, roi, pixel_mm in (first, *further)
    }


def judge_from_config(config: AgentConfig, bundle: Bundle, engine: Engine) -> ViewJudge:
    """What judges this station's parts, with each view's region, pixel pitch and zones.

    Args:
        config: the station's.
        bundle: decides about every view.
        engine: of all views; the caller closes it.

    Raises:
        ConfigError: a policy or a region that does not fit.
    """
    eyes = {}
    for name, each in view_settings(config).items():
        region = None if each.roi is None else Roi(each.roi, frame_size=configured_size(each.camera))
        inspector = Inspector(bundle, engine, pixel_mm=each.policy.pixel_mm, roi=region)
        eyes[name] = inspector, policy_from_config(each.policy, bundle.manifest)
    return ViewJudge(eyes)


def worst_of(views: Sequence[ViewResult]) -> PartVerdict:
    """Join the verdicts of a part's views, one or more."""
    ranked = sorted(views, key=lambda view: (WORST_FIRST.index(view.decision), -(view.score or 0.0)))
    worst = ranked[0]
    also = [f"{view.name}: {view.decision.value}" for view in ranked[1:] if view.decision is not Decision.OK]
    is_named = worst.reason.startswith(f"capture: view {worst.name}:")
    named = worst.reason if is_named else f"view {worst.name}: {worst.reason}"
    taken = {field.name: getattr(worst.verdict, field.name) for field in dataclasses.fields(Verdict)}
    times = [view.verdict.inspection.ms for view in views]
    ms = StageMs(
        capture=max(each.capture for each in times),
        preprocess=sum(each.preprocess for each in times),
        infer=sum(each.infer for each in times),
        decode=sum(each.decode for each in times),
    )
    taken.update(
        reason="; ".join([named, *(["also " + ", ".join(also)] if also else [])]),
        inspection=dataclasses.replace(worst.verdict.inspection, ms=ms),
        decided=max((view.verdict.decided for view in views), key=lambda at: at.mono_ns),
        decide_ms=sum(view.verdict.decide_ms for view in views),
    )
    return PartVerdict(**taken, views=tuple(views))
