"""A plant in which everything goes wrong at random: triggers, a camera, an engine, and what really happened in each."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.bundle import Tensor
from agent.cameras import Camera
from agent.engines import Engine
from agent.errors import EngineError
from agent.frame import Fault, Frame, Part, Stamp
from agent.triggers import TriggerQueue
from tests.kit.live import LiveCamera

__all__ = ["Book", "ChaosEngine", "Plant", "Shown", "Tap"]

SIDE_PX = 32
BITS = 24
VALUES = 1 << np.arange(BITS)


def picture(number: int, *, good: bool, dice: np.random.Generator) -> NDArray[np.uint8]:
    """(32, 32, 3) uint8: a white part, which is `ok`, or a black one, with noise and its number in the first row."""
    image = dice.integers(235, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    if not good:
        image -= 215
    image[0, :BITS] = np.where(number & VALUES, 250, 30).astype(np.uint8)[:, None]
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """The number of a picture, or of a tensor made of it."""
    return int(VALUES[image.reshape(-1, 3)[:BITS, 1] > 140].sum())


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """What a picture really was.

    Attributes:
        exposed_ns: when it was exposed.
        is_good: whether it shows a good part.
        is_sound: whether it may be judged at all.
    """

    exposed_ns: int
    is_good: bool
    is_sound: bool


class Tap:
    """A camera that remembers which picture each part was given; `frames` by the part's sequence.

    Args:
        camera: the camera, as the line would have it.
    """

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self.frames: dict[int, tuple[int, int]] = {}

    @property
    def name(self) -> str:
        return self._camera.name

    @property
    def upcoming(self) -> str | None:
        return self._camera.upcoming

    @property
    def ended(self) -> bool:
        return self._camera.ended

    @property
    def lost(self) -> str | None:
        return self._camera.lost

    def poll(self, timeout_s: float) -> bool:
        return self._camera.poll(timeout_s)

    def read(self, part: Part) -> Frame | Fault:
        taken = self._camera.read(part)
        if isinstance(taken, Frame):
            assert taken.exposed_ns is not None
            self.frames[part.sequence] = number_of(taken.image), part.triggered.mono_ns
        return taken

    def close(self) -> None:
        self._camera.close()


class ChaosEngine:
    """A real engine that fails now and then, or takes long.

    Args:
        seed: of the dice.
        slow_s: how long it then takes.
    """

    def __init__(self, seed: int, *, slow_s: float) -> None:
        self._dice = random.Random(seed)
        self._slow_s = slow_s

    def __call__(self, engine: Engine) -> Engine:
        self._engine = engine
        self.name, self.kind = engine.name, engine.kind
        return self

    def infer(self, tensor: Tensor) -> Mapping[str, Any]:
        fate = self._dice.random()
        if fate < 0.001:
            raise EngineError("out of memory")
        if fate < 0.002:
            threading.Event().wait(self._slow_s)  # the fault itself: an engine that is slowed down
        return self._engine.infer(tensor)

    def close(self) -> None:
        self._engine.close()


class Book:
    """An output that keeps what the PLC was told, by the part's sequence."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.told: dict[int, list[tuple[str, str]]] = {}
        self.count = 0
        self._changed = threading.Condition()

    def wait_for(self, count: int) -> None:
        """Until so many results were told."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, 60), f"{self.count} results, expected {count}"

    def result(self, part: Part, decision: str, reason: str) -> None:
        with self._changed:
            self.told.setdefault(part.sequence, []).append((decision, reason))
            self.count += 1
            self._changed.notify_all()

    def ready(self, *, is_ready: bool) -> None: ...

    def expect(self, part: Part) -> None: ...

    def busy(self, part: Part) -> None: ...

    def exposing(self, *, is_exposing: bool) -> None: ...

    def fault(self, reason: str | None) -> None: ...

    def close(self) -> None: ...


class Plant:
    """Pulls triggers at random moments and lets the camera fail at random.

    Args:
        camera: of the line.
        queue: of the line's trigger.
        seed: of the dice.

    Attributes:
        shown: by number, every picture that the camera has shown.
    """

    def __init__(self, camera: LiveCamera, queue: TriggerQueue, *, seed: int) -> None:
        self._camera, self._queue = camera, queue
        self._dice = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self.shown: dict[int, Shown] = {}
        self._last: NDArray[np.uint8] | None = None
        self._torn_at = 0
        self._away = 0

    def pull(self) -> None:
        """One trigger, with whatever befalls the camera before and after it."""
        fate = self._dice.random()
        if self._away:
            self._stay_away()
        elif fate < 0.002:
            self._away = self._dice.randint(1, 40)
            self._camera.lose("unplugged")
            self._camera.fail("unplugged")
        if fate > 0.9:
            self._show(sound=True)  # what came before the trigger is of no part
        self._queue.offer(None if self._dice.random() < 0.5 else f"id-{self._dice.randint(1, 50)}", Stamp.now())
        if not self._away:
            self._answer(self._dice.random())

    def mend(self) -> None:
        """Everything works again."""
        self._away = 0
        self._camera.lose(None)
        self._show(sound=True)

    def _stay_away(self) -> None:
        self._away -= 1
        if not self._away:
            self.mend()

    def _answer(self, fate: float) -> None:
        """What the camera shows after the trigger."""
        last = self._last
        if fate < 0.01:
            return  # too slow: nothing comes in time
        if fate < 0.015:
            self._camera.fail("over-exposed")
        elif fate < 0.01503:
            self._camera.crash(RuntimeError("driver bug"))
        elif fate < 0.025 and last is not None:
            self._camera.show(last.copy())
        elif fate < 0.03:
            self._other(self._noise.integers(0, 4, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8))
        elif fate < 0.035:
            self._other(self._noise.integers(200, 255, (24, SIDE_PX, 3), dtype=np.uint8))
        elif fate < 0.045 and last is not None:
            self._show(sound=False, lower=last if fate < 0.04 else None)
        elif fate < 0.05:
            self._show(sound=False, again=True)
        else:
            self._show(sound=True)
        if fate > 0.95:
            self._show(sound=True)

    def _other(self, image: NDArray[np.uint8]) -> None:
        """A picture without a number: black, or of another size."""
        self._last = None
        self._camera.show(image)

    def _show(self, *, sound: bool, lower: NDArray[np.uint8] | None = None, again: bool = False) -> None:
        number = len(self.shown) + 1
        good = self._dice.random() < 0.7
        image = picture(number, good=good, dice=self._noise)
        if not sound and not again:
            self._torn_at = self._dice.choice([row for row in range(6, 26) if abs(row - self._torn_at) > 3])
            image[self._torn_at :] = 0 if lower is None else lower[self._torn_at :]
        now_ns = time.monotonic_ns()
        self.shown[number] = Shown(now_ns, good, sound)
        self._last = image
        self._camera.show(image, exposed_ns=now_ns, sequence=self._camera.sequence if again else None)
