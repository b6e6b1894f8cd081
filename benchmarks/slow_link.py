"""A link of a given speed and delay, as a TCP proxy: what a gateway's modem does to its bytes.

Each way has a rate and a delay of its own and a buffer as modems have one; when it is full the
sender is held up, as by a real one. Unlike `tests.kit.proxy` it delays without slowing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Self

__all__ = ["Link"]

_CHUNK = 4096


class Link:
    """Listens on a port of its own and forwards to one server on loopback.

    Args:
        port: The server's.
        rate_bytes_s: Of each way; 0 = as fast as it goes.
        delay_s: Of each way.
        buffer_bytes: What may be under way before the sender is held up.

    Attributes:
        port: Its own.
        bytes_up: Forwarded to the server so far.
        bytes_down: Forwarded from it.
    """

    def __init__(
        self, port: int, rate_bytes_s: float, delay_s: float, *, buffer_bytes: int = 64 * 1024
    ) -> None:
        self._target = port
        self._rate_bytes_s = rate_bytes_s
        self._delay_s = delay_s
        self._buffer_bytes = buffer_bytes
        self._server: asyncio.Server | None = None
        self._free_at_s = {"up": 0.0, "down": 0.0}
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.bytes_up = 0
        self.bytes_down = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=self._buffer_bytes
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Have `_accept` run as a task of ours: asyncio reports a cancelled one of its own."""
        task = asyncio.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(
                self._forward("up", reader, back), self._forward("down", there, writer)
            )
        writer.close()

    async def _forward(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Give each piece the time it takes on the wire, then its delay; pieces overlap."""
        loop = asyncio.get_running_loop()
        under_way: deque[tuple[float, bytes]] = deque()
        room = asyncio.Event()
        news = asyncio.Event()

        async def deliver() -> None:
            while True:
                while not under_way:
                    news.clear()
                    await news.wait()
                at_s, chunk = under_way.popleft()
                room.set()
                wait_s = at_s - loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                if not chunk:
                    writer.close()
                    return
                writer.write(chunk)
                await writer.drain()

        delivering = asyncio.create_task(deliver())
        try:
            while True:
                chunk = await reader.read(_CHUNK if self._rate_bytes_s else self._buffer_bytes)
                free_at_s = max(self._free_at_s[way], loop.time())
                if self._rate_bytes_s:
                    free_at_s += len(chunk) / self._rate_bytes_s
                self._free_at_s[way] = free_at_s
                under_way.append((free_at_s + self._delay_s, chunk))
                news.set()
                if way == "up":
                    self.bytes_up += len(chunk)
                else:
                    self.bytes_down += len(chunk)
                if not chunk:
                    break
                ahead_s = self._buffer_bytes / self._rate_bytes_s if self._rate_bytes_s else 0.0
                while self._rate_bytes_s and free_at_s - loop.time() > ahead_s:
                    await asyncio.sleep(free_at_s - loop.time() - ahead_s)
                while not self._rate_bytes_s and len(under_way) > 64:
                    room.clear()
                    await room.wait()
            await delivering
        finally:
            delivering.cancel()
