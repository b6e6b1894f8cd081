"""From a listening socket to a connection that speaks MQTT: PROXY header and TLS handshake.

Invariant: `_shaking` holds what is between `accept` and its protocol, never more than
`handshakes_max`; each ends by itself, by its deadline, or when the acceptor closes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mqtt.broker.net import socket_calls
from mqtt.broker.net.proxy_protocol import ProxyError, read_proxy_header
from mqtt.broker.net.socket_calls import ACCEPT_MAX
from mqtt.broker.net.tls_transport import Handshake

if TYPE_CHECKING:
    from mqtt.broker.net.listener import Listener

__all__ = ["Acceptor"]

_BACKLOG: Final = 1024
_HANDSHAKES_AT_ONCE: Final = 8  # each takes a third of a millisecond before others have their turn
_RETRY_S: Final = 1.0  # after the system had no descriptor left


class Acceptor:
    """Accepts on one socket and does what comes before MQTT: PROXY header, TLS handshake."""

    def __init__(self, listener: Listener, sock: socket.socket) -> None:
        self.sock = sock
        self._family = sock.family
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
        left = ACCEPT_MAX if listener.tls is None else _HANDSHAKES_AT_ONCE
        while left and (wanted := min(left, self._room())):
            try:
                accepted = socket_calls.accept(self.sock, wanted)
            except OSError as error:  # no descriptor left, most of all
                log = listener.core.log
                log.warning("mqtt_cannot_accept", listener=listener.name, error=str(error))
                self._pause(_RETRY_S)
                return
            pairs = iter(accepted)
            for descriptor, address in zip(pairs, pairs, strict=True):
                try:
                    self._take(descriptor, address)  # type: ignore[arg-type] # they take turns
                except Exception as error:  # noqa: BLE001 - a callback's root: the others go on
                    self._loop.call_exception_handler(
                        {"message": "a client could not be taken", "exception": error}
                    )
            left = left - wanted if len(accepted) == 2 * wanted else 0

    def _room(self) -> int:
        """Return how many may be accepted before this is asked again; with none, accept later."""
        listener = self._listener
        config = listener.config
        shaking = len(self._shaking)
        if shaking >= config.handshakes_max:
            listener.core.log.warning("mqtt_handshakes_full", listener=listener.name)
            self._loop.remove_reader(self.sock.fileno())
            return 0
        crowded_s = listener.crowded_s(shaking)
        if crowded_s:
            self._pause(crowded_s)
            return 0
        half_open = len(listener.half_open) + shaking
        return max(1, min(config.handshakes_max - shaking, config.half_open_max - half_open))

    def _pause(self, pause_s: float) -> None:
        self._loop.remove_reader(self.sock.fileno())
        self._loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        if self._is_open:
            self._loop.add_reader(self.sock.fileno(), self._accept)

    def _take(self, descriptor: int, address: Any) -> None:
        """Begin with one client; it has until the deadline to get as far as its CONNECT."""
        listener = self._listener
        config = listener.config
        if listener.tls is None and not config.proxy_protocol:
            self._adopt(descriptor, address, None)
            return
        sock = socket.socket(self._family, socket.SOCK_STREAM, 0, descriptor)
        sock.setblocking(False)
        deadline_s = listener.core.clock.monotonic_s() + config.handshake_timeout_s
        if not config.proxy_protocol:  # then nothing has to be waited for in a task
            self._shake_hands(sock, address, None, deadline_s)
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
                self._adopt(sock.detach(), address, source)
        except (OSError, TimeoutError, ProxyError) as error:
            sock.close()
            self._failed(address, error)
        except BaseException:
            sock.close()
            raise

    def _adopt(self, descriptor: int, address: Any, source: tuple[str, int] | None) -> None:
        listener = self._listener
        try:
            listener.core.sockets.adopt(descriptor, listener.protocol(source), address)
        except OSError as error:  # it cannot be watched
            os.close(descriptor)
            self._failed(address, error)
        except BaseException:
            os.close(descriptor)
            raise

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
        handshake.begin()

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
