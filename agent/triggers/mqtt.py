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
        """Set while no command can be heard: no broker, or one that does not let us subscribe."""
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

    def lose(self, count: int, at: Stamp, reason: str) -> None:
        """Commands came of which only the number is known; see `TriggerQueue.lose`."""
        self._queue.lose(count, at, reason)

    @property
    def is_closed(self) -> bool:
        """The line has stopped: nothing that comes now gets a verdict."""
        return self._queue.is_closed

    def next(self, timeout_s: float) -> Part | Fault | None:
        """The next command's part, or one that was refused."""
        return self._queue.next(timeout_s)

    def close(self) -> None:
        """Take none any more."""
        self._queue.close()
