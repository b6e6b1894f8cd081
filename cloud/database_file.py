"""A database file: one's own, locked against all others, or another process's, for reading only."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cloud.database import (
    Database,
    DatabaseError,
    DatabaseKind,
    FileLock,
    open_database,
    open_read_only,
)

__all__ = ["DatabaseFile", "OwnedDatabaseFile"]

T = TypeVar("T")


class DatabaseFile:
    """A database file open for reading; an async context manager."""

    kind: DatabaseKind

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: Database | None = None

    async def ask_file(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Return `question(connection)`, run on the file's thread.

        Raises:
            DatabaseError: the file cannot be read.
        """
        assert self._database is not None
        try:
            return await self._database.run(question)
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    async def open(self) -> None:
        """Open it.

        Raises:
            DatabaseError: it is absent, something else, newer or damaged.
        """
        self._database = await open_read_only(self.path, self.kind)

    async def close(self) -> None:
        """Close it; harmless when closed already."""
        if self._database is not None:
            await self._database.close()
            self._database = None


class OwnedDatabaseFile:
    """A database file that this object writes, and nobody else.

    Args:
        path: The file.
        kind: What it must be.
        cache_bytes: Page cache of the connection.
    """

    def __init__(self, path: Path, kind: DatabaseKind, *, cache_bytes: int = 8 << 20) -> None:
        self.path = path
        self._kind = kind
        self._cache_bytes = cache_bytes
        self._lock: FileLock | None = None
        self._database: Database | None = None

    async def open(self) -> None:
        """Open it, making it when it is new.

        Raises:
            DatabaseError: it is in use, foreign, newer, damaged or cannot be written.
        """
        self._lock = await asyncio.to_thread(FileLock, self.path)
        try:
            self._database = await open_database(
                self.path, self._kind, cache_bytes=self._cache_bytes
            )
        except BaseException:
            await self.close()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`, run on the file's thread.

        Raises:
            DatabaseError: it is not open.
            Exception: what `work` raised.
        """
        if self._database is None:
            raise DatabaseError(f"{self.path}: not open")
        return await self._database.run(work)

    async def close(self) -> None:
        """Release it; harmless when closed already."""
        if self._database is not None:
            await self._database.close()
            self._database = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
