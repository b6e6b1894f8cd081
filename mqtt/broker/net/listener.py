"""One way in: its socket, its limits, and who is on it.

Clients are accepted in `acceptor.py`, so that they can be made to wait in the system's queue,
handshakes are counted and limited, each gets the newest certificate, and one that fails costs one
bounded line of log.

Invariants:
- `half_open` holds the connections that have sent no CONNECT, in the order they came, and never
  more than `half_open_max`. When there are that many, nobody more is accepted for up to
  `_CHANCE_S`, in which those who came in earnest say CONNECT: a fleet that comes back at once.
  Where they do not, it is a flood: for `_FLOOD_S` from then, of more, the one that has waited for
  longest is cut off, so that who connects in earnest gets through;
- `connections` counts every connection from its first byte until its transport is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mqtt.broker.connection import Connection
from mqtt.broker.net.acceptor import Acceptor
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.rates import Meter, TokenBucket
from mqtt.broker.net.tls import ServerTls, TlsError

if TYPE_CHECKING:
    from mqtt.broker.core import Core

__all__ = ["Listener"]

_CHANCE_S: Final = 1.0  # more than a round trip of any link
_FLOOD_S: Final = 10.0
_LOOK_S: Final = 0.02  # how often those who are made to wait are looked at


class Listener:
    """Accepts clients at one address.

    Args:
        core: The broker's.
        config: Where and how.

    Raises:
        TlsError: certificate files cannot be used.
    """

    def __init__(self, core: Core, config: ListenerConfig) -> None:
        self.core = core
        self.config = config
        self.limits = core.limits
        self.port = 0  # once open; 0 for a Unix socket
        self.connections = 0
        self.established = 0  # of these, past CONNECT
        self.half_open: dict[Connection, float] = {}  # since when, by the event loop's clock
        self._flood_until_s = 0.0
        self.tls = ServerTls(config) if config.tls else None
        self._bucket = _bucket(config, core)
        self._addresses: dict[str, int] = {}
        self._acceptors: list[Acceptor] = []
        self._apply()

    def _apply(self) -> None:
        """Take from the configuration what every connection asks for."""
        self.name = self.config.name
        self.asks_certificates = self.config.client_certificate != "none"
        size = self.config.maximum_packet_size_bytes
        limits = self.core.limits
        self.limits = replace(limits, maximum_packet_size=size) if size else limits

    # -- opening and closing ------------------------------------------------------------------

    async def open(self) -> int:
        """Listen; return the port, 0 for a Unix socket.

        Raises:
            OSError: the address cannot be had.
        """
        config = self.config
        if config.path is not None:
            sockets = [_unix_socket(config.path, config.mode)]
        else:
            sockets = await _tcp_sockets(config.host, config.bound_port)
            self.port = sockets[0].getsockname()[1]
        try:
            for sock in sockets:
                self._acceptors.append(Acceptor(self, sock))
        except OSError:  # somebody else listens there since it was bound
            self.close()
            for sock in sockets:
                sock.close()
            raise
        self.core.log.info("mqtt_listening", listener=self.name, port=self.port)
        self.warn_of_certificates()
        return self.port

    def close(self) -> None:
        """Accept nobody any more; connections stay."""
        for acceptor in self._acceptors:
            acceptor.close()
        if self.config.path is not None:
            with contextlib.suppress(OSError):
                self.config.path.unlink()

    def reconfigure(self, config: ListenerConfig) -> None:
        """Take other settings for the same place; connections stay open.

        Rates hold for all clients from now on, with full buckets; packet sizes and windows stay
        what each client was told.

        Raises:
            TlsError: certificate files cannot be used; everything stays as it was.
        """
        assert config.place == self.config.place
        if self.tls is not None:
            self.tls.refresh(config)
        if config.connect_rate_s != self.config.connect_rate_s:
            self._bucket = _bucket(config, self.core)
        rates = (config.publish_rate_s, config.publish_bytes_s)
        changed = rates != (self.config.publish_rate_s, self.config.publish_bytes_s)
        self.config = config
        self._apply()
        for connection in self.core.connections if changed else ():
            if connection.listener is self:
                connection.meter = self._meter() if any(rates) else None

    def _meter(self) -> Meter:
        return Meter(self.config, self.core.clock.monotonic_s())

    def look_at_files(self) -> None:
        """Take certificates that have changed; say so, and say so when they cannot be used."""
        if self.tls is None:
            return
        try:
            if self.tls.refresh():
                self.core.log.info("mqtt_certificates_renewed", listener=self.name)
        except TlsError as error:
            self.core.log.error(  # noqa: TRY400 - the reason is one line
                "mqtt_certificates_kept", listener=self.name, reason=str(error)
            )

    def warn_of_certificates(self) -> None:
        """Say when the certificate in use loads, and no client will take it."""
        if self.tls is not None and self.tls.fault:
            self.core.log.error(
                "mqtt_certificate_expired",
                listener=self.name,
                file=str(self.config.tls_cert_file),
                reason=self.tls.fault,
            )

    # -- connections --------------------------------------------------------------------------

    def protocol(self, source: tuple[str, int] | None = None) -> asyncio.Protocol:
        """Return what speaks to a new client.

        Args:
            source: The client's address, as a load balancer tells it.
        """
        config = self.config
        connection = Connection(self.core, self)
        connection.source = source
        if config.publish_rate_s or config.publish_bytes_s:
            connection.meter = self._meter()
        if not config.websocket:
            return connection
        from mqtt.broker.net.websocket import (  # noqa: PLC0415 - only who listens for it loads it
            WebSocketProtocol,
        )

        return WebSocketProtocol(connection, self)

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False when it must go at once."""
        config = self.config
        core = self.core
        self.connections += 1
        address = connection.address
        count = self._addresses.get(address, 0) + 1
        self._addresses[address] = count
        cause = ""
        bucket = self._bucket
        if bucket is not None and not bucket.admits(core.clock.monotonic_s()):
            cause = "mqtt_connect_rate_exceeded"
        elif 0 < config.address_connections_max < count:
            cause = "mqtt_too_many_from_one_address"
        if cause:
            core.stats.refused_connections += 1
            core.log.warning(cause, listener=self.name, peer=connection.peer())
            return False
        if bucket is not None:
            bucket.take(1)
        if len(self.half_open) >= config.half_open_max:
            oldest = next(iter(self.half_open))
            core.stats.refused_connections += 1
            core.log.warning("mqtt_too_many_half_open", listener=self.name, peer=oldest.peer())
            oldest.cut_off()
        self.half_open[connection] = asyncio.get_running_loop().time()
        return True

    def crowded_s(self, more: int) -> float:
        """Return for how long nobody should be accepted: there are many who may yet say CONNECT.

        Args:
            more: Accepted, and not yet among the half-open ones.
        """
        count = len(self.half_open) + more
        now_s = asyncio.get_running_loop().time()
        if count < self.config.half_open_max or now_s < self._flood_until_s:
            return 0.0
        if now_s - next(iter(self.half_open.values()), now_s) >= _CHANCE_S:
            self._flood_until_s = now_s + _FLOOD_S
            return 0.0
        return _LOOK_S

    def full(self) -> bool:
        """Return True when no more clients than now may connect."""
        limit = self.config.connections_max
        return 0 < limit <= self.established

    def connected(self, connection: Connection) -> None:
        """A client's CONNECT was accepted."""
        if self.half_open.pop(connection, None) is not None:
            self.established += 1
            connection.is_established = True

    def gone(self, connection: Connection) -> None:
        """A connection counts no more."""
        self.half_open.pop(connection, None)
        if connection.is_established:
            connection.is_established = False
            self.established -= 1

    def lost(self, connection: Connection) -> None:
        """A transport is gone."""
        self.gone(connection)
        self.connections -= 1
        address = connection.address
        count = self._addresses.get(address, 0) - 1
        if count > 0:
            self._addresses[address] = count
        else:
            self._addresses.pop(address, None)


def _bucket(config: ListenerConfig, core: Core) -> TokenBucket | None:
    """Return what holds a listener to its connect rate, None without one."""
    if not config.connect_rate_s:
        return None
    return TokenBucket(config.connect_rate_s, core.clock.monotonic_s())


async def _tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """Return bound sockets for every address of a name, all with the same port."""
    infos = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # what is accepted inherits it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            port = port or sock.getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _unix_socket(path: Path, mode: int) -> socket.socket:
    """Return a socket bound in the file system; one that nobody listens on any more is replaced.

    Its permissions are set before anybody can connect.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, "is there and not a socket", str(path))
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        path.chmod(mode)
    except OSError:
        sock.close()
        raise
    return sock
