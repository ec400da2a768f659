"""A part per `trigger` command; `agent.commands` reads them."""

from __future__ import annotations

from collections.abc import Callable

from agent.config import MqttTriggerConfig
from agent.frame import Fault, Part, Stamp
from agent.triggers.queue import TriggerQueue, TriggerWatcher

__all__ = ["MqttTrigger"]


class MqttTrigger:
    """Parts that somebody names over MQTT: for lines where a broker's milliseconds do not matter.

    Attributes:
        trouble: says why no command can come right now, or None; the station sets it once there is a publisher.
    """

    def __init__(self, config: MqttTriggerConfig) -> None:
        self._queue = TriggerQueue(kind=config.kind, prefix=config.part_prefix, waiting=config.waiting)
        self.trouble: Callable[[], str | None] = lambda: None

    @property
    def ended(self) -> bool:
        """Closed, and all that came was given."""
        return self._queue.ended

    @property
    def lost(self) -> str | None:
        """Set while there is no connection to the broker."""
        return self.trouble()

    def watch(self, watcher: TriggerWatcher) -> None:
        """Tell the fast outputs."""
        self._queue.watch(watcher)

    def offer(self, part_id: str | None, at: Stamp) -> Part | Fault:
        """A command came; see `TriggerQueue.offer`."""
        return self._queue.offer(part_id, at)

    def refuse(self, part_id: str | None, at: Stamp, reason: str) -> Fault:
        """A command came too late to be judged; see `TriggerQueue.refuse`."""
        return self._queue.refuse(part_id, at, reason)

    def next(self, timeout_s: float) -> Part | Fault | None:
        """The next command's part, or one that was refused."""
        return self._queue.next(timeout_s)

    def close(self) -> None:
        """Take none any more."""
        self._queue.close()
