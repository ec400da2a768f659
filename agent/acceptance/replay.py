"""Golden pictures replayed on an engine: which verdict each gets now, how far its outputs are off, how long it took.

What is compared is what a part would get: the decision and the class that decides, by the station's own limits. Zones
and sizes are left out: they are in pixels and millimetres of the camera's frame, and a golden has been fitted to the
network's input.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle import (
    Bundle,
    Golden,
    decode_classification,
    findings_from_boxes,
    golden_outputs,
    is_as_recorded,
)
from agent.config import EngineConfig, PolicyConfig
from agent.engines import Engine, Unproven
from agent.errors import AgentError, EngineError
from agent.frame import Frame, Part, Stamp
from agent.inspection import Inspection, ref_from_bundle
from agent.verdict import Verdict, policy_from_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agent.bundle.golden import OutputsByRole

__all__ = ["Answer", "GoldenReplay", "goldens_for", "in_words", "reference_graph"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine made of one golden.

    Attributes:
        file: the golden, `golden/000.png`.
        verdict: decision and deciding class now: `defect scratch`, `ok good`, `error: reason`.
        expected: the same at the build.
        same: the engine sees what the build saw: the class; of a detector every detection that counts.
        ms: the inference alone, in milliseconds.
        difference: by output, the largest difference to the build's values; of a detector empty.
    """

    file: str
    verdict: str
    expected: str
    same: bool
    ms: float
    difference: Mapping[str, float]

    @property
    def changed(self) -> bool:
        """Whether a part like this one would be treated differently than at the build."""
        return self.verdict != self.expected or not self.same


def reference_graph(bundle: Bundle, engine: Engine | Unproven, config: EngineConfig) -> str:
    """The graph whose outputs at the build an engine has to come near: the one that it was made from.

    Args:
        bundle: holds them.
        engine: the open one; after a fall-back it is not what the configuration asked for.
        config: what was asked for.
    """
    if engine.kind == "trt":
        from agent.engines.trt_open import precision_for

        wanted = "trt" if precision_for(bundle, config) == "int8" else "fp32"
        return wanted if wanted in bundle.manifest.graphs else "fp32"
    return bundle.manifest.cpu_graph if config.graph == "auto" else config.graph


def goldens_for(bundle: Bundle, graph: str) -> list[Golden]:
    """The goldens that have a reference of this graph.

    Raises:
        BundleError: they are not as they must be.
    """
    role = "logits" if bundle.manifest.detection is None else "detections"
    return [golden for golden in bundle.goldens() if role in golden.outputs.get(graph, {})]


class GoldenReplay:
    """Replays the goldens of a bundle that have a reference for this engine; one thread at a time.

    Args:
        bundle: holds them.
        engine: runs them; the caller closes it.
        graph: whose outputs are the reference, as `reference_graph` has it.
        policy: the station's limits.
        limit: replay no more than so many, spread evenly; they stay in memory.
        clock: nanoseconds, for the time of an inference.

    Raises:
        BundleError: the goldens are not as they must be.
        EngineError: a reference does not fit the manifest.
        ConfigError: the limits do not fit the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        graph: str,
        policy: PolicyConfig,
        *,
        limit: int | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._clock = clock
        self._manifest = bundle.manifest
        self._engine = engine
        self.graph = graph
        self._ref = ref_from_bundle(bundle)
        limits = PolicyConfig(defect_above=policy.defect_above, review_above=policy.review_above)
        self._policy = policy_from_config(limits, bundle.manifest)
        usable = goldens_for(bundle, graph)
        self.goldens = tuple(
            dataclasses.replace(golden, outputs={graph: golden.outputs[graph]}) for golden in _evenly(usable, limit)
        )
        self._expected = [self._verdict(golden, golden.outputs[graph]) for golden in self.goldens]

    def __len__(self) -> int:
        """How many goldens there are."""
        return len(self.goldens)

    def play(self, index: int) -> Answer:
        """Run one golden; an engine that fails on it gives an answer too."""
        golden = self.goldens[index]
        start = self._clock()
        try:
            outputs = self._engine.infer(golden.image[None])
            ms = (self._clock() - start) / 1e6
            seen = golden_outputs(outputs, self._manifest)
            verdict, same = self._verdict(golden, seen), is_as_recorded(golden, self.graph, outputs, self._manifest)
        except Exception as error:  # a failing golden is an answer; the line that asked must go on
            ms = (self._clock() - start) / 1e6
            seen, verdict, same = {}, f"error: {in_words(error)}"[:200], False
        return Answer(
            file=golden.file,
            verdict=verdict,
            expected=self._expected[index],
            same=same,
            ms=ms,
            difference={} if self._manifest.detection else _differences(seen, golden.outputs[self.graph]),
        )

    def can_infer(self) -> bool:
        """Whether the engine still runs at all."""
        try:
            self.time(0)
        except Exception:  # of whatever kind: no
            return False
        return True

    def time(self, index: int) -> float:
        """Run one golden for its time alone, in milliseconds.

        Raises:
            EngineError: the inference failed.
        """
        tensor = self.goldens[index % len(self.goldens)].image[None]
        start = self._clock()
        self._engine.infer(tensor)
        return (self._clock() - start) / 1e6

    def _verdict(self, golden: Golden, seen: OutputsByRole) -> str:
        """The decision about a golden, from a classifier's outputs or a detector's detections."""
        part = Part(id=golden.file, trigger="golden", sequence=0, triggered=Stamp.now())
        frame = Frame(
            part=part, image=golden.image, camera="golden", source=golden.file, sequence=0, captured=Stamp.now()
        )
        same = {"part": part, "frame": frame, "fault": None, "bundle": self._ref, "engine": self._engine.name}
        if self._manifest.detection is None:
            found = decode_classification(_output(seen, "logits"), self._manifest)
            inspection = Inspection(findings=found.findings, defect_score=found.defect_score, **same)  # type: ignore[arg-type]
        else:
            rows = _output(seen, "detections")
            findings = findings_from_boxes(
                rows[:, :4].astype(np.float64), rows[:, 4], rows[:, 5].astype(np.int64), self._manifest, None
            )
            score = max((f.score for f in findings if f.severity != "ok"), default=0.0)
            inspection = Inspection(task="detect", findings=findings, defect_score=score, **same)  # type: ignore[arg-type]
        return _words(self._policy.judge(inspection))


def in_words(error: Exception) -> str:
    """What went wrong; of an exception that is not ours its kind, too."""
    return error.message if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"


def _evenly(goldens: Sequence[Golden], limit: int | None) -> Sequence[Golden]:
    if limit is None or len(goldens) <= limit:
        return goldens
    return [goldens[index * len(goldens) // limit] for index in range(limit)]


def _words(verdict: Verdict) -> str:
    if verdict.decision.value == "error":
        return f"error: {verdict.reason}"[:200]
    return verdict.decision.value if verdict.top is None else f"{verdict.decision.value} {verdict.top.class_name}"


def _output(outputs: OutputsByRole, role: str) -> NDArray[np.float32]:
    if role not in outputs:
        raise EngineError(f"the engine gave no {role}; it gave {sorted(outputs)}")
    return outputs[role]


def _differences(seen: OutputsByRole, expected: OutputsByRole) -> dict[str, float]:
    """The largest absolute difference of each output that both have; an output of another shape is infinitely off."""
    found = {}
    for role in sorted(set(seen) & set(expected)):
        now, then = seen[role], expected[role]
        largest = float(np.abs(now - then).max(initial=0.0)) if now.shape == then.shape else math.inf
        found[role] = largest if math.isfinite(largest) else math.inf
    return found
