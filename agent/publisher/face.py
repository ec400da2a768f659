"""What the station says of itself over MQTT: `status` (retained, and as last will) and `metrics`."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from agent.messages import MetricsMessage, StatusMessage, rfc3339, to_json
from agent.publisher.report import Report

__all__ = ["JSON", "Face"]

JSON = "application/json"

T = TypeVar("T")

log = logging.getLogger("agent.publisher")


class Face:
    """Makes the payloads; a callback that fails costs its message and nothing else.

    Args:
        station: ROOT.
        status: the station's own view.
        metrics: the station's own numbers; ours are added.
        report: the link, for `degraded` and the counters.
    """

    def __init__(
        self,
        station: str,
        status: Callable[[], StatusMessage],
        metrics: Callable[[], MetricsMessage],
        report: Report,
    ) -> None:
        self.status_topic = f"{station}/status"
        self.metrics_topic = f"{station}/metrics"
        self._status, self._metrics, self._report = status, metrics, report
        self._failed: set[str] = set()

    def online(self) -> bytes | None:
        """The status now: what the station says, and degraded while the broker does not take some of its messages."""
        message = self._call(self._status)
        held = self._report.held_in_words
        if message is not None and held is not None and message.state == "online":
            message = dataclasses.replace(message, state="degraded", reason=held)
        return None if message is None else to_json(message)

    def offline(self, reason: str) -> bytes | None:
        """The status when we are gone."""
        message = self._call(self._status)
        if message is None:
            return None
        now = rfc3339(time.time_ns() // 1_000_000)
        return to_json(dataclasses.replace(message, state="offline", reason=reason, since=now, time=now))

    def numbers(self) -> bytes | None:
        """The metrics now."""
        message = self._call(self._metrics)
        if message is None:
            return None
        ours = {f"mqtt_{name}": count for name, count in self._report.counters().items()}
        return to_json(dataclasses.replace(message, counters={**message.counters, **ours}))

    def _call(self, source: Callable[[], T]) -> T | None:
        try:
            return source()
        except Exception as error:  # a disk that can't be asked for its space must not stop the verdicts
            self._report.bugs += 1
            if repr(error) not in self._failed:
                self._failed.add(repr(error))
                log.exception("status_unknown")
            return None
