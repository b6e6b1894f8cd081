"""A SQLite connection with a thread of its own; a whole transaction is one hop to it.

aiosqlite makes the thread. It never delays the end of the process: a connection whose owner ran out
of time to stop is not closed, its thread would wait for ever and the interpreter for the thread.
What was committed is on the disk; the rest is as after a crash.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import aiosqlite

__all__ = ["SqliteConnection"]

T = TypeVar("T")


class SqliteConnection(aiosqlite.Connection):
    """One connection and its thread; `await` it to open it.

    Args:
        connector: Opens the file and sets its pragmas; runs on the connection's thread.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._thread.daemon = True

    def hop(self, function: Callable[[sqlite3.Connection], T]) -> Awaitable[T]:
        """Call `function` with the connection, on its thread; cancelling does not stop it.

        Raises:
            Exception: what `function` raised.
        """
        hop: Awaitable[T] = self._execute(  # type: ignore[no-untyped-call] # aiosqlite
            partial(self._call, function)
        )
        return hop

    async def ended(self) -> None:
        """Return when the thread has ended, after opening failed.

        aiosqlite tells it to end but does not wait, and then it would call a closed event loop.
        """
        await asyncio.to_thread(self._thread.join)

    def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return function(self._conn)
