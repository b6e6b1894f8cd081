"""From a listening socket to a connection that speaks MQTT: PROXY header and TLS handshake.

Invariant: `_shaking` holds what is between `accept` and its protocol, never more than
`handshakes_max`; each ends by itself, by its deadline, or when the acceptor closes.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mqtt.broker.net.proxy_protocol import ProxyError, read_proxy_header
from mqtt.broker.net.tls_transport import Handshake

if TYPE_CHECKING:
    from mqtt.broker.net.listener import Listener

__all__ = ["Acceptor"]

_BACKLOG: Final = 1024
_ACCEPT_AT_ONCE: Final = 64
_HANDSHAKES_AT_ONCE: Final = 8  # each takes a third of a millisecond before others have their turn
_RETRY_S: Final = 1.0  # after the system had no descriptor left


class Acceptor:
    """Accepts on one socket and does what comes before MQTT: PROXY header, TLS handshake."""

    def __init__(self, listener: Listener, sock: socket.socket) -> None:
        self.sock = sock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None] | Handshake] = set()
        self._is_open = True
        sock.listen(_BACKLOG)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more and drop those who are not through."""
        self._is_open = False
        self._loop.remove_reader(self.sock.fileno())
        self.sock.close()
        for one in self._shaking:
            one.cancel()

    def _accept(self) -> None:
        listener = self._listener
        log = listener.core.log
        for _ in range(_ACCEPT_AT_ONCE if listener.tls is None else _HANDSHAKES_AT_ONCE):
            if len(self._shaking) >= listener.config.handshakes_max:
                log.warning("mqtt_handshakes_full", listener=listener.name)
                self._loop.remove_reader(self.sock.fileno())
                return
            crowded_s = listener.crowded_s(len(self._shaking))
            if crowded_s:
                self._loop.remove_reader(self.sock.fileno())
                self._loop.call_later(crowded_s, self._go_on)
                return
            try:
                sock, address = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor left, most of all
                log.warning("mqtt_cannot_accept", listener=listener.name, error=str(error))
                self._loop.remove_reader(self.sock.fileno())
                self._loop.call_later(_RETRY_S, self._go_on)
                return
            self._take(sock, address)

    def _go_on(self) -> None:
        if self._is_open:
            self._loop.add_reader(self.sock.fileno(), self._accept)

    def _take(self, sock: socket.socket, address: Any) -> None:
        """Begin with one client; it has until the deadline to get as far as its CONNECT."""
        listener = self._listener
        config = listener.config
        sock.setblocking(False)
        deadline_s = listener.core.clock.monotonic_s() + config.handshake_timeout_s
        if not config.proxy_protocol:  # then nothing has to be waited for in a task
            if listener.tls is not None:
                self._shake_hands(sock, address, None, deadline_s)
            else:
                self._adopt(sock, address, None)
            return
        task = self._loop.create_task(self._welcome(sock, address, deadline_s), name="mqtt-accept")
        self._shaking.add(task)
        task.add_done_callback(partial(self._welcomed, sock))

    def _welcomed(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before its first step, which no `except` of it would see
            sock.close()
        self._done_with(task)

    def _done_with(self, one: asyncio.Task[None] | Handshake) -> None:
        was_full = len(self._shaking) >= self._listener.config.handshakes_max
        self._shaking.discard(one)
        if was_full:
            self._go_on()

    async def _welcome(self, sock: socket.socket, address: Any, deadline_s: float) -> None:
        """Read a PROXY header, and give the client its protocol."""
        listener = self._listener
        try:
            async with asyncio.timeout(listener.config.handshake_timeout_s):
                source = await read_proxy_header(sock)
            if listener.tls is not None:
                self._shake_hands(sock, address, source, deadline_s)
            else:
                self._adopt(sock, address, source)
        except (OSError, TimeoutError, ProxyError) as error:
            sock.close()
            self._failed(address, error)
        except BaseException:
            sock.close()
            raise

    def _adopt(self, sock: socket.socket, address: Any, source: tuple[str, int] | None) -> None:
        listener = self._listener
        try:
            listener.core.sockets.adopt(sock, listener.protocol(source), address)
        except OSError as error:  # it cannot be watched
            sock.close()
            self._failed(address, error)

    def _shake_hands(
        self,
        sock: socket.socket,
        address: Any,
        source: tuple[str, int] | None,
        deadline_s: float,
    ) -> None:
        listener = self._listener
        assert listener.tls is not None
        try:
            handshake = Handshake(
                listener.core.readiness,
                sock,
                listener.tls.context,
                partial(self._shook_hands, address, source),
            )
        except OSError as error:
            self._failed(address, error)
            return
        self._shaking.add(handshake)
        listener.core.wheel.set(handshake, deadline_s)
        handshake.step()

    def _shook_hands(
        self,
        address: Any,
        source: tuple[str, int] | None,
        handshake: Handshake,
        error: Exception | None,
    ) -> None:
        listener = self._listener
        listener.core.wheel.cancel(handshake)
        self._done_with(handshake)
        if error is not None:
            self._failed(address, error)
        else:
            handshake.transport(address, listener.protocol(source)).begin()

    def _failed(self, address: Any, error: Exception) -> None:
        core = self._listener.core
        core.stats.failed_handshakes += 1
        core.log.warning(
            "mqtt_handshake_failed",
            listener=self._listener.name,
            peer=f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "",
            reason=getattr(error, "reason", None) or str(error) or "took too long",
        )
