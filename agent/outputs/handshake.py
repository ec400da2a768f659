r"""The handshake on electrical lines, as rules without lines: what is active when, and in which order it changes.

```text
ok, not_ok  ________/‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾\__________/‾‾ of the next part
valid       _______________/‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾\___________________/‾‾
busy        ‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾\____________________________________
                    |setup |hold, or until ack|setup |   gap   |setup |
```

`valid` never stands while `ok` or `not_ok` changes, each change is a step of its own, and results come in the order of
their triggers: a PLC that reads `ok` while `valid` is active reads the decision of that part, whichever change it sees
first and whenever we die. `ready` comes after `alive`, and goes before it.

`ack` answers a result by an edge while `valid` stands. What came before can't be an answer: a level that is still on
keeps `valid` back until it is off, and a pulse that is over counts for nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import math

from agent.config import GpioOutputConfig

__all__ = ["Handshake", "Phase"]

MAX_WAITING = 64
"""Results that may wait for the lines; beyond, they come faster than `hold_ms` lets them stand."""

MAX_OWED = 10_000
"""Parts that may be without a shown result; beyond, the trigger line is noisy, and all of them are given up."""

MUTED_MS = 500.0
"""How long `alive` stays off where results were lost: longer than a PLC's cycle."""


class Phase(enum.Enum):
    """Where the result on the lines is."""

    NONE = "none"
    SET = "set"
    STANDS = "stands"
    GONE = "gone"
    GAP = "gap"


@dataclasses.dataclass(slots=True)
class _Times:
    setup_ns: int
    hold_ns: int
    gap_ns: int
    beat_ns: int


class Handshake:
    """What the lines should be, step by step. Levels are logical; nothing here waits or knows a line's number.

    Call `step` until it gives None, setting what it gives before the next call; then again at `due_ns`, or when
    something was told. When lines could not be set, call `failed` and set all to inactive before the next `step`.

    Each part that is expected is shown once, in the order of `expect`. Where that can't be in time (too many wait, or
    the lines had failed) those that wait are shown as not ok, whatever was decided. Where a PLC may have lost count
    (the lines had failed, or parts were given up) `alive` and `ready` go off for `MUTED_MS`.

    Args:
        config: times, and whether there is an `ack` line.

    Attributes:
        levels: what was given by `step` so far.
    """

    def __init__(self, config: GpioOutputConfig) -> None:
        ns = [int(ms * 1e6) for ms in (config.setup_ms, config.hold_ms, config.gap_ms, config.heartbeat_ms)]
        self._times = _Times(*ns)
        self._has_ack = config.ack is not None
        self.levels = dict.fromkeys(("valid", "ok", "not_ok", "ready", "busy", "alive", "strobe"), False)
        self._failure: str | None = None
        self._late: str | None = None
        self._unacked: str | None = None
        self._is_ready = self._is_faulty = self._is_closed = self._is_exposing = False
        self._order: collections.deque[int] = collections.deque()
        self._undecided: set[int] = set()
        self._results: dict[int, str] = {}
        self._last = self._spoiled = 0
        self._is_muting = False
        self._muted_until: float = -math.inf
        self._phase, self._until = Phase.NONE, 0
        self._ack = self._was_acked = False

    @property
    def trouble(self) -> str | None:
        """Why results may not reach the PLC, in words."""
        return self._failure or self._late or self._unacked

    @property
    def phase(self) -> Phase:
        """Where the result on the lines is."""
        return self._phase

    @property
    def is_idle(self) -> bool:
        """No result stands or waits for its turn."""
        return self._phase is Phase.NONE and not self._results

    def ready(self, *, is_ready: bool) -> None:
        """Whether a trigger will be taken now."""
        self._is_ready = is_ready

    def fault(self, reason: str | None) -> None:
        """The line can't judge, or can again."""
        self._is_faulty = reason is not None

    def exposing(self, *, is_exposing: bool) -> None:
        """The strobe."""
        self._is_exposing = is_exposing

    def expect(self, sequence: int) -> None:
        """A part was triggered; sequences ascend."""
        if len(self._order) >= MAX_OWED:
            self._order.clear()
            self._undecided.clear()
            self._results.clear()
            self._is_muting = True
            self._failure = f"outputs.gpio: {MAX_OWED} parts waited for their result and were given up"
        self._order.append(sequence)
        self._undecided.add(sequence)
        self._last = sequence

    def result(self, sequence: int, decision: str) -> None:
        """The decision about a part that is expected; the first one stands."""
        if sequence not in self._undecided:
            return
        self._undecided.discard(sequence)
        self._results[sequence] = decision
        if len(self._results) > MAX_WAITING:
            self._late = f"outputs.gpio: over {MAX_WAITING} results waited for their turn and are shown as not ok"
            self._spoiled = self._last

    def ack(self, *, is_active: bool) -> None:
        """The PLC's line, as it is now. It was off when `valid` came: an active one came since."""
        self._was_acked |= is_active and self._phase is Phase.STANDS
        self._ack = is_active

    def failed(self, now_ns: int, reason: str) -> None:
        """Lines could not be set: what stands there nobody knows, and a result that did is over."""
        self._failure = reason
        self._is_muting, self._spoiled = True, self._last
        self.levels = dict.fromkeys(self.levels, False)
        self._phase, self._until = Phase.GAP, now_ns + self._times.gap_ns

    def close(self) -> None:
        """`alive` and `ready` go off; results that wait are still shown."""
        self._is_closed = True

    def step(self, now_ns: int) -> dict[str, bool] | None:
        """The next change, whose lines may change in any order; None when there is none to make now."""
        if self._is_muting:
            self._is_muting, self._muted_until = False, now_ns + int(MUTED_MS * 1e6)
        if now_ns >= self._muted_until:
            self._failure = None
        change = self._change_aside(now_ns) or self._advance(now_ns)
        if change is not None:
            self.levels.update(change)
        return change

    def due_ns(self, now_ns: int) -> float:
        """When `step` may have something to do although nothing was told; infinity for never."""
        due = [math.inf if self._phase is Phase.NONE else self._until, self._muted_until]
        if self._phase in (Phase.SET, Phase.GAP):  # `ack` may keep it there: until when that is no trouble
            due.append(self._until + self._times.hold_ns)
        if self._times.beat_ns:
            due.append((now_ns // self._times.beat_ns + 1) * self._times.beat_ns)
        return min((at for at in due if at > now_ns), default=math.inf)

    def _change_aside(self, now_ns: int) -> dict[str, bool]:
        """What changes of the lines that say nothing of a part; `ready` and `alive` not in one step."""
        change = {name: level for name, level in self._aside(now_ns).items() if level is not self.levels[name]}
        if "ready" in change and "alive" in change:
            del change["ready" if change["ready"] else "alive"]  # its turn is the next step
        return change

    def _aside(self, now_ns: int) -> dict[str, bool]:
        """The lines that say nothing of a part."""
        works = not self._is_closed and now_ns >= self._muted_until
        beats = not self._times.beat_ns or now_ns // self._times.beat_ns % 2 == 0
        return {
            "strobe": self._is_exposing,
            "ready": works and self._is_ready,
            "alive": works and beats and not self._is_faulty,
            "busy": bool(self._order or self._phase is Phase.SET),
        }

    def _advance(self, now_ns: int) -> dict[str, bool] | None:
        """The result's next step."""
        is_due = now_ns >= self._until
        if self._phase is Phase.GAP and is_due and not self._is_acking(now_ns):
            self._phase = Phase.NONE
        match self._phase:
            case Phase.NONE:
                return self._show(now_ns)
            case Phase.SET if is_due and not self._is_acking(now_ns):
                self._phase, self._until, self._was_acked = Phase.STANDS, now_ns + self._times.hold_ns, False
                return {"valid": True}
            case Phase.STANDS if is_due or self._was_acked:
                if self._has_ack:
                    ms = self._times.hold_ns / 1e6
                    late = None if self._was_acked else f"outputs.gpio.ack did not come within {ms:g} ms of a result"
                    self._unacked = late
                self._phase, self._until = Phase.GONE, now_ns + self._times.setup_ns
                return {"valid": False}
            case Phase.GONE if is_due:
                self._phase, self._until = Phase.GAP, now_ns + self._times.gap_ns
                return {"ok": False, "not_ok": False}
            case _:
                return None

    def _show(self, now_ns: int) -> dict[str, bool] | None:
        if not self._order or self._order[0] not in self._results or self._is_acking(now_ns):
            return None
        sequence = self._order.popleft()
        decision = self._results.pop(sequence)
        if sequence <= self._spoiled:
            decision = "error"
        if not self._results:
            self._late = None
        self._phase, self._until = Phase.SET, now_ns + self._times.setup_ns
        return {"ok": decision == "ok", "not_ok": decision != "ok"}

    def _is_acking(self, now_ns: int) -> bool:
        """`ack` still stands: a result that came now would be taken at once. It may do so for as long as a result."""
        if not (self._has_ack and self._ack):
            return False
        if now_ns >= self._until + self._times.hold_ns:
            self._unacked = "outputs.gpio.ack is active although no result stands: the next result waits for it"
        return True
