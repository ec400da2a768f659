"""The line and its fast results in the configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from agent.errors import ConfigError
from agent.typed_yaml import key as _key

__all__ = [
    "GpioOutputConfig",
    "LineConfig",
    "OutputsConfig",
    "TcpOutputConfig",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LineConfig:
    """How the line keeps its pace.

    Attributes:
        deadline_ms: a part without a verdict this long after its trigger is an `error` on `outputs`; its true verdict
            still goes to the journal, marked late. Empty sets none.
        result: outputs hear of a part and its result at once (`decided`), or once either is on the disk (`durable`).
        ahead: parts that may be captured and prepared while the one before them is judged; 0 does one thing at a time.
        pin_cores: cores that the line's threads run on; empty leaves that to the system.
    """

    deadline_ms: float | None = _key(None, low=1, high=3_600_000)
    result: Literal["decided", "durable"] = "decided"
    ahead: int = _key(1, low=0, high=16)
    pin_cores: tuple[int, ...] = _key((), low=0, high=1_023)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpioOutputConfig:
    """Electrical result lines. Polarity is fail-safe: without power, or without us, all read as not ok.

    Attributes:
        chip: of the lines, `/dev/gpiochip0`.
        ok: line that is active for an ok part only, while `valid` is; empty for none.
        not_ok: line that is active for any other decision; empty for none.
        valid: line that is active while a result stands; empty for none.
        ready: line that is active while a trigger will be taken; empty for none.
        busy: line that is active from a part's trigger until its result stands; empty for none.
        alive: line that is active while the agent works and has no fault; empty for none.
        strobe: line that is active during the exposure; empty for none.
        ack: input line by which the PLC takes a result; empty holds results for `hold_ms`.
        active_low: lines are active at 0 V, `ack` too.
        hold_ms: how long a result stands without `ack`, and at most with it.
        setup_ms: how long `ok` and `not_ok` stand before `valid` comes and after it has gone.
        gap_ms: how long all three are off between two results.
        heartbeat_ms: `alive` changes its level this often while all is well; 0 keeps it active.
    """

    chip: str = _key("/dev/gpiochip0", pattern=r"/dev/[\w/-]{1,60}", form="a device such as /dev/gpiochip0")
    ok: int | None = _key(None, low=0, high=1_023)
    not_ok: int | None = _key(None, low=0, high=1_023)
    valid: int | None = _key(None, low=0, high=1_023)
    ready: int | None = _key(None, low=0, high=1_023)
    busy: int | None = _key(None, low=0, high=1_023)
    alive: int | None = _key(None, low=0, high=1_023)
    strobe: int | None = _key(None, low=0, high=1_023)
    ack: int | None = _key(None, low=0, high=1_023)
    active_low: bool = False
    hold_ms: float = _key(50.0, low=1, high=60_000)
    setup_ms: float = _key(1.0, low=0, high=1_000)
    gap_ms: float = _key(5.0, low=0, high=60_000)
    heartbeat_ms: float = _key(0.0, low=0, high=60_000)

    def __post_init__(self) -> None:
        names = ("ok", "not_ok", "valid", "ready", "busy", "alive", "strobe", "ack")
        used = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        got = ", ".join(f"{name} {line}" for name, line in used.items())
        problem = ""
        if len(set(used.values())) != len(used):
            problem = f"got {got}, expected different lines"
        elif used.keys() & {"ok", "not_ok", "valid", "ack"} and not used.keys() >= {"ok", "valid"}:
            problem = f"got {got}, expected both ok and valid"
        if problem:
            raise ConfigError(
                f"outputs.gpio: {problem}",
                hint="a part is ok only while ok and valid are both active, so that a broken wire reads as not ok",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TcpOutputConfig:
    """Results as lines of text over TCP, to whoever is connected.

    Attributes:
        host: address to listen on; beyond loopback only where the configuration says so.
        port: TCP port; that of `trigger: {kind: tcp}` answers on the trigger's connection.
        ack_ms: a result that the PLC has not acknowledged by then is a fault that is told; 0 waits for none.
    """

    host: str = _key("127.0.0.1", pattern=r"[0-9a-fA-F.:]{2,45}", form="an IP address")
    port: int = _key(5_020, low=1, high=65_535)
    ack_ms: float = _key(0.0, low=0, high=60_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputsConfig:
    """The fast result lines, which no broker can delay.

    Attributes:
        gpio: electrical lines; empty for none.
        tcp: lines of text; empty for none.
        settle_ms: from the strobe's start to the exposure.
    """

    gpio: GpioOutputConfig | None = None
    tcp: TcpOutputConfig | None = None
    settle_ms: float = _key(0.0, low=0, high=1_000)
