"""MQTT over WebSocket (MQTT 5.0 section 6): websockets' sans-IO protocol below a `Connection`.

To the connection it looks like any transport. Invariants: MQTT bytes travel in binary messages only
[MQTT-6.0.0-1] and are one stream whatever the messages' borders [MQTT-6.0.0-2]; the subprotocol is
"mqtt" [MQTT-6.0.0-3] [MQTT-6.0.0-4]; nothing is compressed. The deadline for CONNECT runs from the
first byte, so it covers the handshake too.
"""

from __future__ import annotations

import asyncio
import http
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from websockets.exceptions import InvalidOrigin, NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from mqtt.broker.connection import Connection
from mqtt.broker.net.config import is_loopback

if TYPE_CHECKING:
    from mqtt.broker.net.listener import Listener

__all__ = ["WebSocketProtocol"]

_MQTT: Final = Subprotocol("mqtt")
_MESSAGE_SLACK_BYTES: Final = 64 << 10  # a client may put more than one packet in a message
_UNSUPPORTED_DATA, _GOING_AWAY = 1003, 1000
_OF_PROXIES: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def _is_relayed(request: Request) -> bool:
    """Whether a handshake on this machine may be for somebody elsewhere.

    A proxy here says so, or hands on the name that its client asked for. A browser here may run
    a page of anybody's whose name was made to stand for this machine.
    """
    headers = request.headers
    if any(name in headers for name in _OF_PROXIES):
        return True
    try:
        return not is_loopback(urlsplit(f"//{headers.get('Host', '')}").hostname or "")
    except (LookupError, ValueError):  # it has several, or one that is no name
        return True


def _select(protocol: ServerProtocol, offered: Any) -> Subprotocol:
    """Choose "mqtt" [MQTT-6.0.0-4]; a client that does not offer it is refused [MQTT-6.0.0-3]."""
    del protocol
    if _MQTT not in offered:
        raise NegotiationError("the subprotocol has to be mqtt")
    return _MQTT


class _Protocol(ServerProtocol):
    """The server's side, which also asks where a script comes from."""

    def __init__(self, origins: tuple[str, ...], max_size: int) -> None:
        super().__init__(
            subprotocols=[_MQTT], select_subprotocol=_select, max_size=max_size, extensions=[]
        )
        self._allowed = origins

    def process_origin(self, headers: Any) -> Origin | None:
        """Let in what is no browser, pages of the same host, and pages that are allowed."""
        origin = super().process_origin(headers)
        if origin is None or "*" in self._allowed or origin in self._allowed:
            return origin
        host = headers.get("Host", "")
        if not self._allowed and urlsplit(origin).hostname == urlsplit(f"//{host}").hostname:
            return origin
        raise InvalidOrigin(origin)


class WebSocketProtocol(asyncio.Protocol):
    """Between a socket, with or without TLS, and a `Connection`, whose transport it is too.

    Args:
        connection: What speaks MQTT.
        listener: Names the path, the origins and the limits.
    """

    def __init__(self, connection: Connection, listener: Listener) -> None:
        config = listener.config
        self._connection = connection
        self._path = config.websocket_path
        self._log = listener.core.log
        size_max = listener.limits.maximum_packet_size + _MESSAGE_SLACK_BYTES
        self._protocol = _Protocol(config.websocket_origins, size_max)
        self._transport: Any = None
        self._accepted = False

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin; the client has until the connection's deadline."""
        self._transport = transport
        self._connection.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the handshake or of frames."""
        protocol = self._protocol
        protocol.receive_data(data)
        parts: list[bytes] = []
        for event in protocol.events_received():
            if isinstance(event, Request):
                self._answer(event)
            elif isinstance(event, Frame):
                self._take(event, parts)
        self._flush()
        if parts:
            self._connection.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if protocol.state is State.CLOSED:
            self._close_socket()

    def eof_received(self) -> bool:
        """The client will send no more: close."""
        self._protocol.receive_eof()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._connection.connection_lost(error)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._connection.resume_writing()

    def _answer(self, request: Request) -> None:
        protocol = self._protocol
        response: Response
        if self._path and urlsplit(request.path).path != self._path:
            response = protocol.reject(http.HTTPStatus.NOT_FOUND, f"MQTT is at {self._path}\n")
        else:
            response = protocol.accept(request)
        protocol.send_response(response)
        self._accepted = response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS
        self._connection.relayed = _is_relayed(request)
        if not self._accepted:
            self._log.warning(
                "mqtt_websocket_refused",
                cause=response.status_code,
                peer=self._connection.peer(),
                reason=str(protocol.handshake_exc or request.path[:100]),
            )

    def _take(self, frame: Frame, parts: list[bytes]) -> None:
        if frame.opcode in (Opcode.BINARY, Opcode.CONT):
            if frame.data:
                parts.append(bytes(frame.data))
        elif frame.opcode is Opcode.TEXT:  # [MQTT-6.0.0-1]
            self._protocol.fail(_UNSUPPORTED_DATA, "MQTT is binary")

    def _flush(self) -> None:
        parts = self._protocol.data_to_send()
        data = b"".join(parts)
        if data:
            self._transport.write(data)
        if parts and not parts[-1]:  # the library's sign for the end
            self._close_socket()

    def _close_socket(self) -> None:
        if not self._transport.is_closing():  # asyncio's TLS transport breaks when closed twice
            self._transport.close()

    # -- what a Connection needs of a transport -----------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes as one binary message."""
        if self._accepted and self._protocol.state is State.OPEN:
            self._protocol.send_binary(data)
            self._flush()

    def can_write_eof(self) -> bool:
        """Return True once there is a WebSocket to be closed in order."""
        return self._accepted and self._protocol.state is State.OPEN

    def write_eof(self) -> None:
        """Begin the closing handshake; the client's answer closes the socket."""
        self._protocol.send_close(_GOING_AWAY)
        self._flush()

    def close(self) -> None:
        """Close after what is written."""
        if self.can_write_eof():
            self.write_eof()
        self._close_socket()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return True once closing has begun."""
        closing: bool = self._transport.is_closing()
        return closing

    def pause_reading(self) -> None:
        """Read nothing from the socket."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the socket."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        size: int = self._transport.get_write_buffer_size()
        return size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the connection is told to pause."""
        self._transport.set_write_buffer_limits(high=high, low=low)
