"""Our broker without sockets: every byte on the way is in a test's hands, and so is every death.

    world = World(tmp_path, config)
    line = world.dial()
    line.up += connect(...)
    world.carry(line, up=3, down=0)       # three bytes arrive
    world.cut(line)                       # what is on its way is lost
    world.kill()                          # the broker dies; what its disk does not have is lost
    world.start()

Everything runs on one loop that only turns while the world is told to do something.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mqtt.broker.broker import Broker
from mqtt.broker.config import BrokerConfig
from mqtt.broker.connection import Connection
from mqtt.broker.session_store import SqliteSessionStore

__all__ = ["Line", "World"]


class Line:
    """One connection: a transport for the broker, two heaps of bytes for the test."""

    def __init__(self) -> None:
        self.up = b""  # from the client, not yet with the broker
        self.down = b""  # from the broker, not yet with the client
        self.open = True
        self.protocol: Connection | None = None
        self._high = 1 << 16
        self._slow = False
        self._paused = False

    # -- what the broker sees: an asyncio.Transport ----------------------------------------------

    def write(self, data: bytes) -> None:
        """Take bytes for the client."""
        if self.open:
            self.down += data
            if len(self.down) > self._high and not self._slow and self.protocol is not None:
                self._slow = True
                self.protocol.pause_writing()

    def close(self) -> None:
        """End the connection after what was written."""
        self._end()

    def abort(self) -> None:
        """End the connection at once."""
        self._end()

    def is_closing(self) -> bool:
        """Return True once it is over."""
        return not self.open

    def can_write_eof(self) -> bool:
        """Say that a goodbye ends the connection."""
        return False

    def set_write_buffer_limits(self, high: int) -> None:
        """Note from where on the client counts as slow."""
        self._high = high

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the client has not taken."""
        return len(self.down)

    def pause_reading(self) -> None:
        """Keep the client's bytes."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand the client's bytes on again."""
        self._paused = False

    def get_extra_info(self, name: str) -> Any:
        """Say where the client is."""
        return ("127.0.0.1", 1) if name == "peername" else None

    # -- what the test does -------------------------------------------------------------------

    def arrive(self, count: int) -> None:
        """Let the broker have the next bytes of the client, if it reads."""
        if self.open and not self._paused and self.up and count and self.protocol is not None:
            data, self.up = self.up[:count], self.up[count:]
            self.protocol.data_received(data)

    def take(self, count: int) -> bytes:
        """Return the next bytes for the client."""
        data, self.down = self.down[:count], self.down[count:]
        if self._slow and not self.down and self.open and self.protocol is not None:
            self._slow = False
            self.protocol.resume_writing()
        return data

    def _end(self) -> None:
        if self.open:
            self.open = False
            protocol = self.protocol
            assert protocol is not None
            asyncio.get_running_loop().call_soon(protocol.connection_lost, None)


class World:
    """A broker with its session store on disk, and the lines to it.

    Args:
        folder: For the store.
        config: The broker's.
    """

    def __init__(self, folder: Path, config: BrokerConfig) -> None:
        self._path = folder / "sessions.db"
        self._config = config
        self._runner = asyncio.Runner()
        self.lines: list[Line] = []
        self.faults: list[str] = []  # exceptions that reached the loop
        self._broker: Broker
        self._store: SqliteSessionStore
        self._runner.get_loop().set_exception_handler(
            lambda _loop, context: self.faults.append(repr(context))
        )
        self.start()

    def start(self) -> None:
        """Start a broker on what the disk has."""
        self._store = SqliteSessionStore(self._path)
        self._broker = Broker(self._config, store=self._store)
        self._runner.run(self._broker.start())

    def stop(self) -> None:
        """Stop the broker in order; every line ends."""
        self._runner.run(self._broker.stop())
        self._end_lines()

    def kill(self) -> None:
        """End the broker without a word: what was not committed is lost, and so are all lines."""
        self._runner.run(self._kill())
        self._end_lines()

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._runner.close()

    def dial(self) -> Line:
        """Return a new connection."""
        line = Line()
        self._runner.run(self._dial(line))
        self.lines.append(line)
        return line

    def carry(self, line: Line, up: int, down: int) -> bytes:
        """Let bytes arrive at the broker; return some that arrive at the client."""
        self._runner.run(self._carry(line, up))
        return line.take(down)

    def settle(self) -> None:
        """Let the broker finish what it is about, its commits included."""
        self._runner.run(self._settle())

    def cut(self, line: Line) -> None:
        """Break a line: what is on its way is lost, and the broker is told."""
        line.up = line.down = b""
        self._runner.run(self._cut(line))

    async def _dial(self, line: Line) -> None:
        line.protocol = self._broker.connection()
        line.protocol.connection_made(line)

    async def _carry(self, line: Line, count: int) -> None:
        line.arrive(count)
        await asyncio.sleep(0)

    async def _settle(self) -> None:
        durable = asyncio.Event()
        self._store.when_durable(durable.set)
        await durable.wait()
        for _ in range(3):
            await asyncio.sleep(0)

    async def _cut(self, line: Line) -> None:
        if line.open:
            line.open = False
            assert line.protocol is not None
            line.protocol.connection_lost(None)
        await asyncio.sleep(0)

    async def _kill(self) -> None:
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store._database.close()  # the transactions that are through stay

    def _end_lines(self) -> None:
        for line in self.lines:
            line.open = False
            line.up = line.down = b""
        self.lines.clear()
