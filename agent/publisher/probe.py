"""Whether the broker takes us, without disturbing anybody: for `defect-agent check`."""

from __future__ import annotations

import dataclasses
import time

from agent.config import MqttConfig
from agent.publisher import words
from agent.publisher.access import open_access
from agent.publisher.link import GOOD_BELOW, Link, Protocol, protocols_to_try
from agent.publisher.words import Trouble

__all__ = ["ProbeResult", "probe"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a broker said.

    Attributes:
        ok: it accepted us and, as far as it tells, lets us publish.
        broker: host and port.
        protocol: `5`, `3.1.1`, or None without a connection.
        round_trip_ms: from a message to its acknowledgement, or None.
        max_packet_bytes: the largest packet that it takes, or None when it doesn't say.
        problem: what is wrong in words, or None.
        hint: what to do, or None.
    """

    ok: bool
    broker: str
    protocol: Protocol | None = None
    round_trip_ms: float | None = None
    max_packet_bytes: int | None = None
    problem: str | None = None
    hint: str | None = None


def probe(config: MqttConfig, station: str, timeout_s: float = 5.0) -> ProbeResult:
    """Connect, publish an empty message that is not retained on `ROOT/check`, and leave.

    The client id is the station's with `-check` behind it, or a running agent would be thrown off. There is no will.

    Args:
        config: the broker.
        station: ROOT.
        timeout_s: how long the broker may take to answer; a connect takes up to 3 s per address before that.

    Raises:
        ConfigError: the password or certificate files can't be used.
    """
    access = open_access(config, station)
    access = dataclasses.replace(access, client_id=f"{access.client_id}-check")
    broker = f"{config.host}:{config.port}"
    trouble: Trouble | None = None
    for protocol in protocols_to_try(config.protocol, None):
        link = Link(access, protocol)
        try:
            _connect(link, timeout_s)
            if link.ready:
                return _publish(link, f"{station}/check", broker, timeout_s)
        finally:
            link.abandon(Trouble(cause="cut", words="done"))
        trouble = link.trouble
        if trouble is None or trouble.cause not in words.PERHAPS_VERSION:
            break
    return ProbeResult(
        ok=False, broker=broker, problem=trouble.words if trouble else None, hint=trouble.hint if trouble else None
    )


def _connect(link: Link, timeout_s: float) -> None:
    link.open(timeout_s)
    while not link.ready and link.trouble is None:
        link.await_answer()


def _publish(link: Link, topic: str, broker: str, timeout_s: float) -> ProbeResult:
    started = time.monotonic()
    mid = link.publish(topic, b"", content_type="text/plain")
    result = ProbeResult(ok=True, broker=broker, protocol=link.protocol, max_packet_bytes=link.limits.max_packet_bytes)
    while link.trouble is None and (left_s := started + timeout_s - time.monotonic()) > 0:
        for ack in link.take_acks():
            if ack.mid != mid:
                continue
            result = dataclasses.replace(result, round_trip_ms=round((time.monotonic() - started) * 1000, 2))
            link.goodbye(timeout_s)
            if ack.code < GOOD_BELOW:
                return result
            problem = f"{topic}: {words.refusal(ack.code, ack.name)}"
            hint = f"let this user write {topic.removesuffix('check')}# in the broker's access list"
            return dataclasses.replace(result, ok=False, problem=problem, hint=hint)
        link.wait(left_s)
    trouble = link.trouble or words.silent("the broker acknowledged nothing", timeout_s)
    return dataclasses.replace(result, ok=False, problem=trouble.words, hint=trouble.hint)
