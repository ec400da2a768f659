"""NodeLink: the publisher's link with what Sparkplug wants of a connection: another will, several topics, QoS 0.

paho stays behind the publisher's door; this class uses the client that is behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from agent.commands.decode import Incoming
from agent.publisher.access import Access
from agent.publisher.link import GOOD_BELOW, Link, Protocol

__all__ = ["NodeLink"]


class NodeLink(Link):
    """One connection of an edge node; clean session (3.1.1), clean start without expiry (5).

    Args:
        access: where to, and who we are.
        protocol: `5` or `3.1.1`.
        will: topic and payload of the NDEATH, which the broker publishes with QoS 1, not retained.
        subscribe: topics.
        hear: told what comes there; returns at once.
        opened: called when the TCP connection (and TLS) stands, before CONNECT is sent.
    """

    def __init__(
        self,
        access: Access,
        protocol: Protocol,
        *,
        will: tuple[str, bytes],
        subscribe: tuple[str, ...],
        hear: Callable[[Incoming], None],
        opened: Callable[[], None],
    ) -> None:
        super().__init__(access, protocol, listen=subscribe[0], hear=hear)
        self._topics, self._unanswered = subscribe, len(subscribe)
        self._client.will_set(will[0], will[1], qos=1, retain=False)
        before: Any = self._client.on_socket_open

        def socket_open(client: Any, data: Any, sock: Any) -> None:
            before(client, data, sock)
            opened()

        self._client.on_socket_open = socket_open

    @property
    def subscribed(self) -> bool:
        """The broker has answered all subscriptions; `deaf` says whether it refused one."""
        return self._unanswered <= 0

    def send(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 0) -> int | None:
        """Send one message, not retained, without properties.

        Returns:
            Its number, which its `Ack` carries (QoS 1), or None when the link is dead.
        """
        info = self._client.publish(topic, payload, qos=qos, retain=False)
        if info.rc != 0 and self.trouble is None:
            self._fail(self._loss())
        return info.mid if self.trouble is None else None

    def _subscribe(self, topic: str) -> None:  # noqa: ARG002 - the first of ours
        for each in self._topics:
            self._client.subscribe(each, qos=1)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        self._unanswered -= 1
        self.deaf = next((str(reason) for reason in reasons if reason.value >= GOOD_BELOW), self.deaf)
