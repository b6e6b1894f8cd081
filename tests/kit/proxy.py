"""A TCP proxy that misbehaves on demand: cuts, delays, throttles, swallows, falls silent.

    async with Proxy("127.0.0.1", port) as proxy:
        proxy.cut_after(up=1_000)      # the next connections break after 1,000 bytes upwards
        ...
        proxy.heal()

"up" is from the client to the server, "down" the way back. Nothing here is random: a test that
wants seeded faults draws the numbers itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from mqtt.frames import split
from tests.kit.processes import free_ports
from tests.kit.turns import all_accepted

__all__ = ["Direction", "Proxy"]

_CHUNK = 16 * 1024
Change = Callable[[bytes], bytes]


@dataclass
class Direction:
    """One way through the proxy; the byte counts go over all connections.

    Attributes:
        bytes: Forwarded so far.
        cut_at: Connections are cut when so many bytes of theirs were forwarded; None = never.
        delay_s: Each piece waits so long.
        bytes_s: Throttle; 0 = none.
        swallow: Read and forget: the sender's TCP is happy, the receiver hears nothing.
        paused: Read nothing: the sender's TCP buffers fill.
        packets: Given each whole MQTT packet of one connection; returns what goes on in its place.
            Made anew for each connection by a call of what is set here.
    """

    bytes: int = 0
    cut_at: int | None = None
    delay_s: float = 0.0
    bytes_s: float = 0.0
    swallow: bool = False
    paused: bool = False
    packets: Callable[[], Change] | None = None


class Proxy:
    """Listens on a port of its own and forwards to one server.

    Attributes:
        up: Faults on the way to the server.
        down: Faults on the way back.
        connections: Accepted so far.
        cuts: Connections cut so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._accepted = asyncio.Event()
        self._cut = asyncio.Event()
        self.up = Direction()
        self.down = Direction()
        self.connections = 0
        self.cuts = 0
        (self.port,) = free_ports(1)  # nobody else's, also while this does not listen

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.heal()
        await asyncio.gather(*(line.task for line in set(self._lines)), return_exceptions=True)

    async def listen(self) -> None:
        """Accept connections, on the port that is its own as long as it lives."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # small, so that a throttled line pushes back as a real one does
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
        sock.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=_CHUNK)

    async def refuse(self) -> None:
        """Cut everything and accept nothing until `listen`."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await all_accepted()
        self.cut()

    def cut(self) -> None:
        """Cut every connection now, as a power cut would: with a reset."""
        for line in set(self._lines):
            line.cut()

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Let every connection break after so many bytes of its own in a direction."""
        self.up.cut_at, self.down.cut_at = up, down

    def silence(self) -> None:
        """Keep connections open and forward nothing any more, in either direction."""
        self.up.swallow = self.down.swallow = True

    def heal(self) -> None:
        """Undo all faults; connections that live go on."""
        for way in (self.up, self.down):
            way.cut_at, way.delay_s, way.bytes_s = None, 0.0, 0.0
            way.swallow = way.paused = False
            way.packets = None
        self._resumed.set()

    def pause(self) -> None:
        """Read nothing from the client until `heal`."""
        self.up.paused = True
        self._resumed.clear()

    async def until_connections(self, count: int) -> None:
        """Wait until so many connections were accepted in all."""
        async with asyncio.timeout(60):
            while self.connections < count:
                self._accepted.clear()
                await self._accepted.wait()

    async def until_cuts(self, count: int) -> None:
        """Wait until so many connections were cut in all."""
        async with asyncio.timeout(60):
            while self.cuts < count:
                self._cut.clear()
                await self._cut.wait()

    def count_cut(self) -> None:
        """A connection was cut."""
        self.cuts += 1
        self._cut.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._accepted.set()
        task = asyncio.current_task()
        assert task is not None
        line = _Line(self, writer, task)
        self._lines.add(line)
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            line.cut()
            self._lines.discard(line)
            return
        line.writers.append(back)
        try:
            await asyncio.gather(
                self._forward(line, self.up, reader, back),
                self._forward(line, self.down, there, writer),
            )
        finally:
            self._lines.discard(line)
            for one in line.writers:
                one.close()

    async def _forward(
        self,
        line: _Line,
        way: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        forwarded = 0
        change = way.packets() if way.packets is not None else None
        rest = b""
        with contextlib.suppress(OSError):
            while not line.ended:
                if way.paused:
                    await self._resumed.wait()
                chunk = await reader.read(_CHUNK)
                if way.delay_s:
                    await asyncio.sleep(way.delay_s)
                if not chunk:
                    break
                if way.swallow:
                    continue
                if change is not None:
                    chunk, rest = _changed(rest + chunk, change)
                    if not chunk:
                        continue
                if way.cut_at is not None and forwarded + len(chunk) >= way.cut_at:
                    chunk = chunk[: max(0, way.cut_at - forwarded)]
                    writer.write(chunk)
                    await writer.drain()
                    way.bytes += len(chunk)
                    line.cut()
                    break
                if way.bytes_s:
                    await asyncio.sleep(len(chunk) / way.bytes_s)
                writer.write(chunk)
                await writer.drain()
                forwarded += len(chunk)
                way.bytes += len(chunk)
        line.end()


def _changed(data: bytes, change: Change) -> tuple[bytes, bytes]:
    """Return what goes on in place of the whole packets in `data`, and what follows them."""
    out = b""
    while (found := split(data)) is not None and found[2] <= len(data):
        out += change(data[: found[2]])
        data = data[found[2] :]
    return out, data


class _Line:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        self.proxy = proxy
        self.writers = [writer]
        self.task = task
        self.ended = False

    def cut(self) -> None:
        if not self.ended:
            self.proxy.count_cut()
            self.ended = True
            for writer in self.writers:
                writer.transport.abort()

    def end(self) -> None:
        """One side said it is done: pass that on."""
        self.ended = True
        for writer in self.writers:
            with contextlib.suppress(OSError):
                writer.close()
