"""A whole line in this process: real queue, engine, policy, fast path and journal; camera and PLC are the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from agent.cameras import Camera
from agent.config import EngineConfig, LineConfig, PolicyConfig
from agent.engines import Engine, open_engine
from agent.frame import Fault, Part
from agent.inspection import Inspector
from agent.journal import Journal
from agent.outputs import FastPath
from agent.station import Station
from agent.triggers import TriggerQueue, TriggerWatcher
from agent.verdict import policy_from_config
from tests.kit.bundles import make_bundle
from tests.kit.outputs import Recorder
from tests.kit.verdicts import open_journal

__all__ = ["HandTrigger", "RealLine"]

PATIENCE_S = 60.0


class HandTrigger:
    """A trigger that the test pulls: `queue.offer`.

    Attributes:
        lost: what it says of itself.
    """

    def __init__(self, *, waiting: int = 100) -> None:
        self.queue = TriggerQueue(kind="hand", prefix="part", waiting=waiting)
        self.lost: str | None = None

    @property
    def ended(self) -> bool:
        return self.queue.ended

    def next(self, timeout_s: float) -> Part | Fault | None:
        return self.queue.next(timeout_s)

    def watch(self, watcher: TriggerWatcher) -> None:
        self.queue.watch(watcher)

    def close(self) -> None:
        self.queue.close()


class RealLine:
    """A station and what belongs to it; a context manager. `start` runs the line on a thread of its own.

    Args:
        folder: for bundle and state.
        camera: of the line; closed with it.
        trigger: of the line; one that the test pulls unless given.
        line: how it keeps its pace.
        engine: in place of the bundle's.
        journal: keys of `open_journal`.
        plc: hears the fast results; a `Recorder` unless given.
        **callbacks: `changed`, `between`, `beat` of the station.

    Attributes:
        plc: hears the fast results.
    """

    def __init__(
        self,
        folder: Path,
        camera: Camera,
        *,
        trigger: Any = None,
        line: LineConfig | None = None,
        engine: Callable[[Engine], Engine] = lambda engine: engine,
        journal: dict[str, Any] | None = None,
        plc: Any = None,
        **callbacks: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        bundle = make_bundle(folder)
        line = line or LineConfig()
        self.plc = plc or Recorder()
        self.camera = camera
        self.trigger = trigger or HandTrigger()
        self.stop = threading.Event()
        self.state_dir = folder / "state"
        self._engine = open_engine(bundle, EngineConfig(kind="onnxruntime"))
        self.journal: Journal = open_journal(self.state_dir, **(journal or {}))
        self.fast = FastPath([self.plc], deadline_ms=line.deadline_ms, durable=line.result == "durable")
        self.station = Station(
            trigger=self.trigger,
            camera=camera,
            inspector=Inspector(bundle, engine(self._engine), buffers=line.ahead + 2),
            policy=policy_from_config(PolicyConfig(), bundle.manifest),
            journal=self.journal,
            fast=self.fast,
            line=line,
            **callbacks,
        )
        self.judged = 0
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)

    def start(self, max_parts: int | None = None) -> RealLine:
        """Run the line beside the test."""
        self._max_parts = max_parts
        self._thread.start()
        return self

    def wait(self) -> int:
        """Wait until the line has ended by itself, or after `stop` was set; how many parts got a verdict."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the line did not end"
        if self.failed is not None:
            raise self.failed
        return self.judged

    def end(self) -> int:
        """Ask the line to stop, and wait."""
        self.stop.set()
        return self.wait()

    def verdicts(self) -> list[tuple[str, int]]:
        """Part and decision code of what is on the disk, in order."""
        self.journal.flush()
        return [(stored.part, stored.code) for stored in self.journal.read()]

    def _run(self) -> None:
        try:
            self.judged = self.station.run(self.stop, self._max_parts)
        except BaseException as error:
            self.failed = error

    def __enter__(self) -> RealLine:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self.trigger.close()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)
        self.fast.close()
        self.camera.close()
        self.journal.close()
        self._engine.close()
