"""TLS on a socket of our own: the handshake, and the transport that a connection then speaks by.

OpenSSL reads and writes the socket itself, so a connection has no buffers beside OpenSSL's own,
which it gives back between records; `Readiness` tells when. The event loops' TLS layers keep some,
and a task, a timer and futures for each handshake (benchmarks/tls_connections.py,
docs/adr/0014-tls-transport.md).

Invariants:
- a socket belongs to its `Handshake` until `done` is called, once, and to its `TlsTransport` from
  then until `connection_lost` is called, once; whoever has it closes it;
- nothing waits inside OpenSSL to be read when the loop waits: a read takes whole records;
- bytes are in `_unsent` only while the socket takes no more, and then it is watched for writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from fcntl import ioctl
from termios import FIONREAD
from typing import Any, Final

from mqtt.broker.net.readiness import READABLE, WRITABLE, Readiness

__all__ = ["Handshake", "TlsTransport"]

_RECORD_BYTES: Final = 1 << 14  # of plain text: RFC 8446 section 5.1
_TOGETHER_BYTES: Final = 1 << 18  # that a connection is read for before the others' turn
_NOTHING: Final = bytes(4)  # FIONREAD's answer, and what it is given to write it to
_SEND_BYTES: Final = 1 << 16


class Handshake:
    """The server's side of one TLS handshake.

    Args:
        readiness: Watches the socket.
        sock: Connected and not blocking; it is taken over.
        context: What to show and to ask for.
        done: Called with this object and None when it went well, else with what was wrong and the
            socket closed. Not before `begin` is called, and not after `abort`.

    Raises:
        OSError: the socket cannot be watched; it is closed.
    """

    __slots__ = ("_done", "_fd", "_is_over", "_readiness", "_tls", "_wanted", "sock", "timer_tick")

    def __init__(
        self,
        readiness: Readiness,
        sock: socket.socket,
        context: ssl.SSLContext,
        done: Callable[[Handshake, Exception | None], None],
    ) -> None:
        self._readiness = readiness
        self._fd = sock.fileno()
        self.sock = sock
        self._done = done
        self.timer_tick = 0
        self._is_over = False
        self._wanted = READABLE
        try:
            # Private, and the same in all of 3.11 to 3.13: `wrap_socket` puts another socket around
            # it, at 25 us, five system calls and 400 bytes (docs/adr/0014-tls-transport.md).
            self._tls = context._wrap_socket(sock, True)  # type: ignore[attr-defined] # noqa: SLF001
            readiness.watch(self._fd, self)
        except BaseException:
            sock.close()
            raise

    def begin(self) -> None:
        """Begin with what the client has sent already, if anything: mostly it is on its way."""
        if ioctl(self._fd, FIONREAD, _NOTHING) != _NOTHING:
            self.step()

    def on_ready(self, _events: int) -> None:
        """The client has sent something, or takes something, or has gone."""
        self.step()

    def step(self) -> None:
        """Go as far as what the client has sent allows."""
        if self._is_over:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._want(READABLE)
        except ssl.SSLWantWriteError:
            self._want(READABLE | WRITABLE)
        except OSError as error:
            self.abort()
            self._done(self, error)
        else:
            self._is_over = True
            self._want(READABLE)
            self._done(self, None)

    def on_timer(self, _now_s: float) -> None:
        """The client has taken too long."""
        if not self._is_over:
            self.abort()
            self._done(self, TimeoutError())

    def abort(self) -> None:
        """Hang up; `done` is not called."""
        if not self._is_over:
            self._is_over = True
            self._readiness.forget(self._fd, self._wanted)
            self.sock.close()

    cancel = abort  # as a task's

    def transport(self, peer: object, protocol: asyncio.Protocol) -> TlsTransport:
        """Return what speaks on after a handshake that went well; its `begin` takes the socket."""
        return TlsTransport(self._readiness, self.sock, self._tls, peer, protocol)

    def _want(self, events: int) -> None:
        if events != self._wanted:
            self._readiness.change(self._fd, self._wanted, events)
            self._wanted = events


class TlsTransport(asyncio.Transport):
    """What a connection reads and writes through, as asyncio's transports are.

    Args:
        readiness: Watches the socket.
        sock: Not blocking; it is taken over.
        tls: What `ssl` has below its sockets, past the handshake on this one.
        peer: The client's address.
        protocol: Given this transport by `begin`.
    """

    __slots__ = (
        "_fd",
        "_high",
        "_is_closing",
        "_is_paused",
        "_is_shut",
        "_lingers",
        "_lost",
        "_peer",
        "_protocol",
        "_readiness",
        "_sock",
        "_tls",
        "_unsent",
        "_wanted",
    )

    def __init__(
        self,
        readiness: Readiness,
        sock: socket.socket,
        tls: Any,
        peer: object,
        protocol: asyncio.Protocol,
    ) -> None:
        self._readiness = readiness
        self._sock = sock
        self._tls = tls
        self._fd = sock.fileno()
        self._peer = peer
        self._protocol = protocol
        self._high = 1 << 16  # of `_unsent`, when the protocol is told to pause
        self._unsent: bytearray | None = None  # and the socket is watched for writing
        self._wanted = READABLE  # since its handshake
        self._is_paused = False  # the protocol was told so
        self._is_closing = False  # nothing more is taken to write
        self._is_shut = False  # close_notify has gone out
        self._lingers = False  # the client's end is waited for then
        self._lost = False  # the protocol is told soon, or was

    def begin(self) -> None:
        """Introduce the protocol and read what the client has sent behind its handshake."""
        self._readiness.hand_over(self._fd, self)
        try:
            self._protocol.connection_made(self)
        except Exception as fault:  # noqa: BLE001 - a callback's root: it ends this client only
            self._failed(fault)
        if self._wanted & READABLE and ioctl(self._fd, FIONREAD, _NOTHING) != _NOTHING:
            self._on_readable()

    # -- reading ------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        self._want(self._wanted & ~READABLE)

    def resume_reading(self) -> None:
        """Read again."""
        self._want(self._wanted | READABLE)

    def is_reading(self) -> bool:
        """Return True while the socket is watched for reading."""
        return bool(self._wanted & READABLE)

    def on_ready(self, events: int) -> None:
        """The socket has something, takes something, or is at its end."""
        if events & WRITABLE or not self._wanted & READABLE:
            self._on_writable()
        if events & ~WRITABLE and self._wanted & READABLE:
            self._on_readable()

    def _want(self, events: int) -> None:
        if events != self._wanted and not self._lost:
            self._readiness.change(self._fd, self._wanted, events)
            self._wanted = events

    def _on_readable(self) -> None:
        if self._is_shut:
            self._discard()
            return
        parts: list[bytes] = []
        size = 0
        ended = False
        error: OSError | None = None
        try:
            while size < _TOGETHER_BYTES:
                data = self._tls.read(_RECORD_BYTES)
                if not data:
                    ended = True
                    break
                parts.append(data)
                size += len(data)
                # SSLWantReadError would say the same at five times the price.
                if ioctl(self._fd, FIONREAD, _NOTHING) == _NOTHING:
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass  # the rest of a record is on its way, or what TLS itself has to say
        except ssl.SSLEOFError:
            ended = True  # without a close_notify, as many clients do
        except OSError as failure:
            error = failure
        try:
            if parts:
                self._protocol.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
            if error is not None:
                self._end(error)
            elif ended and not self._lost and not self._protocol.eof_received():
                self.close()
        except Exception as fault:  # noqa: BLE001 - a callback's root: it ends this client only
            self._failed(fault)

    def _discard(self) -> None:
        """Our side is shut: read until the client's is, and forget what comes."""
        try:
            ended = not self._sock.recv(_SEND_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            ended = True
        if ended:
            self._end(None)

    # -- writing ------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the socket takes, and the rest when it takes more."""
        if self._is_closing or not data:
            return
        unsent = self._unsent
        if unsent is None:
            sent = self._send(data)
            if sent == len(data) or self._lost:
                return
            unsent = self._unsent = bytearray(memoryview(data)[sent:])
            self._want(self._wanted | WRITABLE)
        else:
            unsent += data
        if not self._is_paused and len(unsent) > self._high:
            self._is_paused = True
            self._protocol.pause_writing()

    def _send(self, data: bytes | bytearray | memoryview[Any]) -> int:
        """Return how much of some data the socket took; ends the connection when it is broken."""
        sent = 0
        size = len(data)
        try:
            sent = self._tls.write(data)
            with memoryview(data) as view:
                while sent < size:  # a record at a time
                    sent += self._tls.write(view[sent : sent + _SEND_BYTES])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._end(error)
        return sent

    def _on_writable(self) -> None:
        unsent = self._unsent
        if unsent is None:
            return
        sent = self._send(unsent)
        if self._lost:
            return
        del unsent[:sent]
        if not unsent:
            self._unsent = None
            self._want(self._wanted & ~WRITABLE)
        if self._is_paused and len(unsent) <= self._high // 4:
            self._is_paused = False
            self._protocol.resume_writing()
        if self._is_closing and self._unsent is None:
            self._shut()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many unsent bytes pause the protocol; a quarter of them resumes it."""
        del low
        self._high = 1 << 16 if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return len(self._unsent or b"")

    # -- ending -------------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """Return True: TLS has a word for the end of one side."""
        return True

    def write_eof(self) -> None:
        """Shut our side after what is unsent, and read until the client shuts its own."""
        if not self._is_closing:
            self._is_closing = self._lingers = True
            if self._unsent is None:
                self._shut()

    def close(self) -> None:
        """Close after what is unsent."""
        self._is_closing = True
        self._lingers = False
        self.pause_reading()
        if self._unsent is None:
            self._shut()

    def abort(self) -> None:
        """Close at once."""
        self._end(None)

    def is_closing(self) -> bool:
        """Return True once closing has begun."""
        return self._is_closing

    def _shut(self) -> None:
        """Say close_notify; close the socket too, unless the client's end is waited for."""
        if self._lost:
            return
        if not self._is_shut:
            self._is_shut = True
            # It goes out in the first of two steps; the second misses the client's own.
            with contextlib.suppress(OSError):
                self._tls.shutdown()
        if not self._lingers:
            self._end(None)
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            self._end(None)

    def _failed(self, fault: Exception) -> None:
        self._readiness.loop.call_exception_handler(
            {"message": "a connection failed", "exception": fault, "transport": self}
        )
        self._end(fault)

    def _end(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._is_closing = True
        self._readiness.forget(self._fd, self._wanted)
        self._wanted = 0
        self._unsent = None
        self._readiness.loop.call_soon(self._close, error)

    def _close(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._sock.close()

    # -- about it -----------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `peername`, `socket`, or `ssl_object`, an `ssl.SSLObject` as asyncio's is."""
        if name == "peername":
            return self._peer
        if name == "ssl_object":
            found = ssl.SSLObject.__new__(ssl.SSLObject)
            found._sslobj = self._tls  # type: ignore[attr-defined] # noqa: SLF001 - what it wraps
            return found
        return self._sock if name == "socket" else default
