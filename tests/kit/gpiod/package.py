"""The Python side of the stand-in: a package `gpiod` with the names, parameters, enums and errors of gpiod 2.5.

Own code, to the interface of `names.json`; a test holds it to that table, and the real package too where it is
installed. What the agent does not use (line names, watching the state of lines) is left out.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import os
import select
import types
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from tests.kit.gpiod.board import Board, SimRequest

from tests.kit.gpiod.board import Wanted

__all__ = ["make_package"]


class Value(enum.Enum):
    INACTIVE = 0
    ACTIVE = 1

    def __bool__(self) -> bool:
        return self is Value.ACTIVE


class Direction(enum.Enum):
    AS_IS = 1
    INPUT = 2
    OUTPUT = 3


class Bias(enum.Enum):
    AS_IS = 1
    UNKNOWN = 2
    DISABLED = 3
    PULL_UP = 4
    PULL_DOWN = 5


class Drive(enum.Enum):
    PUSH_PULL = 1
    OPEN_DRAIN = 2
    OPEN_SOURCE = 3


class Edge(enum.Enum):
    NONE = 1
    RISING = 2
    FALLING = 3
    BOTH = 4


class Clock(enum.Enum):
    MONOTONIC = 1
    REALTIME = 2
    HTE = 3


class ChipClosedError(Exception):
    def __init__(self) -> None:
        super().__init__("I/O operation on closed chip")


class RequestReleasedError(Exception):
    def __init__(self) -> None:
        super().__init__("GPIO lines have been released")


@dataclasses.dataclass
class LineSettings:
    direction: Direction = Direction.AS_IS
    edge_detection: Edge = Edge.NONE
    bias: Bias = Bias.AS_IS
    drive: Drive = Drive.PUSH_PULL
    active_low: bool = False
    debounce_period: timedelta = timedelta()
    event_clock: Clock = Clock.MONOTONIC
    output_value: Value = Value.INACTIVE


@dataclasses.dataclass(frozen=True)
class ChipInfo:
    name: str
    label: str
    num_lines: int


@dataclasses.dataclass(frozen=True, init=False)
class EdgeEvent:
    class Type(enum.Enum):
        RISING_EDGE = 1
        FALLING_EDGE = 2

    event_type: Type
    timestamp_ns: int
    line_offset: int
    global_seqno: int
    line_seqno: int

    def __init__(
        self, event_type: int, timestamp_ns: int, line_offset: int, global_seqno: int, line_seqno: int
    ) -> None:
        object.__setattr__(self, "event_type", EdgeEvent.Type(event_type))
        object.__setattr__(self, "timestamp_ns", timestamp_ns)
        object.__setattr__(self, "line_offset", line_offset)
        object.__setattr__(self, "global_seqno", global_seqno)
        object.__setattr__(self, "line_seqno", line_seqno)


LineConfig = dict[Union[Iterable[int], int], Union[LineSettings, None]]  # noqa: UP007 - read at run time on Python 3.10


class LineRequest:
    def __init__(self, req: SimRequest) -> None:
        self._req: SimRequest | None = req

    def __bool__(self) -> bool:
        return self._req is not None

    def __enter__(self) -> LineRequest:  # noqa: PYI034 - Self needs Python 3.11
        self._held()
        return self

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        self.release()

    def _held(self) -> SimRequest:
        if self._req is None:
            raise RequestReleasedError
        return self._req

    def release(self) -> None:
        if self._req is not None:
            self._req.release()
            self._req = None

    def get_value(self, line: int) -> Value:
        return self.get_values([line])[0]

    def get_values(self, lines: Iterable[int] | None = None) -> list[Value]:
        held = self._held()
        held.chip.check()
        offsets = list(lines or held.wanted)
        return [Value(held.chip.level(offset) != held.wanted[offset].is_active_low) for offset in offsets]

    def set_value(self, line: int, value: Value) -> None:
        self.set_values({line: value})

    def set_values(self, values: dict[int, Value]) -> None:
        held = self._held()
        held.chip.set(held, {offset: value is Value.ACTIVE for offset, value in values.items()})

    def wait_edge_events(self, timeout: timedelta | float | None = None) -> bool:
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        return bool(select.select([self.fd], [], [], seconds)[0])

    def read_edge_events(self, max_events: int | None = None) -> list[EdgeEvent]:
        held = self._held()
        select.select([held.fd], [], [])  # as the real one: it blocks
        return [EdgeEvent(1 if edge.is_rising else 2, *edge[1:]) for edge in held.take(max_events or 64)]

    def fileno(self) -> int:
        return self.fd

    @property
    def chip_name(self) -> str:
        return str(self._held().chip.described()["name"])

    @property
    def num_lines(self) -> int:
        return len(self._held().wanted)

    @property
    def offsets(self) -> list[int]:
        return list(self._held().wanted)

    @property
    def lines(self) -> list[int]:
        return self.offsets

    @property
    def fd(self) -> int:
        return self._held().fd


def make_package(board: Board) -> types.ModuleType:
    """The package, on this board."""

    class Chip:
        def __init__(self, path: str) -> None:
            if path in board.forbidden:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if path not in board.chips:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._chip = board.chips[path]
            self._chip.check()
            self._is_open = True

        def __bool__(self) -> bool:
            return self._is_open

        def __enter__(self) -> Chip:  # noqa: PYI034 - Self needs Python 3.11
            return self

        def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
            self.close()

        def close(self) -> None:
            self._is_open = False

        def get_info(self) -> ChipInfo:
            if not self._is_open:
                raise ChipClosedError
            return ChipInfo(**self._chip.described())

        def request_lines(
            self,
            config: LineConfig,
            consumer: str | None = None,
            event_buffer_size: int | None = None,
            output_values: dict[int, Value] | None = None,
        ) -> LineRequest:
            wanted: dict[int, Wanted] = {}
            for key, settings in config.items():
                for offset in [key] if isinstance(key, int) else key:
                    if offset >= self._chip.lines:
                        raise ValueError("line offset of out range")
                    if offset in wanted:
                        raise ValueError(f"line must be configured exactly once - offset {offset} repeats")
                    wanted[offset] = _wanted(settings or LineSettings(), (output_values or {}).get(offset))
            return LineRequest(self._chip.request(wanted, consumer or "?", event_buffer_size or 0))

        @property
        def path(self) -> str:
            return self._chip.path

    def request_lines(
        path: str,
        config: LineConfig,
        consumer: str | None = None,
        event_buffer_size: int | None = None,
        output_values: dict[int, Value] | None = None,
    ) -> LineRequest:
        with Chip(path) as chip:
            return chip.request_lines(config, consumer, event_buffer_size, output_values)

    def is_gpiochip_device(path: str) -> bool:
        return path in board.chips

    package, line = types.ModuleType("gpiod"), types.ModuleType("gpiod.line")
    public: list[Any] = [Chip, ChipClosedError, ChipInfo, EdgeEvent, LineRequest, LineSettings, RequestReleasedError]
    functions = {"request_lines": request_lines, "is_gpiochip_device": is_gpiochip_device}
    vars(package).update({each.__name__: each for each in public}, **functions)
    vars(line).update({each.__name__: each for each in (Value, Direction, Bias, Drive, Edge, Clock)})
    line.__all__ = ["Value", "Direction", "Bias", "Drive", "Edge", "Clock"]  # type: ignore[attr-defined]
    package.__all__ = [*(each.__name__ for each in public), *functions]  # type: ignore[attr-defined]
    package.line, package.__version__, package.api_version = line, "2.5.0", "2.3"  # type: ignore[attr-defined]
    return package


def _wanted(settings: LineSettings, output: Value | None) -> Wanted:
    edges = {
        Edge.NONE: frozenset[bool](),
        Edge.RISING: frozenset({True}),
        Edge.FALLING: frozenset({False}),
        Edge.BOTH: frozenset({True, False}),
    }[settings.edge_detection]
    if edges and settings.direction is Direction.OUTPUT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return Wanted(
        is_output=settings.direction is Direction.OUTPUT,
        edges=edges,
        is_active_low=settings.active_low,
        debounce_ns=int(settings.debounce_period.total_seconds() * 1_000_000) * 1_000,
        output=bool(settings.output_value if output is None else output),
    )
