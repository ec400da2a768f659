"""One connection to a broker, from connect to loss. The only import of paho in the agent.

paho's documented interface for an external loop is used (`loop_read`, `loop_write`, `loop_misc` on `socket()`), and
one client serves one connection. So there is no thread of paho's that an exception could kill while `is_connected()`
stays true, no queue in its memory, and no reconnect that would send an oversized message for ever; all three were
measured (shared notes on MQTT, section 0).

Nothing here raises because of the network: what went wrong stands in `Link.trouble`, and a link with trouble is dead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.commands.decode import MAX_BYTES, Incoming
from agent.frame import Stamp
from agent.publisher import words
from agent.publisher.access import Access
from agent.publisher.words import Trouble

__all__ = ["ANSWER_S", "GOOD_BELOW", "Ack", "Limits", "Link", "Protocol", "protocols_to_try"]

Protocol = Literal["5", "3.1.1"]

CONNECT_TIMEOUT_S = 3.0
ANSWER_S = 5.0
KEEPALIVE_TIMEOUT = 0x8D
MAX_INCOMING_BYTES = 65_536
"""Commands are small: an MQTT 5 broker is told to send us nothing larger."""

GOOD_BELOW = 0x80
"""A reason code from here on is a refusal (MQTT 5.0, section 2.4)."""

PACKET_OVERHEAD_BYTES = 16
"""Fixed header (5 at most), topic length, packet identifier, length of the properties, and some air."""


class Ack(NamedTuple):
    """The broker's answer to one PUBLISH: `code` under 0x80 means that it took the message."""

    mid: int
    code: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the broker's CONNACK allows (MQTT 5; 3.1.1 brokers can't say).

    Attributes:
        max_packet_bytes: largest packet that it takes, or None.
        receive_max: messages that may be unacknowledged.
    """

    max_packet_bytes: int | None = None
    receive_max: int = 65_535


class Link:
    """One connection.

    Args:
        access: where to, and who we are.
        protocol: `5` or `3.1.1`.
        will: topic and payload that the broker publishes, retained, when we vanish without a goodbye.
        listen: topics to subscribe to; None for none.
        hear: told what comes there; returns at once.

    Attributes:
        trouble: why this connection is over, or None while it isn't.
        ready: the broker accepted us.
        limits: what it allows, once ready.
        protocol: as given.
        deaf: why the broker did not let us subscribe; empty when it did, or was not asked.
    """

    def __init__(
        self,
        access: Access,
        protocol: Protocol,
        *,
        will: tuple[str, bytes] | None = None,
        listen: str | None = None,
        hear: Callable[[Incoming], None] = lambda _incoming: None,
    ) -> None:
        self.trouble: Trouble | None = None
        self.ready = False
        self.deaf = ""
        self._waited_at: float | None = None
        self._lay_s = 0.0
        self.limits = Limits()
        self.protocol = protocol
        self._access = access
        self._acks: list[Ack] = []
        self._answer_s = self._answer_by = 0.0
        self._log = _LastError()
        self._properties: dict[str, _Packed] = {}
        self._client = _client(access, protocol, self._log)
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._listen, self._hear = listen, hear
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_socket_open = _no_delay

    def open(self, answer_s: float = ANSWER_S) -> None:
        """Connect and send CONNECT; blocks for up to 3 s per address. Then `await_answer`.

        Args:
            answer_s: how long the broker may take to answer after that.
        """
        access = self._access
        clean: dict[str, Any] = {}
        if self.protocol == "5":
            clean["clean_start"] = True
        if self.protocol == "5" and self._listen is not None:
            clean["properties"] = limits = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            limits.MaximumPacketSize = MAX_INCOMING_BYTES
        try:
            self._client.connect(access.host, access.port, access.keepalive_s, **clean)
        except (OSError, ValueError) as error:  # ValueError: a host name that IDNA can't write
            self._fail(words.from_error(error, access.host, access.port))
        self._answer_s = answer_s
        self._answer_by = time.monotonic() + answer_s

    def await_answer(self, *wake_fds: int) -> bool:
        """Wait for the broker's answer to our CONNECT.

        Returns:
            True when one of the file descriptors became readable first or too; then look, and call again unless
            `ready` or `trouble` says that it is decided.
        """
        left = self._answer_by - time.monotonic()
        if left <= 0:
            self.abandon(words.mute(self._answer_s))
            return False
        return self.wait(left, *wake_fds)

    def wait(self, timeout_s: float, *wake_fds: int) -> bool:
        """Wait for the network, and serve it; True when one of the file descriptors became readable first or too."""
        sock = self._client.socket()
        if sock is None:
            self._fail(self._loss())
            return False
        poll, sock_fd = select.poll(), sock.fileno()
        poll.register(sock_fd, select.POLLIN | (select.POLLOUT if self.wants_write else 0))
        for fd in wake_fds:
            poll.register(fd, select.POLLIN)
        since = time.monotonic() if self._waited_at is None else self._waited_at
        events = dict(poll.poll(max(0.0, timeout_s) * 1000))
        self._waited_at = time.monotonic()
        self._lay_s = max(0.0, self._waited_at - since - max(0.0, timeout_s))
        happened = events.pop(sock_fd, 0)
        if happened & ~select.POLLOUT:
            self._read()
        if happened & select.POLLOUT and self.trouble is None:
            self._client.loop_write()
        return bool(events)

    def _read(self) -> None:
        while self.trouble is None:
            try:
                self._client.loop_read()
            except Exception as error:  # paho's decoders raise whatever they stumble over; mosquitto 2.0 makes them
                self._fail(words.nonsense(error))
                return
            sock: Any = self._client.socket()
            # Bytes that TLS has already decrypted never make the socket readable again.
            if sock is None or not (hasattr(sock, "pending") and sock.pending()):
                break

    def keep_alive(self) -> None:
        """Ping when it is time, and notice a dead link; call it about every second."""
        self._client.loop_misc()

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the network."""
        return self._client.want_write()

    def excess(self, topic: str, payload: bytes, content_type: str) -> str | None:
        """Say in words that a message is larger than this broker takes; None when it is not, or when nobody knows."""
        largest = self.limits.max_packet_bytes
        if largest is None:
            return None
        size = PACKET_OVERHEAD_BYTES + len(topic.encode()) + len(self._packed(content_type).pack()) + len(payload)
        return f"the broker takes {largest} bytes, the message has {size}" if size > largest else None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        content_type: str,
        qos: Literal[0, 1] = 1,
        retain: bool = False,
        correlation: bytes | None = None,
    ) -> int | None:
        """Send a message; its `Ack` comes with `take_acks` (QoS 1).

        Returns:
            A number that the Ack carries too, or None when the link is dead.

        Raises:
            ValueError: MQTT can't carry this topic or payload at all.
        """
        properties: Properties | None = self._packed(content_type) if self.protocol == "5" else None
        if properties is not None and correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType, properties.CorrelationData = content_type, correlation
            properties.UserProperty = [("schema", "1")]
        info = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        if info.rc != mqtt.MQTT_ERR_SUCCESS and self.trouble is None:
            self._fail(self._loss())
        return info.mid if self.trouble is None else None

    def _packed(self, content_type: str) -> _Packed:
        properties = self._properties.get(content_type)
        if properties is None:
            properties = self._properties[content_type] = _Packed(content_type)
        return properties

    def take_acks(self) -> list[Ack]:
        """The answers since the last call, in order."""
        acks, self._acks = self._acks, []
        return acks

    def goodbye(self, timeout_s: float) -> None:
        """Leave with a DISCONNECT, so that the broker does not publish the will."""
        deadline = time.monotonic() + timeout_s
        self._client.disconnect()
        while self._client.socket() is not None and time.monotonic() < deadline:
            self.wait(deadline - time.monotonic())
        self.abandon(Trouble(cause="cut", words="left"))

    def abandon(self, trouble: Trouble) -> None:
        """Close the socket without a goodbye: the broker then publishes the will."""
        self._fail(trouble)
        sock: Any = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _loss(self) -> Trouble:
        return words.lost(self._log.text, ready=self.ready, tls=self._access.tls is not None)

    def _fail(self, trouble: Trouble) -> None:
        """The first reason is the true one; what follows is its echo."""
        if self.trouble is None:
            self.trouble = trouble
        self.ready = False

    def _on_connect(
        self, _client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            user, client_id = self._access.username or "none", self._access.client_id
            self._fail(words.from_connack(reason.value, str(reason), user=user, client_id=client_id))
        elif getattr(properties, "MaximumQoS", 1) < 1:
            self._fail(words.from_connack(0x9B, "QoS not supported", user="", client_id=""))
        else:
            self.limits = Limits(
                max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
                receive_max=getattr(properties, "ReceiveMaximum", 65_535),
            )
            self.ready = self.trouble is None
            if self._listen is not None and self.ready:
                self._subscribe(self._listen)

    def _subscribe(self, topic: str) -> None:
        """Of retained commands the broker is asked for none; who speaks 3.1.1 is told that they are."""
        if self.protocol == "5":
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            self._client.subscribe(topic, options=options)
        else:
            self._client.subscribe(topic, qos=1)

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        self.deaf = next((str(reason) for reason in reasons if reason.value >= GOOD_BELOW), "")

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        """As it came: whatever is wrong with it, the link is not."""
        properties = message.properties
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self._hear(
            Incoming(
                topic=topic,
                payload=bytes(message.payload[: MAX_BYTES + 1]),
                at=Stamp.now(),
                lay_s=self._lay_s,
                retain=message.retain,
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=getattr(properties, "CorrelationData", None),
            )
        )

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, flags: mqtt.DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._fail(words.from_disconnect(reason.value, str(reason)))
        elif reason.value == KEEPALIVE_TIMEOUT:
            self._fail(words.silent("the broker did not answer", 2 * self._access.keepalive_s))
        else:
            self._fail(self._loss())

    def _on_publish(self, _client: mqtt.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        self._acks.append(Ack(mid, reason.value, str(reason) if reason.value >= GOOD_BELOW else ""))


def protocols_to_try(configured: Literal["auto", "5", "3.1.1"], known: Protocol | None) -> tuple[Protocol, ...]:
    """MQTT 5 first: only there does the broker say that it did not take a message."""
    if configured != "auto":
        return (configured,)
    return ("5", "3.1.1") if known is None else (known,)


class _LastError(logging.Logger):
    """Keeps the text of paho's last error, the only place where it says why a socket failed; prints nothing."""

    def __init__(self) -> None:
        super().__init__("paho", logging.ERROR)
        self.text = ""

    def log(self, level: int, msg: object, *args: object, **_options: Any) -> None:
        if level >= logging.ERROR:
            cause = args[0] if args else msg
            self.text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)


class _Packed(Properties):
    """Properties of a PUBLISH, serialized once: paho would do it again for every message."""

    def __init__(self, content_type: str) -> None:
        super().__init__(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self.ContentType = content_type
        self.UserProperty = [("schema", "1")]
        object.__setattr__(self, "_bytes", super().pack())  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        packed: bytes = object.__getattribute__(self, "_bytes")
        return packed


def _client(access: Access, protocol: Protocol, log: _LastError) -> mqtt.Client:
    version = MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=access.client_id,
        clean_session=None if protocol == "5" else True,
        protocol=version,
        reconnect_on_failure=False,  # else paho falls back to MQTT 3.1 by itself, inside loop_read
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.max_inflight_messages_set(0)  # the window is ours
    if access.username is not None:
        client.username_pw_set(access.username, access.password)
    if access.tls is not None:
        client.tls_set_context(access.tls)
    client.enable_logger(log)
    return client


def _no_delay(_client: mqtt.Client, _data: Any, sock: Any) -> None:
    """Else Nagle's algorithm holds a live verdict back until the broker's TCP has acknowledged the one before."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
