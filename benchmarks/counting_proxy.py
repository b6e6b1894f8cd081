"""A TCP proxy that counts what goes over the wire before it, headers included.

Its connections have the segments of a mobile link (1,388 bytes) though they run over loopback. The
counts are the kernel's own (TCP_INFO of the socket towards the client): bytes both ways, and 52
bytes (IPv4, and TCP with timestamps) for every segment both ways, bare acknowledgements included.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["CountingProxy", "Wire"]

SEGMENT_BYTES = 1388
HEADER_BYTES = 52
_TCP_INFO = struct.Struct("8x24I4Q6I")  # Linux 4.6, up to tcpi_notsent_bytes
_CHUNK = 64 * 1024


@dataclass(slots=True)
class Wire:
    """What went over the wire, both ways together."""

    bytes: int = 0  # of TCP payload
    segments: int = 0

    @property
    def total(self) -> int:
        """All bytes, headers included."""
        return self.bytes + HEADER_BYTES * self.segments

    def __sub__(self, other: Wire) -> Wire:
        return Wire(self.bytes - other.bytes, self.segments - other.segments)


class CountingProxy:
    """Listens on a port of its own and forwards to one server on loopback.

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._sockets: set[Any] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        self._server = await asyncio.start_server(self._serve, sock=listener)
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wire(self) -> Wire:
        """Return the counts of this moment, over the connections that are open."""
        total = Wire()
        for one in self._sockets:
            _add(total, one)
        return total

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours = writer.get_extra_info("socket")
        self._sockets.add(ours)
        try:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                await asyncio.gather(_forward(reader, back), _forward(there, writer))
        finally:
            self._sockets.discard(ours)
            writer.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    writer.close()


def _add(total: Wire, sock: Any) -> None:
    """Add the kernel's counts of a socket."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except (OSError, ValueError):  # uvloop's own socket object raises the latter once closed
        return
    acked, received, segments_out, segments_in = _TCP_INFO.unpack(raw)[26:30]
    total.bytes += acked + received
    total.segments += segments_out + segments_in
