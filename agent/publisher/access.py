"""Who we are to the broker and how we get in: client id, password, TLS. Checked before anything connects."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import ssl
import stat
from pathlib import Path

from agent.config import MqttConfig, TlsConfig
from agent.errors import ConfigError

__all__ = ["Access", "client_id_for", "open_access", "read_password"]

MAX_PASSWORD_BYTES = 65_535
"""MQTT carries a password as a length of two bytes and the bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """All that one connection needs; the password never shows in a log.

    Attributes:
        host: name or address.
        port: TCP port.
        keepalive_s: as told to the broker.
        client_id: fixed, so that an old session's will can't fire after a new session's birth.
        username: or None.
        password: or None.
        tls: or None for plain TCP.
    """

    host: str
    port: int
    keepalive_s: int
    client_id: str
    username: str | None
    password: str | None = dataclasses.field(repr=False)
    tls: ssl.SSLContext | None


def open_access(config: MqttConfig, station: str) -> Access:
    """Read the secrets that the configuration names, and check that they fit together.

    Raises:
        ConfigError: a password file that others can read, a certificate without its key, and the like.
    """
    if config.password_file is not None and not config.username:
        raise ConfigError("mqtt.password_file: a password without mqtt.username", hint="set mqtt.username too")
    return Access(
        host=config.host,
        port=config.port,
        keepalive_s=config.keepalive_s,
        client_id=config.client_id or client_id_for(station),
        username=config.username or None,
        password=None if config.password_file is None else read_password(config.password_file),
        tls=None if config.tls is None else _tls_context(config.tls),
    )


def client_id_for(station: str) -> str:
    """Make a client id of a station's path: readable, fixed, and different for different paths.

    `acme/plant1/line3/cam1` becomes `agent-cam1-` and eight hex digits of the path's SHA-256.
    """
    last = re.sub(r"[^A-Za-z0-9]+", "", station.rsplit("/", 1)[-1])[:16] or "station"
    return f"agent-{last}-{hashlib.sha256(station.encode()).hexdigest()[:8]}"


def read_password(path: Path) -> str:
    """Read a password from a file that only its owner can read; one line end at its end is not part of it.

    Raises:
        ConfigError: missing, open to others, empty, too long or not UTF-8.
    """
    where = f"mqtt.password_file: {path}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_PASSWORD_BYTES + 3)
    except OSError as error:
        raise ConfigError(f"{where}: can't be read ({error.strerror})", hint=f"ls -l {path}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{where}: others can read it (mode {stat.S_IMODE(mode):04o}), expected 0600", hint=f"chmod 600 {path}"
        )
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not data or len(data) > MAX_PASSWORD_BYTES:
        raise ConfigError(f"{where}: got {len(data)} bytes, expected 1 to {MAX_PASSWORD_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8", hint="MQTT carries passwords as bytes; write it as UTF-8") from error


def _tls_context(config: TlsConfig) -> ssl.SSLContext:
    """TLS 1.2 or newer, certificate and host name always checked."""
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ValueError) as error:
        raise _bad_file("mqtt.tls.ca_file", config.ca_file, error) from error
    context.sslsocket_class = _CarefulSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.key_file is not None and config.cert_file is None:
        raise ConfigError("mqtt.tls.key_file: a key without mqtt.tls.cert_file", hint="set mqtt.tls.cert_file too")
    if config.cert_file is not None:
        try:
            context.load_cert_chain(config.cert_file, config.key_file, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise _bad_file("mqtt.tls.cert_file", config.cert_file, error) from error
    return context


class _CarefulSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _no_passphrase() -> str:
    """Without this OpenSSL would ask on the terminal, and a service would hang at its start."""
    raise ValueError("its key is locked with a passphrase; give a key without one, readable by its owner only")


def _bad_file(key: str, path: Path | None, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError(f"{key}: {path}: can't be used ({reason})", hint="expected PEM files, readable by this user")
