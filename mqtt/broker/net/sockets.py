"""Plain TCP and Unix sockets of one event loop: all that are ready are read and written together.

`Sockets` watches its sockets with an epoll of its own, which the event loop watches in its turn:
one callback reads whatever has come, and what was written in one turn of the loop leaves at its
end in one call (`socket_calls`). To its protocol a `SocketTransport` is like any of asyncio's;
TLS has its own (tls_transport.py). docs/adr/0013-own-sockets.md says what it is for.

Invariants:
- a socket is watched for reading exactly while its transport is neither paused nor closing, and for
  writing exactly while `_unsent` holds something; one whose end comes while nothing is to be read
  is not watched until something is, so that what was sent before the end is not lost;
- what waits for the end of the turn is at most TOGETHER_BYTES a socket, what is written beyond that
  leaves at once; nothing of it waits behind `_unsent`, and nothing is in both;
- a descriptor is closed in a turn of its own, after `connection_lost`: it can mean no other socket
  within a turn.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable
from mmap import mmap
from typing import Any, Final, TypeAlias

from mqtt.broker.net import socket_calls
from mqtt.broker.net.socket_calls import WRITABLE

__all__ = ["TOGETHER_BYTES", "Sift", "SocketTransport", "Sockets"]

TOGETHER_BYTES: Final = 64 << 10
_READ_BYTES: Final = 64 << 10  # of one socket a turn, ...
_BUFFER_BYTES: Final = 128 << 10  # ... and of all, so that a turn takes some ms at most
_HIGH_BYTES: Final = 64 << 10  # asyncio's own
_READABLE: Final = int(select.EPOLLIN)
_NOT_NOW: Final = (-errno.EAGAIN, -errno.EINTR)

# What `socket_calls.receive` found and the transports by descriptor -> what is left of the former.
Sift: TypeAlias = "Callable[[list[int | bytes], dict[int, SocketTransport]], list[int | bytes]]"


class Sockets:
    """The plain sockets of one event loop.

    Args:
        loop: It.
        sift: Sees what a turn has read before the protocols do, and returns what is for them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sift: Sift | None = None) -> None:
        self.loop = loop
        self._sift = sift
        self.epoll = select.epoll()
        self.transports: dict[int, SocketTransport] = {}  # by descriptor
        self.outgoing: dict[int, bytes] = {}  # what leaves at the end of the turn, by descriptor
        self._buffer = mmap(-1, _BUFFER_BYTES)
        loop.add_reader(self.epoll.fileno(), self._receive)

    def adopt(
        self, descriptor: int, protocol: asyncio.Protocol, peer: object = None
    ) -> SocketTransport:
        """Give a connected, non-blocking socket a transport and its protocol.

        Args:
            descriptor: Of the socket; it is the transport's from now on.
            protocol: Is told of the connection before this returns.
            peer: The address at the other end, as `accept` has it.

        Raises:
            OSError: the socket cannot be watched; it is still the caller's.
        """
        transport = SocketTransport(self, descriptor, protocol, peer)
        self.epoll.register(descriptor, _READABLE)
        self.transports[descriptor] = transport
        try:
            protocol.connection_made(transport)
        except Exception as error:  # noqa: BLE001 - a callback's root
            self.broke(transport, error)
        return transport

    def close(self) -> None:
        """Cut off whoever is left, and watch nothing more."""
        if self.epoll.closed:
            return
        for transport in list(self.transports.values()):
            transport.abort()
            transport.finish()
        self.loop.remove_reader(self.epoll.fileno())
        self.epoll.close()

    def flush_soon(self) -> None:
        """Have what is outgoing written at the end of this turn."""
        self.loop.call_soon(self._flush)

    def _receive(self) -> None:
        """Read whatever has come, and give it to whom it is for."""
        if self.outgoing:  # its turn is over: what is read now would delay it by some ms
            self._flush()
        found = socket_calls.receive(self.epoll, self._buffer, _READ_BYTES)
        transports = self.transports
        if self._sift is not None:
            try:
                found = self._sift(found, transports)
            except Exception as error:  # noqa: BLE001 - no memory: what is handled is not known
                for descriptor in set(found[::2]):
                    self.broke(transports[descriptor], error)  # type: ignore[index]
                return
        pairs = iter(found)
        for descriptor, what in zip(pairs, pairs, strict=True):
            transport = transports[descriptor]  # type: ignore[index] # they take turns
            try:
                if what.__class__ is bytes and what and transport.takes_data:
                    transport.protocol.data_received(what)
                else:
                    transport.came(what)
            except Exception as error:  # noqa: BLE001 - a callback's root: the others go on
                self.broke(transport, error)

    def _flush(self) -> None:
        outgoing = self.outgoing
        try:
            rest = socket_calls.send(outgoing)
        except Exception as error:  # noqa: BLE001 - no memory: who got how much is not known
            for descriptor in list(outgoing):
                self.broke(self.transports[descriptor], error)
            return
        if rest is None:
            outgoing.clear()
            return
        left = dict(zip(rest[::2], rest[1::2], strict=True))
        unsent = [(descriptor, outgoing[descriptor], sent) for descriptor, sent in left.items()]
        outgoing.clear()
        for descriptor, data, sent in unsent:
            transport = self.transports[descriptor]
            try:
                transport.took(data, sent)
            except Exception as error:  # noqa: BLE001 - likewise
                self.broke(transport, error)

    def broke(self, transport: SocketTransport, error: Exception) -> None:
        """One connection's fault must not cost the others theirs."""
        self.loop.call_exception_handler(
            {
                "message": "protocol raised",
                "exception": error,
                "transport": transport,
                "protocol": transport.protocol,
            }
        )
        transport.lose(error)


class SocketTransport(asyncio.Transport):
    """One plain socket: what a protocol needs of asyncio's transports, and no more.

    It always closes at the end of the stream, whatever `eof_received` returns.
    """

    __slots__ = (
        "_early",
        "_fd",
        "_high_bytes",
        "_is_blocked",
        "_is_closing",
        "_is_ending",
        "_is_lost",
        "_is_paused",
        "_is_resuming",
        "_is_unwatched",
        "_outgoing",
        "_peer",
        "_sockets",
        "_unsent",
        "_writes_late",
        "protocol",
        "takes_data",
    )

    def __init__(
        self, sockets: Sockets, descriptor: int, protocol: asyncio.Protocol, peer: object
    ) -> None:
        # Not `super().__init__()`: it would make a dict for each.
        self.protocol = protocol
        self.takes_data = True  # neither paused nor closing
        self._sockets = sockets
        self._fd = descriptor  # and no `socket.socket` around it: half the time of an `accept`
        self._peer = peer
        self._outgoing = sockets.outgoing
        self._unsent: bytearray | None = None  # what the system has no room for
        self._early: bytes = b""  # read in the turn in which reading was paused
        self._high_bytes = _HIGH_BYTES
        self._writes_late = False  # `_unsent`, or nothing is to be written any more
        self._is_blocked = False  # the protocol was told to pause writing
        self._is_paused = False
        self._is_resuming = False  # as soon as `_early` is handed on
        self._is_closing = False
        self._is_ending = False  # our side is shut, or will be after what is unsent
        self._is_lost = False  # `connection_lost` is on its way
        self._is_unwatched = False  # it has ended, which is for when reading goes on

    # -- writing ------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send bytes at the end of this turn of the loop, in order."""
        outgoing = self._outgoing
        fd = self._fd
        if (
            self._writes_late
            or fd in outgoing
            or len(data) > TOGETHER_BYTES
            or data.__class__ is not bytes
        ):
            self._write_more(bytes(data))
            return
        if not outgoing:
            self._sockets.flush_soon()
        outgoing[fd] = data

    def _write_more(self, data: bytes) -> None:
        if self._is_closing or self._is_ending:
            return
        if self._unsent is None:
            before = self._outgoing.get(self._fd, b"")
            if len(before) + len(data) <= TOGETHER_BYTES:
                if not self._outgoing:
                    self._sockets.flush_soon()
                self._outgoing[self._fd] = before + data
                return
            self._write_now()
        self._send(data)

    def _write_now(self) -> None:
        """Write what waits for the end of the turn."""
        data = self._outgoing.pop(self._fd, None)
        if data is not None:
            self._send(data)

    def _send(self, data: bytes) -> None:
        if self._is_lost:
            return
        if self._unsent is not None:
            self._unsent += data
            self._look_at_size()
            return
        try:
            sent = os.write(self._fd, data)
        except OSError as error:
            sent = -(error.errno or errno.EIO)
        if sent < len(data):
            self.took(data, sent)

    def took(self, data: bytes, sent: int) -> None:
        """Note how much of some data was taken, or the negative `errno` that was met."""
        if self._is_lost:
            return
        if sent < 0 and sent not in _NOT_NOW:
            self.lose(OSError(-sent, os.strerror(-sent)))
            return
        self._unsent = bytearray(memoryview(data)[max(0, sent) :])
        self._writes_late = True
        self._watch()
        self._look_at_size()

    def _look_at_size(self) -> None:
        if not self._is_blocked and self.get_write_buffer_size() > self._high_bytes:
            self._is_blocked = True
            self.protocol.pause_writing()

    def _write_on(self) -> None:
        """The system has room again."""
        unsent = self._unsent
        if unsent is None:
            return
        try:
            sent = os.write(self._fd, unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lose(error)
            return
        del unsent[:sent]
        if not unsent:
            self._unsent = None
            self._writes_late = self._is_closing or self._is_ending
            self._watch()
        if self._is_blocked and len(unsent) <= self._high_bytes // 4:
            self._is_blocked = False
            self.protocol.resume_writing()
        if self._unsent is None and not self._is_lost:  # the protocol may have written more
            if self._is_closing:
                self.lose(None)
            elif self._is_ending:
                self._shut()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set above how many unsent bytes the protocol pauses; a quarter of them lets it go on."""
        del low
        self._high_bytes = _HIGH_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the system has not got yet."""
        return len(self._unsent or b"") + len(self._outgoing.get(self._fd, b""))

    # -- reading ------------------------------------------------------------------------------

    def came(self, what: bytes | int) -> None:
        """Take what is not simply data: room to write, the end, an error, data while paused."""
        if self._is_lost:
            return
        if what == WRITABLE:
            self._write_on()
        elif isinstance(what, int):
            if what not in _NOT_NOW:
                self.lose(OSError(-what, os.strerror(-what)))
        elif what:
            if self._is_paused and not self._is_closing:
                self._early += what
        elif self.takes_data:
            self.protocol.eof_received()
            self.close()
        elif self._is_closing:
            self.lose(None)
        elif not self._is_unwatched:
            # A Unix socket's end is told of although nothing is to be read, over and over.
            self._sockets.epoll.unregister(self._fd)
            self._is_unwatched = True

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        self._is_resuming = False
        if not self._is_paused:
            self._is_paused = True
            self._watch()

    def resume_reading(self) -> None:
        """Read again, beginning with what was read in the turn in which reading was paused."""
        if self._early:
            self._is_resuming = True
            self._sockets.loop.call_soon(self._receive_early)
        elif self._is_paused:
            self._is_paused = False
            self._watch()

    def _receive_early(self) -> None:
        if not self._is_resuming:
            return
        data, self._early = self._early, b""
        self._is_resuming = self._is_paused = False
        self._watch()
        if data and self.takes_data:
            try:
                self.protocol.data_received(data)
            except Exception as error:  # noqa: BLE001 - a callback's root
                self._sockets.broke(self, error)

    def _watch(self) -> None:
        """Watch the socket for what the transport waits for."""
        self.takes_data = not self._is_paused and not self._is_closing
        if not self._is_lost:
            events = _READABLE if self.takes_data else 0
            if self._unsent is not None:
                events |= WRITABLE
            if not self._is_unwatched:
                self._sockets.epoll.modify(self._fd, events)
            elif events:
                self._is_unwatched = False
                self._sockets.epoll.register(self._fd, events)

    # -- ending -------------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """Return True: our side can be shut while the other one still sends."""
        return True

    def write_eof(self) -> None:
        """Shut our side after what is written. Raises OSError when the other end has gone."""
        if self._is_ending or self._is_closing:
            return
        self._write_now()
        self._is_ending = self._writes_late = True
        if self._unsent is None and not self._is_lost:
            self._shut_down()

    def _shut(self) -> None:
        try:
            self._shut_down()
        except OSError as error:
            self.lose(error)

    def _shut_down(self) -> None:
        sock = socket.socket(fileno=self._fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        finally:
            sock.detach()

    def close(self) -> None:
        """Read no more; end after what is written."""
        if self._is_closing:
            return
        self._write_now()
        self._is_closing = self._writes_late = True
        if self._unsent is None:
            self.lose(None)
        else:
            self._watch()

    def abort(self) -> None:
        """End at once."""
        self.lose(None)

    def is_closing(self) -> bool:
        """Return True once the end has begun."""
        return self._is_closing

    def lose(self, error: Exception | None) -> None:
        """Forget what is unsent, and tell the protocol in a turn of its own."""
        if self._is_lost:
            return
        if not self._is_unwatched:
            self._sockets.epoll.unregister(self._fd)
        self._is_lost = self._is_closing = self._writes_late = True
        self.takes_data = False
        self._unsent = None
        self._early = b""
        self._outgoing.pop(self._fd, None)
        self._sockets.loop.call_soon(self.finish, error)

    def finish(self, error: Exception | None = None) -> None:
        """Tell the protocol, and let the descriptor go; once."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            self.protocol.connection_lost(error)
        finally:
            del self._sockets.transports[fd]
            os.close(fd)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `peername`; nothing else is known of the socket."""
        return (self._peer or default) if name == "peername" else default
