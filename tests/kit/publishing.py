"""A real journal with parts in it, and what a publisher needs beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from agent.config import EvidenceConfig, JournalConfig, MqttConfig
from agent.frame import Frame, Part, Stamp
from agent.inspection import BundleRef, Finding, Inspection
from agent.journal import Journal
from agent.messages import MetricsMessage, StatusMessage, rfc3339
from agent.publisher import Publisher
from agent.verdict import Decision, Verdict
from tests.kit.broker import Message

__all__ = ["STATION", "Line", "decoded", "noise_image", "recs"]

STATION = "acme/plant1/finishing/line3/cam1"


def noise_image(side_px: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(side_px, side_px, 3) uint8: noise, which JPEG can't make small (64 px: 10 kB, 200 px: 90 kB at quality 90)."""
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


class Line:
    """A journal, parts on demand, and publishers for it; a context manager.

    Args:
        state_dir: of the journal.
        max_image_kb: largest picture that is published.
    """

    def __init__(self, state_dir: Path, *, max_image_kb: int = 1_000) -> None:
        config = JournalConfig(evidence=EvidenceConfig(max_image_kb=max_image_kb))
        self.journal = Journal.open(config, state_dir=state_dir, station=STATION, clock_state=lambda: "synced")
        self.state: StatusMessage = StatusMessage(
            station=STATION,
            state="online",
            reason="running",
            since=rfc3339(0),
            time=rfc3339(0),
            boot=self.journal.boot,
            version="test",
            bundle="test-1.0.0",
            bundle_digest="0" * 64,
            engine="none",
            counters={},
        )
        self._sequence = 0
        self._publishers: list[Publisher] = []

    def good(self, count: int) -> None:
        """Judge good parts: one verdict each."""
        for _ in range(count):
            self._record(Decision.OK, side_px=0)
        self.journal.flush()

    def flagged(self, side_px: int, count: int = 1) -> None:
        """Judge defective parts with pictures of noise: one verdict and one image each."""
        for _ in range(count):
            self._record(Decision.DEFECT, side_px=side_px)
        self.journal.flush()

    def _record(self, decision: Decision, *, side_px: int) -> None:
        self._sequence += 1
        part = Part(id=f"part-{self._sequence}", trigger="test", sequence=self._sequence, triggered=Stamp.now())
        self.journal.trigger(part)
        frame = None
        if side_px:
            image = noise_image(side_px, self._sequence)
            frame = Frame(part=part, image=image, camera="test", source="noise", sequence=1, captured=Stamp.now())
        finding = Finding(class_name="scratch", severity="major", score=0.9)
        bundle = BundleRef(name="test-1.0.0", digest="0" * 64)
        inspection = Inspection(
            part=part, frame=frame, fault=None, findings=(finding,), defect_score=0.9, bundle=bundle, engine="none"
        )
        verdict = Verdict(decision=decision, reason="a test", inspection=inspection, decided=Stamp.now())
        self.journal.record(verdict)

    def degrade(self, reason: str) -> None:
        """Let the station's status be degraded."""
        self.state = dataclasses.replace(self.state, state="degraded", reason=reason)

    def config(self, port: int, **keys: Any) -> MqttConfig:
        """MqttConfig for a loopback port, without metrics and without a rate limit unless `keys` say otherwise."""
        defaults: dict[str, Any] = {"port": port, "backlog_rate_hz": 100_000.0, "metrics_s": 0.0, "keepalive_s": 10}
        return MqttConfig(**{**defaults, **keys})

    def publisher(self, port: int, **keys: Any) -> Publisher:
        """Start a publisher; `keys` are MqttConfig's. It is stopped with the line."""
        publisher = Publisher(
            self.config(port, **keys),
            self.journal.outbox,
            station=STATION,
            status=lambda: self.state,
            metrics=self.metrics,
            tell_event=self.journal.event,
        )
        self._publishers.append(publisher)
        publisher.start()
        return publisher

    def metrics(self) -> MetricsMessage:
        """Numbers of a kind."""
        return MetricsMessage(
            station=STATION,
            time=rfc3339(0),
            uptime_s=1.0,
            counters={},
            outbox=self.journal.outbox.depth(),
            journal_pending=0,
            evidence_bytes=0,
            disk_free_bytes=0,
        )

    def __enter__(self) -> Line:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for publisher in self._publishers:
            publisher.stop(2.0)
        self.journal.close()


def decoded(message: Message) -> dict[str, Any]:
    """A message's JSON object."""
    value: dict[str, Any] = json.loads(message.payload)
    return value


def recs(messages: list[Message]) -> list[int]:
    """Record numbers of verdicts, in the order in which they came, repeats removed."""
    return list(dict.fromkeys(int(decoded(message)["rec"]) for message in messages))
