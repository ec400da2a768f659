"""What went wrong between us and the broker, in plain words with a remedy.

Numbers are MQTT 5 reason codes (MQTT 5.0, section 2.4); paho translates the six of 3.1.1 into them.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
from typing import Literal

__all__ = [
    "PERHAPS_VERSION",
    "Cause",
    "Trouble",
    "from_connack",
    "from_disconnect",
    "from_error",
    "lost",
    "mute",
    "nonsense",
    "refusal",
    "silent",
]

Cause = Literal["unreachable", "refused", "version", "early", "mute", "cut", "dismissed", "taken over", "silent"]
"""Why there is no connection.

`unreachable`: no TCP connection. `refused`: an answer that stays until a person changes something (password,
certificate). `version`: the broker doesn't speak this MQTT. `early`: closed before it answered our CONNECT. `mute`:
never answered it. `cut`: the other side closed or reset it. `dismissed`: it closed it for a reason of its own. `taken
over`: another client has our client id. `silent`: a connection on which nothing comes back any more.
"""

PERHAPS_VERSION = frozenset({"version", "early", "mute"})
"""What brokers without MQTT 5 do with its CONNECT: say so, close, or (amqtt, when it has a will) hang."""

NOT_AUTHORIZED = 0x87
TAKEN_OVER = 0x8E
ITS_OWN_REASONS = frozenset({0x87, 0x89, 0x8B, 0x8D, 0x96, 0x97, 0x98, 0x9C, 0x9D, 0x9F, 0xA0})
"""Not authorized, busy, shutting down, keep-alive, rate, quota, administrative, moved, connect rate and time: no
message that was under way is to blame."""

UNSUPPORTED_VERSION = 0x84


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a connection could not be made, or ended.

    Attributes:
        cause: what kind of trouble.
        words: one sentence without a full stop; never holds a secret.
        hint: what to do, or None.
    """

    cause: Cause
    words: str
    hint: str | None = None


_CONNACK = {
    0x85: ("the broker refuses the client id {id!r}", "set mqtt.client_id to one that the broker allows"),
    0x86: (
        "the broker refuses user name or password (user {user!r})",
        "check mqtt.username and the file mqtt.password_file against the broker's users",
    ),
    0x87: (
        "the broker does not authorize this client (user {user!r}, client id {id!r})",
        "check mqtt.username, the password or certificate, and the broker's access list",
    ),
    0x88: ("the broker is not available", None),
    0x89: ("the broker is busy", None),
    0x8A: ("the broker has banned this client", "ask who runs the broker"),
    0x95: ("the broker finds our CONNECT too large", "raise the broker's maximum packet size"),
    0x97: ("the broker's quota is used up", "ask who runs the broker"),
    0x9A: ("the broker keeps no retained messages, and ROOT/status needs them", "allow retained messages"),
    0x9B: ("the broker refuses QoS 1", "allow QoS 1 on the broker"),
    0x9F: ("the broker finds that we connect too often", "raise mqtt.reconnect_max_s"),
}

_REFUSALS = {
    0x83: "the broker won't take it (implementation specific)",
    0x87: "not authorized: the broker's access list does not let us write there",
    0x90: "the broker finds the topic name invalid",
    0x91: "packet identifier in use",
    0x97: "the broker's quota is used up",
    0x99: "the broker finds the payload's format invalid",
}

# OpenSSL's X509_V_ERR_* (openssl-verification-options(1)).
_CERTIFICATES = {
    9: ("the broker's certificate is not valid yet", "check this device's clock: without a battery it starts in 1970"),
    10: ("the broker's certificate has expired", "renew it; check this device's clock too"),
    62: ("the broker's certificate is for another host name", "set mqtt.host to a name in the certificate"),
    64: ("the broker's certificate is for another address", "set mqtt.host to a name or address in the certificate"),
}
_UNKNOWN_CA = (
    "the broker's certificate is not signed by a CA that we trust",
    "set mqtt.tls.ca_file to the CA that signed the broker's certificate",
)


def from_error(error: Exception, host: str, port: int) -> Trouble:
    """Say why there is no TCP or TLS connection."""
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLError):
        return _from_tls(error, where)
    if isinstance(error, socket.gaierror):
        return Trouble(
            cause="unreachable", words=f"host name {host!r} can't be resolved", hint="check mqtt.host and the DNS"
        )
    if isinstance(error, ConnectionRefusedError):
        return Trouble(
            cause="unreachable",
            words=f"nothing listens on {where}",
            hint="start the broker, or correct mqtt.host and mqtt.port",
        )
    if isinstance(error, TimeoutError):
        return Trouble(
            cause="unreachable", words=f"no answer from {where}", hint="check network, firewall, mqtt.host, mqtt.port"
        )
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return Trouble(cause="early", words=f"{where} closed the connection at once", hint=_PORT_HINT)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Trouble(cause="unreachable", words=f"{where} can't be reached ({reason})", hint="check the network")


_CERTIFICATE_HINT = "check mqtt.tls.cert_file and key_file: the broker must trust the CA that signed our certificate"
_PORT_HINT = "is this an MQTT port? 8883 usually wants mqtt.tls, 1883 usually does not"


def _from_tls(error: ssl.SSLError, where: str) -> Trouble:
    if isinstance(error, ssl.SSLCertVerificationError):
        words, hint = _CERTIFICATES.get(error.verify_code, _UNKNOWN_CA)
        return Trouble(cause="refused", words=f"{where}: {words} ({error.verify_message})", hint=hint)
    reason = error.reason or str(error)
    if reason in {"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"}:
        return Trouble(cause="refused", words=f"{where} does not speak TLS here", hint=_PORT_HINT)
    certificate = "CERTIFICATE" in reason.upper() or "UNKNOWN_CA" in reason.upper()
    hint = _CERTIFICATE_HINT if certificate else "the broker must speak TLS 1.2 or newer; check mqtt.tls"
    return Trouble(cause="refused", words=f"{where}: TLS failed ({reason})", hint=hint)


def from_connack(code: int, name: str, *, user: str, client_id: str) -> Trouble:
    """Say why the broker refused our CONNECT."""
    if code == UNSUPPORTED_VERSION:
        return Trouble(
            cause="version", words="the broker does not speak this version of MQTT", hint="set mqtt.protocol to auto"
        )
    words, hint = _CONNACK.get(code, (f"the broker refuses us: {name} (0x{code:02x})", None))
    return Trouble(cause="refused", words=words.format(user=user, id=client_id), hint=hint)


def from_disconnect(code: int, name: str) -> Trouble:
    """Say why the broker said goodbye (MQTT 5 only; 3.1.1 brokers just close)."""
    if code == TAKEN_OVER:
        return Trouble(
            cause="taken over",
            words="another client connected with our client id",
            hint="two agents must never share a client id: set mqtt.client_id, or station, on one of them",
        )
    cause: Cause = "dismissed" if code in ITS_OWN_REASONS else "cut"
    return Trouble(cause=cause, words=f"the broker closed the connection: {name} (0x{code:02x})")


def lost(log: str, *, ready: bool, tls: bool) -> Trouble:
    """Say what a connection that just ended tells.

    With TLS 1.3 a client learns that its certificate is refused only after the handshake, by an alert that may be lost.

    Args:
        log: what paho logged as an error, or empty.
        ready: whether the broker had accepted us before.
        tls: whether TLS is spoken.
    """
    if tls and "alert" in log.lower():
        return Trouble(cause="refused", words=f"the broker ended TLS ({log})", hint=_CERTIFICATE_HINT)
    if not ready:
        hint = _CERTIFICATE_HINT if tls else _PORT_HINT
        return Trouble(cause="early", words="the broker closed the connection before it answered", hint=hint)
    return Trouble(cause="cut", words=f"the connection broke ({log})" if log else "the broker closed the connection")


def nonsense(error: Exception) -> Trouble:
    """Say that what came back is no MQTT."""
    what = f"the other side sent what is no MQTT ({type(error).__name__}: {error})"
    return Trouble(cause="cut", words=what, hint=_PORT_HINT)


def mute(seconds: float) -> Trouble:
    """Say that our CONNECT was not answered."""
    words = f"the broker did not answer our CONNECT within {seconds:g} s"
    return Trouble(cause="mute", words=words, hint=f"check the broker's load; {_PORT_HINT}")


def silent(what: str, seconds: float) -> Trouble:
    """Say that nothing came back."""
    return Trouble(cause="silent", words=f"{what} for {seconds:g} s", hint="check the network and the broker's load")


def refusal(code: int, name: str) -> str:
    """Say why the broker did not take one message."""
    return _REFUSALS.get(code, f"refused: {name} (0x{code:02x})")
