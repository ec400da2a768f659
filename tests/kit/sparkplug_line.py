"""A journal with parts and the Sparkplug node that shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agent.config import SparkplugConfig
from agent.sparkplug import Door, EdgeNode, Source
from tests.kit.publishing import STATION, Line

__all__ = ["DCMD", "DDATA", "NCMD", "Plant"]

NCMD = "spBv1.0/acme-plant1-finishing-line3/NCMD/cam1"
DCMD = "spBv1.0/acme-plant1-finishing-line3/DCMD/cam1/inspection"
DDATA = "spBv1.0/acme-plant1-finishing-line3/DDATA/cam1/inspection"


class Plant:
    """One station's journal, and nodes for it; a context manager.

    Args:
        folder: of the state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.line = Line(folder)
        self._nodes: list[EdgeNode] = []

    def node(
        self, port: int, *, door: Door | None = None, broker: dict[str, Any] | None = None, **keys: Any
    ) -> EdgeNode:
        """Start a node; `keys` are SparkplugConfig's, `broker` MqttConfig's."""
        config = SparkplugConfig(**{"metrics_s": 0.2, "rebirth_s": 0.0, "history_rate_hz": 5_000.0, **keys})
        source = Source(
            status=lambda: self.line.state,
            metrics=lambda: dataclasses.replace(self.line.metrics(), ledger=self.line.journal.stats().ledger.counts()),
            tell_event=self.line.journal.event,
        )
        made = EdgeNode(
            config,
            self.line.config(port, **{"reconnect_max_s": 0.3, **(broker or {})}),
            station=STATION,
            state_dir=self.folder,
            journal=self.line.journal,
            source=source,
            door=door,
        )
        self._nodes.append(made)
        made.start()
        return made

    def __enter__(self) -> Plant:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.stop(2.0)
        self.line.__exit__()
